"""The worker's transactional producer: one unit of work, one transaction, one answer.

The transaction is opened when a unit is sealed, never while handlers run: readers of the streams wait for an open one.
Its order is fixed: records, flush, offsets, commit. Whatever is not certain ends the producer, never the data: a new
one with the same transactional id fences the late request, and the tags of the committed offsets tell what happened.
"""

import logging
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from enum import Enum
from typing import Any

from confluent_kafka import KafkaError, KafkaException, Producer, TopicPartition

from app.engine.bounded import Bounded
from app.engine.crashpoints import passing
from app.engine.denied import DENIED, denied
from app.engine.offsets import OffsetReader, Partition
from app.errors import HoldfastError
from app.protocol.unit import Outcome, Tag, outcome

log = logging.getLogger(__name__)

TRANSACTION_TIMEOUT_MS = 10_000
CALL_TIMEOUT_S = 8.0
INIT_TIMEOUT_S = 5.0
REFUSALS_MAX = 3
"""So many units in a row that the broker refuses for good end the worker."""

UNIT_DEADLINE_S = 10.0
"""When a transaction has not ended after so long, its outcome is unknown; the broker ends it after as long."""

_REFUSED = {
    KafkaError.ILLEGAL_GENERATION,
    KafkaError.UNKNOWN_MEMBER_ID,
    KafkaError.FENCED_INSTANCE_ID,
    KafkaError.REBALANCE_IN_PROGRESS,
}


class Answer(Enum):
    """What became of a sealed unit."""

    COMMITTED = "committed"
    ABORTED = "aborted"
    """Not in the log; the worker still owns what it owned."""
    REFUSED = "refused"
    """Not in the log: the group has moved on, join it again."""


@dataclass(slots=True)
class Sealed:
    """A unit of work, closed: everything that one transaction writes.

    ``records``: lists of ``{"key", "value"}`` by topic and partition, in order. ``others``: records that need
    headers or a partitioner, as keyword arguments of ``produce``. ``offsets``: the next offset of each partition.
    """

    tag: Tag
    group_metadata: Any
    records: Mapping[Partition, list[dict[str, Any]]] = field(default_factory=dict)
    others: Sequence[dict[str, Any]] = ()
    offsets: Mapping[Partition, int] = field(default_factory=dict)


class TransactionalProducer:
    """Commits sealed units one after the other. Blocking; it belongs to the commit thread.

    Args:
        config: librdkafka options common to all clients.
        transactional_id: stable for the worker's name, so that a successor can fence it.
        offsets: reads the committed tags after an unknown outcome.
        stopping: True once the worker ends and nobody waits for an answer any longer.
    """

    def __init__(
        self,
        config: Mapping[str, Any],
        transactional_id: str,
        offsets: OffsetReader,
        stopping: Callable[[], bool],
        *,
        max_record_bytes: int,
    ) -> None:
        self._config = {
            **config,
            "transactional.id": transactional_id,
            "transaction.timeout.ms": TRANSACTION_TIMEOUT_MS,
            # A unit is whole when it is produced: nothing is gained by waiting for more.
            "linger.ms": 0,
            "batch.size": 1_000_000,
            "batch.num.messages": 100_000,
            "queue.buffering.max.messages": 2_000_000,
            "queue.buffering.max.kbytes": 1_048_576,
            "message.max.bytes": max_record_bytes,
            "delivery.report.only.error": True,
            "partitioner": "murmur2_random",
            # A request for each partition is under way at once: none must wait until the one before is acknowledged.
            "socket.nagle.disable": True,
            # A unit that has offsets only is refused while the markers of the one before are being written.
            "retry.backoff.ms": 10,
        }
        self._offsets = offsets
        self._stopping = stopping
        self._producer: Producer | None = None
        self._left_behind: list[Producer] = []
        self._refusals = 0
        self._bounded = Bounded("transaction")

    def start(self) -> None:
        """Initialise the transactional id: end what an earlier process left open under it, and fence that process."""
        told = False
        while not self._stopping():
            producer = Producer(self._config)
            try:
                self._bounded.run(lambda made=producer: made.init_transactions(INIT_TIMEOUT_S), 2 * INIT_TIMEOUT_S)  # type: ignore[misc]
                self._producer = producer
                return
            except (KafkaException, TimeoutError) as error:
                self._leave_behind(producer, error)
                if isinstance(error, KafkaException) and error.args[0].code() in DENIED:
                    raise denied(
                        f"use the transactional id {self._config['transactional.id']}", _text(error)
                    ) from error
                if not told:
                    log.warning("the broker does not answer (%s); waiting for it", _text(error))
                    told = True
                time.sleep(0.2)

    def commit(self, unit: Sealed) -> Answer:
        """Write ``unit`` in one transaction and say what became of it."""
        if self._producer is None:
            self.start()
        producer = self._producer
        if producer is None:
            return Answer.ABORTED
        try:
            self._bounded.run(lambda: self._write(producer, unit), UNIT_DEADLINE_S)
            passing("after-commit")
            self._refusals = 0
            return Answer.COMMITTED
        except (KafkaException, TimeoutError) as error:
            return self._after(producer, error, unit)

    def _write(self, producer: Producer, unit: Sealed) -> None:
        """The transaction: records, flush, offsets, commit."""
        producer.begin_transaction()
        passing("before-changelog")
        self._produce(producer, unit)
        producer.flush(CALL_TIMEOUT_S)
        passing("before-offsets")
        producer.send_offsets_to_transaction(
            [TopicPartition(t, p, o, unit.tag.encode()) for (t, p), o in unit.offsets.items()],
            unit.group_metadata,
            CALL_TIMEOUT_S,
        )
        passing("before-commit")
        producer.commit_transaction(CALL_TIMEOUT_S)

    def _after(self, producer: Producer, error: KafkaException | TimeoutError, unit: Sealed) -> Answer:
        """Sort out a failure: what is certainly not in the log, and what must be learned with a new producer."""
        known = error.args[0] if isinstance(error, KafkaException) else None
        if known is not None and known.txn_requires_abort() and self._aborted(producer):
            log.info("unit %d is not in the log: %s", unit.tag.unit, known.str())
            if known.code() in _REFUSED:
                return Answer.REFUSED
            self._count_refusal(known)
            return Answer.ABORTED
        self._producer = None
        log.warning("unit %d: outcome unknown (%s); replacing the producer to learn it", unit.tag.unit, _text(error))
        self._leave_behind(producer, error)
        self.start()
        return self._learn(unit)

    def _count_refusal(self, error: KafkaError) -> None:
        """Reading the same records again does not mend a record that the broker will never take.

        The worker ends with it, so that its successors look for the task that makes it (see ``suspects``).
        """
        self._refusals = 0 if error.retriable() else self._refusals + 1
        if self._refusals >= REFUSALS_MAX:
            raise HoldfastError(
                f"the broker refuses what this worker writes ({error.str()}): check the topics' limits and the ACLs"
            )

    def _leave_behind(self, producer: Producer, error: KafkaException | TimeoutError) -> None:
        """A producer whose call has not returned must not be destroyed under it."""
        if isinstance(error, TimeoutError):
            self._left_behind.append(producer)

    def _aborted(self, producer: Producer) -> bool:
        try:
            self._bounded.run(lambda: producer.abort_transaction(CALL_TIMEOUT_S), CALL_TIMEOUT_S + 1)
            return True
        except (KafkaException, TimeoutError) as error:
            self._leave_behind(producer, error)
            return False

    def _learn(self, unit: Sealed) -> Answer:
        while not self._stopping():
            try:
                found = self._offsets.committed(list(unit.offsets))
            except KafkaException as error:
                log.debug("reading committed offsets: %s", error)
                time.sleep(0.2)
                continue
            match outcome((entry.tag for entry in found.values()), unit.tag):
                case Outcome.COMMITTED:
                    return Answer.COMMITTED
                case Outcome.ABORTED:
                    return Answer.ABORTED
                case Outcome.FOREIGN:
                    return Answer.REFUSED
        return Answer.ABORTED

    @staticmethod
    def _produce(producer: Producer, unit: Sealed) -> None:
        for (topic, partition), records in unit.records.items():
            if records and producer.produce_batch(topic, records, partition) != len(records):
                # A unit is far smaller than the queue, so this is no full queue; a part of it must not go out.
                raise KafkaException(next(record["_error"] for record in records if "_error" in record))
        for record in unit.others:
            while True:
                try:
                    producer.produce(**record)
                    break
                except BufferError:
                    producer.poll(0.01)
        producer.poll(0)


def _text(error: KafkaException | TimeoutError) -> str:
    return str(error.args[0].str()) if isinstance(error, KafkaException) else "a call did not return in time"
