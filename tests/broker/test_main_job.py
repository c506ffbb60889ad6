"""The main job under faults, short enough for every run of the tests; the long form is in `tests/soak`.

I1, I2, I3: nothing lost, nothing doubled, order kept, whatever is killed, frozen or restarted.
"""

import random
import time
from pathlib import Path

import pytest

from tests.support.broker import OwnBrokers
from tests.support.cluster import Workers
from tests.support.job import settle, when_sent
from tests.support.load import Load, Plan

pytestmark = [pytest.mark.broker, pytest.mark.timeout(400)]

SEED = 7
FROZEN_S = 8.0


def test_a_quiet_run_is_clean(workers: Workers) -> None:
    workers.start_ready("w1", "w2")
    load = Load(workers.config, workers.namespace, Plan(tasks=3_000, rate=None)).start()
    settle(workers, load)


def test_kills_and_a_frozen_worker_leave_a_clean_account(workers: Workers) -> None:
    rng = random.Random(SEED)
    running = dict(zip(("w1", "w2", "w3"), workers.start_ready("w1", "w2", "w3"), strict=True))
    plan = Plan(tasks=12_000, tenants=200, sessions=1_000, seed=SEED, rate=600)
    load = Load(workers.config, workers.namespace, plan).start()
    for share in (0.15, 0.4):
        when_sent(load, round(plan.tasks * (share + rng.random() * 0.15)))
        victim = rng.choice(sorted(running))
        running[victim].kill9()
        running[victim] = workers.start(victim)
    when_sent(load, round(plan.tasks * 0.7))
    frozen = running[rng.choice(sorted(running))]
    frozen.sigstop()
    time.sleep(FROZEN_S)
    frozen.sigcont()
    settle(workers, load)
    assert all(worker.running for worker in running.values()), workers.logs()


def test_a_frozen_worker_that_was_replaced_does_no_harm(workers: Workers) -> None:
    """It wakes up when others have its servers: what it still holds must not take effect."""
    first, _ = workers.start_ready("w1", "w2")
    plan = Plan(tasks=6_000, seed=SEED + 1, rate=500)
    load = Load(workers.config, workers.namespace, plan).start()
    when_sent(load, 2_000)
    first.sigstop()
    when_sent(load, 5_000)
    first.sigcont()
    settle(workers, load)


@pytest.mark.parametrize("how", ["restart", pytest.param("kill", marks=pytest.mark.soak)])
def test_a_broker_restart_needs_nobody(own_broker: OwnBrokers, tmp_path: Path, how: str) -> None:
    kafka = own_broker()
    kafka.start()
    with Workers(kafka.bootstrap, "main", tmp_path / "workers") as workers:
        workers.topics()
        started = workers.start_ready("w1", "w2")
        load = Load(workers.config, workers.namespace, Plan(tasks=6_000, seed=SEED, rate=400)).start()
        when_sent(load, 2_000)
        if how == "kill":
            kafka.kill()
        kafka.restart()
        settle(workers, load, timeout=180)
        assert all(worker.running for worker in started), workers.logs()
