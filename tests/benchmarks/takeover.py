"""Takeover: from `kill -9` or SIGSTOP of a worker to the first new result of the sessions that it held.

The clock starts when the worker stops working. Three workers, sessions that exist, a steady load, the broker's default
limits. A worker is hit while a transaction of its own is open: it is frozen, looked at, and let go again until there
are records of it above the last stable offset. In the end every task of the run is accounted for.
"""

import os
import random
import signal
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, Final

from app.topics import Names
from tests.benchmarks.bench import Bench
from tests.benchmarks.kafka import Topics
from tests.benchmarks.measurement import Goal, Measurement, Sample, figure, of, percentile
from tests.benchmarks.traffic import Results, account, hosted, plan, populate, replayed, settle
from tests.support.cluster import Worker, Workers, wait_for
from tests.support.load import Load

NAME: Final = "takeover"
ABOUT: Final = "takeover of a killed and of a frozen worker"
WORKERS: Final = ("w1", "w2", "w3")
LIMIT_TAKEOVER_S: Final = 60.0
TRIES: Final = 20
ATTEMPTS: Final = 4
STILL_S: Final = 0.02
GOALS: Final = {
    ("kill", "p50"): Goal("≤", 1.5),
    ("kill", "p95"): Goal("≤", 2.5),
    ("freeze", "p50"): Goal("≤", 3.0),
    ("freeze", "p95"): Goal("≤", 4.5),
}
MEANT: Final = {"rate": 2_000, "sessions": 100_000}
SHARES: Final = {"p50": 0.5, "p95": 0.95, "max": 1.0}
WHAT: Final = {"kill": "kill -9", "freeze": "SIGSTOP"}


@dataclass(slots=True)
class Watch:
    """The first result of each server by another worker than the one that was hit."""

    worker: str = ""
    servers: set[int] = field(default_factory=set)
    seen: dict[int, float] = field(default_factory=dict)

    def take(self, result: dict[str, Any], moment: float) -> None:
        server = result["server"]
        if server in self.servers and result["worker"] != self.worker and server not in self.seen:
            self.seen[server] = moment

    def arm(self, worker: str, servers: set[int]) -> None:
        self.servers = set()
        self.worker, self.seen = worker, {}
        self.servers = servers


@dataclass(frozen=True, slots=True)
class Frozen:
    """When the worker was stopped, whether a transaction of it is open, and how many tries that took."""

    at: float
    in_transaction: bool
    tries: int


def measure(bench: Bench) -> Iterator[Sample]:
    options = bench.options
    watch = Watch()
    with bench.workers("takeover") as workers:
        workers.topics()
        workers.start_ready(*WORKERS)
        bench.say(f"{options.sessions:,} sessions are made")
        populate(workers, options.sessions)
        load = Load(workers.config, workers.namespace, plan(options.sessions, tasks=10**8, rate=options.rate))
        with Results(workers, watch.take):
            load.start()
            for number in range(2 * options.kills):
                kind = ("kill", "freeze")[number % 2]
                bench.say(f"{WHAT[kind]}, {number // 2 + 1} of {options.kills}")
                size = {"rate": options.rate, "sessions": options.sessions}
                yield {"series": "takeover", "kind": kind, **size, **_hit(workers, watch, kind, number)}
            load.stop()
            load.join()
        yield account(workers, options.sessions + load.acknowledged)


def _hit(workers: Workers, watch: Watch, kind: str, number: int) -> Sample:
    victim, frozen = _freeze(workers, watch, number)
    others = [worker for worker in workers.running if worker is not victim]
    before = {worker.name: len(worker.text()) for worker in others}
    if kind == "kill":
        os.kill(victim.pid, signal.SIGKILL)
    wait_for(lambda: len(watch.seen) == len(watch.servers), LIMIT_TAKEOVER_S, "all servers of the worker are served")
    restores = [entry for worker in others for entry in replayed(worker.text()[before[worker.name] :])]
    if kind == "kill":
        victim.kill9()
        workers.start(victim.name).wait_ready()
    else:
        victim.sigcont()
    moments = sorted(moment - frozen.at for moment in watch.seen.values())
    return {
        "worker": victim.name,
        "servers": len(moments),
        "first_s": moments[0],
        "last_s": moments[-1],
        "transaction_open": frozen.in_transaction,
        "tries": frozen.tries,
        "replayed_rows": sum(entry[2] for entry in restores),
        "replay_s": max((entry[3] for entry in restores), default=0.0),
    }


def _freeze(workers: Workers, watch: Watch, number: int) -> tuple[Worker, Frozen]:
    """Stop a worker that has all that it should have, with a transaction open; return it and how that went."""
    name = WORKERS[number % len(WORKERS)]
    for attempt in range(ATTEMPTS):
        settle(workers, set(WORKERS))
        servers = hosted(workers)[name]
        victim = next(worker for worker in workers.running if worker.name == name)
        watch.arm(name, servers)
        frozen = _freeze_in_transaction(workers, victim, servers, number + attempt, last=attempt == ATTEMPTS - 1)
        # All those stops may have cost the worker its place: then it is somebody else's already.
        if frozen is not None and not watch.seen:
            return victim, frozen
        victim.sigcont()
    raise AssertionError(f"worker {name} could not be stopped with its servers\n{workers.logs()}")


def _freeze_in_transaction(
    workers: Workers, victim: Worker, servers: set[int], seed: int, *, last: bool
) -> Frozen | None:
    """Stop the worker so that a transaction of it stays open; None if that was not reached, and ``last`` is not set."""
    # Nobody but the host writes a server's changelog.
    changelog = Names(workers.namespace).changelog("sessions")
    topics = Topics(workers.config, {changelog: workers.settings.servers})
    rng = random.Random(seed)

    def is_open() -> bool:
        ends, stable = topics.ends(committed=False), topics.ends()
        return any(ends[changelog, server] > stable[changelog, server] for server in servers)

    for tries in range(1, TRIES):
        victim.sigstop()
        at = time.monotonic()
        if is_open():
            # A commit that was on its way to the broker is through at the second look.
            time.sleep(STILL_S)
            if is_open():
                return Frozen(at, True, tries)
        victim.sigcont()
        # Long enough to be in step with the others again.
        time.sleep(rng.uniform(0.05, 0.2))
    if not last:
        return None
    victim.sigstop()
    return Frozen(time.monotonic(), False, TRIES)


def judge(samples: Sequence[Sample]) -> list[Measurement]:
    found = []
    for kind, what in WHAT.items():
        hits = of(samples, "takeover", kind=kind)
        if not hits:
            continue
        enough = all(hit["rate"] >= MEANT["rate"] and hit.get("sessions", 0) >= MEANT["sessions"] for hit in hits)
        note = f"{len(hits)}, {sum(hit['transaction_open'] for hit in hits)} with an open transaction"
        for name, share in SHARES.items():
            runs = [hit["first_s"] for hit in hits]
            goal = GOALS.get((kind, name)) if enough else None
            title = f"takeover after {what}, first result, {name}"
            found.append(figure(title, "s", runs, statistic=percentile(share), goal=goal, note=note))
        last = [hit["last_s"] for hit in hits]
        found.append(figure(f"takeover after {what}, last server served, p95", "s", last, statistic=percentile(0.95)))
        rows = [hit["replayed_rows"] for hit in hits]
        found.append(
            figure(f"takeover after {what}, rows replayed by warm standbys, worst", "rows", rows, statistic=max)
        )
    return found


def plot(samples: Sequence[Sample], pyplot: Any) -> Any:
    drawn, axes = pyplot.subplots(figsize=(7, 4))
    for kind, what in WHAT.items():
        for field_name, style in (("first_s", "-"), ("last_s", ":")):
            values = sorted(hit[field_name] for hit in of(samples, "takeover", kind=kind))
            if values:
                shares = [(index + 1) / len(values) for index in range(len(values))]
                label = f"{what}, {'first result' if field_name == 'first_s' else 'last server'}"
                axes.step(values, shares, style, where="post", label=label)
    axes.set_xlim(left=0)
    axes.set_xlabel("seconds from the end of its work to the result")
    axes.set_ylabel("share of takeovers")
    axes.set_title("Takeover")
    axes.legend()
    return drawn
