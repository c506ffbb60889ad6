"""Putting one worker together."""

import asyncio
import re
import signal
import time
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from typing import Any
from urllib.parse import urlsplit

import orjson

from agents import exchanges, router, server, transfers
from agents.cells import Cell, Entry, ServerContext
from agents.orders import SERVER_COMMANDS_AT
from agents.release import DelayReader
from agents.suspicion import Vigilance
from app import movers, topics
from app.engine.connection import membership_client
from app.engine.driver import EngineConsumer, create_app
from app.engine.engine import Engine
from app.engine.options import EngineOptions
from app.engine.places import PlaceKind
from app.engine.watchdog import Watchdog
from app.errors import ConfigurationError
from app.handlers import Handler
from app.protocol import control
from app.protocol.group_data import GroupPlan
from app.protocol.homes import Seen
from app.protocol.markers import Leaving
from app.settings import INTERNAL_SLACK_BYTES, Settings, kafka_config
from app.worker import tracing
from app.worker import transfers as transfers_here
from app.worker.exchange_backup import BackupLag
from app.worker.figures import Figures
from app.worker.local import open_stores, worker_directory
from app.worker.telling import Telling
from tables import exchanges as exchange_tables
from tables import handoffs, outcomes, parked, placements, sessions, views, waiting

NAME = re.compile(r"[A-Za-z0-9_.-]{1,100}")
POOL_THREADS = 32


def kinds(settings: Settings, names: topics.Names) -> list[PlaceKind]:
    """The places of the cluster: what moves together."""
    return [
        PlaceKind(
            "router",
            settings.routers,
            (names.tasks, names.commands, names.delay),
            {table: names.changelog(table) for table in (placements.NAME, parked.NAME, outcomes.NAME, views.NAME)},
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


class Worker(Telling):
    """One worker: its parts, and what it can tell."""

    def __init__(self, settings: Settings, name: str, registered: Mapping[str, Handler]) -> None:
        if not NAME.fullmatch(name):
            raise ConfigurationError(f"worker name {name!r}: use 1 to 100 letters, digits, '.', '_' or '-'")
        super().__init__(settings, name)
        self._handlers = registered
        self._incarnation = int(time.time() * 1000)
        self.storage = transfers_here.storage_of(settings)
        self._movers = transfers_here.files_of_tenants(self.storage, movers.registered())
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
        self.figures.follow(engine, routing, serving.rehomed, serving.copied)
        leaving = control.encode(Leaving(self.name, self._incarnation))
        engine.farewell = (names.commands, SERVER_COMMANDS_AT, *leaving)
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
            reader=lambda number: DelayReader(
                engine.options.kafka,
                f"{names.group}-delay",
                names.delay,
                number,
                max_record_bytes=engine.options.max_record_bytes,
            ),
            delay_ms=round(settings.delay * 1000),
            timeout_ms=round(settings.migration_timeout * 1000),
            seen=lambda: seen(engine.plan, settings.servers),
            offline=bool(self._movers),
            rehome_after_ms=round(settings.rehome_after * 1000),
            forget_after_ms=round(settings.forget_after * 1000),
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
            movers=self._movers,
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


def seen(plan: GroupPlan, servers: int) -> Seen:
    """What the steward sees of the group in a plan."""
    return Seen(
        workers={name: incarnation for name, (_, incarnation) in plan.workers.items()},
        hosts=tuple(plan.host.get(f"server-{number}", "") for number in range(servers)),
        settled=not plan.warmups,
    )


def _write_down(current: tuple[Vigilance, Cell, Entry]) -> None:
    """A handler in line did not return: leave word for the next host of its task."""
    vigilance, cell, entry = current
    vigilance.timed_out(cell.row_key, entry.arrival)
