"""One connection: every state with every event."""

from dataclasses import replace
from itertools import product
from typing import get_args

import pytest

from app.protocol.conveyance import (
    Ack,
    Announce,
    Begin,
    Cancel,
    Completing,
    Compose,
    Composed,
    Confirm,
    Conveyance,
    Conveying,
    Discard,
    Done,
    Durable,
    Effect,
    Event,
    Failed,
    Floating,
    Found,
    Granted,
    Held,
    Idle,
    Lock,
    Message,
    Nak,
    Progress,
    Reason,
    Release,
    Remove,
    Reply,
    Segment,
    Spoiled,
    State,
    Step,
    Terms,
    Tick,
)
from app.protocol.transfer import step

TERMS = Terms(lease_ms=10, expires_ms=1000, size_max=100, remote_max=3, total_max=5, attempts_max=2)
MESSAGE = Message("m", 10, number=5)
HALF = (Segment("5-0", 4),)
CONVEYANCE = Conveyance(MESSAGE, HALF, 500)
FULL = Conveyance(MESSAGE, (Segment("5-0", 10),), 500)
EMPTY = Conveyance(MESSAGE, (), 500)

IDLE = Idle(3)
FLOATING = Floating(5, CONVEYANCE)
CONVEYING = Conveying(6, CONVEYANCE, Held("a", 20, "r1"), 4)
COMPLETING = Completing(6, FULL, Held("a", 20, "r1"), by=6)
LEFT = Completing(6, FULL, None, by=6, retry_ms=30)
DONE = Done(6, MESSAGE, 10, "sum")
FAILED = Failed(7, MESSAGE, Reason.EXPIRED, 900)
STATES: list[State] = [IDLE, FLOATING, CONVEYING, COMPLETING, DONE, FAILED]

OTHER = Message("other", 10)
AGAIN = Begin(15, MESSAGE)
LOCK = Lock(15, "b", "r2")
OWN = (Segment("6-0", 3),)
REST = (Segment("6-0", 6),)
GONE = Discard(HALF)
WHOLE_GONE = Discard(FULL.segments)
TAKEN = Conveying(6, CONVEYANCE, Held("b", 25, "r2"), 4)


def begun(now: int) -> State:
    return Floating(now, Conveyance(replace(OTHER, number=now), (), now + 1000))


def conveying(own: tuple[Segment, ...], now: int) -> Conveying:
    return Conveying(6, Conveyance(MESSAGE, HALF + own, now + 1000), Held("a", now + 10, "r1"), 4)


def completing(now: int, held: Held | None, retry: int = 0) -> Completing:
    return Completing(6, Conveyance(MESSAGE, HALF + REST, now + 1000), held, by=6, retry_ms=retry)


def failed(instance: int, reason: Reason, now: int) -> Failed:
    return Failed(instance, MESSAGE, reason, now + 1000)


CASES: list[tuple[State, Event, State, Reply, tuple[Effect, ...]]] = [
    # A message is announced.
    (IDLE, Begin(15, OTHER), begun(15), Durable(0), ()),
    (IDLE, Begin(1, OTHER), Floating(4, Conveyance(replace(OTHER, number=4), (), 1001)), Durable(0), ()),
    (
        IDLE,
        Begin(15, replace(OTHER, size=None)),
        Floating(15, Conveyance(Message("other", None, 15), (), 1015)),
        Durable(0),
        (),
    ),
    (IDLE, Begin(15, replace(OTHER, size=101)), IDLE, Nak(Reason.TOO_LARGE), ()),
    (IDLE, Begin(15, OTHER, of_remote=3), IDLE, Nak(Reason.REMOTE_QUOTA), ()),
    (IDLE, Begin(15, OTHER, of_remote=2, total=5), IDLE, Nak(Reason.TOTAL_QUOTA), ()),
    (
        IDLE,
        Begin(15, replace(OTHER, size=0)),
        Completing(15, Conveyance(Message("other", 0, 15), (), 1015), None, by=0, retry_ms=25),
        Durable(0),
        (Compose(),),
    ),
    (FLOATING, AGAIN, FLOATING, Durable(4), ()),
    (FLOATING, Begin(15, OTHER), FLOATING, Nak(Reason.BUSY, 4), ()),
    (CONVEYING, AGAIN, CONVEYING, Durable(4), ()),
    (CONVEYING, Begin(15, OTHER), CONVEYING, Nak(Reason.BUSY, 4), ()),
    (COMPLETING, AGAIN, COMPLETING, Durable(10), ()),
    (DONE, AGAIN, DONE, Ack(10, "sum"), ()),
    (DONE, Begin(15, OTHER), begun(15), Durable(0), ()),
    (FAILED, AGAIN, FAILED, Nak(Reason.EXPIRED), ()),
    (FAILED, Begin(15, OTHER), begun(15), Durable(0), ()),
    # Somebody wants to service it.
    (IDLE, LOCK, IDLE, Nak(Reason.UNKNOWN), ()),
    (FLOATING, LOCK, TAKEN, Granted(6, 4), ()),
    (CONVEYING, LOCK, CONVEYING, Nak(Reason.LOCKED, 4, "a"), ()),
    (CONVEYING, replace(LOCK, now_ms=20), replace(TAKEN, instance=7, held=Held("b", 30, "r2")), Granted(7, 4), ()),
    (CONVEYING, replace(LOCK, seen=6), replace(TAKEN, instance=7), Granted(7, 4), ()),
    (CONVEYING, replace(LOCK, seen=5), CONVEYING, Nak(Reason.LOCKED, 4, "a"), ()),
    (CONVEYING, Lock(15, "a", "r1"), CONVEYING, Granted(6, 4), ()),
    (CONVEYING, Lock(15, "a", "r3"), replace(TAKEN, instance=7, held=Held("a", 25, "r3")), Granted(7, 4), ()),
    (COMPLETING, LOCK, COMPLETING, Nak(Reason.LOCKED, 10, "a"), ()),
    (LEFT, LOCK, Completing(7, FULL, Held("b", 25, "r2"), by=6, retry_ms=30), Granted(7, 10), ()),
    (COMPLETING, replace(LOCK, seen=6), Completing(7, FULL, Held("b", 25, "r2"), by=6), Granted(7, 10), ()),
    (DONE, LOCK, DONE, Nak(Reason.COMPLETE, 10), ()),
    (FAILED, LOCK, FAILED, Nak(Reason.EXPIRED), ()),
    # The holder found another length in the storage.
    (IDLE, Found(15, 3, ()), IDLE, Nak(Reason.FENCED), ()),
    (FLOATING, Found(15, 5, ()), FLOATING, Nak(Reason.FENCED, 4), ()),
    (CONVEYING, Found(15, 6, ()), Conveying(6, Conveyance(MESSAGE, (), 1015), Held("a", 25, "r1"), 0), Durable(0), ()),
    (
        CONVEYING,
        Found(15, 6, FULL.segments),
        Completing(6, replace(FULL, expires_ms=1015), Held("a", 25, "r1"), by=6),
        Durable(10),
        (),
    ),
    (CONVEYING, Found(15, 6, (Segment("x", 11),)), CONVEYING, Nak(Reason.TOO_LARGE, 4), ()),
    (conveying(OWN, 15), Found(15, 6, ()), conveying(OWN, 15), Nak(Reason.MISMATCH, 7), ()),
    (CONVEYING, Found(15, 5, ()), CONVEYING, Nak(Reason.FENCED, 4, "a"), ()),
    (COMPLETING, Found(15, 6, ()), replace(COMPLETING, held=Held("a", 25, "r1")), Durable(10), ()),
    (DONE, Found(15, 6, ()), DONE, Ack(10, "sum"), ()),
    (FAILED, Found(15, 7, ()), FAILED, Nak(Reason.EXPIRED), ()),
    # Bytes have become durable.
    (IDLE, Progress(15, 3, ()), IDLE, Nak(Reason.FENCED), ()),
    (FLOATING, Progress(15, 5, OWN), FLOATING, Nak(Reason.FENCED, 4), ()),
    (CONVEYING, Progress(15, 6, OWN), conveying(OWN, 15), Durable(7), ()),
    (conveying(OWN, 15), Progress(16, 6, (Segment("6-0", 2),)), conveying(OWN, 16), Durable(7), ()),
    (CONVEYING, Progress(15, 6, ()), conveying((), 15), Durable(4), ()),
    (CONVEYING, Progress(15, 6, REST), completing(15, Held("a", 25, "r1")), Durable(10), ()),
    (CONVEYING, Progress(15, 6, (Segment("6-0", 7),)), CONVEYING, Nak(Reason.TOO_LARGE, 4), ()),
    (CONVEYING, Progress(15, 6, OWN, size=11), CONVEYING, Nak(Reason.MISMATCH, 4), ()),
    (CONVEYING, Progress(15, 5, OWN), CONVEYING, Nak(Reason.FENCED, 4, "a"), ()),
    (COMPLETING, Progress(15, 6, REST), replace(COMPLETING, held=Held("a", 25, "r1")), Durable(10), ()),
    (LEFT, Progress(15, 6, REST), LEFT, Durable(10), ()),
    (COMPLETING, Progress(15, 5, OWN), COMPLETING, Nak(Reason.FENCED, 10, "a"), ()),
    (DONE, Progress(15, 6, ()), DONE, Ack(10, "sum"), ()),
    (DONE, Progress(15, 5, ()), DONE, Nak(Reason.FENCED, 10), ()),
    (FAILED, Progress(15, 6, ()), FAILED, Nak(Reason.EXPIRED), ()),
    # The holder lets go.
    (IDLE, Release(15, 3, ()), IDLE, Nak(Reason.FENCED), ()),
    (FLOATING, Release(15, 5, OWN), FLOATING, Durable(4), ()),
    (FLOATING, Release(15, 4, OWN), FLOATING, Nak(Reason.FENCED, 4), ()),
    (CONVEYING, Release(15, 6, OWN), Floating(6, Conveyance(MESSAGE, HALF + OWN, 1015)), Durable(7), ()),
    (
        CONVEYING,
        Release(15, 6, OWN, clean=False),
        Floating(6, Conveyance(MESSAGE, HALF + OWN, 1015), clean=False),
        Durable(7),
        (),
    ),
    (CONVEYING, Release(15, 6, REST), completing(15, None, 25), Durable(10), (Compose(),)),
    (CONVEYING, Release(15, 5, OWN), CONVEYING, Nak(Reason.FENCED, 4, "a"), ()),
    (COMPLETING, Release(15, 6, ()), replace(COMPLETING, held=None, retry_ms=25), Durable(10), ()),
    (DONE, Release(15, 6, ()), DONE, Ack(10, "sum"), ()),
    (FAILED, Release(15, 7, ()), FAILED, Nak(Reason.EXPIRED), ()),
    # The whole is there.
    (IDLE, Composed(15, 3), IDLE, Nak(Reason.FENCED), ()),
    (FLOATING, Composed(15, 5), FLOATING, Nak(Reason.FENCED, 4), ()),
    (CONVEYING, Composed(15, 6), CONVEYING, Nak(Reason.MISMATCH, 4), ()),
    (COMPLETING, Composed(15, 6, "sum"), DONE, Ack(10, "sum"), (Announce.COMPLETED, WHOLE_GONE)),
    (COMPLETING, Composed(15, 5, "sum"), COMPLETING, Nak(Reason.FENCED, 10, "a"), ()),
    (LEFT, Composed(15, 6, "sum"), DONE, Ack(10, "sum"), (Announce.COMPLETED, WHOLE_GONE)),
    (DONE, Composed(15, 6, "sum"), DONE, Ack(10, "sum"), ()),
    (FAILED, Composed(15, 6), FAILED, Nak(Reason.EXPIRED), ()),
    # The whole cannot be made.
    (IDLE, Spoiled(15, 3, Reason.CHECKSUM), IDLE, Nak(Reason.FENCED), ()),
    (FLOATING, Spoiled(15, 5, Reason.CHECKSUM), FLOATING, Nak(Reason.FENCED, 4), ()),
    (
        CONVEYING,
        Spoiled(15, 6, Reason.STORAGE),
        Floating(7, Conveyance(MESSAGE, (), 1015, spoiled=1)),
        Nak(Reason.STORAGE),
        (GONE,),
    ),
    (
        COMPLETING,
        Spoiled(15, 6, Reason.CHECKSUM),
        Floating(7, Conveyance(MESSAGE, (), 1015, spoiled=1)),
        Nak(Reason.CHECKSUM),
        (WHOLE_GONE,),
    ),
    (
        replace(COMPLETING, conveyance=replace(FULL, spoiled=1)),
        Spoiled(15, 6, Reason.CHECKSUM),
        failed(7, Reason.CHECKSUM, 15),
        Nak(Reason.CHECKSUM),
        (Announce.FAILED, WHOLE_GONE),
    ),
    (DONE, Spoiled(15, 6, Reason.CHECKSUM), DONE, Ack(10, "sum"), ()),
    (FAILED, Spoiled(15, 7, Reason.CHECKSUM), FAILED, Nak(Reason.EXPIRED), ()),
    # Nobody wants it any more.
    (IDLE, Cancel(15), IDLE, Nak(Reason.UNKNOWN), ()),
    (FLOATING, Cancel(15), failed(6, Reason.CANCELLED, 15), Durable(0), (Announce.FAILED, GONE)),
    (CONVEYING, Cancel(15), failed(7, Reason.CANCELLED, 15), Durable(0), (Announce.FAILED, GONE)),
    (COMPLETING, Cancel(15), COMPLETING, Nak(Reason.LOCKED, 10, "a"), ()),
    (LEFT, Cancel(15), failed(7, Reason.CANCELLED, 15), Durable(0), (Announce.FAILED, WHOLE_GONE)),
    (DONE, Cancel(15), failed(7, Reason.CANCELLED, 15), Durable(0), (Remove(MESSAGE),)),
    (FAILED, Cancel(15), FAILED, Nak(Reason.EXPIRED), ()),
    # A remote has pulled.
    (IDLE, Confirm(15, 4, verified=False), IDLE, Nak(Reason.UNKNOWN), ()),
    (FLOATING, Confirm(15, 4, verified=False), FLOATING, Nak(Reason.BUSY, 4), ()),
    (CONVEYING, Confirm(15, 4, verified=False), CONVEYING, Nak(Reason.LOCKED, 4, "a"), ()),
    (COMPLETING, Confirm(15, 4, verified=False), COMPLETING, Nak(Reason.LOCKED, 10, "a"), ()),
    (DONE, Confirm(15, 4, verified=False), replace(DONE, confirmed=4), Durable(4), ()),
    (replace(DONE, confirmed=6), Confirm(15, 4, verified=False), replace(DONE, confirmed=6), Durable(6), ()),
    (DONE, Confirm(15, 11, verified=True), DONE, Nak(Reason.MISMATCH, 0), ()),
    (replace(DONE, confirmed=6), Confirm(15, 10, verified=False), DONE, Nak(Reason.CHECKSUM), ()),
    (
        DONE,
        Confirm(15, 10, verified=True),
        replace(DONE, confirmed=10, acknowledged=True),
        Ack(10, "sum"),
        (Announce.ACKNOWLEDGED,),
    ),
    (
        replace(DONE, confirmed=10, acknowledged=True),
        Confirm(15, 10, verified=True),
        replace(DONE, confirmed=10, acknowledged=True),
        Ack(10, "sum"),
        (),
    ),
    (FAILED, Confirm(15, 4, verified=False), FAILED, Nak(Reason.EXPIRED), ()),
    # Time passes.
    (IDLE, Tick(10_000), IDLE, Durable(0), ()),
    (FLOATING, Tick(499), FLOATING, Durable(0), ()),
    (FLOATING, Tick(500), failed(6, Reason.EXPIRED, 500), Nak(Reason.EXPIRED), (Announce.FAILED, GONE)),
    (CONVEYING, Tick(19), CONVEYING, Durable(0), ()),
    (CONVEYING, Tick(20), Floating(6, CONVEYANCE, clean=False), Durable(0), ()),
    (COMPLETING, Tick(19), COMPLETING, Durable(0), ()),
    (COMPLETING, Tick(20), replace(COMPLETING, held=None, retry_ms=30), Durable(0), (Compose(),)),
    (LEFT, Tick(30), replace(LEFT, retry_ms=40), Durable(0), (Compose(),)),
    (LEFT, Tick(500), failed(7, Reason.STORAGE, 500), Nak(Reason.STORAGE), (Announce.FAILED, WHOLE_GONE)),
    (DONE, Tick(10_000), DONE, Durable(0), ()),
    (replace(DONE, expires_ms=30), Tick(30), failed(7, Reason.EXPIRED, 30), Durable(0), (Remove(MESSAGE),)),
    (FAILED, Tick(899), FAILED, Durable(0), ()),
    (FAILED, Tick(900), Idle(7), Durable(0), ()),
]


def test_the_table_has_every_pair() -> None:
    covered = {(type(state), type(event)) for state, event, _, _, _ in CASES}
    assert covered == set(product(get_args(State), get_args(Event)))


@pytest.mark.parametrize(
    ("state", "event", "after", "reply", "effects"),
    CASES,
    ids=[f"{type(s).__name__}-{type(e).__name__}-{n}" for n, (s, e, _, _, _) in enumerate(CASES)],
)
def test_step(state: State, event: Event, after: State, reply: Reply, effects: tuple[Effect, ...]) -> None:
    assert step(state, event, TERMS) == Step(after, reply, effects)


def test_a_size_that_comes_late_completes() -> None:
    unsized = Conveyance(replace(MESSAGE, size=None), HALF, 500)
    state = replace(CONVEYING, conveyance=unsized)
    assert step(state, Progress(15, 6, OWN), TERMS).reply == Durable(7)
    assert isinstance(step(state, Progress(15, 6, OWN, size=7), TERMS).state, Completing)
    assert step(state, Progress(15, 6, OWN, size=6), TERMS) == Step(state, Nak(Reason.TOO_LARGE, 4))
    assert step(state, Progress(15, 6, OWN, size=101), TERMS) == Step(state, Nak(Reason.TOO_LARGE, 4))
    assert step(state, Progress(15, 6, (Segment("6-0", 97),)), TERMS) == Step(state, Nak(Reason.TOO_LARGE, 4))


def test_a_message_without_bytes_is_not_sent_again() -> None:
    empty = replace(COMPLETING, conveyance=replace(FULL, message=replace(MESSAGE, size=0), segments=()))
    assert step(empty, Spoiled(15, 6, Reason.STORAGE), TERMS).effects == (Announce.FAILED,)


def test_a_part_is_not_announced_and_ends() -> None:
    part = replace(COMPLETING, conveyance=replace(FULL, message=replace(MESSAGE, partial=True)))
    decided = step(part, Composed(15, 6), TERMS)
    assert decided.effects == (WHOLE_GONE,)
    assert isinstance(decided.state, Done)
    assert decided.state.expires_ms == 1015


def test_a_concatenation_leaves_its_parts_alone() -> None:
    joined = Begin(15, replace(OTHER, joined=True), segments=(Segment("a", 4), Segment("b", 6)))
    begun_whole = step(IDLE, joined, TERMS)
    assert isinstance(begun_whole.state, Completing)
    locked = step(begun_whole.state, Lock(26, "a"), TERMS)
    assert isinstance(locked.reply, Granted)
    assert step(locked.state, Composed(27, locked.reply.instance), TERMS).effects == (Announce.COMPLETED,)
    assert step(locked.state, Spoiled(27, locked.reply.instance, Reason.STORAGE), TERMS).effects == (Announce.FAILED,)
