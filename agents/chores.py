"""What a server does for tenants that nobody sees: it deletes rows of epochs that are over, and what was asked aside.

Chores are rows, so that the next host goes on with them. Somebody waits for an installation or a plan; nobody waits for
a sweep, so sweeps are a lane of their own, which takes its time. Those of one tenant do not meet: a sweep
waits for what was asked, and what was asked waits for a sweep that has begun.
"""

import time
from collections.abc import Iterator
from itertools import islice

import orjson

from agents.cells import ServerContext
from agents.parts import Parts
from agents.tenants import Tenants
from app.engine.crashpoints import passing
from app.engine.places import Place
from app.engine.table import Rows
from app.protocol import pacing
from app.protocol.control import KEYS, Measure, Measured, decode_control
from tables import handoffs, sessions, waiting

PAUSE_S = 0.02
"""How often something that was asked is looked at."""

COUNT_ROWS = 500

SWEEP_AFTER_S = 0.25
"""So long a sweep waits: it is mostly ordered just when its tenant begins to be served elsewhere."""


class Chores:
    """The chores of one server."""

    def __init__(self, context: ServerContext, place: Place, tenants: Tenants, parts: Parts) -> None:
        self._context = context
        self._server = place.number
        self._tenants = tenants
        self._parts = parts
        self._rows = place.rows[handoffs.NAME]
        self._sessions = place.rows[sessions.NAME]
        self._waiting = place.rows[waiting.NAME]
        self._asked: Iterator[None] | None = None
        self._sweep: Iterator[None] | None = None
        self._sweep_at: float | None = None
        self._swept = ""
        """The tenant of the sweep that has begun."""

    def on_time(self, now: float) -> float | None:
        """Do a little of what is due; return the Unix time of the next turn, None if nothing is to be done."""
        times = [self._do_asked(now), self._do_sweeps(now)]
        return min((at for at in times if at is not None), default=None)

    # -- what was asked -------------------------------------------------------------------------------------------

    def _do_asked(self, now: float) -> float | None:
        if self._asked is None:
            key = next((key for key in self._tenants.asked if _tenant(key) != self._swept), None)
            if key is None:
                return None
            self._asked = self._begin(key)
        if next(self._asked, self) is self:
            self._asked = None
        return now + PAUSE_S

    def _begin(self, key: bytes) -> Iterator[None]:
        return self._measure(key) if key.startswith(handoffs.MEASURE) else self._parts.install(key)

    def _measure(self, chore: bytes) -> Iterator[None]:
        """Count what a tenant has here, for the plan of a migration."""
        asked = decode_control(KEYS[Measure], self._tenants.chore(chore))
        assert isinstance(asked, Measure)
        prefix = sessions.key_of(asked.tenant, self._tenants.known(asked.tenant).epoch, "")
        counts: dict[str, int] = {sessions.NAME: 0, waiting.NAME: 0}
        size = 0
        for name, rows in ((sessions.NAME, self._sessions), (waiting.NAME, self._waiting)):
            for keys in _pages(rows, prefix, COUNT_ROWS):
                counts[name] += len(keys)
                size += sum(len(rows.get(key) or b"") for key in keys)
                yield
        found = (counts[sessions.NAME], counts[waiting.NAME], size)
        said = Measured(asked.tenant, asked.id, self._server, asked.target, *found)
        self._tenants.write(self._context.names.commands, asked.router, said)
        self._tenants.done(chore)

    # -- sweeps ---------------------------------------------------------------------------------------------------

    def _do_sweeps(self, now: float) -> float | None:
        if self._sweep is None:
            asked = {_tenant(key) for key in self._tenants.asked}
            key = next((key for key in self._tenants.sweeps if _tenant(key) not in asked), None)
            if key is None:
                self._sweep_at = None
                return None
            if self._sweep_at is None:
                self._sweep_at = now + SWEEP_AFTER_S
            if now >= self._sweep_at:
                self._swept = _tenant(key)
                self._sweep = self._begin_sweep(key)
        assert self._sweep_at is not None
        if self._sweep is not None and now >= self._sweep_at:
            begun = time.monotonic()
            if next(self._sweep, self) is self:
                self._sweep, self._swept = None, ""
            spent = time.monotonic() - begun
            self._sweep_at = now + spent + pacing.SWEEP.rest_s(spent)
        return self._sweep_at

    def _begin_sweep(self, key: bytes) -> Iterator[None]:
        tenant, epoch = handoffs.swept(key)
        if key.startswith(handoffs.UNMARK):
            return self._delete(key, [(self._rows, handoffs.marks_of(tenant, epoch))])
        return self._sweep_epoch(key, tenant, epoch)

    def _sweep_epoch(self, chore: bytes, tenant: str, epoch: int) -> Iterator[None]:
        """Delete all that is here of a tenant under an epoch that is over."""
        start = sessions.key_of(tenant, epoch, "")
        places = [(self._sessions, start), (self._waiting, start)]
        if self._context.movers:
            moved = bool(orjson.loads(self._tenants.chore(chore)).get("moved"))
            yield from self._parts.sweep(tenant, epoch, moved=moved)
            places.append((self._rows, handoffs.parts_of(tenant, epoch)))
        yield from self._delete(chore, places)

    def _delete(self, chore: bytes, places: list[tuple[Rows, bytes]]) -> Iterator[None]:
        """Delete all rows with these prefixes; nobody reads them any more."""
        for rows, prefix in places:
            for keys in _pages(rows, prefix, pacing.SWEEP.rows):
                for key in keys:
                    rows.delete(key)
                self._context.engine.unit.weight += len(keys)
                if keys:
                    passing("move-sweeps")
                yield
        self._tenants.done(chore)


def _tenant(chore: bytes) -> str:
    return chore.split(b"\0", 2)[1].decode()


def _pages(rows: Rows, prefix: bytes, most: int) -> Iterator[list[bytes]]:
    """Keys with a prefix, some at a time; nothing while they are still being sorted."""
    keys = rows.keys(prefix)
    while not keys.ready():
        yield []
    found = iter(keys)
    while page := list(islice(found, most)):
        yield page
