"""`holdfast canary` and `holdfast drill` against a cluster, as programs."""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from typing import Any

import psutil
import pytest

from app.cli import main
from app.cli.supervisor import Cluster
from app.settings import Settings
from tests.support.broker import clear
from tests.support.web import ask

pytestmark = [pytest.mark.broker, pytest.mark.timeout(240)]

ENDED_S = 90


@pytest.fixture(scope="module")
def cluster(broker: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    directory = tmp_path_factory.mktemp("canary")
    settings = Settings(bootstrap=broker, namespace="canary-test", state_dir=directory, servers=4, routers=2)
    # No handlers of samples: the canary needs nobody's.
    with Cluster(settings.model_copy(update={"handlers": ("json",)}), 2) as made:
        yield made
    clear(broker, "canary-test")


def start(cluster: Cluster, *arguments: str) -> "subprocess.Popen[str]":
    clean = {name: value for name, value in os.environ.items() if not name.startswith("HOLDFAST_")}
    settings = cluster.settings
    own = {
        "HOLDFAST_BOOTSTRAP": settings.bootstrap,
        "HOLDFAST_NAMESPACE": settings.namespace,
        "HOLDFAST_STATE_DIR": str(settings.state_dir),
    }
    return subprocess.Popen(
        [sys.executable, "-P", "-m", "app", *arguments, "--json"],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=clean | own,
    )


def end(process: "subprocess.Popen[str]") -> int:
    try:
        process.communicate(timeout=ENDED_S)
    finally:
        process.kill()
    return process.returncode


class Here:
    """Commands in this process: what takes most of the time of a command is its start."""

    def __init__(self, cluster: Cluster, capsys: pytest.CaptureFixture[str]) -> None:
        settings = cluster.settings
        self._own = ["--json", "--bootstrap", settings.bootstrap, "--namespace", settings.namespace]
        self._capsys = capsys

    def run(self, *arguments: str) -> tuple[int, list[dict[str, Any]], str]:
        code = main([*arguments, *self._own])
        said = self._capsys.readouterr()
        return code, [json.loads(line) for line in said.out.splitlines()], said.err


@pytest.fixture
def here(cluster: Cluster, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Here:
    for name in Settings.model_fields:
        monkeypatch.delenv(f"HOLDFAST_{name.upper()}", raising=False)
    monkeypatch.setenv("HOLDFAST_STATE_DIR", str(cluster.settings.state_dir))
    return Here(cluster, capsys)


def line(process: "subprocess.Popen[str]") -> Mapping[str, Any]:
    assert process.stdout is not None
    found = json.loads(process.stdout.readline())
    assert isinstance(found, dict)
    return found


def test_a_canary_goes_on_where_it_was_killed(cluster: Cluster, here: Here) -> None:
    first = start(cluster, "canary", "--rate", "100", "--period", "1s", "--port", "0")
    url = line(first)["metrics"]
    assert line(first)["sent"] > 0
    text = ask(url).body.decode()
    assert "holdfast_canary_lost_total 0.0" in text
    assert "holdfast_canary_latency_seconds_bucket" in text
    code, _, errors = here.run("canary", "--for", "1s", "--port", "0")
    assert (code, "another canary has the ledger" in errors) == (2, True)
    first.send_signal(signal.SIGKILL)
    end(first)
    code, lines, errors = here.run("canary", "--rate", "100", "--for", "2s", "--port", "0")
    assert (code, errors) == (0, "")
    assert lines[0]["sessions"] == 4
    assert lines[-1]["ok"] is True
    assert lines[-1]["sent"] == lines[-1]["performed"] > 100


def test_a_drill_asks_first_and_knows_its_victims(cluster: Cluster, here: Here) -> None:
    code, _, errors = here.run("drill", "--kill", "w1")
    assert (code, "add --yes" in errors) == (2, True), errors
    code, _, errors = here.run("drill", "--kill", "w9", "--yes")
    assert (code, "there is no worker w9 (there are: w1, w2)" in errors) == (1, True), errors
    assert all(worker.alive for worker in cluster.workers)


def test_a_drill_kills_and_tells_how_the_sessions_went_on(cluster: Cluster, here: Here) -> None:
    code, [told], errors = here.run("drill", "--kill", "w1", "--yes", "--rate", "100")
    assert (code, told["ok"]) == (0, True), (told, errors)
    assert not cluster.worker("w1").alive
    assert told["sessions"] > 0
    assert told["gap_max_ms"] >= told["gap_p50_ms"] > 0
    taken = [entry for entry in told["moved"] if entry["worker"] == "w1"]
    assert sum(entry["sessions"] for entry in taken) == told["sessions"]
    assert all(entry["to_worker"] == "w2" and not entry["back"] for entry in taken)
    assert told["sent"] == told["performed"]


def test_a_frozen_worker_goes_on_when_the_drill_is_cut(cluster: Cluster) -> None:
    if not cluster.worker("w1").alive:
        cluster.start_worker("w1")
    pid = cluster.worker("w2").pid
    drill = start(cluster, "drill", "--freeze", "w2", "--for", "60s", "--yes")
    deadline = time.monotonic() + ENDED_S
    while psutil.Process(pid).status() != psutil.STATUS_STOPPED:
        assert drill.poll() is None
        assert time.monotonic() < deadline
        time.sleep(0.05)
    drill.send_signal(signal.SIGINT)
    assert end(drill) == 1
    assert psutil.Process(pid).status() != psutil.STATUS_STOPPED
