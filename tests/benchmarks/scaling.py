"""The whole path with one, two and three workers on the same machine.

The workers serve before the tasks are written, which takes a part of the first half; the rate is that of the second.
"""

import time
from collections.abc import Iterator, Sequence
from typing import Any, Final

from app.observe.reading import read_account
from app.topics import Names
from tests.benchmarks.bench import Bench, cpu_seconds
from tests.benchmarks.kafka import LIMIT_S, Topics, preloading, rate, watch
from tests.benchmarks.measurement import Measurement, Sample, compared, figure, of
from tests.benchmarks.path import tasks
from tests.benchmarks.traffic import settle

NAME: Final = "scaling"
ABOUT: Final = "the whole path with more workers"


def measure(bench: Bench) -> Iterator[Sample]:
    for number in range(bench.options.pairs):
        turn = number % len(bench.options.workers)
        for count in (*bench.options.workers[turn:], *bench.options.workers[:turn]):
            bench.say(f"round {number + 1} of {bench.options.pairs}: {count} workers")
            yield {"series": "run", "workers": count, "round": f"{bench.scratch.name}-{number}", **_run(bench, count)}


def _run(bench: Bench, count: int) -> Sample:
    total = bench.options.tasks
    with bench.workers(f"scaling-{count}") as workers:
        workers.topics()
        names = tuple(f"w{number + 1}" for number in range(count))
        running = workers.start_ready(*names)
        if count > 1:
            settle(workers, set(names))
        topics = Names(workers.namespace)
        before = sum(cpu_seconds(worker.pid) for worker in running)
        results = Topics(workers.config, {topics.results: workers.settings.routers})
        with preloading(workers.config, topics.tasks, workers.settings.routers, tasks(total)):
            curve = watch(results, total, lambda: len(workers.running) == count)
        cpu = sum(cpu_seconds(worker.pid) for worker in running) - before
        account = read_account(workers.config, workers.namespace, deadline=time.monotonic() + LIMIT_S)
        assert account.ok, f"{account}\n{workers.logs()}"
        assert account.performed == total
        Topics(workers.config, {}).delete(also=topics.prefix)
    return {"tasks": total, "tasks_per_s": rate(curve, total, 0.5), "cpu_us_per_task": cpu / total * 1e6}


def judge(samples: Sequence[Sample]) -> list[Measurement]:
    counts = sorted({run["workers"] for run in of(samples, "run")})
    found = []
    for count in counts:
        runs = of(samples, "run", workers=count)
        title = f"whole path, {count} worker{'s' if count > 1 else ''}"
        if count == counts[0]:
            found.append(figure(title, "tasks/s", [run["tasks_per_s"] for run in runs]))
        else:
            pairs = [
                (run["tasks_per_s"], other["tasks_per_s"])
                for run in runs
                for other in of(samples, "run", workers=counts[0], round=run["round"])
            ]
            found.append(compared(title, "tasks/s", pairs, f"{counts[0]} worker"))
        costs = [run["cpu_us_per_task"] for run in runs]
        found.append(figure(f"{title}: processor time of the workers", "us/task", costs))
    return found


def plot(samples: Sequence[Sample], pyplot: Any) -> Any:
    runs = of(samples, "run")
    counts = sorted({run["workers"] for run in runs})
    drawn, axes = pyplot.subplots(figsize=(6, 4))
    for count in counts:
        rates = [run["tasks_per_s"] / 1_000 for run in of(runs, "run", workers=count)]
        axes.bar(count, sorted(rates)[len(rates) // 2], 0.6, color="tab:blue")
        axes.plot([count] * len(rates), rates, "k.", markersize=4)
    axes.set_xticks(counts)
    axes.set_xlabel("workers")
    axes.set_ylabel("thousand tasks a second")
    axes.set_title("Scaling on one machine")
    return drawn
