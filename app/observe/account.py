"""The account: what was sent against what came of it, compared record by record.

:class:`Audit` is pure. It is fed the whole of ``tasks``, then ``results``, then ``dead-letters``, each
partition in the order of its offsets, and holds about 20 bytes a task, so that a million tasks are no
trouble. What it checks are the promises of the design:

* I1, nothing lost: a task has one result, a record that is no task has one dead letter with its bytes, a
  failed task has both; a task that is too large to be carried counts as no task, and its dead letter may lack
  the bytes;
* I2, nothing doubled: not one of them twice, and no result of a task that nobody sent;
* I3, order: the results of a session are numbered 1, 2, 3 ... and answer its tasks in the order of ``tasks``.

:mod:`app.observe.reading` feeds it from Kafka.
"""

from array import array
from collections.abc import Iterable
from dataclasses import dataclass, field
from hashlib import blake2b
from typing import Final

import orjson

from app.errors import RecordError
from app.protocol.murmur2 import partition_of
from app.records import parse_task

EXAMPLES_MAX: Final = 5
"""How many faults of each kind are described in words."""

_TASK, _BAD, _RESULT, _FAILED, _LETTER = 1, 2, 4, 8, 16

Headers = Iterable[tuple[str, bytes | None]] | None


@dataclass(frozen=True, slots=True)
class Account:
    """The outcome of an audit.

    ``sent``: tasks, re-published copies not counted. ``bad``: records of ``tasks`` that are no tasks, or that no
    router could carry (``TooLarge``).
    ``performed``: tasks done; ``failed``: tasks that ended as failed. ``dead_lettered``: dead letters of
    records of ``tasks``. The others count faults. ``altered``: answers that do not fit what they answer: dead
    letters with other bytes, results with another task id, tenant, session or type. ``examples``: the first
    faults of each kind in plain words.
    """

    sent: int = 0
    performed: int = 0
    failed: int = 0
    bad: int = 0
    dead_lettered: int = 0
    lost: int = 0
    doubled: int = 0
    out_of_order: int = 0
    gaps: int = 0
    foreign: int = 0
    altered: int = 0
    examples: tuple[str, ...] = ()

    @property
    def ok(self) -> bool:
        """Whether there is no fault at all."""
        return not (self.lost or self.doubled or self.out_of_order or self.gaps or self.foreign or self.altered)

    def __str__(self) -> str:
        faults = ", ".join(
            f"{getattr(self, name)} {name.replace('_', ' ')}"
            for name in ("lost", "doubled", "out_of_order", "gaps", "foreign", "altered")
        )
        head = (
            f"{self.sent} sent, {self.performed} performed, {self.failed} failed, {self.bad} bad, "
            f"{self.dead_lettered} dead-lettered; {faults}"
        )
        return "\n".join([head, *(f"  {example}" for example in self.examples)])


@dataclass(slots=True)
class _Column:
    """What is known of the records of one partition of ``tasks``, by offset less ``base``."""

    base: int
    flags: bytearray = field(default_factory=bytearray)
    session: "array[int]" = field(default_factory=lambda: array("I"))
    identity: "array[int]" = field(default_factory=lambda: array("Q"))
    content: "array[int]" = field(default_factory=lambda: array("Q"))

    def reserve(self, offset: int) -> int:
        """Return the index of an offset that is not below ``base``, and make room for it."""
        index = offset - self.base
        # Offsets have holes: control records of transactions, and records that were aborted.
        missing = index + 1 - len(self.flags)
        if missing > 0:
            self.flags.extend(bytes(missing))
            for values in (self.session, self.identity, self.content):
                values.frombytes(bytes(missing * values.itemsize))
        return index

    def index(self, offset: int) -> int | None:
        """Return the index of an offset that holds a record of ``tasks``, else None."""
        index = offset - self.base
        return index if 0 <= index < len(self.flags) and self.flags[index] else None


@dataclass(slots=True)
class _Faults:
    """Counts by kind, and the first of each kind in words."""

    counts: dict[str, int] = field(default_factory=dict)
    examples: list[str] = field(default_factory=list)

    def add(self, kind: str, text: str) -> None:
        count = self.counts.get(kind, 0) + 1
        self.counts[kind] = count
        if count <= EXAMPLES_MAX:
            self.examples.append(f"{kind.replace('_', ' ')}: {text}")


class Audit:
    """Compares tasks, results and dead letters; feed it in this order, each partition by rising offsets.

    Args:
        tasks_topic: the full name of ``tasks``; dead letters from other topics are not its business.
        restarts: sessions may have been ended by ``session.end()``: a sequence may start again at 1.
        midway: the reading began in the middle of the log: a session may begin with any number.
        routers: the partitions of ``tasks``; 0 if tasks in a wrong one are not to be excused.
    """

    def __init__(
        self, tasks_topic: str = "tasks", *, restarts: bool = False, midway: bool = False, routers: int = 0
    ) -> None:
        self._tasks_topic = tasks_topic.encode()
        self._routers = routers
        self._restarts = restarts
        self._midway = midway
        self._columns: dict[int, _Column] = {}
        self._sessions: dict[tuple[str, str], int] = {}
        # By session: the last sequence, and the last offset by partition of ``tasks``.
        self._sequence = array("Q")
        self._source: dict[tuple[int, int], int] = {}
        self._faults = _Faults()
        self._sent = self._bad = self._letters = 0

    def add_task(
        self, partition: int, offset: int, key: bytes | None, value: bytes | None, headers: Headers = None
    ) -> None:
        """Take a record of ``tasks``. Re-published copies are passed over: their origin counts."""
        if is_copy(headers):
            return
        column = self._columns.get(partition)
        if column is None:
            column = self._columns[partition] = _Column(base=offset)
        if offset < column.base:
            raise ValueError(f"tasks {partition}/{offset} comes after {partition}/{column.base}")
        index = column.reserve(offset)
        column.content[index] = _hash(value)
        try:
            task = parse_task(key, value)
        except RecordError:
            column.flags[index] = _BAD
            self._bad += 1
            return
        column.flags[index] = _TASK
        column.session[index] = self._session(task.tenant, task.session)
        column.identity[index] = _identity(task.id or f"{partition}/{offset}", task.type)
        self._sent += 1

    def add_result(self, partition: int, offset: int, value: bytes | None) -> None:
        """Take a record of ``results``."""
        where = f"results {partition}/{offset}"
        try:
            result = orjson.loads(value or b"")
            source, origin = result["source"]["partition"], result["source"]["offset"]
            sequence, failed = int(result["sequence"]), result["status"] == "failed"
            who = (result["tenant"], result["session"])
            identity = _identity(result["task"], result["type"])
        except (ValueError, KeyError, TypeError):
            self._faults.add("foreign", f"{where} is no result")
            return
        name = f"{where} for tasks {source}/{origin} of {who[0]} {who[1]}"
        column = self._columns.get(source)
        index = None if column is None else column.index(origin)
        if column is None or index is None or not column.flags[index] & _TASK:
            self._faults.add("foreign", f"{name}: there is no such task")
            return
        session = column.session[index]
        if column.identity[index] != identity or self._sessions.get(who) != session:
            self._faults.add("altered", f"{name}: the task has another id, type, tenant or session")
        again = bool(column.flags[index] & _RESULT)
        column.flags[index] |= _RESULT | (_FAILED if failed and not again else 0)
        if again:
            self._faults.add("doubled", f"{name}: the task has a result already")
        else:
            self._check_source(session, source, origin, name)
        self._check_sequence(session, sequence, again, name)

    def _check_source(self, session: int, partition: int, offset: int, name: str) -> None:
        last = self._source.get((session, partition), -1)
        if offset <= last:
            self._faults.add("out_of_order", f"{name} comes after the result for tasks {partition}/{last}")
        else:
            self._source[session, partition] = offset

    def _check_sequence(self, session: int, sequence: int, again: bool, name: str) -> None:
        last = self._sequence[session]
        starts = (last == 0 and self._midway) or (sequence == 1 and self._restarts and not again)
        if sequence == last + 1 or starts:
            self._sequence[session] = sequence
        elif sequence > last:
            self._faults.add("gaps", f"{name}: number {sequence} comes after {last or 'nothing'}")
            self._sequence[session] = sequence
        elif not again:
            self._faults.add("out_of_order", f"{name}: number {sequence} comes after {last}")

    def add_dead_letter(self, partition: int, offset: int, value: bytes | None, headers: Headers) -> None:
        """Take a record of ``dead-letters``."""
        fields = dict(headers or ())
        if fields.get("source-topic") != self._tasks_topic:
            return
        self._letters += 1
        where = f"dead-letters {partition}/{offset}"
        try:
            source, origin = int(fields["source-partition"] or b""), int(fields["source-offset"] or b"")
        except (KeyError, ValueError):
            self._faults.add("foreign", f"{where} does not say where it comes from")
            return
        name = f"{where} for tasks {source}/{origin}"
        column = self._columns.get(source)
        index = None if column is None else column.index(origin)
        if column is None or index is None:
            self._faults.add("foreign", f"{name}: there is no such record")
            return
        if column.flags[index] & _LETTER:
            self._faults.add("doubled", f"{name}: the record has a dead letter already")
        column.flags[index] |= _LETTER
        too_large = fields.get("error") == b"TooLarge"
        if too_large and column.flags[index] & _TASK and self._refused(column, index, source, value):
            column.flags[index] ^= _TASK | _BAD
            self._sent -= 1
            self._bad += 1
        bare = too_large and value is None and bool(column.flags[index] & _BAD)
        if not bare and column.content[index] != _hash(value):
            self._faults.add("altered", f"{name} has other bytes than the record")

    def _refused(self, column: _Column, index: int, partition: int, value: bytes | None) -> bool:
        """Whether a router could not carry a task: larger than a record once read, or too large to be sent on.

        A task that a server failed has a result and, in its dead letter, all its bytes.
        """
        if column.flags[index] & _RESULT:
            return False
        if value is None:
            return True
        if not self._routers or column.content[index] != _hash(value):
            return False
        return partition_of(orjson.loads(value)["tenant"].encode(), self._routers) != partition

    def verdict(self) -> Account:
        """Compare what was fed so far. May be called again after more was fed."""
        faults = _Faults(dict(self._faults.counts), list(self._faults.examples))
        performed = failed = 0
        names = list(self._sessions)
        for partition, column in sorted(self._columns.items()):
            for index, flags in enumerate(column.flags):
                if flags & _RESULT:
                    performed += not flags & _FAILED
                    failed += bool(flags & _FAILED)
                if flags in _FAULTLESS:
                    continue
                where = f"tasks {partition}/{column.base + index}"
                if flags & _TASK:
                    where += " of " + " ".join(names[column.session[index]])
                faults.add(*_incomplete(flags, where))
        return Account(
            sent=self._sent,
            performed=performed,
            failed=failed,
            bad=self._bad,
            dead_lettered=self._letters,
            examples=tuple(faults.examples),
            **faults.counts,
        )

    def _session(self, tenant: str, session: str) -> int:
        index = self._sessions.setdefault((tenant, session), len(self._sessions))
        if index == len(self._sequence):
            self._sequence.append(0)
        return index


_FAULTLESS: Final = frozenset({0, _TASK | _RESULT, _TASK | _RESULT | _FAILED | _LETTER, _BAD | _LETTER})


def _incomplete(flags: int, where: str) -> tuple[str, str]:
    """Say what a record of ``tasks`` that is not in order lacks, or has too much."""
    if flags & _BAD:
        return "lost", f"{where} is no task and has no dead letter"
    if not flags & _RESULT:
        return "lost", f"{where} has no result"
    if flags & _FAILED:
        return "lost", f"{where} failed and has no dead letter"
    return "foreign", f"{where} was done and has a dead letter"


def is_copy(headers: Headers) -> bool:
    """Whether a record of ``tasks`` is the copy of a misrouted one, which names its origin."""
    names = {name for name, _ in headers or ()}
    return "origin-partition" in names and "origin-offset" in names


def _hash(value: bytes | None) -> int:
    # Null and empty are two different things.
    return 0 if value is None else int.from_bytes(blake2b(value, digest_size=8).digest(), "big") or 1


def _identity(task_id: str, kind: str) -> int:
    return hash((task_id, kind)) & 0xFFFF_FFFF_FFFF_FFFF
