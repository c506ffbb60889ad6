"""A server or router outside a worker: real rows, queues and units; the engine around it only takes notes."""

import asyncio
import json
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any, cast

from agents.cells import ServerContext
from agents.release import DelayReader
from agents.router import Router, RouterContext
from agents.server import Server
from app.engine.announcements import Announcements
from app.engine.engine import Engine
from app.engine.fetch import Batch
from app.engine.janitor import EmitLimit
from app.engine.offsets import Committed
from app.engine.places import Place, PlaceKind
from app.engine.stores.memory import MemoryStore
from app.engine.table import Rows
from app.engine.unit_of_work import Unit
from app.engine.watchdog import Watchdog
from app.errors import UnavailableError
from app.handlers import Handler
from app.protocol.homes import Seen
from app.settings import INTERNAL_SLACK_BYTES
from app.topics import Names
from tables import handoffs, outcomes, parked, placements, sessions, views, waiting

LIMIT = 100_000
NAMES = Names("ns")
TENANT = "acme"


class Suspects:
    """Stands for the topic ``suspects``: what was written last, by key."""

    def __init__(self) -> None:
        self.standing: dict[bytes, bytes] = {}
        self.reachable = True

    def write(self, key: bytes, value: bytes | None, *, timeout: float | None = None) -> None:
        if not self.reachable:
            raise UnavailableError("no broker", retry_after_s=1.0)
        if value is None:
            self.standing.pop(key, None)
        else:
            self.standing[key] = value


class Workshop:
    """What residents see of an engine; units are committed by :meth:`commit`."""

    def __init__(self) -> None:
        self.unit = Unit(60.0)
        self.generation = 1
        self.failure: BaseException | None = None
        self.failing = False
        self.options = SimpleNamespace(max_record_bytes=LIMIT + INTERNAL_SLACK_BYTES)
        self.flow = SimpleNamespace(quiet=True, hurry=lambda alone=False: None)
        self.topics: dict[str, EmitLimit] = {}
        self.janitor = SimpleNamespace(largest_record=self.topics.get)
        self.suspects = Suspects()

    def hurry(self) -> None:
        """Units are committed by the test."""

    def wake(self) -> None:
        """Nothing sleeps."""

    def submit(self, work: Callable[[], None]) -> None:
        def run() -> None:
            try:
                work()
            except BaseException as error:  # noqa: BLE001 - as the engine does.
                self.fail(error)

        asyncio.get_running_loop().call_soon(run)

    def fail(self, error: BaseException) -> None:
        self.failure = self.failure or error

    def records(self, topic: str) -> list[dict[str, Any]]:
        """What the open unit holds for a topic."""
        return self.unit.of({topic})

    def results(self) -> list[dict[str, Any]]:
        return [json.loads(record["value"]) for record in self.records(NAMES.results)]


@dataclass(slots=True)
class Message:
    """A record as the fetcher hands it over."""

    where: int
    content: bytes | None
    name: bytes | None = None
    fields: list[tuple[str, bytes]] | None = None

    def offset(self) -> int:
        return self.where

    def key(self) -> bytes | None:
        return self.name

    def value(self) -> bytes | None:
        return self.content

    def headers(self) -> list[tuple[str, bytes]] | None:
        return self.fields


def batch(topic: str, messages: list[Message]) -> Batch:
    return Batch(topic, 0, cast("Any", messages), messages[-1].offset() + 1)


def task(kind: str, session: str = "s", payload: dict[str, Any] | None = None, **fields: Any) -> bytes:
    return json.dumps({"tenant": TENANT, "session": session, "type": kind, "payload": payload or {}, **fields}).encode()


class ServerBench:
    """One server with its rows; closed and opened again it finds what was committed."""

    def __init__(self, handlers: dict[str, Handler], *, max_crashes: int = 3, ttl: float = 0.0) -> None:
        self.engine = Workshop()
        self.pool = ThreadPoolExecutor(2)
        self.offset = 0
        self.context = ServerContext(
            engine=cast("Engine", self.engine),
            names=NAMES,
            worker=b'"w1"',
            handlers=handlers,
            routers=1,
            servers=1,
            limit=LIMIT,
            task_timeout=10.0,
            max_attempts=5,
            max_crashes=max_crashes,
            session_ttl=ttl,
            pool=self.pool,
            watchdog=cast("Watchdog", SimpleNamespace(current=None)),
            announcements=cast("Announcements", self.engine.suspects),
        )
        kind = PlaceKind("server", 1, (NAMES.work,), {})
        self.place = Place(kind, 0, "server-0", committed={(NAMES.work, 0): Committed(0, None)})
        for name in (sessions.NAME, waiting.NAME, handoffs.NAME):
            self.place.rows[name] = Rows(MemoryStore(), NAMES.changelog(name), 0)
        self.server = Server(self.context, self.place)

    def reopen(self, *, died: bool) -> None:
        """Another worker takes the server over; what was not committed has not happened."""
        for rows in self.place.rows.values():
            rows.discard()
        self.engine.unit = Unit(60.0)
        self.place.owner_died = died
        self.place.suspicions = dict(self.engine.suspects.standing)
        self.place.committed = {(NAMES.work, 0): Committed(self.offset, None)}
        self.place.ends = {(NAMES.work, 0): self.offset}
        self.server = Server(self.context, self.place)

    def perform(self, *values: bytes) -> None:
        first = self.offset
        self.offset += len(values)
        messages = [Message(first + n, value, b"0:%d" % (first + n)) for n, value in enumerate(values)]
        self.server.perform(batch(NAMES.work, messages), time.monotonic() + 60)

    def commit(self) -> None:
        self.server.before_seal()
        for rows in self.place.rows.values():
            if rows.dirty:
                rows.store.apply(rows.seal().items(), None)
                rows.settled()
        self.engine.unit = Unit(60.0)
        self.server.after_commit({(NAMES.work, 0): self.offset})


def handler(function: Any, *, asynchronous: bool = False) -> Handler:
    return Handler("t", function, False, asynchronous, None, None)


class Log:
    """Stands for the second reader of `delay`: hands out what the test has put there."""

    def __init__(self) -> None:
        self.records: list[Message] = []
        self.at: int | None = None

    def follow(self, offset: int) -> None:
        self.at = offset

    def leave(self) -> None:
        self.at = None

    def take(self, most: int) -> list[Message]:
        found = [record for record in self.records if self.at is not None and record.offset() >= self.at][:most]
        if found:
            self.at = found[-1].offset() + 1
        return found

    def close(self) -> None:
        """Nothing to let go of."""


def make_router(routers: int = 1) -> tuple[Router, Workshop]:
    engine = Workshop()
    kind = PlaceKind("router", routers, (NAMES.tasks, NAMES.commands, NAMES.delay), {})
    place = Place(kind, 0, "router-0", committed={(NAMES.delay, 0): Committed(0, None)})
    for name in (placements.NAME, parked.NAME, outcomes.NAME, views.NAME):
        place.rows[name] = Rows(MemoryStore(), NAMES.changelog(name), 0)
    context = RouterContext(
        engine=cast("Engine", engine),
        names=NAMES,
        routers=routers,
        servers=2,
        reader=lambda number: cast("DelayReader", Log()),
        delay_ms=2_000,
        timeout_ms=60_000,
        seen=lambda: Seen({"w1": 1}, ("w1", "w1"), settled=True),
    )
    return Router(context, place), engine


async def turns(count: int = 20) -> None:
    """Let the event loop go round."""
    for _ in range(count):
        await asyncio.sleep(0)
