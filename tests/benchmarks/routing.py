"""What routing costs with few and with many tenants.

``router``: the router agent alone, on records in memory, processor time for each record, all tenants seen before.
``worker``: a whole worker with one session for each tenant, from `tasks` to `results`: its processor time for each
task, sessions and changelog among it, and its resident memory.
"""

import random
import statistics
import time
from collections.abc import Iterator, Sequence
from typing import Any, Final

from app.engine.unit_of_work import Unit
from app.observe.reading import read_account
from app.protocol.murmur2 import partition_of
from app.topics import Names
from tests.benchmarks.bench import Bench, cpu_seconds, resident_bytes
from tests.benchmarks.kafka import LIMIT_S, Topics, preload, watch
from tests.benchmarks.measurement import Goal, Measurement, Sample, compared, figure, of
from tests.benchmarks.traffic import KIND
from tests.unit.agents.workbench import NAMES, Message, batch, make_router

NAME: Final = "routing"
ABOUT: Final = "routing cost with few and with many tenants"
RECORDS: Final = 200_000
BATCH: Final = 5_000


def measure(bench: Bench) -> Iterator[Sample]:
    for number in range(bench.options.pairs):
        for tenants in bench.options.tenants:
            bench.say(f"the router alone, {tenants:,} tenants, {number + 1}")
            yield {"series": "router", "round": f"{bench.scratch.name}-{number}", **_router(tenants)}
    for tenants in bench.options.tenants:
        bench.say(f"a worker, {tenants:,} tenants")
        yield {"series": "worker", **_worker(bench, tenants)}


def _task(tenant: int) -> tuple[bytes, bytes]:
    key = b"tenant-%07d" % tenant
    return key, b'{"tenant":"%b","session":"s","type":"%b","payload":{}}' % (key, KIND.encode())


def _router(tenants: int) -> Sample:
    router, engine = make_router()
    rng = random.Random(tenants)
    chosen = [rng.randrange(tenants) for _ in range(RECORDS)]
    # Seen once, in an order of no meaning; what the router keeps of it is its own choice.
    for start in range(0, tenants, BATCH):
        _pass(router, engine, list(range(start, min(start + BATCH, tenants))))
    seconds = sum(_pass(router, engine, chosen[start : start + BATCH]) for start in range(0, RECORDS, BATCH))
    return {"tenants": tenants, "us_per_record": seconds / RECORDS * 1e6}


def _pass(router: Any, engine: Any, tenants: list[int]) -> float:
    """Route one batch; return the processor seconds of the router alone."""
    records = [Message(number, value, key) for number, (key, value) in enumerate(map(_task, tenants))]
    work = batch(NAMES.tasks, records)
    begun = time.thread_time()
    router.perform(work, time.monotonic() + 60)
    took = time.thread_time() - begun
    engine.unit = Unit(60.0)
    return took


def _worker(bench: Bench, tenants: int) -> Sample:
    count = bench.options.tasks
    rng = random.Random(tenants)
    with bench.workers(f"routing-{tenants}") as workers:
        workers.topics()
        names, routers = Names(workers.namespace), workers.settings.routers
        worker = workers.start_ready("w1")[0]
        results = Topics(workers.config, {names.results: routers})
        preload(workers.config, names.tasks, routers, _placed(range(tenants), routers))
        base = watch(results, tenants, lambda: worker.running)[-1][1]
        cpu = cpu_seconds(worker.pid)
        preload(workers.config, names.tasks, routers, _placed((rng.randrange(tenants) for _ in range(count)), routers))
        watch(results, base + count, lambda: worker.running)
        cpu = cpu_seconds(worker.pid) - cpu
        rss = resident_bytes(worker.pid)
        account = read_account(workers.config, workers.namespace, deadline=time.monotonic() + LIMIT_S)
        assert account.ok, f"{account}\n{workers.logs()}"
        Topics(workers.config, {}).delete(also=names.prefix)
    return {
        "tenants": tenants,
        "tasks": count,
        "us_per_task": cpu / count * 1e6,
        "rss_bytes": rss,
    }


def _placed(tenants: Any, routers: int) -> Iterator[tuple[int, bytes, bytes]]:
    for tenant in tenants:
        key, value = _task(tenant)
        yield partition_of(key, routers), key, value


def judge(samples: Sequence[Sample]) -> list[Measurement]:
    found = []
    counts = sorted({run["tenants"] for run in of(samples, "router")})
    for count in counts[1:]:
        pairs = [
            (run["us_per_record"], other["us_per_record"])
            for run in of(samples, "router", tenants=count)
            for other in of(samples, "router", tenants=counts[0], round=run["round"])
        ]
        goal = Goal("≤", 1.5, of_ratio=True)
        found.append(compared(f"routing, {count:,} tenants", "us/record", pairs, f"{counts[0]:,} tenants", goal=goal))
    whole = of(samples, "worker")
    for count in sorted({run["tenants"] for run in whole}):
        runs = of(samples, "worker", tenants=count)
        title = f"worker with {count:,} tenants"
        found.append(figure(f"{title}: processor time", "us/task", [run["us_per_task"] for run in runs]))
        found.append(figure(f"{title}: RSS", "MiB", [run["rss_bytes"] / 2**20 for run in runs]))
    return found


def plot(samples: Sequence[Sample], pyplot: Any) -> Any:
    drawn, axes = pyplot.subplots(figsize=(6, 4))
    for series, name, label in (
        ("router", "us_per_record", "router alone"),
        ("worker", "us_per_task", "whole worker"),
    ):
        counts = sorted({run["tenants"] for run in of(samples, series)})
        medians = [statistics.median(run[name] for run in of(samples, series, tenants=count)) for count in counts]
        axes.plot(counts, medians, "o-", label=label)
    axes.set_xscale("log")
    axes.set_ylim(bottom=0)
    axes.set_xlabel("tenants")
    axes.set_ylabel("microseconds of processor time a record")
    axes.legend()
    return drawn
