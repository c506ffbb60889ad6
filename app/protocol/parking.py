"""What ``delay`` holds: tasks of a tenant that moves, parked in their order, and wake-ups, each sent when it is due.

*Parked tasks.* A :class:`Lot` numbers them 1, 2, 3 … in the unit that parks them, and releases them strictly by number,
whatever falls due in between (rule L7). A task falls due ``delay`` after it was parked; if the migration is still on,
it is delayed again: its due time moves, its place does not. What falls due at about the same time has one record.

    arrive ──▶ parked in `delay` ──delivered, by number──▶ released
         └───▶ kept as a row, when little is left to release (rule L8) ──behind them──▶ released

While tasks are released others arrive, and those that a unit parks cannot be read before it has committed. So when
little is left in ``delay``, arrivals are kept as rows instead; the unit that releases the last parked one releases them
behind it, and with that nothing is left. The lot is a part of its tenant's row.

*Wake-ups.* A task that is to run again later waits as a row at its server; ``delay`` carries only its wake-up.
:class:`WakeUps` reads ahead, holds what is not due, and sends what is. Nothing of that is stored: the committed offset
of ``delay`` never passes a wake-up that was not sent, so that a successor reads all of them again. One that is sent
twice is harmless: whoever gets it looks at the row.

    Read, Skip ──▶ held (at most ``capacity``) ──Clock──▶ Send

Unlike the other cores :class:`WakeUps` is an object that changes: it holds thousands of wake-ups and is rebuilt by
reading. Source: rules L7 and L8 of the design.
"""

from collections import deque
from dataclasses import dataclass, replace
from heapq import heappop, heappush
from typing import TypeAlias, assert_never

from app.errors import LocalProtocolError
from app.protocol.control import ParkedDue, Wakeup

KEPT_MAX = 10_000
KEPT_BYTES_MAX = 8 * 2**20
"""What a tenant may have as rows instead of in ``delay``, in tasks and in bytes."""

LITTLE = 2_000
"""So many parked tasks are little: the release is about to end."""

GRID = 10
"""Due times are rounded up to so many steps a delay, so that one record serves all that fall due together."""


# -- parked tasks -----------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Lot:
    """The parked tasks of one migration.

    ``parked`` counts them, ``released`` those that have left, ``redelayed`` how often one was delayed again.
    ``kept`` is how many of them are rows, numbered from ``kept_from`` on without a gap, and ``kept_bytes`` their size.
    ``dues`` has, for each time in milliseconds, how many fall due then. ``position`` is an offset of ``delay`` below
    which there is none that is still to be released; None while none was parked.
    """

    parked: int = 0
    released: int = 0
    redelayed: int = 0
    kept: int = 0
    kept_from: int = 0
    kept_bytes: int = 0
    dues: tuple[tuple[int, int], ...] = ()
    position: int | None = None

    @property
    def empty(self) -> bool:
        """Has everything left?"""
        return self.released == self.parked


@dataclass(frozen=True, slots=True)
class Park:
    """Put the task into ``delay`` under this number; ``new_due``: a :class:`ParkedDue` for ``due_ms`` goes with it."""

    number: int
    due_ms: int
    new_due: bool


@dataclass(frozen=True, slots=True)
class Keep:
    """Put the task into a row under this number."""

    number: int


@dataclass(frozen=True, slots=True)
class Release:
    """Send the parked tasks ``first`` to ``last``, which were delivered, to their servers, in this order."""

    first: int
    last: int


@dataclass(frozen=True, slots=True)
class ReleaseKept:
    """The same with tasks that are rows; the rows go."""

    first: int
    last: int


Leaving: TypeAlias = Release | ReleaseKept


def park(lot: Lot, now_ms: int, delay_ms: int, position: int) -> tuple[Lot, Park]:
    """Number a task that arrives, and say when it falls due; ``position``: where ``delay`` is read next."""
    step = max(1, delay_ms // GRID)
    due_ms = -(-(now_ms + delay_ms) // step) * step
    dues, new = _due_later(lot.dues, due_ms, 1)
    parked = lot.parked + 1
    start = position if lot.position is None else lot.position
    return replace(lot, parked=parked, dues=dues, position=start), Park(parked, due_ms, new)


def delay_again(lot: Lot, due_ms: int, now_ms: int, delay_ms: int) -> tuple[Lot, int | None]:
    """What falls due at ``due_ms`` is delayed once more: the time of a new record, if one is needed.

    A second record of the same time finds nothing that falls due then.
    """
    count = dict(lot.dues).get(due_ms, 0)
    if not count:
        return lot, None
    step = max(1, delay_ms // GRID)
    later = -(-(max(now_ms, due_ms) + delay_ms) // step) * step
    dues, new = _due_later(tuple(entry for entry in lot.dues if entry[0] != due_ms), later, count)
    return replace(lot, dues=dues, redelayed=lot.redelayed + count), later if new else None


def _due_later(dues: tuple[tuple[int, int], ...], due_ms: int, count: int) -> tuple[tuple[tuple[int, int], ...], bool]:
    known = dict(dues)
    new = due_ms not in known
    known[due_ms] = known.get(due_ms, 0) + count
    return tuple(sorted(known.items())), new


def may_keep(lot: Lot, size: int) -> bool:
    """While tasks are released: is the next one, of so many bytes, kept as a row rather than parked in ``delay``?"""
    if lot.kept:
        behind = lot.kept_from + lot.kept == lot.parked + 1
        return behind and lot.kept < KEPT_MAX and lot.kept_bytes + size <= KEPT_BYTES_MAX
    return lot.parked - lot.released <= LITTLE


def keep(lot: Lot, size: int) -> tuple[Lot, Keep]:
    """Number a task that arrives and becomes a row."""
    number = lot.parked + 1
    first = lot.kept_from if lot.kept else number
    kept = replace(lot, parked=number, kept=lot.kept + 1, kept_from=first, kept_bytes=lot.kept_bytes + size)
    return kept, Keep(number)


def deliver(lot: Lot, first: int, last: int, position: int) -> tuple[Lot, tuple[Leaving, ...]]:
    """The tasks ``first`` to ``last`` were read from ``delay``, up to offset ``position``: say what leaves.

    Those that have left already are passed over. What is kept leaves as soon as it is its turn; so does what is kept
    while nothing is left in ``delay``, with a delivery of nothing (``last`` below ``first``).

    Raises:
        LocalProtocolError: one between is missing.
    """
    lot, before = _leave_kept(lot)
    leaving: list[Leaving] = [*before]
    start = max(first, lot.released + 1)
    if start <= last:
        if start > lot.released + 1 or last > lot.parked or (lot.kept and last >= lot.kept_from):
            raise LocalProtocolError(f"parked tasks {first} to {last} came, {lot.released + 1} is next of {lot}")
        leaving.append(Release(start, last))
        lot, behind = _leave_kept(replace(lot, released=last))
        leaving += behind
    if lot.position is not None:
        lot = replace(lot, position=max(lot.position, position))
    return lot, tuple(leaving)


def _leave_kept(lot: Lot) -> tuple[Lot, tuple[Leaving, ...]]:
    """What is kept leaves, if it is its turn."""
    if not lot.kept or lot.kept_from != lot.released + 1:
        return lot, ()
    end = lot.released + lot.kept
    gone = (ReleaseKept(lot.kept_from, end),)
    return replace(lot, released=end, kept=0, kept_from=0, kept_bytes=0), gone


# -- wake-ups ---------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Read:
    """A wake-up was read: its retry falls due at ``due_ms``, by the reader's clock."""

    offset: int
    wakeup: Wakeup
    due_ms: int


@dataclass(frozen=True, slots=True)
class ReadDue:
    """The time at which parked tasks fall due was read, by the reader's clock as well."""

    offset: int
    parked: ParkedDue


@dataclass(frozen=True, slots=True)
class Skip:
    """A record that is no wake-up was passed, such as a parked task, which is released by its number."""

    offset: int


@dataclass(frozen=True, slots=True)
class Clock:
    """It is ``now_ms``, milliseconds since the epoch. A clock that goes back releases nothing."""

    now_ms: int


@dataclass(frozen=True, slots=True)
class Send:
    """Wake the session: its waiting task is due."""

    wakeup: Wakeup


Event: TypeAlias = Read | ReadDue | Skip | Clock


class WakeUps:
    """What one agent holds.

    Args:
        start: the committed offset of the partition, where reading begins.
        capacity: how many wake-ups are held at most; while :attr:`full`, the agent does not read.
    """

    __slots__ = ("_by_due", "_capacity", "_due", "_held", "_next", "_unsent")

    def __init__(self, start: int, capacity: int) -> None:
        if capacity < 1:
            raise LocalProtocolError(f"a capacity of {capacity} wake-ups would never read one")
        self._next = start
        self._capacity = capacity
        self._by_due: list[tuple[int, int, Read | ReadDue]] = []
        self._due: list[ParkedDue] = []
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
            case Read(_, _, due_ms):
                self._hold(event, due_ms)
                return ()
            case ReadDue(_, parked):
                self._hold(event, parked.due)
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

    @property
    def position(self) -> int:
        """The offset that is read next: nothing that is written from now on stands below it."""
        return self._next

    def take_due(self) -> tuple[ParkedDue, ...]:
        """The due times of parked tasks that the clock has reached since the last call, for their migrations."""
        due, self._due = tuple(self._due), []
        return due

    def _hold(self, read: Read | ReadDue, due_ms: int) -> None:
        if self.full:
            raise LocalProtocolError(f"offset {read.offset} of delay was read, {len(self._held)} are held")
        self._advance(read.offset)
        heappush(self._by_due, (due_ms, read.offset, read))
        self._held.add(read.offset)
        self._unsent.append(read.offset)

    def _release(self, now_ms: int) -> tuple[Send, ...]:
        sent: list[Send] = []
        while self._by_due and self._by_due[0][0] <= now_ms:
            _, offset, read = heappop(self._by_due)
            self._held.discard(offset)
            if isinstance(read, Read):
                sent.append(Send(read.wakeup))
            else:
                self._due.append(read.parked)
        while self._unsent and self._unsent[0] not in self._held:
            self._unsent.popleft()
        return tuple(sent)
