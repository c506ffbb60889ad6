"""The unit of work while it is open, and the thread that commits sealed ones in order.

Units overlap by one: while one is being committed, the next is being filled. Its outputs stay here as lists until it
is sealed, so no transaction is open while a handler runs and an abandoned unit has left no trace in the broker.
"""

import threading
import time
from collections import Counter
from collections.abc import Callable, Collection, Container, Mapping, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field
from queue import SimpleQueue
from typing import Any

from app.engine.checkpoints import Checkpoints
from app.engine.offsets import OffsetReader, Partition
from app.engine.producer import Answer, Sealed, TransactionalProducer
from app.engine.table import Rows
from app.engine.wire import Batches, Headers, Pair

UNIT_RECORDS = 50_000
"""An open unit with so many inputs and outputs takes no more input until it is sealed."""

UNIT_BYTES = 64 * 2**20
"""The same for the bytes of both, so that a unit of large records stays well below the producer's queue."""

STOP_S = 2.0
"""How long the end of a worker waits for a commit that the broker does not answer."""

TURN_S = 0.1


class Unit:
    """Everything that is to happen at once: outputs and offsets (rows keep their own overlays).

    ``records`` may be appended to directly on hot paths: keys and values, by topic and partition. Who does so adds to
    ``weight`` (records) and ``size`` (bytes of values). What has been packed of them stands in ``packed``, in front of
    those that came later. ``headers`` has the headers of those that are still here and have some, by their index.
    ``failed`` counts the tasks that failed in it.
    """

    __slots__ = (
        "deadline",
        "failed",
        "headers",
        "offsets",
        "opened",
        "others",
        "packed",
        "records",
        "size",
        "weight",
    )

    def __init__(self, interval: float) -> None:
        self.opened = time.monotonic()
        self.deadline = self.opened + interval
        self.records: dict[Partition, list[Pair]] = {}
        self.packed: dict[Partition, Batches] = {}
        self.headers: dict[Partition, dict[int, Headers]] = {}
        self.others: list[dict[str, Any]] = []
        self.offsets: dict[Partition, int] = {}
        self.weight = 0
        self.size = 0
        self.failed = 0

    @property
    def empty(self) -> bool:
        return not (self.offsets or self.records or self.others)

    @property
    def full(self) -> bool:
        return self.weight >= UNIT_RECORDS or self.size >= UNIT_BYTES

    def output(self, topic: str, partition: int) -> list[Pair]:
        """The list of records for one partition, to append to: their keys and values."""
        where = (topic, partition)
        found = self.records.get(where)
        if found is None:
            found = self.records[where] = []
        return found

    def pack(self, least: int = 1, *, leave: Container[str] = ()) -> None:
        """Encode lists of at least so many records and empty them, but for those of the topics to ``leave``."""
        now_ms = time.time_ns() // 1_000_000
        for where, records in self.records.items():
            if len(records) < least or where[0] in leave:
                continue
            headers = self.headers.pop(where, None)
            if headers is None:
                self.packing(where).add(records, now_ms)
            else:
                append = self.packing(where).append
                for index, (key, value) in enumerate(records):
                    append(key, value, headers.get(index, []), now_ms)
            # The list itself is known to agents.
            records.clear()

    def of(self, topics: Collection[str]) -> list[dict[str, Any]]:
        """The records of some topics that are not packed, each with ``topic``, ``key`` and ``value``."""
        found = [
            {"topic": topic, "key": key, "value": value}
            for (topic, _), records in self.records.items()
            if topic in topics
            for key, value in records
        ]
        return found + [record for record in self.others if record["topic"] in topics]

    def packing(self, where: Partition) -> Batches:
        """What the records of a partition are packed in."""
        found = self.packed.get(where)
        if found is None:
            found = self.packed[where] = Batches()
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
        if value is not None:
            self.size += len(value)


@dataclass(slots=True)
class Submission:
    """A sealed unit on its way, the rows that become committed with it, and the generation it belongs to.

    With ``checkpoint`` the stores of ``rows`` learn their positions, as they otherwise do now and then. ``failed``
    tasks ended in it; it was sealed ``at`` (monotonic clock). ``looked``: those of its records that are looked at one
    by one once they are committed.
    """

    unit: Sealed
    generation: int
    rows: Sequence[tuple[Rows, Mapping[bytes, bytes | None]]] = ()
    checkpoint: bool = False
    failed: int = 0
    looked: Sequence[Mapping[str, Any]] = ()
    at: float = field(default_factory=time.monotonic)
    answer: Answer | None = None
    answered: Callable[["Submission"], None] = field(default=lambda submission: None)

    @property
    def written(self) -> Counter[str]:
        """How many records it writes, by topic."""
        found = Counter(record["topic"] for record in self.unit.others)
        for (topic, _), batches in self.unit.records.items():
            found[topic] += batches.count
        return found


class Committer:
    """Commits submissions one after the other in a thread of its own, under the generation that is allowed.

    A worker that is about to join calls :meth:`block`: after it returns no transaction is open and none will be
    until :meth:`allow`.
    """

    def __init__(
        self,
        config: Mapping[str, Any],
        *,
        client: Mapping[str, Any],
        transactional_id: str,
        group: str,
        failed: Callable[[BaseException], None],
    ) -> None:
        self._stopping = False
        self._offsets = OffsetReader(config, group)
        self._producer = TransactionalProducer(client, transactional_id, self._offsets, lambda: self._stopping)
        self._failed = failed
        self._lock = threading.Lock()
        self._gate = threading.Lock()
        self._generation: int | None = None
        self._blocked = 0
        self._checkpoints = Checkpoints(self._offsets)
        self._left_behind = False
        self._work: SimpleQueue[Callable[[], None]] = SimpleQueue()
        self._thread = threading.Thread(target=self._serve, name="commit", daemon=True)

    def start(self) -> Future[None]:
        """Initialise the transactional id; ends what an earlier process of this name left open."""
        started: Future[None] = Future()

        def initialise() -> None:
            try:
                self._producer.start()
            except BaseException as error:  # noqa: BLE001 - it is the caller's.
                started.set_exception(error)
            else:
                if not self._left_behind:
                    started.set_result(None)

        self._work.put(initialise)
        self._thread.start()
        return started

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
        while not self._stopping:
            if self._lock.acquire(timeout=TURN_S):
                self._lock.release()
                return

    def joining(self, join: int) -> bool:
        """Has a later join than ``join`` begun?"""
        return self._blocked > join

    def submit(self, submission: Submission) -> None:
        self._work.put(lambda: self._run(submission))

    def stop(self) -> None:
        """Commit nothing more. A call that is not answered is left behind: a successor ends what it began."""
        self._stopping = True
        self._work.put(lambda: None)
        if self._thread.is_alive():
            self._thread.join(STOP_S)
        self._left_behind = self._thread.is_alive()
        if not self._left_behind:
            self._producer.close()
            self._offsets.close()

    def _serve(self) -> None:
        try:
            while not self._stopping:
                self._work.get()()
        except BaseException as error:  # noqa: BLE001 - the worker ends with it.
            if not self._left_behind:
                self._failed(error)

    def _run(self, submission: Submission) -> None:
        # The answer is given under the lock: whoever has blocked has it behind them.
        with self._lock:
            submission.answer = self._commit(submission)
            if not self._left_behind:
                submission.answered(submission)

    def _commit(self, submission: Submission) -> Answer:
        with self._gate:
            allowed = submission.generation == self._generation
        if not allowed:
            return Answer.REFUSED
        changelogs = [(rows.topic, rows.partition) for rows, _ in submission.rows]
        positions = self._checkpoints.positions(changelogs, submission.generation, last=submission.checkpoint)
        answer = self._producer.commit(submission.unit)
        if answer is Answer.COMMITTED and not self._left_behind:
            for rows, changes in submission.rows:
                position = positions.get((rows.topic, rows.partition))
                rows.store.apply(changes.items(), position)
                if position is not None:
                    rows.store.confirm()
        return answer
