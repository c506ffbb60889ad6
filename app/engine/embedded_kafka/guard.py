"""The process between Holdfast and the broker: it ends the broker when Holdfast is gone, however that ended.

It is run by its path, as a script of its own, so it imports the standard library only. It is given one JSON
argument, a :class:`Spec`, answers ``pid NUMBER`` on its standard output and then obeys its standard input:

* end of file: Holdfast is gone, or wants an orderly stop; SIGTERM, and SIGKILL after ``grace`` seconds
* the byte ``k``: SIGKILL at once

It ends with the exit code of the broker, negative for a signal, as :mod:`subprocess` counts.
"""

import ctypes
import json
import os
import select
import signal
import subprocess
import sys
import threading
from contextlib import suppress
from pathlib import Path
from typing import Final, TypedDict

_PR_SET_PDEATHSIG: Final = 1
_PARENT_CHECK_S: Final = 1.0


class Spec(TypedDict):
    """What to run."""

    command: list[str]
    """The broker's program and its arguments."""
    log: str
    """The file that takes the broker's output, appended."""
    grace: float
    """Seconds between SIGTERM and SIGKILL."""
    kill_command: list[str]
    """Run before SIGKILL where a signal does not reach the broker itself (Docker); empty otherwise."""
    archive: list[str]
    """Empty, or two paths: the class archive that the broker writes at its end, and its final name."""


def _die_with_guard() -> None:
    # The kernel sends the signal when the thread that forked ends: here the script's main thread.
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)


def _start(spec: Spec) -> "subprocess.Popen[bytes]":
    with Path(spec["log"]).open("ab") as log:
        return subprocess.Popen(
            spec["command"],
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=subprocess.STDOUT,
            preexec_fn=_die_with_guard if sys.platform == "linux" else None,
        )


def _wait_for_order(parent: int) -> bytes:
    """Return the order; empty when the pipe was closed or the parent is gone.

    A process that the parent forked without a new program holds a copy of the pipe and would keep it open:
    hence the look at the parent's number as well.
    """
    while os.getppid() == parent:
        readable, _, _ = select.select([0], [], [], _PARENT_CHECK_S)
        if readable:
            return os.read(0, 1)
    return b""


def _kill(broker: "subprocess.Popen[bytes]", spec: Spec) -> None:
    if spec["kill_command"]:
        subprocess.run(spec["kill_command"], check=False, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    broker.kill()


def _obey(broker: "subprocess.Popen[bytes]", spec: Spec, parent: int) -> None:
    if _wait_for_order(parent) != b"k":
        broker.terminate()
        with suppress(subprocess.TimeoutExpired):
            broker.wait(spec["grace"])
            return
    _kill(broker, spec)


def _keep_archive(spec: Spec, exit_code: int) -> None:
    if not spec["archive"]:
        return
    written, final = map(Path, spec["archive"])
    # Java answers SIGTERM with 143 after an orderly end. Anything else may have left half an archive behind.
    if exit_code == 128 + signal.SIGTERM and written.exists():
        written.replace(final)
    else:
        written.unlink(missing_ok=True)


def main() -> int:
    """Run the broker to its end."""
    parent = os.getppid()
    spec: Spec = json.loads(sys.argv[1])
    # Signals from a terminal are for Holdfast, which then asks for an orderly stop. They are handled by doing
    # nothing rather than ignored: the broker would inherit that and could no longer be stopped in order.
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, lambda _number, _frame: None)
    broker = _start(spec)
    with suppress(OSError):
        os.write(1, f"pid {broker.pid}\n".encode())
    threading.Thread(target=_obey, args=(broker, spec, parent), daemon=True).start()
    exit_code = broker.wait()
    _keep_archive(spec, exit_code)
    return exit_code


if __name__ == "__main__":
    # Only eight bits of an exit code survive: a broker that ended by signal n is reported as 128 + n.
    code = main()
    sys.exit(code if code >= 0 else 128 - code)
