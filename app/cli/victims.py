"""The process of a worker on this machine, found and checked twice before anything is done to it."""

import contextlib
import signal
from itertools import pairwise
from types import TracebackType
from typing import Self
from urllib.parse import urlsplit

import psutil

from app.client.cluster import Worker
from app.errors import HoldfastError


class Victim:
    """A worker's process. A context manager: what was frozen goes on when it is left, however that happens.

    Attributes:
        pid: its number.
    """

    def __init__(self, process: psutil.Process) -> None:
        self.pid = process.pid
        self._process = process
        self._frozen = False

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if self._frozen:
            with contextlib.suppress(psutil.Error):
                self._process.send_signal(signal.SIGCONT)

    def signal(self, number: signal.Signals) -> None:
        """Send a signal, if the process is still the one that was found.

        Raises:
            HoldfastError: it has ended, or belongs to somebody else.
        """
        try:
            self._process.send_signal(number)
        except psutil.Error as error:
            raise HoldfastError(f"process {self.pid} cannot be signalled: {error}") from error
        self._frozen = number == signal.SIGSTOP


def find(worker: Worker) -> Victim:
    """Return the process that listens at the worker's address and was started under its name.

    Raises:
        HoldfastError: there is none on this machine, or it belongs to another user.
    """
    port = urlsplit(worker.url).port
    for process in psutil.process_iter():
        with contextlib.suppress(psutil.Error):
            if is_worker(process.cmdline(), worker.name) and port in _listening(process):
                return Victim(process)
    raise HoldfastError(
        f"worker {worker.name} ({worker.url}) is no process of yours on this machine: "
        "run the drill where it runs, as the user that it runs as"
    )


def is_worker(command: list[str], name: str) -> bool:
    """Whether a command line is that of the worker of this name."""
    given = [word for part in command for word in part.split("=", 1)]
    named = any(pair == ("--name", name) for pair in pairwise(given))
    return named and "worker" in command


def _listening(process: psutil.Process) -> set[int]:
    connections = process.net_connections(kind="tcp")
    return {entry.laddr.port for entry in connections if entry.status == psutil.CONN_LISTEN}
