"""``outcomes``: how commands have ended, on the router that carried them out, for as long as one may be repeated.

Key: the command's id (UTF-8). The row has the final event as it was written, which answers every repetition.
"""

from typing import Any, NamedTuple

import orjson

NAME = "outcomes"
VERSION = 1

KEPT_MS = 24 * 3_600_000
"""So long a repeated command is answered with its first outcome."""


class Outcome(NamedTuple):
    """When a command ended, in Unix time, and its final event."""

    at_ms: int
    event: dict[str, Any]

    def stands(self, now_ms: int) -> bool:
        """Does a repetition get this answer, rather than being carried out?"""
        return now_ms < self.at_ms + KEPT_MS


def encode(outcome: Outcome) -> bytes:
    return orjson.dumps({"v": VERSION, "at": outcome.at_ms, "event": outcome.event})


def decode(row: bytes) -> Outcome:
    """Raise ValueError for a row of another version."""
    fields = orjson.loads(row)
    if fields.get("v") != VERSION:
        raise ValueError("an outcome of another version")
    return Outcome(fields["at"], fields["event"])
