"""What a worker holds of one place, from assignment to release.

A place is a router or a server: its partitions and the rows of its tables. Nothing of a place may be read, run or
committed but in `Running`, and the way there is always the same:

    Absent ──host──▶ Restoring ──rows complete──▶ Claiming ──claim committed──▶ Running ◀──host again,──┐
      │ ▲               ▲                            ▲                           │   │    nobody between │
   standby  none        │ host                       │ host again,               │   └──join begins──▶ Paused
      ▼     │           │                            │ nobody between            │ given up             │
    Tailing ┴───────────┘                            └──────────────── Parted ◀──┴──────────────────────┘

A rebalance leaves alone what stays. A worker that is about to join ends its unit and goes no further, but keeps what
it has in memory; if the group's next word gives it the place again, it goes on where it was. That is sound if nobody
else can have owned the place between: the worker held it in the generation directly before (`Assigned.previous`), as
the same member. It needs no claim: whatever was written under the generation before is in the log, and what the worker
writes next is refused unless it still is a member of the new one. Where the unit did not end in time, or its outcome
is not known, memory is given up, and the place is claimed again from the rows of the last commit. In every other case
the rows are brought up to the changelog's high watermark again, from the position that they are known to hold.
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
class Paused:
    """Served until the worker began to join; memory is as the last commit in `generation` left it."""

    generation: int


@dataclass(frozen=True, slots=True)
class Parted:
    """Served until it was given up; the rows are those of the last commit in `generation`."""

    generation: int


Holding = Absent | Tailing | Restoring | Claiming | Running | Paused | Parted


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
    """The worker's last unit is committed and it is about to join: until the group's word it does nothing."""


@dataclass(frozen=True, slots=True)
class GivenUp:
    """What is in memory may differ from the log, or nothing is owned any more: forget it."""


@dataclass(frozen=True, slots=True)
class UnitAborted:
    """A unit did not commit, the generation still stands: what was in memory is read again."""


Event = Assigned | RestoreEnded | ClaimEnded | JoinBegun | GivenUp | UnitAborted


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
            return Step(Paused(holding.generation)) if isinstance(holding, Running) else _void(holding)
        case GivenUp():
            return _given_up(holding) if isinstance(holding, Running | Paused) else _void(holding)
        case UnitAborted():
            return _aborted(holding)
        case _:
            assert_never(event)


def stays(holding: Holding, event: Assigned) -> bool:
    """Does a place that is served go on being served, untouched?"""
    return holding == Paused(event.generation - 1) and event.role is Role.HOST and _directly_before(event)


def _directly_before(event: Assigned) -> bool:
    return event.previous == event.generation - 1


def _given_up(holding: Running | Paused) -> Step:
    return Step(Parted(holding.generation), (Effect.CLOSE,))


def _aborted(holding: Holding) -> Step:
    match holding:
        case Running(generation):
            return Step(Claiming(generation), (Effect.CLOSE, Effect.CLAIM))
        case Paused():
            return _given_up(holding)
        case _:
            return Step(holding)


def _void(holding: Holding) -> Step:
    """What was under way is void with the generation; the rows stay a sound place to go on from."""
    if isinstance(holding, Restoring | Claiming):
        return Step(Tailing(), (Effect.TAIL,))
    return Step(holding)


def _assigned(holding: Holding, event: Assigned) -> Step:
    if stays(holding, event):
        return Step(Running(event.generation))
    close = (Effect.CLOSE,) if isinstance(holding, Running | Paused) else ()
    match event.role:
        case Role.HOST:
            if holding == Parted(event.generation - 1) and _directly_before(event):
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
