"""What the demo shows while it runs: a table on a terminal, lines elsewhere, JSON lines for programs."""

import json
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from types import TracebackType
from typing import Final, Protocol, Self

from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.padding import Padding
from rich.rule import Rule
from rich.table import Table
from rich.text import Text

from app.cli.demo_story import Step

_LINE_EVERY_S: Final = 5.0
_REFRESH_PER_S: Final = 6
_BARS: Final = "▁▂▃▄▅▆▇█"
_BAR_MS: Final = (30, 60, 120, 250, 500, 1_000, 2_000)
_CURVE: Final = 56
_MARK: Final = {"to come": ("·", "dim"), "now": ("▶", "bold cyan"), "done": ("✓", "green"), "failed": ("✗", "bold red")}
_COLOURS: Final = ("blue", "yellow", "green", "magenta", "red", "cyan")


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
    """The whole run now. ``done`` is the share of the time that is over, 0 to 1; ``recent_ms`` the slowest of late."""

    phase: str
    done: float
    sent: int
    performed: int
    failed: int
    workers: tuple[WorkerLine, ...] = ()
    steps: Sequence[Step] = ()
    recent_ms: float = 0.0


class Show(Protocol):
    """Where the demo tells what it does; a context manager."""

    def __enter__(self) -> Self: ...

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None: ...

    def event(self, text: str, **fields: object) -> None:
        """Tell that something happened."""

    def step(self, number: int, step: Step) -> None:
        """Tell that a step began or ended."""

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

    def step(self, number: int, step: Step) -> None:
        """Tell that a step began or ended."""
        if step.state == "now":
            _tell(f"{self._seconds():6.1f} s  {number}. {step.title}. {step.about}")
        else:
            _tell(f"{self._seconds():6.1f} s     {step.state}: {step.outcome}")

    def update(self, now: Snapshot) -> None:
        """Tell how far it is."""
        if self._due(now, _LINE_EVERY_S):
            _tell(f"{self._seconds():6.1f} s     {_counts(now)}")


class JsonLines(_Plain):
    """One object a line; the last one, the account, is the command's own."""

    def event(self, text: str, **fields: object) -> None:
        """Tell that something happened."""
        _tell(json.dumps({"at_s": self._seconds(), "event": text, **fields}))

    def step(self, number: int, step: Step) -> None:
        """Tell that a step began or ended."""
        fields = {"step": step.key, "state": step.state, "outcome": step.outcome}
        _tell(json.dumps({"at_s": self._seconds(), "event": step.title, **fields}))

    def update(self, now: Snapshot) -> None:
        """Tell how far it is."""
        if self._due(now, 1.0):
            fields = {"phase": now.phase, "sent": now.sent, "performed": now.performed, "failed": now.failed}
            _tell(json.dumps({"at_s": self._seconds(), **fields}))


class Screen(_Plain):
    """The steps, the workers and the latency in one picture that stays in place."""

    def __init__(self) -> None:
        super().__init__()
        self._console = Console(highlight=False)
        self._live = Live(console=self._console, refresh_per_second=_REFRESH_PER_S, vertical_overflow="crop")
        self._curve = ""
        self._curved = 0.0
        self._notes: list[str] = []
        self._address = ""
        self._last: Snapshot | None = None

    def __enter__(self) -> Self:
        self._live.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if self._last is not None:
            self._live.update(Group(*steps_of(self._last)))
        self._live.stop()

    def event(self, text: str, **fields: object) -> None:
        """Tell that something happened."""
        if "console" in fields:
            self._address = text
            return
        self._notes = [*self._notes[-1:], f"{self._seconds():5.1f} s  {text}"]

    def step(self, number: int, step: Step) -> None:
        """Tell that a step began or ended: the next picture shows it."""

    def update(self, now: Snapshot) -> None:
        """Tell how far it is."""
        self._last = now
        elapsed = time.monotonic()
        if now.workers and elapsed - self._curved > 0.5:
            self._curved = elapsed
            level = sum(now.recent_ms > limit for limit in _BAR_MS)
            self._curve = (self._curve + _BARS[level])[-_CURVE:]
        notes = [Text(note, "dim") for note in (self._address, *self._notes) if note]
        self._live.update(Group(*steps_of(now), Rule(style="dim"), *panel(now, self._curve), *notes))


def _tell(line: str) -> None:
    # In one piece: events come from several threads.
    sys.stdout.write(f"{line}\n")
    sys.stdout.flush()


def _counts(now: Snapshot) -> str:
    under_way = max(0, now.sent - now.performed - now.failed)
    return f"{now.sent:,} sent, {now.performed:,} performed, {now.failed:,} failed, {under_way:,} under way"


def steps_of(now: Snapshot) -> Sequence[RenderableType]:
    """The list of the steps, with what each is about or what came of it."""
    lines: list[RenderableType] = [Text("")]
    for step in now.steps:
        mark, style = _MARK[step.state]
        title = Text.assemble((f" {mark} ", style), (step.title, "dim" if step.state == "to come" else "bold"))
        lines.append(title)
        if step.state == "now":
            lines.append(Padding(Text(step.about, "cyan"), (0, 0, 0, 5)))
        elif step.outcome:
            lines.append(Padding(Text(step.outcome, "red" if step.state == "failed" else "dim"), (0, 0, 0, 5)))
    return lines


def panel(now: Snapshot, curve: str) -> Sequence[RenderableType]:
    """Counts, workers, and how slow it is."""
    head = Text(_counts(now), "bold")
    if not now.workers:
        return [head]
    table = Table("worker", "process", "state", "serves", "results", box=None, pad_edge=False, padding=(0, 3, 0, 0))
    for number, worker in enumerate(now.workers):
        style = "" if worker.state == "ready" else "bold red" if worker.state == "died" else "yellow"
        name = Text(worker.name, f"bold {_COLOURS[number % len(_COLOURS)]}")
        servers = "server " + " ".join(map(str, worker.servers)) if worker.servers else "-"
        table.add_row(name, str(worker.pid), Text(worker.state, style), servers, f"{worker.results:,}")
    full = round(min(1.0, now.done) * _CURVE)
    bar = Text.assemble(("━" * full, "cyan"), ("━" * (_CURVE - full), "dim"))
    slow = Text.assemble(("slowest of late  ", "dim"), (curve, "cyan"), f"  {now.recent_ms:,.0f} ms")
    return [head, bar, table, slow]
