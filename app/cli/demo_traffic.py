"""The demo's traffic, and a reader that watches what comes of it while it runs."""

import random
import threading
import time
from array import array
from collections import deque
from collections.abc import Mapping
from typing import Any, Final

import orjson
from confluent_kafka import OFFSET_BEGINNING, Consumer, KafkaError, Message, Producer, TopicPartition

from app.cli.demo_story import Task, Tasks
from app.cli.tenants import spread
from app.topics import Names

TENANTS: Final = 40
_SESSIONS: Final = 4
_PREFIX: Final = "demo-"
_RISE_S: Final = 4.0
_SLOT_S: Final = 0.01
_POLL_S: Final = 0.05
_FLUSH_S: Final = 30.0
_RECENT: Final = 400


def tenants_of(servers: int) -> int:
    """How many tenants each server is the home of."""
    return max(1, TENANTS // servers)


class Traffic:
    """Sends tasks of about 40 tenants, each with 4 sessions, at a steady rate until it is stopped.

    Args:
        config: options of the Kafka client.
        names: where to.
        rate: tasks a second.
        servers: how many there are; each is the home of as many tenants as any other.

    Attributes:
        tenants: their names.
        begun: when it began, on the clock of ``time.monotonic()``.
        sent: tasks given to the client so far; their ids are ``demo-0``, ``demo-1`` ...
        sent_s: when each was given to the client, in seconds since the beginning.
        acknowledged: tasks that the broker has confirmed.
        refused: why others were not taken.
    """

    def __init__(self, config: Mapping[str, str | int], names: Names, rate: float, servers: int) -> None:
        self.tenants = spread("tenant-", servers, tenants_of(servers))
        self.begun = 0.0
        self.sent = 0
        self.sent_s = array("d")
        self.acknowledged = 0
        self.refused: list[str] = []
        self._topic = names.tasks
        self._rate = rate
        self._stop = threading.Event()
        self._producer = Producer(
            {
                **config,
                "enable.idempotence": True,
                "partitioner": "murmur2_random",
                "linger.ms": 1,
                "log_level": 0,
            }
        )
        self._thread = threading.Thread(target=self._run, name="traffic", daemon=True)

    def start(self) -> None:
        """Begin."""
        self.begun = time.monotonic()
        self._thread.start()

    def stop(self) -> None:
        """Send no more, and return when all that was sent is confirmed or refused."""
        self._stop.set()
        self._thread.join()

    @property
    def now_s(self) -> float:
        """Seconds since the beginning."""
        return time.monotonic() - self.begun

    def tenant_of(self, session: int) -> str:
        """The tenant of a session, by the session's number."""
        return self.tenants[session % len(self.tenants)]

    def _run(self) -> None:
        rng = random.Random(0)  # noqa: S311 - traffic, no secret
        while not self._stop.is_set():
            if self.sent < self._due():
                self._send(rng)
            else:
                self._producer.poll(_SLOT_S)
        left = self._producer.flush(_FLUSH_S)
        if left:
            self.refused.append(f"{left} tasks without an answer")

    def _due(self) -> float:
        """How many tasks should have been sent: the rate rises in the first seconds, while everything is cold."""
        now_s = self.now_s
        risen = min(now_s, _RISE_S)
        return self._rate * (risen * risen / (2 * _RISE_S) + now_s - risen)

    def _send(self, rng: random.Random) -> None:
        session = rng.randrange(_SESSIONS * len(self.tenants))
        tenant = self.tenant_of(session)
        kind, payload = rng.choice(
            [
                ("cart.add", {"count": rng.randrange(1, 5)}),
                ("counter.add", {"amount": 1}),
                ("echo", {"n": session}),
            ]
        )
        task = {
            "id": f"{_PREFIX}{self.sent}",
            "tenant": tenant,
            "session": f"session-{session:03d}",
            "type": kind,
            "payload": payload,
        }
        # Before it is sent: its result may be here before the next line runs.
        self.sent_s.append(self.now_s)
        self._producer.produce(self._topic, orjson.dumps(task), tenant.encode(), on_delivery=self._delivered)
        self.sent += 1

    def _delivered(self, error: KafkaError | None, _message: Message) -> None:
        if error is None:
            self.acknowledged += 1
        else:
            self.refused.append(str(error))


class Takeover:
    """Waits for the sessions of a dead worker.

    Attributes:
        servers: those that the worker hosted.
        seconds: by server, from the kill to the first result of a task that was sent after it.
        noticed_s: from the kill to the event that tells of it; None where none came.
    """

    def __init__(self, servers: frozenset[int], first: int, killed_s: float) -> None:
        self.servers = servers
        self.seconds: dict[int, float] = {}
        self.noticed_s: float | None = None
        self._first = first
        self._killed_s = killed_s

    def take(self, number: int, server: int, at_s: float) -> None:
        """A result. Tasks below ``first`` may have been performed before the kill."""
        if number >= self._first and server in self.servers:
            self.seconds.setdefault(server, at_s - self._killed_s)

    def hear(self, event: Mapping[str, Any], at_s: float) -> None:
        """An event."""
        if event.get("event") == "worker-lost" and self.noticed_s is None:
            self.noticed_s = at_s - self._killed_s

    @property
    def over(self) -> bool:
        """Whether all of its servers answer again."""
        return self.seconds.keys() >= self.servers


class Watch:
    """Reads results and events while they are committed.

    Attributes:
        tasks: what was answered.
        homes: by session, the server of its first result.
        places: by session, the server of its last result.
        performed: results with status done.
        failed: results with status failed.
        host: by server, the worker that wrote its last result.
        by_worker: how many results each worker wrote.
        recent_ms: how long the last few tasks took.
    """

    def __init__(self, config: Mapping[str, str | int], names: Names, partitions: int, traffic: Traffic) -> None:
        self.tasks = Tasks()
        self.homes: dict[int, int] = {}
        self.places: dict[int, int] = {}
        self.performed = 0
        self.failed = 0
        self.host: dict[int, str] = {}
        self.by_worker: dict[str, int] = {}
        self.recent_ms: deque[float] = deque(maxlen=_RECENT)
        self.takeover: Takeover | None = None
        self._traffic = traffic
        self._events = names.events
        self._stop = threading.Event()
        self._consumer = Consumer(
            {
                **config,
                # Named because librdkafka asks for it; nobody joins a group.
                "group.id": f"{names.prefix}demo",
                "enable.auto.commit": False,
                "isolation.level": "read_committed",
                "auto.offset.reset": "earliest",
                "fetch.wait.max.ms": 20,
                "log_level": 0,
            }
        )
        places = [TopicPartition(names.results, number, OFFSET_BEGINNING) for number in range(partitions)]
        self._consumer.assign([*places, TopicPartition(names.events, 0, OFFSET_BEGINNING)])
        self._thread = threading.Thread(target=self._run, name="watch", daemon=True)

    def start(self) -> None:
        """Begin."""
        self._thread.start()

    def stop(self) -> None:
        """End."""
        self._stop.set()
        self._thread.join()
        self._consumer.close()

    @property
    def results(self) -> int:
        """How many results were seen."""
        return self.performed + self.failed

    def hosted_by(self, worker: str) -> frozenset[int]:
        """The servers whose last result a worker wrote."""
        return frozenset(server for server, host in self.host.copy().items() if host == worker)

    def expect_takeover(self, servers: frozenset[int]) -> Takeover:
        """Start the clock: the worker that hosted these was killed just now."""
        self.takeover = Takeover(servers, self._traffic.sent, self._traffic.now_s)
        return self.takeover

    def _run(self) -> None:
        while not self._stop.is_set():
            message = self._consumer.poll(_POLL_S)
            if message is None or message.error() is not None:
                continue
            record = orjson.loads(message.value() or b"{}")
            if message.topic() == self._events:
                if self.takeover is not None:
                    self.takeover.hear(record, self._traffic.now_s)
            elif str(record["task"]).startswith(_PREFIX):
                self._take(record)

    def _take(self, result: dict[str, Any]) -> None:
        if result["status"] == "done":
            self.performed += 1
        else:
            self.failed += 1
        server, worker = int(result["server"]), str(result["worker"])
        number, session = (int(str(result[field]).rpartition("-")[2]) for field in ("task", "session"))
        now_s, sent_s = self._traffic.now_s, self._traffic.sent_s[number]
        self.homes.setdefault(session, server)
        self.places[session] = server
        self.host[server] = worker
        self.by_worker[worker] = self.by_worker.get(worker, 0) + 1
        self.recent_ms.append((now_s - sent_s) * 1000)
        self.tasks.add(Task(sent_s, (now_s - sent_s) * 1000, session, server, worker))
        if self.takeover is not None:
            self.takeover.take(number, server, now_s)
