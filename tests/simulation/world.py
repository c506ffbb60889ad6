"""A world of routers and servers over one log: whatever may happen next is chosen, one unit of work at a time.

A unit takes some records or steps of one place and commits, or is lost with its host. Partitions are read in any
interleaving. What is promised is checked as it happens (a session's state names the next task, so nothing can be lost,
doubled or overtaken unseen) and at the end, when everything must have ended.
"""

import json
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

from app.protocol.moves import Releasing, Settled
from tables import handoffs, parked, placements
from tables import sessions as sessions_table
from tables import waiting as waiting_table
from tests.simulation.log import Choose, Log, PromiseError, Record
from tests.simulation.sim_router import Router
from tests.simulation.sim_server import Server

DELAY_MS = 20

Act = Callable[[], str]


@dataclass(frozen=True)
class Script:
    """What a history is made of, besides chance."""

    servers: int = 3
    routers: int = 2
    tenants: tuple[str, ...] = ("a", "b")
    sessions: tuple[str, ...] = ("x", "y", "z")
    tasks: int = 14
    moves: int = 3
    orders: tuple[str, ...] = ("migrate", "migrate", "migrate", "abort-migration", "undo-migration")
    slow: int = 3
    retries: int = 3
    crashes: int = 3
    failures: int = 0
    hangs: int = 0
    duplicates: int = 0
    timeout_ms: int = 10_000
    repeats: tuple[str, ...] = ("work", "commands", "handoffs", "delay")


class World:
    ROUTER = Router
    SERVER = Server

    def __init__(self, choose: Choose, script: Script) -> None:
        self.choose = choose
        self.script = script
        self.now = 1_000
        self.log = Log()
        self.servers = script.servers
        self.trace: list[str] = []
        self.left = {"tasks": script.tasks, "moves": script.moves, "slow": script.slow, "retries": script.retries}
        self.left |= {"crashes": script.crashes, "failures": script.failures}
        self.left |= {"hangs": script.hangs, "duplicates": script.duplicates}
        self.sent: Counter[tuple[str, str]] = Counter()
        self.orders: list[dict[str, Any]] = []
        self.settling = False
        self.hanging: set[tuple[int, str, int]] = set()
        self.routers = [self.ROUTER(self.log, number, self) for number in range(script.routers)]
        self.places = [self.SERVER(self.log, number, self) for number in range(script.servers)]

    @property
    def all(self) -> list[Router | Server]:
        return [*self.routers, *self.places]

    # -- chance ---------------------------------------------------------------------------------------------------

    def spend(self, what: str) -> bool:
        if self.left[what] and not self.settling and self.choose([False, True]):
            self.left[what] -= 1
            return True
        return False

    def slow(self) -> bool:
        return self.spend("slow")

    def retries(self) -> bool:
        return self.spend("retries")

    def router_of(self, tenant: str) -> int:
        return self.script.tenants.index(tenant) % self.script.routers

    # -- what may happen ------------------------------------------------------------------------------------------

    def produce(self) -> str:
        self.left["tasks"] -= 1
        tenant, session = self.choose(self.script.tenants), self.choose(self.script.sessions)
        self.sent[tenant, session] += 1
        task = {"tenant": tenant, "session": session, "k": self.sent[tenant, session]}
        self.log.partition(("tasks", self.router_of(tenant))).append(Record(tenant.encode(), json.dumps(task).encode()))
        return f"produces {task}"

    def order(self) -> str:
        self.left["moves"] -= 1
        tenant = self.choose(self.script.tenants)
        order: dict[str, Any] = {"id": f"c{len(self.orders)}", "tenant": tenant}
        kind = self.choose(self.script.orders)
        if kind == "abort-migration":
            order["command"] = kind
        else:
            order |= {"command": kind, "to": None, "timeout_ms": self.script.timeout_ms, "delay_ms": DELAY_MS}
            order |= {"undo": kind == "undo-migration", "offline": self.choose([False, False, True])}
            order["max_pause_ms"] = self.choose([None, None, 200])
            if not order["undo"]:
                order["to"] = self.choose(range(self.servers))
        order = self.moves(order)
        self.orders.append(order)
        value = json.dumps(order).encode()
        self.log.partition(("commands", self.router_of(tenant))).append(Record(tenant.encode(), value))
        return f"orders {order}"

    def moves(self, order: dict[str, Any]) -> dict[str, Any]:
        """What else a migration may be."""
        return order

    def more(self) -> list[Act]:
        """What else may happen."""
        return []

    def pass_time(self) -> str:
        self.now += self.choose([1, 5, 30])
        return f"it is {self.now}"

    def truncate(self) -> str:
        router = self.choose(self.routers)
        below = router.needs()
        self.log.truncate(("delay", router.number), below)
        return f"delay/{router.number} is truncated below {below}"

    def duplicate(self) -> str:
        """A control record comes again, as late as it likes."""
        found = [
            (where, record)
            for where, records in self.log.records.items()
            if where[0] in self.script.repeats
            for record in records
            if record is not None and record.key is not None and record.key[:1] == b"!" and record.header is None
        ]
        if not found:
            return "nothing to repeat"
        self.left["duplicates"] -= 1
        where, record = self.choose(found)
        self.log.partition(where).append(record)
        return f"{where} has {record} again"

    def unit_of(self, place: Router | Server, steps: list[Act], *, lost: bool) -> str:
        said = [step() for step in steps]
        if lost:
            self.left["crashes"] -= 1
            place.restart()
            return f"{'; '.join(said)} -- and its host dies before the commit"
        place.commit()
        return "; ".join(said)

    def router_steps(self, router: Router) -> list[Act]:
        steps: list[Act] = [partial(router.take, topic) for topic in ("tasks", "commands") if router.behind(topic)]
        if router.behind("delay") and not router.wakeups.full:
            steps.append(partial(router.take, "delay"))
        releasing = [tenant for tenant, state in router.moving.items() if isinstance(state, Releasing)]
        return [*steps, *(partial(router.release, tenant, 2) for tenant in releasing)]

    def server_steps(self, server: Server) -> list[Act]:
        steps: list[Act] = [partial(server.take, topic) for topic in server.TOPICS if server.reads(topic)]
        steps += [partial(server.ship, tenant) for tenant in server.shipping_tenants()]
        steps += [partial(server.finish, name) for name in server.runs()]
        return [*steps, server.sweep] if server.sweeps() else steps

    def steps(self, place: Router | Server) -> list[Act]:
        return self.router_steps(place) if isinstance(place, Router) else self.server_steps(place)

    def work(self, place: Router | Server) -> str:
        """One unit of some steps; each is chosen when its turn comes."""
        clock = place.clock if isinstance(place, Router) else self.choose([place.timers, place.tick])
        lost = self.left["crashes"] > 0 and not self.settling and self.choose([False] * 6 + [True])

        def one() -> str:
            found = self.steps(place)
            said: str = self.choose(found)() if found else clock()
            return said

        count = self.choose([1, 1, 2, 4]) if self.steps(place) else 1
        return f"{type(place).__name__} {place.number}: {self.unit_of(place, [one] * count, lost=lost)}"

    def happen(self) -> None:
        """One thing, chosen."""
        options: list[Act] = []
        if self.left["tasks"]:
            options += [self.produce] * 2
        if self.left["moves"]:
            options.append(self.order)
        options += [self.pass_time, self.truncate, *self.more()]
        if self.left["duplicates"]:
            options.append(self.duplicate)
        options += [partial(self.work, place) for place in self.all] * 2
        if self.left["crashes"]:
            options.append(self.crash)
        said = self.choose(options)()
        self.trace.append(str(said))

    def crash(self) -> str:
        self.left["crashes"] -= 1
        place = self.choose(self.all)
        place.restart()
        return f"{type(place).__name__} {place.number}: its host dies"

    def told(self) -> str:
        """What has happened, for whoever has to find out why it should not have."""
        return "\n".join(f"{number:4}. {line}" for number, line in enumerate(self.trace, 1))

    # -- the end --------------------------------------------------------------------------------------------------

    def settle(self) -> None:
        """Nothing new comes: everything must end."""
        self.settling = True
        while self.left["tasks"]:
            self.produce()
        for turn in range(600):
            for place in self.all:
                self.drain(place)
            if self.idle():
                break
            if turn % 3 == 2:
                self.now += 50 if turn < 500 else 10_000
        self.check_end()

    def drain(self, place: Router | Server) -> None:
        for _ in range(40):
            found = self.steps(place)
            if not found:
                break
            self.trace.append(f"{type(place).__name__} {place.number}: {self.unit_of(place, found[:1], lost=False)}")
        clocks: list[Act] = [place.clock] if isinstance(place, Router) else [place.timers, place.tick]
        for clock in clocks:
            self.unit_of(place, [clock], lost=False)

    def idle(self) -> bool:
        waits = any(cell.queue for server in self.places for cell in server.cells.values())
        timers = any(router.moving or router.wakeups.next_due_ms for router in self.routers)
        return not (waits or timers or any(self.steps(place) for place in self.all))

    def check_end(self) -> None:
        done = Counter((result["tenant"], result["session"]) for result in self.log.results)
        if done != self.sent:
            raise PromiseError(f"performed {dict(done)}, sent {dict(self.sent)}")
        self.check_orders()
        for router in self.routers:
            self.check_router(router)
        for tenant in self.script.tenants:
            self.check_tenant(tenant)

    def check_orders(self) -> None:
        allowed = {"aborted", "view-change"}
        if self.script.timeout_ms < 1_000 or self.script.hangs:
            allowed |= {"timeout"}
        for event in self.log.events:
            reason = event.get("reason")
            known = reason in allowed or str(reason).endswith(("a mover raised", "max-pause"))
            if event["event"] == "migration-failed" and not known:
                raise PromiseError(f"a migration failed for no reason: {event}")
        finals = Counter(event["id"] for event in self.log.events if event["final"])
        wanted = Counter(order["id"] for order in self.orders)
        if finals != wanted:
            raise PromiseError(f"final events {dict(finals)}, orders {dict(wanted)}")

    def check_router(self, router: Router) -> None:
        for key, row in router.stores[placements.NAME].scan(b""):
            if not isinstance(placements.decode(row), Settled):
                raise PromiseError(f"{key.decode()} never settles: {placements.decode(row)}")
        left = list(router.stores[parked.NAME].scan(b""))
        if left:
            raise PromiseError(f"kept rows are left: {left}")

    def check_tenant(self, tenant: str) -> None:
        state = self.routers[self.router_of(tenant)].state(tenant)
        for server in self.places:
            known = server.known(tenant)
            if (known.shipping, known.staging) != (None, None):
                raise PromiseError(f"server {server.number} never ends its part for {tenant}: {known}")
            if known.epoch != state.placement.epoch or known.home not in (None, state.home):
                raise PromiseError(f"server {server.number} believes {known} of {tenant}, it is {state.placement}")
            marks = [key for key, _ in server.stores[handoffs.NAME].scan(b"") if not key.startswith(handoffs.TENANT)]
            if marks:
                raise PromiseError(f"server {server.number} has {marks} left")
            if list(server.stores[waiting_table.NAME].scan(b"")):
                raise PromiseError(f"server {server.number}: something still waits")
            live = sessions_table.key_of(tenant, state.placement.epoch, "")
            for key, _ in server.stores[sessions_table.NAME].scan(tenant.encode() + b"\0"):
                if server.number != state.home or not key.startswith(live):
                    raise PromiseError(
                        f"server {server.number} has the row {key!r} left, {tenant} lives at {state.placement}"
                    )
