"""Planned stops and joins of a worker under load: the longest silence of probe sessions.

A probe session is sent a task every 10 ms. Its gap is the longest time between two of its results, less those 10 ms,
from the moment of the stop or start until a moment after all is quiet again.
"""

import itertools
import threading
import time
from collections.abc import Iterator, Sequence
from typing import Any, Final

import orjson

from app.protocol.murmur2 import partition_of
from tests.benchmarks.bench import Bench
from tests.benchmarks.measurement import Goal, Measurement, Sample, figure, of, percentile
from tests.benchmarks.traffic import KIND, Results, Sender, account, plan, populate, settle
from tests.support.cluster import Workers
from tests.support.load import Load

NAME: Final = "moves"
ABOUT: Final = "planned stops and joins of a worker under load"
WORKERS: Final = ("w1", "w2", "w3")
INTERVAL_S: Final = 0.01
AFTER_S: Final = 2.0
EVENTS: Final = {"quiet": "no event", "stop": "planned stop", "join": "join"}


class Probes(Sender):
    """Sends to the probe sessions, and notes when each of their results arrives."""

    def __init__(self, workers: Workers, count: int) -> None:
        super().__init__(workers, "probes")
        self.tenants = [f"probe-{number:02d}" for number in range(count)]
        self._arrivals: dict[str, list[float]] = {tenant: [] for tenant in self.tenants}
        self._lock = threading.Lock()

    def _send(self) -> None:
        keys = [tenant.encode() for tenant in self.tenants]
        entries = [(key, partition_of(key, self._routers), orjson.dumps(_task(key.decode()))) for key in keys]
        due = time.monotonic()
        while not self._stop.is_set():
            for key, partition, value in entries:
                self._producer.produce(self._topic, value, key, partition)
            self.sent += len(entries)
            self._producer.poll(0)
            due += INTERVAL_S
            time.sleep(max(0.0, due - time.monotonic()))

    def take(self, result: dict[str, Any], moment: float) -> None:
        arrivals = self._arrivals.get(result["tenant"])
        if arrivals is not None:
            with self._lock:
                arrivals.append(moment)

    def gaps(self, since: float) -> list[float]:
        """Return the longest silence of each probe after ``since``, and forget what is older."""
        found = []
        now = time.monotonic()
        with self._lock:
            for arrivals in self._arrivals.values():
                kept = [moment for moment in arrivals if moment >= since]
                earlier = arrivals[len(arrivals) - len(kept) - 1 :][:1] if len(kept) < len(arrivals) else []
                times = [*earlier, *kept, now]
                longest = max((later - one for one, later in itertools.pairwise(times)), default=0.0)
                found.append(max(0.0, longest - INTERVAL_S))
                del arrivals[:-1]
        return found


def _task(tenant: str) -> dict[str, Any]:
    return {"tenant": tenant, "session": "probe", "type": KIND, "payload": {}}


def measure(bench: Bench) -> Iterator[Sample]:
    options = bench.options
    with bench.workers("moves") as workers:
        workers.topics()
        workers.start_ready(*WORKERS)
        populate(workers, options.sessions)
        probes = Probes(workers, options.probes)
        rate = max(1, options.rate - round(options.probes / INTERVAL_S))
        load = Load(workers.config, workers.namespace, plan(options.sessions, tasks=10**8, rate=rate))
        with Results(workers, probes.take):
            load.start()
            probes.start()
            for number in range(options.moves):
                settle(workers, set(WORKERS))
                bench.say(f"move {number + 1} of {options.moves}")
                for event in EVENTS:
                    begun = time.monotonic()
                    _perform(workers, event, WORKERS[number % len(WORKERS)])
                    time.sleep(AFTER_S)
                    gaps = probes.gaps(begun)
                    yield {"series": "move", "event": event, "gaps_s": gaps, "worst_s": max(gaps)}
            probes.stop()
            load.stop()
            load.join()
        yield account(workers, options.sessions + load.acknowledged + probes.sent)


def _perform(workers: Workers, event: str, name: str) -> None:
    if event == "stop":
        worker = next(worker for worker in workers.running if worker.name == name)
        assert worker.sigterm() == 0
    elif event == "join":
        workers.start(name).wait_ready()
        settle(workers, set(WORKERS))


def judge(samples: Sequence[Sample]) -> list[Measurement]:
    found = []
    for event, what in EVENTS.items():
        gaps = [gap for move in of(samples, "move", event=event) for gap in move["gaps_s"]]
        if not gaps:
            continue
        goals = {"p95": Goal("≤", 0.5), "worst": Goal("≤", 1.0)} if event != "quiet" else {}
        for name, share in (("p95", 0.95), ("worst", 1.0)):
            title = f"longest gap of a session, {what}, {name}"
            found.append(figure(title, "s", gaps, statistic=percentile(share), goal=goals.get(name)))
    return found


def plot(samples: Sequence[Sample], pyplot: Any) -> Any:
    drawn, axes = pyplot.subplots(figsize=(7, 4))
    for event, what in EVENTS.items():
        values = sorted(gap for move in of(samples, "move", event=event) for gap in move["gaps_s"])
        if values:
            axes.step(values, [(index + 1) / len(values) for index in range(len(values))], where="post", label=what)
    axes.set_xlim(left=0)
    axes.set_xlabel("longest gap of a probe session, seconds")
    axes.set_ylabel("share of sessions and events")
    axes.set_title("Planned stops and joins")
    axes.legend()
    return drawn
