"""What a worker can tell of tenants: where they live, and what moves. Calls may come from any thread."""

from collections.abc import Iterator, Mapping
from datetime import UTC, datetime
from typing import Any, TypeAlias

from agents.router import Router
from agents.server import Server
from app.engine.engine import Engine
from app.protocol.moves import Copying, Cutting, Releasing, Settled, State
from app.protocol.placement import home_of
from tables import handoffs, placements, sessions

Copied: TypeAlias = Mapping[int, tuple[int, int]]
"""Rows and bytes that have left each source of a move."""

WORDS: dict[type, str] = {Settled: "settled", Copying: "copying", Cutting: "cutting", Releasing: "releasing"}


def placed(engine: Engine | None, tenant: str) -> tuple[int | None, int]:
    """Home and epoch of a tenant as this worker's rows tell; None while it was never moved.

    Every server is told of every move, so whoever hosts or follows one knows, a moment later.
    """
    best: tuple[int | None, int] = (None, 0)
    for place in [] if engine is None else engine.places.all.values():
        rows = place.rows.get(handoffs.NAME)
        row = rows.peek(handoffs.tenant_key(tenant)) if rows is not None else None
        if row is not None:
            known = handoffs.decode(row)
            if known.home is not None and known.epoch > best[1]:
                best = (known.home, known.epoch)
        moved = place.rows.get(placements.NAME)
        row = moved.peek(tenant.encode()) if moved is not None else None
        if row is not None:
            placement = placements.decode(row).placement
            if placement.epoch > best[1]:
                best = (placement.home, placement.epoch)
    return best


def live_epoch(engine: Engine, server: int, tenant: str) -> int:
    """Under which epoch a server that is hosted here serves a tenant."""
    row = engine.places.all[f"server-{server}"].rows[handoffs.NAME].peek(handoffs.tenant_key(tenant))
    return handoffs.decode(row).epoch if row is not None else 0


def _moving(engine: Engine | None) -> Iterator[tuple[str, State, Copied]]:
    for place in engine.places.running() if engine is not None else ():
        if isinstance(place.resident, Router):
            # A copy is one step of the interpreter, so that the engine's thread cannot disturb it.
            for key, state in place.resident.gates.moving.copy().items():
                yield key.decode(), state, place.resident.gates.copied.get(key, {})


def migrations(engine: Engine | None) -> list[dict[str, Any]]:
    """The migrations of the routers that are hosted here."""
    found = sorted(_moving(engine), key=lambda entry: entry[0])
    return [{"tenant": tenant, **migration(state, copied)} for tenant, state, copied in found]


def migration(state: State, copied: Copied) -> dict[str, Any]:
    """A move under way; ``copied``: what its sources have told."""
    assert not isinstance(state, Settled)
    move = state.move
    lot = state.lot if isinstance(state, Cutting | Releasing) else None
    return {
        "from": move.origin,
        "to": move.to,
        "state": WORDS[type(state)],
        "id": move.id,
        "epoch": state.placement.tried,
        "parked": 0 if lot is None else lot.parked - lot.released,
        "redelayed": 0 if lot is None else lot.redelayed,
        "rows": sum(rows for rows, _ in copied.values()),
        "bytes": sum(size for _, size in copied.values()),
        "started": _iso(move.ordered_ms),
    }


def parked(engine: Engine | None) -> int:
    """Tasks that are parked by the routers that are hosted here."""
    return sum(entry["parked"] for entry in migrations(engine))


def parked_s(engine: Engine | None, now: float) -> float:
    """For how many seconds tasks have been parked of the tenant that stands still longest; ``now``: Unix time."""
    cuts = [cut_ms for _, state, _ in _moving(engine) if (cut_ms := _parked_since(state)) is not None]
    return max(0.0, now - min(cuts) / 1000) if cuts else 0.0


def _parked_since(state: State) -> int | None:
    """When the tenant was cut, if it has parked tasks. Its first task is parked in the moment in which it arrives."""
    match state:
        case Cutting(_, _, lot, cut_ms, _) if not lot.empty:
            return cut_ms
        case Releasing(placement, _, lot, outcome) if not lot.empty:
            return placement.history[-1].at_ms - outcome.pause_ms
        case _:
            return None


def read(engine: Engine, router: int, servers: int, tenant: str) -> dict[str, Any]:
    """A tenant's row at its router, which is hosted here."""
    place = engine.places.all[f"router-{router}"]
    row = place.rows[placements.NAME].peek(tenant.encode())
    copied = place.resident.gates.copied.get(tenant.encode(), {}) if isinstance(place.resident, Router) else {}
    state = placements.decode(row) if row is not None else None
    if state is None:
        home = home_of(tenant.encode(), None, servers)
        return {"home": home, "epoch": 0, "state": "settled", "migration": None, "history": []}
    return {
        "home": state.home,
        "epoch": state.placement.epoch,
        "state": WORDS[type(state)],
        "migration": None if isinstance(state, Settled) else migration(state, copied),
        "history": [
            {"epoch": p.epoch, "from": p.origin, "to": p.to, "at": _iso(p.at_ms), "id": p.id, "reason": p.reason}
            for p in state.placement.history
        ],
    }


def listed(engine: Engine | None, servers: int) -> list[dict[str, Any]]:
    """Tenants that were moved by routers that are hosted here, and those with sessions at servers that are."""
    found: dict[str, dict[str, Any]] = {}
    for place in engine.places.running() if engine is not None else ():
        if isinstance(place.resident, Router):
            for key, row in place.rows[placements.NAME].store.scan(b""):
                state = placements.decode(row)
                tenant = key.decode()
                found[tenant] = _entry(tenant, state.home, WORDS[type(state)], state.placement.epoch)
    for place in engine.places.running() if engine is not None else ():
        if isinstance(place.resident, Server):
            for tenant in {key.split(b"\0", 1)[0].decode() for key in place.rows[sessions.NAME].store.keys(b"", b"")}:
                home, epoch = placed(engine, tenant)
                home = home_of(tenant.encode(), None, servers) if home is None else home
                found.setdefault(tenant, _entry(tenant, home, "settled", epoch))
    return [found[tenant] for tenant in sorted(found)]


def _entry(tenant: str, home: int, state: str, epoch: int) -> dict[str, Any]:
    return {"tenant": tenant, "home": home, "state": state, "epoch": epoch}


def _iso(at_ms: int) -> str:
    return datetime.fromtimestamp(at_ms / 1000, UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")
