"""Tables whose rows change only with a committed unit of work.

A write goes to an overlay. When the unit is sealed the overlay becomes its changelog records and stays readable while
the commit is under way; the commit moves it into the store, an abort throws it away. So an aborted unit costs no
restore, and a row that changed a thousand times in a unit is written once.
"""

from collections.abc import Iterator, Mapping

from app.engine.stores import Store
from app.engine.stores.order import Keys, Merged


class Rows:
    """The rows of one table partition, as the running unit sees them. Keys and rows are bytes.

    Used by the engine's thread; :meth:`peek` may be called from any.
    """

    __slots__ = ("_overlay", "_sealed", "partition", "store", "topic")

    def __init__(self, store: Store, topic: str, partition: int) -> None:
        self.store = store
        self.topic = topic
        self.partition = partition
        self._overlay: dict[bytes, bytes | None] = {}
        self._sealed: dict[bytes, bytes | None] = {}

    @property
    def dirty(self) -> bool:
        return bool(self._overlay)

    def get(self, key: bytes) -> bytes | None:
        """The row, with the changes of this unit and of the one being committed; None where there is none."""
        if key in self._overlay:
            return self._overlay[key]
        if key in self._sealed:
            return self._sealed[key]
        return self.store.get(key)

    def put(self, key: bytes, row: bytes) -> None:
        self._overlay[key] = row

    def delete(self, key: bytes) -> None:
        self._overlay[key] = None

    def peek(self, key: bytes) -> bytes | None:
        """The committed row."""
        return self.store.get(key)

    def scan(self, prefix: bytes = b"") -> Iterator[tuple[bytes, bytes]]:
        """Rows whose key begins with ``prefix``, in the order of their keys, changes included."""
        changed = {**self._sealed, **self._overlay}
        merged = {key: row for key, row in self.store.scan(prefix) if key not in changed}
        merged |= {key: row for key, row in changed.items() if row is not None and key.startswith(prefix)}
        for key in sorted(merged):
            yield key, merged[key]

    def keys(self, prefix: bytes, after: bytes = b"") -> Keys:
        """Keys that begin with ``prefix`` and stand behind ``after``, changes included, as of now.

        For walks that take a while: read each row by :meth:`get` when it is its turn, it may be gone by then.
        """
        changed = (key for key in {**self._sealed, **self._overlay} if key.startswith(prefix) and key > after)
        return Merged(self.store.keys(prefix, after), changed)

    # -- the engine's side ----------------------------------------------------------------------------------------

    def seal(self) -> Mapping[bytes, bytes | None]:
        """Close the overlay and return it. Only one sealed overlay exists at a time.

        The unit that takes it applies it to the store once it is committed, even if this worker has discarded what
        it had in memory in the meantime.
        """
        assert not self._sealed
        self._sealed, self._overlay = self._overlay, {}
        return self._sealed

    def settled(self) -> None:
        """The sealed overlay is in the store."""
        self._sealed = {}

    def discard(self) -> None:
        """The unit did not commit: forget what it wrote."""
        self._overlay = {}
        self._sealed = {}
