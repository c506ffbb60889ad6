"""Fetching records in bulk, in a thread of its own, with librdkafka.

The consumer is assigned, never subscribed: the membership is elsewhere. Positions are ours: whoever adds a partition
names its position. Every change takes a new epoch, and a chunk of records names the epoch that it was fetched in, so
that what was fetched of a partition before it was added again is recognised, and no record is lost or doubled over a
rebalance. Partitions that a change does not name are fetched on as if there were none.
"""

import logging
import threading
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import Any, Protocol, cast

from confluent_kafka import OFFSET_END, Consumer, KafkaError, KafkaException, Message, TopicPartition

from app.engine.denied import DENIED, denied
from app.engine.offsets import Partition

log = logging.getLogger(__name__)

CHUNK_RECORDS = 4_000
"""At most so many records are handed over at once."""

CHUNKS_AHEAD = 2
"""So many chunks may wait for the engine; then fetching rests (the memory bound, beside librdkafka's own)."""

WAIT_S = 0.02
"""How long one wait for records lasts: it bounds how late a change is taken up."""


class Record(Protocol):
    """A fetched record: librdkafka's message, of which only these are used. Its values are read when asked for."""

    def key(self) -> bytes | None: ...

    def value(self) -> bytes | None: ...

    def offset(self) -> int: ...

    def headers(self) -> list[tuple[str, bytes]] | None: ...


@dataclass(slots=True)
class Batch:
    """Consecutive records of one partition.

    ``next_offset`` is the offset to commit when all are done; ``start`` is the index of the first that is not;
    ``size`` is the sum of their values in bytes.
    """

    topic: str
    partition: int
    records: list[Record]
    next_offset: int
    start: int = 0
    size: int = 0


@dataclass(slots=True)
class Chunk:
    """Batches of one fetch, and the last change that came before it."""

    epoch: int
    batches: list[Batch]


def in_batches(messages: Sequence[Message]) -> list[Batch]:
    """Sort what was fetched by partition. Records of one come in long runs; what is done to each is done in C."""
    batches: dict[Partition, list[Any]] = {}
    places = zip(map(Message.topic, messages), map(Message.partition, messages), strict=True)
    begin = 0
    for where, run in groupby(cast("Iterable[Partition]", places)):
        end = begin + len(list(run))
        batches.setdefault(where, []).extend(messages[begin:end])
        begin = end
    return [
        Batch(topic, partition, found, found[-1].offset() + 1, size=sum(map(len, found)))
        for (topic, partition), found in batches.items()
    ]


class Fetcher(threading.Thread):
    """The fetch thread.

    Args:
        config: librdkafka options common to all clients.
        group: the worker group, for the broker's eyes only.
        topics: of which partitions may be fetched.
        deliver: takes a chunk; called in this thread, must not block.
        lost_range: takes a partition that no longer has its next record, and the epoch in which that turned out.
        failed: takes the error that ended the thread.
    """

    def __init__(
        self,
        config: Mapping[str, Any],
        group: str,
        topics: Iterable[str],
        *,
        deliver: Callable[[Chunk], None],
        lost_range: Callable[[Partition, int], None],
        failed: Callable[[BaseException], None],
        max_record_bytes: int,
    ) -> None:
        super().__init__(name="fetch", daemon=True)
        self._consumer = Consumer(
            {
                **config,
                "group.id": group,
                "enable.auto.commit": False,
                "enable.auto.offset.store": False,
                "auto.offset.reset": "error",
                "isolation.level": "read_committed",
                "check.crcs": False,
                # What comes ends a fetch at once. Only a new assignment may wait for an idle one.
                "fetch.wait.max.ms": 25,
                "fetch.queue.backoff.ms": 10,
                "fetch.error.backoff.ms": 100,
                "queued.min.messages": 20_000,
                "queued.max.messages.kbytes": max(65_536, 2 * max_record_bytes // 1024),
                "fetch.message.max.bytes": max(1_048_576, max_record_bytes),
                "fetch.max.bytes": max(52_428_800, max_record_bytes),
            }
        )
        self._topics = frozenset(topics)
        self._deliver = deliver
        self._lost_range = lost_range
        self._failed = failed
        self._lock = threading.Condition()
        self._remove: set[Partition] = set()
        self._add: dict[Partition, int] = {}
        self._epoch = 0
        self._ahead = 0
        self._stopping = False

    # -- from the engine's thread ---------------------------------------------------------------------------------

    def change(self, remove: Iterable[Partition], add: Mapping[Partition, int]) -> int:
        """Fetch some partitions no more, then others from these offsets; the epoch from which on chunks heed it."""
        with self._lock:
            for where in remove:
                # One that was to be added is not assigned, unless it was to be removed before that.
                if self._add.pop(where, None) is None:
                    self._remove.add(where)
            self._add.update(add)
            self._epoch += 1
            self._lock.notify()
            return self._epoch

    def taken(self) -> None:
        """The engine is done with a chunk: another one may be fetched ahead."""
        with self._lock:
            self._ahead -= 1
            self._lock.notify()

    def stop(self) -> None:
        with self._lock:
            self._stopping = True
            self._lock.notify()
        self.join(5)

    # -- the thread -----------------------------------------------------------------------------------------------

    def run(self) -> None:
        try:
            self._get_acquainted()
            self._run()
        except BaseException as error:  # noqa: BLE001 - the worker ends with it.
            self._failed(error)
        finally:
            self._consumer.close()

    def _get_acquainted(self) -> None:
        """Let librdkafka know all topics: it looks for the leaders of one that is new to it only once a second."""
        known = [TopicPartition(topic, 0, OFFSET_END) for topic in self._topics]
        self._consumer.incremental_assign(known)
        self._consumer.incremental_unassign(known)

    def _run(self) -> None:
        assigned: set[Partition] = set()
        while True:
            with self._lock:
                while not (self._stopping or self._remove or self._add or (assigned and self._ahead < CHUNKS_AHEAD)):
                    self._lock.wait()
                if self._stopping:
                    return
                remove, self._remove = self._remove, set()
                add, self._add = self._add, {}
                epoch = self._epoch
            if remove:
                self._consumer.incremental_unassign([TopicPartition(*where) for where in remove])
            if add:
                self._consumer.incremental_assign([TopicPartition(*where, offset) for where, offset in add.items()])
            assigned = (assigned - remove) | add.keys()
            if (remove or add) and not assigned:
                continue
            batches = self._fetch(epoch)
            if batches:
                with self._lock:
                    self._ahead += 1
                self._deliver(Chunk(epoch, batches))

    def _fetch(self, epoch: int) -> list[Batch]:
        # consume(n, t) waits all of t unless n came; so wait for one, then take what is there.
        messages = self._consumer.consume(1, WAIT_S)
        if not messages:
            return []
        messages += self._consumer.consume(CHUNK_RECORDS - 1, 0)
        if any(map(Message.error, messages)):
            messages = [message for message in messages if self._sound(message, epoch)]
        return in_batches(messages)

    def _sound(self, message: Message, epoch: int) -> bool:
        """Is it a record, and no word about an error?"""
        error = message.error()
        if error is not None:
            self._complain(cast("Partition", (message.topic(), message.partition())), error, epoch)
        return error is None

    def _complain(self, where: Partition, error: KafkaError, epoch: int) -> None:
        if error.code() == KafkaError._AUTO_OFFSET_RESET:
            self._lost_range(where, epoch)
        elif error.code() in DENIED:
            raise denied(f"read {where[0]}", error.str())
        elif error.fatal():
            raise KafkaException(error)
        else:
            log.debug("fetching %s/%d: %s", *where, error.str())
