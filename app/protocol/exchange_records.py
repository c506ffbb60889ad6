"""The bytes of the four topics of exchanges: ``requests``, ``responses``, ``assignments``, ``replies``. Version 1.

Clients and server sessions write ``requests`` and ``responses``; a manager writes the other two. Bodies and restart
data are JSON of any kind, which a manager carries as bytes. What is read here is checked field by field: a record that
breaks a rule raises RecordError with the reason, and becomes a dead letter.
"""

import re
from typing import Any, Final, NamedTuple, TypeAlias

import orjson

from app.errors import RecordError
from app.protocol import exchange_client as client
from app.protocol import exchange_server as server
from app.protocol.exchange_model import (
    WINDOW_MAX,
    Acknowledged,
    Begun,
    Checkpointed,
    ClientAsked,
    ClientEvent,
    ClientOpened,
    Ended,
    Finished,
    Open,
    Responded,
    ServerEvent,
    Submitted,
)

VERSION: Final = 1
HEAD: Final = b'{"v":1,'
"""How every record and row of this version begins; a row's rest is carried on in a record as it is."""

NAME_MAX: Final = 200
SECONDS_MAX: Final = 10 * 365 * 86_400
_UNFIT: Final = re.compile("[\x00-\x1f\x7f-\x9f\ud800-\udfff]")


class Word(NamedTuple):
    """A sign of life (``bye``: the last one). ``server`` is empty for a client's."""

    server: str
    incarnation: int
    bye: bool = False


class Look(NamedTuple):
    """Somebody wants to see an exchange, or what a server session holds, without taking part."""

    asker: str
    server: str = ""


class Order(NamedTuple):
    """An operator's: ``restart`` or ``cancel``."""

    kind: str
    id: str | None
    reason: str
    programs: bool


class Message(NamedTuple):
    """What a record says; ``content`` is a body (or an error), as the rest of a row."""

    event: ClientEvent | ServerEvent | Word | Look | Order
    content: bytes = b""


Record: TypeAlias = dict[str, Any]


# -- reading, at the manager -------------------------------------------------------------------------------------------


def read_request(key: bytes | None, value: bytes | None, offset: int, now_ms: int) -> Message:
    """A record of ``requests``. Raises RecordError."""
    record = _record(key, value)
    kind = record.get("type")
    read = _REQUESTS.get(kind) if isinstance(kind, str) else None
    if read is None:
        raise RecordError(f"no record of requests has the type {kind!r:.40}")
    return read(record, offset, now_ms)


def read_response(key: bytes | None, value: bytes | None, offset: int) -> Message:
    """A record of ``responses``. Raises RecordError."""
    record = _record(key, value)
    kind = record.get("type")
    name = _name(record, "server")
    match kind:
        case "respond":
            number, restart = _whole(record, "number", 1), _json(record, "restart")
            told = Responded(name, _whole(record, "assignment", 1), _whole(record, "op", 1), number, restart)
            return Message(told, _content(record))
        case "alive" | "bye":
            return Message(Word(name, _whole(record, "incarnation", 0), bye=kind == "bye"))
        case "begin":
            return Message(Begun(name, *_work(record)))
        case "checkpoint":
            return Message(Checkpointed(name, *_work(record), _needed(record, "restart")))
        case "open":
            return Message(Word(name, offset))
        case "look":
            return Message(Look(_name(record, "asker"), name))
        case _:
            raise RecordError(f"no record of responses has the type {kind!r:.40}")


def _open(record: Record, offset: int, now_ms: int) -> Message:
    window, deadline = record.get("window"), record.get("deadline")
    if window is not None and not (type(window) is int and 1 <= window <= WINDOW_MAX):
        raise RecordError(f"field 'window' is {window!r:.40}, not a whole number from 1 to {WINDOW_MAX}")
    if deadline is not None and not (type(deadline) in (int, float) and 0 < deadline <= SECONDS_MAX):
        raise RecordError(f"field 'deadline' is {deadline!r:.40}, not a number of seconds above 0")
    until = None if deadline is None else now_ms + round(deadline * 1000)
    return Message(ClientOpened(_name(record, "client"), offset, window, until))


def _submit(record: Record, offset: int, now_ms: int) -> Message:
    incarnation, op, number = (_whole(record, "incarnation", 0), _whole(record, "op", 1), _whole(record, "number", 1))
    return Message(Submitted(incarnation, op, number, _json(record, "restart")), _content(record))


def _acknowledge(record: Record, offset: int, now_ms: int) -> Message:
    incarnation, op, number = (_whole(record, "incarnation", 0), _whole(record, "op", 1), _whole(record, "number", 1))
    return Message(Acknowledged(incarnation, op, number, _json(record, "restart")))


def _order(record: Record, offset: int, now_ms: int) -> Message:
    order_id, reason, programs = record.get("id"), record.get("reason", ""), record.get("programs", False)
    if not (order_id is None or _fit(order_id)):
        raise RecordError("field 'id' is no name")
    if not (isinstance(reason, str) and isinstance(programs, bool)):
        raise RecordError("field 'reason' is a string, field 'programs' true or false")
    return Message(Order(record["type"], order_id, reason[:NAME_MAX], programs))


_REQUESTS: Final = {
    "submit": _submit,
    "acknowledge": _acknowledge,
    "alive": lambda record, offset, now: Message(Word("", _whole(record, "incarnation", 0))),
    "bye": lambda record, offset, now: Message(Word("", _whole(record, "incarnation", 0), bye=True)),
    "open": _open,
    "ask": lambda record, offset, now: Message(ClientAsked(_whole(record, "incarnation", 0))),
    "finish": lambda record, offset, now: Message(Finished(_whole(record, "incarnation", 0), _whole(record, "op", 1))),
    "look": lambda record, offset, now: Message(Look(_name(record, "asker"))),
    "restart": _order,
    "cancel": _order,
}


def _record(key: bytes | None, value: bytes | None) -> Record:
    if not value:
        raise RecordError("the value is null" if value is None else "the value is empty")
    try:
        name = (key or b"").decode()
        record = orjson.loads(value)
    except (UnicodeDecodeError, orjson.JSONDecodeError) as error:
        raise RecordError(f"not UTF-8 and JSON: {' '.join(str(error).split())}") from None
    if not _fit(name):
        raise RecordError(f"the key is no name: 1 to {NAME_MAX} characters without control characters")
    if type(record) is not dict:
        raise RecordError("the value is not an object")
    if record.get("v") != VERSION:
        raise RecordError(f"field 'v' is {record.get('v')!r:.40}; this release reads version {VERSION}")
    return record


def _fit(name: object) -> bool:
    return isinstance(name, str) and 0 < len(name) <= NAME_MAX and (name.isprintable() or not _UNFIT.search(name))


def valid_name(name: str) -> bool:
    """Tell whether a text can name an exchange, a client or a server session: as tenants and sessions are named."""
    return _fit(name)


def _name(record: Record, field: str) -> str:
    value = record.get(field)
    if not _fit(value):
        raise RecordError(f"field {field!r} is no name: 1 to {NAME_MAX} characters without control characters")
    return str(value)


def _whole(record: Record, field: str, least: int) -> int:
    value = record.get(field)
    if type(value) is not int or value < least:
        raise RecordError(f"field {field!r} is {value!r:.40}, not a whole number of {least} or more")
    return value


def _work(record: Record) -> tuple[int, int, int]:
    return _whole(record, "assignment", 1), _whole(record, "op", 1), _whole(record, "number", 1)


def _json(record: Record, field: str) -> bytes | None:
    return orjson.dumps(record[field]) if field in record else None


def _needed(record: Record, field: str) -> bytes:
    found = _json(record, field)
    if found is None:
        raise RecordError(f"field {field!r} is missing")
    return found


def _content(record: Record) -> bytes:
    """A body, or the error in place of one, as the rest of a row."""
    error = record.get("error")
    if error is None:
        return b'"body":%b}' % _needed(record, "body")
    if not (isinstance(error, dict) and all(isinstance(error.get(part), str) for part in ("type", "message"))):
        raise RecordError("field 'error' is not an object with 'type' and 'message'")
    return failure(error["type"], error["message"])


def failure(kind: str, message: str) -> bytes:
    """The error of a request that was not performed, as the rest of a row."""
    return b'"body":null,"error":%b}' % orjson.dumps({"type": kind, "message": message})


# -- writing, at the manager -------------------------------------------------------------------------------------------


def positions(exchange: Open) -> bytes:
    return b'{"v":1,"type":"positions","incarnation":%d,"op":%d,"submitted":%d,"answered":%d,"acknowledged":%d}' % (
        exchange.incarnation,
        exchange.client_op,
        exchange.submitted,
        exchange.answered,
        exchange.acknowledged,
    )


def client_restart(exchange: Open, cause: str) -> bytes:
    head = {
        "v": VERSION,
        "type": "restart",
        "incarnation": exchange.incarnation,
        "cause": cause,
        "client": exchange.client,
        "window": exchange.window,
        "op": exchange.client_op,
        "submitted": exchange.submitted,
        "answered": exchange.answered,
        "acknowledged": exchange.acknowledged,
        "server": exchange.server or None,
    }
    return b'%b,"restart":%b}' % (orjson.dumps(head)[:-1], exchange.client_restart)


def server_restart(exchange: Open, cause: str) -> bytes:
    head = {
        "v": VERSION,
        "type": "restart",
        "server": exchange.server,
        "assignment": exchange.assignment,
        "cause": cause,
        "op": exchange.server_op,
        "submitted": exchange.submitted,
        "answered": exchange.answered,
        "acknowledged": exchange.acknowledged,
        "careful": exchange.careful,
        "client": exchange.client,
    }
    return b'%b,"restart":%b}' % (orjson.dumps(head)[:-1], exchange.server_restart)


def to_client(kind: str, incarnation: int, number: int, row: bytes) -> bytes:
    """A queued ``request`` or ``response`` for the client; ``row`` is the message's row."""
    return b'{"v":1,"type":"%b","incarnation":%d,"number":%d,%b' % (
        kind.encode(),
        incarnation,
        number,
        row[len(HEAD) :],
    )


def server_head(kind: str, server_name: str) -> bytes:
    """How a record for a server session begins, so that others need not read on."""
    return b'{"v":1,"type":"%b","server":%b,' % (kind.encode(), orjson.dumps(server_name))


def to_server(kind: str, server_name: str, assignment: int, number: int, row: bytes) -> bytes:
    """A queued ``request`` or ``response`` for the server session; ``row`` is the message's row."""
    return b'%b"assignment":%d,"number":%d,%b' % (
        server_head(kind, server_name),
        assignment,
        number,
        row[len(HEAD) :],
    )


def say(kind: str, **fields: object) -> bytes:
    """Any other record: its type and its fields."""
    return orjson.dumps({"v": VERSION, "type": kind, **fields})


def closed(incarnation: int, exchange: Ended) -> bytes:
    return say("closed", incarnation=incarnation, outcome=exchange.outcome, reason=exchange.reason)


# -- reading, at the client and the server session ---------------------------------------------------------------------


def read_reply(record: Record) -> client.Event | None:
    """What a record of ``replies`` means to the client's core; None: nothing, or not to it."""
    match record:
        case {"type": "positions", "incarnation": incarnation, "op": op, "answered": answered}:
            return client.PositionsTold(incarnation, op, answered)
        case {"type": "restart", "incarnation": incarnation}:
            return client.Restarted(
                incarnation,
                *(record[field] for field in ("op", "window", "submitted", "answered", "acknowledged")),
            )
        case {"type": "refused", "incarnation": incarnation, "reason": reason, "expected": expected}:
            return client.Refused(incarnation, reason, expected)
        case {"type": "fenced", "incarnation": incarnation, "current": current}:
            return client.Fenced(incarnation, current)
        case {"type": "closed", "incarnation": incarnation, "outcome": outcome}:
            return client.ClosedTold(incarnation, outcome)
        case _:
            return None


def read_assignment(record: Record) -> server.Event | None:
    """What a record of ``assignments`` means to the server's core of its exchange; None: nothing."""
    match record:
        case {"type": "request", "assignment": assignment, "number": number}:
            return server.RequestCame(assignment, number)
        case {"type": "restart", "assignment": assignment, "op": op, "answered": answered, "careful": careful}:
            return server.Given(assignment, op, answered, careful)
        case {"type": "release", "assignment": assignment}:
            return server.Withdrawn(assignment)
        case _:
            return None
