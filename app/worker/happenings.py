"""What the committed events and dead letters of a worker say, counted: the source of most metrics that are rare."""

from collections import Counter
from collections.abc import Mapping
from typing import Any, Final

import orjson

from app.engine.tally import Histogram, Tally
from app.topics import Names

PAUSE_S: Final = (0.05, 0.1, 0.2, 0.3, 0.5, 1.0, 2.0, 5.0, 10.0, 30.0, 60.0)
ERRORS_MAX: Final = 100
OTHER: Final = "other"
_MOVES: Final = {"migration-succeeded": "succeeded", "migration-failed": "failed"}
_TRANSFERS: Final = {
    "transfer-completed": "completed",
    "transfer-failed": "failed",
    "transfer-acknowledged": "acknowledged",
}


class Happenings:
    """Looks at the events and dead letters that the worker's units have committed."""

    def __init__(self) -> None:
        self.events: Counter[str] = Counter()
        self.dead_letters: Counter[str] = Counter()
        self.migrations: Counter[str] = Counter(dict.fromkeys(_MOVES.values(), 0))
        self.transfers: Counter[str] = Counter(dict.fromkeys(_TRANSFERS.values(), 0))
        self.pauses = Histogram(PAUSE_S)
        self.moved: Counter[str] = Counter()
        """By field of a migration's final event: ``rows``, ``bytes``, ``parked``, ``redelayed``."""
        self.transfer_bytes = 0

    def follow(self, tally: Tally, names: Names) -> None:
        """Look at what is committed from now on."""
        tally.looks = {names.events: self._event, names.dead_letters: self._dead_letter}

    def _event(self, record: Mapping[str, Any]) -> None:
        try:
            event = orjson.loads(record["value"] or b"")
        except orjson.JSONDecodeError:
            return
        name = str(event.get("event", ""))
        self.events[name] += 1
        if name in _MOVES:
            self.migrations[_MOVES[name]] += 1
            self.pauses.observe(_number(event, "pause_ms") / 1000)
            for field in ("rows", "bytes", "parked", "redelayed"):
                self.moved[field] += _number(event, field)
        elif name in _TRANSFERS:
            self.transfers[_TRANSFERS[name]] += 1
            if name == "transfer-completed":
                self.transfer_bytes += _number(event, "size")

    def _dead_letter(self, record: Mapping[str, Any]) -> None:
        given = dict(record.get("headers") or ()).get("error", b"")
        error = given.decode(errors="replace") if isinstance(given, bytes) else str(given)
        # A handler names its exceptions as it likes; a label of endless values is what Prometheus cannot bear.
        known = error in self.dead_letters or len(self.dead_letters) < ERRORS_MAX
        self.dead_letters[error if known else OTHER] += 1


def _number(event: Mapping[str, Any], field: str) -> int:
    value = event.get(field)
    return value if type(value) is int else 0
