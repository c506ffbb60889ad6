"""Making the whole of a complete conveyance: by its holder, or by whoever takes the lock after one that died.

Every step may be repeated: the object has the message's own name, and is either there whole or not at all.
"""

import hashlib
from collections.abc import Callable
from dataclasses import replace
from typing import Final, NamedTuple

from app.protocol.conveyance import Completing, Conveyance, Message, Reason
from app.storage.base import CHUNK_BYTES, Storage
from app.storage.layout import Shelf

PLACE: Final = "place"
"""The detail of a message that says at which server it lies; none: in the storage of all."""


class Conclusion(NamedTuple):
    """``spoiled`` says why it cannot be; else ``checksum`` is that of the whole, and ``content`` what to publish."""

    spoiled: Reason | None
    checksum: str = ""
    content: bytes | None = None


def put_at(message: Message, place: Callable[[str], str]) -> Message:
    """The message with the place that its tenant has now, whatever the remote says about that."""
    details = {name: value for name, value in message.details.items() if name != PLACE}
    tenant = details.get("tenant", "")
    found = place(tenant) if tenant else ""
    return replace(message, details={**details, PLACE: found} if found else details)


def shelf_for(connection: str, message: Message) -> Shelf:
    """Where a message lies, as its row says."""
    details = message.details
    return Shelf(details.get("tenant", ""), connection, message.number, details.get(PLACE, ""))


def shelf_of(connection: str, conveyance: Conveyance) -> Shelf:
    """Where the message of a conveyance lies."""
    return shelf_for(connection, conveyance.message)


def conclude(storage: Storage, connection: str, state: Completing) -> Conclusion:
    """Make the whole, and check it if the remote said what it should be. Takes as long as it takes: use a thread.

    Raises:
        StorageError: not now; try again.
    """
    conveyance = state.conveyance
    for segment in conveyance.segments:
        if (storage.size(segment.name) or 0) < segment.length and not _there(storage, connection, conveyance):
            return Conclusion(Reason.STORAGE)
    target = shelf_of(connection, conveyance).object
    wanted = conveyance.message.checksum
    single = len(conveyance.segments) == 1 and not conveyance.message.joined
    last = single and conveyance.segments[0].name.rpartition("/")[2].startswith(f"{state.by}-")
    storage.compose(conveyance.segments, target, last_writer=last)
    found = checksum_of(storage, target, conveyance.offset, wanted.partition(":")[0]) if wanted else ""
    if found != wanted:
        storage.delete([target])
        return Conclusion(Reason.CHECKSUM)
    content = None
    if conveyance.message.details.get("publish"):
        with storage.reading(target) as reader:
            content = reader.at(0, conveyance.offset)
    return Conclusion(None, found, content)


def _there(storage: Storage, connection: str, conveyance: Conveyance) -> bool:
    """Has the whole been made already, perhaps of the segment that is missing?"""
    return storage.size(shelf_of(connection, conveyance).object) == conveyance.offset


def checksum_of(storage: Storage, name: str, size: int, algorithm: str) -> str:
    """The checksum of an object, ``algorithm:hexadecimal``."""
    digest = hashlib.new(algorithm, usedforsecurity=False)
    with storage.reading(name) as reader:
        for offset in range(0, size, CHUNK_BYTES):
            digest.update(reader.at(offset, CHUNK_BYTES))
    return f"{algorithm}:{digest.hexdigest()}"
