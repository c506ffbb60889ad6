"""The words of a transfer: states, events, replies and effects; :mod:`app.protocol.transfer` decides with them."""

from dataclasses import dataclass, field
from enum import Enum
from typing import TypeAlias, assert_never


class Reason(Enum):
    """Why not."""

    UNKNOWN = "unknown"
    LOCKED = "locked"
    FENCED = "fenced"
    BUSY = "busy"
    COMPLETE = "complete"
    MISMATCH = "mismatch"
    TOO_LARGE = "too-large"
    REMOTE_QUOTA = "remote-quota"
    TOTAL_QUOTA = "total-quota"
    EXPIRED = "expired"
    CANCELLED = "cancelled"
    CHECKSUM = "checksum"
    STORAGE = "storage"


@dataclass(frozen=True, slots=True)
class Terms:
    """What operators may set; times in milliseconds, sizes in bytes."""

    lease_ms: int = 10_000
    expires_ms: int = 86_400_000
    size_max: int = 10 * 1024**3
    remote_max: int = 1_000
    total_max: int = 100_000
    attempts_max: int = 5


@dataclass(frozen=True, slots=True)
class Message:
    """What is conveyed. ``name`` tells a repeated Begin from a new one; ``number`` rises with every message.

    ``size`` is None until the remote says it. ``partial``: only a part of a later concatenation; ``joined``: such a
    concatenation, whose segments are other messages. ``checksum``: what the remote expects of the whole, or empty.
    ``details`` belong to the shells.
    """

    name: str
    size: int | None
    number: int = 0
    partial: bool = False
    joined: bool = False
    checksum: str = ""
    details: dict[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Segment:
    """A stored piece, by its name in the storage; only the first ``length`` bytes count."""

    name: str
    length: int


Segments: TypeAlias = tuple[Segment, ...]


def length_of(segments: Segments) -> int:
    return sum(segment.length for segment in segments)


@dataclass(frozen=True, slots=True)
class Conveyance:
    """How far a message has come: all bytes of ``segments`` are durable. ``spoiled``: how often it began anew."""

    message: Message
    segments: Segments
    expires_ms: int
    spoiled: int = 0

    @property
    def offset(self) -> int:
        return length_of(self.segments)

    @property
    def whole(self) -> bool:
        return self.message.size == self.offset


@dataclass(frozen=True, slots=True)
class Held:
    """Who holds the lock, until when, and with which request it was granted."""

    worker: str
    until_ms: int
    request: str = ""


@dataclass(frozen=True, slots=True)
class Idle:
    """No message. A connection that nobody has heard of is idle with instance 0."""

    instance: int = 0


@dataclass(frozen=True, slots=True)
class Floating:
    """Nobody services it. ``clean``: the last holder said how far it had come."""

    instance: int
    conveyance: Conveyance
    clean: bool = True


@dataclass(frozen=True, slots=True)
class Conveying:
    """The holder receives. ``before`` counts the bytes of earlier instances."""

    instance: int
    conveyance: Conveyance
    held: Held
    before: int


@dataclass(frozen=True, slots=True)
class Completing:
    """All bytes are durable; the whole is being made of them. ``by``: the instance that brought the last byte.

    Without ``held`` the owner looks for somebody to do it from ``retry_ms`` on.
    """

    instance: int
    conveyance: Conveyance
    held: Held | None
    by: int
    retry_ms: int = 0


@dataclass(frozen=True, slots=True)
class Done:
    """The whole message is there. ``confirmed``: as far as a remote has it; ``expires_ms`` only for a part."""

    instance: int
    message: Message
    size: int
    checksum: str = ""
    confirmed: int = 0
    acknowledged: bool = False
    expires_ms: int | None = None


@dataclass(frozen=True, slots=True)
class Failed:
    """It will not become whole. Remembered until ``until_ms``."""

    instance: int
    message: Message
    reason: Reason
    until_ms: int


State: TypeAlias = Idle | Floating | Conveying | Completing | Done | Failed


@dataclass(frozen=True, slots=True)
class Begin:
    """A message is announced. ``of_remote`` and ``total`` count unfinished connections beside this one."""

    now_ms: int
    message: Message
    of_remote: int = 0
    total: int = 0
    segments: Segments = ()


@dataclass(frozen=True, slots=True)
class Lock:
    """A worker wants to service it. ``seen``: the instance whose holder was asked to let go."""

    now_ms: int
    worker: str
    request: str = ""
    seen: int | None = None


@dataclass(frozen=True, slots=True)
class Found:
    """The new holder compared the row with the storage before it wrote: this is what is durable there."""

    now_ms: int
    instance: int
    segments: Segments


@dataclass(frozen=True, slots=True)
class Progress:
    """The holder has made ``own`` durable, all that it wrote so far; or it only renews its lease. May tell the size."""

    now_ms: int
    instance: int
    own: Segments
    size: int | None = None


@dataclass(frozen=True, slots=True)
class Release:
    """The same, and the holder lets go. Not ``clean``: the storage failed, more of it may be there than it can say."""

    now_ms: int
    instance: int
    own: Segments
    size: int | None = None
    clean: bool = True


@dataclass(frozen=True, slots=True)
class Composed:
    """The holder made the whole, under its name."""

    now_ms: int
    instance: int
    checksum: str = ""


@dataclass(frozen=True, slots=True)
class Spoiled:
    """The holder cannot make the whole of what there is: it must be sent again."""

    now_ms: int
    instance: int
    reason: Reason


@dataclass(frozen=True, slots=True)
class Cancel:
    """The remote or an operator does not want it any more."""

    now_ms: int


@dataclass(frozen=True, slots=True)
class Confirm:
    """A remote has the bytes below ``offset``; ``verified``: and the checksum that it has of the whole is right."""

    now_ms: int
    offset: int
    verified: bool


@dataclass(frozen=True, slots=True)
class Tick:
    """Time has passed."""

    now_ms: int


Event: TypeAlias = Begin | Lock | Found | Progress | Release | Composed | Spoiled | Cancel | Confirm | Tick


@dataclass(frozen=True, slots=True)
class Granted:
    """The lock is the asker's, under this instance."""

    instance: int
    offset: int


@dataclass(frozen=True, slots=True)
class Durable:
    """Everything below ``offset`` is safe."""

    offset: int


@dataclass(frozen=True, slots=True)
class Ack:
    """The message is whole."""

    size: int
    checksum: str


@dataclass(frozen=True, slots=True)
class Nak:
    """Not so; go on from ``resume``. ``holder`` has the lock, if that is why."""

    reason: Reason
    resume: int = 0
    holder: str = ""


Reply: TypeAlias = Granted | Durable | Ack | Nak


@dataclass(frozen=True, slots=True)
class Discard:
    """These segments are needed no more."""

    segments: Segments


@dataclass(frozen=True, slots=True)
class Remove:
    """The whole message is to be deleted."""

    message: Message


@dataclass(frozen=True, slots=True)
class Compose:
    """Nobody makes the whole: do it."""


class Announce(Enum):
    """What is told to all, once."""

    COMPLETED = "transfer-completed"
    FAILED = "transfer-failed"
    ACKNOWLEDGED = "transfer-acknowledged"


Effect: TypeAlias = Discard | Remove | Compose | Announce


@dataclass(frozen=True, slots=True)
class Step:
    """The new state, the answer to whoever caused it, and what the shell does besides."""

    state: State
    reply: Reply
    effects: tuple[Effect, ...] = ()


def due_ms(state: State) -> int | None:
    """When a Tick changes something, or None."""
    match state:
        case Idle():
            return None
        case Floating():
            return state.conveyance.expires_ms
        case Conveying():
            return state.held.until_ms
        case Completing():
            return state.retry_ms if state.held is None else state.held.until_ms
        case Done():
            return state.expires_ms
        case Failed():
            return state.until_ms
        case _:
            assert_never(state)


def unfinished(state: State) -> bool:
    """Does it count against the quotas?"""
    return isinstance(state, Floating | Conveying | Completing)


def refusal(state: State, holder: str = "") -> Nak:
    """Say why what was asked cannot be."""
    match state:
        case Idle():
            return Nak(Reason.UNKNOWN)
        case Floating():
            return Nak(Reason.BUSY, state.conveyance.offset)
        case Conveying() | Completing():
            return Nak(Reason.LOCKED, state.conveyance.offset, holder or (state.held.worker if state.held else ""))
        case Done():
            return Nak(Reason.COMPLETE, state.size)
        case Failed():
            return Nak(state.reason)
        case _:
            assert_never(state)


def first_of(segments: Segments, length: int) -> Segments:
    """The segments that hold the first ``length`` bytes."""
    taken: list[Segment] = []
    for segment in segments:
        if length <= 0:
            break
        taken.append(segment)
        length -= segment.length
    return tuple(taken)
