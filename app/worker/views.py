"""What a worker can tell of views. Calls may come from any thread."""

from collections.abc import Callable
from typing import Any, NamedTuple

from agents.router import Router
from agents.server import Server
from app.engine.engine import Engine
from app.errors import UnavailableError
from app.protocol import affinity
from app.protocol.affinity import Receiving, Sending, Whose
from app.protocol.murmur2 import partition_of
from app.protocol.placement import Routes
from tables import views


class Known(NamedTuple):
    """The last view that a worker has heard of; ``closed``: its routers say that every server has closed it."""

    epoch: int
    up: frozenset[int]
    closed: bool


def known(engine: Engine | None, servers: int) -> Known:
    """From what is hosted and followed here: routers know the view that they send under, servers what they have read.

    It may be old: whoever receives what is sent by it knows better.
    """
    best = Known(0, frozenset(range(servers)), closed=True)
    for place in [] if engine is None else engine.places.all.values():
        resident = place.resident
        if isinstance(resident, Router):
            adopted = resident.views.adopted
            best = _later(best, Known(adopted.epoch, adopted.up(servers), adopted.closed))
        elif isinstance(resident, Server):
            for state in resident.alignment.states:
                best = _later(best, Known(state.change.epoch, state.change.after, closed=False))
        elif views.NAME in place.rows:
            row = place.rows[views.NAME].peek(views.ADOPTED)
            if row is not None:
                adopted = views.decode_adopted(row)
                best = _later(best, Known(adopted.epoch, adopted.up(servers), adopted.closed))
    return best


def _later(one: Known, other: Known) -> Known:
    return max(one, other, key=lambda view: (view.epoch, view.closed))


def whose(engine: Engine | None, server: int, tenant: str, session: str) -> Whose:
    """Whose is a session, as the server's own stream has told?

    Raises:
        UnavailableError: the server is not here, or is still being restored.
    """
    place = engine.places.all[f"server-{server}"] if engine is not None else None
    resident = place.resident if place is not None else None
    if not isinstance(resident, Server) or place is None or not place.running:
        raise UnavailableError(f"server {server} is not served here now", retry_after_s=0.5)
    states = resident.alignment.states
    state = states[partition_of(tenant.encode(), len(states))]
    home = resident.tenants.home(tenant)
    return affinity.whose(state, tenant, session, home, server=server, routes=Routes(1))


def here(engine: Engine | None) -> dict[int, dict[str, Any]]:
    """What the servers that are hosted here know of views: the last one, what they still do for it, tasks held."""
    found: dict[int, dict[str, Any]] = {}
    for place in engine.places.running() if engine is not None else ():
        if isinstance(place.resident, Server):
            alignment = place.resident.alignment
            kinds = {type(state) for state in alignment.states}
            doing = "sends" if Sending in kinds else "receives" if Receiving in kinds else None
            epoch = max(state.change.epoch for state in alignment.states)
            found[place.number] = {"view": epoch, "aligning": doing, "held": alignment.held.total}
    return found


def steward(engine: Engine | None) -> Callable[[int], dict[str, Any]]:
    """What the steward knows of a server, if he is hosted here: home worker, failed by an operator."""
    for place in engine.places.running() if engine is not None else ():
        if isinstance(place.resident, Router) and place.resident.steward is not None:
            state = place.resident.steward.known
            return lambda number: {"home": state.homes.homes[number] or None, "sticky": number in state.sticky}
    return lambda number: {"home": None, "sticky": None}


def held(engine: Engine | None) -> int:
    """Tasks that are held by the servers that are hosted here."""
    residents = [place.resident for place in engine.places.running()] if engine is not None else []
    return sum(resident.alignment.held.total for resident in residents if isinstance(resident, Server))
