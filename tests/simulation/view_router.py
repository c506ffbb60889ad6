"""A router of the simulation that adopts views, and the steward that router 0's host hosts as well."""

import json
from typing import Any

from app.protocol import adoption, control, migration, views
from app.protocol.adoption import Adopted
from app.protocol.markers import Closed, Leaving, View, ViewClosed
from app.protocol.moves import Announce, Settled
from tables import parked, placements
from tables import views as table
from tests.simulation.log import Record
from tests.simulation.sim_router import Router


class ViewRouter(Router):
    TABLES = (placements.NAME, parked.NAME, table.NAME)

    def open(self) -> None:
        super().open()
        row = self.rows[table.NAME].get(table.ADOPTED)
        self.adopted = Adopted() if row is None else table.decode_adopted(row)
        row = self.rows[table.NAME].get(table.STEWARD)
        self.steward: views.State = views.first(self.world.servers) if row is None else table.decode(row)
        self.settled: dict[str, int] = {}
        self.plan = -1

    @property
    def up(self) -> frozenset[int]:
        return self.adopted.up(self.world.servers)

    @property
    def closed(self) -> bool:
        return self.adopted.closed

    # -- tasks ----------------------------------------------------------------------------------------------------

    def feed(self, tenant: str, event: migration.Event, task: Record | None = None) -> None:
        self.settled.pop(tenant, None)
        super().feed(tenant, event, task)
        state = self.state(tenant)
        if isinstance(event, migration.Arrived) and isinstance(state, Settled) and state.home in self.up:
            self.settled[tenant] = state.home

    def take(self, topic: str) -> str:
        if topic == "tasks":
            record = self.log.read(("tasks", self.number), self.positions["tasks"])
            known = self.settled.get(json.loads(record.value)["tenant"])
            if known is not None:
                offset, record = self.next_record("tasks")
                self.send("work", known, b"%d:%d" % (self.number, offset), record.value)
                return f"task {record.value.decode()} (settled)"
        return super().take(topic)

    # -- views ----------------------------------------------------------------------------------------------------

    def command(self, offset: int, record: Record) -> str:
        if control.is_order(record.value):
            return super().command(offset, record)
        said = control.decode_control(record.key, record.value)
        if isinstance(said, View | ViewClosed):
            self.adopt(said)
        elif isinstance(said, Closed | Leaving):
            self.steer(said)
        else:
            return super().command(offset, record)
        return f"{said}"

    def adopt(self, said: View | ViewClosed) -> None:
        decided = adoption.step(self.adopted, said, router=self.number)
        row = table.encode_adopted(decided.adopted)
        assert table.decode_adopted(row) == decided.adopted
        self.rows[table.NAME].put(table.ADOPTED, row)
        for effect in decided.effects:
            match effect:
                case adoption.TellMoves(changed):
                    for tenant in list(self.moving):
                        self.feed(tenant, migration.ViewAdopted(changed))
                case adoption.Mark(marker):
                    self.adopted = decided.adopted
                    self.settled.clear()
                    for server in range(self.world.servers):
                        self.send("work", server, *control.encode(marker))
                case Announce():
                    self.announce(effect)
        self.adopted = decided.adopted

    def announce(self, said: Announce) -> None:
        self.events.append({"event": said.event, "id": said.id, "final": said.final, **said.fields})

    # -- the steward ----------------------------------------------------------------------------------------------

    def order(self, order: dict[str, Any]) -> str:
        match order["command"]:
            case "fail-server":
                self.steer(views.FailOrdered(order["id"], order["server"]))
            case "restore-server":
                self.steer(views.RestoreOrdered(order["id"], order["server"]))
            case "forget-worker":
                self.steer(views.ForgetOrdered(order["id"], order["worker"]))
            case _:
                return super().order(order)
        return f"{order}"

    @property
    def moment_of_views(self) -> views.Moment:
        script = self.world.script
        return views.Moment(self.world.servers, script.rehome_after_ms, script.forget_after_ms, self.world.now)

    def steer(self, event: views.Event) -> None:
        decided = views.step(self.steward, event, self.moment_of_views)
        if decided.state != self.steward:
            self.steward = decided.state
            row = table.encode(decided.state)
            assert table.decode(row) == decided.state
            self.rows[table.NAME].put(table.STEWARD, row)
        for effect in decided.effects:
            match effect:
                case views.Publish(record):
                    for router in range(self.world.script.routers):
                        self.send("commands", router, *control.encode(record))
                case Announce():
                    self.announce(effect)

    @property
    def looks(self) -> bool:
        """A new plan of the group is known, and all that leavers have written before it was read."""
        return self.number == 0 and self.plan < self.world.plan and not self.behind("commands")

    def look(self) -> str:
        self.plan = self.world.plan
        seen = self.world.seen()
        self.steer(seen)
        return f"sees {seen}"

    def clock(self) -> str:
        if self.number == 0:
            due = views.due_ms(self.steward, self.moment_of_views)
            if due is not None and due <= self.world.now:
                self.steer(views.Tick())
        return super().clock()
