"""Rows that leave a server in a view: found by one walk over its keys, and sent a page at a time.

A walk begins when the markers of its routers have been read. From then on nothing is added under what they cover, so
that a list of keys stays complete; a row that is gone when it is its turn has left or was deleted.
"""

import time
from collections.abc import Callable, Iterator, Mapping
from typing import NamedTuple

from agents.cells import ServerContext
from app.engine.crashpoints import passing
from app.engine.places import Place
from app.engine.table import Rows
from app.protocol import chunks
from app.protocol.affinity import Change, Line, Sending, Stranger, Whose, may_leave
from app.protocol.alignment import Sent, Shipped
from app.protocol.chunks import SESSION, WAITING, HandOff, Item
from tables import sessions, waiting

PAGE_BYTES = 256 * 1024
PAGE_ROWS = 500
"""One page: a few milliseconds of work. A larger row goes alone."""

KEYS_AT_ONCE = 2_000


class Tenant(NamedTuple):
    """What a walk has to know of a tenant: its router and the epoch under which its sessions are served."""

    router: int
    epoch: bytes


class Leaving:
    """The walks of one server.

    Args:
        place_of: a tenant's router, its home, and the epoch under which its sessions are served here.
        whose: whose a session is.
    """

    def __init__(
        self,
        context: ServerContext,
        place: Place,
        *,
        place_of: Callable[[str], tuple[int, int, int]],
        whose: Callable[[str, str], Whose],
    ) -> None:
        self._context = context
        self._server = place.number
        self._tables = {SESSION: place.rows[sessions.NAME], WAITING: place.rows[waiting.NAME]}
        self._place_of = place_of
        self._whose = whose
        self._found: dict[tuple[int, str], list[bytes]] = {}
        self._walk: Iterator[None] | None = None

    def page(self, router: int, table: str, after: str, sending: Mapping[int, Sending], until: float) -> Shipped | None:
        """Send and delete the next rows behind ``after``; None while their keys are still being looked for.

        ``sending`` are the routers whose sessions leave now; ``until`` is on the monotonic clock.
        """
        keys = self._found.get((router, table))
        if keys is None:
            self._look(table, sending)
            return None
        rows = self._tables[table]
        leaving: dict[int, list[Item]] = {}
        size = looked = 0
        start = after.encode()
        # The last key is the first to go.
        while keys and looked < PAGE_ROWS:
            key = keys[-1]
            row = rows.get(key) if key > start else None
            if row is not None:
                name = key.decode()
                room = chunks.room([Item(table, name, row)])
                if size and size + room > min(PAGE_BYTES, self._context.limit):
                    break
                tenant, _, session = name.split("\0")[:3]
                whose = self._whose(tenant, session)
                if isinstance(whose, Stranger):
                    leaving.setdefault(whose.to, []).append(Item(table, name, row))
                    rows.delete(key)
                    size += room
            keys.pop()
            after = key.decode()
            looked += 1
            if time.monotonic() >= until:
                break
        state = sending[router]
        sent = tuple(self._send(router, state, to, tuple(items)) for to, items in leaving.items())
        end = not keys
        if end:
            del self._found[router, table]
        return Shipped(sent, after, end)

    def _send(self, router: int, state: Sending, to: int, items: tuple[Item, ...]) -> Sent:
        line = next((line for line in state.lines if line.target == to), Line(to))
        part = HandOff(state.change.epoch, router, self._server, line.chunks + 1, items)
        value = chunks.encode_hand_off(part)
        context = self._context
        unit = context.engine.unit
        unit.output(context.names.handoffs, to).append((chunks.HAND_OFF_KEY, value))
        unit.weight += len(items)
        unit.size += len(value)
        context.rehomed.rows_out += len(items)
        passing("view-ships")
        return Sent(to, len(items), sum(chunks.fingerprint(i.table, i.name, i.row or b"") for i in items))

    # -- the walk -------------------------------------------------------------------------------------------------

    def _look(self, table: str, sending: Mapping[int, Sending]) -> None:
        """Look for keys a little, for all routers whose sessions leave and that have none yet."""
        if self._walk is None:
            changes = {router: state.change for router, state in sending.items() if (router, table) not in self._found}
            self._walk = self._list(table, changes)
        if next(self._walk, self) is self:
            self._walk = None

    def _list(self, table: str, changes: Mapping[int, Change]) -> Iterator[None]:
        rows: Rows = self._tables[table]
        keys = rows.keys(b"")
        while not keys.ready():
            yield
        found: dict[int, list[bytes]] = {router: [] for router in changes}
        tenants: dict[bytes, Tenant | None] = {}
        for number, key in enumerate(keys):
            name, epoch, _ = key.split(b"\0", 2)
            if name not in tenants:
                tenants[name] = self._leaver(name.decode(), changes)
            tenant = tenants[name]
            # Rows of other epochs are no sessions yet, or none any more.
            if tenant is not None and epoch == tenant.epoch:
                found[tenant.router].append(key)
            if number % KEYS_AT_ONCE == KEYS_AT_ONCE - 1:
                yield
        for router, mine in found.items():
            mine.reverse()
            self._found[router, table] = mine

    def _leaver(self, tenant: str, changes: Mapping[int, Change]) -> Tenant | None:
        """The tenant, if sessions of it may leave."""
        router, home, epoch = self._place_of(tenant)
        change = changes.get(router)
        return Tenant(router, b"%d" % epoch) if change is not None and may_leave(change, home) else None

    def forget(self, router: int) -> None:
        """Nothing of the router's leaves any more."""
        for table in self._tables:
            self._found.pop((router, table), None)
