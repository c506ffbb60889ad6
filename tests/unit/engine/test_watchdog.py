"""The watchdog ends the process of a handler that does not return, and of no other."""

import subprocess
import sys
import textwrap
import time

import psutil
import pytest

from app.engine.watchdog import EXIT_CODE

PREAMBLE = """
import sys, threading, time
from app.engine.watchdog import Watchdog

def say(*words):
    print(*words, flush=True)

"""


def start(script: str) -> "subprocess.Popen[str]":
    return subprocess.Popen(
        [sys.executable, "-c", PREAMBLE + textwrap.dedent(script)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def end(process: "subprocess.Popen[str]") -> tuple[int, list[str]]:
    output, errors = process.communicate(timeout=30)
    return process.returncode, [*output.splitlines(), *errors.splitlines()]


def test_a_handler_that_hangs_ends_the_process_after_it_was_written_down() -> None:
    code, said = end(
        start("""
        dog = Watchdog(0.5, lambda current: say("expired", *current))
        dog.start()
        dog.current = ("server-3", "task t-1")
        started = time.monotonic()
        time.sleep(30)
        say("not reached")
        """)
    )
    assert code == EXIT_CODE == 70
    assert said[0] == "expired server-3 task t-1"
    assert "not reached" not in said
    assert any("did not return within 0.5 s" in line for line in said)


def test_a_handler_that_hangs_in_a_loop_of_its_own_ends_as_well() -> None:
    code, said = end(
        start("""
        dog = Watchdog(0.5, lambda current: say("expired", current))
        dog.start()
        dog.current = "busy"
        while True:
            pass
        """)
    )
    assert (code, said[0]) == (EXIT_CODE, "expired busy")


@pytest.mark.parametrize("failure", ["raise RuntimeError('no broker')", "sys.exit(3)"])
def test_the_process_ends_also_if_writing_down_fails(failure: str) -> None:
    code, said = end(
        start(f"""
        def expired(current):
            say("tried")
            {failure}

        dog = Watchdog(0.3, expired)
        dog.start()
        dog.current = "busy"
        time.sleep(30)
        """)
    )
    assert (code, said[0]) == (EXIT_CODE, "tried")


def test_many_short_handlers_are_none_that_hangs() -> None:
    """Together they take several times the limit; also where two run directly one after the other."""
    code, said = end(
        start("""
        dog = Watchdog(1.0, lambda current: say("expired"))
        dog.start()
        for number in range(8):
            dog.current = ("task", number)
            time.sleep(0.3)
        dog.current = None
        time.sleep(1.5)
        say("done")
        """)
    )
    assert (code, said) == (0, ["done"])


def test_a_stopped_watchdog_lets_go() -> None:
    code, said = end(
        start("""
        dog = Watchdog(0.5, lambda current: say("expired"))
        dog.start()
        dog.current = "task"
        dog.stop()
        dog.join(5)
        time.sleep(1)
        say("done", dog.is_alive())
        """)
    )
    assert (code, said) == (0, ["done False"])


def test_the_name_in_the_log_is_the_agents() -> None:
    code, said = end(
        start("""
        dog = Watchdog(0.3, lambda current: None, name_of=lambda current: f"task {current[1]}")
        dog.start()
        dog.current = ("server-3", "t-1")
        time.sleep(30)
        """)
    )
    assert code == EXIT_CODE
    assert any("task t-1 did not return" in line for line in said)


def test_a_frozen_process_is_not_taken_for_a_handler_that_hangs() -> None:
    """The handler needs 0.8 s of the process's own time; the process stands still for longer than the limit."""
    process = start("""
    dog = Watchdog(1.5, lambda current: say("expired"))
    dog.start()
    dog.current = "task"
    say("running")
    for _ in range(4):
        time.sleep(0.2)
    dog.current = None
    say("returned")
    """)
    try:
        assert process.stdout is not None
        assert process.stdout.readline() == "running\n"
        frozen = psutil.Process(process.pid)
        frozen.suspend()
        deadline = time.monotonic() + 10
        while frozen.status() != psutil.STATUS_STOPPED:
            assert time.monotonic() < deadline
            time.sleep(0.01)
        time.sleep(2.5)  # The time that passes is what is tested.
        frozen.resume()
        assert end(process) == (0, ["returned"])
    finally:
        process.kill()
        process.communicate()
