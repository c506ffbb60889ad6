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


def decode_control(key: bytes, value: bytes) -> Control:
    """A control record of a server's stream.

    Raises:
        PeerProtocolError: a later version wrote it, or somebody else.
    """
    fields = _fields(key, value)
    return Wakeup(fields["tenant"], fields["session"], fields["arrival"], fields["attempt"])


def decode_due(key: bytes, value: bytes) -> DueWakeup:
    """A control record of ``delay``; raises as :func:`decode_control`."""
    fields = _fields(key, value)
    wakeup = Wakeup(fields["tenant"], fields["session"], fields["arrival"], fields["attempt"])
    return DueWakeup(wakeup, fields["due"])


def _fields(key: bytes, value: bytes) -> dict[str, Any]:
    if key != WAKE_KEY:
        raise PeerProtocolError(f"unknown control record {key[:40]!r}: all workers must run one release")
    try:
        fields: dict[str, Any] = json.loads(value)
        if fields["v"] == VERSION:
            return fields
    except (ValueError, KeyError, TypeError) as error:
        raise PeerProtocolError(f"not a control record: {value[:80]!r}") from error
    raise PeerProtocolError("a control record of another version: all workers must run one release")
