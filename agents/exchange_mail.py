"""What a manager of exchanges writes: replies, assignments, events and dead letters, into the open unit of work."""

from collections.abc import Mapping
from datetime import UTC, datetime

import orjson

from agents.endings import dead_letter_headers
from app.engine.engine import Engine
from app.protocol import exchange_records as records
from app.topics import Names


class Mail:
    """The outgoing records of one manager."""

    def __init__(self, engine: Engine, names: Names, number: int) -> None:
        self._engine = engine
        self._names = names
        self._number = number

    def reply(self, exchange: bytes | None, value: bytes) -> None:
        """A record for the client of an exchange; None: for all of this manager's."""
        self._put(self._names.replies, exchange, value)

    def assign(self, key: bytes | None, value: bytes) -> None:
        """A record for a server session; the key is the exchange, or the session where it is about itself."""
        self._put(self._names.assignments, key, value)

    def _put(self, topic: str, key: bytes | None, value: bytes) -> None:
        unit = self._engine.unit
        unit.output(topic, self._number).append((key, value))
        unit.weight += 1
        unit.size += len(value)

    def roll_call(self) -> None:
        """Ask everybody to say that they are there."""
        call = records.say("roll-call", manager=self._number)
        self.reply(None, call)
        self.assign(None, call)

    def event(
        self,
        name: str,
        now_ms: int,
        subject: bytes,
        fields: Mapping[str, object],
        order: str | None = None,
        *,
        final: bool = False,
    ) -> None:
        at = datetime.fromtimestamp(now_ms / 1000, UTC).isoformat(timespec="milliseconds")
        event = {"event": name, "at": at, "id": order, "final": final, **fields}
        self._engine.unit.send(self._names.events, orjson.dumps(event), subject, partition=0)

    def dead_letter(
        self, topic: str, offset: int, key: bytes | None, value: bytes | None, why: tuple[str, str]
    ) -> None:
        """Keep the original bytes, and say why: error and message."""
        headers = dead_letter_headers(*why, topic, self._number, offset)
        self._engine.unit.send(self._names.dead_letters, value, key, partition=0, headers=headers)
