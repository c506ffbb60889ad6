"""Wake-ups in ``delay``: the core of the release agent of one router partition.

A task that is to run again later waits as a row at its server; ``delay`` carries only its wake-up. The agent
reads ahead, holds what is not due, and sends what is. Nothing is stored: the committed offset of ``delay``
never passes a wake-up that was not sent, so that a successor reads all of them again. One that is sent twice
is harmless: the server looks at the row.

    Read, Skip --> held (at most ``capacity``) --Clock--> Send

Unlike the other cores this one is an object that changes: it holds thousands of wake-ups and is rebuilt by
reading. Source: rule L7 of the design.
"""

from collections import deque
from dataclasses import dataclass
from heapq import heappop, heappush
from typing import TypeAlias, assert_never

from app.errors import LocalProtocolError
from app.protocol.control import Wakeup


@dataclass(frozen=True, slots=True)
class Read:
    """A wake-up was read: its retry falls due at ``due_ms``, by the reader's clock."""

    offset: int
    wakeup: Wakeup
    due_ms: int


@dataclass(frozen=True, slots=True)
class Skip:
    """A record that is no wake-up was passed, such as a parked task, which its router releases by itself."""

    offset: int


@dataclass(frozen=True, slots=True)
class Clock:
    """It is ``now_ms``, milliseconds since the epoch. A clock that goes back releases nothing."""

    now_ms: int


@dataclass(frozen=True, slots=True)
class Send:
    """Wake the session: its waiting task is due."""

    wakeup: Wakeup


Event: TypeAlias = Read | Skip | Clock


class WakeUps:
    """What one agent holds.

    Args:
        start: the committed offset of the partition, where reading begins.
        capacity: how many wake-ups are held at most; while :attr:`full`, the agent does not read.
    """

    __slots__ = ("_by_due", "_capacity", "_held", "_next", "_unsent")

    def __init__(self, start: int, capacity: int) -> None:
        if capacity < 1:
            raise LocalProtocolError(f"a capacity of {capacity} wake-ups would never read one")
        self._next = start
        self._capacity = capacity
        self._by_due: list[tuple[int, int, Read]] = []
        self._held: set[int] = set()
        # Offsets in the order of reading; those already sent are dropped when they come to the front.
        self._unsent: deque[int] = deque()

    @property
    def full(self) -> bool:
        """Whether nothing more may be read until a wake-up was sent."""
        return len(self._held) >= self._capacity

    @property
    def hold_offset(self) -> int:
        """The offset to commit: the lowest one still held, or the next to read when none is."""
        return self._unsent[0] if self._unsent else self._next

    @property
    def next_due_ms(self) -> int | None:
        """When the next held wake-up falls due; ``None`` when none is held."""
        return self._by_due[0][0] if self._by_due else None

    def step(self, event: Event) -> tuple[Send, ...]:
        """Take an event and say what to send, the longest due first.

        Raises:
            LocalProtocolError: a record was read twice, or while full.
        """
        match event:
            case Read():
                self._hold(event)
                return ()
            case Skip(offset):
                self._advance(offset)
                return ()
            case Clock(now_ms):
                return self._release(now_ms)
            case _:
                assert_never(event)

    def _advance(self, offset: int) -> None:
        if offset < self._next:
            raise LocalProtocolError(f"offset {offset} of delay was read again, {self._next} was next")
        self._next = offset + 1

    def _hold(self, read: Read) -> None:
        if self.full:
            raise LocalProtocolError(f"offset {read.offset} of delay was read, {len(self._held)} are held")
        self._advance(read.offset)
        heappush(self._by_due, (read.due_ms, read.offset, read))
        self._held.add(read.offset)
        self._unsent.append(read.offset)

    def _release(self, now_ms: int) -> tuple[Send, ...]:
        sent: list[Send] = []
        while self._by_due and self._by_due[0][0] <= now_ms:
            _, offset, read = heappop(self._by_due)
            self._held.discard(offset)
            sent.append(Send(read.wakeup))
        while self._unsent and self._unsent[0] not in self._held:
            self._unsent.popleft()
        return tuple(sent)
