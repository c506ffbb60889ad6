"""A server of the simulation. A session's state is the number of its last task, so that every task checks its place."""

import json
from dataclasses import dataclass, field
from itertools import islice
from typing import Any

from app.protocol import chunks, control, sessions, shipping, staging, tenancy
from app.protocol.chunks import SESSION, WAITING, Chunk, Item
from app.protocol.control import Measure, Measured, Wakeup
from app.protocol.sessions import Arrived, Ended, Phase, Queue, Reopened, RetryAsked, Woken
from app.protocol.tenancy import UNMOVED, Tenancy
from tables import handoffs
from tables import sessions as sessions_table
from tables import waiting as waiting_table
from tests.simulation.log import Log, Place, PromiseError, Record

PAGE = 2
SWEEP_ROWS = 2
ATTEMPTS_MAX = 9


@dataclass
class Entry:
    partition: int
    offset: int
    value: bytes


@dataclass
class Cell:
    tenant: str
    session: str
    row_key: bytes
    done: int = 0
    origins: dict[int, int] = field(default_factory=dict)
    queue: Queue = ()
    entries: dict[int, Entry] = field(default_factory=dict)
    removed: list[int] = field(default_factory=list)
    arrivals: int = 0


class Server(Place):
    TABLES = (sessions_table.NAME, waiting_table.NAME, handoffs.NAME)
    TOPICS = ("work", "handoffs")

    def __init__(self, log: Log, number: int, world: Any) -> None:
        self.world = world
        super().__init__(log, number)

    # -- rows and cells -------------------------------------------------------------------------------------------

    def open(self) -> None:
        self.cells: dict[tuple[str, str], Cell] = {}
        self.dirty: dict[tuple[str, str], Cell] = {}
        self.tenancies: dict[str, Tenancy] = {}
        for key, row in self.rows[handoffs.NAME].scan(handoffs.TENANT):
            self.tenancies[key[len(handoffs.TENANT) :].decode()] = handoffs.decode(row)
        for tenant in self.tenants():
            self.reopen(tenant)

    def tenants(self) -> set[str]:
        return {key.split(b"\0")[0].decode() for key, _ in self.rows[waiting_table.NAME].scan()}

    def known(self, tenant: str) -> Tenancy:
        return self.tenancies.get(tenant, UNMOVED)

    def prefix(self, tenant: str, epoch: int) -> bytes:
        return sessions_table.key_of(tenant, epoch, "")

    def cell(self, tenant: str, session: str) -> Cell:
        found = self.cells.get((tenant, session))
        if found is None:
            key = sessions_table.key_of(tenant, self.known(tenant).epoch, session)
            found = self.cells[tenant, session] = Cell(tenant, session, key)
            row = self.rows[sessions_table.NAME].get(key)
            if row is not None:
                decoded = sessions_table.decode(row)
                found.done, found.origins = json.loads(decoded.state)["done"], decoded.origins
        return found

    def reopen(self, tenant: str) -> None:
        """Take up what waits under the live epoch: timers are set, what ran runs again."""
        known = self.known(tenant)
        if known.frozen:
            return
        prefix = self.prefix(tenant, known.epoch)
        self.take_up(tenant, prefix, [])

    def take_up(self, tenant: str, prefix: bytes, known: list[str]) -> None:
        """Fill the queues of the tenant's sessions that live here, less those that are known."""
        opened: dict[str, Cell] = {}
        for key, row in self.rows[waiting_table.NAME].scan(prefix):
            _, session, found = waiting_table.decode(key, row)
            if session in known or not self.lives(tenant, session):
                continue
            cell = opened[session] = self.cell(tenant, session)
            cell.queue = (*cell.queue, found.waiting)
            cell.arrivals = found.waiting.arrival
            cell.entries[cell.arrivals] = Entry(found.partition, found.offset, found.task)
        for cell in opened.values():
            self.follow(cell, sessions.step(cell.queue, Reopened()))

    def lives(self, tenant: str, session: str) -> bool:
        return True

    def reads(self, topic: str) -> bool:
        return self.behind(topic) > 0

    def before_seal(self) -> None:
        for cell in list(self.dirty.values()):
            self.flush(cell)

    def flush(self, cell: Cell) -> None:
        self.dirty.pop((cell.tenant, cell.session), None)
        self.mark(cell.tenant, cell.session, cell.row_key)
        state = b'{"done":%d}' % cell.done
        self.rows[sessions_table.NAME].put(cell.row_key, sessions_table.encode(cell.done, cell.origins, 0, state))
        for arrival in cell.removed:
            self.rows[waiting_table.NAME].delete(waiting_table.key_of(cell.row_key, arrival))
        cell.removed.clear()
        for waiting in cell.queue:
            entry = cell.entries[waiting.arrival]
            row = waiting_table.WaitingRow(waiting, entry.partition, entry.offset, entry.value)
            self.rows[waiting_table.NAME].put(
                waiting_table.key_of(cell.row_key, waiting.arrival), waiting_table.encode(row)
            )

    def mark(self, tenant: str, session: str, row_key: bytes) -> None:
        state = self.known(tenant).shipping
        if state is None:
            return
        key = handoffs.marks_of(tenant, state.shipment.epoch) + session.encode()
        if self.rows[handoffs.NAME].get(key) is None:
            found = shipping.mark(state, session, self.rows[sessions_table.NAME].get(row_key))
            if found is not None:
                self.rows[handoffs.NAME].put(key, found.encode())

    def store(self, tenant: str, now: Tenancy) -> None:
        if now != self.known(tenant):
            self.tenancies[tenant] = now
            row = handoffs.encode(now)
            assert handoffs.decode(row) == now
            self.rows[handoffs.NAME].put(handoffs.tenant_key(tenant), row)

    # -- tasks ----------------------------------------------------------------------------------------------------

    def task(self, record: Record) -> None:
        assert record.key is not None
        where, _, offset = record.key.partition(b":")
        partition, at = int(where), int(offset)
        task = json.loads(record.value)
        self.admits(task)
        cell = self.cell(task["tenant"], task["session"])
        if at <= cell.origins.get(partition, -1):
            raise PromiseError(f"server {self.number}: {task} came again, or late")
        cell.origins[partition] = at
        self.dirty[task["tenant"], task["session"]] = cell
        entry = Entry(partition, at, record.value)
        if cell.queue or self.world.slow():
            cell.arrivals += 1
            cell.entries[cell.arrivals] = entry
            self.follow(cell, sessions.step(cell.queue, Arrived(cell.arrivals)))
        else:
            self.end(cell, entry)

    def admits(self, task: dict[str, Any]) -> None:
        known = self.known(task["tenant"])
        if known.frozen:
            raise PromiseError(f"server {self.number} gets {task} behind the cut")
        if known.home not in (None, self.number):
            raise PromiseError(f"server {self.number} gets {task}, its home is {known.home}")

    def end(self, cell: Cell, entry: Entry) -> None:
        task = json.loads(entry.value)
        if task["k"] != cell.done + 1:
            raise PromiseError(f"server {self.number} performs {task} with the state of {cell.done}")
        cell.done += 1
        self.dirty[cell.tenant, cell.session] = cell
        self.results.append({**task, "server": self.number})

    def follow(self, cell: Cell, step: sessions.Step) -> None:
        cell.queue = step.queue
        if step.effects:
            self.dirty[cell.tenant, cell.session] = cell
        for effect in step.effects:
            match effect:
                case sessions.Remove(arrival):
                    cell.removed.append(arrival)
                    del cell.entries[arrival]
                case sessions.Wake(arrival, attempt, due_ms):
                    wakeup = Wakeup(cell.tenant, cell.session, arrival, attempt)
                    value = control.encode_wakeup(wakeup, due_ms)
                    self.send("delay", self.world.router_of(cell.tenant), control.WAKE_KEY, value)
                case _:
                    pass

    def runs(self) -> list[tuple[str, str]]:
        """Sessions whose head runs aside."""
        return [name for name, cell in self.cells.items() if cell.queue and cell.queue[0].phase is Phase.RUNNING]

    def finish(self, name: tuple[str, str]) -> str:
        """A handler that ran aside ends, or asks for a retry."""
        cell = self.cells[name]
        if self.known(cell.tenant).frozen:
            raise PromiseError(f"{name} runs at a frozen source")
        head = cell.queue[0]
        if self.world.retries():
            asked = RetryAsked(self.world.now, self.world.choose([1, 3, 10]), ATTEMPTS_MAX)
            self.follow(cell, sessions.step(cell.queue, asked))
            return f"{name} asks for a retry"
        self.end(cell, cell.entries[head.arrival])
        self.follow(cell, sessions.step(cell.queue, Ended()))
        return f"{name} ends task {head.arrival}"

    def timers(self) -> str:
        """Retries that are due are woken by the server itself, if it has set their timers."""
        for cell in list(self.cells.values()):
            if cell.queue and cell.queue[0].phase is Phase.RETRYING and (cell.queue[0].due_ms or 0) <= self.world.now:
                head = cell.queue[0]
                self.follow(cell, sessions.step(cell.queue, Woken(head.arrival, head.attempt)))
        return "timers"

    # -- what comes -----------------------------------------------------------------------------------------------

    def take(self, topic: str) -> str:
        _, record = self.next_record(topic)
        assert record.key is not None
        if topic == "handoffs":
            return self.handoff(record)
        if record.key[0] != control.MARK:
            self.task(record)
            return f"performs {record.value.decode()}"
        said = control.decode_control(record.key, record.value)
        self.obey(said)
        return f"{said}"

    def obey(self, said: control.Control) -> None:
        if isinstance(said, Wakeup):
            self.woken(said)
        elif isinstance(said, Measure):
            self.measure(said)
        else:
            assert isinstance(said, control.Prepare | control.Cut | control.Commit | control.Abort | control.Placed)
            self.feed(said.tenant, said)

    def woken(self, wakeup: Wakeup) -> None:
        if not self.known(wakeup.tenant).frozen:
            cell = self.cell(wakeup.tenant, wakeup.session)
            self.follow(cell, sessions.step(cell.queue, Woken(wakeup.arrival, wakeup.attempt)))

    def measure(self, asked: Measure) -> None:
        prefix = self.prefix(asked.tenant, self.known(asked.tenant).epoch)
        rows = list(self.rows[sessions_table.NAME].scan(prefix))
        waiting = list(self.rows[waiting_table.NAME].scan(prefix))
        size = sum(len(row) for _, row in (*rows, *waiting))
        said = Measured(asked.tenant, asked.id, self.number, asked.target, len(rows), len(waiting), size)
        self.send("commands", asked.router, *control.encode(said))

    def handoff(self, record: Record) -> str:
        if record.key == chunks.KEY:
            chunk = chunks.decode(record.value)
            if tenancy.wanted(self.known(chunk.tenant), chunk):
                self.feed(chunk.tenant, self.stage(chunk, len(record.value)))
            return f"chunk {chunk.number} of {chunk.tenant} epoch {chunk.epoch}"
        said = control.decode_control(record.key, record.value)
        assert isinstance(said, control.Complete | control.Received)
        self.feed(said.tenant, said)
        return f"{said}"

    def stage(self, chunk: Chunk, size: int) -> staging.Taken:
        rows = total = 0
        for item in chunk.items:
            table = self.rows[sessions_table.NAME if item.table == SESSION else waiting_table.NAME]
            key = self.prefix(chunk.tenant, chunk.epoch) + item.name.encode()
            more, sum_ = chunks.replaced(item.table, item.name, table.get(key), item.row)
            rows, total = rows + more, total + sum_
            if item.row is None:
                table.delete(key)
            else:
                table.put(key, item.row)
        return staging.Taken(chunk, rows, total, size)

    def feed(self, tenant: str, event: tenancy.Event) -> None:
        decided = tenancy.step(self.known(tenant), event, tenant=tenant, server=self.number, view=self.view_of(tenant))
        live = self.known(tenant).epoch
        for effect in decided.effects:
            if isinstance(effect, shipping.Freeze):
                self.freeze(tenant)
        if decided.tenancy.epoch != live:
            self.forget(tenant)
        self.store(tenant, decided.tenancy)
        for effect in decided.effects:
            self.perform(tenant, effect)

    def view_of(self, tenant: str) -> int:
        return 0

    def perform(self, tenant: str, effect: tenancy.Effect) -> None:
        match effect:
            case shipping.Tell(record):
                state = self.known(tenant).shipping
                assert state is not None
                self.send("commands", state.shipment.router, *control.encode(record))
            case shipping.Finish(record):
                state = self.known(tenant).shipping
                assert state is not None
                self.send("handoffs", state.shipment.target, *control.encode(record))
            case shipping.Sweep(epoch):
                self.rows[handoffs.NAME].put(handoffs.sweep_key(tenant, epoch), b"{}")
            case shipping.Unmark(epoch):
                self.rows[handoffs.NAME].put(handoffs.unmark_key(tenant, epoch), b"{}")
            case shipping.Thaw() | staging.GoLive():
                self.forget(tenant)
                self.reopen(tenant)
            case staging.Answer(router, record):
                self.send("commands", router, *control.encode(record))
            case staging.Acknowledge(source, received):
                self.send("handoffs", source, *control.encode(received))
            case shipping.Freeze():
                pass

    def freeze(self, tenant: str) -> None:
        """The rows of the tenant are what they are at the cut; nothing of it is in memory any more."""
        for cell in [cell for cell in self.dirty.values() if cell.tenant == tenant]:
            self.flush(cell)
        self.forget(tenant)

    def forget(self, tenant: str) -> None:
        for name in [name for name in self.cells if name[0] == tenant]:
            del self.cells[name]
            self.dirty.pop(name, None)

    # -- in the background ----------------------------------------------------------------------------------------

    def shipping_tenants(self) -> list[str]:
        return [
            tenant
            for tenant, known in self.tenancies.items()
            if known.shipping is not None
            and (self.number, tenant, known.shipping.shipment.epoch) not in self.world.hanging
            and shipping.ahead(known.shipping, self.marked(tenant)) is not None
        ]

    def marked(self, tenant: str) -> int:
        state = self.known(tenant).shipping
        assert state is not None
        return len(list(self.rows[handoffs.NAME].scan(handoffs.marks_of(tenant, state.shipment.epoch))))

    def ship(self, tenant: str) -> str:
        state = self.known(tenant).shipping
        assert state is not None
        task = shipping.ahead(state, self.marked(tenant))
        assert task is not None
        if self.world.spend("failures"):
            self.feed(tenant, shipping.Failed("a mover raised"))
            return f"{tenant}: a mover raises"
        if self.world.spend("hangs"):
            self.world.hanging.add((self.number, tenant, state.shipment.epoch))
            return f"{tenant}: its copy hangs"
        match task:
            case shipping.Conclude():
                self.feed(tenant, shipping.Concluded())
            case shipping.ShipSessions(after):
                self.feed(tenant, self.page(tenant, state, SESSION, after))
            case shipping.ShipWaiting(after):
                self.feed(tenant, self.page(tenant, state, WAITING, after))
            case shipping.ShipMarked():
                self.feed(tenant, self.marked_page(tenant, state))
        return f"{tenant}: {task}"

    def page(self, tenant: str, state: shipping.Shipping, table: str, after: str) -> shipping.Shipped:
        shipment = state.shipment
        prefix = self.prefix(tenant, shipment.live)
        rows = self.rows[sessions_table.NAME if table == SESSION else waiting_table.NAME]
        found = [(key[len(prefix) :].decode(), row) for key, row in rows.scan(prefix)]
        found = [(name, row) for name, row in found if name > after]
        marks = handoffs.marks_of(tenant, shipment.epoch)
        page = found[:PAGE]
        items = tuple(
            Item(table, name, row)
            for name, row in page
            if table == WAITING or self.rows[handoffs.NAME].get(marks + name.encode()) is None
        )
        total = sum(chunks.fingerprint(item.table, item.name, item.row or b"") for item in items)
        size = self.chunk(tenant, state, items)
        cursor = page[-1][0] if page else after
        return shipping.Shipped(len(items), total, size, cursor, len(found) <= PAGE)

    def marked_page(self, tenant: str, state: shipping.Shipping) -> shipping.Shipped:
        shipment = state.shipment
        marks = handoffs.marks_of(tenant, shipment.epoch)
        prefix = self.prefix(tenant, shipment.live)
        marked = self.marked(tenant)
        items: list[Item] = []
        rows = total = 0
        for key, value in list(islice(self.rows[handoffs.NAME].scan(marks), PAGE)):
            session = key[len(marks) :].decode()
            now = self.rows[sessions_table.NAME].get(prefix + session.encode())
            more, sum_ = shipping.remarked(session, value.decode(), now)
            rows, total = rows + more, total + sum_
            items.append(Item(SESSION, session, now))
            self.rows[handoffs.NAME].delete(key)
        size = self.chunk(tenant, state, tuple(items))
        return shipping.Shipped(rows, total, size, marked=marked, unmarked=len(items))

    def chunk(self, tenant: str, state: shipping.Shipping, items: tuple[Item, ...]) -> int:
        if not items:
            return 0
        shipment = state.shipment
        chunk = Chunk(tenant, shipment.epoch, self.number, shipment.router, shipment.chunks + 1, items)
        value = chunks.encode(chunk)
        assert chunks.decode(value) == chunk
        self.send("handoffs", shipment.target, chunks.KEY, value)
        if shipment.sent - shipment.taken > shipping.WINDOW:
            raise PromiseError(f"{shipment.sent - shipment.taken} bytes of {tenant} are in flight")
        return len(value)

    def sweeps(self) -> bool:
        table = self.rows[handoffs.NAME]
        return any(True for prefix in (handoffs.SWEEP, handoffs.UNMARK) for _ in table.scan(prefix))

    def sweep(self) -> str:
        table = self.rows[handoffs.NAME]
        for prefix in (handoffs.SWEEP, handoffs.UNMARK):
            for key, _ in list(table.scan(prefix)):
                tenant, epoch = handoffs.swept(key)
                rows = (
                    [(table, handoffs.marks_of(tenant, epoch))]
                    if prefix == handoffs.UNMARK
                    else [
                        (self.rows[name], self.prefix(tenant, epoch))
                        for name in (sessions_table.NAME, waiting_table.NAME)
                    ]
                )
                gone = [(of, found) for of, start in rows for found, _ in of.scan(start)][:SWEEP_ROWS]
                for of, found in gone:
                    of.delete(found)
                if not gone:
                    table.delete(key)
                return f"sweeps {len(gone)} rows of {tenant} epoch {epoch}"
        return "nothing to sweep"

    def tick(self) -> str:
        for tenant, known in list(self.tenancies.items()):
            if known.shipping is not None:
                self.feed(tenant, shipping.Tick())
        return "tick"
