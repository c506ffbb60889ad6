"""Emptying a server: it orders the migration of each of its tenants, some at a time, and sees them leave.

The server itself knows best which tenants it has, and reads in its own stream when one has gone. So nobody waits for
anybody's answer: at every look, those that are no longer here have moved; one that neither leaves nor moves for a
while is ordered again, ``TRIES`` times in all. Between looks the state is a row.

    look, look, ... ──nothing is left but what failed──▶ done
"""

from collections.abc import Sequence
from collections.abc import Set as AbstractSet
from dataclasses import dataclass, replace
from typing import TypeAlias

from app.protocol.backup_order import backup_order

AT_ONCE = 8
"""So many tenants are under way; the worker copies fewer at a time, so that the next one is always prepared."""

TRIES = 3
STILL_MS = 5_000
"""An order of which nothing was seen for so long has been refused, or has failed."""

ROUNDS = 3
"""How often the tenants are listed: new ones may come faster than they leave."""


@dataclass(frozen=True, slots=True)
class Ordered:
    """A tenant whose migration was ordered ``tries`` times; ``seen_ms``: when it was, or when it last moved."""

    tenant: str
    tries: int
    seen_ms: int


@dataclass(frozen=True, slots=True)
class Draining:
    """The row. ``rounds`` counts how often all tenants were listed and all of them left."""

    id: str
    router: int
    moved: int = 0
    failed: tuple[str, ...] = ()
    ordered: tuple[Ordered, ...] = ()
    rounds: int = 0


@dataclass(frozen=True, slots=True)
class Look:
    """What there is: tenants that live here, and those of them that are being moved.

    ``listed``: nobody else lives here, as was found out after the last of the others had left.
    """

    now_ms: int
    here: Sequence[str]
    moving: AbstractSet[str]
    listed: bool


@dataclass(frozen=True, slots=True)
class Migrate:
    """Order the migration of a tenant under this id."""

    tenant: str
    id: str


@dataclass(frozen=True, slots=True)
class List:
    """Find out who lives here."""


@dataclass(frozen=True, slots=True)
class Finish:
    """The server is empty, but for what could not be moved."""

    moved: int
    failed: tuple[str, ...]


Effect: TypeAlias = Migrate | List | Finish


@dataclass(frozen=True, slots=True)
class Step:
    """The new row, None when it is over, and what the shell does for it."""

    state: Draining | None
    effects: tuple[Effect, ...] = ()


def step(state: Draining, look: Look) -> Step:
    """Decide what follows from what is seen."""
    here = set(look.here)
    moved = state.moved
    failed = list(state.failed)
    ordered: list[Ordered] = []
    effects: list[Effect] = []
    for entry in state.ordered:
        if entry.tenant not in here:
            moved += 1
        elif entry.tenant in look.moving:
            ordered.append(replace(entry, seen_ms=look.now_ms))
        elif look.now_ms < entry.seen_ms + STILL_MS:
            ordered.append(entry)
        elif entry.tries < TRIES:
            ordered.append(Ordered(entry.tenant, entry.tries + 1, look.now_ms))
            effects.append(_migrate(state, ordered[-1]))
        else:
            failed.append(entry.tenant)
    known = {entry.tenant for entry in ordered} | set(failed)
    new = [tenant for tenant in look.here if tenant not in known]
    for tenant in new[: max(0, AT_ONCE - len(ordered))]:
        ordered.append(Ordered(tenant, 1, look.now_ms))
        effects.append(_migrate(state, ordered[-1]))
    after = replace(state, moved=moved, failed=tuple(failed), ordered=tuple(ordered))
    if ordered:
        return Step(after, tuple(effects))
    if look.listed or state.rounds >= ROUNDS:
        return Step(None, (Finish(moved, tuple(failed)),))
    return Step(replace(after, rounds=state.rounds + 1), (List(),))


def _migrate(state: Draining, ordered: Ordered) -> Migrate:
    return Migrate(ordered.tenant, f"{state.id}/{ordered.tenant}/{ordered.tries}")


def target_of(tenant: str, server: int, servers: int) -> int | None:
    """Where a tenant goes: to the next server of its backup order, so that they spread; None if there is no other."""
    return next((other for other in backup_order(tenant.encode(), servers) if other != server), None)
