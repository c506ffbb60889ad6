"""``transfers``: every connection, on the owner that grants its lock. Key: the connection (UTF-8).

The row is the manifest of what is stored: its segments, in order, with the lengths that count.
"""

from typing import Any, assert_never

import orjson

from app.protocol.conveyance import (
    Completing,
    Conveyance,
    Conveying,
    Done,
    Failed,
    Floating,
    Held,
    Idle,
    Message,
    Reason,
    Segment,
    Segments,
    State,
)

NAME = "transfers"
VERSION = 1


def encode(state: State) -> bytes:
    return orjson.dumps({"v": VERSION, **fields_of(state)})


def decode(row: bytes) -> State:
    """Raise ValueError for a row of another version."""
    fields = orjson.loads(row)
    if fields.get("v") != VERSION:
        raise ValueError("a transfer row of another version")
    return state_of(fields)


def fields_of(state: State) -> dict[str, Any]:
    """What a state says, as JSON: rows and replies carry it."""
    match state:
        case Idle(instance):
            return {"state": "idle", "instance": instance}
        case Floating():
            return {"state": "floating", **_conveyance(state), "clean": state.clean}
        case Conveying():
            return {"state": "conveying", **_conveyance(state), "held": _held(state.held), "before": state.before}
        case Completing():
            held = _held(state.held) if state.held is not None else None
            return {"state": "completing", **_conveyance(state), "held": held, "by": state.by, "retry": state.retry_ms}
        case Done():
            return {
                "state": "done",
                "instance": state.instance,
                "message": _message(state.message),
                "size": state.size,
                "checksum": state.checksum,
                "confirmed": state.confirmed,
                "acknowledged": state.acknowledged,
                "expires": state.expires_ms,
            }
        case Failed(instance, message, reason, until_ms):
            told = {"message": _message(message), "reason": reason.value, "until": until_ms}
            return {"state": "failed", "instance": instance, **told}
        case _:
            assert_never(state)


def state_of(fields: dict[str, Any]) -> State:
    """The state of such fields; KeyError or ValueError if they are none."""
    instance = fields["instance"]
    match fields["state"]:
        case "idle":
            return Idle(instance)
        case "floating":
            return Floating(instance, _conveyance_of(fields), fields["clean"])
        case "conveying":
            return Conveying(instance, _conveyance_of(fields), Held(*fields["held"]), fields["before"])
        case "completing":
            held = Held(*fields["held"]) if fields["held"] is not None else None
            return Completing(instance, _conveyance_of(fields), held, fields["by"], fields["retry"])
        case "done":
            return Done(
                instance,
                _message_of(fields["message"]),
                fields["size"],
                fields["checksum"],
                fields["confirmed"],
                fields["acknowledged"],
                fields["expires"],
            )
        case "failed":
            return Failed(instance, _message_of(fields["message"]), Reason(fields["reason"]), fields["until"])
        case other:
            raise ValueError(f"no state of a transfer: {other!r}")


def segments_of(pairs: list[list[Any]]) -> Segments:
    return tuple(Segment(name, length) for name, length in pairs)


def pairs_of(segments: Segments) -> list[list[Any]]:
    return [[segment.name, segment.length] for segment in segments]


def _conveyance(state: Floating | Conveying | Completing) -> dict[str, Any]:
    conveyance = state.conveyance
    return {
        "instance": state.instance,
        "message": _message(conveyance.message),
        "segments": pairs_of(conveyance.segments),
        "expires": conveyance.expires_ms,
        "spoiled": conveyance.spoiled,
    }


def _conveyance_of(fields: dict[str, Any]) -> Conveyance:
    message, segments = _message_of(fields["message"]), segments_of(fields["segments"])
    return Conveyance(message, segments, fields["expires"], fields["spoiled"])


def _held(held: Held) -> list[Any]:
    return [held.worker, held.until_ms, held.request]


def _message(message: Message) -> dict[str, Any]:
    return {
        "name": message.name,
        "size": message.size,
        "number": message.number,
        "partial": message.partial,
        "joined": message.joined,
        "checksum": message.checksum,
        "details": message.details,
    }


def _message_of(fields: dict[str, Any]) -> Message:
    return Message(**fields)
