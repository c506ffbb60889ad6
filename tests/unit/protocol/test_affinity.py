"""Whose a session is, under every state: by the server's own stream, and by what has arrived."""

import pytest

from app.protocol.affinity import (
    OWN,
    Aligned,
    Change,
    Comes,
    Early,
    Part,
    Receiving,
    Sending,
    State,
    Stranger,
    Whose,
    lives,
    may_leave,
    whose,
)
from app.protocol.backup_order import backup_order
from app.protocol.placement import Routes, session_key

ALL = frozenset(range(4))
SESSION = next(name for name in map(str, range(100)) if backup_order(session_key("acme", name), 4)[:2] == (2, 3))
FAIL = Change(5, ALL, ALL - {1})
BACK = Change(6, ALL - {1}, ALL)
HERE = Part(1, complete=True)


@pytest.mark.parametrize(
    ("state", "home", "server", "expected"),
    [
        (Aligned(Change(0, ALL, ALL)), 1, 1, OWN),
        (Aligned(Change(0, ALL, ALL)), 1, 2, Stranger(1)),
        # What came early is not here before the marker.
        (Early(Change(4, ALL, ALL), (HERE,)), 1, 2, Stranger(1)),
        (Sending(FAIL), 1, 1, Stranger(2)),
        (Receiving(FAIL, (Part(1),)), 1, 2, Comes(1)),
        (Receiving(FAIL, (HERE,)), 1, 2, OWN),
        (Receiving(FAIL, (Part(1, wrong=True),)), 1, 2, Comes(1)),
        (Receiving(FAIL, (Part(1),)), 1, 3, Stranger(2)),
        # Sessions that do not move go on.
        (Receiving(FAIL, (Part(1),)), 0, 0, OWN),
        (Aligned(FAIL), 1, 2, OWN),
        (Sending(BACK), 1, 2, Stranger(1)),
        (Sending(BACK), 2, 2, OWN),
        (Receiving(BACK, (Part(0, complete=True), Part(2), Part(3))), 1, 1, Comes(2)),
        (Receiving(BACK, (Part(0), HERE, Part(2, complete=True), Part(3))), 1, 1, OWN),
        # Its home is still down, and its first backup returns.
        (Receiving(Change(7, frozenset({0, 3}), frozenset({0, 2, 3})), (Part(0), Part(3))), 1, 2, Comes(3)),
        (Sending(Change(7, frozenset({0, 3}), frozenset({0, 2, 3}))), 1, 3, Stranger(2)),
    ],
)
def test_whose(state: State, home: int, server: int, expected: object) -> None:
    assert whose(state, "acme", SESSION, home, server=server, routes=Routes()) == expected


@pytest.mark.parametrize(
    ("found", "epoch", "served", "expected"),
    [
        (OWN, 2, 2, True),
        (OWN, 1, 2, False),
        (OWN, 3, 2, False),
        (OWN, 2, None, False),
        (Comes(1), 2, 2, False),
        (Stranger(1), 2, 2, False),
    ],
)
def test_which_rows_are_performed(found: Whose, epoch: int, served: int | None, expected: bool) -> None:
    assert lives(found, epoch, served) is expected


def test_whose_home_was_up_and_is_stays() -> None:
    twice = Change(7, ALL - {1}, ALL - {1, 2})
    assert [may_leave(change, home) for change in (FAIL, BACK, twice) for home in range(4)] == [
        *(False, True, False, False),
        *(False, True, False, False),
        *(False, True, True, False),
    ]


def test_a_view_fails_or_restores() -> None:
    assert [sorted(found) for found in (FAIL.failed, FAIL.restored, FAIL.sources, FAIL.targets)] == [
        [1],
        [],
        [1],
        [0, 2, 3],
    ]
    assert [sorted(found) for found in (BACK.failed, BACK.restored, BACK.sources, BACK.targets)] == [
        [],
        [1],
        [0, 2, 3],
        [1],
    ]
