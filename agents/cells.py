"""What the server agent keeps in memory of a session, and what all servers of a worker share."""

from collections.abc import Mapping
from concurrent.futures import Executor
from dataclasses import dataclass, field
from typing import Any

import orjson

from app.engine.announcements import Announcements
from app.engine.engine import Engine
from app.engine.janitor import EmitLimit
from app.engine.tally import Histogram
from app.engine.watchdog import Watchdog
from app.handlers import Handler, Session
from app.movers import Mover
from app.protocol.murmur2 import partition_of
from app.protocol.sessions import Queue
from app.topics import Names
from tables.sessions import SessionRow
from tables.waiting import WaitingRow

EMPTY = b"{}"


@dataclass(slots=True)
class Copied:
    """Rows and bytes of moving tenants that have left a worker's servers, and that have come, since its start."""

    rows_out: int = 0
    bytes_out: int = 0
    rows_in: int = 0
    bytes_in: int = 0


ALIGNMENT_S = (0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0)
"""Bounds of the histogram of alignments, in seconds."""


@dataclass(slots=True)
class Rehomed:
    """What views have moved on a worker's servers since its start.

    ``seconds``: how long alignments took, from the first marker of a view until the stream was in order again.
    """

    rows_out: int = 0
    rows_in: int = 0
    held: int = 0
    misplaced: int = 0
    seconds: Histogram = field(default_factory=lambda: Histogram(ALIGNMENT_S))


class Entry:
    """One task at a server: its place in ``tasks``, its bytes, and what they say.

    ``arrival`` numbers it among the waiting tasks of its session; ``saved``: its waiting row exists (or will, with
    this unit); ``changed``: that row is to be written; ``restored``: it was waiting when the place opened;
    ``carried``: a suspicion about it is stored.
    """

    # Of one that does not wait these stay as they are here: it is made, performed and forgotten a million times.
    arrival = 0
    saved = False
    changed = False
    restored = False
    carried = False

    def __init__(
        self, partition: int, offset: int, value: bytes, task_id: str, kind: str, payload: dict[str, Any]
    ) -> None:
        self.partition = partition
        self.offset = offset
        self.value = value
        self.task_id = task_id
        self.kind = kind
        self.payload = payload

    def __str__(self) -> str:
        return f"task {self.task_id} ({self.kind})"


def read_again(row: WaitingRow) -> Entry:
    """The task of a waiting row."""
    task = orjson.loads(row.task)
    task_id = task.get("id") or f"{row.partition}/{row.offset}"
    return Entry(row.partition, row.offset, row.task, task_id, task["type"], task["payload"])


class Cell:
    """One session in memory.

    ``good`` is the state after the last task that took effect, as JSON; ``state`` the same decoded, or None when it
    must be decoded again because a handler that failed may have changed it.
    """

    __slots__ = (
        "ended",
        "entries",
        "good",
        "label",
        "last_arrival",
        "name",
        "origins",
        "queue",
        "removed",
        "results_partition",
        "row_key",
        "sequence",
        "session",
        "state",
        "tenant",
        "tenant_key",
    )

    def __init__(self, tenant: str, session: str, row_key: bytes, routers: int) -> None:
        self.tenant = tenant
        self.session = session
        self.name = (tenant, session)
        self.row_key = row_key
        self.tenant_key = tenant.encode()
        self.results_partition = partition_of(self.tenant_key, routers)
        self.label = b',"tenant":%b,"session":%b,"type":' % (orjson.dumps(tenant), orjson.dumps(session))
        self.sequence = 0
        self.origins: dict[int, int] = {}
        self.good = EMPTY
        self.state: Any = None
        self.ended = False
        self.queue: Queue = ()
        self.entries: dict[int, Entry] = {}
        self.removed: list[Entry] = []
        self.last_arrival = 0

    def restore(self, row: SessionRow) -> None:
        self.sequence = row.sequence
        self.origins = row.origins
        self.good = row.state

    def current_state(self) -> Any:
        """The state for the next handler that runs in line; it may change it in place."""
        if self.state is None:
            self.state = orjson.loads(self.good)
        return self.state

    def spoil(self) -> None:
        """A handler failed: whatever it did to the decoded state is forgotten."""
        self.state = None

    def keep(self, state: bytes, session: Session[Any]) -> None:
        """A handler took effect. A session that it ended starts anew with the next task."""
        self.ended = session.ended
        if session.ended:
            self.sequence = 0
            self.good = EMPTY
            self.state = None
        else:
            self.good = state
            self.state = session.state if type(session.state) is dict else None


@dataclass(slots=True)
class ServerContext:
    """What the servers of a worker share. ``worker`` is its name in JSON; ``limit`` is that of a record, in bytes."""

    engine: Engine
    names: Names
    worker: bytes
    handlers: Mapping[str, Handler]
    routers: int
    servers: int
    limit: int
    task_timeout: float
    max_attempts: int
    max_crashes: int
    session_ttl: float
    pool: Executor
    watchdog: Watchdog
    announcements: Announcements

    movers: Mapping[str, Mover] = field(default_factory=dict)

    copying: set[tuple[int, str]] = field(default_factory=set)
    """Tenants that are copied from servers of this worker now, by server."""

    copied: Copied = field(default_factory=Copied)

    rehomed: Rehomed = field(default_factory=Rehomed)

    aligning: set[int] = field(default_factory=set)
    """Servers of this worker that have something to do for a view now: they share the time that there is for it."""

    trials: set[object] = field(default_factory=set)
    """Whoever performs something alone now, or waits to: no retry begins beside it, or one is convicted for another."""

    def largest_record(self, topic: str) -> EmitLimit | None:
        """What a handler may emit to ``topic``; None where it must not, or where there is no such topic."""
        if topic.startswith(self.names.prefix):
            return None
        return self.engine.janitor.largest_record(topic)
