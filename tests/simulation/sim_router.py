"""A router of the simulation: the real cores and codecs, in the shell's place the least that can drive them."""

import json
from typing import Any

from app.protocol import control, migration, moves, parking
from app.protocol.control import WAKE_KEY, ParkedDue
from app.protocol.moves import Moment, Placement, Settled, State
from app.protocol.placement import home_of, route
from tables import parked, placements
from tests.simulation.log import Log, Place, PromiseError, Record


class Router(Place):
    TABLES: tuple[str, ...] = (placements.NAME, parked.NAME)
    TOPICS = ("tasks", "commands", "delay")
    CAPACITY = 50

    def __init__(self, log: Log, number: int, world: Any) -> None:
        self.world = world
        super().__init__(log, number)

    def open(self) -> None:
        self.wakeups = parking.WakeUps(self.positions["delay"], self.CAPACITY)
        self.moving: dict[str, State] = {}
        for key, row in self.rows[placements.NAME].scan():
            state = placements.decode(row)
            if not isinstance(state, Settled):
                self.moving[key.decode()] = state
        self.changed: set[str] = set()

    # -- state ----------------------------------------------------------------------------------------------------

    def state(self, tenant: str) -> State:
        if tenant in self.moving:
            return self.moving[tenant]
        row = self.rows[placements.NAME].get(tenant.encode())
        if row is not None:
            return placements.decode(row)
        return Settled(Placement(home_of(tenant.encode(), None, self.world.servers)))

    def moment(self, tenant: str) -> Moment:
        world = self.world
        return Moment(tenant, self.number, world.servers, self.up, self.closed, world.now)

    @property
    def up(self) -> frozenset[int]:
        return frozenset(range(self.world.servers))

    @property
    def closed(self) -> bool:
        return True

    def feed(self, tenant: str, event: migration.Event, task: Record | None = None) -> None:
        """Step, store, perform. ``task`` is what the event is about: one that arrived, or none."""
        before = self.state(tenant)
        decided = migration.step(before, event, self.moment(tenant))
        if decided.state != before:
            self.rows[placements.NAME].put(tenant.encode(), placements.encode(decided.state))
            assert placements.decode(placements.encode(decided.state)) == decided.state
        if isinstance(decided.state, Settled):
            self.moving.pop(tenant, None)
        else:
            self.moving[tenant] = decided.state
        for effect in decided.effects:
            self.perform(tenant, decided.state, effect, task)

    def perform(self, tenant: str, state: State, effect: migration.Effect, task: Record | None) -> None:
        match effect:
            case migration.Tell(server, record):
                self.send("work", server, *control.encode(record))
            case moves.Announce(name, command, final, fields):
                self.events.append({"event": name, "id": command, "final": final, **fields})
            case moves.Forward() | parking.Park() | parking.Keep():
                assert task is not None
                self.admit(tenant, state.placement.tried, effect, task)
            case parking.Release(first, last):
                for number in range(first, last + 1):
                    self.forward(tenant, self.delivered[number])
            case parking.ReleaseKept(first, last):
                for number in range(first, last + 1):
                    self.forward(tenant, self.take_kept(tenant, number))
            case migration.DelayAgain(epoch, due_ms):
                self.send_due(tenant, epoch, due_ms)

    def admit(self, tenant: str, epoch: int, effect: moves.Forward | parking.Park | parking.Keep, task: Record) -> None:
        match effect:
            case moves.Forward():
                self.forward(tenant, task)
            case parking.Park(number, due_ms, new_due):
                header = control.encode_parked(tenant.encode(), epoch, number, due_ms)
                self.send("delay", self.number, task.key, task.value, header)
                if new_due:
                    self.send_due(tenant, epoch, due_ms)
            case parking.Keep(number):
                assert task.key is not None
                where, _, offset = task.key.partition(b":")
                row = parked.encode(parked.Kept(int(where), int(offset), task.value))
                self.rows[parked.NAME].put(parked.key_of(tenant.encode(), number), row)

    def take_kept(self, tenant: str, number: int) -> Record:
        key = parked.key_of(tenant.encode(), number)
        row = self.rows[parked.NAME].get(key)
        if row is None:
            raise PromiseError(f"kept task {number} of {tenant} is gone")
        kept = parked.decode(row)
        self.rows[parked.NAME].delete(key)
        return Record(b"%d:%d" % (kept.partition, kept.offset), kept.task)

    def send_due(self, tenant: str, epoch: int, due_ms: int) -> None:
        self.send("delay", self.number, *control.encode(ParkedDue(tenant, epoch, due_ms)))

    def forward(self, tenant: str, task: Record) -> None:
        session = json.loads(task.value)["session"]
        server = route(tenant, session, self.state(tenant).home, self.up)
        self.send("work", server, task.key, task.value)

    # -- what comes -----------------------------------------------------------------------------------------------

    def take(self, topic: str) -> str:
        offset, record = self.next_record(topic)
        match topic:
            case "tasks":
                task = Record(b"%d:%d" % (self.number, offset), record.value)
                tenant = json.loads(record.value)["tenant"]
                self.feed(tenant, migration.Arrived(len(record.value), self.wakeups.position), task)
                return f"task {record.value.decode()} ({type(self.state(tenant)).__name__})"
            case "commands":
                return self.command(offset, record)
            case _:
                return self.delay(offset, record)

    def command(self, offset: int, record: Record) -> str:
        if control.is_order(record.value):
            return self.order(json.loads(record.value))
        said = control.decode_control(record.key, record.value)
        if isinstance(said, control.Ready | control.Progress | control.Installed | control.Refused):
            self.feed(said.tenant, said)
        return f"{said}"

    def order(self, order: dict[str, Any]) -> str:
        tenant = order["tenant"]
        match order["command"]:
            case "abort-migration":
                self.feed(tenant, migration.AbortOrdered(order["id"]))
            case _:
                fields = {name: value for name, value in order.items() if name not in ("command", "tenant")}
                self.feed(tenant, moves.Order(**fields))
        return f"{order}"

    def delay(self, offset: int, record: Record) -> str:
        assert record.key is not None
        if record.key[0] != control.MARK:
            self.wakeups.step(parking.Skip(offset))
        elif record.key == WAKE_KEY:
            due = control.decode_due(record.key, record.value)
            self.wakeups.step(parking.Read(offset, due.wakeup, due.due_ms))
        else:
            said = control.decode_control(record.key, record.value)
            assert isinstance(said, ParkedDue)
            self.wakeups.step(parking.ReadDue(offset, said))
        return f"reads delay {offset}"

    def clock(self) -> str:
        for sent in self.wakeups.step(parking.Clock(self.world.now)):
            wakeup = sent.wakeup
            server = route(wakeup.tenant, wakeup.session, self.state(wakeup.tenant).home, self.up)
            self.send("work", server, *control.encode(wakeup))
        for due in self.wakeups.take_due():
            self.feed(due.tenant, migration.Due(due.epoch, due.due))
        for tenant in list(self.moving):
            at = migration.deadline_ms(self.moving[tenant])
            if at is not None and at <= self.world.now:
                self.feed(tenant, migration.Tick())
        return "clock"

    def release(self, tenant: str, most: int) -> str:
        """Read the tenant's own range of ``delay``, as far as it is committed."""
        state = self.moving[tenant]
        assert isinstance(state, moves.Releasing)
        lot = state.lot
        offset = lot.position or 0
        expected = lot.released + 1
        self.delivered: dict[int, Record] = {}
        partition = self.log.partition(("delay", self.number))
        while offset < len(partition) and len(self.delivered) < most:
            record = self.log.read(("delay", self.number), offset)
            offset += 1
            if record.header is None:
                continue
            owner, epoch, number = control.decode_parked(record.header)
            if owner == tenant.encode() and epoch == state.placement.tried and number >= expected:
                if self.delivered and number != max(self.delivered) + 1:
                    offset -= 1  # kept rows stand between
                    break
                self.delivered[number] = record
        if not self.delivered and offset == (lot.position or 0):
            return "nothing to release"
        first, last = (min(self.delivered), max(self.delivered)) if self.delivered else (1, 0)
        self.feed(tenant, migration.Delivered(state.placement.tried, first, last, offset))
        return f"releases {first} to {last} of {tenant}"

    def hold(self, topic: str) -> int:
        return self.wakeups.hold_offset if topic == "delay" else self.positions[topic]

    def needs(self) -> int:
        """Nothing of ``delay`` below this is read again."""
        starts = [self.log.committed.get(("delay", self.number), 0)]
        for _, row in self.stores[placements.NAME].scan(b""):
            state = placements.decode(row)
            if isinstance(state, moves.Cutting | moves.Releasing) and state.lot.position is not None:
                starts.append(state.lot.position)
        return min(starts)
