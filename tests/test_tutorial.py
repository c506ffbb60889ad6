"""The tutorial, done as it says, from its handler to the worker in production."""

import json
import re
import shlex
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final

import pytest

from tests.support.cluster import wait_for
from tests.test_docs import ROOT, STOPPED_S, Terminal, blocks, running

TUTORIAL: Final = ROOT / "docs" / "tutorial.md"
READY_S: Final = 150.0


def handlers() -> list[str]:
    return [block for block in blocks(TUTORIAL, "python") if "@handler" in block]


@contextmanager
def background(terminal: Terminal) -> Iterator[None]:
    """What the tutorial lets a reader start beside the rest; it must end in order."""
    [line] = [line for block in blocks(TUTORIAL, "sh background") for line in block.splitlines()]
    process = subprocess.Popen(
        ["sh", "-c", f"exec env {line}"], cwd=terminal.directory, env=terminal.environment, start_new_session=True
    )
    try:
        yield
        process.send_signal(signal.SIGTERM)
        assert process.wait(STOPPED_S) == 0
    finally:
        if process.poll() is None:
            process.kill()
            process.wait(10)


def test_the_tutorials_test_passes(tmp_path: Path) -> None:
    (tmp_path / "loyalty.py").write_text("\n\n".join(blocks(TUTORIAL, "python")), encoding="utf-8")
    call = f"import sys; sys.path[:0] = [{str(ROOT)!r}, '.']; import loyalty; loyalty.test_ten_coffees_earn_one()"
    done = subprocess.run([sys.executable, "-c", call], cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


@pytest.mark.broker
@pytest.mark.timeout(300)
def test_the_tutorial_works_as_it_says(tmp_path: Path) -> None:
    said: dict[str, str] = {}
    before, after = TUTORIAL.read_text().split("```sh background\n")
    with running(tmp_path / "cafe", "loyalty", handlers()) as terminal:
        run_all(terminal, before, said)
        first, second, third = [said[line] for line in said if "--wait" in line][:3]
        assert first.startswith('{"stamps": 9, "free": 0} (task 0/0, server 6, sequence 1)')
        assert second.startswith('{"stamps": 1, "free": 1}')
        assert third.startswith('{"free": 0}')
        assert "no free coffee yet" in said["holdfast dead-letters list"]
        assert re.search(r"server 5, sequence 4", answer(said, '{"coffees": 1}\' --wait', "acme"))
        assert "migration-succeeded" in answer(said, "--to 5 --wait")
        shown = json.loads(terminal.run(["holdfast", "tenant", "show", "acme", "--json"]))
        assert shown["home"] == 6
        with background(terminal):
            wait_for(lambda: serves(terminal), READY_S, "the worker in production serves")
            run_all(terminal, after, said)
        assert answer(said, "--wait --namespace cafe").startswith('{"stamps": 0, "free": 1}')


def run_all(terminal: Terminal, text: str, said: dict[str, str]) -> None:
    for block in re.findall(r"^```sh runnable\n(.*?)^```$", text, re.MULTILINE | re.DOTALL):
        for line in block.splitlines():
            assert shlex.split(line)[0] == "holdfast"
            said[line] = terminal.run(["sh", "-c", line])


def answer(said: dict[str, str], *parts: str) -> str:
    [found] = [text for line, text in said.items() if all(part in line for part in parts)]
    return found


def serves(terminal: Terminal) -> Any:
    command = ["holdfast", "workers", "list", "--namespace", "cafe", "--json"]
    done = subprocess.run(
        command, cwd=terminal.directory, env=terminal.environment, capture_output=True, text=True, check=False
    )
    return done.returncode == 0 and done.stdout.strip()
