"""The states of a tenant at its router, as rows keep them, and what is announced about a move.

:mod:`app.protocol.migration` decides; these are its nouns.
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, TypeAlias

from app.protocol.parking import Lot

PAST_MAX = 20
"""Moves of a tenant that its row remembers."""


@dataclass(frozen=True, slots=True)
class Past:
    """One move of the history; ``reason`` says why it failed, None if it did not."""

    epoch: int
    origin: int
    to: int
    at_ms: int
    id: str
    reason: str | None = None


@dataclass(frozen=True, slots=True)
class Placement:
    """Where a tenant lives. ``epoch`` is that of its live rows, ``tried`` the highest one that was ever used."""

    home: int
    epoch: int = 0
    tried: int = 0
    history: tuple[Past, ...] = ()

    def with_past(self, past: Past) -> "Placement":
        return replace(self, history=(*self.history, past)[-PAST_MAX:])

    @property
    def before(self) -> int | None:
        """Where the last move that succeeded came from; None if it is not remembered."""
        return next((past.origin for past in reversed(self.history) if past.reason is None), None)


@dataclass(frozen=True, slots=True)
class Move:
    """A move under way: what was ordered. Times are milliseconds; ``max_pause_ms`` is None without a limit."""

    id: str
    origin: int
    to: int
    sources: tuple[int, ...]
    timeout_ms: int
    max_pause_ms: int | None
    delay_ms: int
    offline: bool
    ordered_ms: int

    def exposed(self, changed: frozenset[int]) -> bool:
        """Does a view that changes these servers touch the move?

        Where the home is down and its backups are the sources, every change moves sessions between them.
        """
        return self.sources != (self.origin,) or bool(changed & {self.origin, self.to})


@dataclass(frozen=True, slots=True)
class Outcome:
    """How a move has ended. ``parts``: of each source, its number, rows and checksum, as left and as arrived."""

    reason: str | None
    rows: int
    bytes: int
    pause_ms: int
    parts: tuple[tuple[int, int, str], ...]


class _Tenant:
    """What every state has."""

    __slots__ = ()
    placement: Placement

    @property
    def home(self) -> int:
        """The tenant's server when nothing is wrong: the source until Commit, the target from then on."""
        return self.placement.home


@dataclass(frozen=True, slots=True)
class Settled(_Tenant):
    """Nothing is under way."""

    placement: Placement


@dataclass(frozen=True, slots=True)
class Copying(_Tenant):
    """The sources copy; ``ready`` are those that have told so. ``progress_ms``: when something moved last."""

    placement: Placement
    move: Move
    ready: tuple[int, ...]
    progress_ms: int


@dataclass(frozen=True, slots=True)
class Cutting(_Tenant):
    """The cut is on its way or done: tasks are parked."""

    placement: Placement
    move: Move
    lot: Lot
    cut_ms: int
    progress_ms: int


@dataclass(frozen=True, slots=True)
class Releasing(_Tenant):
    """The move has ended, well or not; parked tasks leave."""

    placement: Placement
    move: Move
    lot: Lot
    outcome: Outcome


State: TypeAlias = Settled | Copying | Cutting | Releasing


@dataclass(frozen=True, slots=True)
class Order:
    """A ``migrate`` command; with ``undo``, ``to`` is None and the last move is taken back."""

    id: str
    to: int | None
    timeout_ms: int
    delay_ms: int
    max_pause_ms: int | None = None
    offline: bool = False
    from_backups: bool = False
    dry_run: bool = False
    undo: bool = False


@dataclass(frozen=True, slots=True)
class Moment:
    """What a decision depends on besides the row: whose it is, the router's adopted view, the time.

    ``closed``: every server has closed the view (rule L3).
    """

    tenant: str
    router: int
    servers: int
    up: frozenset[int]
    closed: bool
    now_ms: int


@dataclass(frozen=True, slots=True)
class Forward:
    """Send the task to its server."""


@dataclass(frozen=True, slots=True)
class Announce:
    """Write an event; ``final``: the one end of the command ``id``, to be repeated if the command is."""

    event: str
    id: str | None
    final: bool
    fields: Mapping[str, Any]


def rejection(placement: Placement, order: Order, to: int, moment: Moment) -> str | None:
    """Why an order is not carried out, if it is not."""
    if not 0 <= to < moment.servers:
        return "unknown-server"
    if to == placement.home:
        return "same-server"
    if not moment.closed:
        return "view-change-under-way"
    if to not in moment.up or (placement.home not in moment.up and not order.from_backups):
        return "server-down"
    return None


def reject(command: str, reason: str, moment: Moment) -> Announce:
    """The end of a command that is not carried out."""
    return Announce("command-rejected", command, True, {"tenant": moment.tenant, "reason": reason})


def plan(
    command: str,
    home: int,
    to: int,
    moment: Moment,
    *,
    blocked: tuple[str, ...] = (),
    sizes: tuple[int, int, int] | None = None,
) -> Announce:
    """The answer to a dry run: sessions, waiting tasks and bytes at the source, and what would prevent the move."""
    fields: dict[str, Any] = {"tenant": moment.tenant, "from": home, "to": to, "blocked": list(blocked)}
    fields |= dict(zip(("sessions", "waiting", "bytes"), sizes or (None, None, None), strict=True))
    return Announce("migration-plan", command, True, fields)


def announce_start(move: Move, placement: Placement, moment: Moment) -> Announce:
    fields = {"tenant": moment.tenant, "from": move.origin, "to": move.to, "epoch": placement.tried}
    return Announce("migration-started", move.id, False, {**fields, "sources": list(move.sources)})


def announce_phase(phase: str, placement: Placement, moment: Moment) -> Announce:
    fields = {"tenant": moment.tenant, "epoch": placement.tried, "phase": phase}
    return Announce("migration-phase", None, False, fields)


def announce_end(state: Releasing, moment: Moment) -> Announce:
    """The final event of a migration, with its certificate: what left each source is what arrived."""
    move, outcome, lot = state.move, state.outcome, state.lot
    fields = {
        "tenant": moment.tenant,
        "from": move.origin,
        "to": move.to,
        "epoch": state.placement.tried,
        "parked": lot.parked,
        "redelayed": lot.redelayed,
        "rows": outcome.rows,
        "bytes": outcome.bytes,
        "pause_ms": outcome.pause_ms,
        "reason": outcome.reason,
    }
    if outcome.reason is None:
        fields["certificate"] = [
            {"source": source, "target": move.to, "rows": rows, "checksum": checksum}
            for source, rows, checksum in outcome.parts
        ]
        return Announce("migration-succeeded", move.id, True, fields)
    return Announce("migration-failed", move.id, True, fields)
