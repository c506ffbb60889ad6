"""Who takes part in the exchanges of one manager: the shell around :mod:`app.protocol.exchange_presence`.

Nobody is declared gone for silence alone: a worker that stood still, or a broker that did not answer, has heard nobody.
So whoever was silent for a lease is asked first, with a record that must be committed, and has a quarter of a lease
more to answer. The clock of all this stands still while its worker does.
"""

import time
from collections.abc import Callable
from typing import TypeAlias

from app.protocol import exchange_presence as presence
from app.protocol.exchange_presence import Away, Effect, Heard, Left, Looked, Presence, Present

Session: TypeAlias = tuple[str, bytes | str]
"""``("client", exchange)`` or ``("server", name)``."""

_AWAY = Away()
_FRESH_MS = 100


class Clock:
    """Milliseconds of a monotonic clock that passes over the times in which nobody asked for ``step_ms``."""

    def __init__(self, step_ms: int) -> None:
        self._step_s = step_ms / 1000
        self._last = time.monotonic()
        self._passed_s = 0.0

    def tick(self) -> int:
        now = time.monotonic()
        self._passed_s += min(now - self._last, self._step_s)
        self._last = now
        return int(self._passed_s * 1000)


class Attendance:
    """Presence by session.

    Args:
        lease_ms: how long a session may be silent before it is asked.
        changed: called with what follows for a session.
        call: asks everybody to say that they are there.
    """

    def __init__(self, lease_ms: int, changed: Callable[[Session, Effect], None], call: Callable[[], None]) -> None:
        self._lease_ms = lease_ms
        self._pause_ms = max(1, lease_ms // 4)
        self._changed = changed
        self._call = call
        self._clock = Clock(2 * self._pause_ms)
        self._sessions: dict[Session, Presence] = {}
        self._next_ms = self._pause_ms
        self._called = False
        self._asked_ms: int | None = None

    @property
    def now_ms(self) -> int:
        return self._clock.tick()

    @property
    def due(self) -> float:
        """Seconds until the next look."""
        return max(0, self._next_ms - self._clock.tick()) / 1000

    def expect(self, session: Session, incarnation: int) -> None:
        """A session that took part under the manager before: it has a lease to say that it is there."""
        self._sessions[session] = Present(incarnation, self._clock.tick())

    def heard(self, session: Session, incarnation: int) -> None:
        known = self._sessions.get(session, _AWAY)
        now_ms = self._clock.tick()
        if type(known) is Present and known.incarnation == incarnation and now_ms - known.heard_ms < _FRESH_MS:
            return
        self._step(session, known, Heard(incarnation, now_ms))

    def left(self, session: Session, incarnation: int) -> None:
        self._step(session, self._sessions.get(session, _AWAY), Left(incarnation))

    def forget(self, session: Session) -> None:
        self._sessions.pop(session, None)

    def present(self, session: Session) -> Present | None:
        found = self._sessions.get(session)
        return found if isinstance(found, Present) else None

    def servers(self) -> dict[str, int]:
        """The server sessions that are there, and their incarnations."""
        return {
            str(name): found.incarnation
            for (side, name), found in self._sessions.items()
            if side == "server" and isinstance(found, Present)
        }

    def committed(self) -> None:
        """Something was committed: if the call was a part of it, everybody can have heard it."""
        if self._called and self._asked_ms is None:
            self._asked_ms = self._clock.tick()

    def look(self) -> None:
        """See who was silent for too long, if it is time."""
        now_ms = self._clock.tick()
        if now_ms < self._next_ms:
            return
        self._next_ms = now_ms + self._pause_ms
        limit = now_ms - self._lease_ms
        silent = [
            (session, known)
            for session, known in self._sessions.items()
            if type(known) is Present and known.heard_ms < limit
        ]
        if not silent:
            self._called, self._asked_ms = False, None
        elif not self._called:
            self._called = True
            self._call()
        elif self._asked_ms is not None and now_ms - self._asked_ms >= self._pause_ms:
            self._called, self._asked_ms = False, None
            for session, known in silent:
                self._step(session, known, Looked(now_ms, self._lease_ms))

    def _step(self, session: Session, known: Presence, event: presence.Event) -> None:
        decided = presence.step(known, event)
        self._sessions[session] = decided.presence
        for effect in decided.effects:
            self._changed(session, effect)
