"""One worker as a child process: started, watched to its end, started again if so asked.

Each worker has a thread here. It is the parent that Linux means when it ends a child with its parent (the
thread, not the process), so it lives as long as the worker does. A pipe tells the worker the same on other
systems.
"""

import contextlib
import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Final, Literal

from pydantic import SecretStr

from app.errors import HoldfastError
from app.settings import ENV_PREFIX, Settings

QUICK_DEATH_S: Final = 10.0
"""A worker that lives shorter than this has died quickly."""

QUICK_DEATHS_MAX: Final = 5
"""After so many quick deaths in a row a worker is not started again."""

_BACK_OFF_S: Final = 0.2
_BACK_OFF_MAX_S: Final = 10.0
_QUOTED_LINES: Final = 3
_QUOTED_BYTES: Final = 16_384
_LOG_BYTES_MAX: Final = 32 << 20

# These belong to one worker: children get their own, or none.
_OWN: Final = frozenset({"port", "advertised_url"})

State = Literal["starting", "ready", "died", "stopped"]


@dataclass(frozen=True, slots=True)
class Change:
    """What happened to a worker. ``exit`` as :mod:`subprocess` counts; ``note`` is for people."""

    worker: str
    pid: int
    state: Literal["died", "started", "stopped"]
    exit: int | None = None
    note: str = ""

    def as_json(self) -> dict[str, Any]:
        """The line that `holdfast up --json` prints."""
        return {"worker": self.worker, "pid": self.pid, "state": self.state, "exit": self.exit}


OnChange = Callable[[Change], None]


class WorkerProcess:
    """One worker: its name, and the process that runs under it now."""

    def __init__(self, name: str, settings: Settings, *, restart: bool, on_change: OnChange) -> None:
        self.name = name
        self.log_path = settings.state_dir / "logs" / f"{name}.log"
        self._settings = settings
        self._restart = restart
        self._on_change = on_change
        self._changed = threading.Condition()
        self._process: subprocess.Popen[bytes] | None = None
        self._lifeline: int | None = None
        self._state: State = "starting"
        self._url = ""
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._run, name=f"worker-{name}", daemon=True)

    def __repr__(self) -> str:
        return f"<WorkerProcess {self.name} {self._state} {self.pid}>"

    @property
    def process(self) -> subprocess.Popen[bytes]:
        """The process that runs now, or ran last."""
        if self._process is None:
            raise HoldfastError(f"worker {self.name} was never started")
        return self._process

    @property
    def pid(self) -> int:
        """The number of :attr:`process`; 0 before the first start."""
        return self._process.pid if self._process is not None else 0

    @property
    def url(self) -> str:
        """Where it serves; empty before it has been ready for the first time."""
        return self._url

    @property
    def state(self) -> State:
        """``starting``, ``ready``, ``died`` (and not started again) or ``stopped``."""
        return self._state

    @property
    def alive(self) -> bool:
        """Whether a process runs under this name."""
        return self._process is not None and self._process.poll() is None

    def start(self) -> None:
        """Start the process; :meth:`wait_until_ready` tells what became of it."""
        self._thread.start()

    def wait_until_ready(self, timeout: float) -> None:
        """Return when the worker serves.

        Raises:
            HoldfastError: it ended, or was not ready in time; quotes its log.
        """
        with self._changed:
            self._changed.wait_for(lambda: self._state != "starting", timeout)
            state = self._state
        if state == "starting":
            raise HoldfastError(f"worker {self.name} is not ready after {timeout:g} s: {self.last_words()}")
        if state != "ready":
            raise HoldfastError(f"worker {self.name} ended with {_spelled(self.process.poll())}: {self.last_words()}")

    def signal(self, number: signal.Signals) -> None:
        """Send a signal to the process; nothing happens if it has ended."""
        # Popen looks first whether the process has ended, so that no stranger with its number is hit.
        with contextlib.suppress(ProcessLookupError):
            self.process.send_signal(number)

    def ask_to_stop(self) -> None:
        """Send SIGTERM and do not start it again; a frozen process is continued."""
        self._stopping.set()
        if self._process is not None:
            self.signal(signal.SIGTERM)
            self.signal(signal.SIGCONT)

    def wait_until_stopped(self, timeout: float) -> None:
        """Wait for the end of the process; after ``timeout`` seconds it is killed."""
        self._thread.join(timeout)
        if self._thread.is_alive():
            self.signal(signal.SIGKILL)
            self._thread.join()

    def last_words(self) -> str:
        """The last lines of the log, in one line."""
        try:
            with self.log_path.open("rb") as file:
                file.seek(max(0, self.log_path.stat().st_size - _QUOTED_BYTES))
                lines = [line.strip() for line in file.read().decode(errors="replace").splitlines()]
        except OSError:
            lines = []
        said = " | ".join([line[:300] for line in lines if line][-_QUOTED_LINES:]) or "nothing"
        return f"it said: {said} ({self.log_path})"

    # -- the thread ------------------------------------------------------------------------------------------

    def _run(self) -> None:
        quick_deaths = 0
        while not self._stopping.is_set():
            began = time.monotonic()
            code = self._live()
            if self._stopping.is_set():
                self._on_change(Change(self.name, self.pid, "stopped", code))
                break
            quick_deaths = quick_deaths + 1 if time.monotonic() - began < QUICK_DEATH_S else 1
            again = self._restart and quick_deaths < QUICK_DEATHS_MAX
            self._died(code, again=again)
            if not again:
                return
            self._stopping.wait(min(_BACK_OFF_S * 2 ** (quick_deaths - 1), _BACK_OFF_MAX_S))
        self._enter("stopped")

    def _died(self, code: int, *, again: bool) -> None:
        self._enter("starting" if again else "died")
        advice = ""
        if self._restart and not again:
            advice = f"; {QUICK_DEATHS_MAX} quick deaths in a row: it is not started again"
        note = f"worker {self.name} ended with {_spelled(code)}{advice}; {self.last_words()}"
        self._on_change(Change(self.name, self.pid, "died", code, note))

    def _live(self) -> int:
        """Run one process to its end."""
        try:
            ready = self._spawn()
        except OSError as error:
            self.log_path.parent.mkdir(parents=True, exist_ok=True)
            with self.log_path.open("a") as log:
                log.write(f"cannot be started: {error}\n")
            return 1
        if self._stopping.is_set():
            self.signal(signal.SIGTERM)
        with os.fdopen(ready) as pipe:
            line = pipe.readline()
        if line:
            self._url = str(json.loads(line)["url"])
            self._enter("ready")
            self._on_change(Change(self.name, self.pid, "started"))
        code = self.process.wait()
        if self._lifeline is not None:
            os.close(self._lifeline)
            self._lifeline = None
        return code

    def _spawn(self) -> int:
        """Start the process; return the pipe on which it says that it is ready."""
        self.log_path.parent.mkdir(parents=True, exist_ok=True)
        if self.log_path.exists() and self.log_path.stat().st_size > _LOG_BYTES_MAX:
            self.log_path.replace(self.log_path.with_suffix(".log.1"))
        ready, ready_end = os.pipe()
        lifeline_end, lifeline = os.pipe()
        try:
            with self.log_path.open("ab") as log:
                self._process = subprocess.Popen(
                    [
                        *command_of(self.name),
                        *("--ready-fd", str(ready_end), "--lifeline-fd", str(lifeline_end)),
                    ],
                    stdin=subprocess.DEVNULL,
                    stdout=log,
                    stderr=subprocess.STDOUT,
                    pass_fds=[ready_end, lifeline_end],
                    env=child_environment(self._settings),
                    # Ctrl-C is for this process, which stops its workers in order.
                    start_new_session=True,
                )
        except BaseException:
            os.close(ready)
            os.close(lifeline)
            raise
        finally:
            os.close(ready_end)
            os.close(lifeline_end)
        self._lifeline = lifeline
        return ready

    def _enter(self, state: State) -> None:
        with self._changed:
            self._state = state
            self._changed.notify_all()


def command_of(name: str) -> list[str]:
    """The command that starts a worker on a free port."""
    return [sys.executable, "-P", "-m", "app", "worker", "--name", name, "--port", "0"]


def child_environment(settings: Settings) -> dict[str, str]:
    """This process's environment with exactly these settings in it: a child needs no file and no flag."""
    inherited = {
        name: value
        for name, value in os.environ.items()  # noqa: TID251 - what is not a setting passes as it is.
        if not name.startswith(ENV_PREFIX)
    }
    values = {name: getattr(settings, name) for name in Settings.model_fields if name not in _OWN}
    given = {name: _spell(value) for name, value in values.items()}
    return inherited | {f"{ENV_PREFIX}{name.upper()}": text for name, text in given.items() if text}


def _spell(value: object) -> str:
    match value:
        case None:
            return ""
        case SecretStr():
            return value.get_secret_value()
        case tuple():
            return ",".join(map(str, value))
        case _:
            return str(value)


def _spelled(code: int | None) -> str:
    if code is not None and code < 0:
        with contextlib.suppress(ValueError):
            return signal.Signals(-code).name
    return f"exit code {code}"
