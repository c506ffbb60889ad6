"""What a new holder does before it writes: compare the row with the storage."""

from app.protocol.conveyance import Conveyance, Segment, Segments
from app.storage.base import Storage
from app.storage.conclude import shelf_of


def survey(storage: Storage, connection: str, conveyance: Conveyance, instance: int) -> Segments | None:
    """The segments that are durable, if they are not those of the row; None: the row is right.

    The holder before this one may have written more than it could say. Its first segment holds bytes in their order,
    and nobody but it has changed the row since it took the lock: so what is there, counts. What is missing does not.

    Raises:
        StorageError: it does not answer.
    """
    segments = conveyance.segments
    tail = f"{shelf_of(connection, conveyance).prefix(instance - 1)}0"
    before = f"{shelf_of(connection, conveyance).prefix(instance - 1)}"
    others = [segment for segment in segments if segment.name.startswith(before) and segment.name != tail]
    if not others and (length := storage.durable(tail)) is not None:
        earlier = segments[:-1] if segments and segments[-1].name == tail else segments
        size = conveyance.message.size
        room = length if size is None else size - sum(segment.length for segment in earlier)
        found = (*earlier, Segment(tail, min(length, room))) if min(length, room) > 0 else earlier
        return found if found != segments else None
    return _still_there(storage, segments)


def _still_there(storage: Storage, segments: Segments) -> Segments | None:
    """Look at the last one: whoever lost it lost what comes behind it as well."""
    kept = segments
    while kept:
        length = storage.size(kept[-1].name) or 0
        if length >= kept[-1].length:
            break
        kept = (*kept[:-1], Segment(kept[-1].name, length)) if length else kept[:-1]
    return kept if kept != segments else None
