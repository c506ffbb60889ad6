"""Events of a router, and the outcomes of its commands, which answer every repetition for a day."""

import itertools
from collections.abc import Iterator
from datetime import UTC, datetime
from typing import Any

import orjson

from app.engine.engine import Engine
from app.engine.table import Rows
from app.protocol.moves import Announce
from app.topics import Names
from tables import outcomes
from tables.outcomes import Outcome

SWEEP_S = 600.0
SWEPT_AT_ONCE = 500
PAUSE_S = 0.1


def event_of(announced: Announce, now_ms: int) -> dict[str, Any]:
    """The record of ``events``."""
    at = datetime.fromtimestamp(now_ms / 1000, UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")
    head = {"event": announced.event, "at": at, "id": announced.id, "final": announced.final}
    return {**head, **announced.fields}


def announce(engine: Engine, names: Names, subject: bytes, announced: Announce, now_ms: int) -> dict[str, Any]:
    """Write an event into the open unit; it is returned."""
    event = event_of(announced, now_ms)
    engine.unit.output(names.events, 0).append((subject, orjson.dumps(event)))
    engine.unit.weight += 1
    return event


class Announcer:
    """Writes events into the open unit, with the outcome of a command in the same one."""

    def __init__(self, engine: Engine, names: Names, rows: Rows) -> None:
        self._engine = engine
        self._names = names
        self._rows = rows
        self._sweep: Iterator[tuple[bytes, bytes]] | None = None
        self.due = 0.0
        """Unix time at which :meth:`sweep` wants to be called."""

    def say(self, subject: bytes, announced: Announce, now_ms: int) -> None:
        """Write an event; a final one is kept as the outcome of its command."""
        event = announce(self._engine, self._names, subject, announced, now_ms)
        if announced.final and announced.id is not None:
            self._rows.put(announced.id.encode(errors="replace"), outcomes.encode(Outcome(now_ms, event)))

    def repeat(self, subject: bytes, command: str, now_ms: int) -> bool:
        """Answer a command that came before as it was answered then; False if it did not, or too long ago."""
        outcome = self._outcome(command, now_ms)
        if outcome is None:
            return False
        self._write(subject, outcome.event)
        return True

    def knows(self, command: str, now_ms: int) -> bool:
        """Has this command had its end?"""
        return self._outcome(command, now_ms) is not None

    def _outcome(self, command: str, now_ms: int) -> Outcome | None:
        row = self._rows.get(command.encode(errors="replace"))
        outcome = outcomes.decode(row) if row is not None else None
        return outcome if outcome is not None and outcome.stands(now_ms) else None

    def _write(self, subject: bytes, event: dict[str, Any]) -> None:
        unit = self._engine.unit
        unit.output(self._names.events, 0).append((subject, orjson.dumps(event)))
        unit.weight += 1

    def sweep(self, now: float) -> None:
        """Forget outcomes that no repetition asks for any more, some at a time."""
        if self._sweep is None:
            self._sweep = self._rows.store.scan(b"")
        found = list(itertools.islice(self._sweep, SWEPT_AT_ONCE))
        for key, row in found:
            if not outcomes.decode(row).stands(int(now * 1000)):
                self._rows.delete(key)
        if len(found) == SWEPT_AT_ONCE:
            self.due = now + PAUSE_S
        else:
            self._sweep = None
            self.due = now + SWEEP_S
