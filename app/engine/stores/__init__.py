"""Where the rows of a table partition are kept on a worker: in memory, or in RocksDB for more than memory holds.

The changelog is the truth; a store is a copy of it up to a position, and may always be thrown away.
"""

from collections.abc import Iterable, Iterator
from typing import Protocol

from app.engine.stores.order import Keys


class Store(Protocol):
    """The committed rows of one table partition, and the changelog position that they hold.

    Only committed rows are ever applied. Methods may be called from two threads: one reads while one applies.
    """

    @property
    def position(self) -> int:
        """Every changelog record below this offset is in the rows; 0 when nothing is known."""

    @property
    def size(self) -> int | None:
        """How many rows there are; None where telling would cost a pass over them."""

    def get(self, key: bytes) -> bytes | None:
        """The row, or None."""

    def apply(self, rows: Iterable[tuple[bytes, bytes | None]], position: int | None) -> None:
        """Put rows (None deletes) and, if given, the new position, at once or not at all."""

    def scan(self, prefix: bytes) -> Iterator[tuple[bytes, bytes]]:
        """Rows whose key begins with ``prefix``, in the order of their keys, as of now."""

    def keys(self, prefix: bytes, after: bytes) -> Keys:
        """Keys that begin with ``prefix`` and stand behind ``after``, as of now; for walks that take a while."""

    @property
    def unconfirmed(self) -> bool:
        """Would it help to look whether the rows are complete, and to :meth:`confirm` it?"""

    def confirm(self) -> None:
        """The rows hold all that the changelog has at this moment: note the time, to know later how old they are."""

    def clear(self) -> None:
        """Forget everything."""

    def close(self) -> None:
        """Let go of files; nothing is lost."""


class StoreFactory(Protocol):
    """Opens the store of a table partition."""

    def open(self, table: str, partition: int) -> Store: ...

    def close(self) -> None: ...
