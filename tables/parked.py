"""``parked``: tasks of a tenant that are kept as rows while a release ends (rule L8), on the tenant's router.

Key: the tenant, a zero byte, the number of the task in twelve digits; so a tenant's rows stand in the order in which
they are released. They are few, and go with the unit that releases the last parked task.
"""

from typing import NamedTuple

import orjson

NAME = "parked"
VERSION = 1

_TASK = b',"task":'


class Kept(NamedTuple):
    """A task with its origin in ``tasks`` and its bytes as they stand there."""

    partition: int
    offset: int
    task: bytes


def key_of(tenant: bytes, number: int) -> bytes:
    return b"%b\0%012d" % (tenant, number)


def encode(kept: Kept) -> bytes:
    return b'{"v":%d,"p":%d,"o":%d%b%b}' % (VERSION, kept.partition, kept.offset, _TASK, kept.task)


def decode(row: bytes) -> Kept:
    """Raise ValueError for a row of another version."""
    head, found, task = row.partition(_TASK)
    fields = orjson.loads(head + b"}")
    if not found or fields.get("v") != VERSION:
        raise ValueError("a parked task of another version")
    return Kept(fields["p"], fields["o"], task[:-1])
