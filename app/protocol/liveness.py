"""Is another worker dead? The core of failure detection between workers.

    Unknown ──Beat──▶ Alive ──silence──▶ Dead
                       │ ▲                 ▲
                  Closed │ Beat            │
                       ▼ │                 │
                      Broken ──Refused, or silence
    any ──Left──▶ Departed

A closed connection that cannot be opened again is proof of a dead process; silence is proof of a frozen or unplugged
one. Who was never heard of is never declared dead: its address may simply be out of reach from here, and the broker's
session timeout will tell. To declare a live worker dead is harmless, because its commits are refused from then on, but
costs a rebalance; so one late beat is not enough. The shell opens a channel that has ended again by itself,
until its worker is dead.
"""

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import TypeAlias, assert_never

BEAT_S = 0.25
"""Between two beats."""

SILENCE_S = 2.0
"""So long without a beat (eight of them) means dead."""

STALL_S = 1.0
"""If the observer's own clock jumps by so much between two ticks, it was itself frozen or starved: nobody else was."""


@dataclass(frozen=True, slots=True)
class Unknown:
    """Nothing was heard of it yet."""


@dataclass(frozen=True, slots=True)
class Alive:
    """``heard``: when it beat last."""

    heard: float


@dataclass(frozen=True, slots=True)
class Broken:
    """The connection was closed; ``heard``: when it beat last."""

    heard: float


@dataclass(frozen=True, slots=True)
class Dead:
    """Declared dead."""


@dataclass(frozen=True, slots=True)
class Departed:
    """It said that it leaves."""


Peer: TypeAlias = Unknown | Alive | Broken | Dead | Departed


@dataclass(frozen=True, slots=True)
class Beat:
    """A beat came."""

    at: float


@dataclass(frozen=True, slots=True)
class Closed:
    """The connection ended without a word."""


@dataclass(frozen=True, slots=True)
class Refused:
    """Nobody listens at its address any more, or another incarnation does."""


@dataclass(frozen=True, slots=True)
class Left:
    """It leaves the group in good order."""


@dataclass(frozen=True, slots=True)
class Tick:
    """Time passes; ``since`` is when the last tick was."""

    at: float
    since: float


Event: TypeAlias = Beat | Closed | Refused | Left | Tick


@dataclass(frozen=True, slots=True)
class Step:
    """The new state, and whether the shell is to declare the worker dead, which happens once."""

    peer: Peer
    declare_dead: bool = False


def step(peer: Peer, event: Event) -> Step:
    """Decide what follows. Times are seconds of one monotonic clock."""
    match peer:
        case Unknown():
            return _unknown(peer, event)
        case Alive(heard) | Broken(heard):
            return _known(peer, heard, event)
        case Dead() | Departed():
            return Step(peer)
        case _:
            assert_never(peer)


def _unknown(peer: Unknown, event: Event) -> Step:
    match event:
        case Beat(at):
            return Step(Alive(at))
        case Left():
            return Step(Departed())
        case Closed() | Refused() | Tick():
            return Step(peer)
        case _:
            assert_never(event)


def _known(peer: Alive | Broken, heard: float, event: Event) -> Step:
    match event:
        case Beat(at):
            return Step(Alive(at))
        case Closed():
            return Step(Broken(heard))
        case Refused():
            return Step(Dead(), declare_dead=True)
        case Left():
            return Step(Departed())
        case Tick(at, since):
            return _tick(peer, heard, at, since)
        case _:
            assert_never(event)


def _tick(peer: Alive | Broken, heard: float, at: float, since: float) -> Step:
    if at - since >= STALL_S:
        return Step(type(peer)(at))
    if at - heard >= SILENCE_S:
        return Step(Dead(), declare_dead=True)
    return Step(peer)


def evictor(leader: str, members: Collection[str], dead: Collection[str]) -> str | None:
    """Who removes the dead from the group: its leader, or, if that is dead, the first of the others by name."""
    order: Sequence[str] = [leader, *sorted(name for name in members if name != leader)]
    return next((name for name in order if name in members and name not in dead), None)
