"""The demo's traffic, and a reader that watches what comes of it while it runs."""

import random
import threading
import time
from collections.abc import Mapping
from typing import Final

import orjson
from confluent_kafka import OFFSET_BEGINNING, Consumer, KafkaError, Message, Producer, TopicPartition

from app.topics import Names

TENANTS: Final = 40
SESSIONS: Final = 200
_SLOT_S: Final = 0.01
_POLL_S: Final = 0.05
_FLUSH_S: Final = 30.0


class Traffic:
    """Sends tasks of 40 tenants and 200 sessions at a steady rate until it is stopped.

    Args:
        config: options of the Kafka client.
        names: where to.
        rate: tasks a second.

    Attributes:
        sent: tasks given to the client so far; their ids are ``demo-0``, ``demo-1`` ...
        acknowledged: tasks that the broker has confirmed.
        refused: why others were not taken.
    """

    def __init__(self, config: Mapping[str, str | int], names: Names, rate: float) -> None:
        self.sent = 0
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
        self._thread.start()

    def stop(self) -> None:
        """Send no more, and return when all that was sent is confirmed or refused."""
        self._stop.set()
        self._thread.join()

    def _run(self) -> None:
        rng = random.Random(0)  # noqa: S311 - traffic, no secret
        begun = time.monotonic()
        while not self._stop.is_set():
            if self.sent < (time.monotonic() - begun) * self._rate:
                self._send(rng)
            else:
                self._producer.poll(_SLOT_S)
        left = self._producer.flush(_FLUSH_S)
        if left:
            self.refused.append(f"{left} tasks without an answer")

    def _send(self, rng: random.Random) -> None:
        session = rng.randrange(SESSIONS)
        tenant = f"tenant-{session % TENANTS:02d}"
        kind, payload = rng.choice(
            [
                ("cart.add", {"count": rng.randrange(1, 5)}),
                ("counter.add", {"amount": 1}),
                ("echo", {"n": session}),
            ]
        )
        task = {
            "id": f"demo-{self.sent}",
            "tenant": tenant,
            "session": f"session-{session:03d}",
            "type": kind,
            "payload": payload,
        }
        self._producer.produce(self._topic, orjson.dumps(task), tenant.encode(), on_delivery=self._delivered)
        self.sent += 1

    def _delivered(self, error: KafkaError | None, _message: Message) -> None:
        if error is None:
            self.acknowledged += 1
        else:
            self.refused.append(str(error))


class Watch:
    """Reads the results while they are committed.

    Attributes:
        performed: results with status done.
        failed: results with status failed.
        host: by server, the worker that wrote its last result.
        by_worker: how many results each worker wrote.
    """

    def __init__(self, config: Mapping[str, str | int], names: Names, partitions: int) -> None:
        self.performed = 0
        self.failed = 0
        self.host: dict[int, str] = {}
        self.by_worker: dict[str, int] = {}
        self._awaited: tuple[int, frozenset[int], float] | None = None
        self._takeover_s: float | None = None
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
        self._consumer.assign(places)
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

    @property
    def takeover_s(self) -> float | None:
        """Seconds from the kill to the first new result of a session that was there, once there is one."""
        return self._takeover_s

    def expect_takeover(self, worker: str, first: int) -> None:
        """Start the clock: ``worker`` was killed just now.

        Tasks from number ``first`` on were sent after that: the dead worker cannot have performed them.
        """
        servers = frozenset(server for server, host in self.host.items() if host == worker)
        self._awaited = (first, servers, time.monotonic())

    def _run(self) -> None:
        while not self._stop.is_set():
            message = self._consumer.poll(_POLL_S)
            if message is not None and message.error() is None:
                self._take(orjson.loads(message.value() or b"{}"))

    def _take(self, result: dict[str, object]) -> None:
        if result["status"] == "done":
            self.performed += 1
        else:
            self.failed += 1
        server, worker = result["server"], result["worker"]
        assert isinstance(server, int), "the contract says so"
        assert isinstance(worker, str), "the contract says so"
        self.host[server] = worker
        self.by_worker[worker] = self.by_worker.get(worker, 0) + 1
        if self._awaited is not None and self._takeover_s is None:
            first, servers, killed = self._awaited
            number = int(str(result["task"]).rpartition("-")[2])
            if server in servers and number >= first:
                self._takeover_s = time.monotonic() - killed
