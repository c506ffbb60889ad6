"""The order of a session's tasks: every head with every event."""

from itertools import product
from typing import get_args

import pytest

from app.protocol.sessions import (
    Arrived,
    Ended,
    Event,
    GiveUp,
    Phase,
    Queue,
    Remove,
    Reopened,
    RetryAsked,
    Run,
    Save,
    Step,
    Waiting,
    Wake,
    Woken,
    step,
)

NEW = Waiting(4, Phase.QUEUED)
BEHIND = Waiting(5, Phase.QUEUED)
LATER = Waiting(6, Phase.QUEUED)
RUNS = Waiting(4, Phase.RUNNING, 2)
RETRIES = Waiting(4, Phase.RETRYING, 2, due_ms=900)
NEXT_RUNS = Waiting(5, Phase.RUNNING, 1)
RUNS_AGAIN = Waiting(4, Phase.RUNNING, 3)

RETRY = RetryAsked(now_ms=1_000, after_ms=500, attempts_max=3)
LAST_RETRY = RetryAsked(now_ms=1_000, after_ms=500, attempts_max=2)
WOKEN, WOKEN_BEFORE, WOKEN_OTHER = Woken(4, 2), Woken(4, 1), Woken(5, 2)
EMPTY: Queue = ()


def same(queue: Queue, *events: Event) -> list[tuple[Queue, Event, Step]]:
    return [(queue, event, Step(queue)) for event in events]


CASES: list[tuple[Queue, Event, Step]] = [
    (EMPTY, Arrived(4), Step((Waiting(4, Phase.RUNNING, 1),), (Save(Waiting(4, Phase.RUNNING, 1)), Run(4, 1)))),
    *same(EMPTY, Ended(), RETRY, WOKEN, Reopened()),
    ((RUNS,), Arrived(5), Step((RUNS, BEHIND), (Save(BEHIND),))),
    ((RUNS, BEHIND), Arrived(6), Step((RUNS, BEHIND, LATER), (Save(LATER),))),
    ((RUNS,), Ended(), Step((), (Remove(4),))),
    ((RUNS, BEHIND, LATER), Ended(), Step((NEXT_RUNS, LATER), (Remove(4), Save(NEXT_RUNS), Run(5, 1)))),
    (
        (RUNS, BEHIND),
        RETRY,
        Step(
            (Waiting(4, Phase.RETRYING, 2, due_ms=1_500), BEHIND),
            (Save(Waiting(4, Phase.RETRYING, 2, due_ms=1_500)), Wake(4, 2, 1_500)),
        ),
    ),
    ((RUNS, BEHIND), LAST_RETRY, Step((RUNS, BEHIND), (GiveUp(4),))),
    *same((RUNS, BEHIND), WOKEN, WOKEN_BEFORE, WOKEN_OTHER),
    # Found running: that run took no effect, so the same attempt is made again.
    ((RUNS, BEHIND), Reopened(), Step((RUNS, BEHIND), (Save(RUNS), Run(4, 2)))),
    ((RETRIES,), Arrived(5), Step((RETRIES, BEHIND), (Save(BEHIND),))),
    ((RETRIES, BEHIND), WOKEN, Step((RUNS_AGAIN, BEHIND), (Save(RUNS_AGAIN), Run(4, 3)))),
    *same((RETRIES, BEHIND), WOKEN_BEFORE, WOKEN_OTHER, Ended(), RETRY, Reopened()),
    # A queued head: whoever had it did not come to run it.
    ((NEW,), Arrived(5), Step((NEW, BEHIND), (Save(BEHIND),))),
    (
        (NEW, BEHIND),
        Reopened(),
        Step((Waiting(4, Phase.RUNNING, 1), BEHIND), (Save(Waiting(4, Phase.RUNNING, 1)), Run(4, 1))),
    ),
    *same((NEW, BEHIND), Ended(), RETRY, WOKEN),
]


@pytest.mark.parametrize(("queue", "event", "expected"), CASES, ids=str)
def test_step(queue: Queue, event: Event, expected: Step) -> None:
    assert step(queue, event) == expected


def test_the_table_has_every_pair() -> None:
    covered = {(queue[0].phase if queue else None, type(event)) for queue, event, _ in CASES}
    assert covered == set(product((None, *Phase), get_args(Event)))


@pytest.mark.parametrize(("queue", "event", "expected"), CASES, ids=str)
def test_every_changed_row_is_saved_and_every_row_that_is_gone_removed(
    queue: Queue, event: Event, expected: Step
) -> None:
    rows = {waiting.arrival: waiting for waiting in queue}
    for effect in expected.effects:
        if isinstance(effect, Save):
            rows[effect.waiting.arrival] = effect.waiting
        elif isinstance(effect, Remove):
            del rows[effect.arrival]
    assert rows == {waiting.arrival: waiting for waiting in expected.queue}


@pytest.mark.parametrize("attempts_max", [1, 2, 5])
def test_a_task_that_always_asks_for_a_retry_runs_as_often_as_allowed(attempts_max: int) -> None:
    decided = step((), Arrived(1))
    runs = 0
    for _ in range(10):
        runs += any(isinstance(effect, Run) for effect in decided.effects)
        asked = step(decided.queue, RetryAsked(now_ms=0, after_ms=0, attempts_max=attempts_max))
        if asked.effects == (GiveUp(1),):
            break
        decided = step(asked.queue, Woken(1, asked.queue[0].attempt))
    assert runs == attempts_max


@pytest.mark.parametrize("after_ms", [0, 1, 86_400_000])
def test_a_retry_falls_due_after_what_was_asked(after_ms: int) -> None:
    asked = step((RUNS,), RetryAsked(now_ms=10, after_ms=after_ms, attempts_max=5))
    assert asked.queue[0].due_ms == 10 + after_ms
    assert Wake(4, 2, 10 + after_ms) in asked.effects
