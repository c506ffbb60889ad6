"""The compose project of the deployment, started by Docker Compose, and what is asked of it.

``HOLDFAST_TEST_COMPOSE`` may name an override file: other images, where no registry can be reached. A service that it
gives a profile is not started.
"""

import base64
import json
import os
import secrets
import subprocess
import urllib.request
from collections.abc import Iterator, Mapping
from pathlib import Path
from types import TracebackType
from typing import Any, Final, Self
from urllib.error import HTTPError, URLError
from urllib.parse import quote

from tests.support.cluster import wait_for

FILE: Final = Path(__file__).parents[2] / "deploy" / "compose" / "compose.yaml"
WORKERS: Final = {"w1": "http://127.0.0.1:8081", "w2": "http://127.0.0.1:8082", "w3": "http://127.0.0.1:8083"}
PROMETHEUS: Final = "http://127.0.0.1:9090"
GRAFANA: Final = "http://127.0.0.1:3000"
PROJECT: Final = "holdfast-test"
READY_S: Final = 300
ANSWER_S: Final = 20


def available() -> bool:
    """Whether a Docker engine with Compose answers."""
    try:
        for command in (["docker", "info"], ["docker", "compose", "version"]):
            subprocess.run(command, check=True, capture_output=True, timeout=30)
    except (OSError, subprocess.SubprocessError):
        return False
    return True


class Compose:
    """The project, up while the context is entered; its volumes go with it."""

    def __init__(self) -> None:
        self.token = secrets.token_hex(16)
        self._password = secrets.token_hex(16)
        own = {"HOLDFAST_TOKEN": self.token, "GRAFANA_PASSWORD": self._password}
        self._environment = {**os.environ, **own}
        override = os.environ.get("HOLDFAST_TEST_COMPOSE")
        files = [FILE, *([Path(override)] if override else [])]
        self._command = ["docker", "compose", "--project-name", PROJECT]
        self._command += [word for file in files for word in ("--file", str(file))]

    def __enter__(self) -> Self:
        try:
            # What an interrupted run has left behind is not this one's.
            self.run("down", "--volumes")
            self.run("up", "--detach", "--quiet-pull")
        except BaseException:
            self.__exit__(None, None, None)
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if kind is not None:
            print(self.run("logs", "--tail", "40", "--no-color"))
        self.run("down", "--volumes", "--timeout", "45")

    def run(self, *arguments: str, given: str | None = None) -> str:
        """Run a command of Compose; return what it printed."""
        done = self.start(*arguments)
        out, _ = done.communicate(given, timeout=READY_S)
        assert done.returncode == 0, f"docker compose {' '.join(arguments)}: {out}"
        return str(out)

    def start(self, *arguments: str) -> "subprocess.Popen[str]":
        """Start a command of Compose."""
        return subprocess.Popen(
            [*self._command, *arguments],
            env=self._environment,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )

    def services(self) -> Mapping[str, Mapping[str, Any]]:
        """What is up: by service, as `docker compose ps` tells it."""
        lines = self.run("ps", "--format", "json").splitlines()
        return {entry["Service"]: entry for entry in map(json.loads, lines)}

    def kill_program(self, service: str) -> None:
        """End the program within a container with signal 9; the engine sees a container that has ended by itself."""
        programs = "(p for p in os.listdir('/proc') if p.isdigit() and p not in ('1', str(os.getpid())))"
        self.run("exec", "-T", service, "python3", "-c", f"import os; [os.kill(int(p), 9) for p in {programs}]")

    def ask(self, url: str, path: str, *, user: str = "", body: object = None) -> tuple[int, Any]:
        """Ask over HTTP; return status and answer, status 0 when nobody answers."""
        basic = base64.b64encode(f"{user}:{self._password}".encode()).decode()
        login = {"Authorization": f"Basic {basic}" if user else f"Bearer {self.token}"}
        data = None if body is None else json.dumps(body).encode()
        request = urllib.request.Request(url + path, data, login)  # noqa: S310
        try:
            with urllib.request.urlopen(request, timeout=ANSWER_S) as answer:  # noqa: S310
                return answer.status, _decoded(answer.read())
        except HTTPError as error:
            return error.code, _decoded(error.read())
        except (URLError, OSError):
            return 0, None

    def wait_ready(self) -> None:
        """Wait until all three workers serve what they were given."""
        wait_for(
            lambda: all(self.ask(url, "/readyz")[0] == 200 for url in WORKERS.values()), READY_S, "three ready workers"
        )

    def query(self, expression: str) -> list[Any]:
        """What Prometheus makes of an expression now; fails if it refuses it."""
        status, answer = self.ask(PROMETHEUS, f"/api/v1/query?query={quote(expression)}")
        assert status == 200, f"{expression}: {answer}"
        return list(answer["data"]["result"])


def _decoded(text: bytes) -> Any:
    try:
        return json.loads(text or b"null")
    except ValueError:
        return text.decode(errors="replace")


def panels(board: Mapping[str, Any]) -> Iterator[tuple[str, list[str]]]:
    """The panels of a dashboard: title, and the expressions as Grafana would send them with all jobs chosen."""
    for panel in board["panels"]:
        wanted = [target["expr"] for target in panel.get("targets", ())]
        yield panel["title"], [w.replace("$job", ".*").replace("$__rate_interval", "1m") for w in wanted]
