"""Putting one worker together, and what it can tell about itself and its cluster."""

import asyncio
import re
import signal
import time
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from typing import Any, NamedTuple
from urllib.parse import urlsplit

import orjson

from agents import exchanges, router, server, transfers
from agents.cells import Cell, Entry, ServerContext
from agents.release import DelayReader
from agents.suspicion import Vigilance
from app import movers, topics
from app.engine.driver import EngineConsumer, create_app
from app.engine.engine import Engine
from app.engine.options import EngineOptions
from app.engine.places import PlaceKind
from app.engine.watchdog import Watchdog
from app.errors import ConfigurationError, UnavailableError
from app.handlers import Handler
from app.protocol.backup_order import backup_order
from app.protocol.murmur2 import partition_of
from app.protocol.placement import home_of, route, session_key
from app.settings import INTERNAL_SLACK_BYTES, Settings, kafka_config
from app.storage import open_storage
from app.worker import exchange_view, health, tenants, tracing
from app.worker import transfers as transfers_here
from app.worker.exchange_backup import BackupLag
from app.worker.figures import Figures
from app.worker.local import membership_client, open_stores, worker_directory
from tables import exchanges as exchange_tables
from tables import handoffs, outcomes, parked, placements, sessions, waiting

NAME = re.compile(r"[A-Za-z0-9_.-]{1,100}")
POOL_THREADS = 32


def kinds(settings: Settings, names: topics.Names) -> list[PlaceKind]:
    """The places of the cluster: what moves together."""
    return [
        PlaceKind(
            "router",
            settings.routers,
            (names.tasks, names.commands, names.delay),
            {table: names.changelog(table) for table in (placements.NAME, parked.NAME, outcomes.NAME)},
        ),
        PlaceKind(
            "server",
            settings.servers,
            (names.work, names.handoffs),
            {table: names.changelog(table) for table in (sessions.NAME, waiting.NAME, handoffs.NAME)},
        ),
        transfers_here.place_kind(settings, names),
        PlaceKind(
            "exchange",
            settings.routers,
            (names.requests, names.responses),
            {name: names.changelog(name) for name in (exchange_tables.NAME, exchange_tables.MESSAGES)},
        ),
    ]


class Location(NamedTuple):
    """Where a session lives now; ``worker`` and ``url`` are None while nobody hosts its server."""

    server: int
    worker: str | None
    url: str | None
    backup_order: list[int]


class Worker:
    """One worker: its parts, and the view that its HTTP server has of it (calls may come from any thread)."""

    def __init__(self, settings: Settings, name: str, registered: Mapping[str, Handler]) -> None:
        if not NAME.fullmatch(name):
            raise ConfigurationError(f"worker name {name!r}: use 1 to 100 letters, digits, '.', '_' or '-'")
        self.settings = settings
        self.name = name
        self._handlers = registered
        self._names = topics.Names(settings.namespace)
        self._incarnation = int(time.time() * 1000)
        self._engine: Engine | None = None
        self.storage = open_storage(settings.storage)
        self.transfers = transfers_here.Desk(name, settings.routers, lambda: self._engine)
        self.figures = Figures(name, settings.namespace, lambda: self._engine, self)
        self._backup_lag = BackupLag(self._running, settings.token.get_secret_value())

    # -- running --------------------------------------------------------------------------------------------------

    async def serve(self, url: str, ready: Callable[[str], None]) -> None:
        """Serve until SIGTERM or SIGINT; raises what ended the worker otherwise."""
        directory = worker_directory(self.settings, self.name)
        engine = self._engine = self._make_engine(url, directory)
        watchdog = Watchdog(self.settings.task_timeout, _write_down, lambda current: str(current[2]))
        app = create_app(self._names.group, self.name, str(directory / "faust"))
        self._attach(app, engine, watchdog)
        loop = asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, engine.stop)
        watchdog.start()
        if self.settings.exchange_backup_lag:
            self._backup_lag.start()
        await app.start()
        announcing = asyncio.ensure_future(self._announce(url, ready))
        try:
            consumer = app.consumer
            assert isinstance(consumer, EngineConsumer)
            engine.flow.deliver = consumer.deliver
            tracing.follow(engine.flow, self.settings, self.name)
            await consumer.serve({topic: kind.count for kind in engine.options.kinds for topic in kind.topics})
            await engine.run()
        finally:
            announcing.cancel()
            watchdog.stop()
            self._backup_lag.stop()
            await app.stop()

    async def _announce(self, url: str, ready: Callable[[str], None]) -> None:
        while not self.ready()[0]:  # noqa: ASYNC110 - once, at the start; the parts have no common event.
            await asyncio.sleep(0.02)
        ready(url)

    def _make_engine(self, url: str, directory: Any) -> Engine:
        settings, names = self.settings, self._names
        return Engine(
            EngineOptions(
                name=self.name,
                url=url,
                bind=settings.host,
                host=urlsplit(url).hostname or settings.host,
                incarnation=self._incarnation,
                group=names.group,
                transactional_id=names.transactional_id,
                kinds=kinds(settings, names),
                stores=open_stores(settings, directory),
                standby_replicas=settings.standby_replicas,
                commit_interval=settings.commit_interval,
                max_record_bytes=settings.max_record_bytes + INTERNAL_SLACK_BYTES,
                suspects=names.suspects,
                truncated=frozenset({names.work, names.handoffs, names.delay}),
                # What librdkafka has to say about connections, the engine says in its own words.
                kafka={**kafka_config(settings), "log_level": 6 if settings.log_level == "debug" else 2},
                membership_client=membership_client(settings, self.name),
            )
        )

    def _attach(self, app: Any, engine: Engine, watchdog: Watchdog) -> None:
        """Register the agents, and how each makes its part for a place that opens."""
        settings, names = self.settings, self._names
        routing, serving, managing = self._routing(engine), self._serving(engine, watchdog), self._managing(engine)
        self.figures.follow(engine, routing)
        engine.residents = {
            "router": lambda place: router.Router(routing, place),
            "server": lambda place: server.Server(serving, place),
            transfers_here.KIND: transfers_here.owners(
                engine, settings, names, self.name, self.storage, ThreadPoolExecutor(4, thread_name_prefix="compose")
            ),
            "exchange": lambda place: exchanges.Manager(managing, place),
        }
        exchanges.attach(app, names)
        router.attach(app, names)
        server.attach(app, names)
        transfers.attach(app, names)

    def _routing(self, engine: Engine) -> router.RouterContext:
        settings, names = self.settings, self._names
        return router.RouterContext(
            engine=engine,
            names=names,
            routers=settings.routers,
            servers=settings.servers,
            up=frozenset(range(settings.servers)),
            reader=lambda number: DelayReader(
                engine.options.kafka,
                f"{names.group}-delay",
                names.delay,
                number,
                max_record_bytes=engine.options.max_record_bytes,
            ),
            delay_ms=round(settings.delay * 1000),
            timeout_ms=round(settings.migration_timeout * 1000),
            offline=bool(movers.registered()),
        )

    def _serving(self, engine: Engine, watchdog: Watchdog) -> ServerContext:
        settings = self.settings
        return ServerContext(
            engine=engine,
            names=self._names,
            worker=orjson.dumps(self.name),
            handlers=self._handlers,
            routers=settings.routers,
            servers=settings.servers,
            limit=settings.max_record_bytes,
            task_timeout=settings.task_timeout,
            max_attempts=settings.max_attempts,
            max_crashes=settings.max_crashes,
            session_ttl=settings.session_ttl,
            pool=ThreadPoolExecutor(POOL_THREADS, thread_name_prefix="handler"),
            watchdog=watchdog,
            announcements=engine.announcements,
            movers=movers.registered(),
        )

    def _managing(self, engine: Engine) -> exchanges.ExchangeContext:
        settings = self.settings
        return exchanges.ExchangeContext(
            engine=engine,
            names=self._names,
            managers=settings.routers,
            worker=self.name,
            limit=settings.max_record_bytes,
            lease=settings.lease,
            timeout=settings.exchange_timeout,
            retention=settings.exchange_retention,
            crashes_max=settings.max_crashes,
            lag_max=settings.exchange_backup_lag,
            lag=self._backup_lag.lag,
        )

    # -- what it can tell -----------------------------------------------------------------------------------------

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
        lags = engine.janitor.lags if engine is not None else {}
        waiting_here = sum(
            place.resident.waiting_count()
            for place in (engine.places.running() if engine is not None else ())
            if isinstance(place.resident, server.Server)
        )
        return {
            "namespace": self.settings.namespace,
            "view": 0,
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
            "servers": [
                {
                    "server": number,
                    "up": True,
                    "host": hosts.get(f"server-{number}"),
                    "standbys": list(plan.standbys.get(f"server-{number}", ())) if plan is not None else [],
                    "lag": lags.get((self._names.work, number)),
                }
                for number in range(self.settings.servers)
            ],
            "migrations": tenants.migrations(engine),
            "parked": tenants.parked(engine),
            "waiting": waiting_here,
        }

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

    def locate(self, tenant: str, session: str) -> Location:
        """Compute where a session lives; it need not exist."""
        servers = self.settings.servers
        home = home_of(tenant.encode(), tenants.placed(self._engine, tenant)[0], servers)
        number = route(tenant, session, home, frozenset(range(servers)))
        host, url = self._host(f"server-{number}")
        return Location(number, host, url, list(backup_order(session_key(tenant, session), servers)))

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

    def read_session(self, tenant: str, session: str) -> dict[str, Any] | None:
        """A session's committed rows, on its host: state, sequence, and what waits and why.

        Raises:
            UnavailableError: its server is not here, or is still being restored.
        """
        number = self.locate(tenant, session).server
        place = self._engine.places.all[f"server-{number}"] if self._engine is not None else None
        if self._engine is None or place is None or not place.running:
            raise UnavailableError(f"server {number} is not served by worker {self.name} now", retry_after_s=0.5)
        key = sessions.key_of(tenant, tenants.live_epoch(self._engine, number, tenant), session)
        row = place.rows[sessions.NAME].peek(key)
        queue = [waiting.decode(found, value)[2] for found, value in place.rows[waiting.NAME].store.scan(key + b"\0")]
        if row is None and not queue:
            return None
        decoded = sessions.decode(row) if row is not None else None
        return {
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


def _numbers(kind: str, worker: str, hosts: Mapping[str, str]) -> list[int]:
    return sorted(
        int(place.rpartition("-")[2])
        for place, host in hosts.items()
        if host == worker and place.startswith(f"{kind}-")
    )


def _write_down(current: tuple[Vigilance, Cell, Entry]) -> None:
    """A handler in line did not return: leave word for the next host of its task."""
    vigilance, cell, entry = current
    vigilance.timed_out(cell.row_key, entry.arrival)
