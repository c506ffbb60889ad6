"""`python -m tests.benchmarks`: this machine's figures as a table, plots and JSON under `.holdfast/bench`."""

import argparse
import os
import platform
import signal
import sys
import tempfile
import time
import traceback
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Final

from rich.console import Console

from app.engine.embedded_kafka import EmbeddedKafka
from tests.benchmarks import (
    broker,
    endurance,
    exchanges,
    failover,
    large,
    latency,
    migration,
    moves,
    path,
    reference,
    restore,
    routing,
    scaling,
    takeover,
    transfers,
)
from tests.benchmarks.bench import Bench, Benchmark
from tests.benchmarks.options import Options
from tests.benchmarks.peers.engines import PATH, REFERENCE
from tests.benchmarks.report import Record, table

OUTPUT: Final = Path(".holdfast/bench")
# A benchmark's broker may use more memory than the one of `up`.
HEAP_MB: Final = 1_024

BENCHMARKS: Final[tuple[Benchmark, ...]] = (
    reference,
    path,
    latency,
    takeover,
    moves,
    migration,
    failover,
    transfers,
    exchanges,
    restore,
    large,
    endurance,
    scaling,
    routing,
    broker,
)
"""All of them, in the order of the table. A new one is a module with the names of :class:`Benchmark`."""


def main(arguments: Sequence[str] | None = None) -> int:
    given = _parse(arguments)
    options = Options.taken_from(given)
    console = Console(width=max(140, Console().width))
    record = Record(Path(given.into) if given.into else OUTPUT / time.strftime("%Y%m%d-%H%M%S"))
    failed = []
    for benchmark in () if given.report else BENCHMARKS:
        if given.only and benchmark.NAME not in given.only:
            continue
        console.print(f"[bold]{benchmark.NAME}[/]: {benchmark.ABOUT}")
        try:
            with _bench(given.bootstrap, options, console) as bench:
                for sample in benchmark.measure(bench):
                    record.add(benchmark.NAME, sample)
        except Exception:  # noqa: BLE001 - the others shall run, and the reason is shown.
            failed.append(benchmark.NAME)
            traceback.print_exc()
    about = {"at": time.strftime("%Y-%m-%dT%H:%M:%S%z"), "machine": _machine(), "failed": failed}
    found = record.conclude(BENCHMARKS, about)
    console.print(table(found, f"Holdfast on {os.cpu_count()} cores, the broker beside it"))
    console.print(f"samples, results.json and plots: {record.directory}")
    if failed:
        console.print(f"[bold red]failed: {', '.join(failed)}[/]")
    return 1 if failed else 0


def _parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m tests.benchmarks", description=__doc__)
    names = [benchmark.NAME for benchmark in BENCHMARKS]
    parser.add_argument("--only", nargs="+", choices=names, metavar="NAME", help=f"of {' '.join(names)}")
    parser.add_argument("--quick", action="store_true", help="small numbers: shows that everything runs, nothing else")
    parser.add_argument("--into", metavar="DIRECTORY", help="add to the samples of an earlier run")
    parser.add_argument("--report", action="store_true", help="measure nothing, conclude anew (with --into)")
    parser.add_argument("--bootstrap", metavar="HOST:PORT", help="a Kafka that runs (default: an embedded one)")
    Options.add_to(parser)
    given = parser.parse_args(arguments)
    known = sorted({engine.key for engine in (*REFERENCE, *PATH)})
    for engine in given.engines or ():
        if engine not in known:
            parser.error(f"no engine {engine!r}: use {', '.join(known)}")
    return given


@contextmanager
def _bench(bootstrap: str | None, options: Options, console: Console) -> Iterator[Bench]:
    """Give each benchmark a broker of its own, so that none finds the topics of another."""
    with tempfile.TemporaryDirectory(prefix="holdfast-bench-") as scratch, console.status("") as status:

        def say(text: str) -> None:
            status.update(text)
            if not console.is_terminal:
                console.print(f"  {time.strftime('%H:%M:%S')} {text}", highlight=False)

        tools, directory = OUTPUT.absolute() / "tools", Path(scratch)
        if bootstrap:
            yield Bench(bootstrap, directory, tools, options, None, say)
            return
        with EmbeddedKafka(directory / "broker", heap_mb=HEAP_MB) as kafka:
            yield Bench(kafka.bootstrap, directory, tools, options, directory / "broker" / "kafka" / "data", say)


def _machine() -> dict[str, str | int | None]:
    return {"cores": os.cpu_count(), "python": platform.python_version(), "system": platform.platform()}


if __name__ == "__main__":
    # Whoever ends a run ends its workers and its broker too.
    signal.signal(signal.SIGTERM, lambda number, _frame: sys.exit(128 + number))
    sys.exit(main())
