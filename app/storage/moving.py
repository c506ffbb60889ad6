"""The files of one tenant: listed, copied to another storage, deleted. What a tenant's migration is made of."""

import hashlib
from collections.abc import Iterator

from app.storage.base import CHUNK_BYTES, Storage, StoredFile
from app.storage.layout import tenant_directory


def files_of(storage: Storage, tenant: str) -> Iterator[StoredFile]:
    """The whole files of a tenant, in the order of their names; each has the same name in every storage."""
    return storage.below(f"objects/{tenant_directory(tenant)}")


def copy_file(source: Storage, file: StoredFile, target: Storage) -> str:
    """Copy a file to its name in another storage and return its SHA-256; it appears there whole, or not at all.

    One that is there already is read and not written again: a copy that was interrupted may be repeated.

    Raises:
        StorageError: one of the two does not answer.
    """
    digest = hashlib.sha256()
    there = target.size(file.name) == file.size
    parts = f"parts/{file.name.partition('/')[2]}"
    if not there:
        # What an earlier attempt left.
        target.clear(parts)
    writer = target.writer(f"{parts}/copy-")
    try:
        with (target if there else source).reading(file.name) as reader:
            for offset in range(0, file.size, CHUNK_BYTES):
                data = reader.at(offset, min(CHUNK_BYTES, file.size - offset))
                digest.update(data)
                if not there:
                    writer.write([data])
        if not there:
            target.compose(writer.sync(final=True), file.name, last_writer=True)
    finally:
        writer.close()
        target.clear(parts)
    return digest.hexdigest()


def delete_files(storage: Storage, tenant: str) -> None:
    """Delete everything of a tenant: whole files, and segments of what is under way."""
    storage.clear(f"objects/{tenant_directory(tenant)}")
    storage.clear(f"parts/{tenant_directory(tenant)}")
