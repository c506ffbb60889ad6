"""Sessions that nobody has used for ``SESSION_TTL``: found a few rows at a time, so that no task waits for it."""

import itertools
from collections.abc import Iterator

from app.engine.stores import Store
from tables import sessions

ROWS_AT_ONCE = 500
PAUSE_S = 0.1
SWEEPS_PER_TTL = 10


class Expiry:
    """Sweeps over the sessions of one server.

    Args:
        store: their committed rows.
        ttl: seconds; 0 never.
    """

    def __init__(self, store: Store, ttl: float) -> None:
        self._store = store
        self._ttl = ttl
        self._sweep: Iterator[tuple[bytes, bytes]] | None = None
        self.due: float | None = 0.0 if ttl else None

    def expired(self, now: float) -> list[bytes]:
        """The keys of the next rows that have expired; sets when to be called again."""
        if self._sweep is None:
            self._sweep = self._store.scan(b"")
        rows = list(itertools.islice(self._sweep, ROWS_AT_ONCE))
        if len(rows) == ROWS_AT_ONCE:
            self.due = now + PAUSE_S
        else:
            self._sweep = None
            self.due = now + max(1.0, self._ttl / SWEEPS_PER_TTL)
        return [key for key, row in rows if self.over(row, now)]

    def over(self, row: bytes, now: float) -> bool:
        """Has this session not been used for so long?"""
        return sessions.decode(row).changed_at + self._ttl <= now
