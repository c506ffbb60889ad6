"""``sessions``: the state of every session, on the server that holds it.

Key: tenant, a zero byte, the tenant's epoch in decimal, a zero byte, session (UTF-8). With the epoch in the key, a
migration makes the rows it brought live by flipping the tenant's epoch, and removes the others in the background.
"""

from collections.abc import Mapping
from dataclasses import dataclass

import orjson

NAME = "sessions"
VERSION = 1


def key_of(tenant: str, epoch: int, session: str) -> bytes:
    return b"%b\0%d\0%b" % (tenant.encode(), epoch, session.encode())


@dataclass(slots=True)
class SessionRow:
    """``sequence``: results so far. ``origins``: by partition of ``tasks``, the last offset taken. ``state``: JSON."""

    sequence: int
    origins: dict[int, int]
    state: bytes
    changed_at: int


def encode(sequence: int, origins: Mapping[int, int], changed_at: int, state: bytes) -> bytes:
    taken = b",".join(b"[%d,%d]" % entry for entry in origins.items())
    return b'{"v":%d,"n":%d,"o":[%b],"at":%d,"s":%b}' % (VERSION, sequence, taken, changed_at, state)


def decode(row: bytes) -> SessionRow:
    """Raise ValueError for a row of another version."""
    head, found, state = row.partition(b',"s":')
    fields = orjson.loads(head + b"}")
    if not found or fields.get("v") != VERSION:
        raise ValueError("a session row of another version")
    return SessionRow(
        sequence=fields["n"],
        origins=dict(fields["o"]),
        state=state[:-1],
        changed_at=fields["at"],
    )
