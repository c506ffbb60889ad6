"""Control records: how routers, servers and the steward speak to each other through the log.

| topic | from | to | records |
|---|---|---|---|
| ``work[s]`` | routers | server s | Wakeup, Prepare, Cut, Commit, Abort, Placed, Measure, Drain, Marker |
| ``commands[r]`` | servers | router r | Ready, Progress, Installed, Refused, Measured, Drained |
| ``commands[r]`` | steward | router r | View, ViewClosed |
| ``commands[0]`` | servers, workers | steward | Closed, Leaving |
| ``commands[0]`` | steward | itself | Look |
| ``handoffs[s]`` | servers | server s | rows (:mod:`app.protocol.chunks`), Complete, Received, HandedOff |
| ``delay[r]`` | router r, servers | router r | Wakeup and ParkedDue with the time they fall due, parked tasks |

A task's key in ``work`` and ``delay`` is its origin, ``partition:offset``; a control record's key begins with ``!``,
so that one byte tells them apart. In ``commands`` an operator's key is a tenant, which may begin with ``!`` as well;
there the value decides: what has a field ``command`` is an operator's. Values are JSON with a version; fields that a
later release adds are ignored. ``tests/golden/control.json`` keeps the bytes of every record.
"""

import json
from dataclasses import dataclass, fields
from typing import Any, TypeAlias, get_type_hints

from app.errors import PeerProtocolError
from app.protocol.markers import Closed, HandedOff, Leaving, Look, Marker, View, ViewClosed

VERSION = 1
MARK = ord("!")

WAKE_KEY = b"!wake"

PARKED_HEADER = "parked"
"""A parked task in ``delay`` has its origin as key, its bytes as value, and this header."""


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


# -- migrations: a router to servers ----------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Prepare:
    """Start to copy the tenant's rows, which lie under the epoch ``live``, to ``target``, to be staged under ``epoch``.

    ``sources`` are all servers that this record goes to: the tenant's home or, if that is down, every server up.
    """

    tenant: str
    epoch: int
    live: int
    router: int
    sources: tuple[int, ...]
    target: int


@dataclass(frozen=True, slots=True)
class Cut:
    """A migration's marker: what stands before it is the source's; nothing of the tenant follows before the end."""

    tenant: str
    epoch: int


@dataclass(frozen=True, slots=True)
class Commit:
    """To sources and target: the tenant's home is ``home`` from here on, its rows those of ``epoch``."""

    tenant: str
    epoch: int
    home: int


@dataclass(frozen=True, slots=True)
class Abort:
    """To sources and target: the migration ``epoch`` has failed; nothing of it, or of an earlier one, counts."""

    tenant: str
    epoch: int


@dataclass(frozen=True, slots=True)
class Placed:
    """To every other server: the tenant has moved. Who routes its sessions in a failure must know its home."""

    tenant: str
    epoch: int
    home: int


@dataclass(frozen=True, slots=True)
class Measure:
    """For the plan of a migration (dry run): how much does the tenant have here?"""

    tenant: str
    id: str
    router: int
    target: int


@dataclass(frozen=True, slots=True)
class Drain:
    """Order the migration of every tenant that lives at ``server``, some at a time; the command is ``id``."""

    id: str
    server: int
    router: int


# -- migrations: servers to a router ----------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Ready:
    """The source has copied all but a few rows: the cut may come."""

    tenant: str
    epoch: int
    server: int


@dataclass(frozen=True, slots=True)
class Progress:
    """The migration is not stuck: so many rows and bytes have left this source."""

    tenant: str
    epoch: int
    server: int
    rows: int
    bytes: int


@dataclass(frozen=True, slots=True)
class Installed:
    """The target holds what the sources had at the cut. ``parts``: source, rows and checksum, as left and arrived."""

    tenant: str
    epoch: int
    server: int
    rows: int
    bytes: int
    parts: tuple[tuple[int, int, str], ...]


@dataclass(frozen=True, slots=True)
class Refused:
    """A source or the target cannot go on; ``reason`` is one line."""

    tenant: str
    epoch: int
    server: int
    reason: str


@dataclass(frozen=True, slots=True)
class Measured:
    """The answer to :class:`Measure`."""

    tenant: str
    id: str
    server: int
    target: int
    sessions: int
    waiting: int
    bytes: int


@dataclass(frozen=True, slots=True)
class Drained:
    """The answer to :class:`Drain`: how many tenants have left, and those that could not be moved."""

    id: str
    server: int
    moved: int
    failed: tuple[str, ...]


# -- migrations: between servers --------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Complete:
    """Everything of ``source`` for ``epoch`` was sent, in so many chunks; rows and checksum are those at the cut."""

    tenant: str
    epoch: int
    source: int
    router: int
    sources: tuple[int, ...]
    chunks: int
    rows: int
    checksum: str


@dataclass(frozen=True, slots=True)
class Received:
    """The target has taken ``bytes`` of this source's chunks in all: so much less is in flight (L9)."""

    tenant: str
    epoch: int
    target: int
    bytes: int


# -- a router to itself -----------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class ParkedDue:
    """Tasks that the router has parked for the tenant in ``epoch`` fall due at ``due`` (Unix time, milliseconds)."""

    tenant: str
    epoch: int
    due: int


Control: TypeAlias = (
    Wakeup
    | Prepare
    | Cut
    | Commit
    | Abort
    | Placed
    | Measure
    | Drain
    | Ready
    | Progress
    | Installed
    | Refused
    | Measured
    | Drained
    | Complete
    | Received
    | ParkedDue
    | View
    | ViewClosed
    | Marker
    | HandedOff
    | Closed
    | Leaving
    | Look
)

TO_SERVER: TypeAlias = Prepare | Cut | Commit | Abort | Placed | Measure
TO_ROUTER: TypeAlias = Ready | Progress | Installed | Refused | Measured | Drained

KEYS: dict[type, bytes] = {
    Wakeup: WAKE_KEY,
    Prepare: b"!prepare",
    Cut: b"!cut",
    Commit: b"!commit",
    Abort: b"!abort",
    Placed: b"!placed",
    Measure: b"!measure",
    Drain: b"!drain",
    Ready: b"!ready",
    Progress: b"!progress",
    Installed: b"!installed",
    Refused: b"!refused",
    Measured: b"!measured",
    Drained: b"!drained",
    Complete: b"!complete",
    Received: b"!received",
    ParkedDue: b"!due",
    View: b"!view",
    ViewClosed: b"!view-closed",
    Marker: b"!marker",
    HandedOff: b"!handed-off",
    Closed: b"!closed",
    Leaving: b"!leaving",
    Look: b"!look",
}

_KINDS = {key: kind for kind, key in KEYS.items()}
_FIELDS: dict[type, dict[str, Any]] = {
    kind: {field.name: get_type_hints(kind)[field.name] for field in fields(kind)} for kind in KEYS
}


def encode(record: Control) -> tuple[bytes, bytes]:
    """The key and the value of a control record."""
    kind = type(record)
    values = {"v": VERSION, **{name: getattr(record, name) for name in _FIELDS[kind]}}
    return KEYS[kind], _dumps(values)


def encode_wakeup(wakeup: Wakeup, due_ms: int | None = None) -> bytes:
    """The value of a wake-up; with ``due_ms`` as it stands in ``delay``."""
    _, value = encode(wakeup)
    return value if due_ms is None else b'%b,"due":%d}' % (value[:-1], due_ms)


def decode_control(key: bytes | None, value: bytes | None) -> Control:
    """A control record.

    Raises:
        PeerProtocolError: a later version wrote it, or somebody else.
    """
    kind = _KINDS.get(key or b"")
    if kind is None:
        raise PeerProtocolError(f"unknown control record {key!r:.40}: all workers must run one release")
    found = _fields(value)
    record: Control = kind(**{name: _typed(found.get(name), name, hint) for name, hint in _FIELDS[kind].items()})
    return record


def decode_due(key: bytes | None, value: bytes | None) -> DueWakeup:
    """A wake-up of ``delay``; raises as :func:`decode_control`."""
    wakeup = decode_control(key, value)
    if type(wakeup) is not Wakeup:
        raise PeerProtocolError(f"unknown control record {key!r:.40}: all workers must run one release")
    return DueWakeup(wakeup, _typed(_fields(value).get("due"), "due", int))


def encode_parked(tenant: bytes, epoch: int, number: int, due_ms: int) -> bytes:
    """The header of a parked task: ``epoch:number:due:tenant``. One, because headers cost most of a record."""
    return b"%d:%d:%d:%b" % (epoch, number, due_ms, tenant)


def decode_parked(header: bytes) -> tuple[bytes, int, int]:
    """Tenant, epoch and number of a parked task.

    Raises:
        PeerProtocolError: somebody else wrote it.
    """
    try:
        epoch, number, _, tenant = header.split(b":", 3)
        return tenant, int(epoch), int(number)
    except ValueError as error:
        raise PeerProtocolError(f"not the header of a parked task: {header!r:.80}") from error


def is_order(value: bytes | None) -> bool:
    """Is this record of ``commands`` an operator's order, rather than a server's answer?"""
    try:
        found = json.loads(value or b"")
    except ValueError:
        return True  # No record of ours is like this: it is answered as a bad command.
    return type(found) is not dict or "command" in found or "v" not in found


def _dumps(values: dict[str, Any]) -> bytes:
    return json.dumps(values, separators=(",", ":"), ensure_ascii=False).encode()


def _fields(value: bytes | None) -> dict[str, Any]:
    try:
        found = json.loads(value or b"")
    except ValueError as error:
        raise PeerProtocolError(f"not a control record: {value!r:.80}") from error
    if type(found) is dict and found.get("v") == VERSION:
        return found
    raise PeerProtocolError("a control record of another version: all workers must run one release")


def _typed(value: Any, name: str, hint: Any) -> Any:
    """``value`` as its field declares it; JSON has lists where a record has tuples."""
    if type(value) is hint:
        return value
    inner = getattr(hint, "__args__", None)
    if inner is not None and type(value) is list:
        if inner[-1] is Ellipsis:
            return tuple(_typed(entry, name, inner[0]) for entry in value)
        if len(value) == len(inner):
            return tuple(_typed(entry, name, part) for entry, part in zip(value, inner, strict=True))
    raise PeerProtocolError(f"a control record whose {name!r} is {value!r:.80}")
