"""A server of the simulation that aligns its stream with views: the least shell around the real cores."""

import json
from typing import Any

from app.protocol import affinity, alignment, chunks, closing, control
from app.protocol.affinity import OWN, Comes, Stranger
from app.protocol.chunks import SESSION, WAITING, HandOff, Item
from app.protocol.control import Wakeup
from app.protocol.holding import Held
from app.protocol.markers import HandedOff, Marker
from app.protocol.placement import Routes, home_of
from tables import handoffs, parked
from tables import sessions as sessions_table
from tables import waiting as waiting_table
from tests.simulation.log import PromiseError, Record
from tests.simulation.sim_server import Cell, Entry, Server

PAGE = 2
TABLE_OF = {SESSION: sessions_table.NAME, WAITING: waiting_table.NAME}


class ViewServer(Server):
    def open(self) -> None:
        self.routes = Routes(3)
        self.held = Held()
        first = affinity.Aligned(affinity.initial(self.world.servers))
        self.aligned: list[affinity.State] = []
        for router in range(self.world.script.routers):
            row = self.rows[handoffs.NAME].get(handoffs.view_key(router))
            self.aligned.append(first if row is None else handoffs.decode_view(row))
        for key, row in self.rows[handoffs.NAME].scan(handoffs.HELD):
            kept = parked.decode(row)
            self.held.found(*handoffs.held(key), name=self.name_of(kept.task), size=len(kept.task))
        super().open()

    def reads(self, topic: str) -> bool:
        """While too much is held the stream is not read; hand-offs are, or nothing would ever leave."""
        return super().reads(topic) and not (topic == "work" and self.held.full)

    @staticmethod
    def name_of(task: bytes) -> tuple[str, str]:
        fields = json.loads(task)
        return fields["tenant"], fields["session"]

    # -- whose a session is ---------------------------------------------------------------------------------------

    def home(self, tenant: str) -> int:
        return home_of(tenant.encode(), self.known(tenant).home, self.world.servers)

    def view_of(self, tenant: str) -> int:
        router: int = self.world.router_of(tenant)
        return self.aligned[router].change.epoch

    def whose(self, tenant: str, session: str) -> affinity.Whose:
        state = self.aligned[self.world.router_of(tenant)]
        return affinity.whose(state, tenant, session, self.home(tenant), server=self.number, routes=self.routes)

    def lives(self, tenant: str, session: str) -> bool:
        return self.whose(tenant, session) == OWN

    def task(self, record: Record) -> None:
        assert record.key is not None
        task = json.loads(record.value)
        name = (task["tenant"], task["session"])
        whose = self.whose(*name)
        if isinstance(whose, Stranger):
            raise PromiseError(f"server {self.number} gets {task}, which lives at {whose.to}")
        if isinstance(whose, Comes) or self.held.waits(name):
            self.keep_back(record, name)
        else:
            super().task(record)

    def admits(self, task: dict[str, Any]) -> None:
        if self.known(task["tenant"]).frozen:
            raise PromiseError(f"server {self.number} gets {task} behind the cut")

    def end(self, cell: Cell, entry: Entry) -> None:
        if self.whose(cell.tenant, cell.session) != OWN:
            raise PromiseError(f"server {self.number} performs {cell.row_key!r}, which is not its own")
        for other in self.world.places:
            if other.number != self.number and other.stores[sessions_table.NAME].get(cell.row_key) is not None:
                raise PromiseError(f"{cell.row_key!r} lives at {other.number} and at {self.number}")
        super().end(cell, entry)

    def keep_back(self, record: Record, name: tuple[str, str]) -> None:
        router = self.world.router_of(name[0])
        change = self.aligned[router].change
        source = self.routes.route(*name, self.home(name[0]), change.before)
        if source == self.number:
            raise PromiseError(f"server {self.number} holds its own session {name}")
        if not self.held.total:
            self.announce("stream-held", view=change.epoch, server=self.number, source=source)
        number = self.held.hold(router, source, name=name, size=len(record.value))
        assert record.key is not None
        where, _, offset = record.key.partition(b":")
        row = parked.encode(parked.Kept(int(where), int(offset), record.value))
        self.rows[handoffs.NAME].put(handoffs.held_key(router, source, number), row)

    def announce(self, event: str, **fields: Any) -> None:
        self.events.append({"event": event, "id": None, "final": False, **fields})

    def woken(self, wakeup: Wakeup) -> None:
        if self.lives(wakeup.tenant, wakeup.session):
            super().woken(wakeup)

    # -- what comes -----------------------------------------------------------------------------------------------

    def obey(self, said: control.Control) -> None:
        if isinstance(said, Marker):
            self.feed_view(said.router, said)
        else:
            super().obey(said)

    def handoff(self, record: Record) -> str:
        if record.key == chunks.HAND_OFF_KEY:
            part = chunks.decode_hand_off(record.value)
            if alignment.wanted(self.aligned[part.router], part):
                self.feed_view(part.router, self.put(part))
            return f"hand-off {part}"
        if record.key == control.KEYS[HandedOff]:
            said = control.decode_control(record.key, record.value)
            assert isinstance(said, HandedOff)
            self.feed_view(said.router, said)
            return f"{said}"
        return super().handoff(record)

    def put(self, part: HandOff) -> alignment.Taken:
        rows = total = 0
        for item in part.items:
            table = self.rows[TABLE_OF[item.table]]
            key = item.name.encode()
            assert item.row is not None
            more, sum_ = chunks.replaced(item.table, item.name, table.get(key), item.row)
            rows, total = rows + more, total + sum_
            table.put(key, item.row)
        return alignment.Taken(part, rows, total)

    def feed_view(self, router: int, event: alignment.Event) -> None:
        before = tuple(self.aligned)
        decided = alignment.step(before[router], event, router=router, server=self.number)
        self.aligned[router] = decided.state
        if decided.state != before[router]:
            row = handoffs.encode_view(decided.state)
            assert handoffs.decode_view(row) == decided.state
            self.rows[handoffs.NAME].put(handoffs.view_key(router), row)
        for effect in decided.effects:
            match effect:
                case alignment.Freeze():
                    self.freeze_leaving(router)
                case alignment.GoLive(source):
                    self.go_live(router, source)
                case alignment.Hand(target, record):
                    self.send("handoffs", target, *control.encode(record))
                case _:
                    self.announce(effect.event, **effect.fields)
        for notice in closing.notices(before, tuple(self.aligned), self.number):
            if isinstance(notice, closing.Report):
                self.send("commands", 0, *control.encode(notice.record))
            else:
                self.announce(notice.event, **notice.fields)

    def freeze_leaving(self, router: int) -> None:
        for name, cell in list(self.cells.items()):
            if self.world.router_of(name[0]) == router and not self.lives(*name):
                if name in self.dirty:
                    self.flush(cell)
                del self.cells[name]

    def go_live(self, router: int, source: int) -> None:
        """Take up what waits of the sessions that have come; those that are here already are left alone."""
        for tenant in sorted(self.tenants()):
            known = self.known(tenant)
            if self.world.router_of(tenant) == router and not known.frozen:
                here = [session for owner, session in self.cells if owner == tenant]
                self.take_up(tenant, self.prefix(tenant, known.epoch), here)

    # -- in the background ----------------------------------------------------------------------------------------

    def aligning(self) -> list[int]:
        return [
            router
            for router, state in enumerate(self.aligned)
            if alignment.ahead(state, self.held.counts(router)) is not None
        ]

    def align(self, router: int) -> str:
        state = self.aligned[router]
        task = alignment.ahead(state, self.held.counts(router))
        match task:
            case alignment.ShipSessions(after):
                self.feed_view(router, self.leaving_page(router, SESSION, after))
            case alignment.ShipWaiting(after):
                self.feed_view(router, self.leaving_page(router, WAITING, after))
            case alignment.Resume(source):
                self.resume(router, source)
            case _:
                self.feed_view(router, alignment.Concluded())
        return f"router {router}: {task}"

    def leaving_page(self, router: int, table: str, after: str) -> alignment.Shipped:
        rows = self.rows[TABLE_OF[table]]
        found = [(key, row) for key, row in rows.scan() if key > after.encode()]
        leaving: dict[int, list[Item]] = {}
        for key, row in found[:PAGE]:
            to = self.leaves(router, key)
            if to is not None:
                leaving.setdefault(to, []).append(Item(table, key.decode(), row))
                rows.delete(key)
        sent = tuple(self.part(router, to, tuple(items)) for to, items in leaving.items())
        cursor = found[:PAGE][-1][0].decode() if found else after
        return alignment.Shipped(sent, cursor, len(found) <= PAGE)

    def leaves(self, router: int, key: bytes) -> int | None:
        """Where a row goes, if it does: rows of other epochs are no sessions yet, or none any more."""
        tenant, epoch, session = key.decode().split("\0")[:3]
        if self.world.router_of(tenant) != router or int(epoch) != self.known(tenant).epoch:
            return None
        whose = self.whose(tenant, session)
        return whose.to if isinstance(whose, Stranger) else None

    def part(self, router: int, to: int, items: tuple[Item, ...]) -> alignment.Sent:
        state = self.aligned[router]
        assert isinstance(state, affinity.Sending)
        number = 1 + next((line.chunks for line in state.lines if line.target == to), 0)
        part = HandOff(state.change.epoch, router, self.number, number, items)
        value = chunks.encode_hand_off(part)
        assert chunks.decode_hand_off(value) == part
        self.send("handoffs", to, chunks.HAND_OFF_KEY, value)
        total = sum(chunks.fingerprint(item.table, item.name, item.row or b"") for item in items)
        return alignment.Sent(to, len(items), total)

    def resume(self, router: int, source: int) -> None:
        rows = self.rows[handoffs.NAME]
        for key, row in list(rows.scan(handoffs.held_of(router, source)))[:PAGE]:
            kept = parked.decode(row)
            rows.delete(key)
            name = self.name_of(kept.task)
            self.held.leave(*handoffs.held(key), name=name, size=len(kept.task))
            Server.task(self, Record(b"%d:%d" % (kept.partition, kept.offset), kept.task))
