"""``placements``: tenants that were ever moved, on the router that decides about them. Key: the tenant (UTF-8).

A tenant without a row lives at the first server of its backup order, with epoch 0.
"""

from dataclasses import dataclass

import orjson

NAME = "placements"
VERSION = 1


@dataclass(frozen=True, slots=True)
class Placement:
    """Where a tenant lives, and how often it has moved."""

    home: int
    epoch: int


def encode(placement: Placement) -> bytes:
    return orjson.dumps({"v": VERSION, "home": placement.home, "epoch": placement.epoch})


def decode(row: bytes) -> Placement:
    """Raise ValueError for a row of another version."""
    fields = orjson.loads(row)
    if fields.get("v") != VERSION:
        raise ValueError("a placement row of another version")
    return Placement(fields["home"], fields["epoch"])
