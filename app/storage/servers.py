"""A storage for each server, beside the one of all: a tenant's files lie where the tenant is at home.

A message is stored, from its first byte to its whole, in the storage of the server where its tenant was at home when it
began; its row says which one and under which epoch. When the tenant moves, its whole files are copied under the epoch
to come and deleted where they were (:mod:`app.storage.tenant_files`). The row is left as it is, because it need not be
right about where the file is, only about which one it is:

- a file never changes, and any copy of it is it;
- a copy appears whole, or not at all;
- one is deleted only when there is another of a later epoch, or when its migration has failed and the original stays.

So whoever looks for a file looks where its row says, and then at all servers. What comes for a tenant while it moves,
and is not whole when its files are listed, stays where it began and is found there.

Names begin with ``@`` and the server's number; the rest is the name in its storage.
"""

from collections.abc import Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Final

from app.errors import StorageError
from app.protocol.conveyance import Segment, Segments
from app.storage.base import Reader, Storage, StoredFile, Writer
from app.storage.copying import pieces, put

SERVER: Final = "{server}"
"""Stands for the server's number in the URL of its storage."""

_KNOWN_MAX: Final = 10_000
_LOOKS: Final = 3
"""A file that moves may be missed where it was and where it comes to, but not that often."""


def url_of(name: str, common: str, each: str) -> str:
    """The URL of what has a name; ``common`` and ``each`` are those of the storages."""
    mark, inner = _split(name)
    return f"{each.replace(SERVER, mark[1:])}/{inner}" if mark else f"{common}/{inner}"


def _split(name: str) -> tuple[str, str]:
    if not name.startswith("@"):
        return "", name
    mark, _, inner = name.partition("/")
    return mark, inner


class _MarkedWriter:
    """A writer of a server's storage, whose segments have their full names."""

    def __init__(self, writer: Writer, mark: str) -> None:
        self._writer = writer
        self._mark = mark
        self.write = writer.write
        self.apart = writer.apart
        self.take_back = writer.take_back
        self.close = writer.close

    @property
    def length(self) -> int:
        """Bytes taken so far."""
        return self._writer.length

    def sync(self, *, final: bool) -> Segments:
        """Make durable what was taken."""
        return tuple(
            Segment(f"{self._mark}/{segment.name}", segment.length) for segment in self._writer.sync(final=final)
        )


class ServerStorages:
    """The storage of all, and one for each server; see :class:`app.storage.base.Storage`."""

    def __init__(self, common: Storage, each: Sequence[Storage]) -> None:
        self._common = common
        self._each = tuple(each)
        self._known: dict[str, str] = {}

    @property
    def servers(self) -> range:
        """The numbers of the servers."""
        return range(len(self._each))

    def at(self, server: int) -> Storage:
        """The storage of one server, whose names have no mark."""
        if server not in self.servers:
            raise StorageError("open", f"there is no server {server}")
        return self._each[server]

    def _of(self, name: str) -> tuple[Storage, str]:
        mark, inner = _split(name)
        return (self.at(int(mark[1:])) if mark else self._common), inner

    # -- copies ---------------------------------------------------------------------------------------------------

    def copies(self, name: str) -> Iterator[str]:
        """The copies of a server's file, under any epoch, at any server."""
        _, inner = _split(name)
        directory, _, file = inner.rpartition("/")
        message = file.partition(".")[0]
        for server in self.servers:
            for found in self._each[server].below(directory):
                if found.name.rpartition("/")[2].partition(".")[0] == message:
                    yield f"@{server}/{found.name}"

    def _find(self, name: str) -> tuple[str, int] | None:
        """Where a file is, and its size."""
        found = self._measured(name)
        if found is not None or not name.startswith("@") or "/objects/" not in name:
            return found
        for _ in range(_LOOKS):
            known = self._known.get(name)
            for copy in self.copies(name) if known is None else (known,):
                found = self._measured(copy)
                if found is not None:
                    if len(self._known) >= _KNOWN_MAX:
                        self._known.clear()
                    self._known[name] = copy
                    return found
            self._known.pop(name, None)
        return None

    def _measured(self, name: str) -> tuple[str, int] | None:
        storage, inner = self._of(name)
        size = storage.size(inner)
        return None if size is None else (name, size)

    # -- a storage ------------------------------------------------------------------------------------------------

    def writer(self, prefix: str) -> Writer:
        """A writer in the storage of the prefix."""
        storage, inner = self._of(prefix)
        mark, _ = _split(prefix)
        return _MarkedWriter(storage.writer(inner), mark) if mark else storage.writer(inner)

    def durable(self, name: str) -> int | None:
        """Make durable what there is of a segment."""
        storage, inner = self._of(name)
        return storage.durable(inner)

    def compose(self, segments: Segments, target: str, *, last_writer: bool) -> None:
        """Parts of a concatenation may lie in several storages, or have moved since: then they are copied."""
        storage, inner = self._of(target)
        found = [Segment((self._find(s.name) or (s.name, 0))[0], s.length) for s in segments]
        if {_split(segment.name)[0] for segment in found} <= {_split(target)[0]}:
            here = tuple(Segment(_split(segment.name)[1], segment.length) for segment in found)
            storage.compose(here, inner, last_writer=last_writer)
        elif storage.size(inner) is None:
            put(storage, inner, (piece for segment in found for piece in pieces(self, segment.name, segment.length)))

    def size(self, name: str) -> int | None:
        """The size of an object, wherever it is."""
        found = self._find(name)
        return None if found is None else found[1]

    @contextmanager
    def reading(self, name: str) -> Iterator[Reader]:
        """Open an object, wherever it is."""
        with ExitStack() as opened:
            yield self._open(name, opened)

    def _open(self, name: str, opened: ExitStack) -> Reader:
        last = StorageError("open an object", "no server has it now")
        for _ in range(_LOOKS):
            found = self._find(name)
            if found is None:
                continue
            storage, inner = self._of(found[0])
            try:
                return opened.enter_context(storage.reading(inner))
            except StorageError as error:
                last = error
        raise last

    def path(self, name: str) -> Path | None:
        """The file of an object."""
        found = self._find(name)
        storage, inner = self._of(name if found is None else found[0])
        return storage.path(inner)

    def delete(self, names: Iterable[str]) -> None:
        """Delete objects: all copies that there are of each."""
        for name in names:
            for one in [name, *self.copies(name)] if name.startswith("@") else [name]:
                storage, inner = self._of(one)
                storage.delete([inner])
            self._known.pop(name, None)

    def clear(self, directory: str) -> None:
        """Delete everything below a directory."""
        storage, inner = self._of(directory)
        storage.clear(inner)

    def below(self, directory: str) -> Iterator[StoredFile]:
        """The objects below a directory."""
        storage, inner = self._of(directory)
        mark, _ = _split(directory)
        for file in storage.below(inner):
            yield StoredFile(f"{mark}/{file.name}", file.size) if mark else file
