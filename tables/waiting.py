"""``waiting``: tasks that a server has taken from its stream and not ended (L6): running, retrying, or behind those.

Key: tenant, a zero byte, the tenant's epoch, a zero byte, session, a zero byte, the arrival in twelve digits; so a
session's waiting tasks stand together, in order.
"""

from dataclasses import dataclass

import orjson

from app.protocol.sessions import Phase, Waiting

NAME = "waiting"
VERSION = 1


def key_of(session_row_key: bytes, arrival: int) -> bytes:
    return b"%b\0%012d" % (session_row_key, arrival)


@dataclass(frozen=True, slots=True)
class WaitingRow:
    """One waiting task, with its place in ``tasks`` and its bytes as they stand there."""

    waiting: Waiting
    partition: int
    offset: int
    task: bytes


def encode(row: WaitingRow) -> bytes:
    waiting = row.waiting
    head = orjson.dumps(
        {
            "v": VERSION,
            "p": row.partition,
            "o": row.offset,
            "phase": waiting.phase.value,
            "attempt": waiting.attempt,
            "due": waiting.due_ms,
        }
    )
    # The task is JSON already; in this place it keeps its bytes, for the dead letter it may become.
    return b'%b,"task":%b}' % (head[:-1], row.task)


def names_of(key: bytes) -> tuple[str, int, str]:
    """Tenant, epoch and session of a row."""
    tenant, epoch, session, _ = key.split(b"\0")
    return tenant.decode(), int(epoch), session.decode()


def decode(key: bytes, row: bytes) -> tuple[str, str, WaitingRow]:
    """The tenant, the session and the row. Raise ValueError for a row of another version."""
    head, found, task = row.partition(b',"task":')
    fields = orjson.loads(head + b"}")
    if not found or fields.get("v") != VERSION:
        raise ValueError("a waiting row of another version")
    tenant, _, session, arrival = key.split(b"\0")
    waiting = Waiting(int(arrival), Phase(fields["phase"]), fields["attempt"], fields["due"])
    return tenant.decode(), session.decode(), WaitingRow(waiting, fields["p"], fields["o"], task[:-1])
