"""The host supervisor: starts a session's program on a client or server computer, and starts it again.

A program ends in three ways. With exit code 0 it is done, and so is its supervisor. With another one, or by a signal,
it is started again. And when its manager says so, because it does not answer any more, it gets SIGTERM, ten seconds to
end, and SIGKILL; then it is started again. Each start finds the restart data and both queues in a file.
"""

import json
import os
import signal
import subprocess
import tempfile
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

from app.client.exchanges_look import Watcher
from app.errors import BrokerUnreachableError, HoldfastError
from app.settings import ENV_PREFIX, Settings

GRACE_S: Final = 10.0
LOOK_S: Final = 60.0
QUICK_DEATH_S: Final = 5.0
BACK_OFF_MAX_S: Final = 30.0
_TURN_S: Final = 0.2

Say = Callable[[str, dict[str, Any]], None]
"""Tells people and programs what happens: a line, and an object."""


@dataclass
class Part:
    """What is supervised: the client of an exchange, or a server session."""

    client: str = ""
    exchange: str = ""
    server: str = ""

    @property
    def topic(self) -> str:
        """Where managers speak to it."""
        return "assignments" if self.server else "replies"

    @property
    def name(self) -> str:
        """What people call it."""
        return f"server session {self.server}" if self.server else f"client {self.client} of {self.exchange}"

    def concerns(self, key: str, record: dict[str, Any]) -> bool:
        """Is a record about it?"""
        return record.get("server") == self.server if self.server else key == self.exchange

    def look(self, watcher: Watcher) -> dict[str, Any]:
        """What the program restarts from: the contents of its restart file."""
        if self.server:
            shown = watcher.server(self.server, LOOK_S)
            held = [{**entry, "restart": entry.pop("server_restart", None)} for entry in shown]
            return {"server": self.server, "exchanges": held}
        entry = watcher.exchange(self.exchange, LOOK_S)
        return {**entry, "client": self.client, "restart": entry.pop("client_restart", None)}


@dataclass
class Supervisor:
    """Runs one program until it is done. Call :meth:`run` in the main thread."""

    settings: Settings
    part: Part
    command: Sequence[str]
    say: Say
    environment: dict[str, str]
    process: "subprocess.Popen[bytes] | None" = None
    stopping: int = 0
    _silent: set[int] = field(default_factory=set)
    _wanted: threading.Event = field(default_factory=threading.Event)

    def run(self) -> int:
        """Supervise until the program is done, the exchange is over, or a signal; return the exit code."""
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, self._stop)
        with (
            Watcher(self.settings, self.part.topic, self._heard) as watcher,
            tempfile.TemporaryDirectory() as directory,
        ):
            file = Path(directory) / "restart.json"
            if self.part.server:
                watcher.watch_all()
            else:
                watcher.watch(self.part.exchange)
            deaths = 0
            while not self.stopping:
                shown = self._look(watcher)
                if shown is None:
                    continue
                if shown.get("outcome") not in (None, "unknown"):
                    self.say(f"exchange {self.part.exchange} is over: {shown['outcome']}", {"state": shown["outcome"]})
                    return 0 if shown["outcome"] == "finished" else 1
                started = time.monotonic()
                code = self._once(file, shown)
                if code == 0 or self.stopping:
                    return 0 if code == 0 else 1
                deaths = deaths + 1 if time.monotonic() - started < QUICK_DEATH_S else 0
                self._pause(min(BACK_OFF_MAX_S, 0.1 * 2**deaths) if deaths else 0.0)
        return 1

    def _look(self, watcher: Watcher) -> dict[str, Any] | None:
        try:
            return self.part.look(watcher)
        except (TimeoutError, BrokerUnreachableError) as error:
            self.say(str(error), {"state": "waiting", "message": str(error)})
        return None

    def _once(self, file: Path, shown: dict[str, Any]) -> int:
        """Start the program, and wait for its end."""
        file.write_text(json.dumps(shown, ensure_ascii=False))
        own = {"BOOTSTRAP": self.settings.bootstrap, "NAMESPACE": self.settings.namespace}
        own |= {"RESTART_FILE": str(file), "EXCHANGE": self.part.exchange}
        variables = {**self.environment, **{f"{ENV_PREFIX}{name}": value for name, value in own.items()}}
        self._wanted.clear()
        try:
            self.process = process = subprocess.Popen(list(self.command), env=variables)
        except OSError as error:
            raise HoldfastError(f"cannot start {self.command[0]}: {error.strerror or error}") from error
        self.say(f"{self.part.name}: started, process {process.pid}", {"state": "started", "pid": process.pid})
        while process.poll() is None:
            if self._wanted.wait(_TURN_S):
                self._end(process)
        code = process.returncode
        self.say(f"{self.part.name}: ended with {code}", {"state": "ended", "pid": process.pid, "exit": code})
        return 1 if self._wanted.is_set() and not self.stopping else code

    def _end(self, process: "subprocess.Popen[bytes]") -> None:
        """Ask it to end; after ten seconds, end it. A frozen process takes no signal but the last one."""
        process.send_signal(signal.SIGTERM)
        try:
            process.wait(GRACE_S)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()

    def _heard(self, key: str, record: dict[str, Any]) -> None:
        """In a thread of the connection: a manager wants the program to be started anew, once for each silence.

        An operator may want it again of a program that has not come to its opening.
        """
        if record.get("type") != "start" or not self.part.concerns(key, record):
            return
        incarnation = record.get("incarnation")
        if record.get("ordered") is True:
            self._wanted.set()
        elif isinstance(incarnation, int) and incarnation not in self._silent:
            self._silent.add(incarnation)
            self._wanted.set()

    def _stop(self, number: int, _frame: object) -> None:
        self.stopping = number
        self._wanted.set()

    def _pause(self, seconds: float) -> None:
        until = time.monotonic() + seconds
        while not self.stopping and (left := until - time.monotonic()) > 0:
            time.sleep(min(left, _TURN_S))


def inherited(environment: dict[str, str]) -> dict[str, str]:
    """The variables that a program gets besides its own: all of ours."""
    return {name: value for name, value in environment.items() if name != f"{ENV_PREFIX}RESTART_FILE"}


def process_environment() -> dict[str, str]:
    """The environment of this process, to be handed down."""
    return inherited(dict(os.environ))  # noqa: TID251 - handed down, not read.
