"""Whom a drill may hit, and when a signal may interrupt."""

import os
import signal
import subprocess
import sys
from collections.abc import Iterator

import psutil
import pytest

from app.cli.ending import interruptible
from app.cli.victims import Victim, find, is_worker
from app.cli.worker_process import command_of
from app.client.cluster import Worker
from app.errors import HoldfastError


@pytest.mark.parametrize(
    ("command", "found"),
    [
        (command_of("w1"), True),
        (["/usr/bin/python", "/venv/bin/holdfast", "worker", "--name=w1"], True),
        (command_of("w10"), False),
        (["python", "-m", "app", "session", "--name", "w1"], False),
        (["worker", "w1", "--name"], False),
        ([], False),
    ],
)
def test_a_worker_is_known_by_its_command_line(command: list[str], found: bool) -> None:
    assert is_worker(command, "w1") is found


def test_a_worker_that_is_not_here_is_no_victim() -> None:
    with pytest.raises(HoldfastError, match=r"worker w1 .* is no process of yours on this machine"):
        find(Worker("w1", "http://127.0.0.1:1", 1, (), ()))


@pytest.fixture
def process() -> Iterator[psutil.Process]:
    with subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"]) as made:
        yield psutil.Process(made.pid)
        made.kill()


def freeze_and_be_interrupted(process: psutil.Process) -> None:
    with Victim(process) as victim:
        victim.signal(signal.SIGSTOP)
        while process.status() != psutil.STATUS_STOPPED:
            pass
        raise KeyboardInterrupt


def test_what_was_frozen_goes_on_however_a_drill_ends(process: psutil.Process) -> None:
    with pytest.raises(KeyboardInterrupt):
        freeze_and_be_interrupted(process)
    assert process.status() != psutil.STATUS_STOPPED


def test_a_victim_that_is_gone_is_told_as_such(process: psutil.Process) -> None:
    victim = Victim(process)
    process.kill()
    process.wait()
    with pytest.raises(HoldfastError, match="cannot be signalled"):
        victim.signal(signal.SIGKILL)


def test_a_signal_interrupts_once_and_never_the_tidying_up() -> None:
    before = signal.getsignal(signal.SIGTERM)
    with interruptible() as ending:
        with pytest.raises(KeyboardInterrupt):
            os.kill(os.getpid(), signal.SIGTERM)
        os.kill(os.getpid(), signal.SIGINT)
        assert not ending.asked
    assert signal.getsignal(signal.SIGTERM) == before
    with interruptible() as ending:
        ending.begin()
        os.kill(os.getpid(), signal.SIGINT)


def test_a_signal_that_is_noted_does_not_interrupt_and_the_next_one_does() -> None:
    with interruptible() as ending:
        ending.note()
        os.kill(os.getpid(), signal.SIGINT)
        assert ending.asked
        with pytest.raises(KeyboardInterrupt):
            os.kill(os.getpid(), signal.SIGINT)
