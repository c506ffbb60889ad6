"""Bare confluent-kafka loops: what Python on librdkafka can do without membership, restore and recovery.

`python -m tests.benchmarks.peers.loop reference|path`; topics and the rest in ``PEER_*`` variables. One transaction
for each 100 ms; batches of records; one changelog record for each row that changed in a transaction.
"""

import os
import signal
import sys
import time
import zlib
from typing import Any, Final

import orjson
from confluent_kafka import Consumer, Message, Producer, TopicPartition

COMMIT_S: Final = 0.1
PLACES: Final = 8
RESULTS: Final = 4
SESSION: Final = slice(29, 61)


class Output:
    """Records by topic and partition, handed over in batches."""

    def __init__(self, producer: Producer) -> None:
        self._producer = producer
        self._lists: dict[tuple[str, int], list[dict[str, bytes]]] = {}

    def of(self, topic: str, partition: int) -> list[dict[str, bytes]]:
        return self._lists.setdefault((topic, partition), [])

    def send(self) -> None:
        for (topic, partition), records in self._lists.items():
            if records:
                assert self._producer.produce_batch(topic, records, partition) == len(records)
        self._lists = {}
        self._producer.poll(0)


class Reference:
    """The reference job."""

    def __init__(self, output: Output, topics: dict[str, str]) -> None:
        self._output, self._topics = output, topics
        self._places: dict[bytes, int] = {}
        self._sequences: dict[bytes, int] = {}
        self._dirty: dict[bytes, int] = {}

    def perform(self, messages: list[Message]) -> None:
        outputs = [self._output.of(self._topics["OUT"], place) for place in range(PLACES)]
        places, sequences, dirty = self._places, self._sequences, self._dirty
        for message in messages:
            tenant: Any = message.key()
            value: Any = message.value()
            place = places.get(tenant)
            if place is None:
                place = places[tenant] = zlib.crc32(tenant) % PLACES
            sequence = sequences[tenant] = sequences.get(tenant, 0) + 1
            outputs[place].append({"key": value[SESSION], "value": b"%d|%b" % (sequence, value)})
            dirty[tenant] = message.partition() or 0

    def rows(self) -> None:
        for tenant, partition in self._dirty.items():
            row = {"key": tenant, "value": b"%d" % self._sequences[tenant]}
            self._output.of(self._topics["CHANGELOG"], partition).append(row)
        self._dirty.clear()


class Path:
    """Both hops of the whole path."""

    def __init__(self, output: Output, topics: dict[str, str]) -> None:
        self._output, self._topics = output, topics
        self._places: dict[bytes, int] = {}
        self._sessions: dict[tuple[bytes, str], dict[str, int]] = {}
        self._dirty: dict[tuple[bytes, str], int] = {}

    def perform(self, messages: list[Message]) -> None:
        tasks = self._topics["IN"]
        for message in messages:
            if message.topic() == tasks:
                self._route(message)
            else:
                self._perform(message)

    def _route(self, message: Message) -> None:
        tenant: Any = message.key()
        place = self._places.get(tenant)
        if place is None:
            place = self._places[tenant] = zlib.crc32(tenant) % PLACES
        value: Any = message.value()
        self._output.of(self._topics["WORK"], place).append({"key": tenant, "value": value})

    def _perform(self, message: Message) -> None:
        tenant: Any = message.key()
        task = orjson.loads(message.value() or b"")
        key = (tenant, task["session"])
        state = self._sessions.get(key)
        if state is None:
            state = self._sessions[key] = {"total": 0, "count": 0}
        state["total"] += task["payload"]["amount"]
        state["count"] += 1
        self._dirty[key] = message.partition() or 0
        result = {
            "task": task["id"],
            "tenant": task["tenant"],
            "session": task["session"],
            "type": task["type"],
            "status": "done",
            "sequence": state["count"],
            "result": {"total": state["total"]},
        }
        where = self._output.of(self._topics["OUT"], zlib.crc32(tenant) % RESULTS)
        where.append({"key": tenant, "value": orjson.dumps(result)})

    def rows(self) -> None:
        for (tenant, session), partition in self._dirty.items():
            row = {
                "key": b"%b\0%b" % (tenant, session.encode()),
                "value": orjson.dumps(self._sessions[tenant, session]),
            }
            self._output.of(self._topics["CHANGELOG"], partition).append(row)
        self._dirty.clear()


JOBS: Final[dict[str, type[Reference] | type[Path]]] = {"reference": Reference, "path": Path}


def main() -> None:
    ended: list[int] = []
    signal.signal(signal.SIGTERM, lambda number, _frame: ended.append(number))
    topics = {name: os.environ.get(f"PEER_{name}", "") for name in ("IN", "OUT", "WORK", "CHANGELOG")}
    common = {"bootstrap.servers": os.environ["PEER_BOOTSTRAP"]}
    group = os.environ["PEER_GROUP"]
    producer = Producer(
        {
            **common,
            "transactional.id": group,
            "linger.ms": 5,
            "queue.buffering.max.messages": 2_000_000,
            "queue.buffering.max.kbytes": 1 << 20,
            "batch.num.messages": 100_000,
            "batch.size": 1_000_000,
            "delivery.report.only.error": True,
        }
    )
    producer.init_transactions(30)
    consumer = Consumer(
        {
            **common,
            "group.id": group,
            "auto.offset.reset": "earliest",
            "enable.auto.commit": False,
            "enable.auto.offset.store": False,
            "isolation.level": "read_committed",
            "queued.min.messages": 20_000,
            "fetch.queue.backoff.ms": 10,
            "fetch.wait.max.ms": 10,
            "check.crcs": False,
        }
    )
    consumer.subscribe([topics["IN"]] + ([topics["WORK"]] if sys.argv[1] == "path" else []))
    output = Output(producer)
    run(JOBS[sys.argv[1]](output, topics), output, consumer, producer, ended)
    consumer.close()


def run(job: Reference | Path, output: Output, consumer: Consumer, producer: Producer, ended: list[int]) -> None:
    offsets: dict[tuple[str, int], int] = {}
    due: float | None = None
    while not ended:
        # consume(n, t) waits all of t unless n records come: wait for one, then take what is there.
        messages = consumer.consume(1, 0.05 if due is None else max(0.0, min(0.005, due - time.monotonic())))
        if messages:
            messages += consumer.consume(3_999, 0)
            if due is None:
                producer.begin_transaction()
                due = time.monotonic() + COMMIT_S
            for message in messages:
                assert message.error() is None, message.error()
                offsets[message.topic() or "", message.partition() or 0] = (message.offset() or 0) + 1
            job.perform(messages)
            output.send()
        if due is not None and time.monotonic() >= due:
            job.rows()
            output.send()
            places = [TopicPartition(*where, offset) for where, offset in offsets.items()]
            producer.send_offsets_to_transaction(places, consumer.consumer_group_metadata(), 30)
            producer.commit_transaction(30)
            offsets, due = {}, None


if __name__ == "__main__":
    main()
