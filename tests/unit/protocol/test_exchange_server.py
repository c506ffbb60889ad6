"""The server's side of an exchange: every state with every event."""

from dataclasses import replace
from itertools import product
from typing import get_args

import pytest

from app.protocol.exchange_server import (
    Away,
    Discard,
    Event,
    Free,
    Given,
    Held,
    Keep,
    Paused,
    Perform,
    Performed,
    RequestCame,
    Respond,
    Restart,
    Save,
    Side,
    Step,
    Withdrawn,
    step,
)

IDLE = Away()
BUSY = Away(busy=True)
HELD = Held(3, op=2, done=4, there=frozenset({5, 6}))
RUNS = Held(3, op=2, done=4, there=frozenset({6}), running=5)
STALE = Held(4, op=0, done=4, there=frozenset({5}), running=5, stale=True)
CAREFUL = replace(HELD, careful=True)
GIVEN = Given(4, 0, 4, careful=True)


def same(side: Side, *events: Event) -> list[tuple[Side, Event, Step]]:
    return [(side, event, Step(side)) for event in events]


CASES: list[tuple[Side, Event, Step]] = [
    (IDLE, GIVEN, Step(Held(4, 0, 4, careful=True), (Restart(),))),
    (BUSY, GIVEN, Step(Held(4, 0, 4, running=1, stale=True, careful=True), (Restart(),))),
    *same(IDLE, RequestCame(3, 5), Withdrawn(3), Free()),
    (BUSY, Performed(), Step(IDLE, (Discard(),))),
    (BUSY, Paused(), Step(BUSY, (Discard(),))),
    # The same assignment again: it goes on in place. A new one starts from the row, and waits for what runs.
    *same(HELD, Given(3, 2, 4), Given(2, 0, 0)),
    (HELD, GIVEN, Step(Held(4, 0, 4, careful=True), (Restart(),))),
    (RUNS, GIVEN, Step(Held(4, 0, 4, running=5, stale=True, careful=True), (Restart(),))),
    (HELD, RequestCame(3, 7), Step(replace(HELD, there=frozenset({5, 6, 7})), (Keep(7),))),
    *same(HELD, RequestCame(3, 4), RequestCame(2, 7)),
    *same(RUNS, RequestCame(3, 5)),
    (STALE, RequestCame(4, 6), Step(replace(STALE, there=frozenset({5, 6})), (Keep(6),))),
    (replace(STALE, there=frozenset()), RequestCame(4, 5), Step(STALE, (Keep(5),))),
    (HELD, Withdrawn(3), Step(IDLE)),
    (RUNS, Withdrawn(3), Step(BUSY)),
    *same(HELD, Withdrawn(2)),
    (HELD, Free(), Step(RUNS, (Perform(5, 0),))),
    (CAREFUL, Free(), Step(replace(RUNS, op=3, careful=True), (Perform(5, 3),))),
    *same(RUNS, Free()),
    *same(STALE, Free()),
    *same(replace(HELD, there=frozenset({6})), Free()),
    (RUNS, Performed(), Step(replace(RUNS, op=3, done=5, running=0), (Respond(3, 5),))),
    (STALE, Performed(), Step(replace(STALE, running=0, stale=False), (Discard(),))),
    (RUNS, Paused(), Step(replace(RUNS, op=3), (Save(3, 5),))),
    (STALE, Paused(), Step(STALE, (Discard(),))),
]


@pytest.mark.parametrize(("side", "event", "expected"), CASES, ids=str)
def test_step(side: Side, event: Event, expected: Step) -> None:
    assert step(side, event) == expected


def test_the_table_has_every_pair() -> None:
    covered = {(type(side), type(event)) for side, event, _ in CASES}
    assert covered == set(product(get_args(Side), get_args(Event)))
