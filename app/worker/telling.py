"""What one worker can tell about itself and its cluster."""

from collections.abc import Mapping
from typing import Any, NamedTuple

import orjson

from agents import server
from app import topics
from app.engine.engine import Engine
from app.errors import UnavailableError
from app.protocol.backup_order import backup_order
from app.protocol.forwarding import Decision, first_guess, received
from app.protocol.murmur2 import partition_of
from app.protocol.placement import home_of, session_key
from app.settings import Settings
from app.worker import exchange_view, health, tenants, views
from tables import sessions, waiting


class Location(NamedTuple):
    """Where a session lives now; ``worker`` and ``url`` are None while nobody hosts its server."""

    server: int
    worker: str | None
    url: str | None
    backup_order: list[int]


class Telling:
    """The view that a worker's HTTP server has of it. Calls may come from any thread."""

    def __init__(self, settings: Settings, name: str) -> None:
        self.settings = settings
        self.name = name
        self._names = topics.Names(settings.namespace)
        self._engine: Engine | None = None

    def ready(self) -> tuple[bool, str]:
        """Is everything that the group gave to this worker restored and served?"""
        engine = self._engine
        if engine is None or engine.generation < 0 or engine.halted:
            return False, "waiting for the group"
        missing = [name for name in engine.plan.hosted_by(self.name) if not engine.places.all[name].running]
        return (False, f"restoring {', '.join(sorted(missing))}") if missing else (True, "")

    def healthy(self) -> tuple[bool, str]:
        """Does anything move, if there is something to do?"""
        return health.healthy(self._engine, self.settings.task_timeout)

    def status(self) -> dict[str, Any]:
        """The cluster as this worker sees it: the object of ``/api/status``."""
        engine = self._engine
        plan = engine.plan if engine is not None else None
        hosts = plan.host if plan is not None else {}
        view = views.known(engine, self.settings.servers)
        waiting_here = views.held(engine) + sum(
            place.resident.waiting_count()
            for place in (engine.places.running() if engine is not None else ())
            if isinstance(place.resident, server.Server)
        )
        return {
            "namespace": self.settings.namespace,
            "view": view.epoch,
            "workers": [
                {
                    "name": name,
                    "url": entry[0],
                    "state": self._state(name),
                    "routers": _numbers("router", name, hosts),
                    "servers": _numbers("server", name, hosts),
                }
                for name, entry in sorted((plan.workers if plan is not None else {}).items())
            ],
            "servers": self.servers(),
            "warming": sorted(plan.warmups) if plan is not None else [],
            "migrations": tenants.migrations(engine),
            "parked": tenants.parked(engine),
            "waiting": waiting_here,
        }

    def servers(self) -> list[dict[str, Any]]:
        """The servers as this worker sees them: the objects of ``/api/servers``."""
        engine = self._engine
        plan = engine.plan if engine is not None else None
        lags = engine.janitor.lags if engine is not None else {}
        view = views.known(engine, self.settings.servers)
        here = views.here(engine)
        steward = views.steward(engine)
        return [
            {
                "server": number,
                "up": number in view.up,
                "host": plan.host.get(f"server-{number}") if plan is not None else None,
                "standbys": list(plan.standbys.get(f"server-{number}", ())) if plan is not None else [],
                "lag": lags.get((self._names.work, number)),
                **here.get(number, {"view": None, "aligning": None, "held": None}),
                **steward(number),
            }
            for number in range(self.settings.servers)
        ]

    def _state(self, name: str) -> str:
        return "running" if name != self.name or self.ready()[0] else "restoring"

    def _running(self) -> Engine:
        if self._engine is None:
            raise UnavailableError("the worker is starting", retry_after_s=0.5)
        return self._engine

    def managers(self) -> list[dict[str, Any]]:
        """The managers of exchanges: host and backups of each."""
        return exchange_view.managers(self._running())

    def manager_of(self, exchange: str) -> int:
        """The number of the manager of an exchange."""
        return exchange_view.manager_of(exchange, self.settings.routers)

    def local_exchanges(self) -> dict[str, Any]:
        """The exchanges that are managed here, and the marks of all managers whose rows are here."""
        return exchange_view.local(self._running())

    def exchange_marks(self) -> dict[str, dict[str, Any]]:
        """By manager of exchanges, how new the rows are that are here."""
        return exchange_view.marks(self._running())

    def read_exchange(self, exchange: str) -> dict[str, Any] | None:
        """An exchange that is managed here; see :func:`app.worker.exchange_view.show`."""
        return exchange_view.show(self._running(), exchange)

    def knows(self, server: int) -> bool:
        """Is there a server of this number?"""
        return 0 <= server < self.settings.servers

    def host_of(self, server: int) -> tuple[str | None, str | None]:
        """Name and address of the worker that hosts a server."""
        return self._host(f"server-{server}")

    def home(self, tenant: str) -> int:
        """Where a tenant is at home, as far as this worker knows."""
        return home_of(tenant.encode(), tenants.placed(self._engine, tenant)[0], self.settings.servers)

    def locate(self, tenant: str, session: str, primary: int | None = None) -> Location:
        """Compute where a session lives; it need not exist."""
        servers = self.settings.servers
        believed = primary if primary is not None and self.knows(primary) else self.home(tenant)
        number = first_guess(tenant, session, believed, servers, views.known(self._engine, servers).up)
        host, url = self._host(f"server-{number}")
        return Location(number, host, url, list(backup_order(session_key(tenant, session), servers)))

    def receive(self, tenant: str, session: str, server: int, hops: int) -> Decision:
        """What a server that is hosted here does with a request that has made so many hops.

        Raises:
            UnavailableError: the server is not here, or is still being restored.
        """
        return received(views.whose(self._engine, server, tenant, session), hops)

    def _host(self, place: str) -> tuple[str | None, str | None]:
        """The worker that hosts a place now, and its address."""
        plan = self._engine.plan if self._engine is not None else None
        host = plan.host.get(place) if plan is not None else None
        return host, plan.workers[host][0] if plan is not None and host in plan.workers else None

    def others(self) -> list[str]:
        """The addresses of the other workers."""
        plan = self._engine.plan if self._engine is not None else None
        return [entry[0] for name, entry in sorted((plan.workers if plan else {}).items()) if name != self.name]

    def tenants(self) -> list[dict[str, Any]]:
        """Tenants that this worker knows of by what it hosts."""
        return tenants.listed(self._engine, self.settings.servers)

    def locate_tenant(self, tenant: str) -> Location:
        """Compute which worker decides about a tenant; ``server`` is its home as far as this worker knows."""
        servers = self.settings.servers
        home = home_of(tenant.encode(), tenants.placed(self._engine, tenant)[0], servers)
        host, url = self._host(f"router-{partition_of(tenant.encode(), self.settings.routers)}")
        return Location(home, host, url, list(backup_order(tenant.encode(), servers)))

    def read_tenant(self, tenant: str) -> dict[str, Any]:
        """Where a tenant lives and what moves, as its router's committed row says.

        Raises:
            UnavailableError: its router is not here, or is still being restored.
        """
        number = partition_of(tenant.encode(), self.settings.routers)
        place = self._engine.places.all[f"router-{number}"] if self._engine is not None else None
        if self._engine is None or place is None or not place.running:
            raise UnavailableError(f"router {number} is not served by worker {self.name} now", retry_after_s=0.5)
        found = tenants.read(self._engine, number, self.settings.servers, tenant)
        return {"tenant": tenant, "router": number, **found, "host": self._host(f"server-{found['home']}")[0]}

    def read_session(self, tenant: str, session: str, number: int) -> dict[str, Any] | None:
        """A session's committed rows, on its host: state, sequence, what waits and why, and why it lives here.

        Raises:
            UnavailableError: its server is not here, or is still being restored.
        """
        place = self._engine.places.all[f"server-{number}"] if self._engine is not None else None
        if self._engine is None or place is None or not place.running:
            raise UnavailableError(f"server {number} is not served by worker {self.name} now", retry_after_s=0.5)
        key = sessions.key_of(tenant, tenants.live_epoch(self._engine, number, tenant), session)
        row = place.rows[sessions.NAME].peek(key)
        queue = [waiting.decode(found, value)[2] for found, value in place.rows[waiting.NAME].store.scan(key + b"\0")]
        if row is None and not queue:
            return None
        decoded = sessions.decode(row) if row is not None else None
        order = backup_order(session_key(tenant, session), self.settings.servers)
        home = self.home(tenant)
        up = views.known(self._engine, self.settings.servers).up
        return {
            "home": home,
            "why": _why(number, home, order, up),
            "backup_order": list(order),
            "state": orjson.loads(decoded.state) if decoded is not None else {},
            "sequence": decoded.sequence if decoded is not None else 0,
            "waiting": [
                {
                    "source": {"partition": entry.partition, "offset": entry.offset},
                    "phase": entry.waiting.phase.value,
                    "attempt": entry.waiting.attempt,
                    "due_ms": entry.waiting.due_ms,
                }
                for entry in queue
            ],
        }


def _why(server: int, home: int, order: tuple[int, ...], up: frozenset[int]) -> str:
    if server == home:
        return f"server {home} is its tenant's home"
    if home in up:
        return f"it is on its way home to server {home}"
    before = [str(other) for other in order[: order.index(server)] if other not in up]
    skipped = f" (before it in the order, and down: {', '.join(before)})" if before else ""
    return (
        f"server {home}, its tenant's home, is down; of those that are up, {server} is the first of its order{skipped}"
    )


def _numbers(kind: str, worker: str, hosts: Mapping[str, str]) -> list[int]:
    return sorted(
        int(place.rpartition("-")[2])
        for place, host in hosts.items()
        if host == worker and place.startswith(f"{kind}-")
    )
