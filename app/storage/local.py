"""Transfers in files of this machine, or of a file system that all workers mount.

Nothing is confirmed before fdatasync has returned for the file and fsync for its new directory entry.
"""

import errno
import os
import shutil
import stat
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from threading import Lock
from typing import Final

from app.errors import StorageError
from app.protocol.conveyance import Segment, Segments, length_of
from app.storage.base import StoredFile

_FULL: Final = frozenset({errno.ENOSPC, errno.EDQUOT})
_NO_RANGES: Final = frozenset({errno.EXDEV, errno.EINVAL, errno.ENOSYS, errno.EOPNOTSUPP})
_VECTOR: Final = 512
_COPY: Final = 64 << 20
_KEPT: Final = 2
"""So many levels of directories below the base stay for ever: objects or parts, and the tenant's."""

_durable: set[Path] = set()
"""Those of them whose entries this process has made durable."""


@contextmanager
def _doing(what: str) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise StorageError(what, error.strerror or str(error), full=error.errno in _FULL) from error


class LocalWriter:
    """Appends to files; see :class:`app.storage.base.Writer`."""

    def __init__(self, base: Path, prefix: str) -> None:
        self._base = base
        self._prefix = prefix
        self._closed: list[Segment] = []
        self._number = 0
        self._file = -1
        self._length = 0
        self._safe = 0
        self._known = False
        self._broken = False
        self._lock = Lock()

    @property
    def length(self) -> int:
        """Bytes taken so far."""
        return length_of(tuple(self._closed)) + self._length

    @property
    def _name(self) -> str:
        return f"{self._prefix}{self._number}"

    def write(self, chunks: Sequence[bytes]) -> None:
        """Append all of the chunks."""
        with self._lock, _doing("write"):
            if self._broken:
                raise StorageError("write", "what was written before could not be made durable")
            if self._file < 0:
                path = self._base / self._name
                path.parent.mkdir(parents=True, exist_ok=True)
                self._file = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o640)
            for start in range(0, len(chunks), _VECTOR):
                self._append(chunks[start : start + _VECTOR])

    def _append(self, chunks: Sequence[bytes]) -> None:
        wanted = sum(map(len, chunks))
        written = os.writev(self._file, chunks)
        self._length += written
        if written < wanted:  # a signal, or a disk that fills up: the next call tells which
            rest = memoryview(b"".join(chunks))[written:]
            while rest:
                written = os.write(self._file, rest)
                self._length += written
                rest = rest[written:]

    def sync(self, *, final: bool) -> Segments:
        """What was written before the call is durable after it; writing may go on meanwhile."""
        length = self._length
        if self._broken:
            raise StorageError("make bytes durable", "it has failed before")
        if self._file >= 0 and length:
            try:
                self._make_durable()
            except StorageError:
                self._break()
                raise
            self._safe = length
            return (*self._closed, Segment(self._name, length))
        return tuple(self._closed)

    def _make_durable(self) -> None:
        with _doing("make bytes durable"):
            os.fdatasync(self._file)
            if not self._known:
                sync_directories(self._base, (self._base / self._name).parent)
                self._known = True

    def _break(self) -> None:
        """The kernel says once that it could not write bytes, and then calls them clean: let nobody count them."""
        with self._lock, suppress(OSError):
            self._broken = True
            os.ftruncate(self._file, self._safe)

    def apart(self) -> None:
        """Begin another file. The first is the one that a successor looks at, so it never is one of these."""
        self._closed = list(self.sync(final=True))
        self._let_go()
        self._number += 1

    def take_back(self) -> None:
        """Delete the file that :meth:`apart` began, and begin another."""
        with _doing("delete"):
            (self._base / self._name).unlink(missing_ok=True)
        self._let_go()
        self._number += 1

    def _let_go(self) -> None:
        self.close()
        self._length = self._safe = 0
        self._known = False

    def close(self) -> None:
        """Close the file."""
        if self._file >= 0:
            os.close(self._file)
            self._file = -1


class LocalReader:
    """Reads by position; see :class:`app.storage.base.Reader`."""

    def __init__(self, file: int) -> None:
        self._file = file

    def at(self, offset: int, length: int) -> bytes:
        """Read; shorter only at the end."""
        with _doing("read"):
            return os.pread(self._file, length, offset)


class LocalStorage:
    """Files below a directory; see :class:`app.storage.base.Storage`."""

    def __init__(self, directory: str) -> None:
        self._base = Path(directory).absolute()

    def writer(self, prefix: str) -> LocalWriter:
        """A writer; nothing exists before its first byte."""
        return LocalWriter(self._base, prefix)

    def durable(self, name: str) -> int | None:
        """Make durable what there is of a segment, whoever wrote it."""
        path = self._base / name
        with _doing("look for a segment"):
            try:
                file = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
            except FileNotFoundError:
                return None
            try:
                length = os.fstat(file).st_size
                os.fdatasync(file)
                sync_directories(self._base, path.parent)
            finally:
                os.close(file)
            return length

    def compose(self, segments: Segments, target: str, *, last_writer: bool) -> None:
        """A single segment is renamed; several are copied inside the kernel, then renamed."""
        path = self._base / target
        with _doing("compose"):
            if path.exists():
                return
            path.parent.mkdir(parents=True, exist_ok=True)
            whole = self._base / segments[0].name if last_writer and len(segments) == 1 else None
            if whole is None or whole.stat().st_size != segments[0].length:
                whole = path.with_name(f"{path.name}.{os.getpid()}.part")
                self._copy(segments, whole)
            whole.rename(path)
            sync_directories(self._base, path.parent)

    def _copy(self, segments: Segments, path: Path) -> None:
        with path.open("wb", buffering=0) as out:
            try:
                for segment in segments:
                    with (self._base / segment.name).open("rb", buffering=0) as source:
                        _copy(source.fileno(), out.fileno(), segment.length)
                os.fdatasync(out.fileno())
            except BaseException:
                path.unlink(missing_ok=True)
                raise

    def size(self, name: str) -> int | None:
        """The size of an object."""
        with _doing("look for an object"):
            try:
                return (self._base / name).stat().st_size
            except FileNotFoundError:
                return None

    @contextmanager
    def reading(self, name: str) -> Iterator[LocalReader]:
        """Open a file."""
        with _doing("open an object"):
            file = os.open(self._base / name, os.O_RDONLY | os.O_CLOEXEC)
        try:
            yield LocalReader(file)
        finally:
            os.close(file)

    def path(self, name: str) -> Path | None:
        """The file itself."""
        return self._base / name

    def delete(self, names: Iterable[str]) -> None:
        """Delete files, and directories that become empty with them."""
        with _doing("delete"):
            for name in names:
                path = self._base / name
                path.unlink(missing_ok=True)
                _prune(self._base, path.parent)

    def clear(self, directory: str) -> None:
        """Delete a directory."""
        path = self._base / directory
        shutil.rmtree(path, ignore_errors=True)
        _prune(self._base, path.parent)

    def below(self, directory: str) -> Iterator[StoredFile]:
        """The files below a directory, in the order of their names."""
        with _doing("list"):
            paths = sorted(_files_below(self._base / directory))
        for path in paths:
            try:
                found = path.stat()
            except FileNotFoundError:
                continue
            if stat.S_ISREG(found.st_mode) and path.suffix != ".part":
                yield StoredFile(path.relative_to(self._base).as_posix(), found.st_size)


def _files_below(directory: Path) -> Iterator[Path]:
    """Every file; a directory that is deleted meanwhile is passed over."""

    def failed(error: OSError) -> None:
        if not isinstance(error, FileNotFoundError):
            raise error

    for place, _, names in os.walk(directory, onerror=failed):
        yield from (Path(place, name) for name in names)


def _copy(source: int, target: int, length: int) -> None:
    """Copy inside the kernel, which shares blocks where the file system can; else through memory."""
    left = length
    by_range = hasattr(os, "copy_file_range")
    while left:
        try:
            done = (
                os.copy_file_range(source, target, min(left, _COPY)) if by_range else _copy_some(source, target, left)
            )
        except OSError as error:
            if not by_range or error.errno not in _NO_RANGES:
                raise
            by_range = False
            continue
        if not done:
            raise OSError(errno.EIO, "a segment is shorter than its row says")
        left -= done


def _copy_some(source: int, target: int, left: int) -> int:
    data = os.read(source, min(left, 1 << 20))
    view = memoryview(data)
    while view:
        view = view[os.write(target, view) :]
    return len(data)


def sync_directories(base: Path, directory: Path) -> None:
    """Make the entries durable that lead from ``base`` to what is in ``directory``.

    The upper levels are never deleted; that their own entries are durable is found out once in a process.
    """
    while True:
        file = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            os.fsync(file)
        finally:
            os.close(file)
        if directory in _durable or directory in (base.parent, directory.parent):
            return
        if len(directory.parts) <= len(base.parts) + _KEPT:
            sync_directories(base, directory.parent)
            _durable.add(directory)
            return
        directory = directory.parent


def _prune(base: Path, directory: Path) -> None:
    """Delete the directories above what is gone, as far as they are empty."""
    with suppress(OSError):
        while len(directory.relative_to(base).parts) > _KEPT:
            directory.rmdir()
            directory = directory.parent
