"""The world with views: servers fail and return by order and because workers die, leave and come back."""

import json
from dataclasses import dataclass
from functools import partial
from typing import Any

from app.protocol import views
from app.protocol.affinity import Aligned
from app.protocol.control import encode
from app.protocol.homes import Seen
from app.protocol.markers import Leaving
from app.protocol.placement import home_of, route
from tables import handoffs
from tables import sessions as sessions_table
from tables import waiting as waiting_table
from tests.simulation.log import Choose, PromiseError, Record
from tests.simulation.sim_router import Router
from tests.simulation.sim_server import Server
from tests.simulation.view_router import ViewRouter
from tests.simulation.view_server import ViewServer
from tests.simulation.world import Act, Script, World

FINALS = {"server-closed", "server-restored", "worker-forgotten", "command-rejected"}


@dataclass(frozen=True)
class ViewScript(Script):
    """``orders_of_views``: how many; ``turns``: how often a worker dies, leaves or comes. ``home_fails``: the
    first tenant's home is failed before anything else, so that its sessions live at their backups. ``steps``: so
    many things happen before all must end.
    """

    orders_of_views: int = 4
    turns: int = 0
    workers: int = 3
    rehome_after_ms: int = 30
    forget_after_ms: int = 5_000
    home_fails: bool = False
    steps: int = 160


class ViewWorld(World):
    ROUTER = ViewRouter
    SERVER = ViewServer
    script: ViewScript
    routers: list[ViewRouter]  # type: ignore[assignment]
    places: list[ViewServer]  # type: ignore[assignment]

    def __init__(self, choose: Choose, script: ViewScript) -> None:
        self.plan = 0
        self.names = [f"w{number}" for number in range(script.workers)]
        self.alive = dict.fromkeys(self.names, 1)
        self.incarnation = 1
        super().__init__(choose, script)
        self.left |= {"views": script.orders_of_views, "turns": script.turns}
        if script.home_fails:
            home = home_of(script.tenants[0].encode(), None, script.servers)
            self.trace.append(self.put_order({"id": "c0", "command": "fail-server", "server": home}))
            for _ in range(10):
                for place in self.all:
                    self.drain(place)

    # -- workers --------------------------------------------------------------------------------------------------

    def host(self, server: int) -> str:
        order = (self.names[(server + step) % len(self.names)] for step in range(len(self.names)))
        return next(name for name in order if name in self.alive)

    def seen(self) -> Seen:
        return Seen(dict(self.alive), tuple(self.host(server) for server in range(self.servers)), settled=True)

    def turn(self) -> str:
        """A worker dies, leaves in good order, or comes (back)."""
        self.left["turns"] -= 1
        name = self.choose(self.names)
        before = self.seen().hosts
        if name not in self.alive:
            self.incarnation += 1
            self.alive[name] = self.incarnation
            said = "comes"
        elif len(self.alive) == 1:
            return f"{name} is the last worker"
        elif self.choose([True, False]):
            del self.alive[name]
            said = "dies"
        else:
            record = Leaving(name, self.alive.pop(name))
            self.log.partition(("commands", 0)).append(Record(*encode(record)))
            said = "leaves"
        self.plan += 1
        for server, (was, now) in enumerate(zip(before, self.seen().hosts, strict=True)):
            if was != now:
                self.places[server].restart()
        if self.choose([False, True]):
            self.routers[0].restart()
        return f"{name} {said}"

    # -- orders ---------------------------------------------------------------------------------------------------

    def order_of_views(self) -> str:
        self.left["views"] -= 1
        order: dict[str, Any] = {"id": f"c{len(self.orders)}"}
        order["command"] = self.choose(["fail-server"] * 3 + ["restore-server"] * 3 + ["forget-worker"])
        if order["command"] == "forget-worker":
            order["worker"] = self.choose(self.names)
        else:
            order["server"] = self.choose(range(self.servers))
        return self.put_order(order)

    def put_order(self, order: dict[str, Any]) -> str:
        self.orders.append(order)
        self.log.partition(("commands", 0)).append(Record(None, json.dumps(order).encode()))
        return f"orders {order}"

    def moves(self, order: dict[str, Any]) -> dict[str, Any]:
        if order["command"] == "migrate":
            order["from_backups"] = self.choose([False, True])
        return order

    # -- what may happen ------------------------------------------------------------------------------------------

    def more(self) -> list[Act]:
        found: list[Act] = [self.order_of_views] * 2 if self.left["views"] else []
        return [*found, self.turn] if self.left["turns"] else found

    def router_steps(self, router: Router) -> list[Act]:
        assert isinstance(router, ViewRouter)
        steps = super().router_steps(router)
        return [*steps, router.look] if router.looks else steps

    def server_steps(self, server: Server) -> list[Act]:
        assert isinstance(server, ViewServer)
        return [*super().server_steps(server), *(partial(server.align, router) for router in server.aligning())]

    # -- the end --------------------------------------------------------------------------------------------------

    @property
    def steward(self) -> views.State:
        return self.routers[0].steward

    def idle(self) -> bool:
        moment = self.routers[0].moment_of_views
        calm = isinstance(self.steward, views.Calm) and views.due_ms(self.steward, moment) is None
        return calm and super().idle()

    def check_end(self) -> None:
        super().check_end()
        if not isinstance(self.steward, views.Calm):
            raise PromiseError(f"a view never closes: {self.steward}")
        known = self.steward.known
        alarms = [event for event in self.log.events if event["event"] == "hand-off-wrong"]
        if alarms:
            raise PromiseError(f"{alarms}")
        for router in self.routers:
            if (router.adopted.epoch, router.adopted.down, router.adopted.closed) != (known.epoch, known.down, True):
                raise PromiseError(f"router {router.number} has {router.adopted}, the steward {known}")
        for server in self.places:
            wrong = [s for s in server.aligned if not isinstance(s, Aligned) or s.change.epoch != known.epoch]
            if wrong or server.held.total or any(True for _ in server.stores[handoffs.NAME].scan(handoffs.HELD)):
                raise PromiseError(f"server {server.number} has not closed view {known.epoch}: {server.aligned}")
        waits = [server for server in known.down - known.sticky if known.homes.homes[server] in self.alive]
        if waits:
            raise PromiseError(f"{waits} never come back: {known}")

    def check_tenant(self, tenant: str) -> None:
        state = self.routers[self.router_of(tenant)].state(tenant)
        up = frozenset(range(self.servers)) - self.steward.known.down
        for server in self.places:
            known = server.known(tenant)
            if (known.shipping, known.staging) != (None, None):
                raise PromiseError(f"server {server.number} never ends its part for {tenant}: {known}")
            if known.epoch != state.placement.epoch or known.home not in (None, state.home):
                raise PromiseError(f"server {server.number} believes {known} of {tenant}, it is {state.placement}")
            rest = (handoffs.MARK, handoffs.SWEEP, handoffs.UNMARK, handoffs.MEASURE)
            left = [key for key, _ in server.stores[handoffs.NAME].scan(b"") if key.startswith(rest)]
            if left or any(True for _ in server.stores[waiting_table.NAME].scan(b"")):
                raise PromiseError(f"server {server.number} has {left} left, or something still waits")
            live = sessions_table.key_of(tenant, state.placement.epoch, "")
            for key, _ in server.stores[sessions_table.NAME].scan(tenant.encode() + b"\0"):
                session = key.split(b"\0")[2].decode()
                if not key.startswith(live) or route(tenant, session, state.home, up) != server.number:
                    raise PromiseError(f"server {server.number} has the row {key!r} left, {tenant} is {state}")
