"""What a worker can tell of views. Calls may come from any thread."""

from typing import NamedTuple

from agents.router import Router
from agents.server import Server
from app.engine.engine import Engine
from app.errors import UnavailableError
from app.protocol import affinity
from app.protocol.affinity import Whose
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


def whose(engine: Engine | None, server: int, tenant: str, session: str, home: int) -> Whose:
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
    return affinity.whose(state, tenant, session, home, server=server, routes=Routes(1))


def aligning(engine: Engine | None) -> dict[int, str]:
    """What the servers that are hosted here still do for a view: ``sends``, ``receives``."""
    found: dict[int, str] = {}
    for place in engine.places.running() if engine is not None else ():
        if isinstance(place.resident, Server):
            states = place.resident.alignment.states
            if any(isinstance(state, affinity.Sending) for state in states):
                found[place.number] = "sends"
            elif any(isinstance(state, affinity.Receiving) for state in states):
                found[place.number] = "receives"
    return found


def held(engine: Engine | None) -> int:
    """Tasks that are held by the servers that are hosted here."""
    residents = [place.resident for place in engine.places.running()] if engine is not None else []
    return sum(resident.alignment.held.total for resident in residents if isinstance(resident, Server))
