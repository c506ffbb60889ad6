"""Committed offsets of the worker group: reading them stable, and the tags that fence zombies.

Reading goes through librdkafka with ``isolation.level=read_committed``, whose OffsetFetch asks for stable offsets and
waits while a transaction that will move them is pending; a reader that does not wait starts from an older offset and
doubles records.
"""

import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

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


class OffsetReader:
    """Reads committed offsets and the ends of partitions. Blocking; use it from one thread at a time.

    A call that is not answered within ``timeout`` seconds raises KafkaException: the caller asks again if it has to.
    """

    def __init__(self, config: Mapping[str, Any], group: str, *, timeout: float = 5.0) -> None:
        self._timeout = timeout
        self._options = {**config, "group.id": group, "enable.auto.commit": False}
        self._connect()

    def _connect(self) -> None:
        self._consumer = Consumer({**self._options, "isolation.level": "read_committed"})
        self._hasty = Consumer({**self._options, "isolation.level": "read_uncommitted"})
        self._made = time.monotonic()

    def committed(self, partitions: Sequence[Partition]) -> dict[Partition, Committed]:
        """The stable committed offset of each partition; raises KafkaException when the broker does not answer."""
        return self._read(self._consumer, partitions)

    def latest(self, partitions: Sequence[Partition]) -> dict[Partition, Committed]:
        """As :meth:`committed`, without waiting for a pending transaction that may move them."""
        return self._read(self._hasty, partitions)

    def tags(self, partitions: Sequence[Partition]) -> dict[Partition, Tag | None]:
        """Who committed each partition last, without waiting for a pending transaction: whom to fence."""
        return {partition: entry.tag for partition, entry in self.latest(partitions).items()}

    def _read(self, consumer: Consumer, partitions: Sequence[Partition]) -> dict[Partition, Committed]:
        if not partitions:
            return {}
        found = consumer.committed([TopicPartition(t, p) for t, p in partitions], self._timeout)
        _raise_first(found)
        return {
            (entry.topic, entry.partition): Committed(
                None if entry.offset == OFFSET_INVALID else entry.offset, Tag.parse(entry.metadata)
            )
            for entry in found
        }

    def starts(self, partitions: Iterable[Partition]) -> dict[Partition, int]:
        """The first offset that each partition still has."""
        return self._list(partitions, OFFSET_BEGINNING, stable=False)

    def high_watermarks(self, partitions: Iterable[Partition], timeout: float | None = None) -> dict[Partition, int]:
        """The end of each partition, open transactions included: a restore must reach it."""
        return self._list(partitions, OFFSET_END, timeout, stable=False)

    def ends(self, partitions: Iterable[Partition]) -> dict[Partition, int]:
        """The end of each partition for who reads committed records only."""
        return self._list(partitions, OFFSET_END, stable=True)

    def _list(
        self, partitions: Iterable[Partition], which: int, timeout: float | None = None, *, stable: bool
    ) -> dict[Partition, int]:
        # The protocol has times for the two ends. The administrator's call for the same ends the process by an
        # assertion (eonce->refcnt > 0) when a broker goes away at the wrong moment.
        wanted = [TopicPartition(topic, partition, which) for topic, partition in partitions]
        if not wanted:
            return {}
        consumer = self._consumer if stable else self._hasty
        try:
            found = consumer.offsets_for_times(wanted, timeout or self._timeout)
            _raise_first(found)
        except KafkaException:
            # The client goes on using a leader epoch from before a broker's restart: only a new one asks anew. But a
            # new one needs some time to connect.
            if time.monotonic() - self._made > CONNECT_S:
                self.close()
                self._connect()
            raise
        return {(entry.topic, entry.partition): entry.offset for entry in found}

    def close(self) -> None:
        self._consumer.close()
        self._hasty.close()


def _raise_first(found: Iterable[TopicPartition]) -> None:
    for entry in found:
        if entry.error is not None:
            raise KafkaException(entry.error)
