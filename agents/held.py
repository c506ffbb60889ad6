"""Held tasks of one server: the rows behind :mod:`app.protocol.holding`."""

from collections.abc import Iterator
from typing import NamedTuple

import orjson

from app.engine.table import Rows
from app.protocol.holding import Held, Name
from tables import handoffs, parked
from tables.parked import Kept


class HeldTask(NamedTuple):
    """A held task, to be performed as the record of the stream that it was."""

    router: int
    source: int
    number: int
    name: Name
    kept: Kept

    def key(self) -> bytes:
        return b"%d:%d" % (self.kept.partition, self.kept.offset)

    def value(self) -> bytes:
        return self.kept.task

    def offset(self) -> int:
        return self.number

    def headers(self) -> None:
        """It has none."""


def name_of(task: bytes) -> Name | None:
    """Tenant and session of a task; None: it is no task."""
    try:
        fields = orjson.loads(task)
        name = (fields["tenant"], fields["session"])
    except (ValueError, KeyError, TypeError):
        return None
    return name if type(name[0]) is str and type(name[1]) is str else None


class HeldTasks(Held):
    """What one server holds, as rows. The counts are made from them when the server opens."""

    __slots__ = ("_rows",)

    def __init__(self, rows: Rows) -> None:
        super().__init__()
        self._rows = rows
        for key, row in rows.scan(handoffs.HELD):
            router, source, number = handoffs.held(key)
            task = self._task(router, source, number, row)
            self.found(router, source, number, name=task.name, size=len(task.kept.task))

    def keep(self, router: int, source: int, name: Name, kept: Kept) -> None:
        """Hold a task."""
        number = self.hold(router, source, name=name, size=len(kept.task))
        self._rows.put(handoffs.held_key(router, source, number), parked.encode(kept))

    def some(self, router: int, source: int, most: int) -> Iterator[HeldTask]:
        """The next tasks that are held for sessions from ``source``, in order; each has left when it is handed out."""
        count = min(most, self.counts(router).get(source, 0))
        for number in range(first := self.first(router, source), first + count) if count else ():
            yield self.leaves(self.look(router, source, number))

    def look(self, router: int, source: int, number: int) -> HeldTask:
        """A held task; it stays."""
        row = self._rows.get(handoffs.held_key(router, source, number))
        assert row is not None, "held tasks are rows"
        return self._task(router, source, number, row)

    def leaves(self, task: HeldTask) -> HeldTask:
        """The first of its source is about to be performed."""
        self._rows.delete(handoffs.held_key(task.router, task.source, task.number))
        self.leave(task.router, task.source, task.number, name=task.name, size=len(task.kept.task))
        return task

    @staticmethod
    def _task(router: int, source: int, number: int, row: bytes) -> HeldTask:
        kept = parked.decode(row)
        name = name_of(kept.task)
        assert name is not None, "only tasks are held"
        return HeldTask(router, source, number, name, kept)
