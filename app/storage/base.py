"""What a storage can do. Every call may wait for a disk or a network: make it in a thread.

Names are relative to the storage's URL and are made by :mod:`app.storage.layout` alone, never by a remote.
"""

from collections.abc import Iterable, Iterator, Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Final, NamedTuple, Protocol

from app.protocol.conveyance import Segments

CHUNK_BYTES: Final = 1 << 20
"""What is read at once."""


class StoredFile(NamedTuple):
    """A whole object of a tenant, by its name below the storage's URL."""

    name: str
    size: int


class Writer(Protocol):
    """Writes the segments of one instance, in order. ``write`` in one thread at a time, ``sync`` in any."""

    @property
    def length(self) -> int:
        """Bytes taken so far."""

    def write(self, chunks: Sequence[bytes]) -> None:
        """Take bytes; StorageError: from here on nothing more is taken, what was durable stays."""

    def sync(self, *, final: bool) -> Segments:
        """Make durable what was taken, with ``final`` all of it; return all that is."""

    def apart(self) -> None:
        """Make all durable, and begin a segment that counts only once it is synced: see :meth:`take_back`."""

    def take_back(self) -> None:
        """Forget the segment that :meth:`apart` began."""

    def close(self) -> None:
        """Let go of the file; what is not synced may be lost."""


class Storage(Protocol):
    """Segments and objects below one URL. All calls raise StorageError."""

    def writer(self, prefix: str) -> Writer:
        """A writer whose segments' names begin with ``prefix``; nothing exists before the first byte."""

    def durable(self, name: str) -> int | None:
        """Make durable what there is of a segment, and return its length; None: there is none."""

    def compose(self, segments: Segments, target: str, *, last_writer: bool) -> None:
        """Make the object of the segments. It appears whole, or not at all; if it is there, nothing happens.

        ``last_writer``: a single segment may become the object itself, because nobody can be writing to it.
        """

    def size(self, name: str) -> int | None:
        """The size of an object, or None where there is none."""

    def reading(self, name: str) -> AbstractContextManager["Reader"]:
        """Open an object or a segment."""

    def path(self, name: str) -> Path | None:
        """The file of an object, if it is one on this machine."""

    def delete(self, names: Iterable[str]) -> None:
        """Delete objects; what is not there is passed over."""

    def clear(self, directory: str) -> None:
        """Delete everything below a directory."""

    def below(self, directory: str) -> Iterator[StoredFile]:
        """The objects below a directory."""


class Reader(Protocol):
    """An open object."""

    def at(self, offset: int, length: int) -> bytes:
        """Read; shorter only at the end."""
