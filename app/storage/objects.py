"""Transfers in an object store: S3 through s3fs, or any other file system of fsspec.

Such a store cannot append, so a segment is an object, written when enough bytes have come or the request has ended. A
composition is one request of the store where it can do that (S3: parts copied by the server), else a copy.
"""

from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final

import fsspec
from fsspec.core import url_to_fs

from app.errors import StorageError
from app.protocol.conveyance import Segment, Segments
from app.storage.base import StoredFile

FLUSH_BYTES: Final = 8 << 20
"""A segment becomes an object at this size; S3 composes parts of 5 MiB or more on its side."""

_PART_MIN: Final = 5 << 20
_PARTS_MAX: Final = 10_000


@contextmanager
def _doing(what: str) -> Iterator[None]:
    try:
        yield
    except StorageError:
        raise
    except Exception as error:
        # Whatever is below fsspec has errors of its own.
        raise StorageError(what, " ".join(f"{type(error).__name__} {error}".split())) from error


class ObjectWriter:
    """Collects bytes until they are worth an object; see :class:`app.storage.base.Writer`."""

    def __init__(self, storage: "ObjectStorage", prefix: str) -> None:
        self._storage = storage
        self._prefix = prefix
        self._stored: list[Segment] = []
        self._apart: list[Segment] | None = None
        self._number = 0
        self._chunks: list[bytes] = []
        self._waiting = 0
        self._broken = False

    @property
    def length(self) -> int:
        """Bytes taken so far."""
        return sum(segment.length for segment in self._stored) + self._waiting

    def write(self, chunks: Sequence[bytes]) -> None:
        """Take bytes; a full segment is stored at once."""
        if self._broken:
            raise StorageError("write", "an earlier segment could not be stored")
        self._chunks += chunks
        self._waiting += sum(map(len, chunks))
        if self._waiting >= FLUSH_BYTES:
            self._flush()

    def _flush(self) -> None:
        name = f"{self._prefix}{self._number}"
        self._number += 1
        try:
            with _doing("store a segment"):
                self._storage.put(name, b"".join(self._chunks))
        except StorageError:
            self._broken = True
            raise
        # Replaced, never changed: another thread may be looking at it.
        self._stored = [*self._stored, Segment(name, self._waiting)]
        self._chunks, self._waiting = [], 0

    def sync(self, *, final: bool) -> Segments:
        """What is stored is durable. A small rest is stored only at the end."""
        if final and self._waiting and not self._broken:
            self._flush()
        return tuple(self._stored)

    def apart(self) -> None:
        """Remember where the bytes begin that may be taken back."""
        self._apart = list(self.sync(final=True))

    def take_back(self) -> None:
        """Forget what came since."""
        if self._apart is not None:
            unwanted = self._stored[len(self._apart) :]
            self._stored, self._chunks, self._waiting = self._apart, [], 0
            self._storage.delete(segment.name for segment in unwanted)

    def close(self) -> None:
        """Nothing is open."""


class ObjectReader:
    """Reads ranges; see :class:`app.storage.base.Reader`."""

    def __init__(self, files: Any, path: str) -> None:
        self._files = files
        self._path = path

    def at(self, offset: int, length: int) -> bytes:
        """Read; shorter only at the end."""
        with _doing("read"):
            return bytes(self._files.cat_file(self._path, start=offset, end=offset + length))


class ObjectStorage:
    """Objects below a URL; see :class:`app.storage.base.Storage`."""

    def __init__(self, url: str) -> None:
        # What another worker wrote a moment ago must be seen: no listings are kept.
        self._files, self._base = url_to_fs(url, use_listings_cache=False)  # type: ignore[no-untyped-call]
        assert isinstance(self._files, fsspec.AbstractFileSystem)
        self._base = self._base.rstrip("/")

    def _path(self, name: str) -> str:
        return f"{self._base}/{name}"

    def put(self, name: str, data: bytes) -> None:
        """Store an object at once."""
        path = self._path(name)
        self._parent(path)
        self._files.pipe_file(path, data)

    def _parent(self, path: str) -> None:
        if not self._atomic:
            self._files.makedirs(path.rpartition("/")[0], exist_ok=True)

    @property
    def _atomic(self) -> bool:
        """Is an object seen only once it is whole, and needs no directory?"""
        return "s3" in self._files.protocol

    def writer(self, prefix: str) -> ObjectWriter:
        """A writer; nothing exists before its first segment is full."""
        return ObjectWriter(self, prefix)

    def durable(self, name: str) -> int | None:
        """An object that is there is durable."""
        return self.size(name)

    def compose(self, segments: Segments, target: str, *, last_writer: bool) -> None:
        """Let the store compose, or copy; an object appears when it is complete."""
        path = self._path(target)
        with _doing("compose"):
            if self._size(path) is not None:
                return
            self._parent(path)
            sources = [self._path(segment.name) for segment in segments]
            spare = [(self._size(path) or 0) - s.length for path, s in zip(sources, segments, strict=True)]
            if min(spare, default=0) < 0:
                raise StorageError("compose", "a segment is shorter than its row says")
            exact = not any(spare)
            mergeable = 1 < len(segments) <= _PARTS_MAX and all(s.length >= _PART_MIN for s in segments[:-1])
            if exact and mergeable and hasattr(self._files, "merge"):
                self._files.merge(path, sources)
            elif exact and len(sources) == 1:
                self._files.copy(sources[0], path)
            elif self._atomic:
                self._copy(segments, path)
            else:
                self._copy(segments, f"{path}.part")
                self._files.mv(f"{path}.part", path)

    def _copy(self, segments: Segments, path: str) -> None:
        with self._files.open(path, "wb", block_size=4 * FLUSH_BYTES) as out:
            for segment in segments:
                reader = ObjectReader(self._files, self._path(segment.name))
                for start in range(0, segment.length, FLUSH_BYTES):
                    wanted = min(FLUSH_BYTES, segment.length - start)
                    out.write(reader.at(start, wanted))

    def size(self, name: str) -> int | None:
        """The size of an object."""
        with _doing("look for an object"):
            return self._size(self._path(name))

    def _size(self, path: str) -> int | None:
        try:
            return int(self._files.info(path)["size"])
        except FileNotFoundError:
            return None

    @contextmanager
    def reading(self, name: str) -> Iterator[ObjectReader]:
        """Ranges of an object."""
        yield ObjectReader(self._files, self._path(name))

    def path(self, name: str) -> Path | None:
        """Nothing on this machine."""
        return None

    def delete(self, names: Iterable[str]) -> None:
        """Delete objects."""
        with _doing("delete"):
            for name in names:
                try:
                    self._files.rm_file(self._path(name))
                except FileNotFoundError:
                    continue

    def clear(self, directory: str) -> None:
        """Delete what lies below a directory."""
        with _doing("delete"):
            try:
                self._files.rm(self._path(directory), recursive=True)
            except FileNotFoundError:
                return

    def below(self, directory: str) -> Iterator[StoredFile]:
        """The objects below a directory, in the order of their names."""
        with _doing("list"):
            found = self._files.find(self._path(directory), detail=True)
        for path in sorted(found):
            yield StoredFile(path.removeprefix(f"{self._base}/"), int(found[path]["size"]))
