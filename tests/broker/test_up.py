"""`holdfast up` and a worker in the foreground, as programs that know nothing but the contract see them."""

import json
import os
import queue
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import psutil
import pytest

from app.cli.supervisor import Cluster
from app.client import Client
from app.errors import ConfigurationError
from app.settings import Settings
from tests.support.web import ask

pytestmark = [pytest.mark.broker, pytest.mark.timeout(240)]

READY_S = 90
STOPPED_S = 40


def environment(**settings: str) -> dict[str, str]:
    clean = {name: value for name, value in os.environ.items() if not name.startswith("HOLDFAST_")}
    return clean | {"HOLDFAST_SERVERS": "4", "HOLDFAST_ROUTERS": "2", **settings}


class Program:
    """A `holdfast` command with --json; its lines are read as they come."""

    def __init__(self, *arguments: str, **settings: str) -> None:
        self.process = subprocess.Popen(
            [sys.executable, "-P", "-m", "app", *arguments, "--json"],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            env=environment(**settings),
        )
        self._lines: queue.Queue[str | None] = queue.Queue()
        threading.Thread(target=self._read, daemon=True).start()

    def _read(self) -> None:
        assert self.process.stdout is not None
        for line in self.process.stdout:
            self._lines.put(line)
        self._lines.put(None)

    def line(self, timeout: float = READY_S) -> dict[str, Any]:
        line = self._lines.get(timeout=timeout)
        if line is None:
            self.process.wait()
            assert self.process.stderr is not None
            pytest.fail(f"it ended with {self.process.returncode}: {self.process.stderr.read()}")
        found = json.loads(line)
        assert isinstance(found, dict)
        return found

    def rest(self) -> list[dict[str, Any]]:
        lines = []
        while (line := self._lines.get(timeout=STOPPED_S)) is not None:
            lines.append(json.loads(line))
        return lines

    def stop(self, number: signal.Signals = signal.SIGTERM) -> int:
        self.process.send_signal(number)
        return self.process.wait(STOPPED_S)

    def close(self) -> None:
        if self.process.poll() is None:
            self.process.terminate()
            try:
                self.process.wait(STOPPED_S)
            except subprocess.TimeoutExpired:
                self.process.kill()
                self.process.wait()
        for stream in (self.process.stdout, self.process.stderr):
            if stream is not None:
                stream.close()


Start = Callable[..., Program]


@pytest.fixture
def start() -> Iterator[Start]:
    with ExitStack() as stack:

        def run(*arguments: str, **settings: str) -> Program:
            program = Program(*arguments, **settings)
            stack.callback(program.close)
            return program

        yield run


def holdfast(*arguments: str, **settings: str) -> tuple[int, list[Any], str]:
    done = subprocess.run(
        [sys.executable, "-P", "-m", "app", *arguments, "--json"],
        capture_output=True,
        text=True,
        env=environment(**settings),
        timeout=READY_S,
        check=False,
    )
    return done.returncode, [json.loads(line) for line in done.stdout.splitlines()], done.stderr


def gone(pid: int) -> bool:
    return not psutil.pid_exists(pid) or psutil.Process(pid).status() == psutil.STATUS_ZOMBIE


def wait_for(condition: Callable[[], object], what: str, timeout: float = 60) -> None:
    deadline = time.monotonic() + timeout
    while not condition():
        assert time.monotonic() < deadline, what
        time.sleep(0.1)


def where(ready: Mapping[str, Any]) -> dict[str, str]:
    return {"HOLDFAST_BOOTSTRAP": ready["bootstrap"], "HOLDFAST_NAMESPACE": ready["namespace"]}


def test_up_from_nothing_to_a_clean_end_and_again_with_its_data(start: Start, tmp_path: Path) -> None:
    state = {"HOLDFAST_STATE_DIR": str(tmp_path)}
    up = start("up", "--workers", "2", "--port", "0", **state)
    ready = up.line()
    assert ready["ready"] is True
    assert ready["namespace"] == "holdfast"
    assert [worker["name"] for worker in ready["workers"]] == ["w1", "w2"]
    pids = [worker["pid"] for worker in ready["workers"]]
    # Each has been ready; a place that is handed over once it is warm may take that back for a moment.
    for url in [*(worker["url"] for worker in ready["workers"]), ready["console"]]:
        wait_for(lambda url=url: ask(f"{url}/readyz").status == 200, f"{url} is ready")  # type: ignore[misc]

    code, [result], _ = holdfast("send", "acme", "c", "counter.add", '{"amount": 5}', "--wait", **where(ready))
    assert (code, result["result"], result["sequence"]) == (0, {"total": 5}, 1)

    second = start("up", "--workers", "1", "--port", "0", **state)
    assert second.process.wait(READY_S) == 2
    assert second.process.stderr is not None
    assert f"is in use by process {up.process.pid}" in second.process.stderr.read()

    assert up.stop(signal.SIGINT) == 0
    ends = up.rest()
    assert {(end["worker"], end["state"], end["exit"]) for end in ends} == {
        ("w1", "stopped", 0),
        ("w2", "stopped", 0),
    }
    assert all(gone(pid) for pid in pids)

    again = start("up", "--workers", "1", "--port", "0", **state)
    ready = again.line()
    _, [result], _ = holdfast("send", "acme", "c", "counter.add", '{"amount": 2}', "--wait", **where(ready))
    assert (result["result"], result["sequence"]) == ({"total": 7}, 2)


def test_a_worker_that_is_killed_is_reported_and_started_again(
    start: Start, broker: str, namespace: str, tmp_path: Path
) -> None:
    cluster = {
        "HOLDFAST_BOOTSTRAP": broker,
        "HOLDFAST_NAMESPACE": namespace,
        "HOLDFAST_STATE_DIR": str(tmp_path),
    }
    up = start("up", "--workers", "2", "--port", "0", "--restart", **cluster)
    ready = up.line()
    assert (ready["bootstrap"], ready["namespace"]) == (broker, namespace)
    victim = ready["workers"][0]
    os.kill(victim["pid"], signal.SIGKILL)
    assert up.line() == {"worker": "w1", "pid": victim["pid"], "state": "died", "exit": -9}
    started = up.line()
    assert (started["worker"], started["state"]) == ("w1", "started")
    assert started["pid"] != victim["pid"]
    with Client(broker, namespace) as client:
        task = client.send("acme", "s", "counter.add", {"amount": 1})
        assert client.result(task, timeout=60).status == "done"
    assert up.stop() == 0


def test_workers_end_when_up_is_killed(start: Start, broker: str, namespace: str, tmp_path: Path) -> None:
    up = start(
        *("up", "--workers", "1", "--port", "0", "--bootstrap", broker, "--namespace", namespace),
        HOLDFAST_STATE_DIR=str(tmp_path),
    )
    [worker] = up.line()["workers"]
    up.process.kill()
    wait_for(lambda: gone(worker["pid"]), "the worker outlived `up`")


def test_a_taken_port_is_one_line_and_leaves_nothing_behind(start: Start, tmp_path: Path) -> None:
    up = start("up", "--port", "1", HOLDFAST_STATE_DIR=str(tmp_path / "state"), HOLDFAST_HOST="192.0.2.1")
    assert up.process.wait(READY_S) == 2
    assert up.process.stderr is not None
    assert "cannot listen on 192.0.2.1:1" in up.process.stderr.read()
    assert not (tmp_path / "state" / "kafka").exists()


def test_a_worker_in_the_foreground_leaves_on_sigterm(
    start: Start, broker: str, namespace: str, tmp_path: Path
) -> None:
    cluster = {
        "HOLDFAST_BOOTSTRAP": broker,
        "HOLDFAST_NAMESPACE": namespace,
        "HOLDFAST_STATE_DIR": str(tmp_path),
    }
    assert holdfast("topics", "create", **cluster)[0] == 0
    worker = start("worker", "--name", "alone", **cluster)
    line = worker.line()
    assert (line["name"], line["pid"], line["state"]) == ("alone", worker.process.pid, "ready")
    code, [listed], _ = holdfast("workers", "list", **cluster)
    assert (code, listed["name"], listed["url"]) == (0, "alone", line["url"])
    assert listed["routers"] == [0, 1]
    assert listed["servers"] == [0, 1, 2, 3]
    assert worker.stop() == 0
    code, _, errors = holdfast("workers", "list", **cluster)
    assert code == 1
    assert "no worker is in the group" in errors


@pytest.fixture
def cluster(broker: str, namespace: str, tmp_path: Path) -> Iterator[Cluster]:
    settings = Settings(bootstrap=broker, namespace=namespace, state_dir=tmp_path, servers=4, routers=2)
    with Cluster(settings, 2) as made:
        yield made


def test_any_worker_answers_for_any_session_and_takes_any_task(cluster: Cluster) -> None:
    body = {"tenant": "a/b", "session": "c d", "type": "counter.add", "payload": {"amount": 4}}
    for worker in cluster.workers:
        reply = ask(f"{worker.url}/api/tasks?wait=60", data=json.dumps(body).encode())
        assert (reply.status, reply.json()["status"]) == (200, "done"), reply.body
    sessions = [ask(f"{worker.url}/api/sessions/a%2Fb/c%20d").json() for worker in cluster.workers]
    assert sessions[0] == sessions[1]
    session = sessions[0]
    assert (session["state"], session["sequence"]) == ({"total": 8}, 2)
    assert sorted(session["backup_order"]) == [0, 1, 2, 3]
    assert session["server"] in range(4)
    assert session["worker"] in {"w1", "w2"}
    for worker in cluster.workers:
        assert ask(f"{worker.url}/api/sessions/a%2Fb/nobody").status == 404
        status = ask(f"{worker.url}/api/status").json()
        assert status["namespace"] == cluster.settings.namespace
        assert sorted(server["server"] for server in status["servers"]) == [0, 1, 2, 3]


def test_the_cluster_kills_freezes_and_starts_workers(cluster: Cluster) -> None:
    with Client(cluster.bootstrap, cluster.settings.namespace) as client:
        cluster.freeze("w2")
        cluster.resume("w2")
        pid = cluster.kill("w1")
        assert gone(pid)
        assert cluster.worker("w1").alive is False
        tasks = [client.send("acme", f"s{number}", "counter.add", {"amount": 1}) for number in range(20)]
        assert {client.result(task, timeout=60).worker for task in tasks} == {"w2"}
        assert cluster.start_worker("w1").pid != pid
        assert cluster.start_worker("w3").state == "ready"
        cluster.stop_worker("w3")
        assert cluster.worker("w3").process.returncode == 0
        again = [client.send("acme", f"s{number}", "counter.add", {"amount": 1}) for number in range(20)]
        assert {client.result(task, timeout=60).sequence for task in again} == {2}


def test_a_worker_that_cannot_start_is_quoted(broker: str, namespace: str, tmp_path: Path) -> None:
    settings = Settings(bootstrap=broker, namespace=namespace, state_dir=tmp_path, handlers=("no_such_module",))
    with pytest.raises(Exception, match=r"worker w1 ended with exit code 2: .*no_such_module"):
        Cluster(settings, 1).start()


def test_an_unusable_state_directory_is_one_clear_line(broker: str, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(ConfigurationError, match="cannot be used"):
        Cluster(Settings(bootstrap=broker, state_dir=tmp_path / "file"), 1).start()
