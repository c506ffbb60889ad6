"""An owner of connections outside a worker, workers' web servers in front of it, and what speaks tus to them."""

import base64
import hashlib
import http.client
import json
import os
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace
from typing import Any, Final, NamedTuple, cast
from urllib.parse import urlsplit

from agents.transfers import Owner, TransferContext
from app.engine.engine import Engine
from app.engine.janitor import EmitLimit
from app.engine.places import Place, PlaceKind
from app.engine.stores.memory import MemoryStore
from app.engine.table import Rows
from app.engine.unit_of_work import Unit
from app.protocol.conveyance import Idle, State
from app.settings import Settings
from app.storage import Storage, open_storage
from app.topics import Names
from app.web.files import Files
from app.web.server import WebServer
from app.worker.transfers import terms_of
from tables import transfers as table
from tests.support.web import FakeGateway, FakeView

OCTETS: Final = "application/offset+octet-stream"
NAMES: Final = Names("ns")


class OwnerBench:
    """One owner: real rows and units, committed after every request in a thread that stands for the engine's loop."""

    def __init__(self, settings: Settings, storage: Storage) -> None:
        self._loop = ThreadPoolExecutor(1, thread_name_prefix="engine")
        self.unit = Unit(60.0)
        self.sent: list[dict[str, Any]] = []
        self.topics: dict[str, EmitLimit] = {}
        self.janitor = SimpleNamespace(largest_record=self.topics.get)
        self.refuse_commits = False
        kind = PlaceKind("transfers", 1, (NAMES.transfers,), {})
        self.place = Place(kind, 0, "transfers-0")
        self.place.rows[table.NAME] = Rows(MemoryStore(), NAMES.changelog(table.NAME), 0)
        self.context = TransferContext(
            cast("Engine", self),
            NAMES,
            "w1",
            terms_of(settings),
            storage,
            lambda name: f"{settings.storage}/{name}",
            ThreadPoolExecutor(2),
            settings.max_record_bytes,
        )
        self.owner = Owner(self.context, self.place)

    def submit(self, event: Callable[[], None]) -> None:
        """As the engine does it; each event is a unit of work."""

        def run() -> None:
            event()
            self.commit()

        self._loop.submit(run)

    def run(self, event: Callable[[], None]) -> None:
        """The same, and wait until it is committed."""
        self.submit(event)
        self._loop.submit(lambda: None).result(30)

    def commit(self) -> None:
        self.owner.before_seal()
        rows = self.place.rows[table.NAME]
        if rows.dirty:
            rows.store.apply(rows.seal().items(), None)
            rows.settled()
        self.sent += self.unit.others
        self.unit = Unit(60.0)
        self.owner.after_commit({})

    def reopen(self) -> None:
        """Another worker hosts the owner now: what was not committed has not happened."""

        def reopen() -> None:
            self.owner.close()
            self.place.rows[table.NAME].discard()
            self.owner = Owner(self.context, self.place)

        self.run(reopen)

    def tick(self, ahead_s: float = 0.0) -> None:
        """Let time pass for the owner."""
        self.run(lambda: self.owner.on_time(time.time() + ahead_s))

    def state(self, connection: str) -> State:
        """The committed state."""
        row = self.place.rows[table.NAME].peek(connection.encode())
        return table.decode(row) if row is not None else Idle()

    def events(self, connection: str) -> list[dict[str, Any]]:
        """What was told to all about a connection."""
        mine = [r for r in self.sent if r["topic"] == NAMES.events and r["key"] == connection.encode()]
        return [json.loads(record["value"]) for record in mine]

    def replies(self, connection: str) -> list[dict[str, Any]]:
        """What devices were answered."""
        mine = [r for r in self.sent if r["topic"] == NAMES.transfer_replies and r["key"] == connection.encode()]
        return [json.loads(record["value"]) for record in mine]

    def close(self) -> None:
        self._loop.shutdown()
        self.owner.close()
        self.context.pool.shutdown()


@dataclass
class BenchDesk:
    """A worker whose web server asks the bench's owner."""

    name: str
    bench: OwnerBench
    urls: dict[str, str] = field(default_factory=dict)

    def call(self, connection: str, fields: dict[str, Any]) -> "Future[dict[str, Any]] | None":
        future: Future[dict[str, Any]] = Future()
        self.bench.submit(lambda: self.bench.owner.call(connection, fields, future))
        return future

    def workers(self) -> dict[str, str]:
        return self.urls

    def rows(self) -> Iterator[tuple[str, State]]:
        for key, row in self.bench.place.rows[table.NAME].store.scan(b""):
            yield key.decode(), table.decode(row)


class Site:
    """Two workers' web servers, one owner, files in a directory."""

    def __init__(self, directory: Path, **settings: Any) -> None:
        given = {"storage": f"file://{directory}", "progress_interval": 0.05, "routers": 1, **settings}
        self.settings = Settings(**given)
        self.storage = open_storage(self.settings.storage)
        self.directory = directory
        self.bench = OwnerBench(self.settings, self.storage)
        self.urls: dict[str, str] = {}
        self._servers = [self._serve(name) for name in ("w1", "w2")]

    def _serve(self, name: str) -> WebServer:
        files = Files(BenchDesk(name, self.bench, self.urls), self.storage, self.settings)
        view = FakeView(name=name)
        server = WebServer(view, self.settings, gateway=FakeGateway(), files=files)
        self.urls[name] = server.start()
        return server

    def close(self) -> None:
        for server in self._servers:
            server.stop()
        self.bench.close()

    def objects(self) -> list[bytes]:
        """The contents of all whole files."""
        # Directories may be deleted meanwhile.
        found = os.walk(self.directory / "objects")
        return [path.read_bytes() for path in sorted(Path(place, name) for place, _, names in found for name in names)]


class Reply(NamedTuple):
    status: int
    headers: Mapping[str, str]
    body: bytes

    def json(self) -> Any:
        return json.loads(self.body)


def ask(url: str, method: str, path: str, body: Any = None, **headers: str | None) -> Reply:
    """A tus request; None leaves a header out."""
    given: dict[str, str | None] = {"Tus_Resumable": "1.0.0", **headers}
    line = connect(url)
    try:
        line.request(method, path, body, {k.replace("_", "-"): v for k, v in given.items() if v is not None})
        reply = line.getresponse()
        return Reply(reply.status, dict(reply.getheaders()), reply.read())
    finally:
        line.close()


def connect(url: str) -> http.client.HTTPConnection:
    parts = urlsplit(url)
    assert parts.hostname is not None
    return http.client.HTTPConnection(parts.hostname, parts.port, timeout=30)


def create(url: str, size: int | None = None, **headers: str) -> str:
    """Begin an upload; the path of it."""
    length = {"Upload_Defer_Length": "1"} if size is None else {"Upload_Length": str(size)}
    reply = ask(url, "POST", "/files/", **length, **headers)
    assert reply.status == 201, reply
    return reply.headers["Location"]


def name_of(path: str) -> str:
    """The connection of a path that :func:`create` made."""
    return path.rpartition("/")[2]


def digest(algorithm: str, data: bytes) -> str:
    """A value of ``Upload-Checksum``."""
    return f"{algorithm} {base64.b64encode(hashlib.new(algorithm, data).digest()).decode()}"


def pairs(**values: str) -> str:
    """A value of ``Upload-Metadata``."""
    return ",".join(f"{key} {base64.b64encode(value.encode()).decode()}" for key, value in values.items())


def patch(url: str, path: str, offset: int, data: Any, **headers: str) -> Reply:
    return ask(url, "PATCH", path, data, Upload_Offset=str(offset), Content_Type=OCTETS, **headers)


class SlowBody:
    """A PATCH that is being sent: a remote that stays in the middle of it until it is told to go on."""

    def __init__(self, url: str, path: str, offset: int, length: int) -> None:
        self.line = connect(url)
        self.line.putrequest("PATCH", path)
        for name, value in {
            "Tus-Resumable": "1.0.0",
            "Upload-Offset": str(offset),
            "Content-Type": OCTETS,
            "Content-Length": str(length),
        }.items():
            self.line.putheader(name, value)
        self.line.endheaders()

    def send(self, data: bytes) -> None:
        self.line.send(data)

    def ended(self) -> int:
        """The status of the answer; 0 where the other side ended the connection without one."""
        try:
            reply = self.line.getresponse()
            reply.close()
        except (OSError, http.client.HTTPException):
            return 0
        finally:
            self.line.close()
        return reply.status

    def close(self) -> None:
        self.line.close()


def in_background(call: Callable[[], Any]) -> "Future[Any]":
    """Run something beside the test."""
    future: Future[Any] = Future()

    def run() -> None:
        try:
            future.set_result(call())
        except BaseException as error:  # noqa: BLE001 - the test reads it.
            future.set_exception(error)

    threading.Thread(target=run, daemon=True).start()
    return future
