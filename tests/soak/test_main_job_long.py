"""The long form of the main job, and of joining and leaving: `make soak`. Prints the accounts."""

import random
import time
from pathlib import Path

import pytest

from tests.support.broker import OwnBrokers
from tests.support.cluster import Worker, Workers
from tests.support.job import settle, when_sent
from tests.support.load import Load, Plan

pytestmark = [pytest.mark.broker, pytest.mark.soak, pytest.mark.timeout(1_800)]

FROZEN_S = 20.0
CHURN_S = 120.0
CHURN_EVERY_S = 5.0


@pytest.mark.parametrize("seed", [1, 2, 3])
def test_the_main_job(own_broker: OwnBrokers, tmp_path: Path, seed: int) -> None:
    """100,000 tasks, 3 workers, two kills at random moments, a freeze of 20 s, a restart of the broker."""
    rng = random.Random(seed)
    kafka = own_broker()
    kafka.start()
    with Workers(kafka.bootstrap, "soak", tmp_path / "workers") as workers:
        workers.topics()
        running = dict(zip(("w1", "w2", "w3"), workers.start_ready("w1", "w2", "w3"), strict=True))
        plan = Plan(tasks=100_000, tenants=1_000, sessions=5_000, seed=seed, rate=800)
        load = Load(workers.config, workers.namespace, plan).start()
        begun = time.monotonic()
        for when, fault in faults(rng):
            when_sent(load, round(plan.tasks * when))
            victim = rng.choice(sorted(running))
            print(f"{load.acknowledged} tasks: {fault} {'' if fault == 'restart' else victim}")
            if fault == "kill":
                replace(workers, running, victim)
            elif fault == "freeze":
                running[victim].sigstop()
                time.sleep(FROZEN_S)
                running[victim].sigcont()
            else:
                kafka.restart()
        account = settle(workers, load, timeout=600)
        print(f"seed {seed}: {account} ({time.monotonic() - begun:.0f} s)")
        assert all(worker.running for worker in running.values()), workers.logs()


def faults(rng: random.Random) -> list[tuple[float, str]]:
    """Two kills, one freeze and one restart, at random moments of the run in random order."""
    kinds = ["kill", "kill", "freeze", "restart"]
    rng.shuffle(kinds)
    return sorted(zip((rng.uniform(0.05, 0.85) for _ in kinds), kinds, strict=True))


def replace(workers: Workers, running: dict[str, Worker], victim: str) -> None:
    running[victim].kill9()
    running[victim] = workers.start(victim)


def test_a_worker_joins_and_leaves_every_5_seconds(workers: Workers) -> None:
    workers.start_ready("w1", "w2")
    plan = Plan(tasks=round(CHURN_S * 400), tenants=500, sessions=2_000, seed=9, rate=400)
    load = Load(workers.config, workers.namespace, plan).start()
    rng = random.Random(9)
    begun = time.monotonic()
    joined = 0
    while time.monotonic() - begun < CHURN_S:
        joined += 1
        guest = workers.start("w3")
        time.sleep(max(0.0, begun + joined * CHURN_EVERY_S - time.monotonic()))
        if rng.random() < 0.5:
            guest.kill9()
        else:
            assert guest.sigterm(20) == 0, guest.tail()
    account = settle(workers, load, timeout=300)
    print(f"{joined} joins: {account}")


def test_kills_without_end(workers: Workers) -> None:
    """Every two seconds one of four workers dies and is replaced, for two minutes."""
    names = ("w1", "w2", "w3", "w4")
    running = dict(zip(names, workers.start_ready(*names), strict=True))
    plan = Plan(tasks=40_000, tenants=500, sessions=2_000, seed=11, rate=330)
    load = Load(workers.config, workers.namespace, plan).start()
    rng = random.Random(11)
    kills = 0
    while load.running:
        time.sleep(2)
        replace(workers, running, rng.choice(names))
        kills += 1
    account = settle(workers, load, timeout=300)
    print(f"{kills} kills: {account}")
