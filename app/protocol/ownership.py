"""What a worker holds of one place, from assignment to release.

A place is a router or a server: its partitions and the rows of its tables. Nothing of a place may be read, run or
committed but in `Running`, and the way there is always the same:

    Absent ──host──▶ Restoring ──rows complete──▶ Claiming ──claim committed──▶ Running
      │ ▲               ▲                            ▲  │                          │
   standby  none        │ host                       │  │ refused                  │ join begins
      ▼     │           │                            │  ▼                          ▼
    Tailing ┴───────────┘                            └─ host again, ───────────── Parted
                                                        nobody between

Rows kept over a rebalance are complete only if nobody else can have owned the place between: the worker held it in
the generation directly before (`Assigned.previous`), as the same member. In every other case the rows are brought up
to the changelog's high watermark again, from the position that they are known to hold.
"""

from dataclasses import dataclass
from enum import Enum
from typing import assert_never


class Role(Enum):
    """What the group wants of this worker for one place."""

    HOST = "host"
    STANDBY = "standby"
    NONE = "none"


@dataclass(frozen=True, slots=True)
class Absent:
    """Nothing is kept here."""


@dataclass(frozen=True, slots=True)
class Tailing:
    """A standby: the rows follow the changelog."""


@dataclass(frozen=True, slots=True)
class Restoring:
    """The former owner is fenced and the rows are being completed."""

    generation: int


@dataclass(frozen=True, slots=True)
class Claiming:
    """The rows are complete; a commit under this generation makes sure that nobody else owns the place."""

    generation: int


@dataclass(frozen=True, slots=True)
class Running:
    """The place is served."""

    generation: int


@dataclass(frozen=True, slots=True)
class Parted:
    """Served until the worker began to join; the rows are those of its last commit in `generation`."""

    generation: int


Holding = Absent | Tailing | Restoring | Claiming | Running | Parted


@dataclass(frozen=True, slots=True)
class Assigned:
    """The group's word for this place. ``previous`` is the generation of this member's last assignment, or None."""

    generation: int
    role: Role
    previous: int | None


@dataclass(frozen=True, slots=True)
class RestoreEnded:
    """The rows have reached the high watermark."""

    generation: int


@dataclass(frozen=True, slots=True)
class ClaimEnded:
    """The claim was answered."""

    generation: int
    accepted: bool


@dataclass(frozen=True, slots=True)
class JoinBegun:
    """The worker ended (or gave up) its unit and is about to join: from here on it owns nothing."""


@dataclass(frozen=True, slots=True)
class UnitAborted:
    """A unit did not commit, the generation still stands: what was in memory is read again."""


Event = Assigned | RestoreEnded | ClaimEnded | JoinBegun | UnitAborted


class Effect(Enum):
    """What the shell does, in this order."""

    CLOSE = "close"
    """Stop serving: forget everything in memory that is not a row."""
    TAIL = "tail"
    """Follow the changelog from the position of the rows."""
    DROP = "drop"
    """Stop following and forget the rows."""
    RESTORE = "restore"
    """Fence, read stable offsets, take the high watermark, complete the rows."""
    CLAIM = "claim"
    """Read stable offsets where a restore did not, commit them under the new generation."""
    OPEN = "open"
    """Start serving from the committed offsets."""


@dataclass(frozen=True, slots=True)
class Step:
    """The new holding, and what the shell does for it."""

    holding: Holding
    effects: tuple[Effect, ...] = ()


def step(holding: Holding, event: Event) -> Step:
    """Decide what follows for one place. A late answer of an earlier generation changes nothing."""
    match event:
        case Assigned():
            return _assigned(holding, event)
        case RestoreEnded(generation):
            if holding == Restoring(generation):
                return Step(Claiming(generation), (Effect.CLAIM,))
            return Step(holding)
        case ClaimEnded(generation, accepted):
            if holding != Claiming(generation):
                return Step(holding)
            return Step(Running(generation), (Effect.OPEN,)) if accepted else Step(holding)
        case JoinBegun():
            return _join_begun(holding)
        case UnitAborted():
            if isinstance(holding, Running):
                return Step(Claiming(holding.generation), (Effect.CLOSE, Effect.CLAIM))
            return Step(holding)
        case _:
            assert_never(event)


def _join_begun(holding: Holding) -> Step:
    match holding:
        case Running(generation):
            return Step(Parted(generation), (Effect.CLOSE,))
        case Restoring() | Claiming():
            # What was under way is void with the generation; the rows stay a sound place to go on from.
            return Step(Tailing(), (Effect.TAIL,))
        case Absent() | Tailing() | Parted():
            return Step(holding)
        case _:
            assert_never(holding)


def _assigned(holding: Holding, event: Assigned) -> Step:
    close = (Effect.CLOSE,) if isinstance(holding, Running) else ()
    match event.role:
        case Role.HOST:
            if holding == Parted(event.previous or 0) and event.previous == event.generation - 1:
                return Step(Claiming(event.generation), (Effect.CLAIM,))
            return Step(Restoring(event.generation), (*close, Effect.RESTORE))
        case Role.STANDBY:
            if isinstance(holding, Tailing):
                return Step(holding)
            return Step(Tailing(), (*close, Effect.TAIL))
        case Role.NONE:
            if isinstance(holding, Absent):
                return Step(holding)
            return Step(Absent(), (*close, Effect.DROP))
        case _:
            assert_never(event.role)
