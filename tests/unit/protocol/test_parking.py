"""Wake-ups: what is held, sent and committed, and that a restart loses none."""

from collections import Counter
from dataclasses import replace
from typing import get_args

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from app.errors import LocalProtocolError
from app.protocol.control import ParkedDue, Wakeup
from app.protocol.parking import (
    GRID,
    KEPT_BYTES_MAX,
    KEPT_MAX,
    LITTLE,
    Clock,
    Event,
    Keep,
    Leaving,
    Lot,
    Park,
    Read,
    ReadDue,
    Release,
    ReleaseKept,
    Send,
    Skip,
    WakeUps,
    delay_again,
    deliver,
    keep,
    may_keep,
    park,
)

FIRST, SECOND = Wakeup("acme", "a", 1, 1), Wakeup("acme", "b", 1, 1)
PARKED = ParkedDue("acme", 7, 400)
A, B = Read(10, FIRST, due_ms=500), Read(12, SECOND, due_ms=300)

# Events before, the event, what is sent, what is to be committed then.
CASES: list[tuple[str, list[Event], Event, list[Send], int]] = [
    ("held", [], A, [], 10),
    ("the second held", [A], B, [], 10),
    ("the due time of parked tasks", [], ReadDue(10, PARKED), [], 10),
    ("it is not a session's wake-up", [ReadDue(10, PARKED)], Clock(400), [], 11),
    ("passed", [], Skip(10), [], 11),
    ("passed behind a held one", [A], Skip(11), [], 10),
    ("nothing held", [], Clock(9_999), [], 10),
    ("not due", [A, B], Clock(299), [], 10),
    ("the later record is due first", [A, B], Clock(300), [Send(SECOND)], 10),
    ("all due, the longest due first", [A, B], Clock(500), [Send(SECOND), Send(FIRST)], 13),
    ("sent already", [A, B, Clock(300)], Clock(500), [Send(FIRST)], 13),
    ("the clock goes back", [A, Clock(400)], Clock(100), [], 10),
]


@pytest.mark.parametrize(("before", "event", "sent", "commit"), [case[1:] for case in CASES])
def test_step(before: list[Event], event: Event, sent: list[Send], commit: int) -> None:
    core = WakeUps(start=10, capacity=5)
    for earlier in before:
        core.step(earlier)
    assert list(core.step(event)) == sent
    assert core.hold_offset == commit


def test_the_table_has_every_event() -> None:
    assert {type(case[2]) for case in CASES} == set(get_args(Event))


def test_the_next_due_time_is_the_earliest_held() -> None:
    core = WakeUps(start=10, capacity=5)
    found = [core.next_due_ms]
    for event in (A, B, Clock(300)):
        core.step(event)
        found.append(core.next_due_ms)
    assert found == [None, 500, 300, 500]


def test_due_times_of_parked_tasks_are_taken_once() -> None:
    core = WakeUps(start=10, capacity=5)
    core.step(ReadDue(10, PARKED))
    core.step(Clock(399))
    assert core.take_due() == ()
    core.step(Clock(400))
    assert core.take_due() == (PARKED,)
    assert core.take_due() == ()
    assert core.position == 11


def test_while_full_nothing_is_read() -> None:
    core = WakeUps(start=10, capacity=1)
    core.step(A)
    assert core.full
    with pytest.raises(LocalProtocolError, match="1 are held"):
        core.step(B)
    core.step(Clock(500))
    core.step(B)
    assert core.hold_offset == 12


@pytest.mark.parametrize("again", [A, Skip(10), Skip(3)])
def test_a_record_read_twice_is_our_own_error(again: Event) -> None:
    core = WakeUps(start=10, capacity=5)
    core.step(A)
    with pytest.raises(LocalProtocolError, match="again"):
        core.step(again)


def test_no_capacity_is_our_own_error() -> None:
    with pytest.raises(LocalProtocolError):
        WakeUps(start=0, capacity=0)


class Agent(RuleBasedStateMachine):
    """Model: the log of ``delay``, the clock, what was sent, and the committed offset, where a restart is."""

    @initialize(capacity=st.integers(1, 4))
    def begin(self, capacity: int) -> None:
        self.capacity = capacity
        self.log: list[int | None] = []  # Due times; None is a parked task.
        self.now = 0
        self.committed = 0
        self.sent: Counter[int] = Counter()
        self.start()

    def start(self) -> None:
        self.core = WakeUps(self.committed, self.capacity)
        self.position = self.committed

    @rule(after=st.none() | st.integers(-5, 50), gap=st.booleans())
    def produce(self, after: int | None, gap: bool) -> None:
        self.log.append(None if after is None else self.now + after)
        if gap:  # A transaction marker: passed like a parked task.
            self.log.append(None)

    @precondition(lambda self: self.position < len(self.log) and not self.core.full)
    @rule()
    def read(self) -> None:
        offset, due = self.position, self.log[self.position]
        event = Skip(offset) if due is None else Read(offset, Wakeup("t", "s", offset, 1), due)
        assert self.core.step(event) == ()
        self.position += 1

    @rule(passed=st.integers(0, 30))
    def clock(self, passed: int) -> None:
        self.now += passed
        for effect in self.core.step(Clock(self.now)):
            offset = effect.wakeup.arrival
            due = self.log[offset]
            assert due is not None
            assert due <= self.now, "sent early"
            self.sent[offset] += 1

    @rule()
    def commit(self) -> None:
        assert self.core.hold_offset >= self.committed, "the committed offset went back"
        self.committed = self.core.hold_offset

    @rule()
    def restart(self) -> None:
        self.start()

    @invariant()
    def nothing_below_the_committed_offset_is_unsent(self) -> None:
        for offset, due in enumerate(getattr(self, "log", [])[: getattr(self, "committed", 0)]):
            assert due is None or self.sent[offset] >= 1

    def teardown(self) -> None:
        """Every wake-up is sent in the end, and then the whole partition may be committed."""
        if not hasattr(self, "log"):
            return
        while self.position < len(self.log):
            if self.core.full:
                self.clock(60)
            else:
                self.read()
        self.clock(60)
        self.commit()
        assert self.committed == len(self.log)
        assert all(due is None or self.sent[offset] for offset, due in enumerate(self.log))


TestAgent = Agent.TestCase


# -- parked tasks -----------------------------------------------------------------------------------------------------

LOT = Lot(parked=3, released=1, dues=((1_000, 3),), position=40)


def test_tasks_are_numbered_and_fall_due_together() -> None:
    lot, first = park(Lot(), now_ms=1_001, delay_ms=2_000, position=17)
    lot, second = park(lot, now_ms=1_100, delay_ms=2_000, position=19)
    lot, third = park(lot, now_ms=1_400, delay_ms=2_000, position=23)
    assert (first, second, third) == (Park(1, 3_200, True), Park(2, 3_200, False), Park(3, 3_400, True))
    assert lot == Lot(parked=3, dues=((3_200, 2), (3_400, 1)), position=17)
    assert not lot.empty


@pytest.mark.parametrize("delay_ms", [1, 7, 20, 2_000])
def test_no_task_falls_due_early(delay_ms: int) -> None:
    for now in range(0, 3_000, 13):
        _, parked = park(Lot(), now, delay_ms, 0)
        assert now + delay_ms <= parked.due_ms <= now + delay_ms + max(1, delay_ms // GRID)


def test_what_falls_due_is_delayed_again_and_counted_once() -> None:
    lot, later = delay_again(LOT, 1_000, now_ms=1_003, delay_ms=2_000)
    assert (lot, later) == (replace(LOT, dues=((3_200, 3),), redelayed=3), 3_200)
    assert delay_again(lot, 1_000, now_ms=1_003, delay_ms=2_000) == (lot, None)
    # A clock that goes back does not bring a due time nearer.
    assert delay_again(LOT, 1_000, now_ms=0, delay_ms=2_000)[1] == 3_000


def test_a_time_that_is_known_needs_no_second_record() -> None:
    lot = replace(LOT, dues=((1_000, 3), (3_200, 2)))
    assert delay_again(lot, 1_000, 1_003, 2_000) == (replace(lot, dues=((3_200, 5),), redelayed=3), None)


@pytest.mark.parametrize(
    ("lot", "size", "expected"),
    [
        (Lot(parked=LITTLE), 1, True),
        (Lot(parked=LITTLE + 1), 1, False),
        (Lot(parked=9, kept=2, kept_from=8), 1, True),
        # Others were parked behind what is kept.
        (Lot(parked=10, kept=2, kept_from=8), 1, False),
        (Lot(parked=KEPT_MAX + 1, kept=KEPT_MAX, kept_from=2), 1, False),
        (Lot(parked=9, kept=2, kept_from=8, kept_bytes=KEPT_BYTES_MAX), 1, False),
    ],
)
def test_what_may_be_kept(lot: Lot, size: int, expected: bool) -> None:
    assert may_keep(lot, size) is expected


def test_what_is_kept_is_numbered_behind_the_rest() -> None:
    lot, first = keep(LOT, 100)
    lot, second = keep(lot, 50)
    assert (first, second) == (Keep(4), Keep(5))
    assert lot == replace(LOT, parked=5, kept=2, kept_from=4, kept_bytes=150)


KEEPING = replace(LOT, parked=6, kept=2, kept_from=4)

DELIVERIES: list[tuple[Lot, int, int, Lot, tuple[Leaving, ...]]] = [
    (LOT, 2, 2, replace(LOT, released=2, position=50), (Release(2, 2),)),
    (LOT, 1, 3, replace(LOT, released=3, position=50), (Release(2, 3),)),
    (LOT, 1, 1, replace(LOT, position=50), ()),
    (LOT, 1, 0, replace(LOT, position=50), ()),
    (
        KEEPING,
        2,
        3,
        replace(KEEPING, released=5, kept=0, kept_from=0, position=50),
        (Release(2, 3), ReleaseKept(4, 5)),
    ),
    (
        replace(KEEPING, released=3),
        1,
        0,
        replace(KEEPING, released=5, kept=0, kept_from=0, position=50),
        (ReleaseKept(4, 5),),
    ),
]


@pytest.mark.parametrize(("lot", "first", "last", "expected", "leaving"), DELIVERIES)
def test_deliver(lot: Lot, first: int, last: int, expected: Lot, leaving: tuple[Leaving, ...]) -> None:
    assert deliver(lot, first, last, 50) == (expected, leaving)


@pytest.mark.parametrize(("lot", "first", "last"), [(LOT, 3, 3), (LOT, 2, 4), (KEEPING, 2, 4), (KEEPING, 6, 6)])
def test_a_number_that_is_missing_is_an_error_of_ours(lot: Lot, first: int, last: int) -> None:
    with pytest.raises(LocalProtocolError):
        deliver(lot, first, last, 50)


def test_the_position_of_a_lot_does_not_go_back() -> None:
    assert deliver(replace(LOT, position=60), 2, 2, 50)[0].position == 60
    # All that there is to release is kept.
    assert deliver(Lot(parked=1, kept=1, kept_from=1), 1, 0, 50)[0].position is None


class Lots(RuleBasedStateMachine):
    """A lot and its log: tasks leave in the order in which they came, each once, whatever is read again."""

    @initialize()
    def begin(self) -> None:
        self.lot = Lot()
        self.log: list[int] = []
        self.unread = 0
        self.left: list[int] = []
        self.now = 0

    @rule(kept=st.booleans())
    def arrive(self, kept: bool) -> None:
        if kept and self.lot.parked and may_keep(self.lot, 10):
            self.lot, _ = keep(self.lot, 10)
        else:
            self.lot, parked = park(self.lot, self.now, 100, len(self.log))
            self.log.append(parked.number)

    @rule()
    def commit(self) -> None:
        self.unread = len(self.log)

    @rule(most=st.integers(1, 5), back=st.integers(0, 3))
    def read(self, most: int, back: int) -> None:
        run: list[int] = []
        start = max(0, (self.lot.position or 0) - back)
        for offset in range(start, self.unread):
            if len(run) == most or (run and self.log[offset] != run[-1] + 1):
                break
            if self.log[offset] > self.lot.released:
                run.append(self.log[offset])
            start = offset + 1
        first, last = (run[0], run[-1]) if run else (1, 0)
        self.lot, leaving = deliver(self.lot, first, last, start)
        for leave in leaving:
            self.left += range(leave.first, leave.last + 1)

    @rule(after=st.integers(0, 50))
    def fall_due(self, after: int) -> None:
        self.now += after
        for due, _ in self.lot.dues:
            if due <= self.now:
                self.lot, _ = delay_again(self.lot, due, self.now, 100)

    @invariant()
    def in_order(self) -> None:
        assert self.left == list(range(1, len(self.left) + 1))
        assert len(self.left) == self.lot.released
        assert len(self.lot.dues) <= GRID + 2

    def teardown(self) -> None:
        self.commit()
        for _ in range(3 * len(self.log) + 3):
            self.read(5, 0)
        assert self.lot.empty


TestLots = Lots.TestCase
TestLots.settings = settings(max_examples=100, stateful_step_count=40)
