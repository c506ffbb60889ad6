"""What the demo shows while it runs: a table on a terminal, lines elsewhere, JSON lines for programs."""

import json
import sys
import time
from dataclasses import dataclass
from types import TracebackType
from typing import Final, Protocol, Self

from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

_LINE_EVERY_S: Final = 5.0
_REFRESH_PER_S: Final = 4


@dataclass(frozen=True, slots=True)
class WorkerLine:
    """One worker now: its servers, and the results that it wrote so far."""

    name: str
    pid: int
    state: str
    servers: tuple[int, ...]
    results: int


@dataclass(frozen=True, slots=True)
class Snapshot:
    """The whole run now. ``done`` is the share of the time that is over, 0 to 1."""

    phase: str
    done: float
    sent: int
    performed: int
    failed: int
    workers: tuple[WorkerLine, ...] = ()


class Show(Protocol):
    """Where the demo tells what it does; a context manager."""

    def __enter__(self) -> Self: ...

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None: ...

    def event(self, text: str, **fields: object) -> None:
        """Tell that something happened."""

    def update(self, now: Snapshot) -> None:
        """Tell how far it is; called several times a second."""


def choose(*, as_json: bool) -> Show:
    """Return what suits the standard output."""
    if as_json:
        return JsonLines()
    return Screen() if sys.stdout.isatty() else Lines()


class _Plain:
    def __init__(self) -> None:
        self._begun = time.monotonic()
        self._told = 0.0
        self._phase = ""

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        pass

    def _seconds(self) -> float:
        return round(time.monotonic() - self._begun, 1)

    def _due(self, now: Snapshot, every_s: float) -> bool:
        elapsed = time.monotonic() - self._begun
        if now.phase == self._phase and elapsed - self._told < every_s:
            return False
        self._told, self._phase = elapsed, now.phase
        return True


class Lines(_Plain):
    """A line for each event, and one every few seconds."""

    def event(self, text: str, **_fields: object) -> None:
        """Tell that something happened."""
        _tell(f"{self._seconds():6.1f} s  {text}")

    def update(self, now: Snapshot) -> None:
        """Tell how far it is."""
        if self._due(now, _LINE_EVERY_S):
            _tell(f"{self._seconds():6.1f} s  {now.phase}: {_counts(now)}")


class JsonLines(_Plain):
    """One object a line; the last one, the account, is the command's own."""

    def event(self, text: str, **fields: object) -> None:
        """Tell that something happened."""
        _tell(json.dumps({"at_s": self._seconds(), "event": text, **fields}))

    def update(self, now: Snapshot) -> None:
        """Tell how far it is."""
        if self._due(now, 1.0):
            fields = {"phase": now.phase, "sent": now.sent, "performed": now.performed, "failed": now.failed}
            _tell(json.dumps({"at_s": self._seconds(), **fields}))


class Screen(_Plain):
    """A table that stays in place, below the events."""

    def __init__(self) -> None:
        super().__init__()
        self._live = Live(console=Console(), refresh_per_second=_REFRESH_PER_S, transient=True)

    def __enter__(self) -> Self:
        self._live.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._live.stop()

    def event(self, text: str, **_fields: object) -> None:
        """Tell that something happened."""
        self._live.console.print(f"[dim]{self._seconds():6.1f} s[/dim]  {text}", highlight=False)

    def update(self, now: Snapshot) -> None:
        """Tell how far it is."""
        self._live.update(_panel(now))


def _tell(line: str) -> None:
    # In one piece: events come from several threads.
    sys.stdout.write(f"{line}\n")
    sys.stdout.flush()


def _counts(now: Snapshot) -> str:
    under_way = max(0, now.sent - now.performed - now.failed)
    return f"{now.sent:,} sent, {now.performed:,} performed, {now.failed:,} failed, {under_way:,} under way"


def _panel(now: Snapshot) -> RenderableType:
    table = Table("worker", "process", "state", "servers", "results", box=None, pad_edge=False)
    for worker in now.workers:
        style = "" if worker.state == "ready" else "bold red" if worker.state == "died" else "yellow"
        servers = " ".join(map(str, worker.servers))
        table.add_row(worker.name, str(worker.pid), Text(worker.state, style), servers, f"{worker.results:,}")
    bar = ProgressBar(total=1.0, completed=min(1.0, now.done), width=60)
    head = Text(f"{now.phase}: {_counts(now)}", "bold")
    return Group(head, bar, table) if now.workers else Group(head, bar)
