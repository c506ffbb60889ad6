"""When the open unit is sealed."""

import math
import time
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any, cast

import pytest

from app.engine.fetch import Batch, Chunk
from app.engine.flow import SETTLE_MAX_S, SETTLE_S, SLOW_COMMITS, SLOW_S, Flow
from app.engine.offsets import Committed, Partition
from app.engine.options import EngineOptions
from app.engine.places import Place, Places
from app.engine.producer import Answer
from app.engine.unit_of_work import UNIT_RECORDS, Committer, Submission

INTERVAL_S = 60.0
WHERE, OTHER = ("tasks", 0), ("tasks", 1)


class Served:
    """A resident that may be busy."""

    running = False
    paused: tuple[Partition, ...] = ()

    def pausing(self) -> tuple[Partition, ...]:
        return self.paused

    def busy(self) -> bool:
        return self.running

    def before_seal(self) -> None:
        """Nothing is kept back."""

    def hold(self, topic: str) -> int | None:
        return None

    def after_commit(self, offsets: object) -> None:
        """Nothing waits."""


def place_of(name: str, where: Partition, served: Served) -> Any:
    return SimpleNamespace(name=name, partitions=[where], rows={}, served=served, committed={where: Committed(3, None)})


class Bench:
    """A flow of one open place, whose units are answered by the test."""

    def __init__(self) -> None:
        self.served = Served()
        self.posted: list[Callable[[], None]] = []
        self.sent: list[Submission] = []
        self.place = place_of("router-0", WHERE, self.served)
        self.other = place_of("router-1", OTHER, Served())
        self.open = [self.place]
        places = SimpleNamespace(all={"router-0": self.place, "router-1": self.other}, open=lambda: self.open)
        options = SimpleNamespace(
            commit_interval=INTERVAL_S,
            kinds=(),
            kafka={"bootstrap.servers": "127.0.0.1:1", "log_level": 0},
            group="g",
            name="w",
            incarnation=1,
            max_record_bytes=1_000_000,
        )
        self.flow = Flow(
            cast("EngineOptions", options),
            places=cast("Places", places),
            committer=cast("Committer", SimpleNamespace(submit=self.sent.append)),
            post=self.posted.append,
            not_committed=lambda submission: None,
            committed=lambda offsets: None,
            lost_range=lambda: None,
            failed=lambda error: None,
        )

    def fetches(self) -> tuple[set[Partition], dict[Partition, int]]:
        """What the fetch thread is to fetch no more, and what it is to fetch from where, since it was asked last."""
        fetcher = self.flow.fetcher
        asked = fetcher._remove, fetcher._add
        fetcher._remove, fetcher._add = set(), {}
        return asked

    def arrives(self, *partitions: Partition, epoch: int) -> None:
        """A record of each partition arrives, fetched in this epoch."""
        batches = [Batch(*where, [cast("Any", object())], 1) for where in partitions]
        self.flow.fetcher._ahead += 1
        self.flow._arrived(Chunk(epoch, batches))

    def backlog(self) -> list[list[Partition]]:
        return [[(batch.topic, batch.partition) for batch in chunk.batches] for chunk in self.flow._backlog]

    def write(self) -> None:
        self.flow.unit.offsets[WHERE] = 1

    def commit(self, took_s: float = 0.0) -> None:
        """Seal the unit and answer it, as if after ``took_s``."""
        self.flow.seal()
        (submission,) = self.sent
        self.sent.clear()
        submission.at -= took_s
        submission.answer = Answer.COMMITTED
        submission.answered(submission)
        for event in self.posted:
            event()
        self.posted.clear()


@pytest.fixture
def bench() -> Bench:
    return Bench()


def test_nothing_is_due_when_nothing_has_happened(bench: Bench) -> None:
    assert (bench.flow.due_at, bench.flow.due) == (math.inf, False)


def test_a_unit_without_more_to_do_is_due_at_once(bench: Bench) -> None:
    bench.write()
    assert bench.flow.due


def test_a_place_that_was_opened_is_committed_though_nothing_was_read(bench: Bench) -> None:
    bench.flow._positions = {WHERE: 7}
    bench.flow.begin_with(cast("Place", bench.place))
    assert bench.flow.due
    bench.flow.seal()
    assert bench.sent[0].unit.offsets == {WHERE: 7}


def test_an_idle_unit_waits_until_the_commit_before_has_settled(bench: Bench) -> None:
    bench.write()
    bench.commit()
    committed = time.monotonic()
    bench.write()
    assert committed < bench.flow.due_at <= committed + SETTLE_MAX_S


@pytest.mark.parametrize(("took_s", "least_s"), [(SLOW_S, SETTLE_S), (0.015, 0.013), (5.0, SETTLE_MAX_S)])
def test_after_slow_commits_it_waits_longer(bench: Bench, took_s: float, least_s: float) -> None:
    for _ in range(SLOW_COMMITS - 1):
        bench.write()
        bench.commit(took_s)
    bench.write()
    begun = time.monotonic()
    bench.commit(took_s)
    committed = time.monotonic()
    bench.write()
    assert begun + least_s - 1e-6 <= bench.flow.due_at
    assert bench.flow.due_at <= committed + min(least_s + 2 * (committed - begun), SETTLE_MAX_S) + 1e-6


def test_a_single_slow_commit_makes_nobody_wait(bench: Bench) -> None:
    begun = time.monotonic()
    for took_s in (5.0, 0.0, 5.0, 5.0):
        bench.write()
        bench.commit(took_s)
    committed = time.monotonic()
    bench.write()
    assert bench.flow.due_at <= committed + SETTLE_S + 2 * max(0.0, committed - begun - SLOW_S)


def test_a_unit_is_not_due_while_another_one_is_on_its_way(bench: Bench) -> None:
    bench.write()
    bench.flow.seal()
    bench.write()
    assert bench.flow.due_at == math.inf


def test_a_unit_with_more_to_do_is_due_at_its_deadline_or_when_it_is_full(bench: Bench) -> None:
    bench.write()
    bench.flow.fetch()
    bench.arrives(WHERE, epoch=1)
    assert bench.flow.due_at == bench.flow.unit.deadline == pytest.approx(time.monotonic() + INTERVAL_S, abs=5)
    bench.flow.unit.weight = UNIT_RECORDS
    assert bench.flow.due


def test_a_unit_waits_for_handlers_that_may_end_within_it(bench: Bench) -> None:
    bench.write()
    bench.served.running = True
    assert bench.flow.due_at == bench.flow.unit.deadline
    bench.flow.hurry()
    assert bench.flow.due


def test_who_opens_another_place_leaves_alone_what_is_fetched(bench: Bench) -> None:
    bench.flow.fetch()
    assert bench.fetches() == (set(), {WHERE: 3})
    bench.arrives(WHERE, epoch=1)
    bench.flow._positions[WHERE] = 5
    bench.open.append(bench.other)
    bench.flow.fetch()
    assert bench.fetches() == (set(), {OTHER: 3})
    bench.flow.fetch()
    assert bench.fetches() == (set(), {})
    assert bench.backlog() == [[WHERE]]


def test_what_was_fetched_of_a_place_that_is_closed_is_dropped_and_nothing_else(bench: Bench) -> None:
    bench.open.append(bench.other)
    bench.flow.fetch()
    bench.fetches()
    bench.arrives(WHERE, OTHER, epoch=1)
    bench.arrives(OTHER, epoch=1)
    bench.flow._positions[OTHER] = 5
    bench.open.remove(bench.other)
    bench.flow.leave(bench.other)
    assert bench.fetches() == ({OTHER}, {})
    assert bench.backlog() == [[WHERE]]
    assert bench.flow.fetcher._ahead == 1

    bench.arrives(OTHER, epoch=1)
    assert bench.backlog() == [[WHERE]], "what is on its way is dropped as well"
    bench.open.append(bench.other)
    bench.flow.fetch()
    assert bench.fetches() == (set(), {OTHER: 3}), "it goes on where the log says"
    bench.arrives(OTHER, epoch=2)
    assert bench.backlog() == [[WHERE]], "and what was fetched before that is no part of it"
    bench.arrives(OTHER, epoch=3)
    assert bench.backlog() == [[WHERE], [OTHER]]


def test_a_place_that_takes_no_more_is_fetched_on_from_where_it_was(bench: Bench) -> None:
    bench.flow.fetch()
    bench.fetches()
    bench.flow._positions[WHERE] = 8
    bench.arrives(WHERE, epoch=1)
    bench.served.paused = (WHERE,)
    bench.flow.check_pauses()
    assert bench.fetches() == ({WHERE}, {})
    assert bench.backlog() == []
    bench.served.paused = ()
    bench.flow.check_pauses()
    assert bench.fetches() == (set(), {WHERE: 8})


def test_a_change_that_has_not_been_taken_up_is_undone_by_the_next(bench: Bench) -> None:
    fetcher = bench.flow.fetcher
    assert fetcher.change((), {WHERE: 1, OTHER: 1}) == 1
    assert fetcher.change([OTHER], {}) == 2
    assert bench.fetches() == (set(), {WHERE: 1})
    fetcher.change([WHERE], {WHERE: 4})
    fetcher.change([WHERE], {WHERE: 6})
    assert bench.fetches() == ({WHERE}, {WHERE: 6})


def test_only_what_is_still_fetched_can_be_lost(bench: Bench) -> None:
    lost: list[bool] = []
    bench.flow._on_lost_range = lambda: lost.append(True)
    bench.flow.fetch()
    bench.flow._lost_range(OTHER, 1)
    bench.flow._lost_range(WHERE, 0)
    assert not lost
    bench.flow._lost_range(WHERE, 1)
    assert lost
