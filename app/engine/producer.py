"""The worker's transactional producer: one unit of work, one transaction, one answer.

The transaction is opened when a unit is sealed, never while handlers run: readers of the streams wait for an open one.
Whatever is not certain ends the producer's identity, never the data: a new one with the same transactional id fences
the late request, and the tags of the committed offsets tell what happened.
"""

import logging
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from enum import Enum
from typing import Any

from aiokafka import errors as kafka_errors
from confluent_kafka import KafkaException

from app.engine.crashpoints import passing
from app.engine.offsets import OffsetReader, Partition
from app.engine.transaction import NotWrittenError, Transactions
from app.engine.wire import Batches, Member
from app.errors import HoldfastError
from app.protocol.unit import Outcome, Tag, outcome

log = logging.getLogger(__name__)

INIT_TIMEOUT_S = 5.0
REFUSALS_MAX = 3
"""So many units in a row that the broker refuses for good end the worker."""

UNIT_DEADLINE_S = 10.0
"""When a transaction has not ended after so long, its outcome is unknown; the broker ends it after as long."""

_REFUSED = (
    kafka_errors.IllegalGenerationError,
    kafka_errors.UnknownMemberIdError,
    kafka_errors.RebalanceInProgressError,
)
_FENCED = (kafka_errors.InvalidProducerEpoch, kafka_errors.ProducerFenced)
_NO_ANSWER = (kafka_errors.KafkaError, OSError, TimeoutError)


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

    ``records``: by topic and partition, in order. ``others``: records that name their topic, have headers, or need a
    partitioner. ``offsets``: the next offset of each partition.
    """

    tag: Tag
    member: Member
    records: Mapping[Partition, Batches] = field(default_factory=dict)
    others: Sequence[dict[str, Any]] = ()
    offsets: Mapping[Partition, int] = field(default_factory=dict)


class TransactionalProducer:
    """Commits sealed units one after the other. Blocking; it belongs to the commit thread.

    Args:
        client: keyword arguments of aiokafka's client.
        transactional_id: stable for the worker's name, so that a successor can fence it.
        offsets: reads the committed tags after an unknown outcome.
        stopping: True once the worker ends and nobody waits for an answer any longer.
    """

    def __init__(
        self,
        client: Mapping[str, Any],
        transactional_id: str,
        offsets: OffsetReader,
        stopping: Callable[[], bool],
    ) -> None:
        self._transactions = Transactions(client, transactional_id)
        self._offsets = offsets
        self._stopping = stopping
        self._refusals = 0

    def start(self) -> None:
        """Initialise the transactional id: end what an earlier process left open under it, and fence that process."""
        told = False
        while not self._stopping():
            try:
                self._transactions.initialise(INIT_TIMEOUT_S)
                return
            except _NO_ANSWER as error:
                if not told:
                    log.warning("the broker does not answer (%s); waiting for it", _text(error))
                    told = True
                time.sleep(0.2)

    def close(self) -> None:
        """End the connections."""
        self._transactions.close()

    def commit(self, unit: Sealed) -> Answer:
        """Write ``unit`` in one transaction and say what became of it."""
        if not self._transactions.ready:
            self.start()
        if not self._transactions.ready:
            return Answer.ABORTED
        try:
            self._transactions.write(
                unit.records,
                unit.others,
                unit.offsets,
                metadata=unit.tag.encode(),
                member=unit.member,
                timeout_s=UNIT_DEADLINE_S,
            )
        except NotWrittenError as error:
            return self._not_written(error.cause, unit)
        except _NO_ANSWER as error:
            return self._uncertain(error, unit)
        passing("after-commit")
        self._refusals = 0
        return Answer.COMMITTED

    def _not_written(self, error: Exception, unit: Sealed) -> Answer:
        """Sort out a failure before the end: nothing is in the log once there is a new identity."""
        if isinstance(error, _FENCED):
            return self._uncertain(error, unit)
        self.start()
        log.info("unit %d is not in the log: %s", unit.tag.unit, _text(error))
        if isinstance(error, _REFUSED):
            return Answer.REFUSED
        self._count_refusal(error)
        return Answer.ABORTED

    def _count_refusal(self, error: Exception) -> None:
        """Reading the same records again does not mend a record that the broker will never take.

        The worker ends with it, so that its successors look for the task that makes it (see ``suspects``).
        """
        for_good = isinstance(error, kafka_errors.KafkaError) and not error.retriable
        self._refusals = self._refusals + 1 if for_good else 0
        if self._refusals >= REFUSALS_MAX:
            raise HoldfastError(
                f"the broker refuses what this worker writes ({_text(error)}): check the topics' limits and the ACLs"
            )

    def _uncertain(self, error: Exception, unit: Sealed) -> Answer:
        log.warning("unit %d: outcome unknown (%s); replacing the producer to learn it", unit.tag.unit, _text(error))
        self.start()
        return self._learn(unit)

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


def _text(error: Exception) -> str:
    return str(error) or ("no answer in time" if isinstance(error, TimeoutError) else type(error).__name__)
