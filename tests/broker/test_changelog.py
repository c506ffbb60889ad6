"""The changelog thread: what it does when the log is not what the rows say, or when nobody answers."""

import threading
from collections.abc import Callable, Iterator

import pytest
from confluent_kafka import Producer
from confluent_kafka.admin import AdminClient
from confluent_kafka.cimpl import NewTopic

from app.engine import changelog as changelog_module
from app.engine.changelog import Changelog
from app.engine.stores.memory import MemoryStore
from app.engine.table import Rows
from tests.support.broker import OwnBrokers
from tests.support.cluster import wait_for

pytestmark = pytest.mark.broker

Make = Callable[[str], Changelog]
ROWS = {b"a": b"1", b"b": b"2", b"c": b"3"}


@pytest.fixture
def failures() -> list[BaseException]:
    return []


@pytest.fixture
def start(failures: list[BaseException]) -> Iterator[Make]:
    made: list[Changelog] = []

    def make(bootstrap: str) -> Changelog:
        config = {"bootstrap.servers": bootstrap, "log_level": 0}
        made.append(Changelog(config, "changelog-test", failed=failures.append, max_record_bytes=2**20))
        made[-1].start()
        return made[-1]

    yield make
    for thread in made:
        thread.stop()


def written(bootstrap: str, topic: str) -> None:
    """Make a changelog that holds ``ROWS``."""
    admin = AdminClient({"bootstrap.servers": bootstrap, "log_level": 0})
    admin.create_topics([NewTopic(topic, 1, 1)])[topic].result(20)
    producer = Producer({"bootstrap.servers": bootstrap, "log_level": 0})
    for key, row in ROWS.items():
        producer.produce(topic, row, key, partition=0)
    assert producer.flush(20) == 0


class Restored(threading.Event):
    def __call__(self, replayed: int) -> None:
        self.set()


def rows_beyond_the_log(topic: str) -> Rows:
    store = MemoryStore()
    store.apply([(b"ghost", b"1")], 1_000)
    return Rows(store, topic, 0)


@pytest.mark.parametrize("outage", [False, True], ids=["", "outage"])
def test_rows_beyond_the_log_are_restored_anew(
    own_broker: OwnBrokers, start: Make, failures: list[BaseException], outage: bool
) -> None:
    """While the broker is away, that waits for it."""
    kafka = own_broker()
    kafka.start()
    written(kafka.bootstrap, "changelog")
    rows, restored = rows_beyond_the_log("changelog"), Restored()
    if outage:
        kafka.kill()
    changelog = start(kafka.bootstrap)
    changelog.restore("server-0", [rows], {("changelog", 0): len(ROWS)}, restored)
    if outage:
        assert not restored.wait(3)
        assert failures == []
        kafka.start()
    assert restored.wait(30)
    assert dict(rows.store.scan(b"")) == ROWS
    assert rows.store.position >= len(ROWS)
    assert failures == []


def test_a_standby_whose_position_is_gone_begins_anew(
    broker: str, namespace: str, start: Make, failures: list[BaseException]
) -> None:
    topic = f"{namespace}.changelog"
    written(broker, topic)
    rows = rows_beyond_the_log(topic)
    start(broker).follow("server-0", [rows])
    wait_for(lambda: dict(rows.store.scan(b"")) == ROWS, 20, "the rows of the log")
    assert failures == []


class Confirmed(MemoryStore):
    """Counts how often it was told that it is complete."""

    __slots__ = ("at", "count")

    def __init__(self) -> None:
        super().__init__()
        self.unconfirmed = True
        self.count = 0
        self.at = 0

    def confirm(self) -> None:
        self.count += 1
        self.at = self.position


def test_rows_of_a_silent_changelog_are_confirmed_again_and_again(
    broker: str, namespace: str, start: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The consumer tells the end of a log once; for a day without changes nobody would know that none was missed."""
    monkeypatch.setattr(changelog_module, "ASK_S", 0.1)
    topic = f"{namespace}.changelog"
    written(broker, topic)
    store = Confirmed()
    start(broker).follow("server-0", [Rows(store, topic, 0)])
    wait_for(lambda: store.count >= 5, 20, "being confirmed")
    assert (store.at, dict(store.scan(b""))) == (len(ROWS), ROWS)


def test_restored_rows_are_confirmed(broker: str, namespace: str, start: Make) -> None:
    topic = f"{namespace}.changelog"
    written(broker, topic)
    store, restored = Confirmed(), Restored()
    start(broker).restore("server-0", [Rows(store, topic, 0)], {(topic, 0): len(ROWS)}, restored)
    assert restored.wait(20)
    assert (store.count > 0, store.at) == (True, len(ROWS))
