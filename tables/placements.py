"""``placements``: tenants that a router has ever moved, or tried to. Key: the tenant (UTF-8).

The row is a state of :mod:`app.protocol.moves`: where the tenant lives, what was moved before, and, while it moves, all
that the migration needs to go on at another host. A tenant without a row lives at the first server of its backup
order, with epoch 0. Version 1 had only home and epoch.
"""

from dataclasses import asdict
from typing import Any

import orjson

from app.protocol.moves import Copying, Cutting, Move, Outcome, Past, Placement, Releasing, Settled, State
from app.protocol.parking import Lot

NAME = "placements"
VERSION = 2

_PHASES: dict[type, str] = {Settled: "settled", Copying: "copying", Cutting: "cutting", Releasing: "releasing"}


def encode(state: State) -> bytes:
    place = state.placement
    past = [[p.epoch, p.origin, p.to, p.at_ms, p.id, p.reason] for p in place.history]
    fields: dict[str, Any] = {
        "v": VERSION,
        "home": place.home,
        "epoch": place.epoch,
        "tried": place.tried,
        "past": past,
        "phase": _PHASES[type(state)],
    }
    match state:
        case Settled():
            pass
        case Copying(_, move, ready, progress_ms):
            fields |= {"move": asdict(move), "ready": ready, "progress_ms": progress_ms}
        case Cutting(_, move, lot, cut_ms, progress_ms):
            fields |= {"move": asdict(move), "lot": asdict(lot), "cut_ms": cut_ms, "progress_ms": progress_ms}
        case Releasing(_, move, lot, outcome):
            fields |= {"move": asdict(move), "lot": asdict(lot), "outcome": asdict(outcome)}
    return orjson.dumps(fields)


def decode(row: bytes) -> State:
    """Raise ValueError for a row of a later version."""
    fields = orjson.loads(row)
    version = fields.get("v")
    if version == 1:
        return Settled(Placement(fields["home"], fields["epoch"], fields["epoch"]))
    if version != VERSION:
        raise ValueError("a placement row of another version")
    history = tuple(Past(*entry) for entry in fields["past"])
    place = Placement(fields["home"], fields["epoch"], fields["tried"], history)
    match fields["phase"]:
        case "settled":
            return Settled(place)
        case "copying":
            return Copying(place, _move(fields), tuple(fields["ready"]), fields["progress_ms"])
        case "cutting":
            return Cutting(place, _move(fields), _lot(fields), fields["cut_ms"], fields["progress_ms"])
        case "releasing":
            return Releasing(place, _move(fields), _lot(fields), _outcome(fields["outcome"]))
        case phase:
            raise ValueError(f"a placement row in phase {phase!r}")


def _move(fields: dict[str, Any]) -> Move:
    return Move(**{**fields["move"], "sources": tuple(fields["move"]["sources"])})


def _lot(fields: dict[str, Any]) -> Lot:
    found = fields["lot"]
    return Lot(**{**found, "dues": tuple((due, count) for due, count in found["dues"])})


def _outcome(found: dict[str, Any]) -> Outcome:
    parts = tuple((source, rows, checksum) for source, rows, checksum in found["parts"])
    return Outcome(**{**found, "parts": parts})
