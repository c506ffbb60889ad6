"""State larger than memory: many sessions of 200 bytes in RocksDB and, beside it, in memory.

Every session is made by one task; then tasks hit sessions at random. The second half of those gives the throughput; the
resident memory is the largest that was seen.
"""

import random
import time
from collections.abc import Iterator, Sequence
from typing import Any, Final

from app.observe.reading import read_account
from app.protocol.murmur2 import partition_of
from app.topics import Names
from tests.benchmarks.bench import Bench, cpu_seconds, resident_bytes
from tests.benchmarks.kafka import Curve, Topics, preloading, rate
from tests.benchmarks.measurement import Goal, Measurement, Sample, compared, figure, of
from tests.benchmarks.traffic import KIND, TENANTS, one_each
from tests.support.cluster import Worker

NAME: Final = "large"
ABOUT: Final = "many sessions in RocksDB, beside memory"
STORES: Final = ("rocksdb", "memory")
POLL_S: Final = 0.1
QUIET_S: Final = 2.0
LIMIT_S: Final = 3_600.0
MEANT: Final = 5_000_000


def measure(bench: Bench) -> Iterator[Sample]:
    for number in range(bench.options.pairs):
        for store in STORES if number % 2 == 0 else reversed(STORES):
            bench.say(f"round {number + 1} of {bench.options.pairs}: {store}")
            round_name = f"{bench.scratch.name}-{number}"
            yield {"series": "run", "store": store, "round": round_name, **_run(bench, store)}


def _run(bench: Bench, store: str) -> Sample:
    sessions, updates = bench.options.large_sessions, bench.options.tasks
    with bench.workers(f"large-{store}", store=store) as workers:
        workers.topics()
        names = Names(workers.namespace)
        routers = workers.settings.routers
        worker = workers.start_ready("w1")[0]
        results = Topics(workers.config, {names.results: routers})
        begun = time.time()
        with preloading(workers.config, names.tasks, routers, one_each(sessions, routers)):
            filled, fill_rss = _watch(worker, results, sessions)
        # The ends count control records, so the second part is counted from where the first ended.
        base, cpu = filled[-1][1], cpu_seconds(worker.pid)
        with preloading(workers.config, names.tasks, routers, _updates(sessions, updates, routers)):
            curve, rss = _watch(worker, results, updates, base)
        cpu = cpu_seconds(worker.pid) - cpu
        account = read_account(workers.config, workers.namespace, deadline=time.monotonic() + LIMIT_S)
        assert account.ok, f"{account}\n{workers.logs()}"
        assert account.performed == sessions + updates
        Topics(workers.config, {}).delete(also=names.prefix)
    # Writing the tasks takes a part of the first half.
    own = [(moment, total - base) for moment, total in curve]
    return {
        "sessions": sessions,
        "tasks": updates,
        "fill_per_s": sessions / (filled[-1][0] - begun),
        "tasks_per_s": rate(own, updates, 0.5),
        "cpu_s_per_task": cpu / updates,
        "rss_bytes": max(rss, fill_rss),
    }


def _updates(sessions: int, count: int, routers: int) -> Iterator[tuple[int, bytes, bytes]]:
    rng = random.Random(11)
    tenants = min(TENANTS, sessions)
    keys = [b"t%04d" % number for number in range(tenants)]
    places = [partition_of(key, routers) for key in keys]
    for _ in range(count):
        session = rng.randrange(sessions)
        owner = session % tenants
        value = b'{"tenant":"%b","session":"s%05d","type":"%b","payload":{}}' % (keys[owner], session, KIND.encode())
        yield places[owner], keys[owner], value


def _watch(worker: Worker, topics: Topics, count: int, base: int = 0) -> tuple[Curve, int]:
    """Follow the results until ``count`` more than ``base`` are there and nothing moves; return the largest RSS."""
    curve: Curve = [(time.time(), base)]
    largest, deadline = 0, time.time() + LIMIT_S
    while True:
        total, now = topics.total(), time.time()
        largest = max(largest, resident_bytes(worker.pid))
        if total != curve[-1][1]:
            curve.append((now, total))
        elif total - base >= count and now - curve[-1][0] > QUIET_S:
            return curve, largest
        assert now < deadline, f"{total - base} of {count}\n{worker.tail()}"
        time.sleep(POLL_S)


def judge(samples: Sequence[Sample]) -> list[Measurement]:
    rocks = of(samples, "run", store="rocksdb")
    pairs = [
        (run["tasks_per_s"], other["tasks_per_s"])
        for run in rocks
        for other in of(samples, "run", store="memory", round=run["round"])
    ]
    counts = {run["sessions"] for run in rocks}
    note = " and ".join(f"{count:,} sessions" for count in sorted(counts))
    # Fewer sessions would meet the goals for nothing.
    enough = min(counts, default=0) >= MEANT
    goal = Goal("≥", 0.5, of_ratio=True) if enough else None
    found = [compared("tasks on sessions in RocksDB", "tasks/s", pairs, "memory store", goal=goal, note=note)]
    for store in STORES:
        values = [run["rss_bytes"] / 1e9 for run in of(samples, "run", store=store)]
        limit = Goal("≤", 1.5) if store == "rocksdb" and enough else None
        found.append(figure(f"RSS of the worker, {store}", "GB", values, statistic=max, goal=limit, note=note))
    return found


def plot(samples: Sequence[Sample], pyplot: Any) -> Any:
    return None
