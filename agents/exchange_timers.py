"""When an exchange ends by itself, and when one that is over is forgotten.

Rows know times of the wall clock. They are compared with it once, when a place opens or a row is made; from then on the
monotonic clock counts, so that a wall clock that jumps ends nothing.
"""

import heapq
import time
from collections.abc import Callable

from app.protocol.exchange_model import Ended, Exchange, Open


class Timers:
    """The times of one manager's exchanges.

    Args:
        timeout: seconds for which an exchange may go without a change and without its client.
        retention: seconds for which the row of one that is over is kept.
    """

    def __init__(self, timeout: float, retention: float) -> None:
        self._timeout = timeout
        self._retention = retention
        self._changed: dict[bytes, float] = {}
        self._deadlines: dict[bytes, float] = {}
        self._heap: list[tuple[float, bytes]] = []

    def arm(self, key: bytes, exchange: Exchange, changed_ms: int) -> None:
        """Look at this exchange when it is time; its row changed last at ``changed_ms`` (Unix time)."""
        now, wall_ms = time.monotonic(), time.time() * 1000
        changed = self._changed[key] = now - max(0.0, wall_ms - changed_ms) / 1000
        self._deadlines.pop(key, None)
        if isinstance(exchange, Open) and exchange.deadline_ms is not None:
            self._deadlines[key] = now + (exchange.deadline_ms - wall_ms) / 1000
        after = self._retention if isinstance(exchange, Ended) else self._timeout
        heapq.heappush(self._heap, (min(changed + after, self._deadlines.get(key, changed + after)), key))

    def touch(self, key: bytes) -> None:
        """Its row changes."""
        self._changed[key] = time.monotonic()

    def forget(self, key: bytes) -> None:
        self._changed.pop(key, None)
        self._deadlines.pop(key, None)

    @property
    def due(self) -> float | None:
        """Seconds until something is due."""
        return max(0.0, self._heap[0][0] - time.monotonic()) if self._heap else None

    def passed(self, present: Callable[[bytes], bool], get: Callable[[bytes], Exchange]) -> list[tuple[bytes, str]]:
        """Exchanges whose time has come: ``deadline`` or ``timeout`` of open ones, ``retention`` of those over."""
        now, found = time.monotonic(), []
        while self._heap and self._heap[0][0] <= now:
            _, key = heapq.heappop(self._heap)
            exchange = get(key)
            if isinstance(exchange, Ended):
                until, reason = self._changed.get(key, now) + self._retention, "retention"
            elif isinstance(exchange, Open):
                if present(key):
                    self.touch(key)
                until, reason = self._changed.get(key, now) + self._timeout, "timeout"
                if self._deadlines.get(key, until) < until:
                    until, reason = self._deadlines[key], "deadline"
            else:
                continue
            if until <= now:
                found.append((key, reason))
            else:
                heapq.heappush(self._heap, (until, key))
        return found
