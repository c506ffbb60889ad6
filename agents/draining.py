"""Emptying a server on command: the shell around :mod:`app.protocol.draining`."""

from collections.abc import Iterator

import orjson

from agents.cells import ServerContext
from agents.tenants import Tenants
from app.engine.places import Place
from app.protocol import draining
from app.protocol.control import Drain, Drained
from app.protocol.draining import Draining, Finish, List, Look, Migrate
from app.protocol.murmur2 import partition_of
from app.protocol.placement import home_of
from tables import handoffs, sessions, waiting

LOOK_S = 0.1
KEYS_AT_ONCE = 20_000


class Drains:
    """The drains of one server."""

    def __init__(self, context: ServerContext, place: Place, tenants: Tenants) -> None:
        self._context = context
        self._server = place.number
        self._tenants = tenants
        self._rows = place.rows[handoffs.NAME]
        self._tables = (place.rows[sessions.NAME], place.rows[waiting.NAME])
        self._states = {key: handoffs.decode_drain(row) for key, row in self._rows.scan(handoffs.DRAIN)}
        self._here: set[str] = set()
        self._listed = False
        self._listing: Iterator[None] | None = None
        self.due: float | None = None
        if self._states:
            self._list()

    def begin(self, asked: Drain) -> None:
        """Empty the server, unless this very command does already."""
        key = handoffs.drain_key(asked.id)
        if key not in self._states:
            self._keep(key, Draining(asked.id, asked.router))
            self._list()

    def _keep(self, key: bytes, state: Draining) -> None:
        self._states[key] = state
        self._rows.put(key, handoffs.encode_drain(state))

    def _list(self) -> None:
        """Find out who lives here, some keys at a time."""
        self._listed = False
        self._listing = self._walk()
        self.due = 0.0

    def _walk(self) -> Iterator[None]:
        for rows in self._tables:
            found = rows.keys(b"")
            while not found.ready():
                yield
            for number, key in enumerate(found):
                self._here.add(key.split(b"\0", 1)[0].decode())
                if number % KEYS_AT_ONCE == 0:
                    yield

    def on_time(self, now: float) -> None:
        """Look who has left, and order what is next."""
        if self._listing is not None:
            self.due = now
            try:
                next(self._listing)
                return
            except StopIteration:
                self._listing = None
                self._listed = True
        self._here = {tenant for tenant in self._here if self._lives(tenant)}
        moving = frozenset(tenant for tenant in self._here if self._tenants.known(tenant).shipping is not None)
        look = Look(int(now * 1000), sorted(self._here), moving, self._listed)
        for key, state in list(self._states.items()):
            self._follow(key, state, draining.step(state, look))
        # Who comes from now on was not seen.
        self._listed = False
        if self._listing is None:
            self.due = now + LOOK_S if self._states else None

    def _lives(self, tenant: str) -> bool:
        home = home_of(tenant.encode(), self._tenants.known(tenant).home, self._context.servers)
        return home == self._server

    def _follow(self, key: bytes, before: Draining, decided: draining.Step) -> None:
        if decided.state is None:
            del self._states[key]
            self._rows.delete(key)
        elif decided.state != before:
            self._keep(key, decided.state)
        for effect in decided.effects:
            match effect:
                case Migrate(tenant, command):
                    self._order(tenant, command)
                case List():
                    self._list()
                case Finish(moved, failed):
                    said = Drained(before.id, self._server, moved, failed)
                    self._tenants.write(self._context.names.commands, before.router, said)

    def _order(self, tenant: str, command: str) -> None:
        to = draining.target_of(tenant, self._server, self._context.servers)
        order = {"command": "migrate", "tenant": tenant, "to": self._server if to is None else to, "id": command}
        key = tenant.encode()
        where = self._context.engine.unit.output(self._context.names.commands, partition_of(key, self._context.routers))
        where.append((key, orjson.dumps(order)))
