"""Each rule of the transfer core is needed: without it the machine finds two writers, a wrong ACK or no end."""

from collections.abc import Callable
from dataclasses import replace

import pytest

from app.protocol import transfer
from app.protocol.conveyance import (
    Ack,
    Announce,
    Cancel,
    Completing,
    Composed,
    Confirm,
    Conveying,
    Done,
    Durable,
    Event,
    Failed,
    Floating,
    Found,
    Granted,
    Lock,
    Nak,
    Progress,
    Release,
    Spoiled,
    State,
    Step,
    Terms,
    Tick,
    first_of,
)
from app.protocol.transfer import step
from tests.property.mutation import killed_after
from tests.property.test_transfer_machine import walk

Mutant = Callable[[State, Event, Terms], Step | None]
"""What the changed rule says, or None where the core decides as always."""


def grants_what_is_held(state: State, event: Event, terms: Terms) -> Step | None:
    if isinstance(event, Lock) and isinstance(state, Conveying):
        return step(state, replace(event, seen=state.instance), terms)
    return None


def grants_the_old_instance(state: State, event: Event, terms: Terms) -> Step | None:
    decided = step(state, event, terms)
    if isinstance(event, Lock) and isinstance(decided.state, Conveying) and isinstance(state, Conveying):
        return Step(replace(decided.state, instance=state.instance), Granted(state.instance, decided.state.before))
    return None


def listens_to_a_fenced_holder(state: State, event: Event, terms: Terms) -> Step | None:
    if isinstance(event, Progress | Release) and isinstance(state, Conveying):
        return step(state, replace(event, instance=state.instance), terms)
    return None


def believes_a_fenced_holder_that_it_composed(state: State, event: Event, terms: Terms) -> Step | None:
    if isinstance(event, Composed) and isinstance(state, Completing):
        return step(state, replace(event, instance=state.instance), terms)
    return None


def lets_a_fenced_holder_spoil(state: State, event: Event, terms: Terms) -> Step | None:
    # Harmless by itself; together with an instance that is used again it is not.
    if isinstance(event, Spoiled) and isinstance(state, Conveying):
        decided = step(state, replace(event, instance=state.instance), terms)
        if isinstance(decided.state, Floating):
            return replace(decided, state=replace(decided.state, instance=state.instance - 1))
    return None


def forgets_earlier_segments(state: State, event: Event, terms: Terms) -> Step | None:
    if isinstance(event, Progress) and isinstance(state, Conveying) and event.instance == state.instance:
        decided = step(replace(state, before=0), event, terms)
        return decided if isinstance(decided.state, Conveying) else None
    return None


def goes_back(state: State, event: Event, terms: Terms) -> Step | None:
    """A late word about fewer bytes replaces what is known."""
    if isinstance(event, Progress) and isinstance(state, Conveying) and event.instance == state.instance:
        before = first_of(state.conveyance.segments, state.before)
        shorter = replace(state, conveyance=replace(state.conveyance, segments=before))
        return step(shorter, event, terms)
    return None


def finds_after_writing(state: State, event: Event, terms: Terms) -> Step | None:
    if isinstance(event, Found) and isinstance(state, Conveying) and event.instance == state.instance:
        return step(replace(state, before=state.conveyance.offset), event, terms)
    return None


def completes_one_early(state: State, event: Event, terms: Terms) -> Step | None:
    decided = step(state, event, terms)
    moved = decided.state
    if isinstance(event, Progress) and isinstance(moved, Conveying):
        conveyance = moved.conveyance
        if conveyance.message.size is not None and conveyance.offset == conveyance.message.size - 1:
            return replace(decided, state=Completing(moved.instance, conveyance, moved.held, by=moved.instance))
    return None


def is_done_before_it_is_composed(state: State, event: Event, terms: Terms) -> Step | None:
    decided = step(state, event, terms)
    if isinstance(decided.state, Completing) and isinstance(state, Conveying):
        message, size = decided.state.conveyance.message, decided.state.conveyance.offset
        return Step(Done(state.instance, message, size), Ack(size, ""), (Announce.COMPLETED,))
    return None


def does_not_announce(state: State, event: Event, terms: Terms) -> Step | None:
    decided = step(state, event, terms)
    if isinstance(event, Composed) and decided.effects:
        return replace(decided, effects=decided.effects[1:])
    return None


def announces_again(state: State, event: Event, terms: Terms) -> Step | None:
    if isinstance(event, Composed) and isinstance(state, Done) and state.instance == event.instance:
        return replace(step(state, event, terms), effects=(Announce.COMPLETED,))
    return None


def acknowledges_again(state: State, event: Event, terms: Terms) -> Step | None:
    if isinstance(event, Confirm) and isinstance(state, Done):
        return step(replace(state, acknowledged=False), event, terms)
    return None


def discards_while_it_lists(state: State, event: Event, terms: Terms) -> Step | None:
    decided = step(state, event, terms)
    if isinstance(event, Spoiled) and isinstance(decided.state, Floating) and isinstance(state, Conveying):
        kept = replace(decided.state.conveyance, segments=state.conveyance.segments)
        return replace(decided, state=replace(decided.state, conveyance=kept))
    return None


def keeps_the_instance_when_spoiled(state: State, event: Event, terms: Terms) -> Step | None:
    """The next holder then finds what its predecessor wrote before all was thrown away."""
    decided = step(state, event, terms)
    if isinstance(event, Spoiled) and isinstance(decided.state, Floating) and isinstance(state, Completing | Conveying):
        return replace(decided, state=replace(decided.state, instance=state.instance - 1))
    return None


def a_lease_never_ends(state: State, event: Event, terms: Terms) -> Step | None:
    return Step(state, Durable(0)) if isinstance(event, Tick) and isinstance(state, Conveying) else None


def nothing_expires(state: State, event: Event, terms: Terms) -> Step | None:
    return Step(state, Durable(0)) if isinstance(event, Tick) and isinstance(state, Floating) else None


def what_failed_stays(state: State, event: Event, terms: Terms) -> Step | None:
    return Step(state, Durable(0)) if isinstance(event, Tick) and isinstance(state, Failed) else None


def completes_for_ever(state: State, event: Event, terms: Terms) -> Step | None:
    if isinstance(event, Tick) and isinstance(state, Completing):
        return Step(replace(state, held=None, retry_ms=event.now_ms + 10), Durable(0))
    return None


def refuses_and_changes(state: State, event: Event, terms: Terms) -> Step | None:
    decided = step(state, event, terms)
    if isinstance(decided.reply, Nak) and isinstance(event, Lock) and isinstance(state, Conveying):
        return replace(decided, state=Floating(state.instance, state.conveyance))
    return None


def cancels_what_is_being_composed(state: State, event: Event, terms: Terms) -> Step | None:
    """And leaves the row to its composer, whose segments are gone."""
    if isinstance(event, Cancel) and isinstance(state, Completing) and state.held is not None:
        return Step(state, Durable(0), step(replace(state, held=None), event, terms).effects[1:])
    return None


MUTANTS: list[Mutant] = [
    grants_what_is_held,
    grants_the_old_instance,
    listens_to_a_fenced_holder,
    believes_a_fenced_holder_that_it_composed,
    lets_a_fenced_holder_spoil,
    forgets_earlier_segments,
    goes_back,
    finds_after_writing,
    completes_one_early,
    is_done_before_it_is_composed,
    does_not_announce,
    announces_again,
    acknowledges_again,
    discards_while_it_lists,
    keeps_the_instance_when_spoiled,
    a_lease_never_ends,
    nothing_expires,
    what_failed_stays,
    completes_for_ever,
    refuses_and_changes,
    cancels_what_is_being_composed,
]


@pytest.mark.parametrize("mutant", MUTANTS, ids=lambda mutant: mutant.__name__)
def test_the_machine_kills(mutant: Mutant, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(
        transfer, "step", lambda state, event, terms: mutant(state, event, terms) or step(state, event, terms)
    )
    assert killed_after(walk) is not None


def test_the_core_itself_survives() -> None:
    assert killed_after(walk, 1_000) is None
