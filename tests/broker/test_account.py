"""The account as it is read from a real broker: committed records only, up to the end at the start."""

import json
import time

import pytest
from confluent_kafka import Producer

from app.errors import UnavailableError
from app.observe.account import Account
from app.observe.reading import Config, end_offsets, read_account, wait_for_results
from app.settings import Settings
from app.topics import Names, connect, ensure

pytestmark = pytest.mark.broker


@pytest.fixture
def config(broker: str, namespace: str) -> Config:
    settings = Settings(bootstrap=broker, namespace=namespace, routers=2, servers=2)
    ensure(connect(settings), settings)
    return {"bootstrap.servers": broker}


def deadline() -> float:
    return time.monotonic() + 30


class Cluster:
    """Plays workers and producers: writes tasks and their answers, each call one transaction."""

    def __init__(self, config: Config, namespace: str) -> None:
        self.names = Names(namespace)
        self.producer = Producer({**config, "transactional.id": f"{namespace}.player"})
        self.producer.init_transactions(30)
        self.sent = 0
        self.performed = 0
        self.offset = 0

    def send(self, count: int, *, abort: bool = False) -> None:
        self.producer.begin_transaction()
        for _ in range(count):
            self.producer.produce(self.names.tasks, self.value(), b"t", partition=1)
            self.offset += 1
            self.sent += not abort
        self._end(abort)

    def answer(self, offsets: range, *, abort: bool = False) -> None:
        self.producer.begin_transaction()
        for number, offset in enumerate(offsets, self.performed + 1):
            self.producer.produce(self.names.results, self.result(offset, number), b"t", partition=0)
        self.performed += 0 if abort else len(offsets)
        self._end(abort)

    def _end(self, abort: bool) -> None:
        if abort:
            self.producer.flush()
            self.producer.abort_transaction(30)
        else:
            self.producer.commit_transaction(30)
        # The control record of the transaction takes an offset as well.
        self.offset += 1

    @staticmethod
    def value() -> bytes:
        return json.dumps({"tenant": "t", "session": "s", "type": "x", "payload": {}}).encode()

    @staticmethod
    def result(offset: int, sequence: int) -> bytes:
        fields = {"task": f"1/{offset}", "tenant": "t", "session": "s", "type": "x", "status": "done"}
        return json.dumps({**fields, "sequence": sequence, "source": {"partition": 1, "offset": offset}}).encode()


def test_only_committed_records_count(config: Config, namespace: str) -> None:
    cluster = Cluster(config, namespace)
    cluster.send(5)
    cluster.send(3, abort=True)
    cluster.answer(range(2), abort=True)
    cluster.answer(range(5))
    assert read_account(config, namespace, deadline=deadline()) == Account(sent=5, performed=5)


def test_an_open_transaction_does_not_hold_up_the_reader(config: Config, namespace: str) -> None:
    cluster = Cluster(config, namespace)
    cluster.send(2)
    cluster.answer(range(2))
    cluster.producer.begin_transaction()
    cluster.producer.produce(cluster.names.results, b"open", b"t", partition=0)
    cluster.producer.flush()
    assert read_account(config, namespace, deadline=deadline()).ok
    cluster.producer.abort_transaction(30)


def test_what_is_missing_is_found(config: Config, namespace: str) -> None:
    cluster = Cluster(config, namespace)
    cluster.send(5)
    cluster.answer(range(1, 5))
    account = read_account(config, namespace, deadline=deadline())
    assert (account.sent, account.performed, account.lost) == (5, 4, 1)
    assert account.examples == ("lost: tasks 1/0 of t s has no result",)


def test_a_reading_since_some_offsets(config: Config, namespace: str) -> None:
    cluster = Cluster(config, namespace)
    cluster.send(4)
    cluster.answer(range(4))
    names = Names(namespace)
    since = end_offsets(config, [names.tasks, names.results, names.dead_letters], deadline=deadline())
    first = cluster.offset - 1
    cluster.send(3)
    cluster.answer(range(first, first + 3))
    account = read_account(config, namespace, since=since, deadline=deadline())
    assert account == Account(sent=3, performed=3)


def test_waiting_ends_at_the_count_or_when_nothing_moves(config: Config, namespace: str) -> None:
    cluster = Cluster(config, namespace)
    cluster.send(3)
    cluster.answer(range(3))
    assert wait_for_results(config, namespace, 3, deadline=deadline()) == 3
    assert wait_for_results(config, namespace, 4, deadline=deadline(), quiet_s=0.5) == 3


def test_a_broker_that_does_not_answer_is_said(namespace: str) -> None:
    nobody: Config = {"bootstrap.servers": "127.0.0.1:1"}
    with pytest.raises(UnavailableError, match="is unknown"):
        end_offsets(nobody, [Names(namespace).tasks], deadline=time.monotonic() + 0.5)
