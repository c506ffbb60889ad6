"""Restore from a changelog: rows a second of a cold worker, and what a worker with its local state replays.

Rows are written to the changelog of `sessions` by their codec, 200 bytes of state each. A worker says in its log when
each place was restored and how long that took; the rate is over all places together.
"""

import random
import shutil
import time
from collections.abc import Iterator, Sequence
from typing import Any, Final

from app.protocol.placement import home_of
from app.topics import Names
from tables import sessions
from tests.benchmarks.bench import Bench, cpu_seconds, resident_bytes
from tests.benchmarks.handlers import FILL_BYTES
from tests.benchmarks.kafka import preload
from tests.benchmarks.measurement import Goal, Measurement, Sample, figure, of
from tests.benchmarks.traffic import TENANTS, replayed
from tests.support.cluster import Workers

NAME: Final = "restore"
ABOUT: Final = "restore from the changelog, in memory and RocksDB"
STORES: Final = {"memory": Goal("≥", 300_000), "rocksdb": Goal("≥", 100_000)}
READY_S: Final = 240.0


def measure(bench: Bench) -> Iterator[Sample]:
    rows = bench.options.rows
    for store in STORES:
        with bench.workers(f"restore-{store}", store=store) as workers:
            workers.topics()
            # The group has its offsets before there are rows.
            assert workers.start_ready("w1")[0].sigterm() == 0
            bench.say(f"{store}: {rows:,} rows are written")
            servers = workers.settings.servers
            preload(workers.config, Names(workers.namespace).changelog(sessions.NAME), servers, _rows(rows, servers))
            for number in range(min(3, bench.options.pairs)):
                bench.say(f"{store}: cold, {number + 1}")
                shutil.rmtree(workers.directory / "state")
                yield _restore(workers, store, "cold")
            bench.say(f"{store}: with its local state")
            yield _restore(workers, store, "again")


def _rows(count: int, servers: int) -> Iterator[tuple[int, bytes, bytes]]:
    tenants = [f"t{number:04d}" for number in range(TENANTS)]
    homes = [home_of(tenant.encode(), None, servers) for tenant in tenants]
    rng, now = random.Random(5), round(time.time())
    for number in range(count):
        owner = number % TENANTS
        state = b'{"count":1,"fill":"%0*x"}' % (FILL_BYTES - 21, rng.getrandbits(64))
        row = sessions.encode(1, {0: number}, now, state)
        yield homes[owner], sessions.key_of(tenants[owner], 0, f"s{number:07d}"), row


def _restore(workers: Workers, store: str, kind: str) -> Sample:
    worker = workers.start("w1")
    before = len(worker.text())
    begun = time.monotonic()
    worker.wait_ready(READY_S)
    ready_s = time.monotonic() - begun
    places = [entry for entry in replayed(worker.text()[before:]) if entry[1].startswith("server-")]
    rss, cpu = resident_bytes(worker.pid), cpu_seconds(worker.pid)
    assert worker.sigterm() == 0
    rows = sum(entry[2] for entry in places)
    seconds = max(entry[0] for entry in places) - min(entry[0] - entry[3] for entry in places)
    return {
        "series": "restore",
        "store": store,
        "kind": kind,
        "rows": rows,
        "seconds": seconds,
        "rows_per_s": rows / max(seconds, 1e-3),
        "ready_s": ready_s,
        "rss_bytes": rss,
        "cpu_s": cpu,
    }


def judge(samples: Sequence[Sample]) -> list[Measurement]:
    found = []
    for store, goal in STORES.items():
        cold = of(samples, "restore", store=store, kind="cold")
        if not cold:
            continue
        note = f"{cold[-1]['rows']:,} rows"
        rates = [run["rows_per_s"] for run in cold]
        found.append(figure(f"restore, {store}", "rows/s", rates, goal=goal, note=note))
        found.append(figure(f"restore, {store}: start to ready", "s", [run["ready_s"] for run in cold], note=note))
        again = of(samples, "restore", store=store, kind="again")
        if store != "memory":
            rows = [run["rows"] for run in again]
            found.append(figure(f"restart, {store}: rows replayed", "rows", rows, note="only the tail"))
            found.append(figure(f"restart, {store}: start to ready", "s", [run["ready_s"] for run in again]))
    return found


def plot(samples: Sequence[Sample], pyplot: Any) -> Any:
    return None
