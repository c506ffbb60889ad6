"""`holdfast demo`, from its first line to its report, and cut in the middle."""

import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest
from confluent_kafka.admin import AdminClient

pytestmark = [pytest.mark.broker, pytest.mark.timeout(240)]

ENDED_S = 150


class Run:
    """A demo on a broker that is there; its lines as they come."""

    def __init__(self, broker: str, directory: Path) -> None:
        clean = {name: value for name, value in os.environ.items() if not name.startswith("HOLDFAST_")}
        self.process = subprocess.Popen(
            [sys.executable, "-P", "-m", "app", "demo", "--json", "--seconds", "5"],
            cwd=directory,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            env=clean | {"HOLDFAST_BOOTSTRAP": broker},
        )
        self.pids: set[int] = set()

    def lines(self) -> Iterator[dict[str, Any]]:
        assert self.process.stdout is not None
        for line in self.process.stdout:
            found = json.loads(line)
            if "pid" in found:
                self.pids.add(found["pid"])
            yield found

    def end(self) -> int:
        try:
            self.process.communicate(timeout=ENDED_S)
        finally:
            self.process.kill()
        return self.process.returncode


def left_over(run: Run, broker: str) -> tuple[list[int], list[str]]:
    """Processes and topics that a demo has left behind."""
    there = [pid for pid in run.pids if psutil.pid_exists(pid) and psutil.Process(pid).status() != psutil.STATUS_ZOMBIE]
    topics = AdminClient({"bootstrap.servers": broker}).list_topics(timeout=10).topics
    return there, [name for name in topics if name.startswith("holdfast-demo-")]


def test_the_demo_shows_everything_and_tells_the_truth(broker: str, tmp_path: Path) -> None:
    run = Run(broker, tmp_path)
    lines = list(run.lines())
    assert run.end() == 0, lines[-20:]
    outcome = lines[-1]
    steps = {line["step"]: line for line in lines if "step" in line}
    assert {step: line["state"] for step, line in steps.items()} == dict.fromkeys(steps, "done"), steps
    assert set(steps) >= {"move", "return", "exchange", "upload", "kill", "fail", "restore", "account"}
    assert outcome["ok"] is True
    assert outcome["sent"] == outcome["performed"] > 500
    assert outcome["lost"] == outcome["doubled"] == outcome["out_of_order"] == outcome["gaps"] == 0
    assert outcome["takeover_ms"] > 0
    assert outcome["pause_ms"] >= 0
    assert "max-pause" in steps["return"]["outcome"]
    page = (tmp_path / ".holdfast" / "demo" / "report.html").read_text(encoding="utf-8")
    assert "None lost, none doubled, none out of order" in page
    assert left_over(run, broker) == ([], []), lines[-20:]


def test_a_demo_that_is_cut_leaves_nothing_behind(broker: str, tmp_path: Path) -> None:
    run = Run(broker, tmp_path)
    for line in run.lines():
        if line.get("step") == "upload":
            break
    run.process.send_signal(signal.SIGINT)
    last = list(run.lines())
    assert run.end() == 1
    assert len(run.pids) >= 3
    assert left_over(run, broker) == ([], []), last
