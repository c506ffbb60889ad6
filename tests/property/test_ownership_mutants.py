"""Each rule of the ownership core is needed: without it the machine finds a lost, doubled or stuck record."""

from collections.abc import Callable
from dataclasses import replace

import pytest

from app.protocol import ownership
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
    step,
)
from tests.property.mutation import killed_after
from tests.property.test_ownership_machine import walk

Mutant = Callable[[Holding, Event], Step | None]
"""What the changed rule says, or None where the core decides as always."""


def keeps_rows_over_a_gap(holding: Holding, event: Event) -> Step | None:
    match holding, event:
        case Parted(generation), Assigned(newest, Role.HOST, previous) if generation == previous:
            return Step(Claiming(newest), (Effect.CLAIM,))
    return None


def keeps_rows_as_a_new_member(holding: Holding, event: Event) -> Step | None:
    match holding, event:
        case Parted(), Assigned(newest, Role.HOST, _):
            return Step(Claiming(newest), (Effect.CLAIM,))
    return None


def keeps_the_rows_of_a_standby(holding: Holding, event: Event) -> Step | None:
    match holding, event:
        case Tailing(), Assigned(newest, Role.HOST, _):
            return Step(Claiming(newest), (Effect.CLAIM,))
    return None


def takes_an_older_claim(holding: Holding, event: Event) -> Step | None:
    match holding, event:
        case Claiming(generation), ClaimEnded(_, True):
            return Step(Running(generation), (Effect.OPEN,))
    return None


def takes_a_refused_claim(holding: Holding, event: Event) -> Step | None:
    match holding, event:
        case Claiming(generation), ClaimEnded(claimed, False) if claimed == generation:
            return Step(Running(generation), (Effect.OPEN,))
    return None


def takes_an_older_restore(holding: Holding, event: Event) -> Step | None:
    match holding, event:
        case Restoring(generation), RestoreEnded():
            return Step(Claiming(generation), (Effect.CLAIM,))
    return None


def does_not_wait_for_the_restore(holding: Holding, event: Event) -> Step | None:
    match holding, event:
        case Absent(), Assigned(generation, Role.HOST, _):
            return Step(Claiming(generation), (Effect.CLAIM,))
    return None


def opens_without_a_claim(holding: Holding, event: Event) -> Step | None:
    match holding, event:
        case Restoring(generation), RestoreEnded(restored) if restored == generation:
            return Step(Running(generation), (Effect.OPEN,))
    return None


def goes_on_over_a_rebalance_without_a_claim(holding: Holding, event: Event) -> Step | None:
    match holding, event:
        case Parted(generation), Assigned(newest, Role.HOST, previous) if generation == previous == newest - 1:
            return Step(Running(newest), (Effect.OPEN,))
    return None


def claims_through_a_join(holding: Holding, event: Event) -> Step | None:
    match holding, event:
        case Claiming(), JoinBegun():
            return Step(holding)
    return None


def restores_through_a_join(holding: Holding, event: Event) -> Step | None:
    match holding, event:
        case Restoring(), JoinBegun():
            return Step(holding)
    return None


def takes_a_restore_for_the_owners_rows(holding: Holding, event: Event) -> Step | None:
    match holding, event:
        case Restoring(generation), JoinBegun():
            return Step(Parted(generation), (Effect.TAIL,))
    return None


def serves_through_a_join(holding: Holding, event: Event) -> Step | None:
    match holding, event:
        case Running(), JoinBegun():
            return Step(holding)
    return None


def reopens_without_a_claim(holding: Holding, event: Event) -> Step | None:
    match holding, event:
        case Running(), UnitAborted():
            return Step(holding, (Effect.CLOSE, Effect.OPEN))
    return None


def closes_for_ever_after_an_abort(holding: Holding, event: Event) -> Step | None:
    match holding, event:
        case Running(generation), UnitAborted():
            return Step(Claiming(generation), (Effect.CLOSE,))
    return None


def forgets_to_claim(holding: Holding, event: Event) -> Step | None:
    decided = step(holding, event)
    if isinstance(holding, Restoring) and Effect.CLAIM in decided.effects:
        return replace(decided, effects=())
    return None


def forgets_to_close(holding: Holding, event: Event) -> Step | None:
    match holding, event:
        case Running(generation) | Paused(generation), GivenUp():
            return Step(Parted(generation))
    return None


def goes_on_over_a_gap(holding: Holding, event: Event) -> Step | None:
    match holding, event:
        case Paused(generation), Assigned(newest, Role.HOST, previous) if generation == previous:
            return Step(Running(newest))
    return None


def goes_on_as_a_new_member(holding: Holding, event: Event) -> Step | None:
    match holding, event:
        case Paused(), Assigned(newest, Role.HOST, _):
            return Step(Running(newest))
    return None


def goes_on_with_what_goes_elsewhere(holding: Holding, event: Event) -> Step | None:
    match holding, event:
        case Paused(generation), Assigned(newest, Role.STANDBY, previous) if generation == previous == newest - 1:
            return Step(Running(newest))
    return None


def keeps_memory_that_is_given_up(holding: Holding, event: Event) -> Step | None:
    match holding, event:
        case Running(generation), GivenUp():
            return Step(Paused(generation))
    return None


MUTANTS: list[Mutant] = [
    keeps_rows_over_a_gap,
    keeps_rows_as_a_new_member,
    keeps_the_rows_of_a_standby,
    takes_an_older_claim,
    takes_a_refused_claim,
    takes_an_older_restore,
    does_not_wait_for_the_restore,
    opens_without_a_claim,
    goes_on_over_a_rebalance_without_a_claim,
    claims_through_a_join,
    restores_through_a_join,
    takes_a_restore_for_the_owners_rows,
    serves_through_a_join,
    reopens_without_a_claim,
    closes_for_ever_after_an_abort,
    forgets_to_claim,
    forgets_to_close,
    goes_on_over_a_gap,
    goes_on_as_a_new_member,
    goes_on_with_what_goes_elsewhere,
    keeps_memory_that_is_given_up,
]


@pytest.mark.parametrize("mutant", MUTANTS, ids=lambda mutant: mutant.__name__)
def test_the_machine_kills(mutant: Mutant, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ownership, "step", lambda holding, event: mutant(holding, event) or step(holding, event))
    assert killed_after(walk) is not None


def test_the_core_itself_survives() -> None:
    assert killed_after(walk) is None
