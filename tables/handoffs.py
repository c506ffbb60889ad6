"""``handoffs``: what a server knows of tenants that have moved, and its part in moves that are under way.

| key | row |
|---|---|
| ``tenant``, zero byte, tenant | a :class:`app.protocol.tenancy.Tenancy` |
| ``mark``, zero byte, tenant, zero byte, epoch, zero byte, session | the mark of a session that changed while it was \
copied: the checksum of the version that was shipped, or nothing |
| ``sweep``, zero byte, tenant, zero byte, epoch | sessions and waiting tasks of this epoch are being deleted |
| ``unmark``, zero byte, tenant, zero byte, epoch | marks of this epoch are being deleted |
| ``measure``, zero byte, tenant, zero byte, command id | a plan that was asked for |
| ``export``, zero byte, tenant, zero byte, epoch | how far each mover has exported the tenant's data |
| ``part``, zero byte, tenant, zero byte, epoch, zero byte, mover, zero byte, name | a part of such data that has come |
| ``install``, zero byte, tenant, zero byte, epoch, zero byte, source | it is being installed |
| ``drain``, zero byte, command id | a :class:`app.protocol.draining.Draining`: the server is being emptied |
| ``view``, zero byte, router | how far the router's last view has come here, :mod:`app.protocol.affinity` |
| ``held``, zero byte, router, zero byte, source, zero byte, number in twelve digits | a task that is held until its \
session has come from ``source``, a :class:`tables.parked.Kept` |

Epochs, routers and servers are decimal.
"""

from dataclasses import asdict, fields
from typing import Any

import orjson

from app.protocol.affinity import Aligned, Change, Early, Line, Moved, Receiving, Sending
from app.protocol.affinity import Part as SentPart
from app.protocol.affinity import State as ViewState
from app.protocol.chunks import Digest
from app.protocol.draining import Draining, Ordered
from app.protocol.shipping import Copying, Frozen, Shipment, Shipping
from app.protocol.staging import Part, Staged, Staging
from app.protocol.staging import State as StagingState
from app.protocol.tenancy import Tenancy

NAME = "handoffs"
_SHIPMENT = tuple(field.name for field in fields(Shipment))
VERSION = 1

TENANT = b"tenant\0"
MARK = b"mark\0"
SWEEP = b"sweep\0"
UNMARK = b"unmark\0"
MEASURE = b"measure\0"
DRAIN = b"drain\0"
EXPORT = b"export\0"
PART = b"part\0"
INSTALL = b"install\0"
VIEW = b"view\0"
HELD = b"held\0"

ASKED = (INSTALL, MEASURE)
SWEEPS = (UNMARK, SWEEP)
"""The prefixes of rows that say what is to be done in the background: what somebody waits for, and what nobody does."""


def tenant_key(tenant: str) -> bytes:
    return TENANT + tenant.encode()


def marks_of(tenant: str, epoch: int) -> bytes:
    """The prefix of a migration's marks; the session follows."""
    return b"%b%b\0%d\0" % (MARK, tenant.encode(), epoch)


def sweep_key(tenant: str, epoch: int) -> bytes:
    return b"%b%b\0%d" % (SWEEP, tenant.encode(), epoch)


def unmark_key(tenant: str, epoch: int) -> bytes:
    return b"%b%b\0%d" % (UNMARK, tenant.encode(), epoch)


def measure_key(tenant: str, command: str) -> bytes:
    return b"%b%b\0%b" % (MEASURE, tenant.encode(), command.encode(errors="replace"))


def swept(key: bytes) -> tuple[str, int]:
    """The tenant and the epoch of a sweep or unmark row."""
    _, tenant, epoch = key.split(b"\0")
    return tenant.decode(), int(epoch)


def export_key(tenant: str, epoch: int) -> bytes:
    return b"%b%b\0%d" % (EXPORT, tenant.encode(), epoch)


def parts_of(tenant: str, epoch: int) -> bytes:
    """The prefix of what has come for movers; the mover's name and the part's follow."""
    return b"%b%b\0%d\0" % (PART, tenant.encode(), epoch)


def install_key(tenant: str, epoch: int, source: int) -> bytes:
    return b"%b%b\0%d\0%d" % (INSTALL, tenant.encode(), epoch, source)


def drain_key(command: str) -> bytes:
    return DRAIN + command.encode(errors="replace")


def encode_drain(state: Draining) -> bytes:
    ordered = [[entry.tenant, entry.tries, entry.seen_ms] for entry in state.ordered]
    return orjson.dumps({"v": VERSION, **asdict(state), "ordered": ordered})


def decode_drain(row: bytes) -> Draining:
    """Raise ValueError for a row of another version."""
    fields = orjson.loads(row)
    if fields.pop("v") != VERSION:
        raise ValueError("a drain's row of another version")
    ordered = tuple(Ordered(*entry) for entry in fields["ordered"])
    return Draining(**{**fields, "ordered": ordered, "failed": tuple(fields["failed"])})


def view_key(router: int) -> bytes:
    return b"%b%d" % (VIEW, router)


def held_of(router: int, source: int) -> bytes:
    """The prefix of the tasks that are held for sessions from ``source``; the number follows."""
    return b"%b%d\0%d\0" % (HELD, router, source)


def held_key(router: int, source: int, number: int) -> bytes:
    return b"%b%012d" % (held_of(router, source), number)


def held(key: bytes) -> tuple[int, int, int]:
    """Router, source and number of a held task."""
    _, router, source, number = key.split(b"\0")
    return int(router), int(source), int(number)


def encode(tenancy: Tenancy) -> bytes:
    fields: dict[str, Any] = {
        "v": VERSION,
        "home": tenancy.home,
        "epoch": tenancy.epoch,
        "base": tenancy.base,
        "dead": tenancy.dead,
    }
    match tenancy.shipping:
        case Copying(shipment, ready):
            fields |= {"source": "copying", "shipment": _shipment(shipment), "ready": ready}
        case Frozen(shipment, waiting, complete):
            fields |= {"source": "frozen", "shipment": _shipment(shipment), "waiting": waiting, "complete": complete}
    match tenancy.staging:
        case Staging(epoch, router, parts, refused):
            fields |= {"target": "staging", "staged": [epoch, router, _parts(parts)], "refused": refused}
        case Staged(epoch, router, parts):
            fields |= {"target": "staged", "staged": [epoch, router, _parts(parts)]}
    return orjson.dumps(fields)


def decode(row: bytes) -> Tenancy:
    """Raise ValueError for a row of another version."""
    fields = orjson.loads(row)
    if fields.get("v") != VERSION:
        raise ValueError("a tenant's row of another version")
    return Tenancy(fields["home"], fields["epoch"], fields["base"], fields["dead"], _shipping(fields), _staging(fields))


def _shipment(shipment: Shipment) -> dict[str, Any]:
    # A checksum has 128 bits; numbers in JSON have 53 that everybody reads.
    found = {name: getattr(shipment, name) for name in _SHIPMENT}
    return {**found, "digest": [shipment.digest.rows, shipment.digest.text]}


def _parts(parts: tuple[Part, ...]) -> list[list[Any]]:
    return [[p.source, p.chunk, p.digest.rows, p.digest.text, p.bytes, p.complete] for p in parts]


def _shipping(fields: dict[str, Any]) -> Shipping | None:
    role = fields.get("source")
    if role is None:
        return None
    found = fields["shipment"]
    rows, text = found["digest"]
    shipment = Shipment(**{**found, "sources": tuple(found["sources"]), "digest": Digest(rows, int(text, 16))})
    if role == "copying":
        return Copying(shipment, fields["ready"])
    return Frozen(shipment, fields["waiting"], fields["complete"])


def _staging(fields: dict[str, Any]) -> StagingState | None:
    role = fields.get("target")
    if role is None:
        return None
    epoch, router, found = fields["staged"]
    parts = tuple(
        Part(source, chunk, Digest(rows, int(text, 16)), size, complete)
        for source, chunk, rows, text, size, complete in found
    )
    return Staging(epoch, router, parts, fields["refused"]) if role == "staging" else Staged(epoch, router, parts)


# -- views ------------------------------------------------------------------------------------------------------------


def encode_view(state: ViewState) -> bytes:
    change = state.change
    fields: dict[str, Any] = {
        "v": VERSION,
        "view": change.epoch,
        "before": sorted(change.before),
        "after": sorted(change.after),
        "managers": change.managers,
    }
    match state:
        case Aligned(_, moved):
            fields |= {"is": "aligned", "moved": [[m.source, m.target, *_digest(m.digest)] for m in moved]}
        case Early(_, parts) | Receiving(_, parts):
            kind = "early" if isinstance(state, Early) else "receiving"
            fields |= {
                "is": kind,
                "parts": [[p.source, p.chunk, *_digest(p.digest), p.complete, p.wrong] for p in parts],
            }
        case Sending(_, lines, waiting, cursor, sent):
            fields |= {
                "is": "sending",
                "lines": [[line.target, line.chunks, *_digest(line.digest)] for line in lines],
                "waiting": waiting,
                "cursor": cursor,
                "sent": sent,
            }
    return orjson.dumps(fields)


def decode_view(row: bytes) -> ViewState:
    """Raise ValueError for a row of another version."""
    fields = orjson.loads(row)
    if fields.get("v") != VERSION:
        raise ValueError("the row of a view of another version")
    managers = tuple((server, worker) for server, worker in fields["managers"])
    change = Change(fields["view"], frozenset(fields["before"]), frozenset(fields["after"]), managers)
    match fields["is"]:
        case "aligned":
            moved = tuple(Moved(source, target, _sum(*found)) for source, target, *found in fields["moved"])
            return Aligned(change, moved)
        case "early":
            return Early(change, _sent_parts(fields))
        case "receiving":
            return Receiving(change, _sent_parts(fields))
        case "sending":
            lines = tuple(Line(target, chunks, _sum(*found)) for target, chunks, *found in fields["lines"])
            return Sending(change, lines, fields["waiting"], fields["cursor"], fields["sent"])
        case kind:
            raise ValueError(f"the row of a view that is {kind!r}")


def _digest(digest: Digest) -> tuple[int, str]:
    return digest.rows, digest.text


def _sum(rows: int, text: str) -> Digest:
    return Digest(rows, int(text, 16))


def _sent_parts(fields: dict[str, Any]) -> tuple[SentPart, ...]:
    return tuple(
        SentPart(source, chunk, _sum(rows, text), complete, wrong)
        for source, chunk, rows, text, complete, wrong in fields["parts"]
    )
