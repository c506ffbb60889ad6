"""What a canary concludes: every fault is found, and nothing else is called one."""

import json

import pytest

from app.errors import HoldfastError
from app.observe.canary import GRACE_S, Answer, Lane, Saved, Tally, decode, encode

RUN = "mine"


class Bench:
    """A lane whose session answers, or does not, as a test says."""

    def __init__(
        self, saved: Saved | None = None, *, run: str = RUN, stands: int = 0, may_forget: bool = False
    ) -> None:
        self.tally = Tally()
        self.now = 100.0
        self.run = run
        self.lane = Lane("acme", "one", run, self.tally, saved=saved, may_forget=may_forget)
        self.state = (stands, "before" if stands else "")

    def open(self) -> "Bench":
        self.lane.asked(self.answer(0))
        self.lane.reserve()
        return self

    def answer(self, number: int, *, run: str | None = None, worker: str = "w1", after: float = 0.01) -> Answer:
        self.now += after
        return Answer(number, run or self.run, *self.state, worker=worker, server=3, at=self.now)

    def send(self, *, confirm: bool = True) -> int:
        number = self.lane.send(self.now)
        if confirm:
            self.lane.confirm(number)
        return number

    def perform(self, number: int, **more: object) -> None:
        self.lane.take(self.answer(number, **more))  # type: ignore[arg-type]
        self.state = (number, self.run)

    def work(self, count: int) -> "Bench":
        for _ in range(count):
            self.perform(self.send())
        return self

    def later(self, seconds: float) -> None:
        self.now += seconds
        self.lane.tick(self.now)

    def faults(self) -> dict[str, int]:
        names = ("failed", "lost", "doubled", "out_of_order")
        return {name: count for name in names if (count := getattr(self.tally, name))}


def test_tasks_that_are_performed_in_order_are_no_fault() -> None:
    bench = Bench().open().work(50)
    bench.later(GRACE_S + 1)
    bench.lane.finish()
    assert (bench.tally.sent, bench.tally.performed, bench.faults(), bench.lane.waiting) == (50, 50, {}, 0)
    assert bench.tally.clean


def test_a_task_that_is_passed_over_is_lost_after_a_while() -> None:
    bench = Bench().open()
    bench.send()
    bench.perform(bench.send())
    bench.later(GRACE_S - 1)
    assert bench.faults() == {}
    bench.later(2)
    assert bench.faults() == {"lost": 1}


def test_a_task_that_comes_after_a_later_one_was_out_of_order() -> None:
    bench = Bench().open()
    first, second = bench.send(), bench.send()
    bench.perform(second)
    bench.lane.take(bench.answer(first))
    bench.later(GRACE_S + 1)
    assert bench.faults() == {"out_of_order": 1}


def test_a_second_result_is_a_doubled_one() -> None:
    bench = Bench().open().work(3)
    bench.lane.take(bench.answer(2))
    assert bench.faults() == {"doubled": 1}


def test_a_state_that_goes_back_has_lost_an_effect() -> None:
    bench = Bench().open().work(3)
    bench.state = (1, RUN)
    bench.perform(bench.send())
    assert bench.faults() == {"lost": 1}


def test_a_state_that_has_the_task_already_has_its_effect_twice() -> None:
    bench = Bench().open().work(3)
    number = bench.send()
    bench.state = (number, RUN)
    bench.perform(number)
    assert bench.faults() == {"doubled": 1}


def test_a_failed_task_changes_nothing_and_is_counted() -> None:
    bench = Bench().open().work(2)
    bench.lane.take(Answer(bench.send(), RUN, None, "", "w1", 3, bench.now))
    bench.work(2)
    assert bench.faults() == {"failed": 1}


def test_what_the_brokers_have_not_confirmed_may_be_there_or_not() -> None:
    bench = Bench().open().work(1)
    absent, there = bench.send(confirm=False), bench.send(confirm=False)
    bench.lane.refuse(absent)
    bench.lane.refuse(there)
    bench.perform(there)
    bench.work(1)
    bench.later(GRACE_S + 1)
    assert (bench.faults(), bench.lane.unconfirmed, bench.lane.waiting) == ({}, 0, 0)


def test_a_report_of_the_brokers_may_come_after_the_result() -> None:
    bench = Bench().open()
    lost, there = bench.send(confirm=False), bench.send(confirm=False)
    bench.perform(there)
    bench.lane.confirm(there)
    bench.lane.confirm(lost)
    bench.later(GRACE_S + 1)
    assert bench.faults() == {"lost": 1}


def test_late_results_pauses_and_takeovers_are_measured() -> None:
    bench = Bench().open().work(1)
    first, second = bench.send(), bench.send()
    bench.perform(first, after=2.5, worker="w2")
    bench.perform(second, worker="w2")
    assert bench.tally.late == 2
    assert bench.tally.pause_s == pytest.approx(2.5)
    [found] = bench.lane.takeovers
    assert (found.before, found.after) == ("w1", "w2")
    assert found.gap_s == pytest.approx(2.5)
    bench.send()
    bench.later(4.0)
    assert bench.tally.pause_s == pytest.approx(4.0)
    assert bench.lane.overdue(bench.now) == 1


def test_idleness_is_no_pause() -> None:
    bench = Bench().open().work(1)
    bench.later(60)
    bench.work(1)
    assert bench.tally.pause_s == pytest.approx(0.01)


def restarted(bench: Bench, **more: bool) -> Bench:
    """The next run, with what the ledger says, at the session as it stands."""
    again = Bench(bench.lane.save(), run="next", **more)
    again.state = bench.state
    return again


def test_a_restart_goes_on_behind_what_may_have_been_sent() -> None:
    bench = restarted(Bench().open().work(5)).open()
    number = bench.send()
    assert number > 5
    bench.perform(number)
    bench.work(3)
    bench.later(GRACE_S + 1)
    assert bench.faults() == {}


def test_a_restart_hears_what_the_run_before_it_did_not() -> None:
    bench = Bench().open().work(2)
    waiting = [bench.send(), bench.send()]
    again = restarted(bench)
    for number in waiting:
        again.lane.take(again.answer(number, run=RUN))
        again.state = (number, RUN)
    again.open().work(2)
    again.later(GRACE_S + 1)
    assert (again.faults(), again.tally.performed) == ({}, 2)


def test_a_restart_finds_what_was_lost_before_it() -> None:
    bench = Bench().open().work(2)
    bench.send()
    again = restarted(bench).open().work(1)
    again.later(GRACE_S + 1)
    assert again.faults() == {"lost": 1}


def test_a_restart_after_the_ledger_was_written_too_early_is_no_fault() -> None:
    bench = Bench().open().work(2)
    ledger = bench.lane.save()
    bench.work(40)
    again = Bench(ledger, run="next")
    again.state = bench.state
    for number in range(3, 43):
        again.lane.take(again.answer(number, run=RUN))
    again.open().work(3)
    again.later(GRACE_S + 1)
    assert again.faults() == {}


def test_last_words_of_the_run_before_are_no_fault() -> None:
    again = restarted(Bench().open().work(5)).open().work(2)
    again.lane.take(again.answer(6, run=RUN))
    again.state = (6, RUN)
    again.perform(again.send())
    again.work(2)
    assert again.faults() == {}


def test_a_session_that_went_back_between_two_runs_has_lost_something() -> None:
    bench = Bench().open().work(9)
    bench.state = (4, RUN)
    again = restarted(bench).open()
    assert again.faults() == {"lost": 1}


def test_a_session_that_was_deleted_because_it_was_idle_is_no_fault() -> None:
    bench = Bench().open().work(9)
    bench.state = (0, "")
    assert restarted(bench, may_forget=True).open().faults() == {}
    assert restarted(bench).open().faults() == {"lost": 1}


def test_without_a_ledger_the_session_says_where_it_stands() -> None:
    bench = Bench(stands=70).open()
    assert bench.send() == 71
    bench.perform(71)
    assert bench.faults() == {}


def test_a_ledger_that_is_older_than_the_session_is_no_fault() -> None:
    bench = Bench(Saved((), 1_001, 40), stands=5_000).open()
    assert bench.send() == 5_001


def test_a_second_canary_is_noticed() -> None:
    bench = Bench().open().work(2)
    bench.state = (7, "other")
    with pytest.raises(HoldfastError, match="another canary sends to tenant acme"):
        bench.perform(bench.send())


def test_a_ledger_is_read_as_it_was_written() -> None:
    bench = Bench().open().work(3)
    bench.send()
    text = json.dumps(encode({("acme", "one"): bench.lane}, {0: 12, 3: 7}, "these topics"))
    lanes, offsets = decode(json.loads(text), "these topics")
    assert lanes == {("acme", "one"): bench.lane.save()}
    assert lanes["acme", "one"].waiting == (4,)
    assert offsets == {0: 12, 3: 7}


@pytest.mark.parametrize(
    "ledger", [None, [], {}, {"v": 2}, {"v": 1, "identity": "x"}, {"v": 1, "identity": "i", "lanes": 3}]
)
def test_what_is_no_ledger_of_these_topics_says_nothing(ledger: object) -> None:
    assert decode(ledger, "i") == ({}, {})
    bench = Bench().open().work(1)
    assert decode(encode({("acme", "one"): bench.lane}, {}, "others"), "i") == ({}, {})
