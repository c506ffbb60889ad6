"""``exchanges``: one row per exchange; ``exchange-messages``: one row per queued message of it. At its manager.

Key of an exchange: its name (UTF-8). Key of a message: the exchange, a zero byte, the number in twelve digits; a
response takes the place of its request there, so the positions tell which of them it is. A message's row is the rest of
a record that carries it, so that it is sent without being read.
"""

from dataclasses import dataclass
from typing import Any

import orjson

from app.protocol.exchange_model import Ended, Open
from app.protocol.exchange_records import HEAD

NAME = "exchanges"
MESSAGES = "exchange-messages"
VERSION = 1

MARK = b"\0mark"
"""Key of the row that says when its manager changed a row last, and which host has restarted both sides.

No name has a zero byte.
"""

_PLAIN = (
    "client",
    "incarnation",
    "window",
    "deadline_ms",
    "client_op",
    "submitted",
    "answered",
    "acknowledged",
    "server",
    "server_incarnation",
    "assignment",
    "server_op",
    "careful",
    "begun",
    "crashes",
)


@dataclass(frozen=True, slots=True)
class ExchangeRow:
    """An exchange, when it was opened and when its row changed last (Unix time, milliseconds)."""

    exchange: Open | Ended
    opened_ms: int
    changed_ms: int


def encode(row: ExchangeRow) -> bytes:
    exchange = row.exchange
    last = exchange.last if isinstance(exchange, Ended) else exchange
    state = b'"open"' if isinstance(exchange, Open) else orjson.dumps(exchange.outcome)
    reason = b"" if isinstance(exchange, Open) else b'"reason":%b,' % orjson.dumps(exchange.reason)
    return (
        b'%b"state":%b,%b"opened_ms":%d,"changed_ms":%d,"client":%b,"incarnation":%d,"window":%d,"deadline_ms":%b,'
        b'"client_op":%d,"submitted":%d,"answered":%d,"acknowledged":%d,"server":%b,"server_incarnation":%d,'
        b'"assignment":%d,"server_op":%d,"careful":%b,"begun":%b,"crashes":%d,"client_restart":%b,"server_restart":%b}'
    ) % (
        HEAD,
        state,
        reason,
        row.opened_ms,
        row.changed_ms,
        orjson.dumps(last.client),
        last.incarnation,
        last.window,
        b"null" if last.deadline_ms is None else b"%d" % last.deadline_ms,
        last.client_op,
        last.submitted,
        last.answered,
        last.acknowledged,
        orjson.dumps(last.server),
        last.server_incarnation,
        last.assignment,
        last.server_op,
        b"true" if last.careful else b"false",
        b"true" if last.begun else b"false",
        last.crashes,
        last.client_restart,
        last.server_restart,
    )


def fields_of(row: bytes) -> dict[str, Any]:
    """The row as it stands. Raise ValueError for one of another version."""
    fields = orjson.loads(row)
    if type(fields) is not dict or fields.get("v") != VERSION:
        raise ValueError("an exchange row of another version")
    return fields


def decode(row: bytes) -> ExchangeRow:
    """Raise ValueError for a row of another version."""
    fields = fields_of(row)
    last = Open(
        **{name: fields[name] for name in _PLAIN},
        client_restart=orjson.dumps(fields["client_restart"]),
        server_restart=orjson.dumps(fields["server_restart"]),
    )
    exchange = last if fields["state"] == "open" else Ended(fields["state"], fields["reason"], last)
    return ExchangeRow(exchange, fields["opened_ms"], fields["changed_ms"])


@dataclass(frozen=True, slots=True)
class Mark:
    """``at_ms``: the clock of the manager's host, which tells how far a backup is behind. ``host``: who, and its start.

    A host whose name is here has sent every restart that it had to send when it took the manager over.
    """

    at_ms: int
    host: str


def encode_mark(mark: Mark) -> bytes:
    return b'%b"at_ms":%d,"host":%b}' % (HEAD, mark.at_ms, orjson.dumps(mark.host))


def decode_mark(row: bytes) -> Mark:
    fields = fields_of(row)
    return Mark(fields["at_ms"], fields["host"])


def message_key(exchange: bytes, number: int) -> bytes:
    return b"%b\0%012d" % (exchange, number)


def encode_message(content: bytes) -> bytes:
    """``content`` is the rest of a record: a body or an error, and the closing brace."""
    return HEAD + content


def decode_message(row: bytes) -> dict[str, Any]:
    """``body``, and ``error`` where there is one. Raise ValueError for a row of another version."""
    if not row.startswith(HEAD):
        raise ValueError("an exchange message of another version")
    fields: dict[str, Any] = orjson.loads(row)
    del fields["v"]
    return fields
