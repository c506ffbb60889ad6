"""Tasks that a server holds: their sessions come from another server in a view and are not here yet (rule L6).

    the stream ──session comes from p──▶ held, a row ──p's hand-off is complete──▶ performed, in order
                                           ▲
               ──its session is held ──────┘

A held task is a row under router, source and number, so that tasks of a source stand in the order in which they came,
and a new host finds them. It does not travel: no session leaves before the view is closed, and the view is not closed
while tasks are held. When their source is complete they are performed in that order as if the stream brought them now;
until the last one of a session has left, newer ones of that session are held behind it.

:class:`Held` counts what the rows have. It holds no task, and is made anew from the rows with every host.
"""

from collections import Counter
from collections.abc import Mapping

from app.errors import LocalProtocolError

HELD_MAX = 10_000
HELD_BYTES_MAX = 64 * 2**20
"""What a server holds at most, in tasks and in bytes; beyond it the stream is read no further until some have left."""

Name = tuple[str, str]
"""Tenant and session."""


class Held:
    """What one server holds."""

    __slots__ = ("_bytes", "_count", "_first", "_last", "_names", "total")

    def __init__(self) -> None:
        self._count: dict[int, dict[int, int]] = {}
        self._first: dict[tuple[int, int], int] = {}
        self._last: dict[tuple[int, int], int] = {}
        self._names: Counter[Name] = Counter()
        self._bytes = 0
        self.total = 0

    @property
    def full(self) -> bool:
        """Read the stream no further for now; hand-offs are read on, or nothing would ever leave."""
        return self.total >= HELD_MAX or self._bytes >= HELD_BYTES_MAX

    def counts(self, router: int) -> Mapping[int, int]:
        """How many tasks of the router's sessions are held, by source; for :func:`app.protocol.alignment.ahead`."""
        return self._count.get(router, {})

    def lines(self) -> list[tuple[int, int]]:
        """Routers and sources for whose sessions tasks are held."""
        return list(self._first)

    def first(self, router: int, source: int) -> int:
        """The number of the first task that is held for sessions from ``source``; the others follow without a gap."""
        return self._first[router, source]

    def waits(self, name: Name) -> bool:
        """Is anything of this session held? Then whatever comes of it is held behind."""
        return name in self._names

    def found(self, router: int, source: int, number: int, *, name: Name, size: int) -> None:
        """A row was found when the server opened; rows come in the order of their keys."""
        where = (router, source)
        if number <= self._last.get(where, 0):
            raise LocalProtocolError(f"held task {number} of {where} was found behind {self._last[where]}")
        self._first.setdefault(where, number)
        self._last[where] = number
        self._add(router, source, name, 1, size)

    def hold(self, router: int, source: int, *, name: Name, size: int) -> int:
        """Hold a task, as a row under the number that is returned."""
        where = (router, source)
        number = self._last.get(where, 0) + 1
        self.found(router, source, number, name=name, size=size)
        return number

    def leave(self, router: int, source: int, number: int, *, name: Name, size: int) -> None:
        """The first held task of a source leaves, its row with it.

        Raises:
            LocalProtocolError: another one is first.
        """
        where = (router, source)
        if number != self._first.get(where):
            raise LocalProtocolError(f"held task {number} of {where} leaves, {self._first.get(where)} is first")
        self._first[where] = number + 1
        if number == self._last[where]:
            del self._first[where], self._last[where]
        self._add(router, source, name, -1, -size)

    def _add(self, router: int, source: int, name: Name, tasks: int, size: int) -> None:
        counts = self._count.setdefault(router, {})
        counts[source] = counts.get(source, 0) + tasks
        if not counts[source]:
            del counts[source]
        self._names[name] += tasks
        if not self._names[name]:
            del self._names[name]
        self.total += tasks
        self._bytes += size
