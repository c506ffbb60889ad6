"""What every benchmark is given, and what every benchmark is."""

import os
import signal
import subprocess
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Final, Protocol, Self

import psutil

from tests.benchmarks.measurement import Measurement, Sample
from tests.benchmarks.options import Options
from tests.support.cluster import Workers

ROOT: Final = Path(__file__).parents[2]
STOP_S: Final = 20.0
LEFT_OUT: Final = frozenset({"PYTHONDONTWRITEBYTECODE"})
"""An installed program has its bytecode. One that compiles itself at each start is not what anybody ships."""


@dataclass(frozen=True, slots=True)
class Bench:
    """A broker and a place for files.

    ``scratch`` is empty at first and deleted in the end; ``tools`` stays: what peers are built of.
    ``broker_data``: the directory of the broker's logs, None for a broker of somebody else.
    """

    bootstrap: str
    scratch: Path
    tools: Path
    options: Options
    broker_data: Path | None
    say: Callable[[str], None]

    @property
    def config(self) -> dict[str, str | int]:
        return {"bootstrap.servers": self.bootstrap}

    def workers(self, what: str, **settings: object) -> Workers:
        """Workers as shipped, in a namespace of their own."""
        namespace = self.name(what)
        handlers = "app.samples,tests.benchmarks.handlers"
        return Workers(self.bootstrap, namespace, self.scratch / namespace, handlers=handlers, **settings)

    def name(self, what: str) -> str:
        return f"bench-{what}-{time.time_ns() // 1_000_000 % 10**9}"


class Benchmark(Protocol):
    """A module of this package.

    ``NAME`` selects it on the command line. ``measure`` yields samples as they come: they are written at once.
    ``judge`` computes figures from samples alone, those of earlier runs among them; ``plot`` draws them.
    """

    NAME: str
    ABOUT: str

    def measure(self, bench: Bench) -> Iterator[Sample]: ...

    def judge(self, samples: Sequence[Sample]) -> list[Measurement]: ...

    def plot(self, samples: Sequence[Sample], pyplot: Any) -> Any: ...


class Process:
    """A program under measurement; ends with the context. Its output goes to a log."""

    def __init__(self, command: Sequence[str], environment: Mapping[str, str], log: Path) -> None:
        self._log = log
        inherited = {name: value for name, value in os.environ.items() if name not in LEFT_OUT}
        self.begun = time.time()
        with log.open("wb") as output:
            self._process = subprocess.Popen(
                list(command),
                env={**inherited, **environment},
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output,
                cwd=ROOT,
                start_new_session=True,
            )

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if self.running:
            self._process.send_signal(signal.SIGTERM)
            with suppress(subprocess.TimeoutExpired):
                self._process.wait(STOP_S)
        with suppress(ProcessLookupError):
            # Its children are in its group; a program that ended in order has left none.
            os.killpg(self._process.pid, signal.SIGKILL)
        self._process.wait(STOP_S)

    @property
    def pid(self) -> int:
        return self._process.pid

    @property
    def running(self) -> bool:
        return self._process.poll() is None

    def tail(self, lines: int = 12) -> str:
        return "\n".join(self._log.read_text(errors="replace").splitlines()[-lines:])


def cpu_seconds(pid: int) -> float:
    """Processor time of a process, without its children."""
    times = psutil.Process(pid).cpu_times()
    return float(times.user + times.system)


def resident_bytes(pid: int) -> int:
    return int(psutil.Process(pid).memory_info().rss)
