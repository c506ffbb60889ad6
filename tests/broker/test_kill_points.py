"""Kill -9 at named points of a unit of work, of a restore and of a rebalance: clean each time."""

import signal

import pytest

from tests.support.cluster import Workers
from tests.support.job import settle, when_sent
from tests.support.load import Load, Plan

pytestmark = [pytest.mark.broker, pytest.mark.timeout(300)]

UNIT_POINTS = ("before-changelog", "before-offsets", "before-commit", "after-commit")


@pytest.mark.parametrize("passage", [1, 7])
@pytest.mark.parametrize("point", UNIT_POINTS)
def test_in_a_unit_of_work(workers: Workers, point: str, passage: int) -> None:
    workers.start_ready("w1")
    load = Load(workers.config, workers.namespace, Plan(tasks=4_000, seed=passage, rate=400)).start()
    when_sent(load, 500)
    victim = workers.start("w2", HOLDFAST_CRASH_AT=f"{point}:{passage}")
    assert victim.wait_exit(60) == -signal.SIGKILL
    workers.start("w2")
    settle(workers, load)


@pytest.mark.parametrize("point", ["in-restore:1", "in-restore:3", "in-rebalance:1", "in-rebalance:2"])
def test_while_places_change_hands(workers: Workers, point: str) -> None:
    """A newcomer dies while places move to it or from it; its successor has the same name."""
    workers.start_ready("w1")
    load = Load(workers.config, workers.namespace, Plan(tasks=4_000, seed=3, rate=400)).start()
    when_sent(load, 1_000)
    victim = workers.start("w2", HOLDFAST_CRASH_AT=point)
    if point == "in-rebalance:2":
        # The second rebalance of the newcomer is the one that this worker causes.
        victim.wait_ready()
        workers.start("w3")
    assert victim.wait_exit(60) == -signal.SIGKILL
    workers.start("w2")
    settle(workers, load)


def test_the_only_worker_dies_at_each_point_in_turn(workers: Workers) -> None:
    """Nobody is there to take over: the successor finds everything in Kafka."""
    load = Load(workers.config, workers.namespace, Plan(tasks=3_000, seed=5, rate=300)).start()
    for point in UNIT_POINTS:
        victim = workers.start("w1", HOLDFAST_CRASH_AT=f"{point}:3")
        assert victim.wait_exit(60) == -signal.SIGKILL
    workers.start("w1")
    settle(workers, load)


def test_the_successor_dies_in_its_restore_as_well(workers: Workers) -> None:
    first = workers.start_ready("w1")[0]
    load = Load(workers.config, workers.namespace, Plan(tasks=3_000, seed=6, rate=400)).start()
    when_sent(load, 1_000)
    first.kill9()
    for passage in (1, 2, 3):
        victim = workers.start("w1", HOLDFAST_CRASH_AT=f"in-restore:{passage}")
        assert victim.wait_exit(60) == -signal.SIGKILL
    workers.start("w1")
    settle(workers, load)
