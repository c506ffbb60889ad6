"""The order of one session's tasks: what runs, what waits, what is retried.

A session performs one task at a time, in the order of its stream. A task that cannot end at once (its handler is
asynchronous, or asked for a retry) is the *head*; those that arrive meanwhile queue behind it, and nobody else waits.

    (empty) ──Arrived, not at once──▶ head running ──Ended──▶ next of the queue, or empty
                                        │      ▲
                                  RetryAsked   │ Woken (its wake-up has come back from `delay`)
                                        ▼      │
                                      head retrying ──RetryAsked beyond the limit──▶ failed, MaxAttempts

What waits is rows: whoever takes the server over finds the queue as it was (L6). The head of a queue that is found
*running* was running when its host died or lost the server; it runs again.
"""

from dataclasses import dataclass, replace
from enum import Enum
from typing import TypeAlias, assert_never


class Phase(Enum):
    """What a waiting task waits for."""

    RUNNING = "running"
    RETRYING = "retrying"
    QUEUED = "queued"


@dataclass(frozen=True, slots=True)
class Waiting:
    """A task taken from the stream that has not ended. ``attempt`` counts its runs from 1; 0 before the first."""

    arrival: int
    phase: Phase
    attempt: int = 0
    due_ms: int | None = None


Queue: TypeAlias = tuple[Waiting, ...]
"""The waiting tasks of a session, in order; all but the first are QUEUED."""


@dataclass(frozen=True, slots=True)
class Arrived:
    """The stream brought a task that cannot be performed at once."""

    arrival: int


@dataclass(frozen=True, slots=True)
class Ended:
    """The head's handler returned or failed for good."""


@dataclass(frozen=True, slots=True)
class RetryAsked:
    """The head's handler raised Retry at ``now_ms`` (Unix time)."""

    now_ms: int
    after_ms: int
    attempts_max: int


@dataclass(frozen=True, slots=True)
class Woken:
    """A wake-up came back; ``arrival`` and ``attempt`` name the retry that it was for."""

    arrival: int
    attempt: int


@dataclass(frozen=True, slots=True)
class Reopened:
    """The rows were loaded by a new owner, or read again after an abort: nothing of the session runs here yet."""


Event: TypeAlias = Arrived | Ended | RetryAsked | Woken | Reopened


@dataclass(frozen=True, slots=True)
class Run:
    """Run the handler of this task now; it is its ``attempt``-th run."""

    arrival: int
    attempt: int


@dataclass(frozen=True, slots=True)
class Save:
    """The waiting row of this task changed."""

    waiting: Waiting


@dataclass(frozen=True, slots=True)
class Remove:
    """The task has ended: its waiting row goes."""

    arrival: int


@dataclass(frozen=True, slots=True)
class Wake:
    """Send a wake-up for this retry, due at ``due_ms``."""

    arrival: int
    attempt: int
    due_ms: int


@dataclass(frozen=True, slots=True)
class GiveUp:
    """The task has used up its attempts: failed, MaxAttempts."""

    arrival: int


Effect: TypeAlias = Run | Save | Remove | Wake | GiveUp


@dataclass(frozen=True, slots=True)
class Step:
    """The new queue, and what the shell does for it."""

    queue: Queue
    effects: tuple[Effect, ...] = ()


def step(queue: Queue, event: Event) -> Step:
    """Decide what follows. An event that names a task which no longer waits for it changes nothing."""
    match event:
        case Arrived(arrival):
            if not queue:
                return _run((Waiting(arrival, Phase.QUEUED),))
            waiting = Waiting(arrival, Phase.QUEUED)
            return Step((*queue, waiting), (Save(waiting),))
        case Ended():
            return _ended(queue)
        case RetryAsked():
            return _retry(queue, event)
        case Woken(arrival, attempt):
            if (
                queue
                and queue[0].phase is Phase.RETRYING
                and (queue[0].arrival, queue[0].attempt) == (arrival, attempt)
            ):
                return _run(queue)
            return Step(queue)
        case Reopened():
            if queue and queue[0].phase is not Phase.RETRYING:
                return _run(queue)
            return Step(queue)
        case _:
            assert_never(event)


def _run(queue: Queue) -> Step:
    """Run the head. A head that was running when it was lost keeps its attempt: that run took no effect."""
    head = queue[0]
    attempt = head.attempt if head.phase is Phase.RUNNING else head.attempt + 1
    running = replace(head, phase=Phase.RUNNING, attempt=attempt, due_ms=None)
    return Step((running, *queue[1:]), (Save(running), Run(head.arrival, attempt)))


def _ended(queue: Queue) -> Step:
    if not queue or queue[0].phase is not Phase.RUNNING:
        return Step(queue)
    gone = Remove(queue[0].arrival)
    if len(queue) == 1:
        return Step((), (gone,))
    following = _run(queue[1:])
    return Step(following.queue, (gone, *following.effects))


def _retry(queue: Queue, event: RetryAsked) -> Step:
    if not queue or queue[0].phase is not Phase.RUNNING:
        return Step(queue)
    head = queue[0]
    if head.attempt >= event.attempts_max:
        return Step(queue, (GiveUp(head.arrival),))
    due_ms = event.now_ms + event.after_ms
    waiting = replace(head, phase=Phase.RETRYING, due_ms=due_ms)
    return Step((waiting, *queue[1:]), (Save(waiting), Wake(head.arrival, head.attempt, due_ms)))
