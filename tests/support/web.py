"""A worker that only the web side believes in, and HTTP requests to it."""

import json
import urllib.request
from collections.abc import Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any, Final, NamedTuple
from urllib.error import HTTPError

from app.client import Sent
from app.protocol.forwarding import Decision, Perform
from app.records import Result, Source, Task


class Place(NamedTuple):
    server: int
    worker: str | None
    url: str | None
    backup_order: list[int]


@dataclass
class FakeView:
    """Implements :class:`app.web.view.ClusterView` from what the test puts in."""

    name: str = "w1"
    is_ready: tuple[bool, str] = (True, "")
    is_healthy: tuple[bool, str] = (True, "")
    place: Place = field(default_factory=lambda: Place(3, "w1", "http://unused", [3, 1, 0, 2]))
    rows: dict[tuple[str, str], dict[str, Any]] = field(default_factory=dict)
    hosts: list[dict[str, Any]] = field(default_factory=list)
    marks: dict[str, dict[str, Any]] = field(default_factory=dict)
    exchanges: dict[str, dict[str, Any]] = field(default_factory=dict)
    homes: dict[str, dict[str, Any]] = field(default_factory=dict)
    peers: list[str] = field(default_factory=list)
    counts: dict[str, Any] = field(default_factory=dict)
    decisions: list[Decision] = field(default_factory=list)
    hosted: dict[int, tuple[str | None, str | None]] = field(default_factory=dict)

    def ready(self) -> tuple[bool, str]:
        return self.is_ready

    def healthy(self) -> tuple[bool, str]:
        return self.is_healthy

    def status(self) -> dict[str, Any]:
        return {"namespace": "test", "view": 0, "workers": [], "servers": [], **self.counts}

    def others(self) -> list[str]:
        return self.peers

    def tenants(self) -> list[dict[str, Any]]:
        return list(self.homes.values())

    def locate_tenant(self, tenant: str) -> Place:
        return self.place

    def read_tenant(self, tenant: str) -> dict[str, Any]:
        return self.homes.get(tenant, {"tenant": tenant, "home": 3, "state": "settled", "epoch": 0})

    def servers(self) -> list[dict[str, Any]]:
        return []

    def knows(self, server: int) -> bool:
        return 0 <= server < 4

    def host_of(self, server: int) -> tuple[str | None, str | None]:
        return self.hosted.get(server, (self.place.worker, self.place.url))

    def locate(self, tenant: str, session: str, primary: int | None = None) -> Place:
        return self.place

    def receive(self, tenant: str, session: str, server: int, hops: int) -> Decision:
        return self.decisions.pop(0) if self.decisions else Perform()

    def read_session(self, tenant: str, session: str, server: int) -> dict[str, Any] | None:
        rows = self.rows.get((tenant, session))
        return None if rows is None else {"backup_order": self.place.backup_order, **rows}

    def managers(self) -> list[dict[str, Any]]:
        return [dict(entry) for entry in self.hosts]

    def manager_of(self, exchange: str) -> int:
        return 0

    def local_exchanges(self) -> dict[str, Any]:
        found = [{"exchange": name} for name in self.exchanges]
        return {"exchanges": found, "marks": self.exchange_marks(), "truncated": False}

    def exchange_marks(self) -> dict[str, dict[str, Any]]:
        return self.marks

    def read_exchange(self, exchange: str) -> dict[str, Any] | None:
        return self.exchanges.get(exchange)


@dataclass
class FakeGateway:
    """Takes tasks; answers those whose payload has an ``answer``."""

    tasks: list[Task] = field(default_factory=list)
    refuse: Exception | None = None
    closed: bool = False

    async def publish(self, task: Task) -> Sent:
        if self.refuse is not None:
            raise self.refuse
        self.tasks.append(task)
        offset = len(self.tasks) - 1
        return Sent(task.id or f"0/{offset}", 0, offset)

    async def perform(self, task: Task, wait_s: float) -> tuple[Sent, Result | None]:
        sent = await self.publish(task)
        if "answer" not in task.payload:
            return sent, None
        return sent, Result(
            task=sent.id,
            tenant=task.tenant,
            session=task.session,
            type=task.type,
            status="done",
            result=task.payload["answer"],
            server=0,
            worker="w1",
            sequence=1,
            attempts=1,
            source=Source(partition=sent.partition, offset=sent.offset),
        )

    def close(self) -> None:
        self.closed = True


class Reply(NamedTuple):
    status: int
    body: bytes
    headers: Mapping[str, str]

    def json(self) -> Any:
        return json.loads(self.body)


_NONE: Final[Mapping[str, str]] = MappingProxyType({})


def ask(url: str, *, data: bytes | None = None, method: str | None = None, headers: Mapping[str, str] = _NONE) -> Reply:
    """Send a request; errors are answers as well."""
    request = urllib.request.Request(url, data, dict(headers), method=method)  # noqa: S310 - http only.
    try:
        with urllib.request.urlopen(request, timeout=30) as reply:  # noqa: S310
            return Reply(reply.status, reply.read(), dict(reply.headers))
    except HTTPError as error:
        with error:
            return Reply(error.code, error.read(), dict(error.headers))
