"""Rows as bytes in a dict: the default, and the fastest."""

from collections.abc import Iterable, Iterator

from app.engine.stores.order import SortedSlices


class MemoryStore:
    """See :class:`app.engine.stores.Store`."""

    __slots__ = ("_rows", "get", "position", "unconfirmed")

    def __init__(self) -> None:
        self._rows: dict[bytes, bytes] = {}
        self.position = 0
        self.unconfirmed = False
        self.get = self._rows.get

    @property
    def size(self) -> int:
        return len(self._rows)

    def apply(self, rows: Iterable[tuple[bytes, bytes | None]], position: int | None) -> None:
        mine = self._rows
        # All at once, then what is deleted: most changes are none.
        changes = dict(rows)
        mine.update(changes)  # type: ignore[arg-type]
        if None in changes.values():
            for key in [key for key, row in changes.items() if row is None]:
                del mine[key]
        if position is not None:
            self.position = position

    def scan(self, prefix: bytes) -> Iterator[tuple[bytes, bytes]]:
        # list() of a dict is one step of the interpreter, so that an apply in another thread cannot disturb it.
        for key in sorted(key for key in list(self._rows) if key.startswith(prefix)):
            row = self._rows.get(key)
            if row is not None:
                yield key, row

    def keys(self, prefix: bytes, after: bytes) -> SortedSlices:
        return SortedSlices(list(self._rows), prefix, after)

    def confirm(self) -> None:
        """Rows in memory are never found again, so their age does not matter."""

    def clear(self) -> None:
        self._rows.clear()
        self.position = 0

    def close(self) -> None:
        """Nothing to let go of."""


class MemoryStores:
    """Opens memory stores; a closed one is gone."""

    def open(self, table: str, partition: int) -> MemoryStore:
        return MemoryStore()

    def close(self) -> None:
        """Nothing to let go of."""
