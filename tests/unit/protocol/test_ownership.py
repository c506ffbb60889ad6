"""Ownership of a place: every holding with every event, and the rule about rows that are kept."""

from itertools import product
from typing import get_args

import pytest

from app.protocol.ownership import (
    Absent,
    Assigned,
    ClaimEnded,
    Claiming,
    Effect,
    Event,
    GivenUp,
    Holding,
    JoinBegun,
    Parted,
    Paused,
    RestoreEnded,
    Restoring,
    Role,
    Running,
    Step,
    Tailing,
    UnitAborted,
    stays,
    step,
)

CLOSE, TAIL, DROP, RESTORE, CLAIM, OPEN = Effect

# Generation 7 is the one that the worker knew; 8 follows it directly, 9 does not.
HOST_8 = Assigned(8, Role.HOST, 7)
HOST_9 = Assigned(9, Role.HOST, 7)
HOST_NEW = Assigned(8, Role.HOST, None)
HOST_AGAIN = Assigned(7, Role.HOST, 7)
STANDBY_8 = Assigned(8, Role.STANDBY, 7)
NONE_8 = Assigned(8, Role.NONE, 7)
RESTORED = RestoreEnded(7)
RESTORED_6 = RestoreEnded(6)
RESTORED_8 = RestoreEnded(8)
CLAIMED = ClaimEnded(7, accepted=True)
CLAIMED_6 = ClaimEnded(6, accepted=True)
CLAIMED_8 = ClaimEnded(8, accepted=True)
REFUSED = ClaimEnded(7, accepted=False)
REFUSED_6 = ClaimEnded(6, accepted=False)
JOIN = JoinBegun()
GIVEN_UP = GivenUp()
ABORTED = UnitAborted()

ABSENT, TAILING = Absent(), Tailing()
RESTORING, CLAIMING, RUNNING, PAUSED, PARTED = Restoring(7), Claiming(7), Running(7), Paused(7), Parted(7)

ANSWERS = (RESTORED, RESTORED_6, RESTORED_8, CLAIMED, CLAIMED_6, CLAIMED_8, REFUSED, REFUSED_6)


def same(holding: Holding, *events: Event) -> list[tuple[Holding, Event, Step]]:
    return [(holding, event, Step(holding)) for event in events]


CASES: list[tuple[Holding, Event, Step]] = [
    (ABSENT, HOST_8, Step(Restoring(8), (RESTORE,))),
    (ABSENT, HOST_NEW, Step(Restoring(8), (RESTORE,))),
    (ABSENT, STANDBY_8, Step(Tailing(), (TAIL,))),
    *same(ABSENT, NONE_8, JOIN, GIVEN_UP, ABORTED, *ANSWERS),
    (TAILING, HOST_8, Step(Restoring(8), (RESTORE,))),
    (TAILING, HOST_NEW, Step(Restoring(8), (RESTORE,))),
    (TAILING, NONE_8, Step(Absent(), (DROP,))),
    *same(TAILING, STANDBY_8, JOIN, GIVEN_UP, ABORTED, *ANSWERS),
    (RESTORING, HOST_8, Step(Restoring(8), (RESTORE,))),
    (RESTORING, HOST_AGAIN, Step(Restoring(7), (RESTORE,))),
    (RESTORING, STANDBY_8, Step(Tailing(), (TAIL,))),
    (RESTORING, NONE_8, Step(Absent(), (DROP,))),
    (RESTORING, RESTORED, Step(Claiming(7), (CLAIM,))),
    (RESTORING, JOIN, Step(Tailing(), (TAIL,))),
    (RESTORING, GIVEN_UP, Step(Tailing(), (TAIL,))),
    *same(RESTORING, ABORTED, RESTORED_6, RESTORED_8, CLAIMED, CLAIMED_6, CLAIMED_8, REFUSED, REFUSED_6),
    (CLAIMING, HOST_8, Step(Restoring(8), (RESTORE,))),
    (CLAIMING, HOST_AGAIN, Step(Restoring(7), (RESTORE,))),
    (CLAIMING, STANDBY_8, Step(Tailing(), (TAIL,))),
    (CLAIMING, NONE_8, Step(Absent(), (DROP,))),
    (CLAIMING, CLAIMED, Step(Running(7), (OPEN,))),
    (CLAIMING, JOIN, Step(Tailing(), (TAIL,))),
    (CLAIMING, GIVEN_UP, Step(Tailing(), (TAIL,))),
    *same(CLAIMING, ABORTED, REFUSED, REFUSED_6, CLAIMED_6, CLAIMED_8, RESTORED, RESTORED_6, RESTORED_8),
    (RUNNING, HOST_8, Step(Restoring(8), (CLOSE, RESTORE))),
    (RUNNING, HOST_AGAIN, Step(Restoring(7), (CLOSE, RESTORE))),
    (RUNNING, STANDBY_8, Step(Tailing(), (CLOSE, TAIL))),
    (RUNNING, NONE_8, Step(Absent(), (CLOSE, DROP))),
    (RUNNING, JOIN, Step(Paused(7))),
    (RUNNING, GIVEN_UP, Step(Parted(7), (CLOSE,))),
    (RUNNING, ABORTED, Step(Claiming(7), (CLOSE, CLAIM))),
    *same(RUNNING, *ANSWERS),
    (PAUSED, HOST_8, Step(Running(8))),
    (PAUSED, HOST_9, Step(Restoring(9), (CLOSE, RESTORE))),
    (PAUSED, HOST_NEW, Step(Restoring(8), (CLOSE, RESTORE))),
    (PAUSED, HOST_AGAIN, Step(Restoring(7), (CLOSE, RESTORE))),
    (PAUSED, STANDBY_8, Step(Tailing(), (CLOSE, TAIL))),
    (PAUSED, NONE_8, Step(Absent(), (CLOSE, DROP))),
    (PAUSED, GIVEN_UP, Step(Parted(7), (CLOSE,))),
    (PAUSED, ABORTED, Step(Parted(7), (CLOSE,))),
    *same(PAUSED, JOIN, *ANSWERS),
    (PARTED, HOST_8, Step(Claiming(8), (CLAIM,))),
    (PARTED, HOST_9, Step(Restoring(9), (RESTORE,))),
    (PARTED, HOST_NEW, Step(Restoring(8), (RESTORE,))),
    (PARTED, HOST_AGAIN, Step(Restoring(7), (RESTORE,))),
    (PARTED, STANDBY_8, Step(Tailing(), (TAIL,))),
    (PARTED, NONE_8, Step(Absent(), (DROP,))),
    *same(PARTED, JOIN, GIVEN_UP, ABORTED, *ANSWERS),
]


@pytest.mark.parametrize(("holding", "event", "expected"), CASES, ids=str)
def test_step(holding: Holding, event: Event, expected: Step) -> None:
    assert step(holding, event) == expected


def test_the_table_has_every_pair() -> None:
    covered = {(type(holding), type(event)) for holding, event, _ in CASES}
    assert covered == set(product(get_args(Holding), get_args(Event)))


def test_the_table_has_every_holding_with_every_role() -> None:
    covered = {(type(holding), event.role) for holding, event, _ in CASES if isinstance(event, Assigned)}
    assert covered == set(product(get_args(Holding), Role))


@pytest.mark.parametrize("parted", [0, 5, 6, 7, 8])
@pytest.mark.parametrize("previous", [None, 0, 5, 6, 7, 8])
@pytest.mark.parametrize("generation", [1, 6, 7, 8, 9])
def test_rows_are_kept_only_by_the_owner_of_the_generation_directly_before(
    parted: int, previous: int | None, generation: int
) -> None:
    word = Assigned(generation, Role.HOST, previous)
    kept = previous is not None and parted == previous == generation - 1
    assert stays(Paused(parted), word) is kept
    assert not stays(Parted(parted), word)
    if kept:
        assert step(Parted(parted), word) == Step(Claiming(generation), (CLAIM,))
        assert step(Paused(parted), word) == Step(Running(generation))
    else:
        assert step(Parted(parted), word) == Step(Restoring(generation), (RESTORE,))
        assert step(Paused(parted), word) == Step(Restoring(generation), (CLOSE, RESTORE))


@pytest.mark.parametrize(("holding", "event", "expected"), CASES, ids=str)
def test_whatever_was_served_is_closed_first_and_only_then(holding: Holding, event: Event, expected: Step) -> None:
    served, goes_on = isinstance(holding, Running | Paused), isinstance(expected.holding, Running | Paused)
    assert expected.effects[:1] == (CLOSE,) if served and not goes_on else CLOSE not in expected.effects


def test_the_way_to_serving() -> None:
    holding: Holding = Absent()
    done: list[Effect] = []
    way: list[Event] = [Assigned(3, Role.HOST, None), RestoreEnded(3), ClaimEnded(3, accepted=True)]
    for event in way:
        decided = step(holding, event)
        holding = decided.holding
        done += decided.effects
    assert holding == Running(3)
    assert done == [RESTORE, CLAIM, OPEN]
