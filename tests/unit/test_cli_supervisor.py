"""Workers as child processes: start, end, restart, and what is said about it."""

import os
import queue
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import psutil
import pytest
from pydantic import SecretStr

from app.cli import worker_process
from app.cli.supervisor import lock_state_directory
from app.cli.worker_process import QUICK_DEATHS_MAX, Change, WorkerProcess, child_environment
from app.errors import ConfigurationError, HoldfastError
from app.settings import Settings, load

STAND_IN = Path(__file__).parents[1] / "support" / "stand_in.py"
Start = Callable[..., WorkerProcess]


@pytest.fixture
def changes() -> "queue.Queue[Change]":
    return queue.Queue()


@pytest.fixture
def start(tmp_path: Path, changes: "queue.Queue[Change]", monkeypatch: pytest.MonkeyPatch) -> Iterator[Start]:
    monkeypatch.setattr(worker_process, "command_of", lambda name: [sys.executable, str(STAND_IN), "--name", name])
    monkeypatch.setattr(worker_process, "_BACK_OFF_S", 0.01)
    started = []

    def make(name: str, *, restart: bool = False) -> WorkerProcess:
        settings = Settings(namespace="stand-in", state_dir=tmp_path)
        worker = WorkerProcess(name, settings, restart=restart, on_change=changes.put)
        started.append(worker)
        worker.start()
        return worker

    yield make
    for worker in started:
        worker.ask_to_stop()
        worker.wait_until_stopped(5)


def gone(pid: int) -> bool:
    return not psutil.pid_exists(pid) or psutil.Process(pid).status() == psutil.STATUS_ZOMBIE


def wait_for(condition: Callable[[], bool], what: str) -> None:
    deadline = time.monotonic() + 20
    while not condition():
        assert time.monotonic() < deadline, what
        time.sleep(0.02)


def test_a_worker_is_ready_when_it_says_so_and_stops_in_order(start: Start, changes: "queue.Queue[Change]") -> None:
    worker = start("w1")
    worker.wait_until_ready(20)
    assert worker.url == "http://127.0.0.1:1/stand-in"
    assert (worker.state, worker.alive) == ("ready", True)
    assert changes.get(timeout=5).as_json() == {
        "worker": "w1",
        "pid": worker.pid,
        "state": "started",
        "exit": None,
    }
    worker.ask_to_stop()
    worker.wait_until_stopped(20)
    assert changes.get(timeout=5).as_json() == {
        "worker": "w1",
        "pid": worker.pid,
        "state": "stopped",
        "exit": 0,
    }
    assert (worker.state, worker.alive, changes.empty()) == ("stopped", False, True)


def test_a_frozen_or_stubborn_worker_is_stopped_as_well(start: Start, changes: "queue.Queue[Change]") -> None:
    frozen, stubborn = start("w1"), start("stubborn")
    for worker in (frozen, stubborn):
        worker.wait_until_ready(20)
        changes.get(timeout=5)
    frozen.signal(signal.SIGSTOP)
    frozen.ask_to_stop()
    frozen.wait_until_stopped(20)
    assert frozen.process.returncode == 0
    stubborn.ask_to_stop()
    stubborn.wait_until_stopped(0.2)
    assert stubborn.process.returncode == -signal.SIGKILL


def test_a_worker_that_dies_before_it_is_ready_is_quoted(start: Start, changes: "queue.Queue[Change]") -> None:
    worker = start("dies")
    with pytest.raises(HoldfastError, match=r"worker dies ended with exit code 7: it said: .*no luck today"):
        worker.wait_until_ready(20)
    change = changes.get(timeout=5)
    assert (change.state, change.exit) == ("died", 7)
    assert "no luck today" in change.note


def test_a_worker_that_is_not_ready_in_time_is_reported(start: Start) -> None:
    with pytest.raises(HoldfastError, match=r"worker silent is not ready after 0\.3 s"):
        start("silent").wait_until_ready(0.3)


def test_a_killed_worker_stays_dead_unless_restart_is_asked_for(start: Start, changes: "queue.Queue[Change]") -> None:
    mortal, risen = start("w1"), start("w2", restart=True)
    for worker in (mortal, risen):
        worker.wait_until_ready(20)
        assert changes.get(timeout=5).state == "started"
    for worker in (mortal, risen):
        pid = worker.pid
        worker.signal(signal.SIGKILL)
        died = changes.get(timeout=5)
        assert (died.worker, died.pid, died.state, died.exit) == (worker.name, pid, "died", -9)
        assert "ended with SIGKILL" in died.note
    started = changes.get(timeout=20)
    assert (started.worker, started.state) == ("w2", "started")
    assert risen.process.pid == started.pid
    assert (mortal.state, mortal.alive) == ("died", False)


def test_restarts_end_after_several_quick_deaths(start: Start, changes: "queue.Queue[Change]") -> None:
    worker = start("dies", restart=True)
    died = [changes.get(timeout=20) for _ in range(QUICK_DEATHS_MAX)]
    assert {change.state for change in died} == {"died"}
    assert "it is not started again" in died[-1].note
    assert not any("not started again" in change.note for change in died[:-1])
    wait_for(lambda: worker.state == "died", "it is started again and again")
    assert changes.empty()


def test_workers_end_with_their_parent_however_it_ends(tmp_path: Path) -> None:
    program = (
        "import sys, time; from pathlib import Path\n"
        "from app.cli import worker_process as w; from app.settings import Settings\n"
        f"w.command_of = lambda name: [sys.executable, {str(STAND_IN)!r}, '--name', name]\n"
        f"settings = Settings(state_dir=Path({str(tmp_path)!r}))\n"
        "one = w.WorkerProcess('w1', settings, restart=False, on_change=lambda _: None)\n"
        "one.start(); one.wait_until_ready(20); print(one.pid, flush=True); time.sleep(60)\n"
    )
    with subprocess.Popen([sys.executable, "-c", program], stdout=subprocess.PIPE, text=True) as parent:
        assert parent.stdout is not None
        lines = iter(parent.stdout.readline, "")
        pid = int(next(line for line in lines if line.strip().isdecimal()))
        assert not gone(pid)
        parent.kill()
    wait_for(lambda: gone(pid), "the worker outlived its parent")


def test_a_child_gets_exactly_these_settings(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for name in list(os.environ):
        if name.startswith("HOLDFAST_"):
            monkeypatch.delenv(name)
    given = Settings(
        bootstrap="a:1,b:2",
        handlers=("shop.cart", "shop.till"),
        token=SecretStr("geheim"),
        delay=0.5,
        state_dir=tmp_path,
        min_insync=None,
        port=6066,
        advertised_url="https://front",
    )
    monkeypatch.setenv("HOLDFAST_SERVERS", "99")
    monkeypatch.setenv("UNRELATED", "kept")
    environment = child_environment(given)
    assert environment["UNRELATED"] == "kept"
    for name in list(os.environ):
        monkeypatch.delenv(name)
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    assert load(None, {})[0] == given.model_copy(update={"port": 0, "advertised_url": ""})


def test_one_up_per_state_directory(tmp_path: Path) -> None:
    with (
        lock_state_directory(tmp_path),
        pytest.raises(ConfigurationError, match=f"is in use by process {os.getpid()}: stop it"),
    ):
        lock_state_directory(tmp_path)
    lock_state_directory(tmp_path).close()
    (tmp_path / "file").touch()
    with pytest.raises(ConfigurationError, match="cannot be used"):
        lock_state_directory(tmp_path / "file")
