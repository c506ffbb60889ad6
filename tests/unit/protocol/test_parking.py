"""Wake-ups: what is held, sent and committed, and that a restart loses none."""

from collections import Counter
from typing import get_args

import pytest
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from app.errors import LocalProtocolError
from app.protocol.control import Wakeup
from app.protocol.parking import Clock, Event, Read, Send, Skip, WakeUps

FIRST, SECOND = Wakeup("acme", "a", 1, 1), Wakeup("acme", "b", 1, 1)
A, B = Read(10, FIRST, due_ms=500), Read(12, SECOND, due_ms=300)

# Events before, the event, what is sent, what is to be committed then.
CASES: list[tuple[str, list[Event], Event, list[Send], int]] = [
    ("held", [], A, [], 10),
    ("the second held", [A], B, [], 10),
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
