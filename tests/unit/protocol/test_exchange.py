"""One exchange at its manager: every state with every event."""

from dataclasses import replace
from itertools import product
from typing import get_args

import pytest

from app.protocol.exchange import step
from app.protocol.exchange_model import (
    Absent,
    Acknowledged,
    Begun,
    Checkpointed,
    ClientAsked,
    ClientEvent,
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
    ManagerEvent,
    ManagerStarted,
    Note,
    Open,
    RefuseClient,
    Release,
    Responded,
    RestartClient,
    RestartOrdered,
    RestartServer,
    ServerEvent,
    ServerFound,
    ServerLost,
    StartPrograms,
    Step,
    StoreRequest,
    StoreResponse,
    Submitted,
    TellPositions,
)

ABSENT = Absent()
ALONE = Open("laptop", 50, window=3, client_op=4, submitted=3, answered=2, acknowledged=1, client_restart=b'"c"')
SERVED = replace(ALONE, server="hpc-1", server_incarnation=7, assignment=2, server_op=5, server_restart=b'"s"')
CAREFUL = replace(SERVED, careful=True, begun=True, crashes=1)
ENDED = Ended("finished", "", SERVED)

OPENED = ClientOpened("laptop", 60, 5, 999)
SUBMITTED = Submitted(50, 5, 4, b'"new"')
ACKNOWLEDGED = Acknowledged(50, 5, 2, b'"new"')
RESPONDED = Responded("hpc-1", 2, 6, 3, b'"new"')
CHECKPOINTED = Checkpointed("hpc-1", 2, 6, 3, b'"half"')
BEGUN = Begun("hpc-1", 2, 6, 3)
LOST = ServerLost("hpc-1", 7, crashed=True, crashes_max=3)
LAST_LOST = replace(LOST, crashes_max=2)
CANCEL = Closed("cancelled", "not needed")
FOUND = ServerFound("hpc-2", 9)

ASSIGNED = replace(ALONE, server="hpc-2", server_incarnation=9, assignment=1)
LOST_NOTE = Note("exchange-server-lost", (("server", "hpc-1"), ("assignment", 2)))
Case = tuple[Exchange, Event, Step]


def same(exchange: Exchange, event: Event, *effects: Effect) -> Case:
    return exchange, event, Step(exchange, effects)


def told(exchange: Exchange, event: Event, after: Exchange, *effects: Effect) -> Case:
    return exchange, event, Step(after, effects)


def unknown(op: int) -> Effect:
    return RefuseClient(50, op, "unknown-exchange", 1)


def gap(exchange: Open) -> Step:
    after = replace(exchange, assignment=exchange.assignment + 1, server_op=0, begun=False)
    return Step(after, (RestartServer("gap"),))


FRESH = Open("laptop", 60, 5, 999)
NEW = Note("exchange-opened", (("client", "laptop"),))

NOBODY: list[Case] = [
    told(
        ABSENT, OPENED, FRESH, Note("exchange-opened", (("client", "laptop"),)), RestartClient("opened"), FindServer()
    ),
    told(
        ABSENT,
        ClientOpened("laptop", 60),
        Open("laptop", 60),
        NEW,
        RestartClient("opened"),
        FindServer(),
    ),
    same(ABSENT, ClientAsked(50), unknown(0)),
    same(ABSENT, SUBMITTED, unknown(5)),
    same(ABSENT, ACKNOWLEDGED, unknown(5)),
    same(ABSENT, Finished(50, 5), unknown(5)),
    *(same(ABSENT, event, Release("hpc-1", 2, "unknown-exchange")) for event in (RESPONDED, CHECKPOINTED, BEGUN)),
    *(same(ABSENT, event) for event in (FOUND, LOST, ManagerStarted(), RestartOrdered(), CANCEL, Forgotten())),
]

OVER: list[Case] = [
    same(ENDED, OPENED, CloseClient(60)),
    *(same(ENDED, event, CloseClient(50)) for event in (ClientAsked(50), SUBMITTED, ACKNOWLEDGED, Finished(50, 5))),
    *(same(ENDED, event, Release("hpc-1", 2, "finished")) for event in (RESPONDED, CHECKPOINTED, BEGUN)),
    told(ENDED, Forgotten(), ABSENT, Forget()),
    *(same(ENDED, event) for event in (FOUND, LOST, ManagerStarted(), RestartOrdered(), CANCEL)),
]

CLIENT: list[Case] = [
    # A younger process takes over; an older one comes too late.
    told(
        SERVED,
        OPENED,
        replace(SERVED, incarnation=60, client_op=0, window=5, deadline_ms=999),
        FenceClient(50),
        RestartClient("opened"),
    ),
    told(
        SERVED,
        ClientOpened("phone", 60),
        replace(SERVED, client="phone", incarnation=60, client_op=0),
        FenceClient(50),
        RestartClient("opened"),
    ),
    same(SERVED, ClientOpened("laptop", 50), RestartClient("asked")),
    same(SERVED, ClientOpened("laptop", 40), FenceClient(40)),
    same(SERVED, ClientAsked(50), RestartClient("asked")),
    same(SERVED, ClientAsked(40), FenceClient(40)),
    same(SERVED, ClientAsked(60), RefuseClient(60, 0, "not-opened", 1)),
    # Operations: the next one counts, an earlier one is known, a later one shows a gap.
    told(
        SERVED,
        SUBMITTED,
        replace(SERVED, client_op=5, submitted=4, client_restart=b'"new"'),
        StoreRequest(4, send=True),
        TellPositions(),
    ),
    told(
        ALONE,
        replace(SUBMITTED, restart=None),
        replace(ALONE, client_op=5, submitted=4),
        StoreRequest(4, send=False),
        TellPositions(),
        FindServer(),
    ),
    same(SERVED, replace(SUBMITTED, op=4), TellPositions()),
    same(SERVED, replace(SUBMITTED, op=6), RefuseClient(50, 6, "gap", 5)),
    same(SERVED, replace(SUBMITTED, incarnation=40), FenceClient(40)),
    # A known number is acknowledged again, without its restart data.
    told(SERVED, replace(SUBMITTED, number=3), replace(SERVED, client_op=5), TellPositions()),
    told(SERVED, replace(SUBMITTED, number=5), replace(SERVED, client_op=5), RefuseClient(50, 5, "bad-number", 6)),
    told(
        replace(SERVED, window=2),
        SUBMITTED,
        replace(SERVED, window=2, client_op=5),
        RefuseClient(50, 5, "window-closed", 6),
    ),
    told(
        SERVED,
        ACKNOWLEDGED,
        replace(SERVED, client_op=5, acknowledged=2, client_restart=b'"new"'),
        DropResponses(2, 2),
        TellPositions(),
    ),
    told(
        replace(SERVED, answered=3),
        Acknowledged(50, 5, 3),
        replace(SERVED, answered=3, client_op=5, acknowledged=3),
        DropResponses(2, 3),
        TellPositions(),
    ),
    told(SERVED, replace(ACKNOWLEDGED, number=1), replace(SERVED, client_op=5), TellPositions()),
    told(SERVED, replace(ACKNOWLEDGED, number=3), replace(SERVED, client_op=5), RefuseClient(50, 5, "not-answered", 6)),
    told(
        SERVED,
        Finished(50, 5),
        Ended("finished", "", SERVED),
        DropQueues((3, 3), (2, 2)),
        CloseClient(50),
        Note("exchange-finished", (("client", "laptop"), ("reason", ""))),
        Release("hpc-1", 2, "finished"),
    ),
    same(SERVED, Finished(40, 5), FenceClient(40)),
]

SERVER: list[Case] = [
    told(
        ALONE,
        FOUND,
        ASSIGNED,
        Note("exchange-assigned", (("server", "hpc-2"), ("assignment", 1))),
        RestartServer("assigned"),
    ),
    same(SERVED, FOUND),
    told(
        SERVED,
        LOST,
        replace(SERVED, server="", server_incarnation=0, careful=True),
        LOST_NOTE,
        FindServer("hpc-1"),
    ),
    told(
        SERVED,
        replace(LOST, crashed=False),
        replace(SERVED, server="", server_incarnation=0),
        LOST_NOTE,
        FindServer("hpc-1"),
    ),
    told(
        replace(SERVED, answered=3),
        LOST,
        replace(SERVED, answered=3, server="", server_incarnation=0),
        LOST_NOTE,
        FindServer("hpc-1"),
    ),
    told(
        CAREFUL,
        LOST,
        replace(CAREFUL, server="", server_incarnation=0, begun=False, crashes=2),
        LOST_NOTE,
        FindServer("hpc-1"),
    ),
    told(
        CAREFUL,
        LAST_LOST,
        replace(CAREFUL, server="", server_incarnation=0, begun=False, careful=False, crashes=0, answered=3),
        LOST_NOTE,
        FailRequest(3, "ServerDied", "2 server sessions died with it; it is not performed again"),
        FindServer("hpc-1"),
    ),
    same(SERVED, replace(LOST, incarnation=6)),
    same(ALONE, LOST),
    told(
        CAREFUL,
        RESPONDED,
        replace(SERVED, server_op=6, answered=3, server_restart=b'"new"'),
        StoreResponse(3),
    ),
    told(
        SERVED,
        replace(RESPONDED, restart=None),
        replace(SERVED, server_op=6, answered=3),
        StoreResponse(3),
    ),
    same(SERVED, replace(RESPONDED, op=5)),
    told(SERVED, replace(RESPONDED, number=2), replace(SERVED, server_op=6)),
    (SERVED, replace(RESPONDED, op=7), gap(SERVED)),
    (SERVED, replace(RESPONDED, number=4), gap(SERVED)),
    (replace(SERVED, answered=3), replace(RESPONDED, number=4), gap(replace(SERVED, answered=3))),
    same(SERVED, replace(RESPONDED, assignment=1), Release("hpc-1", 1, "superseded")),
    same(SERVED, replace(RESPONDED, server="hpc-9"), Release("hpc-9", 2, "superseded")),
    *(same(ALONE, event, Release("hpc-1", 2, "superseded")) for event in (RESPONDED, CHECKPOINTED, BEGUN)),
    told(CAREFUL, CHECKPOINTED, replace(CAREFUL, server_op=6, server_restart=b'"half"', crashes=0)),
    # Restart data that say nothing new are no progress.
    told(CAREFUL, replace(CHECKPOINTED, restart=b'"s"'), replace(CAREFUL, server_op=6)),
    told(SERVED, replace(CHECKPOINTED, number=2), replace(SERVED, server_op=6)),
    told(SERVED, BEGUN, replace(SERVED, server_op=6, begun=True)),
    told(SERVED, replace(BEGUN, number=2), replace(SERVED, server_op=6)),
]

MANAGER: list[Case] = [
    same(SERVED, ManagerStarted(), RestartClient("manager"), RestartServer("manager")),
    same(ALONE, ManagerStarted(), RestartClient("manager"), FindServer()),
    same(SERVED, RestartOrdered(), RestartClient("ordered"), RestartServer("ordered")),
    same(
        SERVED,
        RestartOrdered(programs=True),
        RestartClient("ordered"),
        RestartServer("ordered"),
        StartPrograms(),
    ),
    told(
        ALONE,
        CANCEL,
        Ended("cancelled", "not needed", ALONE),
        DropQueues((3, 3), (2, 2)),
        CloseClient(50),
        Note("exchange-cancelled", (("client", "laptop"), ("reason", "not needed"))),
    ),
    same(SERVED, Forgotten()),
]

CASES = [*NOBODY, *OVER, *CLIENT, *SERVER, *MANAGER]


@pytest.mark.parametrize(("exchange", "event", "expected"), CASES, ids=str)
def test_step(exchange: Exchange, event: Event, expected: Step) -> None:
    assert step(exchange, event) == expected


def test_the_table_has_every_pair() -> None:
    events = [*get_args(ClientEvent), *get_args(ServerEvent), *get_args(ManagerEvent)]
    assert set(events) == set(get_args(Event))
    covered = {(type(exchange), type(event)) for exchange, event, _ in CASES}
    assert covered == set(product(get_args(Exchange), events))


@pytest.mark.parametrize(("exchange", "event", "expected"), CASES, ids=str)
def test_positions_keep_their_order_and_the_window(exchange: Exchange, event: Event, expected: Step) -> None:
    after = expected.exchange
    if isinstance(after, Open):
        assert 0 <= after.acknowledged <= after.answered <= after.submitted
        assert after.submitted - after.acknowledged <= max(after.window, 3)


@pytest.mark.parametrize(("exchange", "event", "expected"), CASES, ids=str)
def test_restart_data_change_only_with_what_they_came_with(exchange: Exchange, event: Event, expected: Step) -> None:
    before, after = exchange, expected.exchange
    if isinstance(before, Open) and isinstance(after, Open):
        if after.client_restart != before.client_restart:
            assert (after.submitted, after.acknowledged) != (before.submitted, before.acknowledged)
        if after.server_restart != before.server_restart:
            assert isinstance(event, Checkpointed) or after.answered == before.answered + 1
