"""What a server says when it has reached all markers, and when it has closed a view."""

from app.protocol.affinity import Aligned, Change, Moved, Part, Receiving, Sending
from app.protocol.chunks import Digest
from app.protocol.closing import Report, again, closed, notices
from app.protocol.markers import Closed
from app.protocol.moves import Announce

ALL = frozenset(range(3))
FIRST = Aligned(Change(0, ALL, ALL))
CHANGE = Change(1, ALL, ALL - {1}, ((1, "w3"),))
RECEIVING = Receiving(CHANGE, (Part(1),))


def test_nothing_is_said_before_the_last_routers_marker() -> None:
    assert notices((FIRST, FIRST), (RECEIVING, FIRST), 2) == ()
    reached = Announce("marker-reached", None, False, {"view": 1, "server": 2})
    assert notices((RECEIVING, FIRST), (RECEIVING, RECEIVING), 2) == (reached,)


def test_a_view_is_closed_when_it_is_for_all_routers() -> None:
    first = Aligned(CHANGE, (Moved(1, 2, Digest(2, 10)),))
    second = Aligned(CHANGE, (Moved(1, 2, Digest(1, 5)),))
    assert notices((RECEIVING, RECEIVING), (first, RECEIVING), 2) == ()
    said = notices((first, RECEIVING), (first, second), 2)
    line = {"source": 1, "target": 2, "rows": 3, "checksum": Digest(3, 15).text}
    fields = {"view": 1, "server": 2, "certificate": [line]}
    assert said == (Announce("server-normal", None, False, fields), Report(Closed(2, 1)))
    assert closed((first, RECEIVING)) == 0
    assert again((first, second), 2) == Report(Closed(2, 1))


def test_the_failed_server_is_closed_and_names_its_manager() -> None:
    moved = Moved(1, 2, Digest(2, 10))
    said = notices((Sending(CHANGE, sent=True),), (Aligned(CHANGE, (moved,)),), 1)
    line = {"source": 1, "target": 2, "rows": 2, "checksum": Digest(2, 10).text}
    fields = {"view": 1, "server": 1, "certificate": [line], "manager": "w3"}
    assert said == (Announce("server-closed", None, False, fields), Report(Closed(1, 1)))


def test_a_server_that_returns_is_restored() -> None:
    change = Change(2, ALL - {1}, ALL)
    said = notices((Receiving(change, ()),), (Aligned(change),), 1)
    assert said[0] == Announce("server-restored", None, False, {"view": 2, "server": 1, "certificate": []})


def test_a_server_that_is_down_all_the_while_only_reports() -> None:
    change = Change(3, frozenset({0}), frozenset({0, 2}))
    before = Aligned(Change(2, frozenset({0}), frozenset({0})))
    reached = Announce("marker-reached", None, False, {"view": 3, "server": 1})
    assert notices((before,), (Aligned(change),), 1) == (reached, Report(Closed(1, 3)))
