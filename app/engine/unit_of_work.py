"""The unit of work while it is open, and the thread that commits sealed ones in order.

Units overlap by one: while one is being committed, the next is being filled. Its outputs stay here as lists until it
is sealed, so no transaction is open while a handler runs and an abandoned unit has left no trace in the broker.
"""

import threading
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any

from app.engine.offsets import OffsetReader, Partition
from app.engine.producer import Answer, Sealed, TransactionalProducer
from app.engine.table import Rows

UNIT_RECORDS = 50_000
"""An open unit with so many outputs takes no more input until it is sealed."""

CHECKPOINT_S = 5.0
"""How often stores learn a changelog position, which bounds what a local restart replays."""


class Unit:
    """Everything that is to happen at once: outputs and offsets (rows keep their own overlays).

    ``records`` may be appended to directly on hot paths: dicts of ``key`` and ``value``, by topic and partition.
    """

    __slots__ = ("deadline", "offsets", "opened", "others", "records", "weight")

    def __init__(self, interval: float) -> None:
        self.opened = time.monotonic()
        self.deadline = self.opened + interval
        self.records: dict[Partition, list[dict[str, Any]]] = {}
        self.others: list[dict[str, Any]] = []
        self.offsets: dict[Partition, int] = {}
        self.weight = 0

    @property
    def empty(self) -> bool:
        return not (self.offsets or self.records or self.others)

    @property
    def full(self) -> bool:
        return self.weight >= UNIT_RECORDS

    def output(self, topic: str, partition: int) -> list[dict[str, Any]]:
        """The list of records for one partition, to append to."""
        where = (topic, partition)
        found = self.records.get(where)
        if found is None:
            found = self.records[where] = []
        return found

    def send(
        self,
        topic: str,
        value: bytes | None,
        key: bytes | None = None,
        *,
        partition: int | None = None,
        headers: list[tuple[str, bytes]] | None = None,
    ) -> None:
        """A record that has headers or leaves the partition to the partitioner (murmur2 of the key)."""
        record: dict[str, Any] = {"topic": topic, "value": value, "key": key}
        if partition is not None:
            record["partition"] = partition
        if headers is not None:
            record["headers"] = headers
        self.others.append(record)
        self.weight += 1


@dataclass(slots=True)
class Submission:
    """A sealed unit on its way, the rows that become committed with it, and the generation it belongs to.

    With ``checkpoint`` the stores of ``rows`` learn their positions, as they otherwise do now and then.
    """

    unit: Sealed
    generation: int
    rows: Sequence[tuple[Rows, Mapping[bytes, bytes | None]]] = ()
    checkpoint: bool = False
    answer: Answer | None = None
    answered: Callable[["Submission"], None] = field(default=lambda submission: None)


class Committer:
    """Commits submissions one after the other in a thread of its own, under the generation that is allowed.

    A worker that is about to join calls :meth:`block`: after it returns no transaction is open and none will be
    until :meth:`allow`.
    """

    def __init__(
        self,
        config: Mapping[str, Any],
        *,
        transactional_id: str,
        group: str,
        max_record_bytes: int,
        failed: Callable[[BaseException], None],
    ) -> None:
        self._stopping = False
        self._offsets = OffsetReader(config, group)
        self._producer = TransactionalProducer(
            config, transactional_id, self._offsets, lambda: self._stopping, max_record_bytes=max_record_bytes
        )
        self._failed = failed
        self._lock = threading.Lock()
        self._gate = threading.Lock()
        self._generation: int | None = None
        self._blocked = 0
        self._checkpoint = time.monotonic() + CHECKPOINT_S
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="commit")

    def start(self) -> Future[None]:
        """Initialise the transactional id; ends what an earlier process of this name left open."""
        return self._thread.submit(self._producer.start)

    def allow(self, generation: int, join: int) -> None:
        """Commit under ``generation``, the answer to ``join``, unless a later join has begun."""
        with self._gate:
            if join >= self._blocked:
                self._generation = generation

    def block(self, join: int) -> None:
        """Commit no more, and wait for what is under way."""
        with self._gate:
            self._blocked = join
            self._generation = None
        with self._lock:
            pass

    def joining(self, join: int) -> bool:
        """Has a later join than ``join`` begun?"""
        return self._blocked > join

    def submit(self, submission: Submission) -> None:
        self._thread.submit(self._run, submission)

    def stop(self) -> None:
        self._stopping = True
        self._thread.shutdown(wait=True, cancel_futures=True)
        self._offsets.close()

    def _run(self, submission: Submission) -> None:
        try:
            # The answer is given under the lock: whoever has blocked has it behind them.
            with self._lock:
                submission.answer = self._commit(submission)
                submission.answered(submission)
        except BaseException as error:  # noqa: BLE001 - the worker ends with it.
            self._failed(error)

    def _commit(self, submission: Submission) -> Answer:
        with self._gate:
            allowed = submission.generation == self._generation
        if not allowed:
            return Answer.REFUSED
        positions = self._positions([rows for rows, _ in submission.rows], submission.checkpoint)
        answer = self._producer.commit(submission.unit)
        if answer is Answer.COMMITTED:
            for rows, changes in submission.rows:
                rows.store.apply(changes.items(), positions.get((rows.topic, rows.partition)))
        return answer

    def _positions(self, rows: Sequence[Rows], now: bool) -> dict[Partition, int]:
        """Positions that the stores may note with this unit, now and then.

        They are read before the commit: if it is accepted, this worker was the only writer up to then, and all that
        it wrote below them is applied already.
        """
        if not rows or (time.monotonic() < self._checkpoint and not now):
            return {}
        self._checkpoint = time.monotonic() + CHECKPOINT_S
        try:
            return self._offsets.high_watermarks((entry.topic, entry.partition) for entry in rows)
        except Exception:  # noqa: BLE001 - only a saving: without it a restart replays more.
            return {}
