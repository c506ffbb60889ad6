"""Celery with a Redis of its own, which keeps nothing on disk: installed, started, and asked."""

import json
import os
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final

from tests.benchmarks.peers.engines import HERE, Absent, alone, run

NAME: Final = "Celery on Redis"
_START_S: Final = 60.0
_LIMIT_S: Final = 150.0

Run = Callable[..., dict[str, Any]]
"""Runs the client program with these words; returns what it measured."""


def prepare(tools: Path) -> str:
    """Install Celery if need be; return its interpreter."""
    if shutil.which("redis-server") is None:
        raise Absent("there is no redis-server on the search path (Debian: apt install redis-server)")
    place = tools / "venv-celery"
    python = str(place / "bin" / "python")
    with alone(tools):
        if not (place / "ready").exists():
            run([sys.executable, "-m", "venv", "--clear", str(place)], "an environment for Celery")
            run([python, "-m", "pip", "install", "-q", "celery[redis]>=5.5"], "installing Celery")
            (place / "ready").touch()
    return python


@contextmanager
def serving(python: str, directory: Path) -> Iterator[Run]:
    """Run Redis and a worker with as many processes as there are cores."""
    directory.mkdir(parents=True)
    port = _free_port()
    redis = ["redis-server", "--bind", "127.0.0.1", "--port", str(port), "--save", "", "--appendonly", "no"]
    environment = {**os.environ, "CELERY_REDIS": f"redis://127.0.0.1:{port}/0"}
    worker = [python, "-m", "celery", "-A", "celery_job", "worker", "--loglevel", "INFO", "--without-gossip"]

    def ask(*words: str) -> dict[str, Any]:
        command = [python, str(HERE / "celery_job.py"), *words]
        done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=_LIMIT_S, check=False)
        if done.returncode:
            raise Absent(f"{NAME}: {done.stderr.strip().splitlines()[-1:]}")
        measured: dict[str, Any] = json.loads(done.stdout)
        return measured

    log = directory / "worker.log"
    with log.open("wb") as output:
        serving_redis = subprocess.Popen([*redis, "--dir", str(directory)], stdout=output, stderr=output)
        serving_tasks = subprocess.Popen(worker, cwd=HERE, env=environment, stdout=output, stderr=output)
        try:
            _wait(lambda: b" ready." in log.read_bytes())
            yield ask
        finally:
            for process in (serving_tasks, serving_redis):
                process.terminate()
                process.wait(30)


def _wait(true: Callable[[], bool]) -> None:
    deadline = time.monotonic() + _START_S
    while not true():
        if time.monotonic() > deadline:
            raise Absent(f"{NAME}: its worker did not start within {_START_S:.0f} s")
        time.sleep(0.05)


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port
