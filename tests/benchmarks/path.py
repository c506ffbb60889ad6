"""The whole path: tasks, router, work, session state, results; exactly once; every result is checked.

Preloaded tasks of 1,000 tenants with 5 sessions each, `counter.add` on JSON state. Rates are records a second after
the first tenth; ``cold`` from the start of the process.
"""

import random
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Final

import orjson

from app.observe.reading import read
from app.protocol.murmur2 import partition_of
from app.settings import Settings
from app.topics import connect, ensure
from tests.benchmarks.bench import Bench, Process, cpu_seconds
from tests.benchmarks.kafka import LIMIT_S, Topics, preload, rate, thinned, watch
from tests.benchmarks.measurement import Goal, Measurement, Sample, compared, of
from tests.benchmarks.peers.engines import OURS, PATH, Absent, Engine, variables, wanted
from tests.benchmarks.rounds import rounds

NAME: Final = "path"
ABOUT: Final = "the whole path from tasks to results"
TENANTS: Final = 1_000
SESSIONS: Final = 5
ROUTERS, SERVERS = 4, 8


@dataclass(frozen=True, slots=True)
class Way:
    """The topics of one run of the whole path."""

    run: str

    @property
    def tasks(self) -> str:
        return f"{self.run}.tasks"

    @property
    def work(self) -> str:
        return f"{self.run}.work"

    @property
    def results(self) -> str:
        return f"{self.run}.results"

    @property
    def changelog(self) -> str:
        return f"{self.run}.changelog"


@contextmanager
def way(bench: Bench, engine: Engine, what: str) -> Iterator[Way]:
    """Make the topics of a run, and delete all that it made in the end."""
    made = Way(bench.name(f"{what}-{engine.key}"))
    partitions = {made.tasks: ROUTERS, made.work: SERVERS, made.results: ROUTERS, made.changelog: SERVERS}
    topics = Topics(bench.config, partitions)
    if engine.key == OURS:
        settings = Settings(bootstrap=bench.bootstrap, namespace=made.run)
        ensure(connect(settings), settings)
    else:
        topics.create(compacted=[made.changelog])
    try:
        yield made
    finally:
        topics.delete(also=made.run)


def start(bench: Bench, engine: Engine, made: Way, **more: str) -> Process:
    names = {"IN": made.tasks, "WORK": made.work, "OUT": made.results, "CHANGELOG": made.changelog}
    environment = variables(engine, bench.bootstrap, made.run, bench.scratch / made.run, names) | more
    return Process(engine.prepare(bench.tools), environment, bench.scratch / f"{made.run}.log")


def task(rng: random.Random, number: int) -> tuple[bytes, bytes]:
    """Return the key and the value of a task."""
    tenant = b"t%04d" % rng.randrange(TENANTS)
    session = rng.randrange(SESSIONS)
    return tenant, b'{"id":"%d","tenant":"%b","session":"s%d","type":"counter.add","payload":{"amount":1}}' % (
        number,
        tenant,
        session,
    )


def tasks(count: int) -> Iterator[tuple[int, bytes, bytes]]:
    """Tasks with their partitions."""
    rng = random.Random(3)
    places = {b"t%04d" % number: partition_of(b"t%04d" % number, ROUTERS) for number in range(TENANTS)}
    for number in range(count):
        key, value = task(rng, number)
        yield places[key], key, value


def check(bench: Bench, made: Way, count: int, deadline: float) -> None:
    """One result for each task, and the numbers of each session whole and in order."""
    ends = Topics(bench.config, {made.results: ROUTERS}).ends()
    seen = bytearray(count)
    sequences: dict[tuple[str, str], int] = {}
    for message in read(bench.config, ends, {}, deadline=deadline):
        result = orjson.loads(message.value() or b"")
        number, who = int(result["task"]), (result["tenant"], result["session"])
        expected = sequences.get(who, 0) + 1
        assert result["sequence"] == expected, f"{who}: {result['sequence']} after {expected - 1}"
        assert result["status"] == "done"
        sequences[who] = expected
        assert not seen[number], f"task {number} twice"
        seen[number] = 1
    assert sum(seen) == count, f"{count - sum(seen)} tasks without a result"


def measure(bench: Bench) -> Iterator[Sample]:
    yield from rounds(bench, wanted(PATH, bench.options.engines), lambda engine: _run(bench, engine))


def _run(bench: Bench, engine: Engine) -> Sample:
    count = bench.options.tasks
    with way(bench, engine, "path") as made:
        preload(bench.config, made.tasks, ROUTERS, tasks(count))
        results = Topics(bench.config, {made.results: ROUTERS})
        with start(bench, engine, made) as process:
            try:
                curve = watch(results, count, lambda: process.running)
            except TimeoutError as error:
                raise Absent(f"{error}; it said: {process.tail(3)}") from None
            cpu = cpu_seconds(process.pid)
        check(bench, made, count, time.monotonic() + LIMIT_S)
    return {
        "tasks": count,
        "tasks_per_s": rate(curve, count, 0.1),
        "cold_per_s": count / (curve[-1][0] - process.begun),
        "first_s": curve[1][0] - process.begun,
        "cpu_s": cpu,
        "curve": thinned(curve, process.begun),
    }


def judge(samples: Sequence[Sample]) -> list[Measurement]:
    found = []
    for engine in PATH[1:]:
        goal = None if engine.key == "loop" else Goal("≥", 1.0, of_ratio=True)
        absent = of(samples, "absent", engine=engine.key)
        if absent:
            found.append(Measurement("whole path", "tasks/s", peer=engine.name, goal=goal, absent=absent[-1]["why"]))
            continue
        for kind, limit in (("tasks_per_s", goal), ("cold_per_s", None)):
            pairs = [
                (own[kind], peer[kind])
                for peer in of(samples, "run", engine=engine.key)
                for own in of(samples, "run", engine=OURS, round=peer["round"])
            ]
            if pairs:
                name = "whole path" if limit or kind == "tasks_per_s" else "whole path, cold"
                found.append(compared(name, "tasks/s", pairs, engine.name, goal=limit))
    return found


def plot(samples: Sequence[Sample], pyplot: Any) -> Any:
    keys = [engine.key for engine in PATH if of(samples, "run", engine=engine.key)]
    figure, axes = pyplot.subplots(figsize=(7, 4))
    for index, key in enumerate(keys):
        runs = [run["tasks_per_s"] / 1000 for run in of(samples, "run", engine=key)]
        axes.bar(index, sorted(runs)[len(runs) // 2], 0.6, color="tab:blue")
        axes.plot([index] * len(runs), runs, "k.", markersize=4)
    axes.set_xticks(range(len(keys)), keys, rotation=20)
    axes.set_ylabel("thousand tasks a second")
    axes.set_title("Whole path: median and single runs")
    return figure
