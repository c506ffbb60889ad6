"""Exchanges: latency at a rate, throughput over many, how far backups are behind, restarts after a manager's death.

Celery on Redis answers the same requests in the same run. It remembers nothing that a crash could take away, and its
client and its worker are not restarted; it is here because users would take it otherwise.
"""

import json
import os
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any, Final

from app.client import ClientSession, ServerSession
from app.client.exchanges import Restart
from tests.benchmarks.bench import ROOT, Bench
from tests.benchmarks.measurement import Goal, Measurement, Sample, compared, figure, of, percentile
from tests.benchmarks.peers import task_queue
from tests.benchmarks.peers.engines import Absent
from tests.support.cluster import Workers, wait_for, workers_manage

NAME: Final = "exchanges"
ABOUT: Final = "client-server exchanges, beside Celery on Redis"
LATENCY_EXCHANGES: Final = 50
MEANT_EXCHANGES: Final = 500
MEANT_RATE: Final = 500
WINDOW: Final = 8
LIMIT_S: Final = 150


def measure(bench: Bench) -> Iterator[Sample]:
    options = bench.options
    try:
        peer: str | None = task_queue.prepare(bench.tools)
    except Absent as error:
        peer = None
        yield {"series": "absent", "why": str(error)}
    for number in range(options.pairs):
        for what in ("ours", "theirs") if number % 2 == 0 else ("theirs", "ours"):
            bench.say(f"round {number + 1} of {options.pairs}: {'Holdfast' if what == 'ours' else task_queue.NAME}")
            if what == "ours":
                yield {"series": "round", "number": number, "of": what, **_ours(bench)}
            elif peer is not None:
                yield {"series": "round", "number": number, "of": what, **_theirs(bench, peer)}
    with bench.workers("exchanges") as workers:
        workers.topics()
        workers.start_ready("w1", "w2")
        for number in range(options.exchange_kills):
            bench.say(f"kill {number + 1} of {options.exchange_kills}")
            sample = _takeover(workers, number)
            yield sample
            workers.start_ready(sample["worker"])


def _ours(bench: Bench) -> dict[str, Any]:
    """Throughput through one worker, then latency and the backups' lag with two."""
    options = bench.options
    with bench.workers("exchanges") as workers:
        workers.topics()
        workers.start_ready("w1")
        load = _measured(workers, "throughput", str(options.exchanges), str(options.seconds))
        workers.start_ready("w2")
        wait_for(lambda: workers_manage(workers), 60, "every manager has a backup that has its rows")
        lags: list[float] = []
        with _watching(workers, lags):
            calm = _measured(
                workers, "latency", str(LATENCY_EXCHANGES), str(options.requests_rate), str(options.seconds)
            )
    assert calm["answered"] == calm["sent"], calm
    size = {"exchanges": options.exchanges, "rate": options.requests_rate}
    return {**size, **load, **calm, "lags_ms": lags}


def _measured(workers: Workers, *arguments: str) -> dict[str, Any]:
    """Run a server and a client program; return what the client measured."""
    with _program(workers, "serve", "hpc-1"):
        client = _start(workers, *arguments)
        try:
            told, _ = client.communicate(timeout=LIMIT_S)
        finally:
            client.kill()
        found: dict[str, Any] = json.loads(told)
        return found


@contextmanager
def _program(workers: Workers, *arguments: str) -> Iterator[None]:
    process = _start(workers, *arguments)
    try:
        yield
    finally:
        process.terminate()
        process.communicate(timeout=20)


def _start(workers: Workers, *arguments: str) -> "subprocess.Popen[bytes]":
    config = {"HOLDFAST_BOOTSTRAP": workers.settings.bootstrap, "HOLDFAST_NAMESPACE": workers.namespace}
    command = [sys.executable, "-m", "tests.benchmarks.exchange_programs", *arguments]
    return subprocess.Popen(command, env={**os.environ, **config}, cwd=ROOT, stdout=subprocess.PIPE)


@contextmanager
def _watching(workers: Workers, lags: list[float]) -> Iterator[None]:
    """Collect how far the backups are behind, in milliseconds, ten times a second."""
    stop = threading.Event()

    def watch() -> None:
        while not stop.wait(0.1):
            status, body = workers.running[0].get("/api/exchanges")
            if status == 200:
                lags.extend(entry["backup_lag_ms"] for entry in body["managers"] if entry["backup_lag_ms"] is not None)

    thread = threading.Thread(target=watch, name="backup-lag")
    thread.start()
    try:
        yield
    finally:
        stop.set()
        thread.join()


def _theirs(bench: Bench, python: str) -> dict[str, Any]:
    options = bench.options
    with task_queue.serving(python, bench.scratch / bench.name("celery")) as run:
        load = run("throughput", str(options.exchanges * WINDOW), str(options.seconds))
        return {**load, **run("latency", str(options.requests_rate), str(options.seconds))}


def _takeover(workers: Workers, number: int) -> Sample:
    """Seconds from the kill -9 of an exchange's manager until both sides are restarted."""
    # Nobody moves any more: who takes over and dies before his first unit has restarted nobody, and need not have.
    wait_for(lambda: workers_manage(workers), 60, "every worker hosts managers")
    exchange = f"takeover-{number}"
    told: list[tuple[float, Restart]] = []
    given: list[float] = []
    gate = threading.Event()

    def hold(body: Any, restart: Any) -> tuple[Any, Any]:
        gate.wait(60)
        return body, restart

    server = ServerSession(server=f"hpc-{number}", perform=hold, settings=workers.settings)
    running_server = threading.Thread(target=server.run)
    running_server.start()
    with ClientSession(
        exchange=exchange,
        client="bench",
        settings=workers.settings,
        on_restart=lambda restart: told.append((time.monotonic(), restart)),
    ) as session:
        for n in range(8):
            session.submit({"n": n})
        wait_for(lambda: workers_manage(workers), 60, "every manager has a backup that has its rows")
        name = workers.running[0].get(f"/api/exchanges/{exchange}")[1]["worker"]
        victim = next(worker for worker in workers.running if worker.name == name)
        killed = time.monotonic()
        victim.kill9()

        def restarted() -> bool:
            if not given and server.exchanges[exchange].cause == "manager":
                given.append(time.monotonic())
            return bool(given) and told[-1][1].cause == "manager"

        wait_for(restarted, 60, "both sides are restarted")
        gate.set()
        session.finish()
    server.stop()
    running_server.join()
    return {"series": "kill", "worker": name, "client_s": told[-1][0] - killed, "server_s": given[0] - killed}


def judge(samples: Sequence[Sample]) -> list[Measurement]:
    ours = {one["number"]: one for one in of(samples, "round", of="ours")}
    theirs = {one["number"]: one for one in of(samples, "round", of="theirs")}
    many = all(one["exchanges"] >= MEANT_EXCHANGES for one in ours.values())
    fast = all(one["rate"] >= MEANT_RATE for one in ours.values())
    lines = (
        ("requests over many exchanges", "requests_per_s", "/s", 1, Goal("≥", 5_000) if many else None),
        ("request to response, p50", "p50_s", "ms", 1_000, Goal("≤", 50) if fast else None),
        ("request to response, p99", "p99_s", "ms", 1_000, Goal("≤", 150) if fast else None),
    )
    found = []
    for title, key, unit, factor, goal in lines:
        pairs = [(ours[n][key] * factor, theirs[n][key] * factor) for n in sorted(ours.keys() & theirs.keys())]
        if pairs:
            found.append(compared(title, unit, pairs, task_queue.NAME, goal=goal))
        else:
            note = f"{task_queue.NAME} is absent"
            found.append(figure(title, unit, [one[key] * factor for one in ours.values()], goal=goal, note=note))
    lags = [lag for one in ours.values() for lag in one["lags_ms"]]
    found.append(figure("backups behind under load, p99", "ms", lags, statistic=percentile(0.99), goal=Goal("≤", 200)))
    for side in ("client", "server"):
        runs = [kill[f"{side}_s"] for kill in of(samples, "kill")]
        title = f"{side} restarted after kill -9 of the manager, longest"
        found.append(figure(title, "s", runs, statistic=max, goal=Goal("≤", 3)))
    return found


def plot(_samples: Sequence[Sample], _pyplot: Any) -> None:
    """There is nothing to draw."""
