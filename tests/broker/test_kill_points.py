"""Kill -9 at named points of a unit of work, of a restore and of a rebalance: clean each time."""

import signal

import pytest

from tests.support.cluster import Worker, Workers
from tests.support.job import settle, when_sent
from tests.support.load import Load, Plan

pytestmark = [pytest.mark.broker, pytest.mark.timeout(300)]

UNIT_POINTS = ("before-changelog", "before-records", "before-commit", "after-commit")
AFTERWARDS = 600
"""Tasks that are sent when the faults are over."""


def traffic(workers: Workers, seed: int) -> Load:
    """Tasks for as long as the test wants them."""
    plan = Plan(tasks=100_000, sessions=500, seed=seed, rate=300)
    return Load(workers.config, workers.namespace, plan).start()


def dies(victim: Worker) -> None:
    assert victim.wait_exit(60) == -signal.SIGKILL, victim.tail()


def finish(workers: Workers, load: Load) -> None:
    when_sent(load, load.acknowledged + AFTERWARDS)
    load.stop()
    settle(workers, load)


@pytest.mark.parametrize("passage", [pytest.param(1, marks=pytest.mark.soak), 7])
@pytest.mark.parametrize("point", UNIT_POINTS)
def test_in_a_unit_of_work(workers: Workers, point: str, passage: int) -> None:
    workers.start_ready("w1")
    load = traffic(workers, seed=passage)
    when_sent(load, 300)
    dies(workers.start("w2", HOLDFAST_CRASH_AT=f"{point}:{passage}"))
    workers.start("w2")
    finish(workers, load)


@pytest.mark.parametrize(
    "point",
    [
        "in-restore:1",
        pytest.param("in-restore:3", marks=pytest.mark.soak),
        pytest.param("in-rebalance:1", marks=pytest.mark.soak),
        "in-rebalance:2",
    ],
)
def test_while_places_change_hands(workers: Workers, point: str) -> None:
    """A newcomer dies while places move to it or from it; its successor has the same name."""
    workers.start_ready("w1")
    load = traffic(workers, seed=3)
    when_sent(load, 1_000)
    victim = workers.start("w2", HOLDFAST_CRASH_AT=point)
    if point == "in-rebalance:2" and victim.running:
        # Warming up ends in a rebalance of its own; if it has not come, this worker causes one.
        workers.start("w3")
    dies(victim)
    workers.start("w2")
    finish(workers, load)


def test_the_only_worker_dies_at_each_point_in_turn(workers: Workers) -> None:
    """Nobody is there to take over: the successor finds everything in Kafka."""
    load = traffic(workers, seed=5)
    for point in UNIT_POINTS:
        dies(workers.start("w1", HOLDFAST_CRASH_AT=f"{point}:3"))
    workers.start("w1")
    finish(workers, load)


@pytest.mark.soak
def test_the_successor_dies_in_its_restore_as_well(workers: Workers) -> None:
    first = workers.start_ready("w1")[0]
    load = traffic(workers, seed=6)
    when_sent(load, 1_000)
    first.kill9()
    for passage in (1, 2, 3):
        dies(workers.start("w1", HOLDFAST_CRASH_AT=f"in-restore:{passage}"))
    workers.start("w1")
    finish(workers, load)
