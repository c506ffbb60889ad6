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
    Holding,
    JoinBegun,
    Parted,
    RestoreEnded,
    Restoring,
    Role,
    Running,
    Step,
    Tailing,
    UnitAborted,
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
ABORTED = UnitAborted()

ABSENT, TAILING = Absent(), Tailing()
RESTORING, CLAIMING, RUNNING, PARTED = Restoring(7), Claiming(7), Running(7), Parted(7)

ANSWERS = (RESTORED, RESTORED_6, RESTORED_8, CLAIMED, CLAIMED_6, CLAIMED_8, REFUSED, REFUSED_6)


def same(holding: Holding, *events: Event) -> list[tuple[Holding, Event, Step]]:
    return [(holding, event, Step(holding)) for event in events]


CASES: list[tuple[Holding, Event, Step]] = [
    (ABSENT, HOST_8, Step(Restoring(8), (RESTORE,))),
    (ABSENT, HOST_NEW, Step(Restoring(8), (RESTORE,))),
    (ABSENT, STANDBY_8, Step(Tailing(), (TAIL,))),
    *same(ABSENT, NONE_8, JOIN, ABORTED, *ANSWERS),
    (TAILING, HOST_8, Step(Restoring(8), (RESTORE,))),
    (TAILING, HOST_NEW, Step(Restoring(8), (RESTORE,))),
    (TAILING, NONE_8, Step(Absent(), (DROP,))),
    *same(TAILING, STANDBY_8, JOIN, ABORTED, *ANSWERS),
    (RESTORING, HOST_8, Step(Restoring(8), (RESTORE,))),
    (RESTORING, HOST_AGAIN, Step(Restoring(7), (RESTORE,))),
    (RESTORING, STANDBY_8, Step(Tailing(), (TAIL,))),
    (RESTORING, NONE_8, Step(Absent(), (DROP,))),
    (RESTORING, RESTORED, Step(Claiming(7), (CLAIM,))),
    (RESTORING, JOIN, Step(Tailing(), (TAIL,))),
    *same(RESTORING, ABORTED, RESTORED_6, RESTORED_8, CLAIMED, CLAIMED_6, CLAIMED_8, REFUSED, REFUSED_6),
    (CLAIMING, HOST_8, Step(Restoring(8), (RESTORE,))),
    (CLAIMING, HOST_AGAIN, Step(Restoring(7), (RESTORE,))),
    (CLAIMING, STANDBY_8, Step(Tailing(), (TAIL,))),
    (CLAIMING, NONE_8, Step(Absent(), (DROP,))),
    (CLAIMING, CLAIMED, Step(Running(7), (OPEN,))),
    (CLAIMING, JOIN, Step(Tailing(), (TAIL,))),
    *same(CLAIMING, ABORTED, REFUSED, REFUSED_6, CLAIMED_6, CLAIMED_8, RESTORED, RESTORED_6, RESTORED_8),
    (RUNNING, HOST_8, Step(Restoring(8), (CLOSE, RESTORE))),
    (RUNNING, HOST_AGAIN, Step(Restoring(7), (CLOSE, RESTORE))),
    (RUNNING, STANDBY_8, Step(Tailing(), (CLOSE, TAIL))),
    (RUNNING, NONE_8, Step(Absent(), (CLOSE, DROP))),
    (RUNNING, JOIN, Step(Parted(7), (CLOSE,))),
    (RUNNING, ABORTED, Step(Claiming(7), (CLOSE, CLAIM))),
    *same(RUNNING, *ANSWERS),
    (PARTED, HOST_8, Step(Claiming(8), (CLAIM,))),
    (PARTED, HOST_9, Step(Restoring(9), (RESTORE,))),
    (PARTED, HOST_NEW, Step(Restoring(8), (RESTORE,))),
    (PARTED, HOST_AGAIN, Step(Restoring(7), (RESTORE,))),
    (PARTED, STANDBY_8, Step(Tailing(), (TAIL,))),
    (PARTED, NONE_8, Step(Absent(), (DROP,))),
    *same(PARTED, JOIN, ABORTED, *ANSWERS),
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
    decided = step(Parted(parted), Assigned(generation, Role.HOST, previous))
    if previous is not None and parted == previous == generation - 1:
        assert decided == Step(Claiming(generation), (CLAIM,))
    else:
        assert decided == Step(Restoring(generation), (RESTORE,))


@pytest.mark.parametrize(("holding", "event", "expected"), CASES, ids=str)
def test_whatever_was_served_is_closed_first_and_only_then(holding: Holding, event: Event, expected: Step) -> None:
    leaves = isinstance(holding, Running) and expected.holding != holding
    assert expected.effects[:1] == (CLOSE,) if leaves else CLOSE not in expected.effects


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
