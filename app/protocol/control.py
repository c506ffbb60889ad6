"""Control records: what routers write into a server's stream besides tasks, and into `delay` besides parked tasks.

A task's key in these topics is its origin, ``partition:offset``; a control record's key begins with ``!``, so that one
byte tells them apart.
"""

import json
from dataclasses import dataclass
from typing import Any, TypeAlias

from app.errors import PeerProtocolError

VERSION = 1
MARK = ord("!")

WAKE_KEY = b"!wake"


@dataclass(frozen=True, slots=True)
class Wakeup:
    """A retry falls due: the waiting task ``arrival`` of the session, for its run after ``attempt``."""

    tenant: str
    session: str
    arrival: int
    attempt: int


@dataclass(frozen=True, slots=True)
class DueWakeup:
    """A wake-up as it stands in ``delay``: to be sent at ``due_ms`` (Unix time, compared by the reader's clock)."""

    wakeup: Wakeup
    due_ms: int


Control: TypeAlias = Wakeup


def encode_wakeup(wakeup: Wakeup, due_ms: int | None = None) -> bytes:
    fields = {
        "v": VERSION,
        "tenant": wakeup.tenant,
        "session": wakeup.session,
        "arrival": wakeup.arrival,
        "attempt": wakeup.attempt,
    }
    if due_ms is not None:
        fields["due"] = due_ms
    return json.dumps(fields, separators=(",", ":"), ensure_ascii=False).encode()


def decode_control(key: bytes | None, value: bytes | None) -> Control:
    """A control record of a server's stream.

    Raises:
        PeerProtocolError: a later version wrote it, or somebody else.
    """
    return _wakeup(_fields(key, value))


def decode_due(key: bytes | None, value: bytes | None) -> DueWakeup:
    """A control record of ``delay``; raises as :func:`decode_control`."""
    fields = _fields(key, value)
    return DueWakeup(_wakeup(fields), _field(fields, "due", int))


def _wakeup(fields: dict[str, Any]) -> Wakeup:
    return Wakeup(
        _field(fields, "tenant", str),
        _field(fields, "session", str),
        _field(fields, "arrival", int),
        _field(fields, "attempt", int),
    )


def _field(fields: dict[str, Any], name: str, kind: type) -> Any:
    value = fields.get(name)
    if type(value) is kind:
        return value
    raise PeerProtocolError(f"a control record whose {name!r} is {value!r:.80}")


def _fields(key: bytes | None, value: bytes | None) -> dict[str, Any]:
    if key != WAKE_KEY:
        raise PeerProtocolError(f"unknown control record {key!r:.40}: all workers must run one release")
    try:
        fields = json.loads(value or b"")
    except ValueError as error:
        raise PeerProtocolError(f"not a control record: {value!r:.80}") from error
    if type(fields) is dict and fields.get("v") == VERSION:
        return fields
    raise PeerProtocolError("a control record of another version: all workers must run one release")
