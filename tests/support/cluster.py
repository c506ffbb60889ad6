"""Worker processes against a broker and a namespace, without `holdfast up`: start, kill, freeze, replace."""

import json
import os
import select
import signal
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Mapping
from pathlib import Path
from types import TracebackType
from typing import Any, Final, Self, TypeVar

from app.settings import Settings
from app.topics import connect, ensure

READY_S: Final = 150.0
COMMAND: Final = (sys.executable, "-m", "app", "worker", "--port", "0")
_ROOT: Final = Path(__file__).parents[2]
_POLL_S: Final = 0.05
_TAIL_LINES: Final = 25
_T = TypeVar("_T")


class Worker:
    """One process of `holdfast worker`, from its start to its end; a successor is another object."""

    def __init__(self, name: str, log: Path, environment: Mapping[str, str], arguments: tuple[str, ...]) -> None:
        self.name = name
        self.log = log
        self.url = ""
        self.started = time.monotonic()
        self._ready, write = os.pipe()
        self._said = b""
        command = (*COMMAND, "--name", name, "--ready-fd", str(write), *arguments)
        with log.open("ab") as output:
            self.process = subprocess.Popen(
                command,
                env=dict(environment),
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output,
                pass_fds=[write],
                cwd=_ROOT,
                start_new_session=True,
            )
        os.close(write)

    @property
    def pid(self) -> int:
        return self.process.pid

    @property
    def running(self) -> bool:
        return self.process.poll() is None

    def wait_ready(self, timeout: float = READY_S) -> str:
        """Wait until the worker serves; return its URL."""
        deadline = time.monotonic() + timeout
        while b"\n" not in self._said:
            left = deadline - time.monotonic()
            readable, _, _ = select.select([self._ready], [], [], max(0.0, left))
            said = os.read(self._ready, 65_536) if readable else b""
            if not said:
                state = f"ended with {self.process.poll()}" if readable else f"not ready after {timeout:g} s"
                raise AssertionError(f"worker {self.name}: {state}\n{self.tail()}")
            self._said += said
        message = json.loads(self._said.splitlines()[0])
        assert message["name"] == self.name
        assert message["pid"] == self.pid
        assert message["state"] == "ready"
        self.url = str(message["url"])
        return self.url

    def kill9(self) -> None:
        self.process.kill()
        self.process.wait(10)

    def sigstop(self) -> None:
        self.process.send_signal(signal.SIGSTOP)

    def sigcont(self) -> None:
        self.process.send_signal(signal.SIGCONT)

    def sigterm(self, timeout: float = READY_S) -> int:
        """Ask the worker to leave; return its exit code."""
        self.process.terminate()
        return self.wait_exit(timeout)

    def wait_exit(self, timeout: float = READY_S) -> int:
        try:
            return self.process.wait(timeout)
        except subprocess.TimeoutExpired:
            raise AssertionError(f"worker {self.name} does not end\n{self.tail()}") from None

    def text(self) -> str:
        return self.log.read_text(encoding="utf-8", errors="replace") if self.log.exists() else ""

    def tail(self, lines: int = _TAIL_LINES) -> str:
        state = "runs" if self.running else f"ended with {self.process.returncode}"
        return "\n".join([f"--- end of {self.log}, worker {state}", *self.text().splitlines()[-lines:]])

    def get(self, path: str, timeout: float = 5.0) -> tuple[int, Any]:
        """Return status and JSON body of an HTTP request to this worker; status 0 when nobody answers."""
        try:
            with urllib.request.urlopen(self.url + path, timeout=timeout) as answer:  # noqa: S310 - http only
                return answer.status, json.loads(answer.read() or b"null")
        except urllib.error.HTTPError as error:
            with error:
                return error.code, error.read().decode(errors="replace")
        except (OSError, ValueError) as error:
            return 0, str(error)

    def close(self) -> None:
        if self.running:
            self.process.kill()
        self.process.wait(10)
        os.close(self._ready)


class Workers:
    """The workers of a test. Ends them all when left, and quotes their logs when the test fails."""

    def __init__(self, bootstrap: str, namespace: str, directory: Path, **settings: object) -> None:
        directory.mkdir(parents=True, exist_ok=True)
        self.directory = directory
        given = {"state_dir": directory / "state", **settings}
        self.settings = Settings(bootstrap=bootstrap, namespace=namespace, **given)  # type: ignore[arg-type]
        self.config: dict[str, str | int] = {"bootstrap.servers": bootstrap}
        self.namespace = namespace
        self.all: list[Worker] = []
        self._given = given

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if error is not None:
            for log in dict.fromkeys(worker.log for worker in self.all):
                print(next(worker for worker in self.all if worker.log == log).tail())
        for worker in self.all:
            worker.close()

    @property
    def running(self) -> list[Worker]:
        return [worker for worker in self.all if worker.running]

    def topics(self) -> None:
        """Create the topics, so that tasks can be sent before the first worker runs."""
        ensure(connect(self.settings), self.settings)

    def start(self, name: str, *arguments: str, **environment: str) -> Worker:
        """Start a worker and return at once. ``environment`` is added to its variables."""
        variables = {**self._environment(), **environment}
        worker = Worker(name, self.directory / f"{name}.log", variables, arguments)
        self.all.append(worker)
        return worker

    def start_ready(self, *names: str, timeout: float = READY_S) -> list[Worker]:
        """Start workers together and wait until each serves."""
        workers = [self.start(name) for name in names]
        for worker in workers:
            worker.wait_ready(timeout)
        return workers

    def _environment(self) -> dict[str, str]:
        inherited = {name: value for name, value in os.environ.items() if not name.startswith("HOLDFAST_")}
        own = {
            "bootstrap": self.settings.bootstrap,
            "namespace": self.namespace,
            "handlers": "app.samples,tests.support.handlers",
            **self._given,
        }
        faults = {"PYTHONFAULTHANDLER": "1", "PYTHONUNBUFFERED": "1"}
        return inherited | faults | {f"HOLDFAST_{name.upper()}": str(value) for name, value in own.items()}

    def logs(self) -> str:
        return "\n".join(worker.tail() for worker in self.all)


def workers_manage(workers: Workers) -> bool:
    """Do all workers that run host managers of exchanges, and has each manager a backup that has everything?"""
    managers = workers.running[0].get("/api/exchanges")[1]["managers"]
    hosts = {entry["worker"] for entry in managers}
    return len(hosts) == len(workers.running) and all(entry["backup_lag_ms"] == 0 for entry in managers)


def wait_for(condition: Callable[[], _T], timeout: float, what: str) -> _T:
    """Call until the answer is true and return it; fail when the time is over."""
    deadline = time.monotonic() + timeout
    while True:
        answer = condition()
        if answer:
            return answer
        if time.monotonic() > deadline:
            raise AssertionError(f"not within {timeout:g} s: {what} (last answer: {answer!r})")
        time.sleep(_POLL_S)
