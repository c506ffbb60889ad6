"""Who is there: a client or server session as one manager knows it, from what it says and when.

    Away ──heard──▶ Present ──silent for a lease, or says goodbye──▶ Away

A process is told from another one of the same name by its incarnation, which grows: the younger one takes over, the
older one is told so. Times are milliseconds of the manager's monotonic clock, so that a clock that jumps moves nothing.
Which server session backs an exchange up is computed from the names alone, as for everything else in the cluster.
"""

from collections.abc import Collection
from dataclasses import dataclass
from functools import partial
from hashlib import sha256
from typing import TypeAlias, assert_never

from app.protocol.backup_order import score


@dataclass(frozen=True, slots=True)
class Away:
    """Not there. ``incarnation`` is that of the last process heard of; -1 if there was none."""

    incarnation: int = -1


@dataclass(frozen=True, slots=True)
class Present:
    """There, and last heard of at ``heard_ms``."""

    incarnation: int
    heard_ms: int


Presence: TypeAlias = Away | Present


@dataclass(frozen=True, slots=True)
class Heard:
    """A process said something."""

    incarnation: int
    now_ms: int


@dataclass(frozen=True, slots=True)
class Left:
    """A process says goodbye."""

    incarnation: int


@dataclass(frozen=True, slots=True)
class Looked:
    """Time has passed."""

    now_ms: int
    lease_ms: int


Event: TypeAlias = Heard | Left | Looked


@dataclass(frozen=True, slots=True)
class Arrived:
    """This process is the one that counts from now on."""

    incarnation: int


@dataclass(frozen=True, slots=True)
class Gone:
    """This process does not count any more; ``crashed``: it did not say so itself."""

    incarnation: int
    crashed: bool


@dataclass(frozen=True, slots=True)
class Silent:
    """It was not heard of for a lease: whoever started it should look after it."""

    incarnation: int


@dataclass(frozen=True, slots=True)
class Fence:
    """Tell an older process that a younger one, ``current``, has taken its place."""

    incarnation: int
    current: int


Effect: TypeAlias = Arrived | Gone | Silent | Fence


@dataclass(frozen=True, slots=True)
class Step:
    """The new presence, and what follows, in this order."""

    presence: Presence
    effects: tuple[Effect, ...] = ()


def step(presence: Presence, event: Event) -> Step:
    """Decide what follows for one session."""
    match event:
        case Heard():
            return _heard(presence, event)
        case Left(incarnation):
            if isinstance(presence, Present) and incarnation == presence.incarnation:
                return Step(Away(incarnation), (Gone(incarnation, crashed=False),))
            return Step(presence)
        case Looked(now_ms, lease_ms):
            if isinstance(presence, Present) and now_ms - presence.heard_ms > lease_ms:
                incarnation = presence.incarnation
                return Step(Away(incarnation), (Gone(incarnation, crashed=True), Silent(incarnation)))
            return Step(presence)
        case _:
            assert_never(event)


def _heard(presence: Presence, event: Heard) -> Step:
    incarnation = event.incarnation
    if incarnation < presence.incarnation:
        return Step(presence, (Fence(incarnation, presence.incarnation),))
    here = Present(incarnation, event.now_ms)
    if isinstance(presence, Away):
        return Step(here, (Arrived(incarnation),))
    if incarnation == presence.incarnation:
        return Step(here)
    old = presence.incarnation
    return Step(here, (Gone(old, crashed=True), Fence(old, incarnation), Arrived(incarnation)))


def choose(exchange: bytes, servers: Collection[str], prefer: str = "") -> str:
    """The server session for an exchange: the preferred one if it is there, else the first of the backup order.

    The best :func:`app.protocol.backup_order.score` wins; a session's number is the first 8 bytes,
    big-endian, of SHA-256 of its name (UTF-8). Empty if there is none.
    """
    if prefer in servers or not servers:
        return prefer if prefer in servers else ""
    numbers = {int.from_bytes(sha256(name.encode()).digest()[:8], "big"): name for name in servers}
    return numbers[max(numbers, key=partial(score, exchange))]
