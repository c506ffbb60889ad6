"""Three brokers, every topic on all of them, two of which must have a record: one of them is killed under load.

The account is the promise: nothing lost, nothing doubled, order kept, and nobody has to be restarted.
"""

from pathlib import Path

import pytest
from confluent_kafka.admin import AdminClient

from app.settings import Settings
from app.topics import Names, check, connect
from tests.support.cluster import Workers, wait_for
from tests.support.job import settle, when_sent
from tests.support.load import Load, Plan
from tests.support.three_brokers import ThreeBrokers

pytestmark = [pytest.mark.broker, pytest.mark.timeout(400)]

SEED = 11


def leader_of(bootstrap: str, topic: str, partition: int) -> int:
    admin = AdminClient({"bootstrap.servers": bootstrap, "log_level": 0})
    return int(admin.list_topics(topic, timeout=10).topics[topic].partitions[partition].leader)


@pytest.mark.parametrize(
    ("tasks", "kills"), [(1_500, 1), pytest.param(40_000, 4, marks=pytest.mark.soak)], ids=["once", "four times"]
)
def test_a_broker_that_is_killed_leaves_a_clean_account(tmp_path: Path, tasks: int, kills: int) -> None:
    with ThreeBrokers(tmp_path) as kafka, Workers(kafka.bootstrap, "main", tmp_path / "workers") as workers:
        workers.topics()
        settings = Settings(bootstrap=kafka.bootstrap, namespace="main")
        for broker in kafka.bootstrap.split(","):
            assert check(connect(Settings(bootstrap=broker, namespace="main")), settings) == [], broker
        assert replicas_of(kafka.bootstrap, Names("main").tasks) == [3] * settings.routers
        started = workers.start_ready("w1", "w2")
        load = Load(workers.config, "main", Plan(tasks=tasks, seed=SEED, rate=300)).start()
        for number in range(kills):
            when_sent(load, round(tasks * (number + 1) / (kills + 2)))
            victim = leader_of(kafka.bootstrap, Names("main").work, number)
            kafka.kill(victim)
            if number + 1 < kills:
                # Another one may be missing only when this one is whole again.
                kafka.start(victim)
                wait_for(lambda: not replicas_missing(kafka.bootstrap), 120, "all replicas are in sync")
        settle(workers, load, timeout=180)
        assert all(worker.running for worker in started), workers.logs()


def replicas_of(bootstrap: str, topic: str) -> list[int]:
    admin = AdminClient({"bootstrap.servers": bootstrap, "log_level": 0})
    return [len(part.replicas) for part in admin.list_topics(topic, timeout=10).topics[topic].partitions.values()]


def replicas_missing(bootstrap: str) -> bool:
    admin = AdminClient({"bootstrap.servers": bootstrap, "log_level": 0})
    topics = admin.list_topics(timeout=10).topics.values()
    return any(len(part.isrs) < len(part.replicas) for topic in topics for part in topic.partitions.values())
