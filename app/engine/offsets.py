"""Committed offsets of the worker group: reading them stable, and the tags that fence zombies.

Reading goes through librdkafka with ``isolation.level=read_committed``, whose OffsetFetch asks for stable offsets and
waits while a transaction that will move them is pending; a reader that does not wait starts from an older offset and
doubles records.
"""

import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from confluent_kafka import OFFSET_INVALID, Consumer, IsolationLevel, KafkaException, TopicPartition
from confluent_kafka.admin import AdminClient
from confluent_kafka.admin._listoffsets import OffsetSpec

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

    def __init__(self, answers: Mapping[Partition, Any], unanswered: Callable[[], None]) -> None:
        self._answers = answers
        self._unanswered = unanswered

    @property
    def done(self) -> bool:
        """Is :meth:`result` there without a wait?"""
        return all(future.done() for future in self._answers.values())

    def result(self) -> dict[Partition, int]:
        """The offset of each partition; raises KafkaException when the broker does not answer."""
        try:
            return {where: future.result().offset for where, future in self._answers.items()}
        except KafkaException:
            self._unanswered()
            raise


class OffsetReader:
    """Reads committed offsets and the ends of partitions. Blocking; use it from one thread at a time.

    A call that is not answered within ``timeout`` seconds raises KafkaException: the caller asks again if it has to.
    """

    def __init__(self, config: Mapping[str, Any], group: str, *, timeout: float = 5.0) -> None:
        self._timeout = timeout
        options = {**config, "group.id": group, "enable.auto.commit": False}
        self._consumer = Consumer({**options, "isolation.level": "read_committed"})
        self._hasty = Consumer({**options, "isolation.level": "read_uncommitted"})
        self._config = dict(config)
        self._admin = AdminClient(self._config)
        self._admin_made = time.monotonic()

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
        for entry in found:
            if entry.error is not None:
                raise KafkaException(entry.error)
        return {
            (entry.topic, entry.partition): Committed(
                None if entry.offset == OFFSET_INVALID else entry.offset, Tag.parse(entry.metadata)
            )
            for entry in found
        }

    def starts(self, partitions: Iterable[Partition]) -> dict[Partition, int]:
        """The first offset that each partition still has."""
        return self._ask(partitions, OffsetSpec.earliest()).result()  # type: ignore[no-untyped-call]

    def high_watermarks(self, partitions: Iterable[Partition], timeout: float | None = None) -> dict[Partition, int]:
        """The end of each partition, open transactions included: a restore must reach it."""
        return self.ask_high_watermarks(partitions, timeout).result()

    def ask_high_watermarks(self, partitions: Iterable[Partition], timeout: float | None = None) -> Asked:
        """As :meth:`high_watermarks`, without waiting for the answer."""
        return self._ask(partitions, OffsetSpec.latest(), timeout)  # type: ignore[no-untyped-call]

    def _ask(self, partitions: Iterable[Partition], spec: Any, timeout: float | None = None) -> Asked:
        wanted = {TopicPartition(t, p): spec for t, p in partitions}
        if not wanted:
            return Asked({}, self._unanswered)
        answers = self._admin.list_offsets(
            wanted, isolation_level=IsolationLevel.READ_UNCOMMITTED, request_timeout=timeout or self._timeout
        )
        return Asked({(entry.topic, entry.partition): future for entry, future in answers.items()}, self._unanswered)

    def _unanswered(self) -> None:
        """The client goes on using a leader epoch from before a broker's restart: only a new one asks anew.

        But a new one needs some time to connect.
        """
        if time.monotonic() - self._admin_made > CONNECT_S:
            self._admin = AdminClient(self._config)
            self._admin_made = time.monotonic()

    def close(self) -> None:
        self._consumer.close()
        self._hasty.close()
