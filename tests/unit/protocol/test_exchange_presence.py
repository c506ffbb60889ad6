"""Who is there: every presence with every event, and the backup order of server sessions."""

from itertools import product
from typing import get_args

import pytest

from app.protocol.exchange_presence import (
    Arrived,
    Away,
    Event,
    Fence,
    Gone,
    Heard,
    Left,
    Looked,
    Presence,
    Present,
    Silent,
    Step,
    choose,
    step,
)

NEVER = Away()
AWAY = Away(5)
HERE = Present(5, 1_000)

CASES: list[tuple[Presence, Event, Step]] = [
    (NEVER, Heard(5, 1_000), Step(HERE, (Arrived(5),))),
    (AWAY, Heard(5, 1_000), Step(HERE, (Arrived(5),))),
    (AWAY, Heard(6, 1_000), Step(Present(6, 1_000), (Arrived(6),))),
    (AWAY, Heard(4, 1_000), Step(AWAY, (Fence(4, 5),))),
    (AWAY, Left(5), Step(AWAY)),
    (AWAY, Looked(9_000, 1), Step(AWAY)),
    (HERE, Heard(5, 2_000), Step(Present(5, 2_000))),
    (HERE, Heard(4, 2_000), Step(HERE, (Fence(4, 5),))),
    (HERE, Heard(6, 2_000), Step(Present(6, 2_000), (Gone(5, crashed=True), Fence(5, 6), Arrived(6)))),
    (HERE, Left(5), Step(AWAY, (Gone(5, crashed=False),))),
    (HERE, Left(4), Step(HERE)),
    (HERE, Left(6), Step(HERE)),
    (HERE, Looked(1_500, 500), Step(HERE)),
    (HERE, Looked(1_501, 500), Step(AWAY, (Gone(5, crashed=True), Silent(5)))),
    # A clock that stood still makes nobody silent.
    (HERE, Looked(0, 500), Step(HERE)),
]


@pytest.mark.parametrize(("presence", "event", "expected"), CASES, ids=str)
def test_step(presence: Presence, event: Event, expected: Step) -> None:
    assert step(presence, event) == expected


def test_the_table_has_every_pair() -> None:
    covered = {(type(presence), type(event)) for presence, event, _ in CASES}
    assert covered == set(product(get_args(Presence), get_args(Event)))


GOLDEN = ["hpc-1", "hpc-1", "hpc-1", "hpc-1", "hpc-3", "hpc-2", "hpc-3", "hpc-3"]
"""Of exchanges sim-0 … sim-7 over hpc-1, hpc-2, hpc-3; computed apart from this code."""


def test_golden_choices() -> None:
    """Fixed for ever: two releases must agree on who backs an exchange up."""
    servers = ["hpc-1", "hpc-2", "hpc-3"]
    assert [choose(b"sim-%d" % n, servers) for n in range(8)] == GOLDEN


def test_a_preferred_session_is_chosen_if_it_is_there() -> None:
    assert choose(b"sim-0", ["a", "b"], prefer="b") == "b"
    assert choose(b"sim-0", ["a"], prefer="b") == "a"
    assert choose(b"sim-0", [], prefer="b") == ""


def test_a_session_that_goes_moves_only_its_own_exchanges() -> None:
    names = [f"hpc-{n}" for n in range(6)]
    for exchange in (b"sim-%d" % n for n in range(200)):
        first = choose(exchange, names)
        left = [name for name in names if name != "hpc-3"]
        assert choose(exchange, left) == first or first == "hpc-3"
