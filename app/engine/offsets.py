"""Committed offsets of the worker group: reading them stable, and the tags that fence zombies.

Reading goes through librdkafka with ``isolation.level=read_committed``, whose OffsetFetch asks for stable offsets and
waits while a transaction that will move them is pending; a reader that does not wait starts from an older offset and
doubles records.
"""

import time
from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, Final

from confluent_kafka import (
    OFFSET_BEGINNING,
    OFFSET_END,
    OFFSET_INVALID,
    Consumer,
    KafkaException,
    TopicPartition,
)

from app.protocol.unit import Tag

CONNECT_S = 10.0

Partition = tuple[str, int]
"""Topic and partition number."""


@dataclass(frozen=True, slots=True)
class Committed:
    """A committed offset, or None where the group has never committed, and the tag of who did.

    ``fresh``: the offset is the topic's first, because the group has none.
    """

    offset: int | None
    tag: Tag | None
    fresh: bool = False


class Asked:
    """Offsets on their way from the broker."""

    def __init__(self, answer: "Future[dict[Partition, int]]") -> None:
        self._answer = answer

    @property
    def done(self) -> bool:
        """Is :meth:`result` there without a wait?"""
        return self._answer.done()

    def result(self) -> dict[Partition, int]:
        """The offset of each partition; raises KafkaException when the broker does not answer."""
        return self._answer.result()


STABLE: Final = "read_committed"
HASTY: Final = "read_uncommitted"


class OffsetReader:
    """Reads committed offsets and the ends of partitions. Blocking; use it from one thread at a time.

    A call that is not answered within ``timeout`` seconds raises KafkaException: the caller asks again if it has to.
    """

    def __init__(self, config: Mapping[str, Any], group: str, *, timeout: float = 5.0) -> None:
        self._timeout = timeout
        self._options = {**config, "group.id": group, "enable.auto.commit": False}
        self._consumers: dict[str, tuple[Consumer, float]] = {}
        self._aside = ThreadPoolExecutor(1, thread_name_prefix="ends")

    def _consumer(self, isolation: str) -> Consumer:
        if isolation not in self._consumers:
            made = Consumer({**self._options, "isolation.level": isolation})
            self._consumers[isolation] = made, time.monotonic()
        return self._consumers[isolation][0]

    def _unanswered(self, isolation: str) -> None:
        """The client goes on using a leader epoch from before a broker's restart: only a new one asks anew.

        But a new one needs some time to connect.
        """
        consumer, made = self._consumers[isolation]
        if time.monotonic() - made > CONNECT_S:
            del self._consumers[isolation]
            consumer.close()

    def committed(self, partitions: Sequence[Partition]) -> dict[Partition, Committed]:
        """The stable committed offset of each partition; raises KafkaException when the broker does not answer."""
        return self._read(STABLE, partitions)

    def latest(self, partitions: Sequence[Partition]) -> dict[Partition, Committed]:
        """As :meth:`committed`, without waiting for a pending transaction that may move them."""
        return self._read(HASTY, partitions)

    def tags(self, partitions: Sequence[Partition]) -> dict[Partition, Tag | None]:
        """Who committed each partition last, without waiting for a pending transaction: whom to fence."""
        return {partition: entry.tag for partition, entry in self.latest(partitions).items()}

    def _read(self, isolation: str, partitions: Sequence[Partition]) -> dict[Partition, Committed]:
        if not partitions:
            return {}
        found = self._consumer(isolation).committed([TopicPartition(t, p) for t, p in partitions], self._timeout)
        _raise_first(found)
        return {
            (entry.topic, entry.partition): Committed(
                None if entry.offset == OFFSET_INVALID else entry.offset, Tag.parse(entry.metadata)
            )
            for entry in found
        }

    def starts(self, partitions: Iterable[Partition]) -> dict[Partition, int]:
        """The first offset that each partition still has."""
        return self._list(partitions, OFFSET_BEGINNING, HASTY)

    def high_watermarks(self, partitions: Iterable[Partition], timeout: float | None = None) -> dict[Partition, int]:
        """The end of each partition, open transactions included: a restore must reach it."""
        return self._list(partitions, OFFSET_END, HASTY, timeout)

    def ask_high_watermarks(self, partitions: Iterable[Partition], timeout: float | None = None) -> Asked:
        """As :meth:`high_watermarks`, without waiting for the answer; stable offsets may be read meanwhile."""
        return Asked(self._aside.submit(self.high_watermarks, list(partitions), timeout))

    def ends(self, partitions: Iterable[Partition]) -> dict[Partition, int]:
        """The end of each partition for who reads committed records only."""
        return self._list(partitions, OFFSET_END, STABLE)

    def _list(
        self, partitions: Iterable[Partition], which: int, isolation: str, timeout: float | None = None
    ) -> dict[Partition, int]:
        # The protocol has times for the two ends. The administrator's call for the same ends the process by an
        # assertion (eonce->refcnt > 0) when a broker goes away at the wrong moment.
        wanted = [TopicPartition(topic, partition, which) for topic, partition in partitions]
        if not wanted:
            return {}
        try:
            found = self._consumer(isolation).offsets_for_times(wanted, timeout or self._timeout)
            _raise_first(found)
        except KafkaException:
            self._unanswered(isolation)
            raise
        return {(entry.topic, entry.partition): entry.offset for entry in found}

    def close(self) -> None:
        """End the connections."""
        self._aside.shutdown(cancel_futures=True)
        for consumer, _ in list(self._consumers.values()):
            consumer.close()
        self._consumers = {}


def _raise_first(found: Iterable[TopicPartition]) -> None:
    for entry in found:
        if entry.error is not None:
            raise KafkaException(entry.error)
