"""What is said to the owner of a connection and what it answers, as JSON: records of ``transfers`` and its replies."""

from datetime import UTC, datetime
from typing import Any, assert_never
from urllib.parse import quote

import orjson

from app.errors import RecordError
from app.protocol.conveyance import (
    Ack,
    Announce,
    Begin,
    Cancel,
    Composed,
    Confirm,
    Done,
    Durable,
    Event,
    Failed,
    Found,
    Granted,
    Idle,
    Lock,
    Message,
    Nak,
    Progress,
    Reason,
    Release,
    Reply,
    Segments,
    Spoiled,
    State,
)
from app.records import valid_name
from app.storage.conclude import shelf_for
from app.storage.layout import Shelf, is_name
from tables.transfers import fields_of, segments_of

VERSION = 1


def event_of(fields: dict[str, Any], now_ms: int, *, of_remote: int = 0, total: int = 0) -> Event:
    """The event of a request.

    Raises:
        RecordError: it is none.
    """
    try:
        return _event_of(fields, now_ms, of_remote, total)
    except (KeyError, TypeError, ValueError) as error:
        raise RecordError(f"no request about a transfer: {type(error).__name__} {error}") from error


def _event_of(fields: dict[str, Any], now_ms: int, of_remote: int, total: int) -> Event:
    match fields["op"]:
        case "begin":
            segments = _segments(fields.get("segments", []))
            return Begin(now_ms, message_of(fields), of_remote, total, segments)
        case "lock":
            return Lock(now_ms, str(fields["worker"]), str(fields["request"]), fields.get("seen"))
        case "found":
            return Found(now_ms, int(fields["instance"]), _segments(fields["segments"]))
        case "progress":
            return Progress(now_ms, int(fields["instance"]), _segments(fields["segments"]), fields.get("size"))
        case "release":
            clean = bool(fields.get("clean", True))
            return Release(now_ms, int(fields["instance"]), _segments(fields["segments"]), fields.get("size"), clean)
        case "composed":
            return Composed(now_ms, int(fields["instance"]), str(fields["checksum"]))
        case "spoiled":
            return Spoiled(now_ms, int(fields["instance"]), Reason(fields["reason"]))
        case "cancel":
            return Cancel(now_ms)
        case "confirm":
            return Confirm(now_ms, int(fields["offset"]), bool(fields["verified"]))
        case other:
            raise ValueError(f"op {other!r}")


def _segments(pairs: Any) -> Segments:
    segments = segments_of(pairs)
    for segment in segments:
        if not is_name(segment.name) or type(segment.length) is not int or segment.length < 0:
            raise ValueError(f"{segment.name!r:.100} is no segment")
    return segments


def message_of(fields: dict[str, Any]) -> Message:
    """The message that a request to begin announces."""
    size = fields.get("size")
    if size is not None and (type(size) is not int or size < 0):
        raise ValueError("size is no number of bytes")
    details = fields.get("details", {})
    if not isinstance(details, dict) or not all(isinstance(value, str) for value in details.values()):
        raise ValueError("details are texts by name")
    return Message(
        name=str(fields.get("name", "")),
        size=size,
        partial=bool(fields.get("partial")),
        joined=bool(fields.get("joined")),
        checksum=str(fields.get("checksum", "")),
        details=details,
    )


def reply_fields(reply: Reply, state: State) -> dict[str, Any]:
    """The answer, and the state in which it leaves the connection."""
    return {"v": VERSION, **_reply(reply), "row": fields_of(state)}


def _reply(reply: Reply) -> dict[str, Any]:
    match reply:
        case Granted(instance, offset):
            return {"reply": "granted", "instance": instance, "offset": offset}
        case Durable(offset):
            return {"reply": "durable", "offset": offset}
        case Ack(size, checksum):
            return {"reply": "ack", "offset": size, "size": size, "checksum": checksum}
        case Nak(reason, resume, holder):
            return {"reply": "nak", "reason": reason.value, "offset": resume, "holder": holder}
        case _:
            assert_never(reply)


def reply_of(fields: dict[str, Any]) -> Reply:
    """Read an answer."""
    match fields["reply"]:
        case "granted":
            return Granted(fields["instance"], fields["offset"])
        case "durable":
            return Durable(fields["offset"])
        case "ack":
            return Ack(fields["size"], fields["checksum"])
        case _:
            return Nak(Reason(fields["reason"]), fields["offset"], fields["holder"])


def parse_record(key: bytes | None, value: bytes | None) -> tuple[str, dict[str, Any]]:
    """The connection and the fields of a record of ``transfers``.

    Raises:
        RecordError: it is no request.
    """
    try:
        connection = (key or b"").decode()
        fields = orjson.loads(value or b"")
    except ValueError as error:
        raise RecordError(f"no request about a transfer: {error}") from error
    if not valid_name(connection) or not isinstance(fields, dict):
        raise RecordError("no request about a transfer: the key is the connection, the value an object")
    return connection, fields


def message_in(state: State) -> Message:
    """The message that a state is about."""
    match state:
        case Idle():
            return Message("", None)
        case Done() | Failed():
            return state.message
        case _:
            return state.conveyance.message


def shelf_in(connection: str, state: State) -> Shelf:
    """Where that message lies."""
    return shelf_for(connection, message_in(state))


def announcement(connection: str, state: State, what: Announce, url: str) -> dict[str, Any]:
    """The record of ``events`` that tells all what became of a message; ``url`` is that of the whole."""
    message = message_in(state)
    topic = message.details.get("publish") or None
    whole = isinstance(state, Done) and topic is None
    return {
        "event": what.value,
        "at": datetime.now(UTC).isoformat(),
        "id": None,
        "final": False,
        "connection": connection,
        "message": message.name,
        "tenant": message.details.get("tenant", ""),
        "size": state.size if isinstance(state, Done) else message.size,
        "checksum": state.checksum if isinstance(state, Done) else message.checksum,
        "metadata": message.details.get("metadata", ""),
        "path": f"/files/{quote(connection, safe='')}" if whole else None,
        "url": url if whole else None,
        "topic": topic,
        "reason": state.reason.value if isinstance(state, Failed) else None,
    }
