"""The host supervisor: which words of a manager end its program."""

import json
import sys
import threading
from pathlib import Path
from typing import Any

import pytest

from app.cli.exchange_host import Part, Supervisor
from app.settings import Settings


@pytest.fixture
def supervisor() -> Supervisor:
    settings = Settings(bootstrap="localhost:9092")
    return Supervisor(settings, Part(client="laptop", exchange="sim"), [], lambda line, fields: None, {})


def ends(supervisor: Supervisor, tmp_path: Path, *words: dict[str, Any], key: str = "sim") -> int:
    """The exit code of a program that sleeps, or exits with 7 when it is left alone; hears these words."""
    heard = threading.Event()

    def say(_line: str, fields: dict[str, Any]) -> None:
        if fields["state"] == "started":
            for word in words:
                supervisor._heard(key, {"v": 1, **word})
            heard.set()

    supervisor.say = say
    supervisor.command = [sys.executable, "-c", "import sys, time; time.sleep(0.5); sys.exit(7)"]
    code = supervisor._once(tmp_path / "restart.json", {"exchange": "sim"})
    assert heard.is_set()
    assert json.loads((tmp_path / "restart.json").read_text()) == {"exchange": "sim"}
    return code


def test_a_silent_program_is_ended_once_for_each_process(supervisor: Supervisor, tmp_path: Path) -> None:
    assert ends(supervisor, tmp_path, {"type": "start", "incarnation": 57}) == 1
    assert ends(supervisor, tmp_path, {"type": "start", "incarnation": 57}) == 7, "its successor is not to blame"
    assert ends(supervisor, tmp_path, {"type": "start", "incarnation": 60}) == 1


def test_an_operator_may_order_it_again(supervisor: Supervisor, tmp_path: Path) -> None:
    order = {"type": "start", "incarnation": 57, "ordered": True}
    assert [ends(supervisor, tmp_path, order) for _ in range(2)] == [1, 1]


def test_what_is_said_about_others_ends_nothing(supervisor: Supervisor, tmp_path: Path) -> None:
    assert ends(supervisor, tmp_path, {"type": "start", "incarnation": 57}, key="other") == 7
    assert ends(supervisor, tmp_path, {"type": "restart", "incarnation": 57}, {"type": "start"}) == 7
