"""What the steps of the demo share: the cluster, the traffic, the clock, and how a step is told."""

import statistics
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final, TypeVar

from app.cli.demo_show import Show, Snapshot, WorkerLine
from app.cli.demo_story import Step
from app.cli.demo_traffic import Traffic, Watch
from app.cli.demo_work import Beside
from app.cli.supervisor import Cluster
from app.errors import HoldfastError

STEP_S: Final = 25.0
"""How long one step may take; it fails then, and the next one begins."""

CALM_S_MAX: Final = 5.0
_TICK_S: Final = 0.1

_T = TypeVar("_T")


class Stage:
    """A demo that runs.

    Args:
        cluster: which runs.
        directory: for files of the steps.
        show: told what happens.
        steps: all of them, in their order.
        seconds: how long there is traffic at least.

    Attributes:
        problems: what went wrong.
        pause_ms: how long the tenant that moved had to wait.
        takeover_ms: from the kill to the first new result of a session that was there.
    """

    def __init__(self, cluster: Cluster, directory: Path, show: Show, steps: tuple[Step, ...], seconds: float) -> None:
        self.cluster = cluster
        self.directory = directory
        self.show = show
        self.steps = steps
        self.seconds = seconds
        self.problems: list[str] = []
        self.pause_ms: int | None = None
        self.takeover_ms: int | None = None
        self.traffic: Traffic
        self.watch: Watch

    def begin(self, traffic: Traffic, watch: Watch) -> None:
        """There is traffic from now on."""
        self.traffic, self.watch = traffic, watch

    @property
    def now_s(self) -> float:
        """Seconds since the traffic began."""
        return self.traffic.now_s

    @contextmanager
    def step(self, key: str, about: str = "") -> Iterator[Step]:
        """Run a step; ``about`` says it in detail. What goes wrong in it is a problem of the run and no end of it."""
        number, step = next((n, step) for n, step in enumerate(self.steps, 1) if step.key == key)
        step.about = about or step.about
        step.begin_s = self.now_s
        self.enter(step)
        try:
            yield step
            step.state = "done"
        except (HoldfastError, TimeoutError, ValueError) as error:
            step.state, step.outcome = "failed", str(error)
            self.problems.append(f"{step.title}: {error}")
        step.end_s = self.now_s
        self.show.step(number, step)

    def enter(self, step: Step) -> None:
        """A step begins: tell it."""
        step.state = "now"
        self.show.step(self.steps.index(step) + 1, step)

    def wait(self, condition: Callable[[], object], what: str, timeout: float = STEP_S) -> None:
        """Go on showing until a condition holds; TimeoutError if it does not."""
        deadline = time.monotonic() + timeout
        while not condition():
            if time.monotonic() > deadline:
                raise TimeoutError(f"not within {timeout:g} s: {what}")
            self.tick()

    def ask(self, call: Callable[[], _T], what: str) -> _T:
        """Go on showing while something answers that takes its time."""
        asked = Beside(call, what)
        self.wait(lambda: asked.done, what)
        return asked.result()

    def calm(self, share: float = 1.0) -> None:
        """Let some time pass, so that one step can be told from the next."""
        until = self.now_s + share * min(self.seconds / 20, CALM_S_MAX)
        while self.now_s < until:
            self.tick()

    def tick(self) -> None:
        """Show how it is, and let a moment pass."""
        hosts: dict[str, list[int]] = {}
        for server, host in sorted(self.watch.host.copy().items()):
            hosts.setdefault(host, []).append(server)
        lines = tuple(
            WorkerLine(
                worker.name,
                worker.pid,
                worker.state,
                tuple(hosts.get(worker.name, ())) if worker.state == "ready" else (),
                self.watch.by_worker.get(worker.name, 0),
            )
            for worker in self.cluster.workers
        )
        running = next((step.key for step in reversed(self.steps) if step.state == "now"), "traffic")
        recent = list(self.watch.recent_ms)[-60:]
        done = min(1.0, self.now_s / self.seconds)
        counts = (self.traffic.sent, self.watch.performed, self.watch.failed)
        self.show.update(Snapshot(running, done, *counts, lines, self.steps, max(recent, default=0.0)))
        time.sleep(_TICK_S)

    def median_ms(self) -> float:
        """How long the last hundred tasks took."""
        return statistics.median(list(self.watch.recent_ms)[-100:] or [0.0])
