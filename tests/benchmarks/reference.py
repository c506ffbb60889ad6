"""The reference job: route by keyed state and count per tenant, exactly once; every output record is checked."""

import os
import random
import subprocess
import sys
import time
import zlib
from pathlib import Path
from typing import Any, Final

import orjson
from confluent_kafka import Consumer, Producer, TopicPartition
from confluent_kafka.admin import AdminClient
from confluent_kafka.cimpl import NewTopic

from app.observe.reading import end_offsets
from tests.benchmarks.reference_worker import INPUTS, OUTPUTS

TENANTS: Final = 1_000
LIMIT_S: Final = 300.0
QUIET_S: Final = 1.5
POLL_S: Final = 0.02


def run(bootstrap: str, directory: Path, count: int) -> dict[str, Any]:
    """Time from the worker's first record to the last committed one, both ends on this machine's clock."""
    namespace = f"reference-{time.time_ns()}"
    config = {"bootstrap.servers": bootstrap}
    _create(config, namespace)
    _preload(config, f"{namespace}.in", count)
    command = [sys.executable, "-m", "tests.benchmarks.reference_worker", namespace]
    environment = {**os.environ, "HOLDFAST_BOOTSTRAP": bootstrap, "HOLDFAST_STATE_DIR": str(directory)}
    log = directory / f"{namespace}.log"
    with log.open("w") as errors:
        worker = subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, stderr=errors, text=True)
    try:
        assert worker.stdout is not None
        begun = float(worker.stdout.readline().split()[1])
        ended = _watch(config, f"{namespace}.out", count)
    finally:
        worker.terminate()
        worker.wait(20)
    _check(config, f"{namespace}.out", count)
    return {"records": count, "seconds": round(ended - begun, 2), "records_per_s": round(count / (ended - begun))}


def _create(config: dict[str, str], namespace: str) -> None:
    compact = {"cleanup.policy": "compact"}
    wanted = [
        NewTopic(f"{namespace}.in", INPUTS, 1),
        NewTopic(f"{namespace}.out", OUTPUTS, 1),
        NewTopic(f"{namespace}.sequences-changelog", INPUTS, 1, config=compact),
        NewTopic(f"{namespace}.suspects", 1, 1, config=compact),
    ]
    admin = AdminClient({**config})
    for future in admin.create_topics(wanted).values():
        future.result(30)


def _preload(config: dict[str, str], topic: str, count: int) -> None:
    producer = Producer({**config, "linger.ms": 20, "queue.buffering.max.messages": 1_000_000})
    rng = random.Random(7)
    for number in range(count):
        tenant = b"t%04d" % rng.randrange(TENANTS)
        value = b'{"tenant":"%b","session":"%032x","op":"decode","n":%d}' % (tenant, rng.getrandbits(128), number)
        producer.produce(topic, value, tenant, zlib.crc32(tenant[::-1]) % INPUTS)
        if number % 1_000 == 0:
            producer.poll(0)
    assert producer.flush(120) == 0


def _watch(config: dict[str, str], topic: str, count: int) -> float:
    """When the last record was committed: the stable ends have covered all records and stand still."""
    deadline = time.monotonic() + LIMIT_S
    last, moved = 0, time.time()
    while time.monotonic() < deadline:
        total = sum(end_offsets(config, [topic], deadline=deadline).values())
        if total != last:
            last, moved = total, time.time()
        if last >= count and time.time() - moved > QUIET_S:
            return moved
        time.sleep(POLL_S)
    raise TimeoutError(f"{last} of {count} records after {LIMIT_S:g} s")


def _check(config: dict[str, str], topic: str, count: int) -> None:
    """Every record once, at the right partition, sequences of each tenant whole and in order."""
    options = {**config, "group.id": "check", "isolation.level": "read_committed", "enable.partition.eof": True}
    consumer = Consumer({**options, "enable.auto.commit": False})
    consumer.assign([TopicPartition(topic, number, 0) for number in range(OUTPUTS)])
    sequences: dict[str, int] = {}
    seen = bytearray(count)
    open_ends = OUTPUTS
    while open_ends:
        for message in consumer.consume(10_000, 1.0):
            if message.error() is not None:
                open_ends -= 1
                continue
            prefix, _, value = (message.value() or b"").partition(b"|")
            record = orjson.loads(value)
            tenant = record["tenant"]
            assert message.partition() == zlib.crc32(tenant.encode()) % OUTPUTS
            assert message.key() == record["session"].encode()
            assert int(prefix) == sequences.get(tenant, 0) + 1
            sequences[tenant] = int(prefix)
            assert not seen[record["n"]]
            seen[record["n"]] = 1
    consumer.close()
    assert sum(seen) == count
