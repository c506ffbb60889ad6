"""Topics on a real broker: creation by several workers at once, wrong partitions, check, deletion."""

import threading
import time
import uuid
from collections.abc import Iterator

import pytest
from confluent_kafka import Consumer

from app.errors import ConfigurationError, HoldfastError, UnavailableError
from app.settings import Settings
from app.topics import Names, check, connect, delete, ensure, specs

pytestmark = pytest.mark.broker


@pytest.fixture
def settings(broker: str) -> Iterator[Settings]:
    made = Settings(bootstrap=broker, namespace=f"topics-{uuid.uuid4().hex[:12]}", servers=3, routers=2)
    yield made
    delete(connect(made), made)


def test_several_workers_create_the_topics_at_once(settings: Settings) -> None:
    errors: list[HoldfastError] = []

    def create() -> None:
        try:
            ensure(connect(settings), settings)
        except HoldfastError as error:
            errors.append(error)

    workers = [threading.Thread(target=create) for _ in range(4)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join(timeout=60)
    assert errors == []
    assert check(connect(settings), settings) == []


def test_check_names_every_topic_that_is_missing(settings: Settings) -> None:
    problems = check(connect(settings), settings)
    assert len(problems) == len(specs(settings))
    assert all("holdfast topics create" in problem for problem in problems)


def test_another_number_of_partitions_is_refused_and_too_small_a_limit_is_found(settings: Settings) -> None:
    admin = connect(settings)
    ensure(admin, settings)
    more = Settings(**{**settings.model_dump(), "servers": 4, "max_record_bytes": 9_000_000})
    with pytest.raises(ConfigurationError, match="has 3 partitions, the settings say 4"):
        ensure(admin, more)
    problems = check(admin, more)
    assert any("has 3 partitions" in problem for problem in problems)
    assert any("max.message.bytes is 2162688" in problem for problem in problems)


def test_what_the_brokers_cannot_do_is_a_configuration_error(settings: Settings) -> None:
    many = Settings(**{**settings.model_dump(), "replication_factor": 100})
    with pytest.raises(ConfigurationError, match="refuse to create the topic"):
        ensure(connect(many), many)


def test_delete_refuses_while_a_member_is_in_the_group_and_then_removes_all(settings: Settings) -> None:
    admin = connect(settings)
    ensure(admin, settings)
    names = Names(settings.namespace)
    member = Consumer({"bootstrap.servers": settings.bootstrap, "group.id": names.group, "client.id": "w1"})
    member.subscribe([names.tasks])
    deadline = time.monotonic() + 30
    while not member.assignment():
        assert time.monotonic() < deadline, "no assignment"
        member.poll(0.1)
    with pytest.raises(UnavailableError, match=r"\(w1\): stop them first"):
        delete(admin, settings)
    assert check(admin, settings) == []
    member.close()
    assert set(delete(admin, settings)) == {*(spec.name for spec in specs(settings)), names.group}
    assert delete(admin, settings) == []
