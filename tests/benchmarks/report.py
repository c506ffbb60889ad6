"""What remains of a run: a directory with samples, figures, plots, and a table on the screen.

`samples-NAME.jsonl` are the raw numbers of a benchmark, one sample a line, in the order in which they came;
`results.json` the figures computed from them; `NAME.png` the plots.
"""

import importlib
import json
import time
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from rich.table import Table

from tests.benchmarks.bench import Benchmark
from tests.benchmarks.measurement import Measurement, Sample, number


class Record:
    """The directory of one run, or of several that belong together."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        directory.mkdir(parents=True, exist_ok=True)

    def add(self, name: str, sample: Sample) -> None:
        with self._path(name).open("a", encoding="utf-8") as file:
            file.write(json.dumps({"at": time.strftime("%Y-%m-%dT%H:%M:%S%z"), **sample}) + "\n")

    def samples(self, name: str) -> list[Sample]:
        path = self._path(name)
        return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()] if path.exists() else []

    def conclude(self, benchmarks: Iterable[Benchmark], about: Mapping[str, Any]) -> dict[str, list[Measurement]]:
        """Compute all figures anew from the samples, write them, draw what can be drawn."""
        found = {}
        for benchmark in benchmarks:
            samples = self.samples(benchmark.NAME)
            if samples:
                found[benchmark.NAME] = benchmark.judge(samples)
                self._draw(benchmark, samples)
        results = {name: [entry.as_json() for entry in entries] for name, entries in found.items()}
        text = json.dumps({**about, "results": results}, indent=2, ensure_ascii=False)
        (self.directory / "results.json").write_text(text + "\n", encoding="utf-8")
        return found

    def _path(self, name: str) -> Path:
        return self.directory / f"samples-{name}.jsonl"

    def _draw(self, benchmark: Benchmark, samples: Sequence[Sample]) -> None:
        try:
            pyplot: Any = importlib.import_module("matplotlib.pyplot")
        except ImportError:
            # `make bench` installs it; the table and the numbers do without.
            return
        pyplot.switch_backend("agg")
        drawn = benchmark.plot(samples, pyplot)
        if drawn is not None:
            drawn.tight_layout()
            drawn.savefig(self.directory / f"{benchmark.NAME}.png", dpi=110)
            pyplot.close(drawn)


def table(found: Mapping[str, list[Measurement]], title: str) -> Table:
    """Ratios first, then figures without a peer."""
    made = Table("what", "ours", "against", "theirs", "ratio", "goal", "met", title=title)
    entries = [entry for measurements in found.values() for entry in measurements]
    for entry in sorted(entries, key=lambda entry: not entry.peer):
        made.add_row(*_row(entry))
    return made


def _row(entry: Measurement) -> Sequence[str]:
    name = f"{entry.name} ({entry.note})" if entry.note else entry.name
    goal = str(entry.goal) if entry.goal else ""
    if entry.absent:
        return name, "", entry.peer, f"absent: {entry.absent}", "", goal, "?" if goal else ""
    ours = f"{number(entry.value or 0)} {entry.unit}"
    theirs = number(entry.peer_value) if entry.peer_value is not None else ""
    ratio = f"{entry.ratio:.2f} x" if entry.ratio is not None else ""
    if len(entry.ratios) > 1:
        ratio += f" ({min(entry.ratios):.2f} to {max(entry.ratios):.2f})"
    met = {True: "yes", False: "NO", None: ""}[entry.met]
    return name, ours, entry.peer, theirs, ratio, goal, met
