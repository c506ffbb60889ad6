"""Migrations under load: how long the tenant stands still, what its neighbours notice, how fast parked tasks leave.

The pause is the time between the last result of the tenant's old server and the first of its new one, as a consumer of
`results` sees them. It is measured for a tenant with few sessions and for one with many, both of which get tasks at a
steady rate; neighbours get as many. Their latency is compared in pairs that follow each other: a time in which nothing
moves, about as long as a copy, and the copy. For the release a tenant is parked for the whole copy while tasks pile up.
"""

import bisect
import random
import time
from collections.abc import Iterator, Sequence
from datetime import datetime
from typing import Any, Final

import orjson

from app.client.commands import Commands
from app.observe.reading import wait_for_results
from app.protocol.murmur2 import partition_of
from app.protocol.pacing import SWEEP
from app.protocol.placement import home_of
from app.topics import Names
from tests.benchmarks.bench import Bench
from tests.benchmarks.handover import steps
from tests.benchmarks.kafka import LIMIT_S, preload
from tests.benchmarks.measurement import Goal, Measurement, Sample, compared, figure, of, percentile
from tests.benchmarks.traffic import KIND, Results, Sender, account, settle
from tests.support.cluster import Workers, wait_for
from tests.support.moves import Mover

NAME: Final = "migration"
ABOUT: Final = "migrations of a tenant under load"
WORKERS: Final = ("w1", "w2")
FEW: Final = 10
MEANT: Final = {"sessions": 200_000, "rate": 1_000, "parked": 100_000}
NEIGHBOURS: Final = 100
SLOT_S: Final = 0.005
BEFORE_S: Final = 3.0
QUIET_MAX_S: Final = 10.0
GAP_S: Final = 0.5
AFTER_S: Final = 1.0
WARM_S: Final = 2.0
SWEPT: Final = 1.3
"""So many times as long as it should take is waited for the deletion of what has left."""
DRAWN: Final = 4_000
PARTS: Final = ("drain", "ship", "install", "decide", "open")


class Traffic(Sender):
    """Tasks at a steady rate for one tenant and its neighbours; every result gives a latency."""

    def __init__(self, workers: Workers, tenant: str, sessions: int, rate: int) -> None:
        super().__init__(workers, "traffic")
        self.mine: list[tuple[float, float, int]] = []
        self.others: list[tuple[float, float, int]] = []
        self._tenant = tenant
        self._sessions = sessions
        self._rate = rate
        self._at: list[float] = []
        self._run = f"{tenant}-{time.monotonic_ns()}"

    def _send(self) -> None:
        rng = random.Random(1)
        begun = time.monotonic()
        while not self._stop.is_set():
            while len(self._at) < (time.monotonic() - begun) * self._rate * 2:
                self._one(rng, len(self._at))
            self._producer.poll(0)
            time.sleep(SLOT_S)

    def _one(self, rng: random.Random, number: int) -> None:
        mine = number % 2 == 0
        tenant = self._tenant if mine else f"n{number // 2 % NEIGHBOURS:03d}"
        session = f"s{rng.randrange(self._sessions):06d}" if mine else f"s{rng.randrange(10):06d}"
        task = {"id": f"{self._run}/{number}", "tenant": tenant, "session": session, "type": KIND, "payload": {}}
        self._at.append(time.monotonic())
        key = tenant.encode()
        self._producer.produce(self._topic, orjson.dumps(task), key, partition_of(key, self._routers))
        self.sent += 1

    def take(self, result: dict[str, Any], moment: float) -> None:
        run, _, number = result["task"].rpartition("/")
        if run == self._run:
            mine = result["tenant"] == self._tenant
            (self.mine if mine else self.others).append((moment, moment - self._at[int(number)], result["server"]))

    def pause(self, old: int, new: int) -> tuple[float, float]:
        """The moments of the last result of the one server and of the first of the other after it."""
        last = max(moment for moment, _, server in self.mine if server == old)
        return last, min(moment for moment, _, server in self.mine if server == new and moment > last)

    def reached(self, server: int) -> bool:
        """Did the tenant's last result come from this server?"""
        return bool(self.mine) and self.mine[-1][2] == server

    def neighbours(self, begin: float, end: float) -> list[float]:
        """Latencies of the neighbours' results that came between these moments; of the last one, if there are none."""
        found = [took for moment, took, _ in self.others if begin <= moment < end]
        return found or [self.others[-1][1]]


def measure(bench: Bench) -> Iterator[Sample]:
    options = bench.options
    with (
        bench.workers("migration", migration_timeout=120) as workers,
        Mover(workers.config, workers.namespace) as mover,
    ):
        workers.topics()
        workers.start_ready(*WORKERS)
        settle(workers, set(WORKERS))
        sent, tenant = 0, ""
        for size in (FEW, options.moving_sessions):
            tenant = f"moving-{size}"
            sent += _populate(workers, tenant, size, sent)
            bench.say(f"{options.migrations} migrations of a tenant with {size} sessions")
            traffic = Traffic(workers, tenant, size, options.moving_rate)
            with Results(workers, traffic.take):
                traffic.start()
                time.sleep(WARM_S)
                quiet_s = BEFORE_S
                for number in range(options.migrations):
                    paired = size != FEW and number < options.pairs
                    sample = _move(workers, mover, traffic, tenant, number, quiet_s if paired else GAP_S)
                    quiet_s = min(QUIET_MAX_S, sample["copied_s"])
                    if paired:
                        sample |= _sweeping(traffic, sample["rows"])
                    known = {"sessions": size, "rate": options.moving_rate, "number": number, "paired": paired}
                    yield {"series": "move", **known, **sample}
                traffic.stop()
                _wait_for_all(workers, sent + traffic.sent)
            sent += traffic.sent
        bench.say(f"{options.releases} releases")
        for _ in range(options.releases):
            sample = _release(workers, mover, tenant, options.parked)
            sent += options.parked
            _wait_for_all(workers, sent)
            yield sample
        yield account(workers, sent)


def _populate(workers: Workers, tenant: str, sessions: int, before: int) -> int:
    key = tenant.encode()
    where = partition_of(key, workers.settings.routers)

    def tasks() -> Iterator[tuple[int, bytes, bytes]]:
        for number in range(sessions):
            yield where, key, _task(key, number, sessions)

    preload(workers.config, Names(workers.namespace).tasks, workers.settings.routers, tasks())
    _wait_for_all(workers, before + sessions)
    return sessions


def _wait_for_all(workers: Workers, count: int) -> None:
    """Until so many results are there: what comes next has nothing before it."""
    seen = wait_for_results(workers.config, workers.namespace, count, deadline=time.monotonic() + LIMIT_S)
    assert seen == count, f"{seen} of {count}\n{workers.logs()}"


def _task(key: bytes, number: int, sessions: int) -> bytes:
    session = b"s%06d" % (number % sessions)
    return b'{"tenant":"%b","session":"%b","type":"%b","payload":{}}' % (key, session, KIND.encode())


def _target(workers: Workers, tenant: str) -> tuple[int, int]:
    """Where the tenant is, and the next server that another worker hosts."""
    worker = workers.running[0]
    _, shown = worker.get(f"/api/tenants/{tenant}")
    _, status = worker.get("/api/status")
    hosts = {entry["server"]: entry["host"] for entry in status["servers"]}
    home = shown["home"] if isinstance(shown, dict) else home_of(tenant.encode(), None, len(hosts))
    ahead = [(home + step) % len(hosts) for step in range(1, len(hosts))]
    return home, next(server for server in ahead if hosts[server] != hosts[home])


def _move(workers: Workers, mover: Mover, traffic: Traffic, tenant: str, number: int, quiet_s: float) -> dict[str, Any]:
    """Move the tenant, after so long a time in which nothing moves."""
    home, target = _target(workers, tenant)
    time.sleep(quiet_s)
    begun = time.monotonic()
    epoch_s = time.time() - begun
    event = mover.succeed(tenant, target, timeout=LIMIT_S)
    ended = time.monotonic()
    wait_for(lambda: traffic.reached(target), LIMIT_S, f"a result of server {target}")
    time.sleep(AFTER_S if number == 0 else 0)
    phases = [(e["phase"], _at(e) - epoch_s - begun) for e in mover.events if _is_phase(e, event)]
    copied = dict(phases)["cutting"]
    last, first = traffic.pause(home, target)
    cut_ms = int((epoch_s + begun + copied) * 1000)
    said = steps(workers.config, mover.names, workers.settings.routers, event, cut_ms)
    sample = {
        "pause_s": first - last,
        "parts_s": _parts(said, epoch_s + last, epoch_s + first),
        "late_rows": said.get("late_rows"),
        "router_pause_s": event["pause_ms"] / 1000,
        "took_s": ended - begun,
        "copied_s": copied,
        "parked": event["parked"],
        "rows": event["rows"],
        "bytes": event["bytes"],
        "p99_before_s": percentile(0.99)(traffic.neighbours(begun - quiet_s, begun)),
        "p99_copying_s": percentile(0.99)(traffic.neighbours(begun, begun + copied)),
        "phases": phases,
    }
    if number == 0:
        # Enough to draw one.
        for name, found in (("mine", traffic.mine), ("others", traffic.others)):
            recent = [(moment - begun, took) for moment, took, _ in found if moment > begun - BEFORE_S]
            sample[name] = recent[:: max(1, len(recent) // DRAWN)]
    return sample


def _sweeping(traffic: Traffic, rows: int) -> dict[str, float]:
    """What neighbours notice while the old server deletes what it had; then that is over, and nothing moves."""
    begun = time.monotonic()
    takes_s = rows / SWEEP.rows * SWEEP.period_s
    time.sleep(takes_s * SWEPT)
    return {"p99_sweeping_s": percentile(0.99)(traffic.neighbours(begun, begun + takes_s))}


def _parts(said: dict[str, Any], last: float, first: float) -> dict[str, float]:
    """What the pause consists of, in seconds; nothing if a record was deleted before it could be read.

    From the last result to the source's last word (``ship``), from there to the target's (``install``), to the
    router's (``decide``), and to the first result (``open``). ``drain``: how long after the cut the last result came.
    """
    if not said.keys() >= {"cut", "complete", "installed", "commit"}:
        return {}
    cut, shipped, installed, decided = (said[name] / 1000 for name in ("cut", "complete", "installed", "commit"))
    return {
        "drain": last - cut,
        "ship": shipped - last,
        "install": installed - shipped,
        "decide": decided - installed,
        "open": first - decided,
    }


def _is_phase(event: dict[str, Any], end: dict[str, Any]) -> bool:
    return bool(
        event["event"] == "migration-phase" and event["tenant"] == end["tenant"] and event["epoch"] == end["epoch"]
    )


def _at(event: dict[str, Any]) -> float:
    return datetime.fromisoformat(event["at"]).timestamp()


def _release(workers: Workers, mover: Mover, tenant: str, count: int) -> Sample:
    """Park so many tasks during the copy of an offline migration, and see them leave."""
    _, target = _target(workers, tenant)
    key = tenant.encode()
    where = partition_of(key, workers.settings.routers)
    names = Names(workers.namespace)
    with Commands(workers.settings) as commands:
        ordered = commands.order("migrate", tenant=tenant, to=target, offline=True)
        values = ((where, key, _task(key, number, 1_000)) for number in range(count))
        preload(workers.config, names.tasks, workers.settings.routers, values)
        commands.end(ordered, LIMIT_S)
    event = mover.end(ordered, LIMIT_S)
    assert event["event"] == "migration-succeeded", event
    begun = next(_at(e) for e in mover.events if _is_phase(e, event) and e["phase"] == "releasing")
    return {"series": "release", "parked": event["parked"], "took_s": max(0.001, _at(event) - begun)}


def judge(samples: Sequence[Sample]) -> list[Measurement]:
    """Goals are judged at the size that they name: the rate of the tenant, and the sessions of the large one."""
    found = []
    moves = of(samples, "move")
    sizes = sorted({move["sessions"] for move in moves})
    fast = bool(moves) and all(move["rate"] >= MEANT["rate"] for move in moves)
    full = fast and sizes[-1] >= MEANT["sessions"]
    pauses = {}
    for size in sizes:
        these = of(samples, "move", sessions=size)
        runs = [move["pause_s"] * 1000 for move in these]
        pauses[size] = percentile(0.95)(runs)
        title = f"pause of a tenant with {size} sessions"
        goal = Goal("≤", 300) if full or (fast and size == FEW) else None
        found.append(figure(f"{title}, p95", "ms", runs, statistic=percentile(0.95), goal=goal))
        found.append(figure(f"{title}, p50", "ms", runs))
        found.append(
            figure(f"{title}, whole move", "s", [move["took_s"] for move in moves if move["sessions"] == size])
        )
        for part in PARTS:
            parts = [move["parts_s"][part] * 1000 for move in these if move.get("parts_s")]
            found.append(figure(f"{title}, {part}, p50", "ms", parts))
        late = [float(move["late_rows"]) for move in these if move.get("late_rows") is not None]
        found.append(figure(f"rows of {size} sessions sent after the cut, p50", "", late))
    if len(sizes) > 1:
        ratio = pauses[sizes[-1]] / pauses[sizes[0]]
        goal = Goal("≤", 1.5) if full else None
        found.append(figure(f"pause with {sizes[-1]} to {sizes[0]} sessions, p95", "", [ratio], goal=goal))
    pairs = [(move["p99_copying_s"] * 1000, move["p99_before_s"] * 1000) for move in of(samples, "move", paired=True)]
    title = f"neighbours' p99 while {sizes[-1] if sizes else 0} sessions are copied"
    limit = Goal("≤", 1.5, of_ratio=True) if full else None
    found.append(compared(title, "ms", pairs, "nothing moves", goal=limit))
    swept = [(move["p99_sweeping_s"] * 1000, move["p99_before_s"] * 1000) for move in moves if "p99_sweeping_s" in move]
    title = f"neighbours' p99 while {sizes[-1] if sizes else 0} sessions are deleted"
    found.append(compared(title, "ms", swept, "nothing moves"))
    releases = of(samples, "release")
    rates = [run["parked"] / run["took_s"] for run in releases]
    goal = Goal("≥", 50_000) if all(run["parked"] >= MEANT["parked"] for run in releases) else None
    found.append(figure("parked tasks released", "tasks/s", rates, goal=goal))
    return found


def plot(samples: Sequence[Sample], pyplot: Any) -> Any:
    drawn, axes = pyplot.subplots(figsize=(9, 4))
    shown = [move for move in of(samples, "move", number=0) if "mine" in move]
    if shown:
        move = shown[-1]
        phases = dict(move["phases"])
        edges = [0.0, phases.get("cutting", 0.0), phases.get("releasing", 0.0), move["took_s"]]
        for number, phase in enumerate(("copying", "cutting", "releasing")):
            axes.axvspan(
                edges[number], edges[number + 1], alpha=0.15 + 0.1 * number, color=f"C{number + 2}", label=phase
            )
        for name, what in (("others", "neighbours"), ("mine", "the tenant")):
            points = sorted(tuple(point) for point in move[name])
            last = bisect.bisect([moment for moment, _ in points], move["took_s"] + BEFORE_S)
            axes.plot(*zip(*[(at, took * 1000) for at, took in points[:last]], strict=True), ".", ms=2, label=what)
        axes.set_yscale("log")
        axes.legend(markerscale=5)
    axes.set_xlabel("seconds since the order")
    axes.set_ylabel("latency, ms")
    axes.set_title("A tenant moves under load")
    return drawn
