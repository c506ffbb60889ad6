"""`python -m tests.benchmarks`: figures of this machine, as a table and as JSON under `.holdfast/bench`."""

import argparse
import json
import os
import platform
import statistics
import tempfile
import time
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from app.engine.embedded_kafka import EmbeddedKafka
from tests.benchmarks import broker, path, peers, reference, transfers

OUTPUT = Path(".holdfast/bench")
# A benchmark's broker may use more memory than the one of `up`.
HEAP_MB = 1_024


def main() -> None:
    arguments = _arguments()
    console = Console()
    results: dict[str, Any] = {
        "at": time.strftime("%Y-%m-%dT%H:%M:%S%z"),
        "machine": {"cores": os.cpu_count(), "python": platform.python_version()},
    }
    with console.status("starts of the embedded broker"):
        results["broker_start"] = broker.start_times(arguments.starts)
    with (
        tempfile.TemporaryDirectory(prefix="holdfast-bench-") as scratch,
        EmbeddedKafka(Path(scratch) / "kafka", heap_mb=HEAP_MB) as kafka,
    ):
        directory = Path(scratch)
        results["throughput"] = []
        for workers in arguments.workers:
            with console.status(f"{arguments.tasks} tasks, {workers} workers"):
                names = tuple(f"w{number + 1}" for number in range(workers))
                results["throughput"].append(path.throughput(kafka.bootstrap, directory, arguments.tasks, names))
        with console.status(f"latency at {arguments.rate} tasks/s"):
            results["latency"] = path.latency(
                kafka.bootstrap, directory, ("w1",), rate=arguments.rate, seconds=arguments.seconds
            )
        with console.status(f"reference job, {arguments.records} records"):
            results["reference"] = reference.run(kafka.bootstrap, directory, arguments.records)
        with console.status("peers"):
            results["reference_peers"] = peers.reference(kafka.bootstrap, directory, arguments.records)
            results["peers"] = peers.run(kafka.bootstrap, directory, arguments.tasks)
        with console.status("transfers"):
            results["transfers"] = transfers.run(kafka.bootstrap, directory)
    OUTPUT.mkdir(parents=True, exist_ok=True)
    raw = OUTPUT / f"{time.strftime('%Y%m%d-%H%M%S')}.json"
    raw.write_text(json.dumps(results, indent=2) + "\n", encoding="utf-8")
    console.print(_table(results))
    console.print(f"raw numbers: {raw}")


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m tests.benchmarks", description=__doc__)
    parser.add_argument("--tasks", type=int, default=400_000, help="preloaded tasks (default: %(default)s)")
    parser.add_argument("--records", type=int, default=400_000, help="of the reference job (default: %(default)s)")
    parser.add_argument("--workers", type=int, nargs="+", default=[1, 2], help="how many workers (default: 1 2)")
    parser.add_argument("--rate", type=int, default=2_000, help="tasks a second for latency (default: %(default)s)")
    parser.add_argument("--seconds", type=float, default=20.0, help="of measured latency (default: %(default)s)")
    parser.add_argument("--starts", type=int, default=3, help="of the broker (default: %(default)s)")
    return parser.parse_args()


def _table(results: dict[str, Any]) -> Table:
    table = Table("what", "figure", title=f"Holdfast on {results['machine']['cores']} cores")
    start = results["broker_start"]
    table.add_row("embedded broker, new directory", f"{start['new_s']} s")
    table.add_row("embedded broker, started again", f"{start['again_s']} s")
    for run in results["throughput"]:
        what = f"{run['tasks']:,} tasks, {run['workers']} worker(s)"
        table.add_row(f"{what}: tasks to results", f"{run['tasks_per_s']:,} /s")
        table.add_row(f"{what}: of it tasks to work", f"{run['routed_per_s']:,} /s")
        table.add_row(f"{what}: start to first result", f"{run['start_s']} s")
    delay = results["latency"]
    figures = f"{delay['p50_ms']} / {delay['p99_ms']} ms"
    table.add_row(f"latency at {delay['rate']:,} tasks/s, p50 / p99", figures)
    own = results["reference"]["records_per_s"]
    table.add_row("reference job, one worker", f"{own:,} /s")
    for peer in results["reference_peers"]:
        rate = peer["records_per_s"]
        figure = f"{rate:,} /s (ours is {own / rate:.2f} of it)" if rate else "did not run"
        table.add_row(f"reference job, {peer['peer']}", figure)
    _transfers(table, results["transfers"])
    for peer in results["peers"]:
        figure = f"{peer['tasks_per_s']:,} /s" if peer["tasks_per_s"] else "did not run"
        table.add_row(f"{peer['peer']}: tasks to results", figure)
    return table


def _transfers(table: Table, found: dict[str, Any]) -> None:
    ours = statistics.median(found["one_mb_per_s"])
    table.add_row("one upload of 1 GiB, durable", f"{ours:,} MB/s")
    if found["peer_mb_per_s"]:
        peer = statistics.median(found["peer_mb_per_s"])
        table.add_row("the same, tus server on Node, not durable", f"{peer:,} MB/s (ours is {ours / peer:.2f} of it)")
    many = found["many"]
    table.add_row("200 uploads of 5 MB at once", f"{many['mb_per_s']:,} MB/s, {many['rss_mb']} MB of memory")
    table.add_row("10,000 floating connections, all workers", f"{found['floating']['mb']} MB")
    table.add_row("1,000 idle connections", f"{found['idle_mb']} MB")
    table.add_row("upload goes on after a kill", f"{found['resume_s']} s")


if __name__ == "__main__":
    main()
