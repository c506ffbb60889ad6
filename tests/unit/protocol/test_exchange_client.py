"""The client's side of an exchange: every state with every event."""

from dataclasses import replace
from itertools import product
from typing import get_args

import pytest

from app.protocol.exchange_client import (
    AcknowledgeWanted,
    ClosedTold,
    Event,
    Fenced,
    FinishWanted,
    Full,
    Live,
    NotYet,
    Opening,
    OpenSent,
    Over,
    PositionsTold,
    Refused,
    Resend,
    Restarted,
    Send,
    Settle,
    Side,
    Step,
    Stop,
    SubmitWanted,
    step,
)

EARLY = Opening()
OPENING = Opening(50)
LIVE = Live(50, window=3, op=6, settled=4, resent=0, submitted=5, answered=4, acknowledged=3)
OVER = Over("finished")

RESTARTED = Restarted(50, 4, 3, 5, 4, 3)
TOLD = PositionsTold(50, 5, 5)
GAP = Refused(50, "gap", 5)
WANTED = (SubmitWanted(), AcknowledgeWanted(4), FinishWanted())


def same(side: Side, *events: Event) -> list[tuple[Side, Event, Step]]:
    return [(side, event, Step(side)) for event in events]


CASES: list[tuple[Side, Event, Step]] = [
    (EARLY, OpenSent(50), Step(OPENING)),
    (OPENING, RESTARTED, Step(Live(50, 3, 4, 4, 0, 5, 4, 3), (Settle(4),))),
    (OPENING, Fenced(50, 60), Step(Over("fenced", 50, 60), (Stop(),))),
    (OPENING, ClosedTold(50, "expired"), Step(Over("expired"), (Stop(),))),
    (OPENING, Refused(50, "bad-number", 1), Step(Over("bad-number"), (Stop(),))),
    *same(OPENING, replace(RESTARTED, incarnation=40), Fenced(40, 50), ClosedTold(40, "x"), TOLD, *WANTED),
    (LIVE, SubmitWanted(), Step(replace(LIVE, op=7, submitted=6), (Send(7, 6),))),
    (replace(LIVE, submitted=6), SubmitWanted(), Step(replace(LIVE, submitted=6), (Full(),))),
    (LIVE, AcknowledgeWanted(4), Step(replace(LIVE, op=7, acknowledged=4), (Send(7, 4),))),
    (LIVE, AcknowledgeWanted(2), Step(replace(LIVE, op=7), (Send(7, 2),))),
    (LIVE, AcknowledgeWanted(5), Step(LIVE, (NotYet(),))),
    (LIVE, FinishWanted(), Step(replace(LIVE, op=7), (Send(7, 0),))),
    (LIVE, TOLD, Step(replace(LIVE, settled=5, answered=5), (Settle(5),))),
    # News that come late change nothing.
    *same(LIVE, PositionsTold(50, 3, 2), PositionsTold(40, 9, 9), OpenSent(70)),
    (LIVE, RESTARTED, Step(LIVE, (Resend(5),))),
    (LIVE, replace(RESTARTED, op=6), Step(replace(LIVE, settled=6), (Settle(6),))),
    (LIVE, replace(RESTARTED, op=5), Step(replace(LIVE, settled=5), (Settle(5), Resend(6)))),
    *same(LIVE, replace(RESTARTED, incarnation=40)),
    # A gap is closed once, not for every operation behind it.
    (LIVE, GAP, Step(replace(LIVE, resent=5), (Resend(5),))),
    *same(replace(LIVE, resent=5), GAP),
    *same(LIVE, Refused(50, "gap", 7), Refused(40, "gap", 5)),
    (LIVE, Refused(50, "unknown-exchange", 1), Step(Over("unknown-exchange"), (Stop(),))),
    (LIVE, Fenced(50, 60), Step(Over("fenced", 50, 60), (Stop(),))),
    (LIVE, ClosedTold(50, "cancelled"), Step(Over("cancelled"), (Stop(),))),
    *same(LIVE, Fenced(40, 50), ClosedTold(40, "cancelled")),
    *((OVER, event, Step(OVER, (Stop(),))) for event in WANTED),
    *same(OVER, OpenSent(5), RESTARTED, TOLD, GAP, Fenced(50, 60), ClosedTold(50, "finished")),
]


@pytest.mark.parametrize(("side", "event", "expected"), CASES, ids=str)
def test_step(side: Side, event: Event, expected: Step) -> None:
    assert step(side, event) == expected


def test_the_table_has_every_pair() -> None:
    covered = {(type(side), type(event)) for side, event, _ in CASES}
    assert covered == set(product(get_args(Side), get_args(Event)))
