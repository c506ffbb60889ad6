"""Traffic from a seed: the same tasks in the same order for the same numbers."""

import random
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

import orjson
from confluent_kafka import KafkaError, KafkaException, Message, Producer

from app.observe.reading import Config
from app.topics import Names

_SLOT_S: Final = 0.005
_FLUSH_S: Final = 120.0
# Waiting for an outage of the broker to end, not for a task to be given up.
_DELIVERY_MS: Final = 300_000


@dataclass(frozen=True, slots=True)
class Plan:
    """What to send.

    ``rate``: tasks a second; None: as fast as the broker takes them. ``types`` are chosen from at random.
    ``after``: the seconds for which a `chain.retry` waits, None for its default.
    """

    tasks: int
    tenants: int = 200
    sessions: int = 1_000
    seed: int = 1
    rate: float | None = None
    types: tuple[str, ...] = ("chain.link",)
    prefix: str = "t"
    after: float | None = None

    def task(self, rng: random.Random, number: int) -> tuple[bytes, bytes]:
        """Return key and value of the next task; every session belongs to one tenant."""
        session = rng.randrange(self.sessions)
        tenant = f"{self.prefix}{session % self.tenants:04d}"
        kind = self.types[0] if len(self.types) == 1 else rng.choice(self.types)
        task = {
            "id": f"{self.prefix}-{self.seed}-{number}",
            "tenant": tenant,
            "session": f"s{session:05d}",
            "type": kind,
            "payload": {"n": number} if self.after is None else {"n": number, "after": self.after},
        }
        return tenant.encode(), orjson.dumps(task)


class Load:
    """Sends a plan in a thread of its own.

    ``acknowledged`` counts tasks that the broker has confirmed; ``refused`` says why others were not taken.
    """

    def __init__(
        self, config: Config, namespace: str, plan: Plan, *, on_sent: Callable[[int], None] | None = None
    ) -> None:
        self.plan = plan
        self.acknowledged = 0
        self.refused: list[str] = []
        self._on_sent = on_sent
        self._topic = Names(namespace).tasks
        self._stop = threading.Event()
        self._producer = Producer(
            {
                **config,
                "enable.idempotence": True,
                "partitioner": "murmur2_random",
                "linger.ms": 5 if plan.rate is None else 1,
                "queue.buffering.max.messages": 200_000,
                "message.timeout.ms": _DELIVERY_MS,
                "log_level": 0,
            }
        )
        self._thread = threading.Thread(target=self._run, name="load", daemon=True)

    def start(self) -> "Load":
        self._thread.start()
        return self

    def stop(self) -> None:
        """Send no more; what was sent is still confirmed."""
        self._stop.set()

    def join(self, timeout: float = 300.0) -> int:
        """Wait for the end; return the number of tasks acknowledged."""
        self._thread.join(timeout)
        assert not self._thread.is_alive(), f"still sending after {timeout} s: {self.acknowledged} acknowledged"
        assert not self.refused, f"{len(self.refused)} tasks were not taken: {self.refused[0]}"
        return self.acknowledged

    @property
    def running(self) -> bool:
        return self._thread.is_alive()

    def _run(self) -> None:
        rng = random.Random(self.plan.seed)
        begun = time.monotonic()
        for number in range(self.plan.tasks):
            if self._stop.is_set():
                break
            self._keep_the_rate(begun, number)
            key, value = self.plan.task(rng, number)
            self._produce(key, value)
            if number % 500 == 0:
                self._producer.poll(0)
        left = self._producer.flush(_FLUSH_S)
        if left:
            self.refused.append(f"{left} tasks without an answer")

    def _keep_the_rate(self, begun: float, number: int) -> None:
        if self.plan.rate is None:
            return
        due = begun + number / self.plan.rate
        while (early := due - time.monotonic()) > 0:
            self._producer.poll(min(early, _SLOT_S))

    def _produce(self, key: bytes, value: bytes) -> None:
        while True:
            try:
                self._producer.produce(self._topic, value, key, on_delivery=self._delivered)
            except BufferError:
                self._producer.poll(0.1)
            except KafkaException as error:
                # The topic is gone: the test that sent is over.
                self.refused.append(str(error))
                self._stop.set()
                return
            else:
                return

    def _delivered(self, error: KafkaError | None, _message: Message) -> None:
        if error is not None:
            self.refused.append(str(error))
            return
        self.acknowledged += 1
        if self._on_sent is not None:
            self._on_sent(self.acknowledged)
