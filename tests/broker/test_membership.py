"""The membership thread on a real broker: whoever is dead holds nobody up."""

import asyncio
import threading
from typing import Any

import pytest
from confluent_kafka import OFFSET_BEGINNING, Consumer, Producer, TopicPartition
from confluent_kafka.admin import AdminClient
from confluent_kafka.cimpl import NewTopic

from app.engine import membership
from app.engine.membership import Assignment, Callbacks, Membership
from app.protocol.group_data import MemberData
from app.protocol.liveness import Dead
from app.topics import Names
from tests.support.cluster import wait_for

pytestmark = pytest.mark.broker


class Joiner:
    """A member that hosts nothing, and may be kept from joining again."""

    def __init__(self, broker: str, namespace: str, name: str) -> None:
        self.words: list[Assignment] = []
        self.may_join = threading.Event()
        self.may_join.set()
        self.asked = threading.Event()
        self.thread = Membership(
            group=Names(namespace).group,
            name=name,
            incarnation=1,
            bind="127.0.0.1",
            host="127.0.0.1",
            places={f"router-{number}": [(Names(namespace).tasks, number)] for number in range(2)},
            standby_replicas=0,
            client={"bootstrap_servers": [broker]},
            transactional_id=lambda worker: f"{namespace}.{worker}",
            callbacks=Callbacks(
                before_join=self._before_join,
                describe=lambda: MemberData(name, "", 1),
                assigned=self.words.append,
                failed=self._failed,
            ),
        )
        self.failure: BaseException | None = None
        self.thread.start()

    def declare_dead(self, name: str) -> None:
        """As if its heartbeat channel had been closed, and refused since."""
        beats = self.thread._beats

        async def say() -> None:
            beats._peers[name] = Dead()
            beats._declare_dead(name)

        asyncio.run_coroutine_threadsafe(say(), self.thread._loop).result(60)

    async def _before_join(self, join: int) -> None:
        self.asked.set()
        await asyncio.to_thread(self.may_join.wait)

    def _failed(self, error: BaseException) -> None:
        self.failure = error

    def end(self) -> None:
        self.may_join.set()
        self.thread.leave(30)
        assert self.failure is None


def test_a_dead_worker_is_removed_while_a_join_waits_for_it(
    broker: str, namespace: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The broker answers what comes over one connection in turn: the removal must not stand behind the join."""
    monkeypatch.setattr(membership, "SESSION_MS", 300_000)
    monkeypatch.setattr(membership, "REBALANCE_MS", 300_000)
    first = Joiner(broker, namespace, "w1")
    wait_for(lambda: first.words, 60, "the first is in the group")
    second = Joiner(broker, namespace, "w2")
    try:
        wait_for(lambda: second.words and len(first.words[-1].plan.workers) == 2, 60, "both are in the group")
        second.may_join.clear()
        second.asked.clear()
        before = len(first.words)
        first.thread.rejoin()
        wait_for(second.asked.is_set, 60, "the second is asked to join again, and does not")
        first.declare_dead("w2")
        wait_for(lambda: len(first.words) > before, 60, "the first goes on")
        assert set(first.words[-1].plan.workers) == {"w1"}
    finally:
        first.end()
        second.end()


def test_what_a_dead_worker_left_open_is_ended_at_once(broker: str, namespace: str) -> None:
    """Whoever reads what others wrote behind it need not wait for a successor."""
    topic = f"{namespace}.open"
    config: dict[str, Any] = {"bootstrap.servers": broker, "log_level": 0}
    admin = AdminClient(config)
    admin.create_topics([NewTopic(topic, 1, 1)])[topic].result(60)
    dead = Producer({**config, "transactional.id": f"{namespace}.w2", "transaction.timeout.ms": 600_000})
    dead.init_transactions(60)
    dead.begin_transaction()
    dead.produce(topic, b"never committed")
    assert dead.flush(60) == 0
    alive = Producer(config)
    alive.produce(topic, b"behind it")
    assert alive.flush(60) == 0
    first = Joiner(broker, namespace, "w1")
    wait_for(lambda: first.words, 60, "the first is in the group, and leads")
    second = Joiner(broker, namespace, "w2")
    reader = Consumer({**config, "group.id": f"{namespace}.reader", "isolation.level": "read_committed"})
    try:
        wait_for(lambda: first.words and len(first.words[-1].plan.workers) == 2, 60, "both are in the group")
        reader.assign([TopicPartition(topic, 0, OFFSET_BEGINNING)])
        first.declare_dead("w2")
        found = wait_for(lambda: reader.poll(0.1), 60, "the record behind the open transaction is read")
        assert found is not None
        assert found.value() == b"behind it"
    finally:
        reader.close()
        first.end()
        second.end()
