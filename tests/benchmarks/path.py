"""The whole path by the shipped worker: tasks, router, work, session state, results; exactly once."""

import random
import threading
import time
from pathlib import Path
from typing import Any, Final

import orjson
from confluent_kafka import OFFSET_BEGINNING, Consumer, Producer, TopicPartition

from app.observe.reading import end_offsets, read_account
from tests.support.cluster import Workers

TENANTS: Final = 1_000
SESSIONS: Final = 5
LIMIT_S: Final = 300.0
WARM_S: Final = 5.0
_POLL_S: Final = 0.2
_SLOT_S: Final = 0.005


def task(rng: random.Random, number: int, payload: str) -> tuple[bytes, bytes]:
    tenant = b"t%04d" % rng.randrange(TENANTS)
    return tenant, b'{"id":"%d","tenant":"%s","session":"s%d","type":"counter.add","payload":{%s}}' % (
        number,
        tenant,
        rng.randrange(SESSIONS),
        payload.encode(),
    )


def preload(workers: Workers, count: int) -> None:
    """Write tasks of 1,000 tenants with 5 sessions each."""
    producer = Producer(
        {
            **workers.config,
            "partitioner": "murmur2_random",
            "linger.ms": 20,
            "queue.buffering.max.messages": 1_000_000,
        }
    )
    topic, rng = f"{workers.namespace}.tasks", random.Random(3)
    for number in range(count):
        key, value = task(rng, number, '"amount":1')
        producer.produce(topic, value, key)
        if number % 1_000 == 0:
            producer.poll(0)
    assert producer.flush(120) == 0


def throughput(bootstrap: str, directory: Path, count: int, names: tuple[str, ...]) -> dict[str, Any]:
    """Preload tasks, start workers, and count what is committed.

    Rates are records a second between the first tenth and the end, as the peers are measured: start and
    warm-up are not counted. ``start_s``: from the start of the process to the first committed result.
    """
    namespace = f"bench-{len(names)}w-{time.time_ns()}"
    with Workers(bootstrap, namespace, directory / namespace) as workers:
        workers.topics()
        preload(workers, count)
        begun = time.monotonic()
        for name in names:
            workers.start(name)
        seen = _watch(workers, count)
        first = next(moment for moment, counts in seen if counts["results"])
        account = read_account(workers.config, namespace, deadline=time.monotonic() + LIMIT_S)
        assert account.ok, f"{account}\n{workers.logs()}"
        assert account.performed == count
        return {
            "workers": len(names),
            "tasks": count,
            "routed_per_s": round(_rate(seen, "work", count)),
            "tasks_per_s": round(_rate(seen, "results", count)),
            "start_s": round(first - begun, 2),
            "seconds": round(seen[-1][0] - first, 2),
        }


Sample = tuple[float, dict[str, int]]


def _watch(workers: Workers, count: int) -> list[Sample]:
    """Poll the ends of `work` and `results` until both hold every record."""
    deadline = time.monotonic() + LIMIT_S
    topics = [f"{workers.namespace}.{name}" for name in ("work", "results")]
    seen: list[Sample] = []
    while True:
        ends = end_offsets(workers.config, topics, deadline=deadline)
        counts = {
            topic.rpartition(".")[2]: sum(end for place, end in ends.items() if place[0] == topic) for topic in topics
        }
        if not seen or counts != seen[-1][1]:
            seen.append((time.monotonic(), counts))
        elif counts["results"] >= count and time.monotonic() - seen[-1][0] > 1:
            return seen
        assert time.monotonic() < deadline, f"{counts} of {count}\n{workers.logs()}"
        time.sleep(_POLL_S)


def _rate(seen: list[Sample], topic: str, count: int) -> float:
    """Records a second of one topic, whose ends count the control records of transactions as well."""
    end = seen[-1][1][topic]
    start = next((moment, counts[topic]) for moment, counts in seen if counts[topic] >= end / 10)
    last = next(moment for moment, counts in seen if counts[topic] >= end)
    return (end - start[1]) * (count / end) / max(last - start[0], 1e-3)


def latency(bootstrap: str, directory: Path, names: tuple[str, ...], *, rate: int, seconds: float) -> dict[str, Any]:
    """Send at a steady rate; milliseconds from `produce` to the result at a read_committed reader."""
    namespace = f"bench-latency-{time.time_ns()}"
    with Workers(bootstrap, namespace, directory / namespace) as workers:
        workers.topics()
        workers.start_ready(*names)
        total = round(rate * (seconds + WARM_S))
        sent = [0] * total
        thread = threading.Thread(target=_send_steadily, args=(workers, rate, sent), daemon=True)
        thread.start()
        took = _receive(workers, sent, warm=round(rate * WARM_S))
        thread.join(LIMIT_S)
        account = read_account(workers.config, namespace, deadline=time.monotonic() + LIMIT_S)
        assert account.ok, f"{account}\n{workers.logs()}"
    took.sort()
    figures = {
        name: round(took[min(len(took) - 1, int(share * len(took)))], 1)
        for name, share in (("p50_ms", 0.5), ("p90_ms", 0.9), ("p99_ms", 0.99), ("max_ms", 1.0))
    }
    return {"workers": len(names), "rate": rate, "tasks": len(took), **figures}


def _send_steadily(workers: Workers, rate: int, sent: list[int]) -> None:
    producer = Producer(
        {
            **workers.config,
            "partitioner": "murmur2_random",
            "linger.ms": 0,
            "enable.idempotence": True,
            "delivery.report.only.error": True,
        }
    )
    topic, rng = f"{workers.namespace}.tasks", random.Random(1)
    begun = time.perf_counter()
    number = 0
    while number < len(sent):
        if number < (time.perf_counter() - begun) * rate:
            key, value = task(rng, number, '"amount":1')
            sent[number] = time.time_ns()
            producer.produce(topic, value, key)
            number += 1
        else:
            producer.poll(0)
            time.sleep(_SLOT_S)
    producer.flush(60)


def _receive(workers: Workers, sent: list[int], *, warm: int) -> list[float]:
    consumer = Consumer(
        {
            **workers.config,
            "group.id": "holdfast-bench",
            "isolation.level": "read_committed",
            "enable.auto.commit": False,
            "auto.offset.reset": "earliest",
        }
    )
    topic = f"{workers.namespace}.results"
    consumer.assign([TopicPartition(topic, part, OFFSET_BEGINNING) for part in range(workers.settings.routers)])
    took: list[float] = []
    got, deadline = 0, time.monotonic() + LIMIT_S
    while got < len(sent):
        assert time.monotonic() < deadline, f"{got} of {len(sent)} results\n{workers.logs()}"
        message = consumer.poll(0.2)
        if message is None or message.error() is not None:
            continue
        now = time.time_ns()
        got += 1
        number = int(orjson.loads(message.value() or b"")["task"])
        if number >= warm:
            took.append((now - sent[number]) / 1e6)
    consumer.close()
    return took
