"""The router's part of a view: adopted in order, migrations first, then the marker."""

import pytest

from app.errors import LocalProtocolError
from app.protocol.adoption import Adopted, Mark, Step, TellMoves, step
from app.protocol.markers import Marker, View, ViewClosed
from app.protocol.moves import Announce

KNOWN = Adopted(4, frozenset({3}), closed=True)
OPEN = Adopted(5, frozenset({1, 3}), closed=False)
VIEW = View(5, (1, 3), (1,), (), ((1, "w2"),))


def test_migrations_hear_of_it_before_the_marker_goes_out() -> None:
    decided = step(KNOWN, VIEW, router=2)
    assert decided == Step(
        OPEN,
        (
            TellMoves(frozenset({1})),
            Mark(Marker(2, 5, (1, 3), (1,), (), ((1, "w2"),))),
            Announce("marker-published", None, False, {"view": 5, "router": 2}),
        ),
    )
    assert decided.adopted.up(4) == {0, 2}


def test_what_comes_twice_or_late_changes_nothing() -> None:
    assert step(OPEN, VIEW, router=2) == Step(OPEN)
    assert step(OPEN, ViewClosed(4), router=2) == Step(OPEN)
    closed = Adopted(5, frozenset({1, 3}), closed=True)
    assert step(OPEN, ViewClosed(5), router=2) == Step(closed)
    assert step(closed, ViewClosed(5), router=2) == Step(closed)
    assert step(closed, VIEW, router=2) == Step(closed)


@pytest.mark.parametrize(
    "view", [View(6, (1, 3), (1,), (), ()), View(5, (1,), (1,), (), ()), View(5, (3,), (1,), (), ())]
)
def test_a_view_that_does_not_follow_is_an_error(view: View) -> None:
    with pytest.raises(LocalProtocolError):
        step(KNOWN, view, router=2)


def test_servers_return() -> None:
    decided = step(KNOWN, View(5, (), (), (3,), ()), router=0)
    assert decided.adopted == Adopted(5, frozenset(), closed=False)
    assert decided.effects[0] == TellMoves(frozenset({3}))
