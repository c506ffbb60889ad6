"""One connection: a remote component that pushes a message into storage, or pulls it out again, piece by piece.

Whoever services the connection holds its lock; the owner of the row grants it, each time with a new instance number,
and every later word about the conveyance carries that number. A word with another number comes from a holder that was
passed over and changes nothing (fencing). Pieces are stored in segments that belong to one instance, so a late writer
writes where nobody reads: the row lists the segments that count, with their lengths.

    Idle ──Begin──▶ Floating ──Lock──▶ Conveying ──Progress: all is durable──▶ Completing ──Composed──▶ Done
      ▲                │  ▲               │                                     │     ▲
      │                │  └─Release, Tick─┘◀────────── Spoiled ─────────────────┤     └ Lock (the lease is over)
      └─Tick── Failed ◀┴──── Cancel, Tick (expired), Spoiled too often ─────────┘

A push is answered by what the row says once it is committed: `Durable` up to an offset, `Ack` for the whole, `Nak`
with a reason and the offset to go on from. A pull reads a whole message and needs no lock; it is confirmed by offset,
and acknowledged once. After US 7,634,583: a conveyance that floats between servicing components.
"""

from dataclasses import replace
from typing import assert_never

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
    Nak,
    Progress,
    Reason,
    Release,
    Remove,
    Spoiled,
    State,
    Step,
    Terms,
    Tick,
    due_ms,
    first_of,
    length_of,
    refusal,
)


def step(state: State, event: Event, terms: Terms) -> Step:
    """Decide what follows. An event that does not fit the state is answered with a Nak and changes nothing."""
    match event:
        case Begin():
            return _begin(state, event, terms)
        case Lock():
            return _lock(state, event, terms)
        case Found() | Progress() | Release() | Composed() | Spoiled():
            return _of_the_holder(state, event, terms)
        case Cancel():
            return _cancel(state, event, terms)
        case Confirm():
            return _confirm(state, event)
        case Tick():
            return _tick(state, event.now_ms, terms)
        case _:
            assert_never(event)


def _begin(state: State, event: Begin, terms: Terms) -> Step:
    message = event.message
    match state:
        case Floating() | Conveying() | Completing():
            if message.name == state.conveyance.message.name:
                return Step(state, Durable(state.conveyance.offset))
            return Step(state, Nak(Reason.BUSY, state.conveyance.offset))
        case Done() | Failed() if message.name == state.message.name:
            return Step(state, Ack(state.size, state.checksum) if isinstance(state, Done) else Nak(state.reason))
        case Idle() | Done() | Failed():
            reason = _refused_by_quota(event, terms)
            if reason is not None:
                return Step(state, Nak(reason))
        case _:
            assert_never(state)
    instance = max(state.instance + 1, event.now_ms)
    expires = event.now_ms + terms.expires_ms
    conveyance = Conveyance(replace(message, number=instance), event.segments, expires)
    if conveyance.whole:
        retry = event.now_ms + terms.lease_ms
        waiting = Completing(instance, conveyance, None, by=0, retry_ms=retry)
        return Step(waiting, Durable(conveyance.offset), (Compose(),))
    return Step(Floating(instance, conveyance), Durable(conveyance.offset))


def _refused_by_quota(event: Begin, terms: Terms) -> Reason | None:
    if (event.message.size or 0) > terms.size_max:
        return Reason.TOO_LARGE
    if event.of_remote >= terms.remote_max:
        return Reason.REMOTE_QUOTA
    return Reason.TOTAL_QUOTA if event.total >= terms.total_max else None


def _lock(state: State, event: Lock, terms: Terms) -> Step:
    held = Held(event.worker, event.now_ms + terms.lease_ms, event.request)
    match state:
        case Floating():
            return _grant(state.instance + 1, state.conveyance, held)
        case Conveying() | Completing():
            now = state.held
            if now is not None and event.request and event.request == now.request:
                return Step(state, Granted(state.instance, state.conveyance.offset))
            if not _free(state, event):
                return Step(state, refusal(state))
            if isinstance(state, Conveying):
                return _grant(state.instance + 1, state.conveyance, held)
            taken = replace(state, instance=state.instance + 1, held=held)
            return Step(taken, Granted(taken.instance, state.conveyance.offset))
        case Idle() | Done() | Failed():
            return Step(state, refusal(state))
        case _:
            assert_never(state)


def _free(state: Conveying | Completing, event: Lock) -> bool:
    """Is the lock to be had: nobody's, over, the asker's own, or that of a holder that does not answer?"""
    held = state.held
    if held is None or held.until_ms <= event.now_ms:
        return True
    return held.worker == event.worker or event.seen == state.instance


def _grant(instance: int, conveyance: Conveyance, held: Held) -> Step:
    state = Conveying(instance, conveyance, held, conveyance.offset)
    return Step(state, Granted(instance, conveyance.offset))


def _of_the_holder(state: State, event: Found | Progress | Release | Composed | Spoiled, terms: Terms) -> Step:
    match state:
        case Conveying() if state.instance == event.instance:
            return _while_conveying(state, event, terms)
        case Completing() if state.instance == event.instance:
            return _while_completing(state, event, terms)
        case Done() if state.instance == event.instance:
            return Step(state, Ack(state.size, state.checksum))
        case Floating() if state.instance == event.instance and isinstance(event, Release):
            return Step(state, Durable(state.conveyance.offset))
        case Idle() | Floating() | Conveying() | Completing() | Done() | Failed():
            return Step(state, replace(refusal(state), reason=_why_not(state)))
        case _:
            assert_never(state)


def _why_not(state: State) -> Reason:
    return state.reason if isinstance(state, Failed) else Reason.FENCED


def _while_conveying(state: Conveying, event: Found | Progress | Release | Composed | Spoiled, terms: Terms) -> Step:
    conveyance = state.conveyance
    match event:
        case Found():
            if conveyance.offset != state.before:
                return Step(state, Nak(Reason.MISMATCH, conveyance.offset))
            found = replace(conveyance, segments=event.segments)
            if found.message.size is not None and found.offset > found.message.size:
                return Step(state, Nak(Reason.TOO_LARGE, conveyance.offset))
            return _advanced(replace(state, conveyance=found, before=found.offset), event.now_ms, terms)
        case Progress() | Release():
            return _progress(state, event, terms)
        case Spoiled():
            return _spoiled(state, event, terms)
        case Composed():
            return Step(state, Nak(Reason.MISMATCH, conveyance.offset))
        case _:
            assert_never(event)


def _progress(state: Conveying, event: Progress | Release, terms: Terms) -> Step:
    message = state.conveyance.message
    if event.size is not None and message.size is None:
        message = replace(message, size=event.size)
    elif event.size is not None and event.size != message.size:
        return Step(state, Nak(Reason.MISMATCH, state.conveyance.offset))
    earlier = first_of(state.conveyance.segments, state.before)
    # What comes late says less than what is known: only the longer list counts.
    segments = max(earlier + event.own, state.conveyance.segments, key=length_of)
    offset = length_of(segments)
    if offset > (terms.size_max if message.size is None else message.size) or (message.size or 0) > terms.size_max:
        return Step(state, Nak(Reason.TOO_LARGE, state.conveyance.offset))
    moved = replace(state, conveyance=replace(state.conveyance, message=message, segments=segments))
    advanced = _advanced(moved, event.now_ms, terms)
    if isinstance(event, Progress):
        return advanced
    if isinstance(advanced.state, Completing):
        waiting = replace(advanced.state, held=None, retry_ms=event.now_ms + terms.lease_ms)
        return replace(advanced, state=waiting, effects=(Compose(),))
    assert isinstance(advanced.state, Conveying)
    return Step(Floating(state.instance, advanced.state.conveyance, event.clean), Durable(offset))


def _advanced(state: Conveying, now_ms: int, terms: Terms) -> Step:
    """Renew lease and expiry; with the last byte the whole can be made."""
    held = replace(state.held, until_ms=now_ms + terms.lease_ms)
    conveyance = replace(state.conveyance, expires_ms=now_ms + terms.expires_ms)
    if conveyance.whole:
        return Step(Completing(state.instance, conveyance, held, by=state.instance), Durable(conveyance.offset))
    return Step(replace(state, held=held, conveyance=conveyance), Durable(conveyance.offset))


def _while_completing(state: Completing, event: Found | Progress | Release | Composed | Spoiled, terms: Terms) -> Step:
    conveyance = state.conveyance
    match event:
        case Composed():
            return _completed(state, event, terms)
        case Spoiled():
            return _spoiled(state, event, terms)
        case Release():
            later = replace(state, held=None, retry_ms=event.now_ms + terms.lease_ms)
            return Step(later, Durable(conveyance.offset))
        case Progress() | Found():
            if state.held is None:
                return Step(state, Durable(conveyance.offset))
            renewed = replace(state.held, until_ms=event.now_ms + terms.lease_ms)
            return Step(replace(state, held=renewed), Durable(conveyance.offset))
        case _:
            assert_never(event)


def _completed(state: Completing, event: Composed, terms: Terms) -> Step:
    conveyance = state.conveyance
    message, size = conveyance.message, conveyance.offset
    expires = event.now_ms + terms.expires_ms if message.partial else None
    done = Done(state.instance, message, size, event.checksum, expires_ms=expires)
    announced = () if message.partial else (Announce.COMPLETED,)
    return Step(done, Ack(size, event.checksum), (*announced, *_discard(conveyance)))


def _discard(conveyance: Conveyance) -> tuple[Effect, ...]:
    """A concatenation's segments are whole messages, which are others' to delete."""
    return () if conveyance.message.joined or not conveyance.segments else (Discard(conveyance.segments),)


def _spoiled(state: Conveying | Completing, event: Spoiled, terms: Terms) -> Step:
    conveyance = state.conveyance
    spoiled = conveyance.spoiled + 1
    # Nobody can send a concatenation again, nor a message without bytes.
    if conveyance.message.joined or conveyance.message.size == 0 or spoiled >= terms.attempts_max:
        return _fail(state.instance, conveyance, event.reason, event.now_ms, terms)
    again = replace(conveyance, segments=(), spoiled=spoiled, expires_ms=event.now_ms + terms.expires_ms)
    # A number of its own: what the holder wrote is not to be found by the next one.
    return Step(Floating(state.instance + 1, again), Nak(event.reason), _discard(conveyance))


def _fail(instance: int, conveyance: Conveyance, reason: Reason, now_ms: int, terms: Terms) -> Step:
    failed = Failed(instance + 1, conveyance.message, reason, now_ms + terms.expires_ms)
    return Step(failed, Nak(reason), (Announce.FAILED, *_discard(conveyance)))


def _cancel(state: State, event: Cancel, terms: Terms) -> Step:
    match state:
        case Idle() | Failed():
            return Step(state, refusal(state))
        case Completing() if state.held is not None and state.held.until_ms > event.now_ms:
            return Step(state, refusal(state))
        case Floating() | Conveying() | Completing():
            failed = _fail(state.instance, state.conveyance, Reason.CANCELLED, event.now_ms, terms)
            return replace(failed, reply=Durable(0))
        case Done():
            until = event.now_ms + terms.expires_ms
            gone = Failed(state.instance + 1, state.message, Reason.CANCELLED, until)
            return Step(gone, Durable(0), (Remove(state.message),))
        case _:
            assert_never(state)


def _confirm(state: State, event: Confirm) -> Step:
    if not isinstance(state, Done):
        return Step(state, refusal(state))
    if event.offset > state.size:
        return Step(state, Nak(Reason.MISMATCH, state.confirmed))
    if event.offset < state.size:
        further = replace(state, confirmed=max(state.confirmed, event.offset))
        return Step(further, Durable(further.confirmed))
    if not event.verified:
        return Step(replace(state, confirmed=0), Nak(Reason.CHECKSUM))
    announced = () if state.acknowledged else (Announce.ACKNOWLEDGED,)
    return Step(replace(state, confirmed=state.size, acknowledged=True), Ack(state.size, state.checksum), announced)


def _tick(state: State, now_ms: int, terms: Terms) -> Step:
    nothing = Step(state, Durable(0))
    due = due_ms(state)
    if due is None or due > now_ms:
        return nothing
    match state:
        case Idle():
            return nothing
        case Floating():
            return _fail(state.instance, state.conveyance, Reason.EXPIRED, now_ms, terms)
        case Conveying():
            return Step(Floating(state.instance, state.conveyance, clean=False), nothing.reply)
        case Completing():
            if state.conveyance.expires_ms <= now_ms:
                return _fail(state.instance, state.conveyance, Reason.STORAGE, now_ms, terms)
            waiting = replace(state, held=None, retry_ms=now_ms + terms.lease_ms)
            return Step(waiting, nothing.reply, (Compose(),))
        case Done():
            gone = Failed(state.instance + 1, state.message, Reason.EXPIRED, now_ms + terms.expires_ms)
            return Step(gone, nothing.reply, (Remove(state.message),))
        case Failed():
            return Step(Idle(state.instance), nothing.reply)
        case _:
            assert_never(state)
