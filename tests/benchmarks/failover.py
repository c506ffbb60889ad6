"""Failover: a worker is killed under load, its servers fail at once, it returns, its sessions come home.

Probe sessions are sent a task every 10 ms; the *gap* of one is the longest time between two of its results, less those
10 ms. Half of the probes live on servers of the worker that is killed, the others must not notice. How long sessions
are on their way is told by events: from the view to the last server that is done with it. Beside it, what it costs to
compute where a session goes.
"""

import bisect
import itertools
import time
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from datetime import datetime
from typing import Any, Final

import orjson

from app.protocol.backup_order import backup_order
from app.protocol.murmur2 import partition_of
from app.protocol.placement import Routes, home_of, session_key
from tests.benchmarks.bench import Bench
from tests.benchmarks.kafka import LIMIT_S
from tests.benchmarks.measurement import Goal, Measurement, Sample, figure, of, percentile
from tests.benchmarks.traffic import KIND, Results, Sender, account, hosted, plan, populate, settle
from tests.support.cluster import Workers
from tests.support.load import Load
from tests.support.moves import Mover

NAME: Final = "failover"
ABOUT: Final = "sessions of a killed worker's servers, there and back"
WORKERS: Final = ("w1", "w2", "w3")
INTERVAL_S: Final = 0.01
BEFORE_S: Final = 5.0
AFTER_S: Final = 3.0
MEANT: Final = 100_000
CALLS: Final = 2_000
SERVERS: Final = 64
EVENTS: Final = {"kill": "there", "return": "and back"}


class Probes(Sender):
    """Sends to one session on each of many servers; notes the latency of every result."""

    def __init__(self, workers: Workers, count: int) -> None:
        super().__init__(workers, "probes")
        servers = workers.settings.servers
        self._by_server: dict[int, list[str]] = defaultdict(list)
        number = 0
        while any(len(self._by_server[server]) < max(1, count // servers) for server in range(servers)):
            tenant = f"probe-{number:04d}"
            home = home_of(tenant.encode(), None, servers)
            if len(self._by_server[home]) < max(1, count // servers):
                self._by_server[home].append(tenant)
            number += 1
        self.tenants = [tenant for tenants in self._by_server.values() for tenant in tenants]
        self._results: dict[str, list[tuple[float, float]]] = {tenant: [] for tenant in self.tenants}
        self._at: list[float] = []

    def at(self, servers: set[int]) -> list[str]:
        """The probes at home at these servers."""
        return [tenant for server in sorted(servers) for tenant in self._by_server[server]]

    def _send(self) -> None:
        entries = [(tenant, tenant.encode(), partition_of(tenant.encode(), self._routers)) for tenant in self.tenants]
        due = time.monotonic()
        while not self._stop.is_set():
            for tenant, key, partition in entries:
                task = {"id": f"p/{self.sent}", "tenant": tenant, "session": "probe", "type": KIND, "payload": {}}
                self._at.append(time.monotonic())
                self._producer.produce(self._topic, orjson.dumps(task), key, partition)
                self.sent += 1
            self._producer.poll(0)
            due += INTERVAL_S
            time.sleep(max(0.0, due - time.monotonic()))

    def take(self, result: dict[str, Any], moment: float) -> None:
        found = self._results.get(result["tenant"])
        if found is not None:
            found.append((moment, moment - self._at[int(result["task"][2:])]))

    def gap(self, tenant: str, since: float, until: float) -> float:
        """The longest silence of a probe that ends behind ``since``."""
        moments = [moment for moment, _ in self._results[tenant]]
        first = max(0, bisect.bisect(moments, since) - 1)
        times = [*moments[first : bisect.bisect(moments, until)], until]
        return max(0.0, max((later - one for one, later in itertools.pairwise(times)), default=0.0) - INTERVAL_S)

    def first(self, tenants: Sequence[str], since: float) -> float:
        """The first result of any of them that was sent and came behind ``since``."""
        return min(at for tenant in tenants for at, took in self._results[tenant] if at - took > since)

    def p99(self, tenants: Sequence[str], begin: float, end: float) -> float:
        took = [took for tenant in tenants for at, took in self._results[tenant] if begin <= at < end]
        return percentile(0.99)(took)


def measure(bench: Bench) -> Iterator[Sample]:
    options = bench.options
    yield from _computed()
    with (
        bench.workers("failover", rehome_after=0) as workers,
        Mover(workers.config, workers.namespace) as mover,
    ):
        workers.topics()
        workers.start_ready(*WORKERS)
        bench.say(f"{options.sessions:,} sessions are made")
        populate(workers, options.sessions)
        probes = Probes(workers, options.probes)
        rate = max(1, options.rate - round(len(probes.tenants) / INTERVAL_S))
        load = Load(workers.config, workers.namespace, plan(options.sessions, tasks=10**8, rate=rate))
        with Results(workers, probes.take):
            load.start()
            probes.start()
            for number in range(options.moves):
                bench.say(f"failover {number + 1} of {options.moves}")
                for sample in _round(workers, mover, probes, WORKERS[number % len(WORKERS)]):
                    yield {"series": "failover", "sessions": options.sessions, "number": number, **sample}
            probes.stop()
            load.stop()
            load.join()
        yield account(workers, options.sessions + load.acknowledged + probes.sent)


def _round(workers: Workers, mover: Mover, probes: Probes, name: str) -> Iterator[Sample]:
    """Kill a worker, let its sessions go, start it again, let them come home."""
    settle(workers, set(WORKERS))
    servers = hosted(workers)[name]
    victim = next(worker for worker in workers.running if worker.name == name)
    mine = probes.at(servers)
    others = [tenant for tenant in probes.tenants if tenant not in set(mine)]
    for event in EVENTS:
        quiet = time.monotonic()
        time.sleep(BEFORE_S)
        begun = time.monotonic()
        mover.poll()
        seen = len(mover.events)
        if event == "kill":
            victim.kill9()
        else:
            workers.start(name)
        view = _closed(mover, seen, workers.settings.servers)
        time.sleep(AFTER_S)
        ended = time.monotonic()
        sample = {
            "event": event,
            "gaps_mine_s": [probes.gap(tenant, begun, ended) for tenant in mine],
            "gaps_others_s": [probes.gap(tenant, begun, ended) for tenant in others],
            "p99_before_s": probes.p99(others, quiet, begun),
            "p99_during_s": probes.p99(others, begun, ended),
            **view,
        }
        if event == "kill":
            sample["takeover_s"] = probes.first(mine, begun) - begun
        yield sample
    workers.running[-1].wait_ready()


def _closed(mover: Mover, seen: int, servers: int) -> Sample:
    """Wait until every server is done with the next view; how long sessions were on their way, and how many."""

    def ends() -> list[dict[str, Any]]:
        return [event for event in mover.events[seen:] if "certificate" in event]

    mover.until(lambda: len({event["server"] for event in ends()}) == servers, "the view is closed", LIMIT_S)
    view = ends()[0]["view"]
    begun = min(_at(event) for event in mover.events[seen:] if event.get("view") == view)
    rows = sum(line["rows"] for event in ends() for line in event["certificate"] if line["source"] == event["server"])
    return {"view": view, "rows": rows, "moved_s": max(_at(event) for event in ends()) - begun}


def _at(event: dict[str, Any]) -> float:
    return datetime.fromisoformat(event["at"]).timestamp()


def _computed() -> Iterator[Sample]:
    """What the pure functions take, in microseconds a call."""
    keys = [session_key("acme", f"cart-{number}") for number in range(CALLS)]
    yield {"series": "computed", "what": "order", "us": _timed(lambda n: backup_order(keys[n], 1_000), CALLS // 10)}
    up = frozenset(range(1, SERVERS))
    routes = Routes()
    sessions = [f"cart-{number}" for number in range(CALLS)]
    for what, home in (("up", 1), ("down", 0)):
        yield {
            "series": "computed",
            "what": f"route, home {what}",
            "us": _timed(lambda n, home=home: routes.route("acme", sessions[n], home, up), CALLS),  # type: ignore[misc]
        }
    yield {
        "series": "computed",
        "what": "route, home down, again",
        "us": _timed(lambda n: routes.route("acme", sessions[n], 0, up), CALLS),
    }


def _timed(call: Callable[[int], object], count: int) -> float:
    begun = time.perf_counter()
    for number in range(count):
        call(number)
    return (time.perf_counter() - begun) / count * 1e6


LIMITS: Final = {"order": 1_000.0, "route, home up": 2.0, "route, home down": 12.0}


def judge(samples: Sequence[Sample]) -> list[Measurement]:
    found = []
    for event, what in EVENTS.items():
        runs = of(samples, "failover", event=event)
        enough = bool(runs) and all(run["sessions"] >= MEANT for run in runs)
        mine = [gap for run in runs for gap in run["gaps_mine_s"]]
        others = [gap for run in runs for gap in run["gaps_others_s"]]
        goal = None
        if event == "kill" and enough:
            takeover = percentile(0.95)([run["takeover_s"] for run in runs])
            goal = Goal("≤", round(takeover + 0.8, 3))
            found.append(figure("failover: takeover, p95", "s", [takeover]))
        title = f"failover, {what}: longest gap of a session"
        found.append(figure(f"{title} that moves, p95", "s", mine, statistic=percentile(0.95), goal=goal))
        limit = Goal("≤", 0.5) if enough else None
        found.append(figure(f"{title} that stays, p95", "s", others, statistic=percentile(0.95), goal=limit))
        ratios = [run["p99_during_s"] / run["p99_before_s"] for run in runs]
        limit = Goal("≤", 1.5) if enough else None
        found.append(figure(f"failover, {what}: p99 of those that stay to before", "", ratios, goal=limit))
        per = [run["moved_s"] * MEANT / max(1, run["rows"]) for run in runs]
        moved = [run["moved_s"] for run in runs]
        rows = f"{round(sum(run['rows'] for run in runs) / max(1, len(runs))):,} sessions"
        found.append(figure(f"failover, {what}: sessions on their way", "s", moved, note=rows))
        if enough:
            found.append(figure(f"failover, {what}: the same for 100,000", "s", per, goal=Goal("≤", 5.0)))
    for what in dict.fromkeys(run["what"] for run in of(samples, "computed")):
        goal = Goal("≤", LIMITS[what]) if what in LIMITS else None
        found.append(figure(what, "us", [run["us"] for run in of(samples, "computed", what=what)], goal=goal))
    return found


def plot(samples: Sequence[Sample], pyplot: Any) -> Any:
    drawn, axes = pyplot.subplots(figsize=(7, 4))
    for event, what in EVENTS.items():
        for name, style, who in (("gaps_mine_s", "-", "that move"), ("gaps_others_s", ":", "that stay")):
            values = sorted(gap for run in of(samples, "failover", event=event) for gap in run[name])
            if values:
                shares = [(index + 1) / len(values) for index in range(len(values))]
                axes.step(values, shares, style, where="post", label=f"{what}, {who}")
    axes.set_xlim(left=0)
    axes.set_xlabel("longest gap of a session, seconds")
    axes.set_ylabel("share of sessions and failovers")
    axes.set_title("Failover")
    axes.legend()
    return drawn
