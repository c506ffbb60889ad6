"""What a server does for migrations between its batches: it copies tenants that leave, and cleans up behind them.

A little at a time, so that nobody's tasks wait for it. A tenant that is frozen comes first and without rests: it
stands still. Everything that is to be done is a row, so that the next host goes on with it.
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
from app.engine.stores.order import Keys
from app.engine.table import Rows
from app.protocol import chunks, shipping
from app.protocol.chunks import SESSION, WAITING, Chunk, Item
from app.protocol.control import KEYS, Measure, Measured, decode_control
from app.protocol.shipping import Conclude, Frozen, ShipMarked, Shipped, Shipping, ShipSessions, ShipWaiting
from tables import handoffs, sessions, waiting

PAGE_BYTES = 64 * 1024
PAGE_ROWS = 500
"""One chunk: about two milliseconds of work here, and as much at the target. A larger row goes alone."""

COPIES_MAX = 4
"""So many tenants are copied at once from the servers of a worker; others wait for their turn."""

TURN_S = 0.002
"""So long the server works in the background before it looks at its stream again."""

REST = 4.0
"""After that it rests so many times as long."""

FROZEN_TURN_S = 0.05
TICK_S = 1.0
LOOK_S = 0.1
"""How often a server that copies looks for sessions that were marked since, and for slots that became free."""

LAG = 1_000
PATIENCE_S = 10.0
"""The cut waits until no more records than this are before it in the stream, but not for ever."""

CHORE_ROWS = 500
CHORE_PAUSE_S = 0.02


class _Walk:
    """The keys of one table under a tenant's epoch, in their order; the next one can be looked at."""

    def __init__(self, table: str, rows: Rows, prefix: bytes, after: str) -> None:
        self.table = table
        self._prefix = prefix
        self._keys: Keys = rows.keys(prefix, prefix + after.encode() if after else b"")
        self._found: Iterator[bytes] | None = None
        self.name: str | None = None
        """The next row's; None where the walk is over."""

    def ready(self) -> bool:
        if self._found is None and self._keys.ready():
            self._found = iter(self._keys)
            self.advance()
        return self._found is not None

    def advance(self) -> None:
        assert self._found is not None
        key = next(self._found, None)
        self.name = None if key is None else key[len(self._prefix) :].decode()


class Copying:
    """The background of one server's migrations."""

    def __init__(self, context: ServerContext, place: Place) -> None:
        self._context = context
        self._server = place.number
        self._rows = place.rows[handoffs.NAME]
        self._sessions = place.rows[sessions.NAME]
        self._waiting = place.rows[waiting.NAME]
        self._walks: dict[str, _Walk] = {}
        self._lagging: dict[str, float] = {}
        self._chore: Iterator[None] | None = None
        self._tick_at = 0.0
        self.due: float | None = None
        """Unix time at which :meth:`on_time` is wanted."""
        self.tenants: Tenants
        self.parts: Parts

    # -- time -----------------------------------------------------------------------------------------------------

    def stir(self) -> None:
        """Something has changed: look soon."""
        self.due = 0.0

    def on_time(self, now: float) -> None:
        """Do a little of what is to be done, and say when to come again."""
        if self._context.trials:
            # Somebody's task is performed alone: nothing may be begun beside it.
            self.due = now + CHORE_PAUSE_S
            return
        begun = time.monotonic()
        copies = self.tenants.shipping()
        self._keep_in_step({tenant for tenant, _ in copies})
        for tenant, state in copies:
            if isinstance(state, Frozen):
                self._ship(tenant, begun + FROZEN_TURN_S)
        served = [tenant for tenant, state in copies if not isinstance(state, Frozen) and self._may_copy(tenant)]
        until = time.monotonic() + TURN_S
        # Each gets a page, whatever the one before it has used up.
        worked = [tenant for tenant in served if self._ship(tenant, until)]
        chores = self._do_chores()
        if copies and now >= self._tick_at:
            self._tick_at = now + TICK_S
            for tenant, state in copies:
                busy = not isinstance(state, Frozen) and (tenant not in served or tenant in self._lagging)
                self.tenants.feed(tenant, shipping.Tick(busy=busy))
        self.due = self._alarm(now, time.monotonic() - begun, worked=bool(worked), chores=chores)

    def _alarm(self, now: float, spent: float, *, worked: bool, chores: bool) -> float | None:
        copies = self.tenants.shipping()
        if any(isinstance(state, Frozen) and self._ahead(tenant, state) for tenant, state in copies):
            return now + CHORE_PAUSE_S if self._context.engine.unit.full else now
        if worked:
            return now + spent * (1 + REST)
        if chores:
            return now + CHORE_PAUSE_S
        return now + LOOK_S if copies else None

    def _keep_in_step(self, tenants: set[str]) -> None:
        """Forget what belongs to copies that are over."""
        for tenant in self._walks.keys() - tenants:
            del self._walks[tenant]
        for tenant in self._lagging.keys() - tenants:
            del self._lagging[tenant]
        slots = self._context.copying
        slots -= {slot for slot in slots if slot[0] == self._server and slot[1] not in tenants}

    def _may_copy(self, tenant: str) -> bool:
        """Is one of the worker's slots this tenant's?"""
        slots = self._context.copying
        slot = (self._server, tenant)
        if slot not in slots and len(slots) < COPIES_MAX:
            slots.add(slot)
        return slot in slots

    def close(self) -> None:
        """Give the slots back."""
        self._keep_in_step(set())
        self.parts.close()

    # -- copies ---------------------------------------------------------------------------------------------------

    def _ahead(self, tenant: str, state: Shipping) -> shipping.Task | None:
        return shipping.ahead(state, len(self.tenants.marked[tenant]))

    def _ship(self, tenant: str, until: float) -> bool:
        """Ship pages until then; True if there was anything to do."""
        worked = False
        while not self._context.engine.unit.full:
            state = self.tenants.known(tenant).shipping
            task = None if state is None else self._ahead(tenant, state)
            if state is None or task is None or not self._one(tenant, state, task):
                return worked
            worked = True
            if time.monotonic() >= until:
                return True
        return worked

    def _one(self, tenant: str, state: Shipping, task: shipping.Task) -> bool:
        """One page, or the end; False if it has to wait."""
        match task:
            case ShipSessions(after):
                self._page(tenant, state, SESSION, self._sessions, after)
            case ShipWaiting(after):
                self._page(tenant, state, WAITING, self._waiting, after)
            case ShipMarked():
                self._marked_page(tenant, state)
            case Conclude():
                if not isinstance(state, Frozen) and self._lags(tenant):
                    return False
                if isinstance(state, Frozen) and self._context.movers:
                    return self._export(tenant, state)
                self.tenants.feed(tenant, shipping.Concluded())
        return True

    def _lags(self, tenant: str) -> bool:
        """Is much before the cut in the stream? The tenant would stand still for as long as that takes."""
        behind = self._context.engine.janitor.lags.get((self._context.names.work, self._server), 0)
        if behind < LAG:
            self._lagging.pop(tenant, None)
            return False
        now = time.monotonic()
        return now < self._lagging.setdefault(tenant, now) + PATIENCE_S

    def _page(self, tenant: str, state: Shipping, table: str, rows: Rows, after: str) -> None:
        """Ship the next rows of a table, less sessions that are marked: those go later, as they are then."""
        prefix = sessions.key_of(tenant, state.shipment.live, "")
        walk = self._walks.get(tenant)
        if walk is None or walk.table != table:
            walk = self._walks[tenant] = _Walk(table, rows, prefix, after)
        if not walk.ready():
            return
        marked = self.tenants.marked[tenant] if table == SESSION else ()
        items: list[Item] = []
        size = looked = 0
        while walk.name is not None and looked < PAGE_ROWS:
            name = walk.name
            row = None if name in marked else rows.get(prefix + name.encode())
            if row is not None:
                if items and size + len(row) > PAGE_BYTES:
                    break
                items.append(Item(table, name, row))
                size += len(row)
            after = name
            looked += 1
            walk.advance()
        total = sum(chunks.fingerprint(item.table, item.name, item.row or b"") for item in items)
        sent = self._send(tenant, state, items)
        end = walk.name is None
        if end:
            del self._walks[tenant]
        self.tenants.feed(tenant, Shipped(len(items), total, sent, after, end))

    def _marked_page(self, tenant: str, state: Shipping) -> None:
        """Ship sessions that have changed since they were copied; their marks go."""
        shipment = state.shipment
        marks = handoffs.marks_of(tenant, shipment.epoch)
        prefix = sessions.key_of(tenant, shipment.live, "")
        marked = self.tenants.marked[tenant]
        count = len(marked)
        items: list[Item] = []
        rows = total = size = 0
        for session in list(islice(marked, PAGE_ROWS)):
            now = self._sessions.get(prefix + session.encode())
            if items and size + len(now or b"") > PAGE_BYTES:
                break
            mark = self._rows.get(marks + session.encode())
            assert mark is not None, "marks are rows"
            more, sum_ = shipping.remarked(session, mark.decode(), now)
            rows, total = rows + more, total + sum_
            size += len(now or b"")
            items.append(Item(SESSION, session, now))
            self._rows.delete(marks + session.encode())
            marked.discard(session)
        sent = self._send(tenant, state, items)
        self.tenants.feed(tenant, Shipped(rows, total, sent, marked=count, unmarked=len(items)))

    def _export(self, tenant: str, state: Frozen) -> bool:
        """Ship what movers have, when all rows have gone; False if there is something to wait for."""
        parts = self.parts.export(tenant, state.shipment.epoch, state.shipment.live)
        if parts is None:
            return False
        if not parts:
            self.tenants.feed(tenant, shipping.Concluded())
        for part in parts:
            known = self.tenants.known(tenant).shipping
            assert known is not None
            sent = self._send(tenant, known, [part])
            sum_ = chunks.fingerprint(part.table, part.name, part.row or b"")
            self.tenants.feed(tenant, Shipped(1, sum_, sent, end=True))
        return True

    def _send(self, tenant: str, state: Shipping, items: list[Item]) -> int:
        """Write a chunk to the target; its size."""
        if not items:
            return 0
        shipment = state.shipment
        chunk = Chunk(tenant, shipment.epoch, self._server, shipment.router, shipment.chunks + 1, tuple(items))
        value = chunks.encode(chunk)
        context = self._context
        unit = context.engine.unit
        unit.output(context.names.handoffs, shipment.target).append((chunks.KEY, value))
        unit.weight += len(items)
        unit.size += len(value)
        passing("move-copies")
        context.copied.rows_out += len(items)
        context.copied.bytes_out += len(value)
        return len(value)

    # -- chores: rows of epochs that are over, and plans --------------------------------------------------------------

    def _do_chores(self) -> bool:
        """A little of one chore; True if there was one."""
        if self._chore is None:
            key = next(iter(self.tenants.chores), None)
            if key is None:
                return False
            self._chore = self._begin(key)
        try:
            next(self._chore)
        except StopIteration:
            self._chore = None
        return True

    def _begin(self, key: bytes) -> Iterator[None]:
        if key.startswith(handoffs.MEASURE):
            return self._measure(key)
        if key.startswith(handoffs.INSTALL):
            return self.parts.install(key)
        tenant, epoch = handoffs.swept(key)
        if key.startswith(handoffs.UNMARK):
            return self._sweep(key, [(self._rows, handoffs.marks_of(tenant, epoch))])
        return self._sweep_epoch(key, tenant, epoch)

    def _sweep_epoch(self, chore: bytes, tenant: str, epoch: int) -> Iterator[None]:
        """Delete all that is here of a tenant under an epoch that is over."""
        start = sessions.key_of(tenant, epoch, "")
        places = [(self._sessions, start), (self._waiting, start)]
        if self._context.movers:
            moved = bool(orjson.loads(self.tenants.chore(chore)).get("moved"))
            yield from self.parts.sweep(tenant, epoch, moved=moved)
            places.append((self._rows, handoffs.parts_of(tenant, epoch)))
        yield from self._sweep(chore, places)

    def _sweep(self, chore: bytes, places: list[tuple[Rows, bytes]]) -> Iterator[None]:
        """Delete all rows with these prefixes; nobody reads them any more."""
        for rows, prefix in places:
            for keys in _pages(rows, prefix):
                for key in keys:
                    rows.delete(key)
                self._context.engine.unit.weight += len(keys)
                if keys:
                    passing("move-sweeps")
                yield
        self.tenants.done(chore)

    def _measure(self, chore: bytes) -> Iterator[None]:
        """Count what a tenant has here, for the plan of a migration."""
        asked = decode_control(KEYS[Measure], self.tenants.chore(chore))
        assert isinstance(asked, Measure)
        prefix = sessions.key_of(asked.tenant, self.tenants.known(asked.tenant).epoch, "")
        counts: dict[str, int] = {sessions.NAME: 0, waiting.NAME: 0}
        size = 0
        for name, rows in ((sessions.NAME, self._sessions), (waiting.NAME, self._waiting)):
            for keys in _pages(rows, prefix):
                counts[name] += len(keys)
                size += sum(len(rows.get(key) or b"") for key in keys)
                yield
        found = (counts[sessions.NAME], counts[waiting.NAME], size)
        said = Measured(asked.tenant, asked.id, self._server, asked.target, *found)
        self.tenants.write(self._context.names.commands, asked.router, said)
        self.tenants.done(chore)


def _pages(rows: Rows, prefix: bytes) -> Iterator[list[bytes]]:
    """Keys with a prefix, some at a time; nothing while they are still being sorted."""
    keys = rows.keys(prefix)
    while not keys.ready():
        yield []
    found = iter(keys)
    while page := list(islice(found, CHORE_ROWS)):
        yield page
