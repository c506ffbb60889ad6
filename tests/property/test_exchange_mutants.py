"""Each rule of the exchange core is needed: without it the machine finds something lost, doubled, mixed up or stuck."""

from collections.abc import Callable
from dataclasses import replace

import pytest

from app.protocol import exchange
from app.protocol.exchange import step
from app.protocol.exchange_model import (
    Acknowledged,
    Checkpointed,
    ClientOpened,
    DropResponses,
    Event,
    Exchange,
    ManagerStarted,
    Open,
    Responded,
    RestartClient,
    RestartServer,
    ServerFound,
    ServerLost,
    Step,
    StoreRequest,
    StoreResponse,
    Submitted,
    TellPositions,
)
from tests.property.mutation import killed_after
from tests.property.test_exchange_machine import walk

Mutant = Callable[[Open, Event], Step | None]
"""What the changed rule says of an open exchange, or None where the core decides as always."""


def without(decided: Step, *kinds: type) -> Step:
    return Step(decided.exchange, tuple(effect for effect in decided.effects if not isinstance(effect, kinds)))


def takes_a_known_request_again(now: Open, event: Event) -> Step | None:
    if isinstance(event, Submitted) and event.op == now.client_op + 1 and event.number <= now.submitted:
        return Step(replace(now, client_op=event.op), (StoreRequest(event.number, bool(now.server)), TellPositions()))
    return None


def takes_operations_in_any_order(now: Open, event: Event) -> Step | None:
    if isinstance(event, Submitted | Acknowledged) and event.incarnation == now.incarnation:
        return step(replace(now, client_op=event.op - 1), event)
    return None


def takes_an_older_process(now: Open, event: Event) -> Step | None:
    if isinstance(event, Submitted | Acknowledged) and event.incarnation < now.incarnation:
        return step(now, replace(event, incarnation=now.incarnation))
    return None


def lets_an_older_process_claim(now: Open, event: Event) -> Step | None:
    if isinstance(event, ClientOpened) and event.incarnation < now.incarnation:
        return Step(replace(now, incarnation=event.incarnation, client_op=0), (RestartClient("opened"),))
    return None


def loses_the_clients_restart_data(now: Open, event: Event) -> Step | None:
    return step(now, replace(event, restart=None)) if isinstance(event, Submitted) else None


def loses_the_restart_data_of_an_acknowledgement(now: Open, event: Event) -> Step | None:
    return step(now, replace(event, restart=None)) if isinstance(event, Acknowledged) else None


def tells_before_it_stores(now: Open, event: Event) -> Step | None:
    decided = step(now, event)
    if isinstance(event, Submitted) and event.op == now.client_op + 1 and isinstance(decided.exchange, Open):
        return Step(replace(decided.exchange, client_restart=now.client_restart), decided.effects)
    return None


def drops_one_response_more(now: Open, event: Event) -> Step | None:
    decided = step(now, event)
    dropped = [effect for effect in decided.effects if isinstance(effect, DropResponses)]
    if dropped and now.answered > dropped[0].last:
        return Step(decided.exchange, (DropResponses(dropped[0].first, dropped[0].last + 1), TellPositions()))
    return None


def does_not_drop_responses(now: Open, event: Event) -> Step | None:
    return without(step(now, event), DropResponses) if isinstance(event, Acknowledged) else None


def takes_a_response_twice(now: Open, event: Event) -> Step | None:
    if isinstance(event, Responded) and event.assignment == now.assignment and event.op <= now.server_op:
        return Step(now, (StoreResponse(event.number), TellPositions()))
    return None


def takes_responses_in_any_order(now: Open, event: Event) -> Step | None:
    if isinstance(event, Responded) and event.assignment == now.assignment and event.number > now.answered:
        after = replace(now, server_op=event.op, answered=event.number)
        return Step(after, (StoreResponse(event.number), TellPositions()))
    return None


def takes_an_older_assignments_response(now: Open, event: Event) -> Step | None:
    if isinstance(event, Responded) and event.assignment < now.assignment:
        return step(now, replace(event, server=now.server, assignment=now.assignment, op=now.server_op + 1))
    return None


def takes_an_older_assignments_checkpoint(now: Open, event: Event) -> Step | None:
    if isinstance(event, Checkpointed) and event.assignment < now.assignment:
        return Step(replace(now, server_restart=event.restart))
    return None


def gives_an_exchange_again_under_its_number(now: Open, event: Event) -> Step | None:
    decided = step(now, event)
    if isinstance(event, ServerFound) and isinstance(decided.exchange, Open) and not now.server and now.assignment:
        return Step(replace(decided.exchange, assignment=now.assignment), decided.effects)
    return None


def goes_on_counting_for_a_new_assignment(now: Open, event: Event) -> Step | None:
    decided = step(now, event)
    if isinstance(event, ServerFound) and isinstance(decided.exchange, Open) and not now.server and now.server_op:
        return Step(replace(decided.exchange, server_op=now.server_op + 1), decided.effects[:1])
    return None


def ignores_a_lost_server(now: Open, event: Event) -> Step | None:
    return Step(now) if isinstance(event, ServerLost) else None


def does_not_look_for_another_server(now: Open, event: Event) -> Step | None:
    if isinstance(event, ServerLost) and now.server == event.server:
        return Step(step(now, event).exchange)
    return None


def does_not_restart_the_server(now: Open, event: Event) -> Step | None:
    return without(step(now, event), RestartServer)


def does_not_restart_the_client(now: Open, event: Event) -> Step | None:
    return without(step(now, event), RestartClient) if isinstance(event, ClientOpened) else None


def does_not_close_a_gap_of_the_server(now: Open, event: Event) -> Step | None:
    if isinstance(event, Responded) and event.assignment == now.assignment and event.op > now.server_op + 1:
        return Step(now)
    return None


def answers_with_new_restart_data_of_before(now: Open, event: Event) -> Step | None:
    decided = step(now, event)
    if isinstance(event, Responded) and isinstance(decided.exchange, Open) and decided.exchange.answered > now.answered:
        return Step(replace(decided.exchange, answered=now.answered), decided.effects)
    return None


def a_backup_that_begins_anew(now: Open, event: Event) -> Step | None:
    if isinstance(event, ManagerStarted):
        return step(replace(now, client_restart=b"null"), event)
    return None


MUTANTS: list[Mutant] = [
    takes_a_known_request_again,
    takes_operations_in_any_order,
    takes_an_older_process,
    lets_an_older_process_claim,
    loses_the_clients_restart_data,
    loses_the_restart_data_of_an_acknowledgement,
    tells_before_it_stores,
    drops_one_response_more,
    does_not_drop_responses,
    takes_a_response_twice,
    takes_responses_in_any_order,
    takes_an_older_assignments_response,
    takes_an_older_assignments_checkpoint,
    gives_an_exchange_again_under_its_number,
    goes_on_counting_for_a_new_assignment,
    ignores_a_lost_server,
    does_not_look_for_another_server,
    does_not_restart_the_server,
    does_not_restart_the_client,
    does_not_close_a_gap_of_the_server,
    answers_with_new_restart_data_of_before,
    a_backup_that_begins_anew,
]


@pytest.mark.parametrize("mutant", MUTANTS, ids=lambda mutant: mutant.__name__)
def test_the_machine_kills(mutant: Mutant, monkeypatch: pytest.MonkeyPatch) -> None:
    def changed(now: Exchange, event: Event) -> Step:
        decided = mutant(now, event) if isinstance(now, Open) else None
        return step(now, event) if decided is None else decided

    monkeypatch.setattr(exchange, "step", changed)
    assert killed_after(walk, 1_500) is not None


def test_the_core_itself_survives() -> None:
    assert killed_after(walk, 1_500) is None
