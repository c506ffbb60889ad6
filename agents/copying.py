"""What a server does for migrations between its batches: it copies tenants that leave.

A little at a time, so that nobody's tasks wait for it (:mod:`app.protocol.pacing`). A tenant that is frozen comes first
and without rests: it stands still. Everything that is to be done is a row, so that the next host goes on with it.
"""

import time
from collections.abc import Iterator
from itertools import islice

from agents.cells import ServerContext
from agents.chores import Chores
from agents.parts import Parts
from agents.tenants import Sessions, Tenants
from app.engine.crashpoints import passing
from app.engine.places import Place
from app.engine.stores.order import Keys
from app.engine.table import Rows
from app.protocol import chunks, pacing, shipping
from app.protocol.chunks import SESSION, WAITING, Chunk, Item
from app.protocol.pacing import Pace
from app.protocol.shipping import Conclude, Frozen, ShipMarked, Shipped, Shipping, ShipSessions, ShipWaiting
from tables import handoffs, sessions, waiting

PAGE_BYTES = 64 * 1024
"""A chunk has no more, unless it is a single row."""

COPIES_MAX = 4
"""So many tenants are copied at once from the servers of a worker; others wait for their turn."""

FROZEN_TURN_S = 0.05
FROZEN_ROWS = 500
FULL_PAUSE_S = 0.02
TICK_S = 1.0
LOOK_S = 0.1
"""How often a server that copies looks for sessions that were marked since, and for slots that became free."""

LAG = 1_000
PATIENCE_S = 10.0
"""The cut waits until no more records than this are before it in the stream, but not for ever."""


class _Walk:
    """The keys of one table under a tenant's epoch, in their order."""

    def __init__(self, table: str, rows: Rows, prefix: bytes, after: str) -> None:
        self.table = table
        self._keys: Keys = rows.keys(prefix, prefix + after.encode() if after else b"")
        self._found: Iterator[bytes] | None = None
        self._back: list[bytes] = []

    def ready(self) -> bool:
        if self._found is None and self._keys.ready():
            self._found = iter(self._keys)
        return self._found is not None

    def take(self, most: int) -> list[bytes]:
        """The next keys; fewer than ``most`` are the last."""
        assert self._found is not None
        back, self._back = self._back[:most], self._back[most:]
        return back + list(islice(self._found, most - len(back)))

    def give_back(self, keys: list[bytes]) -> None:
        """What was taken comes again."""
        self._back = keys + self._back


class Copying:
    """The background of one server's migrations."""

    def __init__(self, context: ServerContext, place: Place, memory: Sessions) -> None:
        self._context = context
        self._server = place.number
        self._rows = place.rows[handoffs.NAME]
        self._sessions = place.rows[sessions.NAME]
        self._waiting = place.rows[waiting.NAME]
        self._walks: dict[str, _Walk] = {}
        self._lagging: dict[str, float] = {}
        self._quick: set[str] = set()
        self._rests_until = 0.0
        self._tick_at = 0.0
        self.due: float | None = None
        """Unix time at which :meth:`on_time` is wanted."""
        self.tenants = Tenants(context, place, memory, self.stir)
        self.parts = Parts(context, place, self.tenants)
        self._chores = Chores(context, place, self.tenants, self.parts)

    # -- time -----------------------------------------------------------------------------------------------------

    def stir(self) -> None:
        """Something has changed: look soon."""
        self.due = 0.0

    def on_time(self, now: float) -> None:
        """Do a little of what is to be done, and say when to come again."""
        if self._context.trials:
            # Somebody's task is performed alone: nothing may be begun beside it.
            self.due = now + FULL_PAUSE_S
            return
        begun = time.monotonic()
        copies = self.tenants.shipping()
        self._keep_in_step({tenant for tenant, _ in copies})
        for tenant, state in copies:
            if isinstance(state, Frozen):
                self._ship(tenant, begun + FROZEN_TURN_S)
        served = [tenant for tenant, state in copies if not isinstance(state, Frozen) and self._may_copy(tenant)]
        if now >= self._rests_until:
            self._copy(served, now)
        if copies and now >= self._tick_at:
            self._tick_at = now + TICK_S
            for tenant, state in copies:
                busy = not isinstance(state, Frozen) and (tenant not in served or tenant in self._lagging)
                self.tenants.feed(tenant, shipping.Tick(busy=busy))
        chores_at = self._chores.on_time(now)
        copies_at = self._copies_at(now)
        self.due = min((at for at in (chores_at, copies_at) if at is not None), default=None)

    def _copies_at(self, now: float) -> float | None:
        copies = self.tenants.shipping()
        if any(isinstance(state, Frozen) and self._ahead(tenant, state) for tenant, state in copies):
            return now + FULL_PAUSE_S if self._context.engine.unit.full else now
        if not copies:
            return None
        return self._rests_until if self._rests_until > now else now + LOOK_S

    def _copy(self, served: list[str], now: float) -> None:
        """A slice of each of these tenants, and the rest that follows."""
        begun = time.monotonic()
        paces = [pace for tenant in served if (pace := self._slice(tenant)) is not None]
        if paces:
            spent = time.monotonic() - begun
            sharing = max(1, len(self._context.copying))
            rests = [pace.rest_s(spent, sharing) for pace in paces if pace is not pacing.SORTING]
            self._rests_until = now + spent + min(rests, default=pacing.SORTING.rest_s(spent, sharing))

    def _keep_in_step(self, tenants: set[str]) -> None:
        """Forget what belongs to copies that are over."""
        for tenant in self._walks.keys() - tenants:
            del self._walks[tenant]
        for tenant in self._lagging.keys() - tenants:
            del self._lagging[tenant]
        self._quick &= tenants
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

    def _slice(self, tenant: str) -> Pace | None:
        """One page of a tenant that is served, and the pace at which the next one may follow; None: nothing to do."""
        state = self.tenants.known(tenant).shipping
        if self._context.engine.unit.full or state is None or isinstance(state, Frozen):
            return None
        if pacing.quick(tenant in self._quick, state.shipment, len(self.tenants.marked[tenant])):
            self._quick.add(tenant)
        pace = pacing.QUICK if tenant in self._quick else pacing.CALM
        task = self._ahead(tenant, state)
        if task is None or not self._one(tenant, state, task, pace.rows):
            return None
        return pacing.SORTING if self.tenants.known(tenant).shipping is state else pace

    def _ship(self, tenant: str, until: float) -> None:
        """Ship pages of a tenant that stands still, until then."""
        while not self._context.engine.unit.full:
            state = self.tenants.known(tenant).shipping
            task = None if state is None else self._ahead(tenant, state)
            if state is None or task is None or not self._one(tenant, state, task, FROZEN_ROWS):
                return
            if time.monotonic() >= until:
                return

    def _one(self, tenant: str, state: Shipping, task: shipping.Task, most: int) -> bool:
        """One page of at most so many rows, or the end; False if it has to wait."""
        match task:
            case ShipSessions(after):
                self._page(tenant, state, SESSION, self._sessions, after, most)
            case ShipWaiting(after):
                self._page(tenant, state, WAITING, self._waiting, after, most)
            case ShipMarked():
                self._marked_page(tenant, state, most)
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

    def _page(self, tenant: str, state: Shipping, table: str, rows: Rows, after: str, most: int) -> None:
        """Ship the next rows of a table, less sessions that are marked: those go later, as they are then."""
        prefix = sessions.key_of(tenant, state.shipment.live, "")
        walk = self._walks.get(tenant)
        if walk is None or walk.table != table:
            walk = self._walks[tenant] = _Walk(table, rows, prefix, after)
        if not walk.ready():
            return
        marked = self.tenants.marked[tenant] if table == SESSION else ()
        items: list[Item] = []
        size = 0
        keys = walk.take(most)
        end = len(keys) < most
        for index, key in enumerate(keys):
            name = key[len(prefix) :].decode()
            row = None if name in marked else rows.get(key)
            if row is not None:
                if items and size + len(row) > PAGE_BYTES:
                    walk.give_back(keys[index:])
                    end = False
                    break
                items.append(Item(table, name, row))
                size += len(row)
            after = name
        total = sum(chunks.fingerprint(item.table, item.name, item.row or b"") for item in items)
        sent = self._send(tenant, state, items)
        if end:
            del self._walks[tenant]
        self.tenants.feed(tenant, Shipped(len(items), total, sent, after, end))

    def _marked_page(self, tenant: str, state: Shipping, most: int) -> None:
        """Ship sessions that have changed since they were copied; their marks go."""
        shipment = state.shipment
        marks = handoffs.marks_of(tenant, shipment.epoch)
        prefix = sessions.key_of(tenant, shipment.live, "")
        marked = self.tenants.marked[tenant]
        count = len(marked)
        items: list[Item] = []
        rows = total = size = 0
        for session in list(islice(marked, most)):
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
