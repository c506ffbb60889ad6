"""The worker: the composition root, the only module that knows all parts."""

import asyncio
import json
import logging
import os
import re
import signal
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import orjson

from agents import router, server
from agents.cells import ServerContext
from app import handlers, topics
from app.engine.announcements import Announcements
from app.engine.driver import EngineConsumer, create_app
from app.engine.engine import Engine
from app.engine.places import Place, PlaceKind
from app.engine.stores import StoreFactory
from app.engine.stores.memory import MemoryStores
from app.engine.watchdog import Watchdog
from app.errors import ConfigurationError, HoldfastError
from app.protocol.backup_order import backup_order
from app.protocol.placement import home_of, route, session_key
from app.settings import Settings, kafka_config, require_bootstrap
from tables import placements, sessions, waiting

log = logging.getLogger(__name__)

NAME = re.compile(r"[A-Za-z0-9_.-]{1,100}")
POOL_THREADS = 32


def kinds(settings: Settings, names: topics.Names) -> list[PlaceKind]:
    """The places of the cluster: what moves together."""
    return [
        PlaceKind(
            "router",
            settings.routers,
            (names.tasks, names.commands, names.delay),
            {placements.NAME: names.changelog(placements.NAME)},
        ),
        PlaceKind(
            "server",
            settings.servers,
            (names.work, names.handoffs),
            {sessions.NAME: names.changelog(sessions.NAME), waiting.NAME: names.changelog(waiting.NAME)},
        ),
    ]


def open_stores(settings: Settings, directory: Path) -> StoreFactory:
    if settings.store == "memory":
        return MemoryStores()
    from app.engine.stores.rocksdb import RocksStores  # only who uses it pays for loading it

    return RocksStores(directory / "rows")


class Worker:
    """One worker process's parts, put together. ``settings`` must name a broker."""

    def __init__(self, settings: Settings, name: str) -> None:
        if not NAME.fullmatch(name):
            raise ConfigurationError(f"worker name {name!r}: use 1 to 100 letters, digits, '.', '_' or '-'")
        self.settings = settings
        self.name = name
        self.names = topics.Names(settings.namespace)
        self.config = kafka_config(settings)
        self.incarnation = int(time.time() * 1000)

    async def serve(self, url: str, started: Any = None) -> None:
        """Serve until cancelled or :meth:`stop`."""
        settings, names = self.settings, self.names
        directory = settings.state_dir / "workers" / self.name
        registered = handlers.load(settings.handlers)
        limit = settings.max_record_bytes
        self.engine = engine = Engine(
            name=self.name,
            url=url,
            incarnation=self.incarnation,
            group=names.group,
            transactional_id=names.transactional_id,
            kinds=kinds(settings, names),
            stores=open_stores(settings, directory),
            standby_replicas=settings.standby_replicas,
            commit_interval=settings.commit_interval,
            max_record_bytes=limit + 2**17,
            config=self.config,
            membership_client={"bootstrap_servers": require_bootstrap(settings), "client_id": self.name},
        )
        announcements = Announcements(self.config, names.suspects)
        watchdog = Watchdog(settings.task_timeout, lambda current: None)
        router_context = router.RouterContext(
            engine, names, settings.routers, settings.servers, frozenset(range(settings.servers))
        )
        server_context = ServerContext(
            engine,
            names,
            self.name,
            registered,
            settings.routers,
            limit,
            settings.task_timeout,
            settings.max_attempts,
            settings.max_crashes,
            ThreadPoolExecutor(POOL_THREADS, thread_name_prefix="handler"),
            watchdog,
            announcements,
        )
        engine.residents = {
            "router": lambda place: router.Router(router_context, place),
            "server": lambda place: server.Server(server_context, place),
        }
        (directory / "faust").mkdir(parents=True, exist_ok=True)
        app = create_app(names.group, self.name, str(directory / "faust"))
        router.attach(app, names)
        server.attach(app, names)
        loop = asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, engine.stop)
        watchdog.start()
        await app.start()
        try:
            consumer = app.consumer
            assert isinstance(consumer, EngineConsumer)
            engine.deliver = consumer.deliver
            counts = {topic: kind.count for kind in kinds(settings, names) for topic in kind.topics}
            await consumer.serve(counts)
            await engine.run()
        finally:
            watchdog.stop()
            await app.stop()


def run(settings: Settings, name: str) -> int:
    """Run one worker in the foreground; the exit code. SIGTERM leaves cleanly."""
    try:
        worker = Worker(settings, name)
        topics.ensure(topics.connect(settings), settings)
        asyncio.run(worker.serve("http://127.0.0.1:0"))
        return 0
    except HoldfastError as error:
        log.error("%s", error)
        return error.exit_code
