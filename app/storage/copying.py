"""Bytes from one storage to another. A copy appears under its name when it is whole, or not at all."""

import hashlib
import uuid
from collections.abc import Iterator

from app.errors import StorageError
from app.storage.base import CHUNK_BYTES, Storage
from app.storage.conclude import checksum_of

ALGORITHM = "sha256"


def staging_of(name: str) -> str:
    """The directory in which the object of a name comes together."""
    return f"parts/{name.partition('/')[2]}"


def pieces(storage: Storage, name: str, length: int) -> Iterator[bytes]:
    """The first bytes of what is stored.

    Raises:
        StorageError: there are fewer.
    """
    with storage.reading(name) as reader:
        for offset in range(0, length, CHUNK_BYTES):
            wanted = min(CHUNK_BYTES, length - offset)
            data = reader.at(offset, wanted)
            if len(data) != wanted:
                raise StorageError("read", "a file is shorter than it was")
            yield data


def put(storage: Storage, name: str, data: Iterator[bytes]) -> None:
    """Store an object. Whoever does the same at the same time does not disturb it, and leaves nothing behind."""
    writer = storage.writer(f"{staging_of(name)}/{uuid.uuid4().hex}-")
    try:
        for piece in data:
            writer.write([piece])
        storage.compose(writer.sync(final=True), name, last_writer=True)
    finally:
        writer.close()
        storage.clear(staging_of(name))


def copy(source: Storage, name: str, target: Storage, new_name: str, size: int) -> None:
    """Copy an object, and compare what can be read of the copy with what was read of the original.

    A copy that is there already is compared and not written again, so that an interrupted one may be repeated.

    Raises:
        StorageError: one of the two does not answer, or the copy is another one; then it is deleted.
    """
    digest = hashlib.sha256()

    def read() -> Iterator[bytes]:
        for piece in pieces(source, name, size):
            digest.update(piece)
            yield piece

    if target.size(new_name) == size:
        for _ in read():
            pass
        target.clear(staging_of(new_name))
    else:
        put(target, new_name, read())
    if checksum_of(target, new_name, size, ALGORITHM) != f"{ALGORITHM}:{digest.hexdigest()}":
        target.delete([new_name])
        raise StorageError("copy a file", "the copy differs from the original")
