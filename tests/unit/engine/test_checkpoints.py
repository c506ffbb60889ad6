"""Positions for stores: asked for without a wait, and used only where they hold."""

import time
from collections.abc import Iterable

import pytest
from confluent_kafka import KafkaException

from app.engine import checkpoints
from app.engine.checkpoints import CHECKPOINT_S, POSITIONS_S, Checkpoints
from app.engine.offsets import OffsetReader, Partition

ONE = ("ns.sessions-changelog", 0)
TWO = ("ns.sessions-changelog", 1)
SLACK_S = 2.0


class Answer:
    """What was asked for; the test answers it."""

    def __init__(self, wanted: list[Partition]) -> None:
        self.wanted = wanted
        self.ends: dict[Partition, int] | None = None
        self.error: Exception | None = None

    @property
    def done(self) -> bool:
        return self.ends is not None or self.error is not None

    def result(self) -> dict[Partition, int]:
        if self.error is not None:
            raise self.error
        assert self.ends is not None, "nobody waits for an answer"
        return self.ends


class Ends:
    """Keeps what is asked for."""

    def __init__(self) -> None:
        self.asked: list[Answer] = []
        self.error: Exception | None = None
        self.at_once: dict[Partition, int] | None = None

    def ask_high_watermarks(self, partitions: Iterable[Partition], timeout: float | None = None) -> Answer:
        assert timeout == POSITIONS_S
        if self.error is not None:
            raise self.error
        answer = Answer(list(partitions))
        answer.ends = self.at_once
        self.asked.append(answer)
        return answer


class Clock:
    now = 1_000.0

    def monotonic(self) -> float:
        return self.now


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    made = Clock()
    monkeypatch.setattr(checkpoints, "time", made)
    return made


@pytest.fixture
def ends() -> Ends:
    return Ends()


@pytest.fixture
def due(clock: Clock, ends: Ends) -> Checkpoints:
    """Positions may be asked for."""
    made = Checkpoints(ends)
    clock.now += CHECKPOINT_S
    return made


def test_nothing_is_asked_before_it_is_time(clock: Clock, ends: Ends) -> None:
    made = Checkpoints(ends)
    clock.now += CHECKPOINT_S - 0.001
    assert made.positions([ONE], 1) == {}
    assert ends.asked == []


def test_a_unit_that_changes_no_row_asks_nothing(due: Checkpoints, ends: Ends) -> None:
    assert due.positions([], 1) == {}
    assert ends.asked == []


def test_no_unit_waits_for_an_answer_and_a_later_one_has_it(due: Checkpoints, ends: Ends) -> None:
    assert due.positions([ONE, TWO], 1) == {}
    assert due.positions([ONE], 1) == {}
    (answer,) = ends.asked
    assert answer.wanted == [ONE, TWO]
    answer.ends = {ONE: 7, TWO: 9}
    assert due.positions([ONE], 1) == {ONE: 7}
    assert due.positions([ONE], 1) == {}
    assert due.positions([TWO], 1) == {TWO: 9}


def test_it_is_asked_again_when_it_is_time_again(due: Checkpoints, clock: Clock, ends: Ends) -> None:
    due.positions([ONE], 1)
    clock.now += CHECKPOINT_S
    due.positions([ONE], 1)
    assert len(ends.asked) == 1
    ends.asked[0].ends = {ONE: 7}
    assert due.positions([TWO], 1) == {}
    assert ends.asked[1].wanted == [TWO]


def test_an_answer_of_an_older_generation_is_dropped(due: Checkpoints, clock: Clock, ends: Ends) -> None:
    """Others may have written since, and rows that were restored hold more."""
    due.positions([ONE, TWO], 1)
    ends.asked[0].ends = {ONE: 7, TWO: 9}
    assert due.positions([ONE], 1) == {ONE: 7}
    assert due.positions([TWO], 2) == {}
    clock.now += CHECKPOINT_S
    due.positions([ONE], 2)
    ends.asked[1].ends = {ONE: 20}
    assert due.positions([ONE], 3) == {}


def test_an_answer_that_fails_is_asked_for_later(due: Checkpoints, clock: Clock, ends: Ends) -> None:
    due.positions([ONE], 1)
    ends.asked[0].error = KafkaException()
    assert due.positions([ONE], 1) == {}
    clock.now += CHECKPOINT_S
    ends.error = RuntimeError()
    assert due.positions([ONE], 1) == {}
    clock.now += CHECKPOINT_S
    ends.error = None
    due.positions([ONE], 1)
    assert len(ends.asked) == 2


def test_the_last_unit_before_places_are_given_up_has_its_positions(due: Checkpoints, clock: Clock, ends: Ends) -> None:
    due.positions([ONE], 1)
    ends.at_once = {TWO: 9}
    assert due.positions([TWO], 1, last=True) == {TWO: 9}
    assert [answer.wanted for answer in ends.asked] == [[ONE], [TWO]]
    clock.now = 0.0
    assert due.positions([TWO], 1, last=True) == {TWO: 9}


def test_positions_hold_up_no_commit_for_long() -> None:
    """They are asked for in front of the commit that a rebalance waits for."""
    reader = OffsetReader({"bootstrap.servers": "127.0.0.1:1", "log_level": 0}, "g")
    begun = time.monotonic()
    assert Checkpoints(reader).positions([ONE], 1, last=True) == {}
    assert time.monotonic() - begun < POSITIONS_S + SLACK_S
    reader.close()
