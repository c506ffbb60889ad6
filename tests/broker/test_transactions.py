"""Transactions on a real broker: what is written, and what becomes of what is not."""

import asyncio
from collections.abc import Callable, Iterator, Mapping, Sequence
from types import SimpleNamespace
from typing import Any

import pytest
from aiokafka import errors as kafka_errors
from confluent_kafka import Consumer, Message, Producer, TopicPartition
from confluent_kafka.admin import AdminClient
from confluent_kafka.cimpl import NewTopic

from app.engine.janitor import Janitor
from app.engine.offsets import OffsetReader, Partition
from app.engine.transaction import NotWrittenError, Transactions
from app.engine.wire import BATCH_BYTES, Batches, Member
from app.protocol.murmur2 import partition_of
from app.protocol.unit import Tag
from tests.support.broker import new_namespace
from tests.support.cluster import wait_for

pytestmark = pytest.mark.broker

PARTITIONS = 3
TIMEOUT_S = 20.0
PATIENCE_S = 150.0
TOPIC_BYTES = 1_048_588
NOBODY = Member("", -1, "")
"""No membership: the broker takes such offsets while the group has no members."""


class Bench:
    """A topic, and transactions that write to it."""

    def __init__(self, bootstrap: str) -> None:
        self.name = new_namespace()
        self.topic = f"{self.name}.records"
        self.config: dict[str, Any] = {"bootstrap.servers": bootstrap, "log_level": 0}
        self._client = {"bootstrap_servers": [bootstrap], "client_id": "test"}
        self._made: list[Transactions] = []
        admin = AdminClient(self.config)
        new = NewTopic(self.topic, PARTITIONS, 1, config={"max.message.bytes": str(TOPIC_BYTES)})
        admin.create_topics([new])[self.topic].result(TIMEOUT_S)

    def transactions(self) -> Transactions:
        """Of one transactional id, however often it is asked for."""
        made = Transactions(self._client, self.name)
        made.initialise(TIMEOUT_S)
        self._made.append(made)
        return made

    def write(
        self,
        transactions: Transactions,
        records: Mapping[Partition, Batches],
        others: Sequence[Mapping[str, Any]] = (),
        offsets: Mapping[Partition, int] | None = None,
        member: Member = NOBODY,
        timeout_s: float = TIMEOUT_S,
    ) -> None:
        member = Member(self.name, member.generation, member.member_id)
        transactions.write(records, others, offsets or {}, metadata="w 1 1 c", member=member, timeout_s=timeout_s)

    def read(self) -> dict[int, list[Message]]:
        """All committed records of the topic, by partition."""
        consumer = Consumer(
            {**self.config, "group.id": "reader", "enable.auto.commit": False, "enable.partition.eof": True}
        )
        consumer.assign([TopicPartition(self.topic, number, 0) for number in range(PARTITIONS)])
        found: dict[int, list[Message]] = {number: [] for number in range(PARTITIONS)}
        ended = 0
        while ended < PARTITIONS:
            [message] = consumer.consume(1, TIMEOUT_S)
            if message.error() is None:
                found[message.partition() or 0].append(message)
            else:
                ended += 1
        consumer.close()
        return found

    def close(self) -> None:
        for transactions in self._made:
            transactions.close()


@pytest.fixture
def bench(broker: str) -> Iterator[Bench]:
    made = Bench(broker)
    yield made
    made.close()


def records(*values: bytes) -> Batches:
    made = Batches()
    made.add(((b"k", value) for value in values), 0)
    return made


def test_records_and_offsets_are_written_at_once(bench: Bench) -> None:
    transactions = bench.transactions()
    headers = [("origin", b"0:7"), ("empty", b"")]
    others: list[dict[str, Any]] = [
        {"topic": bench.topic, "partition": 0, "key": None, "value": None, "headers": headers},
        {"topic": bench.topic, "key": b"tenant", "value": b"routed"},
    ]
    bench.write(transactions, {(bench.topic, 0): records(b"1", b"2")}, others, {(bench.topic, 1): 42})
    bench.write(transactions, {(bench.topic, 0): records(b"3")})
    found = bench.read()
    assert [message.value() for message in found[0]][:3] == [b"1", b"2", None]
    assert found[0][2].headers() == headers
    assert found[0][2].key() is None
    assert found[0][-1].value() == b"3"
    routed = found[partition_of(b"tenant", PARTITIONS)]
    assert b"routed" in [message.value() for message in routed]
    reader = OffsetReader(bench.config, bench.name)
    committed = reader.committed([(bench.topic, 1)])[bench.topic, 1]
    reader.close()
    assert committed.offset == 42
    assert committed.tag == Tag("w", 1, 1)


def test_more_than_a_batch_holds_stays_in_order(bench: Bench) -> None:
    values = [b"%06d" % number + bytes(5_000) for number in range(3 * BATCH_BYTES // 5_000)]
    transactions = bench.transactions()
    for half in (values[: len(values) // 2], values[len(values) // 2 :]):
        bench.write(transactions, {(bench.topic, 2): records(*half)})
    assert [message.value() for message in bench.read()[2]] == values


def test_a_record_that_the_topic_does_not_take_leaves_nothing(bench: Bench) -> None:
    transactions = bench.transactions()
    with pytest.raises(NotWrittenError) as refused:
        bench.write(transactions, {(bench.topic, 0): records(b"1"), (bench.topic, 1): records(bytes(TOPIC_BYTES))})
    assert isinstance(refused.value.cause, kafka_errors.MessageSizeTooLargeError)
    assert not transactions.ready
    transactions.initialise(TIMEOUT_S)
    bench.write(transactions, {(bench.topic, 0): records(b"2")})
    assert [message.value() for message in bench.read()[0]] == [b"2"]


def test_an_older_owner_of_the_id_is_refused(bench: Bench) -> None:
    old = bench.transactions()
    bench.write(old, {(bench.topic, 0): records(b"old")})
    new = bench.transactions()
    with pytest.raises(NotWrittenError) as fenced:
        bench.write(old, {(bench.topic, 0): records(b"zombie")})
    assert isinstance(fenced.value.cause, kafka_errors.InvalidProducerEpoch | kafka_errors.ProducerFenced)
    bench.write(new, {(bench.topic, 0): records(b"new")})
    assert [message.value() for message in bench.read()[0]] == [b"old", b"new"]


def test_an_older_generation_is_refused(bench: Bench) -> None:
    transactions = bench.transactions()
    with pytest.raises(NotWrittenError) as refused:
        bench.write(
            transactions,
            {(bench.topic, 0): records(b"1")},
            offsets={(bench.topic, 0): 1},
            member=Member(bench.name, 7, "somebody"),
        )
    assert isinstance(refused.value.cause, kafka_errors.UnknownMemberIdError | kafka_errors.IllegalGenerationError)
    transactions.initialise(TIMEOUT_S)
    assert bench.read()[0] == []


def test_what_is_no_record_is_an_error_of_ours(bench: Bench) -> None:
    transactions = bench.transactions()
    with pytest.raises(TypeError):
        bench.write(transactions, {}, [{"topic": bench.topic, "partition": 0, "key": b"k", "value": "no bytes"}])
    transactions.initialise(TIMEOUT_S)
    bench.write(transactions, {(bench.topic, 0): records(b"1")})
    assert [message.value() for message in bench.read()[0]] == [b"1"]


def test_connections_that_nobody_answers_are_given_up(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    transactions = bench.transactions()

    async def silent(_node: int, _request: Any, **_more: Any) -> Any:
        await asyncio.Event().wait()

    monkeypatch.setattr(transactions._client, "send", silent)
    with pytest.raises(TimeoutError):
        bench.write(transactions, {(bench.topic, 0): records(b"1")}, timeout_s=0.2)
    transactions.initialise(TIMEOUT_S)
    bench.write(transactions, {(bench.topic, 0): records(b"2")})
    assert [message.value() for message in bench.read()[0]] == [b"2"]


def test_answers_that_are_lost_are_asked_for_again(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each request of a transaction is sent twice, because its first answer does not arrive."""
    transactions = bench.transactions()
    bench.write(transactions, {(bench.topic, 0): records(b"1")}, offsets={(bench.topic, 0): 1})
    lost: list[str] = []
    client = transactions._client
    send: Callable[..., Any] = client.send

    async def forgetful(node: int, request: Any, **more: Any) -> Any:
        answer = await send(node, request, **more)
        name = type(request).__name__
        if name not in lost:
            lost.append(name)
            raise kafka_errors.KafkaConnectionError(name)
        return answer

    monkeypatch.setattr(client, "send", forgetful)
    bench.write(transactions, {(bench.topic, 0): records(b"2", b"3")}, offsets={(bench.topic, 0): 2})
    bench.write(transactions, {(bench.topic, 0): records(b"4")}, offsets={(bench.topic, 0): 3})
    assert [message.value() for message in bench.read()[0]] == [b"1", b"2", b"3", b"4"]
    assert {"AddPartitionsToTxnRequest", "ProduceRequest", "TxnOffsetCommitRequest", "EndTxnRequest"} <= set(lost)


def test_a_broker_that_is_busy_is_asked_again_and_nobody_else(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    """It is the right one: neither the leaders nor the coordinator are asked for anew."""
    transactions = bench.transactions()
    bench.write(transactions, {(bench.topic, 0): records(b"1")}, offsets={(bench.topic, 1): 1})
    client = transactions._client
    send: Callable[..., Any] = client.send
    told: list[str] = []

    async def busy(node: int, request: Any, **more: Any) -> Any:
        name = type(request).__name__
        if name in ("ProduceRequest", "TxnOffsetCommitRequest") and told.count(name) < 3:
            told.append(name)
            return SimpleNamespace(topics=[(bench.topic, [(0, 19)])], errors=[(bench.topic, [(1, 14, {})], {})])
        return await send(node, request, **more)

    async def unwanted(*_given: Any) -> None:
        raise RuntimeError("nothing has moved")

    monkeypatch.setattr(client, "send", busy)
    monkeypatch.setattr(client, "force_metadata_update", unwanted)
    monkeypatch.setattr(client, "coordinator_lookup", unwanted)
    bench.write(transactions, {(bench.topic, 0): records(b"2")}, offsets={(bench.topic, 1): 2})
    assert [message.value() for message in bench.read()[0]] == [b"1", b"2"]
    assert sorted(told) == ["ProduceRequest"] * 3 + ["TxnOffsetCommitRequest"] * 3
    assert told[0] == "TxnOffsetCommitRequest"
    reader = OffsetReader(bench.config, bench.name)
    assert reader.committed([(bench.topic, 1)])[bench.topic, 1].offset == 2
    reader.close()


def test_what_a_transaction_leaves_behind_is_no_lag(bench: Bench) -> None:
    """A worker whose stream ends with an aborted transaction has nothing to do, and must not look stuck."""
    producer = Producer({**bench.config, "transactional.id": bench.name})
    producer.init_transactions(TIMEOUT_S)

    def write(count: int, end: Callable[[float], None]) -> None:
        producer.begin_transaction()
        for _ in range(count):
            producer.produce(bench.topic, b"x", partition=0)
        assert producer.flush(TIMEOUT_S) == 0
        end(TIMEOUT_S)

    write(2, producer.commit_transaction)
    write(3, producer.abort_transaction)
    group = f"{bench.name}.group"
    reader = Consumer({**bench.config, "group.id": group, "enable.auto.commit": False})
    reader.commit(offsets=[TopicPartition(bench.topic, 0, 2)], asynchronous=False)
    reader.close()
    where = (bench.topic, 0)
    janitor = Janitor(bench.config, {}, group, streams=[where], truncated=frozenset())
    janitor._measure()
    # Two markers and three records; who has just moved is not looked at any closer.
    assert janitor.lags == {where: 5}
    janitor._measure()
    assert janitor.lags == {where: 0}
    write(1, producer.commit_transaction)

    def behind() -> bool:
        janitor._measure()
        return janitor.lags[where] > 0

    # The end moves when the marker is written, a moment after the commit.
    wait_for(behind, PATIENCE_S, "there is something to do again")
    assert behind()


def test_the_ends_of_a_partition(bench: Bench) -> None:
    where = (bench.topic, 1)
    reader = OffsetReader(bench.config, bench.name)
    producer = Producer({**bench.config, "transactional.id": bench.name})
    producer.init_transactions(TIMEOUT_S)
    producer.begin_transaction()
    producer.produce(bench.topic, b"x", partition=1)
    assert producer.flush(TIMEOUT_S) == 0
    assert reader.starts([where]) == {where: 0}
    assert reader.ends([where]) == {where: 0}
    assert reader.high_watermarks([where]) == {where: 1}
    producer.commit_transaction(TIMEOUT_S)
    wait_for(lambda: reader.ends([where]) == {where: 2}, PATIENCE_S, "the marker is written")
    assert reader.high_watermarks([where]) == {where: 2}
    reader.close()
