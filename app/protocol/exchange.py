"""One exchange at its manager: who takes part, how far everything is, what each side restarts from.

    Absent ──client opens──▶ Open ──client finishes, operator cancels, time is over──▶ Ended ──retention──▶ Absent

A request goes through four positions, and each is stored before anybody is told:

    submitted ──▶ (request queue) ──▶ answered ──▶ (response queue) ──▶ acknowledged

Every submission, response, acknowledgement and checkpoint may carry restart data of its side, which take effect with
it or not at all. So whichever of client, manager and server session dies, the row says what both sides go on from.

* A side that starts gets a number: the client the offset of its opening record, the server session a new assignment.
  What an older one still says is refused, restart data included, and answered with how things stand.
* The operations of a start are numbered from 1. One that came before is not taken twice; one that comes too early
  shows that something between was lost, and is refused.
* Responses come in the order of requests: a server session performs the requests of an exchange one by one.
* The window bounds both queues together. It opens when the client acknowledges.
* A request on which server sessions die is answered as failed, so that an exchange never stands still for it.

Source: US 9,800,672 (restart data and both queues kept by a manager, and restarted by its backup).
"""

from dataclasses import replace
from typing import assert_never

from app.protocol.exchange_model import (
    WINDOW_DEFAULT,
    Absent,
    Acknowledged,
    Begun,
    Checkpointed,
    ClientAsked,
    ClientOpened,
    CloseClient,
    Closed,
    DropQueues,
    DropResponses,
    Effect,
    Ended,
    Event,
    Exchange,
    FailRequest,
    FenceClient,
    FindServer,
    Finished,
    Forget,
    Forgotten,
    ManagerStarted,
    Note,
    Open,
    RefuseClient,
    Release,
    Responded,
    RestartClient,
    RestartOrdered,
    RestartServer,
    ServerFound,
    ServerLost,
    StartPrograms,
    Step,
    StoreRequest,
    StoreResponse,
    Submitted,
    TellPositions,
)


def step(exchange: Exchange, event: Event) -> Step:
    """Decide what follows. Whatever is out of date changes nothing and is answered."""
    match exchange:
        case Open():
            return _open(exchange, event)
        case Absent():
            return _absent(exchange, event)
        case Ended():
            return _ended(exchange, event)
        case _:
            assert_never(exchange)


def _absent(exchange: Absent, event: Event) -> Step:
    match event:
        case ClientOpened(client, incarnation, window, deadline_ms):
            opened = Open(client, incarnation, window or WINDOW_DEFAULT, deadline_ms)
            note = Note("exchange-opened", (("client", client),))
            return Step(opened, (note, RestartClient("opened"), FindServer()))
        case ClientAsked(incarnation):
            return Step(exchange, (RefuseClient(incarnation, 0, "unknown-exchange", 1),))
        case Submitted(incarnation, op) | Acknowledged(incarnation, op) | Finished(incarnation, op):
            return Step(exchange, (RefuseClient(incarnation, op, "unknown-exchange", 1),))
        case Responded(server, assignment) | Checkpointed(server, assignment) | Begun(server, assignment):
            return Step(exchange, (Release(server, assignment, "unknown-exchange"),))
        case ServerFound() | ServerLost() | ManagerStarted() | RestartOrdered() | Closed() | Forgotten():
            return Step(exchange)
        case _:
            assert_never(event)


def _ended(exchange: Ended, event: Event) -> Step:
    match event:
        case ClientOpened(incarnation=incarnation) | ClientAsked(incarnation):
            return Step(exchange, (CloseClient(incarnation),))
        case Submitted(incarnation) | Acknowledged(incarnation) | Finished(incarnation):
            return Step(exchange, (CloseClient(incarnation),))
        case Responded(server, assignment) | Checkpointed(server, assignment) | Begun(server, assignment):
            return Step(exchange, (Release(server, assignment, exchange.outcome),))
        case Forgotten():
            return Step(Absent(), (Forget(),))
        case ServerFound() | ServerLost() | ManagerStarted() | RestartOrdered() | Closed():
            return Step(exchange)
        case _:
            assert_never(event)


def _open(exchange: Open, event: Event) -> Step:
    match event:
        case Submitted() | Acknowledged() | Finished() | ClientAsked():
            return _operation(exchange, event)
        case Responded() | Checkpointed() | Begun():
            return _performed(exchange, event)
        case ClientOpened():
            return _claimed(exchange, event)
        case ServerFound():
            return _found(exchange, event)
        case ServerLost():
            return _lost(exchange, event)
        case ManagerStarted():
            return Step(exchange, _restart(exchange, "manager"))
        case RestartOrdered(programs):
            start: tuple[Effect, ...] = (StartPrograms(),) if programs else ()
            return Step(exchange, (*_restart(exchange, "ordered"), *start))
        case Closed(outcome, reason):
            return _close(exchange, outcome, reason)
        case Forgotten():
            return Step(exchange)
        case _:
            assert_never(event)


def _restart(exchange: Open, cause: str) -> tuple[Effect, ...]:
    return (RestartClient(cause), RestartServer(cause) if exchange.server else FindServer())


# -- the client --------------------------------------------------------------------------------------------------------


def _claimed(exchange: Open, event: ClientOpened) -> Step:
    """A process opens an exchange that is there: it takes it over from the one before, or comes too late."""
    if event.incarnation < exchange.incarnation:
        return Step(exchange, (FenceClient(event.incarnation),))
    if event.incarnation == exchange.incarnation:
        return Step(exchange, (RestartClient("asked"),))
    claimed = replace(
        exchange,
        client=event.client,
        incarnation=event.incarnation,
        client_op=0,
        window=event.window or exchange.window,
        deadline_ms=event.deadline_ms if event.deadline_ms is not None else exchange.deadline_ms,
    )
    return Step(claimed, (FenceClient(exchange.incarnation), RestartClient("opened")))


def _operation(exchange: Open, event: Submitted | Acknowledged | Finished | ClientAsked) -> Step:
    """An operation of the client takes effect if it is the next one of the youngest process."""
    incarnation = event.incarnation
    if incarnation < exchange.incarnation:
        return Step(exchange, (FenceClient(incarnation),))
    expected = exchange.client_op + 1
    if incarnation > exchange.incarnation:
        return Step(exchange, (RefuseClient(incarnation, 0, "not-opened", 1),))
    if isinstance(event, ClientAsked):
        return Step(exchange, (RestartClient("asked"),))
    if event.op < expected:
        return Step(exchange, (TellPositions(),))
    if event.op > expected:
        return Step(exchange, (RefuseClient(incarnation, event.op, "gap", expected),))
    match event:
        case Submitted():
            return _submit(exchange, event)
        case Acknowledged():
            return _acknowledge(exchange, event)
        case Finished():
            return _close(exchange, "finished", "")
        case _:
            assert_never(event)


def _submit(exchange: Open, event: Submitted) -> Step:
    number = event.number
    if number <= exchange.submitted:
        # A known request: it is stored with the restart data that came with it the first time.
        return Step(replace(exchange, client_op=event.op), (TellPositions(),))
    if number > exchange.submitted + 1:
        return _refuse(exchange, event, "bad-number")
    if exchange.submitted - exchange.acknowledged >= exchange.window:
        return _refuse(exchange, event, "window-closed")
    stored = exchange.after_client(event.op, number, exchange.acknowledged, event.restart)
    if exchange.server:
        return Step(stored, (StoreRequest(number, send=True), TellPositions()))
    return Step(stored, (StoreRequest(number, send=False), TellPositions(), FindServer()))


def _acknowledge(exchange: Open, event: Acknowledged) -> Step:
    number = event.number
    if number > exchange.answered:
        return _refuse(exchange, event, "not-answered")
    if number <= exchange.acknowledged:
        return Step(replace(exchange, client_op=event.op), (TellPositions(),))
    acknowledged = exchange.after_client(event.op, exchange.submitted, number, event.restart)
    return Step(acknowledged, (DropResponses(exchange.acknowledged + 1, number), TellPositions()))


def _refuse(exchange: Open, event: Submitted | Acknowledged, reason: str) -> Step:
    """The operation is answered, so it counts; it changes nothing else."""
    refused = replace(exchange, client_op=event.op)
    return Step(refused, (RefuseClient(event.incarnation, event.op, reason, event.op + 1),))


# -- the server session ------------------------------------------------------------------------------------------------


def _found(exchange: Open, event: ServerFound) -> Step:
    if exchange.server:
        return Step(exchange)
    note = Note("exchange-assigned", (("server", event.server), ("assignment", exchange.assignment + 1)))
    started = replace(exchange, server=event.server, server_incarnation=event.incarnation)
    return _start(started, "assigned", note)


def _start(exchange: Open, cause: str, *notes: Note) -> Step:
    """Start the server side anew from the row."""
    started = replace(exchange, assignment=exchange.assignment + 1, server_op=0, begun=False)
    return Step(started, (*notes, RestartServer(cause)))


def _lost(exchange: Open, event: ServerLost) -> Step:
    if (exchange.server, exchange.server_incarnation) != (event.server, event.incarnation):
        return Step(exchange)
    waiting = exchange.submitted > exchange.answered
    crashes = exchange.crashes + (event.crashed and exchange.begun)
    lost = replace(
        exchange,
        server="",
        server_incarnation=0,
        careful=exchange.careful or (event.crashed and waiting),
        begun=False,
        crashes=crashes,
    )
    note = Note("exchange-server-lost", (("server", event.server), ("assignment", exchange.assignment)))
    if crashes < event.crashes_max:
        return Step(lost, (note, FindServer(event.server)))
    number = exchange.answered + 1
    text = f"{crashes} server sessions died with it; it is not performed again"
    failed = replace(lost, answered=number, careful=False, crashes=0)
    return Step(failed, (note, FailRequest(number, "ServerDied", text), FindServer(event.server)))


def _performed(exchange: Open, event: Responded | Checkpointed | Begun) -> Step:
    """An operation of the server session takes effect if it is the next one of the youngest assignment."""
    if (exchange.server, exchange.assignment) != (event.server, event.assignment):
        return Step(exchange, (Release(event.server, event.assignment, "superseded"),))
    if event.op <= exchange.server_op:
        return Step(exchange)
    number = event.number
    if event.op > exchange.server_op + 1 or number > min(exchange.answered + 1, exchange.submitted):
        # Something between was lost, or it performs what it was not given.
        return _start(exchange, "gap")
    if number <= exchange.answered:
        return Step(replace(exchange, server_op=event.op))
    match event:
        case Begun():
            return Step(replace(exchange, server_op=event.op, begun=True))
        case Checkpointed(restart=restart):
            # What has come further was not what kills its server session.
            crashes = 0 if restart != exchange.server_restart else exchange.crashes
            return Step(replace(exchange, server_op=event.op, server_restart=restart, crashes=crashes))
        case Responded(restart=after):
            return Step(exchange.after_response(event.op, number, after), (StoreResponse(number),))
        case _:
            assert_never(event)


# -- the end -----------------------------------------------------------------------------------------------------------


def _close(exchange: Open, outcome: str, reason: str) -> Step:
    queues = DropQueues(
        (exchange.answered + 1, exchange.submitted),
        (exchange.acknowledged + 1, exchange.answered),
    )
    effects: tuple[Effect, ...] = (
        queues,
        CloseClient(exchange.incarnation),
        Note(f"exchange-{outcome}", (("client", exchange.client), ("reason", reason))),
    )
    if exchange.server:
        effects = (*effects, Release(exchange.server, exchange.assignment, outcome))
    return Step(Ended(outcome, reason, exchange), effects)
