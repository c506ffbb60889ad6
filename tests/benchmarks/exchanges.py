"""Exchanges: latency at a rate, throughput over many, and how soon both sides are restarted after a manager's death.

``.venv/bin/python -m tests.benchmarks.exchanges`` runs all of it on an embedded broker; the functions can be used one
by one. Client and server are programs of their own, as in life: ``… client MODE …`` and ``… server NAME``.
"""

import json
import os
import queue
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

from app.client import ClientSession, ServerSession
from app.client.exchanges import Response, Restart
from app.settings import Settings
from tests.support.broker import Choice, new_namespace, running
from tests.support.cluster import Workers, wait_for

ROOT = Path(__file__).parents[2]


def percentile(values: list[float], share: float) -> float:
    """The value below which this share of them lies."""
    return sorted(values)[min(len(values) - 1, int(len(values) * share))]


# -- the programs ------------------------------------------------------------------------------------------------------


def serve(name: str) -> None:
    """Perform next to nothing."""
    ServerSession(server=name, perform=lambda body, restart: (body, body)).run()


def opened(prefix: str, exchanges: int, **more: Any) -> list[ClientSession]:
    """Open exchanges, several at a time: each waits for its manager."""

    def make(number: int) -> ClientSession:
        return ClientSession(exchange=f"{prefix}-{number}", client="bench", timeout=60, **more)

    with ThreadPoolExecutor(32) as pool:
        return list(pool.map(make, range(exchanges)))


def drive_throughput(exchanges: int, seconds: float) -> dict[str, Any]:
    """As many requests as go, over so many exchanges, with windows of 8, everything acknowledged."""
    ready: queue.SimpleQueue[tuple[int, Future[Response]]] = queue.SimpleQueue()
    sessions = opened("load", exchanges)

    def expect(index: int) -> None:
        sessions[index].expect().add_done_callback(lambda done: ready.put((index, done)))

    sent = [0] * exchanges
    for index, session in enumerate(sessions):
        for _ in range(8):
            sent[index] += 1
            session.submit_nowait({"n": sent[index]}, restart=sent[index])
        expect(index)
    count, counted = 0, 0
    begun = started = time.monotonic()
    warm = started + seconds / 4
    while (now := time.monotonic()) < started + seconds:
        index, done = ready.get()
        response = done.result()
        assert response.body == {"n": response.number}
        session = sessions[index]
        session.acknowledge_nowait(response.number)
        sent[index] += 1
        session.submit_nowait({"n": sent[index]}, restart=sent[index])
        expect(index)
        count += 1
        if now < warm:
            counted, begun = count, now
    return {"requests_per_s": round((count - counted) / (now - begun)), "exchanges": exchanges, "requests": count}


def drive_latency(exchanges: int, rate: float, seconds: float) -> dict[str, Any]:
    """From submission to response, at a rate that does not wait for responses."""
    sessions = opened("rate", exchanges, window=1_000)
    taken: list[float] = []
    accepted: list[float] = []
    lock = threading.Lock()

    waiting: list[dict[int, float]] = [{} for _ in sessions]
    expecting = [False] * exchanges

    def expect(index: int) -> None:
        def done(future: Future[Response]) -> None:
            number = future.result().number
            with lock:
                taken.append(time.monotonic() - waiting[index].pop(number))
                expecting[index] = more = bool(waiting[index])
            sessions[index].acknowledge_nowait(number)
            if more:
                expect(index)

        sessions[index].expect().add_done_callback(done)

    started = time.monotonic()
    total = round(rate * seconds)
    for number in range(total):
        due = started + number / rate
        while (left := due - time.monotonic()) > 0:
            time.sleep(left)
        index = number % exchanges
        with lock:
            waiting[index][number // exchanges + 1] = time.monotonic()
            begin, expecting[index] = not expecting[index], True
        at = time.monotonic()
        stored = sessions[index].submit_nowait({"n": number})
        stored.add_done_callback(lambda _, at=at: accepted.append(time.monotonic() - at))  # type: ignore[misc]
        if begin:
            expect(index)
    deadline = time.monotonic() + 30
    while len(taken) < total and time.monotonic() < deadline:
        time.sleep(0.05)
    warm = taken[len(taken) // 4 :]
    return {
        "rate": rate,
        "stored_p50_ms": round(1000 * percentile(accepted[len(accepted) // 4 :], 0.5), 1),
        "p50_ms": round(1000 * percentile(warm, 0.5), 1),
        "p99_ms": round(1000 * percentile(warm, 0.99), 1),
        "answered": len(taken),
        "sent": total,
    }


# -- the measurements --------------------------------------------------------------------------------------------------


def program(workers: Workers, *arguments: str) -> "subprocess.Popen[bytes]":
    """Start one of the programs above against a cluster."""
    config = {"HOLDFAST_BOOTSTRAP": workers.settings.bootstrap, "HOLDFAST_NAMESPACE": workers.namespace}
    command = [sys.executable, "-m", "tests.benchmarks.exchanges", *arguments]
    return subprocess.Popen(command, env={**os.environ, **config}, cwd=ROOT, stdout=subprocess.PIPE)


def measured(workers: Workers, mode: str, *arguments: str) -> dict[str, Any]:
    """Run a server and a client program; return what the client measured."""
    server = program(workers, "server", "hpc-1")
    try:
        client = program(workers, "client", mode, *arguments)
        told, _ = client.communicate(timeout=150)
        found: dict[str, Any] = json.loads(told)
        return found
    finally:
        server.terminate()
        server.wait(10)
        if server.stdout is not None:
            server.stdout.close()


def throughput(workers: Workers, exchanges: int = 500, seconds: float = 20.0) -> dict[str, Any]:
    """Requests a second over so many exchanges through the workers that run, both programs included."""
    return measured(workers, "throughput", str(exchanges), str(seconds))


def latency(workers: Workers, exchanges: int = 50, rate: float = 500.0, seconds: float = 15.0) -> dict[str, Any]:
    """Request to response at a rate, in milliseconds; and meanwhile how far the backups are behind."""
    lags: list[int] = []
    stop = threading.Event()

    def watch() -> None:
        while not stop.wait(0.1):
            status, body = workers.running[0].get("/api/exchanges")
            if status == 200:
                lags.extend(entry["backup_lag_ms"] for entry in body["managers"] if entry["backup_lag_ms"] is not None)

    watching = threading.Thread(target=watch)
    if len(workers.running) > 1:
        watching.start()
    try:
        found = measured(workers, "latency", str(exchanges), str(rate), str(seconds))
    finally:
        stop.set()
        if watching.ident is not None:
            watching.join()
    if lags:
        found["backup_lag_p99_ms"] = percentile([float(lag) for lag in lags], 0.99)
    return found


def settled(workers: Workers) -> bool:
    """Do all workers that run host managers, and has each manager a backup that has everything?"""
    managers = workers.running[0].get("/api/exchanges")[1]["managers"]
    hosts = {entry["worker"] for entry in managers}
    return len(hosts) == len(workers.running) and all(entry["backup_lag_ms"] == 0 for entry in managers)


def takeover(workers: Workers) -> dict[str, Any]:
    """Seconds from the kill -9 of an exchange's manager until both sides are restarted."""
    told: list[tuple[float, Restart]] = []
    given: list[float] = []
    gate = threading.Event()

    def hold(body: Any, restart: Any) -> tuple[Any, Any]:
        gate.wait(60)
        return body, restart

    server = ServerSession(server="takeover", perform=hold, settings=workers.settings)
    running_server = threading.Thread(target=server.run)
    running_server.start()
    with ClientSession(
        exchange="takeover",
        client="bench",
        settings=workers.settings,
        on_restart=lambda restart: told.append((time.monotonic(), restart)),
    ) as session:
        for number in range(8):
            session.submit({"n": number})
        wait_for(lambda: settled(workers), 60, "every manager has a backup that has its rows")
        name = workers.running[0].get("/api/exchanges/takeover")[1]["worker"]
        victim = next(worker for worker in workers.running if worker.name == name)
        killed = time.monotonic()
        victim.kill9()

        def restarted() -> bool:
            if not given and server.exchanges["takeover"].cause == "manager":
                given.append(time.monotonic())
            return bool(given) and told[-1][1].cause == "manager"

        wait_for(restarted, 60, "both sides are restarted")
        gate.set()
        session.finish()
    server.stop()
    running_server.join()
    return {"client_s": round(told[-1][0] - killed, 2), "server_s": round(given[0] - killed, 2)}


def main(arguments: list[str]) -> None:
    match arguments:
        case ["server", name]:
            serve(name)
        case ["client", "throughput", exchanges, seconds]:
            print(json.dumps(drive_throughput(int(exchanges), float(seconds))))
            sys.stdout.flush()
            os._exit(0)  # without closing 500 exchanges one by one
        case ["client", "latency", exchanges, rate, seconds]:
            print(json.dumps(drive_latency(int(exchanges), float(rate), float(seconds))))
            sys.stdout.flush()
            os._exit(0)
        case _:
            run(set(arguments) or {"latency", "throughput", "takeover"})


def run(wanted: set[str]) -> None:
    """All of it, on a broker of its own; each on fresh workers."""
    plans: Mapping[str, tuple[tuple[str, ...], Any]] = {
        "latency": (("w1", "w2"), latency),
        "throughput": (("w1",), throughput),
        "takeover": (("w1", "w2"), takeover),
    }
    with running(Choice("embedded", "benchmark")) as bootstrap, tempfile.TemporaryDirectory() as directory:
        for name in sorted(wanted):
            names, measure = plans[name]
            with Workers(bootstrap, new_namespace(), Path(directory) / name) as workers:
                assert isinstance(workers.settings, Settings)
                workers.topics()
                workers.start_ready(*names)
                print(name, json.dumps(measure(workers)), flush=True)


if __name__ == "__main__":
    main(sys.argv[1:])
