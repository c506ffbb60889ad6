"""What stands behind an offset: records that can be read, or only what a transaction left behind.

A transaction ends with a marker, and one that was aborted leaves its records in the log as well. Both count in the end
of a partition, nobody reads them, and so no commit ever moves beyond them: what looks like lag may be no work at all.
"""

import time
from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple, cast

from confluent_kafka import Consumer, KafkaError, TopicPartition

from app.engine.offsets import Partition

LOOK_S = 2.0


class Tail(NamedTuple):
    """The part of a partition from an offset on, up to its end."""

    where: Partition
    offset: int
    end: int


class Tails:
    """Looks into tails, and into each only once while nothing is added to it.

    Args:
        config: librdkafka options common to all clients.
        group: any name within the namespace; offsets are never committed with it.
    """

    def __init__(self, config: Mapping[str, Any], group: str) -> None:
        self._options = {
            **config,
            "group.id": group,
            "enable.auto.commit": False,
            "enable.partition.eof": True,
            "isolation.level": "read_committed",
            "auto.offset.reset": "error",
            "fetch.wait.max.ms": 20,
        }
        self._empty: dict[Partition, Tail] = {}
        self._full: dict[Partition, int] = {}

    def empty(self, tails: Iterable[Tail]) -> set[Partition]:
        """The partitions in whose tails there is nothing to read. What is not found out in time counts as work."""
        tails = list(tails)
        unknown = [t for t in tails if self._empty.get(t.where) != t and self._full.get(t.where) != t.offset]
        if unknown:
            self._look({tail.where: tail for tail in unknown})
        return {tail.where for tail in tails if self._empty.get(tail.where) == tail}

    def _look(self, tails: dict[Partition, Tail]) -> None:
        consumer = Consumer(self._options)
        deadline = time.monotonic() + LOOK_S
        try:
            consumer.assign([TopicPartition(*tail.where, tail.offset) for tail in tails.values()])
            while tails and time.monotonic() < deadline:
                message = consumer.poll(0.1)
                if message is None:
                    continue
                tail = tails.pop(cast("Partition", (message.topic(), message.partition())), None)
                error = message.error()
                if tail is None:
                    continue
                if error is None:
                    self._full[tail.where] = tail.offset
                elif error.code() == KafkaError._PARTITION_EOF:
                    self._empty[tail.where] = tail
        finally:
            consumer.close()
