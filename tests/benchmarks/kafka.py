"""Topics, their ends and their contents, for all benchmarks."""

import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import Final

from confluent_kafka import IsolationLevel, KafkaException, Producer, TopicPartition
from confluent_kafka.admin import AdminClient
from confluent_kafka.admin._listoffsets import OffsetSpec
from confluent_kafka.cimpl import NewTopic

Config = Mapping[str, str | int]

LIMIT_S: Final = 300.0
QUIET_S: Final = 1.5
POLL_S: Final = 0.02
_CHUNK: Final = 5_000
_QUEUE: Final = 1_000_000
_KEPT: Final = 60
_LATEST: Final = OffsetSpec.latest()  # type: ignore[no-untyped-call]
_COMPACT: Final = {"cleanup.policy": "compact"}


class Topics:
    """Topics with their numbers of partitions: made, asked for their ends, deleted."""

    def __init__(self, config: Config, partitions: Mapping[str, int]) -> None:
        self._admin = AdminClient({**config, "log_level": 0})
        self._partitions = dict(partitions)

    def create(self, *, compacted: Iterable[str] = ()) -> None:
        """Make them all, and return when each answers."""
        compact = set(compacted)
        wanted = [
            NewTopic(name, count, 1, config=_COMPACT if name in compact else {})
            for name, count in self._partitions.items()
        ]
        for future in self._admin.create_topics(wanted).values():
            future.result(30)
        deadline = time.monotonic() + 30
        while True:
            try:
                self.ends()
            except KafkaException:
                if time.monotonic() > deadline:
                    raise
                time.sleep(0.2)
            else:
                return

    def ends(self, *, committed: bool = True) -> dict[tuple[str, int], int]:
        """Where each partition ends, for ``read_committed`` readers or for all."""
        level = IsolationLevel.READ_COMMITTED if committed else IsolationLevel.READ_UNCOMMITTED
        parts = [TopicPartition(name, part) for name, count in self._partitions.items() for part in range(count)]
        wanted = dict.fromkeys(parts, _LATEST)
        futures = self._admin.list_offsets(wanted, isolation_level=level, request_timeout=10)
        return {(where.topic, where.partition): future.result(10).offset for where, future in futures.items()}

    def total(self) -> int:
        return sum(self.ends().values())

    def delete(self, also: str = "") -> None:
        """Delete them, and whatever begins with ``also``, so that the next run has the disk and the broker."""
        found = self._admin.list_topics(timeout=10).topics
        names = [name for name in found if name in self._partitions or (also and name.startswith(also))]
        for future in self._admin.delete_topics(names, operation_timeout=30).values() if names else ():
            future.result(60)


Curve = list[tuple[float, int]]
"""Moments (``time.time()``) at which the number of committed records was seen to change, and that number.

Control records of transactions are counted as well, so only shares of the last number mean something.
"""


def watch(topics: Topics, count: int, alive: Callable[[], bool]) -> Curve:
    """Return when ``count`` records are committed and nothing moves any more.

    Raises:
        TimeoutError: it takes too long, or the program has ended before.
    """
    deadline = time.time() + LIMIT_S
    curve: Curve = [(time.time(), 0)]
    while True:
        total, now = topics.total(), time.time()
        if total != curve[-1][1]:
            curve.append((now, total))
        elif total >= count and now - curve[-1][0] > QUIET_S:
            return curve
        if now > deadline or not (alive() or total >= count):
            raise TimeoutError(f"{total} of {count} records, then nothing")
        time.sleep(POLL_S)


def rate(curve: Curve, count: int, share: float) -> float:
    """Records a second after the first ``share`` (0 to 1) of them."""
    end = curve[-1][1]
    index = next(index for index, point in enumerate(curve) if point[1] >= end * share)
    # A run so short that one commit holds nearly all of it is measured from the commit before.
    start = curve[min(index, len(curve) - 2)]
    return (end - start[1]) / end * count / max(curve[-1][0] - start[0], 1e-3)


def thinned(curve: Curve, begun: float) -> list[tuple[float, float]]:
    """Return some of the points, to be kept with the figures: seconds since ``begun``, share of all records."""
    step = max(1, len(curve) // _KEPT)
    return [(round(moment - begun, 2), round(total / curve[-1][1], 4)) for moment, total in curve[::step]]


def preload(config: Config, topic: str, partitions: int, records: Iterable[tuple[int, bytes, bytes]]) -> None:
    """Write records (partition, key, value) as fast as the broker takes them."""
    producer = Producer(
        {
            **config,
            "linger.ms": 20,
            "queue.buffering.max.messages": _QUEUE,
            "queue.buffering.max.kbytes": 1 << 20,
            "enable.idempotence": True,
            "delivery.report.only.error": True,
        }
    )
    lists: list[list[dict[str, bytes]]] = [[] for _ in range(partitions)]

    def send(number: int) -> None:
        batch, lists[number] = lists[number], []
        while len(producer) > _QUEUE // 2:
            producer.poll(0.05)
        assert producer.produce_batch(topic, batch, number) == len(batch)
        producer.poll(0)

    for number, key, value in records:
        lists[number].append({"key": key, "value": value})
        if len(lists[number]) >= _CHUNK:
            send(number)
    for number in range(partitions):
        send(number)
    assert producer.flush(120) == 0, "the broker does not confirm"


@contextmanager
def preloading(
    config: Config, topic: str, partitions: int, records: Iterable[tuple[int, bytes, bytes]]
) -> Iterator[None]:
    """Write records in a thread, so that the caller sees what becomes of them from the first on."""
    with ThreadPoolExecutor(1, thread_name_prefix="preload") as pool:
        future = pool.submit(preload, config, topic, partitions, records)
        yield
        future.result()
