"""Latency of the whole path at a steady rate: from `produce` to the result at a `read_committed` reader.

Kafka Streams has the same two hops and commits every 20 ms. The first five seconds are not counted.
"""

import random
import statistics
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import replace
from typing import Any, Final

import orjson
from confluent_kafka import OFFSET_BEGINNING, Consumer, Producer, TopicPartition

from app.protocol.murmur2 import partition_of
from tests.benchmarks.bench import Bench, Process, cpu_seconds
from tests.benchmarks.kafka import LIMIT_S, Topics
from tests.benchmarks.measurement import Goal, Measurement, Sample, figure, of, percentile
from tests.benchmarks.path import ROUTERS, Way, check, start, task, way
from tests.benchmarks.peers.engines import OURS, PATH, Absent, Engine, wanted
from tests.benchmarks.rounds import rounds

NAME: Final = "latency"
ABOUT: Final = "latency of the whole path at a steady rate"
MEANT: Final = 2_000
COMMIT_MS: Final = "20"
WARM_S: Final = 5.0
SLOT_S: Final = 0.005
SHARES: Final = {"p50": 0.5, "p90": 0.9, "p99": 0.99, "max": 1.0}
KEPT: Final = 2_000
ENGINES: Final = (
    PATH[0],
    *(replace(one, variables={**one.variables, "PEER_COMMIT_MS": COMMIT_MS}) for one in PATH if "memory" in one.key),
)
GOALS: Final = {"p50": Goal("≤", 40), "p99": Goal("≤", 120)}


def measure(bench: Bench) -> Iterator[Sample]:
    yield from rounds(bench, wanted(ENGINES, bench.options.engines), lambda engine: _run(bench, engine))


def _run(bench: Bench, engine: Engine) -> Sample:
    rate, seconds = bench.options.rate, bench.options.seconds
    with way(bench, engine, "latency") as made, start(bench, engine, made) as process:
        sender = Sender(bench, made, round(rate * (seconds + WARM_S)), rate)
        try:
            took = sender.run(process)
        except TimeoutError as error:
            raise Absent(f"{error}; it said: {process.tail(3)}") from None
        check(bench, made, len(sender.sent), time.monotonic() + LIMIT_S)
        cpu = cpu_seconds(process.pid)
    took.sort()
    return {
        "rate": rate,
        "tasks": len(took),
        **{name: percentile(share)(took) for name, share in SHARES.items()},
        "cpu_s": cpu,
        # Enough of the distribution to draw it.
        "spread_ms": [round(value, 2) for value in took[:: max(1, len(took) // KEPT)]],
    }


class Sender:
    """Sends at a steady rate from a thread and receives in the caller's."""

    def __init__(self, bench: Bench, made: Way, total: int, rate: int) -> None:
        self.sent = [0] * total
        self._rate = rate
        self._made = made
        self._topics = Topics(bench.config, {made.results: ROUTERS})
        self._begin = threading.Event()
        self._end = threading.Event()
        self._producer = Producer(
            {**bench.config, "linger.ms": 0, "enable.idempotence": True, "delivery.report.only.error": True}
        )
        self._consumer = Consumer(
            {
                **bench.config,
                "group.id": "holdfast-bench",
                "isolation.level": "read_committed",
                "enable.auto.commit": False,
                "auto.offset.reset": "earliest",
            }
        )
        places = [TopicPartition(made.results, part, OFFSET_BEGINNING) for part in range(ROUTERS)]
        self._consumer.assign(places)

    def run(self, process: Process) -> list[float]:
        """Return the milliseconds of each task after the first seconds."""
        thread = threading.Thread(target=self._send, daemon=True)
        thread.start()
        try:
            return self._receive(process)
        finally:
            self._end.set()
            thread.join(LIMIT_S)
            self._consumer.close()

    def _send(self) -> None:
        rng = random.Random(1)
        self._produce(rng, 0)
        # The clock starts when the first task has come through: the program is up.
        self._begin.wait(LIMIT_S)
        begun, number = time.perf_counter(), 1
        while number < len(self.sent) and not self._end.is_set():
            if number < (time.perf_counter() - begun) * self._rate:
                self._produce(rng, number)
                number += 1
            else:
                self._producer.poll(0)
                time.sleep(SLOT_S)
        self._producer.flush(60)

    def _produce(self, rng: random.Random, number: int) -> None:
        key, value = task(rng, number)
        self.sent[number] = time.time_ns()
        self._producer.produce(self._made.tasks, value, key, partition_of(key, ROUTERS))

    def _receive(self, process: Process) -> list[float]:
        took: list[float] = []
        got, deadline, warm = 0, time.monotonic() + LIMIT_S, round(self._rate * WARM_S)
        while got < len(self.sent):
            if time.monotonic() > deadline or not process.running:
                raise TimeoutError(f"{got} of {len(self.sent)} results")
            message = self._consumer.poll(0.2)
            if message is None or message.error() is not None:
                continue
            now = time.time_ns()
            got += 1
            self._begin.set()
            number = int(orjson.loads(message.value() or b"")["task"])
            if number >= warm:
                took.append((now - self.sent[number]) / 1e6)
        return took


def judge(samples: Sequence[Sample]) -> list[Measurement]:
    found = []
    own = of(samples, "run", engine=OURS)
    goals = GOALS if min((run["rate"] for run in own), default=0) >= MEANT else {}
    for engine in ENGINES[1:]:
        absent = of(samples, "absent", engine=engine.key)
        peers = of(samples, "run", engine=engine.key)
        for name in SHARES:
            title = f"latency of the whole path, {name}"
            own_figure = figure(title, "ms", (run[name] for run in own), goal=goals.get(name))
            found.append(own_figure)
            below = Goal("≤", 1.0, of_ratio=True) if name in goals else None
            if absent and not peers:
                found.append(Measurement(title, "ms", peer=engine.name, goal=below, absent=absent[-1]["why"]))
            elif name in GOALS or name == "p90":
                pairs = [
                    (run[name], peer[name])
                    for peer in peers
                    for run in of(samples, "run", engine=OURS, round=peer["round"])
                ]
                ratios = [one / other for one, other in pairs]
                if ratios:
                    found.append(
                        replace(
                            own_figure,
                            peer=f"{engine.name}, {COMMIT_MS} ms commits",
                            peer_runs=tuple(other for _, other in pairs),
                            peer_value=statistics.median(other for _, other in pairs),
                            ratios=tuple(ratios),
                            ratio=statistics.median(ratios),
                            goal=below,
                        )
                    )
    return found


def plot(samples: Sequence[Sample], pyplot: Any) -> Any:
    drawn, axes = pyplot.subplots(figsize=(7, 4))
    for engine in ENGINES:
        values = sorted(value for run in of(samples, "run", engine=engine.key) for value in run["spread_ms"])
        if values:
            shares = [(index + 1) / len(values) for index in range(len(values))]
            axes.step(values, shares, label=engine.name)
    axes.set_xscale("log")
    axes.set_xlabel("milliseconds from produce to result")
    axes.set_ylabel("share of tasks")
    axes.set_title("Latency of the whole path")
    with suppress(UserWarning):
        axes.legend()
    return drawn
