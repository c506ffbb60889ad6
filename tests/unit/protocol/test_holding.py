"""Held tasks: their numbers, whose they are, and the bounds."""

import pytest

from app.errors import LocalProtocolError
from app.protocol import holding
from app.protocol.holding import Held

X, Y = ("acme", "x"), ("acme", "y")


def test_tasks_are_numbered_by_router_and_source() -> None:
    held = Held()
    numbers = [
        held.hold(router, source, name=name, size=10)
        for router, source, name in ((0, 1, X), (0, 1, Y), (0, 2, X), (3, 1, X))
    ]
    assert numbers == [1, 2, 1, 1]
    assert (held.counts(0), held.counts(3), held.counts(1), held.total) == ({1: 2, 2: 1}, {1: 1}, {}, 4)


def test_a_session_waits_until_its_last_task_has_left() -> None:
    held = Held()
    for name in (X, Y, X):
        held.hold(0, 1, name=name, size=10)
    held.leave(0, 1, 1, name=X, size=10)
    assert held.waits(X)
    held.leave(0, 1, 2, name=Y, size=10)
    assert not held.waits(Y)
    held.leave(0, 1, 3, name=X, size=10)
    assert (held.waits(X), held.total, held.counts(0)) == (False, 0, {})
    # Nothing is left, so that numbers begin anew.
    assert held.hold(0, 1, name=X, size=10) == 1


def test_a_new_host_goes_on_from_the_rows() -> None:
    held = Held()
    held.found(0, 1, 4, name=X, size=10)
    held.found(0, 1, 5, name=Y, size=10)
    assert held.hold(0, 1, name=X, size=10) == 6
    held.leave(0, 1, 4, name=X, size=10)
    assert held.counts(0) == {1: 2}


def test_it_tells_what_is_first_of_what_it_holds() -> None:
    held = Held()
    for source in (1, 1, 2):
        held.hold(0, source, name=X, size=1)
    assert (held.lines(), held.first(0, 1)) == ([(0, 1), (0, 2)], 1)
    held.leave(0, 1, 1, name=X, size=1)
    assert held.first(0, 1) == 2
    held.leave(0, 1, 2, name=X, size=1)
    assert held.lines() == [(0, 2)]


def test_only_the_first_leaves() -> None:
    held = Held()
    held.hold(0, 1, name=X, size=10)
    held.hold(0, 1, name=X, size=10)
    for number in (2, 3):
        with pytest.raises(LocalProtocolError, match="1 is first"):
            held.leave(0, 1, number, name=X, size=10)
    with pytest.raises(LocalProtocolError, match="None is first"):
        held.leave(0, 2, 1, name=X, size=10)


def test_rows_are_found_in_order() -> None:
    held = Held()
    held.found(0, 1, 4, name=X, size=10)
    with pytest.raises(LocalProtocolError):
        held.found(0, 1, 4, name=X, size=10)


def test_the_bounds(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(holding, "HELD_MAX", 2)
    monkeypatch.setattr(holding, "HELD_BYTES_MAX", 100)
    held = Held()
    held.hold(0, 1, name=X, size=10)
    held.hold(0, 1, name=X, size=10)
    full = [held.full]
    held.leave(0, 1, 1, name=X, size=10)
    full.append(held.full)
    held.hold(0, 2, name=Y, size=100)
    full.append(held.full)
    assert full == [True, False, True]
