"""``views``: what routers and the steward know of views.

| partition, key | row |
|---|---|
| each, ``adopted`` | the view that this router sends under, a :class:`app.protocol.adoption.Adopted` |
| 0, ``steward`` | the steward's :class:`app.protocol.views.State` |

Without rows all servers are up, in view 0.
"""

from typing import Any

import orjson

from app.protocol.adoption import Adopted
from app.protocol.homes import Homes
from app.protocol.views import Calm, Changing, Known, Order, State

NAME = "views"
VERSION = 1

ADOPTED = b"adopted"
STEWARD = b"steward"


def encode_adopted(adopted: Adopted) -> bytes:
    return orjson.dumps({"v": VERSION, "view": adopted.epoch, "down": sorted(adopted.down), "closed": adopted.closed})


def decode_adopted(row: bytes) -> Adopted:
    """Raise ValueError for a row of another version."""
    fields = _load(row)
    return Adopted(fields["view"], frozenset(fields["down"]), fields["closed"])


def encode(state: State) -> bytes:
    known, homes = state.known, state.known.homes
    fields: dict[str, Any] = {
        "v": VERSION,
        "view": known.epoch,
        "down": sorted(known.down),
        "sticky": sorted(known.sticky),
        "hosts": homes.hosts,
        "homes": homes.homes,
        "workers": homes.workers,
        "leaving": homes.leaving,
        "lost": homes.lost,
        "back": homes.back,
        "flaps": homes.flaps,
    }
    if isinstance(state, Changing):
        fields |= {
            "missing": sorted(state.missing),
            "alarm_ms": state.alarm_ms,
            "doing": _orders(state.doing),
            "queue": _orders(state.queue),
        }
    return orjson.dumps(fields)


def decode(row: bytes) -> State:
    """Raise ValueError for a row of another version."""
    fields = _load(row)
    flaps = {worker: (count, at) for worker, (count, at) in fields["flaps"].items()}
    homes = Homes(
        hosts=tuple(fields["hosts"]),
        homes=tuple(fields["homes"]),
        workers=fields["workers"],
        leaving=fields["leaving"],
        lost=fields["lost"],
        back=fields["back"],
        flaps=flaps,
    )
    known = Known(fields["view"], frozenset(fields["down"]), frozenset(fields["sticky"]), homes)
    if "missing" not in fields:
        return Calm(known)
    doing, queue = (tuple(Order(*order) for order in fields[name]) for name in ("doing", "queue"))
    return Changing(known, frozenset(fields["missing"]), fields["alarm_ms"], doing, queue)


def _orders(orders: tuple[Order, ...]) -> list[list[Any]]:
    return [[order.id, order.kind, order.server] for order in orders]


def _load(row: bytes) -> dict[str, Any]:
    fields: dict[str, Any] = orjson.loads(row)
    if fields.get("v") != VERSION:
        raise ValueError("a row of views of another version")
    return fields
