"""Sessions that exist, and results as they arrive."""

import re
import threading
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from typing import Any, Final

import orjson
from confluent_kafka import OFFSET_END, Consumer, Producer, TopicPartition

from app.observe.reading import read_account, wait_for_results
from app.protocol.murmur2 import partition_of
from app.topics import Names
from tests.benchmarks.kafka import LIMIT_S, preload
from tests.benchmarks.measurement import Sample
from tests.support.cluster import Workers, wait_for
from tests.support.load import Plan

TENANTS: Final = 1_000
KIND: Final = "bench.fill"
SETTLED_S: Final = 45.0
STILL_S: Final = 1.0
_REPLAYED: Final = re.compile(r"^(\S+ \S+) .*?(\S+): (\d+) rows replayed in ([\d.]+) s$", re.MULTILINE)

Taker = Callable[[dict[str, Any], float], None]
"""Called with a result and the moment (``time.monotonic()``) at which it was read."""


def plan(sessions: int, *, tasks: int, rate: float | None = None) -> Plan:
    """Tasks for sessions chosen at random."""
    return Plan(tasks=tasks, tenants=min(TENANTS, sessions), sessions=sessions, rate=rate, types=(KIND,))


def one_each(sessions: int, routers: int) -> Iterator[tuple[int, bytes, bytes]]:
    """Return a task for each session of a plan: partition, key, value."""
    tenants = min(TENANTS, sessions)
    keys = [b"t%04d" % number for number in range(tenants)]
    places = [partition_of(key, routers) for key in keys]
    for session in range(sessions):
        owner = session % tenants
        value = b'{"tenant":"%b","session":"s%05d","type":"%b","payload":{}}' % (keys[owner], session, KIND.encode())
        yield places[owner], keys[owner], value


def populate(workers: Workers, sessions: int) -> None:
    """Let every session be there."""
    routers = workers.settings.routers
    preload(workers.config, Names(workers.namespace).tasks, routers, one_each(sessions, routers))
    deadline = time.monotonic() + LIMIT_S
    seen = wait_for_results(workers.config, workers.namespace, sessions, deadline=deadline)
    assert seen == sessions, f"{seen} of {sessions}\n{workers.logs()}"


class Sender(ABC):
    """Sends tasks in a thread of its own; ``sent`` counts them. What and when is up to :meth:`_send`."""

    def __init__(self, workers: Workers, name: str) -> None:
        self.sent = 0
        self._routers = workers.settings.routers
        self._topic = Names(workers.namespace).tasks
        self._producer = Producer({**workers.config, "linger.ms": 0, "enable.idempotence": True})
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._send, name=name, daemon=True)

    def start(self) -> None:
        self._thread.start()

    def stop(self) -> None:
        self._stop.set()
        self._thread.join(LIMIT_S)
        assert self._producer.flush(60) == 0

    @abstractmethod
    def _send(self) -> None:
        """Send until ``_stop`` is set."""


class Results:
    """Reads results as they are committed and hands each to ``take``, in a thread of its own."""

    def __init__(self, workers: Workers, take: Taker) -> None:
        self._take = take
        self._stop = threading.Event()
        self._consumer = Consumer(
            {
                **workers.config,
                "group.id": "holdfast-bench",
                "isolation.level": "read_committed",
                "enable.auto.commit": False,
                "fetch.wait.max.ms": 100,
            }
        )
        topic = Names(workers.namespace).results
        parts = [TopicPartition(topic, part, OFFSET_END) for part in range(workers.settings.routers)]
        self._consumer.assign(parts)
        # Asked for now, so that what is sent from here on is seen.
        for part in parts:
            self._consumer.get_watermark_offsets(part, 10)
        self._thread = threading.Thread(target=self._run, name="results", daemon=True)

    def __enter__(self) -> "Results":
        self._thread.start()
        return self

    def __exit__(self, *_reason: object) -> None:
        self._stop.set()
        self._thread.join(30)
        self._consumer.close()

    def _run(self) -> None:
        while not self._stop.is_set():
            message = self._consumer.poll(0.1)
            if message is not None and message.error() is None:
                self._take(orjson.loads(message.value() or b""), time.monotonic())


def status(workers: Workers) -> dict[str, Any]:
    """The cluster as one of its ready workers sees it; an empty dict if none answers."""
    for worker in workers.running:
        code, answer = worker.get("/api/status", timeout=2.0)
        if code == 200:
            return dict(answer)
    return {}


def hosted(workers: Workers) -> dict[str, set[int]]:
    """The servers of each worker."""
    found: dict[str, set[int]] = {}
    for entry in status(workers).get("servers", ()):
        found.setdefault(str(entry["host"]), set()).add(entry["server"])
    return found


def settle(workers: Workers, names: set[str]) -> None:
    """Wait until all of these workers host servers with warm standbys, and have kept them for a moment."""
    seen: dict[str, set[int]] = {}
    since = time.monotonic()

    def still() -> bool:
        nonlocal seen, since
        now = hosted(workers)
        ready = [worker for worker in workers.running if worker.url and worker.get("/readyz")[0] == 200]
        whole = set(now) == names and len(ready) == len(names)
        backed = all(entry["standbys"] for entry in status(workers).get("servers", ()))
        if now != seen or not whole or not backed:
            seen, since = now, time.monotonic()
        return time.monotonic() - since > STILL_S

    wait_for(still, SETTLED_S, f"{sorted(names)} host servers")


def replayed(text: str) -> list[tuple[float, str, int, float]]:
    """Restores in a worker's log: when (seconds of the day), which place, rows, seconds that it took."""
    found = []
    for moment, place, rows, seconds in _REPLAYED.findall(text):
        hours, minutes, rest = moment.split()[1].replace(",", ".").split(":")
        found.append((int(hours) * 3600 + int(minutes) * 60 + float(rest), place, int(rows), float(seconds)))
    return found


def account(workers: Workers, sent: int) -> Sample:
    """Account for every task of the namespace, and return that as a sample; ``sent``: how many there are."""
    deadline = time.monotonic() + LIMIT_S
    wait_for_results(workers.config, workers.namespace, sent, deadline=deadline)
    found = read_account(workers.config, workers.namespace, deadline=deadline)
    assert found.ok, f"{found}\n{workers.logs()}"
    assert found.performed == sent, str(found)
    return {"series": "account", "ok": True, "sent": sent, "text": str(found).splitlines()[0]}
