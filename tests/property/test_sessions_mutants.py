"""Each rule of the session core is needed: without it the machine finds a lost, doubled, overtaken or stuck task."""

from collections.abc import Callable
from dataclasses import replace

import pytest

from app.protocol import sessions
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
    Woken,
    step,
)
from tests.property.mutation import killed_after
from tests.property.test_sessions_machine import walk

Mutant = Callable[[Queue, Event], Step | None]
"""What the changed rule says, or None where the core decides as always."""


def _run(queue: Queue, attempt: int) -> Step:
    running = replace(queue[0], phase=Phase.RUNNING, attempt=attempt, due_ms=None)
    return Step((running, *queue[1:]), (Save(running), Run(running.arrival, attempt)))


def retrying(queue: Queue) -> bool:
    return bool(queue) and queue[0].phase is Phase.RETRYING


def running(queue: Queue) -> bool:
    return bool(queue) and queue[0].phase is Phase.RUNNING


def overtakes_a_retry(queue: Queue, event: Event) -> Step | None:
    if isinstance(event, Arrived) and retrying(queue):
        return Step(queue, (Run(event.arrival, 1),))
    return None


def arrives_in_front(queue: Queue, event: Event) -> Step | None:
    if isinstance(event, Arrived) and len(queue) > 1:
        waiting = Waiting(event.arrival, Phase.QUEUED)
        return Step((queue[0], waiting, *queue[1:]), (Save(waiting),))
    return None


def does_not_save_what_queues(queue: Queue, event: Event) -> Step | None:
    if isinstance(event, Arrived) and queue:
        return Step((*queue, Waiting(event.arrival, Phase.QUEUED)))
    return None


def does_not_run_the_next(queue: Queue, event: Event) -> Step | None:
    if isinstance(event, Ended) and running(queue):
        return Step(queue[1:], (Remove(queue[0].arrival),))
    return None


def does_not_remove_what_ended(queue: Queue, event: Event) -> Step | None:
    if isinstance(event, Ended) and running(queue) and len(queue) == 1:
        return Step(())
    return None


def retries_at_the_end_of_the_queue(queue: Queue, event: Event) -> Step | None:
    if isinstance(event, RetryAsked) and running(queue) and len(queue) > 1:
        decided = step(queue, event)
        return Step((*decided.queue[1:], decided.queue[0]), decided.effects)
    return None


def gives_up_one_attempt_late(queue: Queue, event: Event) -> Step | None:
    if isinstance(event, RetryAsked):
        return step(queue, replace(event, attempts_max=event.attempts_max + 1))
    return None


def gives_up_one_attempt_early(queue: Queue, event: Event) -> Step | None:
    if isinstance(event, RetryAsked):
        return step(queue, replace(event, attempts_max=event.attempts_max - 1))
    return None


def never_gives_up(queue: Queue, event: Event) -> Step | None:
    if isinstance(event, RetryAsked):
        return step(queue, replace(event, attempts_max=10**9))
    return None


def gives_up_and_ends_at_once(queue: Queue, event: Event) -> Step | None:
    decided = step(queue, event)
    if any(isinstance(effect, GiveUp) for effect in decided.effects):
        ended = step(queue, Ended())
        return Step(ended.queue, (*decided.effects, *ended.effects))
    return None


def does_not_send_a_wake_up(queue: Queue, event: Event) -> Step | None:
    decided = step(queue, event)
    if isinstance(event, RetryAsked) and retrying(decided.queue):
        return Step(decided.queue, decided.effects[:1])
    return None


def does_not_save_a_retry(queue: Queue, event: Event) -> Step | None:
    decided = step(queue, event)
    if isinstance(event, RetryAsked) and retrying(decided.queue):
        return Step(decided.queue, decided.effects[1:])
    return None


def wakes_for_any_attempt(queue: Queue, event: Event) -> Step | None:
    if isinstance(event, Woken) and retrying(queue) and event.arrival == queue[0].arrival:
        return _run(queue, queue[0].attempt + 1)
    return None


def wakes_for_any_task(queue: Queue, event: Event) -> Step | None:
    if isinstance(event, Woken) and retrying(queue) and event.attempt == queue[0].attempt:
        return _run(queue, queue[0].attempt + 1)
    return None


def wakes_what_runs(queue: Queue, event: Event) -> Step | None:
    if isinstance(event, Woken) and running(queue) and event.arrival == queue[0].arrival:
        return _run(queue, queue[0].attempt)
    return None


def does_not_count_a_woken_attempt(queue: Queue, event: Event) -> Step | None:
    decided = step(queue, event)
    if isinstance(event, Woken) and retrying(queue) and running(decided.queue):
        return _run(queue, queue[0].attempt)
    return None


def ignores_wake_ups(queue: Queue, event: Event) -> Step | None:
    return Step(queue) if isinstance(event, Woken) else None


def counts_a_run_that_was_lost(queue: Queue, event: Event) -> Step | None:
    if isinstance(event, Reopened) and running(queue):
        return _run(queue, queue[0].attempt + 1)
    return None


def does_not_run_again_what_was_lost(queue: Queue, event: Event) -> Step | None:
    return Step(queue) if isinstance(event, Reopened) else None


def runs_a_retry_when_reopened(queue: Queue, event: Event) -> Step | None:
    if isinstance(event, Reopened) and retrying(queue):
        return _run(queue, queue[0].attempt + 1)
    return None


MUTANTS: list[Mutant] = [
    overtakes_a_retry,
    arrives_in_front,
    does_not_save_what_queues,
    does_not_run_the_next,
    does_not_remove_what_ended,
    retries_at_the_end_of_the_queue,
    gives_up_one_attempt_late,
    gives_up_one_attempt_early,
    never_gives_up,
    gives_up_and_ends_at_once,
    does_not_send_a_wake_up,
    does_not_save_a_retry,
    wakes_for_any_attempt,
    wakes_for_any_task,
    wakes_what_runs,
    does_not_count_a_woken_attempt,
    ignores_wake_ups,
    counts_a_run_that_was_lost,
    does_not_run_again_what_was_lost,
    runs_a_retry_when_reopened,
]


@pytest.mark.parametrize("mutant", MUTANTS, ids=lambda mutant: mutant.__name__)
def test_the_machine_kills(mutant: Mutant, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sessions, "step", lambda queue, event: mutant(queue, event) or step(queue, event))
    assert killed_after(walk) is not None


def test_the_core_itself_survives() -> None:
    assert killed_after(walk) is None
