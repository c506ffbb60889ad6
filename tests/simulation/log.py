"""Kafka as far as the protocols can tell: partitions in order, transactions that take effect at once or not at all."""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from app.engine.stores.memory import MemoryStore
from app.engine.table import Rows

Choose = Callable[[Any], Any]


class PromiseError(AssertionError):
    """A promise was broken."""


class Record(NamedTuple):
    key: bytes | None
    value: bytes
    header: bytes | None = None


Partition = tuple[str, int]


@dataclass
class Log:
    """All partitions, and where each reader has committed to. What was truncated is None."""

    records: dict[Partition, list[Record | None]] = field(default_factory=dict)
    committed: dict[Partition, int] = field(default_factory=dict)
    results: list[dict[str, Any]] = field(default_factory=list)
    events: list[dict[str, Any]] = field(default_factory=list)

    def partition(self, where: Partition) -> list[Record | None]:
        return self.records.setdefault(where, [])

    def read(self, where: Partition, offset: int) -> Record:
        record = self.partition(where)[offset]
        if record is None:
            raise PromiseError(f"{where} offset {offset} was truncated and is needed")
        return record

    def truncate(self, where: Partition, below: int) -> None:
        partition = self.partition(where)
        for offset in range(min(below, len(partition))):
            partition[offset] = None


class Place:
    """A router or a server: its rows, its readers, and the open unit. Subclasses keep nothing else that must last."""

    TABLES: tuple[str, ...] = ()
    TOPICS: tuple[str, ...] = ()

    def __init__(self, log: Log, number: int) -> None:
        self.log = log
        self.number = number
        self.stores = {name: MemoryStore() for name in self.TABLES}
        self.trace: list[str] = []
        self.restart()

    def restart(self) -> None:
        """A new host: rows and committed offsets are all there is."""
        self.rows = {name: Rows(store, name, self.number) for name, store in self.stores.items()}
        self.positions = {topic: self.log.committed.get((topic, self.number), 0) for topic in self.TOPICS}
        self.outputs: list[tuple[Partition, Record]] = []
        self.results: list[dict[str, Any]] = []
        self.events: list[dict[str, Any]] = []
        self.open()

    def open(self) -> None:
        """Take up what the rows say."""

    def before_seal(self) -> None:
        """Write what is only in memory."""

    def hold(self, topic: str) -> int:
        return self.positions[topic]

    def send(self, topic: str, number: int, key: bytes | None, value: bytes, header: bytes | None = None) -> None:
        self.outputs.append(((topic, number), Record(key, value, header)))

    def behind(self, topic: str) -> int:
        return len(self.log.partition((topic, self.number))) - self.positions[topic]

    def next_record(self, topic: str) -> tuple[int, Record]:
        offset = self.positions[topic]
        self.positions[topic] = offset + 1
        return offset, self.log.read((topic, self.number), offset)

    def commit(self) -> None:
        self.before_seal()
        for rows in self.rows.values():
            rows.store.apply(rows.seal().items(), None)
            rows.settled()
        for where, record in self.outputs:
            self.log.partition(where).append(record)
        self.log.results += self.results
        self.log.events += self.events
        for topic in self.TOPICS:
            self.log.committed[topic, self.number] = self.hold(topic)
        self.outputs, self.results, self.events = [], [], []
