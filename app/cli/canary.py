"""`holdfast canary`."""

import statistics
import time
from typing import Any, Final

import click

from app.cli.canary_metrics import Metrics
from app.cli.canary_run import Canary
from app.cli.ending import Ending, interruptible
from app.cli.reading import Span
from app.cli.shell import Shell, common, complain, example
from app.observe.canary import Takeover
from app.records import valid_name

PORT: Final = 6067
_FAILED: Final = 1
_SLICE_S: Final = 0.2
_NAME_MAX: Final = 150
_COUNTS: Final = ("sent", "performed", "failed", "lost", "doubled", "out_of_order", "late", "takeovers")


@click.command(
    epilog=example(
        "holdfast canary", "holdfast canary --for 10m --rate 50 --json", "holdfast canary --port 0 --late 0.5s"
    )
)
@common
@click.option("--for", "seconds", type=Span(), metavar="TIME", help="End after 30s, 10m, 2h; without it: with Ctrl-C.")
@click.option(
    "--rate", type=click.FloatRange(0.1, 10_000), default=10.0, show_default=True, help="Tasks a second, in all."
)
@click.option(
    "--sessions", type=click.IntRange(1, 1_000), default=1, show_default=True, help="Sessions of each tenant."
)
@click.option("--late", type=Span(), default="1s", show_default=True, metavar="TIME", help="Results after it are late.")
@click.option("--period", type=Span(), default="10s", show_default=True, metavar="TIME", help="A line so often.")
@click.option(
    "--tenant", default="canary", show_default=True, help="Begins the names of its tenants, one for each server."
)
@click.option("--host", default="127.0.0.1", show_default=True, help="Where the metrics are.")
@click.option("--port", type=click.IntRange(0, 65_535), default=PORT, show_default=True, help="0 takes a free one.")
@click.pass_obj
def canary(
    shell: Shell,
    seconds: float | None,
    rate: float,
    sessions: int,
    late: float,
    period: float,
    tenant: str,
    host: str,
    port: int,
) -> int:
    """Carry numbered tasks for ever, at every server, and tell what is lost, doubled, late, or waits.

    Metrics for Prometheus are at --port. Begins where its last run in HOLDFAST_STATE_DIR stopped. Exit code 1 if
    anything was lost, doubled, out of order or failed, or is without a result in the end.
    """
    settings = shell.settings()
    if not valid_name(tenant) or len(tenant) > _NAME_MAX or "/" in tenant:
        raise click.UsageError(f"--tenant {tenant!r}: use 1 to {_NAME_MAX} characters without / and control characters")
    ledger = settings.state_dir.absolute() / "canary" / f"{settings.namespace}-{tenant}.json"
    tell = _Tell(shell)
    with (
        interruptible() as ending,
        Canary(
            settings,
            tenant,
            sessions=sessions,
            rate=rate,
            late_s=late,
            ledger=ledger,
            on_takeover=tell.takeover,
            on_latency=lambda took: metrics.observe(took),
        ) as bird,
        Metrics(bird.tally, lambda: tell.gauges(bird)) as metrics,
    ):
        url = metrics.serve(host, port)
        bird.open()
        tell.ready(bird, url)
        ending.note()
        _sing(bird, tell, period, seconds, ending)
        if ending.asked:
            complain("no more tasks are sent; waiting for the last results, unless Ctrl-C comes again")
        unanswered = bird.finish()
        return tell.end(bird, unanswered)


def _sing(bird: Canary, tell: "_Tell", period: float, seconds: float | None, ending: Ending) -> None:
    begun = time.monotonic()
    end = None if seconds is None else begun + seconds
    due = begun + period
    while not ending.asked and (now := time.monotonic()) < (end or now + 1):
        bird.go(min(_SLICE_S, max(0.0, due - now), (end or due) - now))
        if time.monotonic() >= due:
            due += period
            tell.period(bird)


class _Tell:
    """The lines of a canary; and the gauges, which count by the same periods."""

    def __init__(self, shell: Shell) -> None:
        self._shell = shell
        self._before: dict[str, int] = dict.fromkeys(_COUNTS, 0)
        self._pause_s = 0.0

    def ready(self, bird: Canary, url: str) -> None:
        record = {"ready": True, "metrics": url, "sessions": len(bird.lanes)}
        self._shell.emit(record, f"{len(bird.lanes)} sessions, one or more at each server; metrics at {url}")

    def takeover(self, found: Takeover) -> None:
        record = {"takeover": found.after, "from": found.before, "tenant": found.tenant, "server": found.server}
        text = (
            f"{_clock()}  server {found.server}: {found.after} answers after {found.before}; waited {found.gap_s:.2f} s"
        )
        self._shell.emit({**record, "gap_ms": round(found.gap_s * 1000)}, text)

    def period(self, bird: Canary) -> None:
        record = self._record(bird)
        self._shell.emit(record, _line(record, bird.overdue))
        for text in bird.tally.examples[:]:
            complain(text)
        bird.tally.examples.clear()
        self._before = {name: getattr(bird.tally, name) for name in _COUNTS}
        self._pause_s = bird.tally.pause_s
        bird.tally.pause_s = 0.0
        bird.recent_s.clear()

    def _record(self, bird: Canary) -> dict[str, Any]:
        counts = {name: getattr(bird.tally, name) - self._before[name] for name in _COUNTS}
        recent = sorted(bird.recent_s)
        return {
            "at": time.strftime("%Y-%m-%dT%H:%M:%S%z"),
            **counts,
            "overdue": bird.overdue,
            "pause_ms": round(bird.tally.pause_s * 1000),
            "p50_ms": round(statistics.median(recent) * 1000) if recent else None,
            "p99_ms": round(recent[int(0.99 * len(recent))] * 1000) if recent else None,
        }

    def gauges(self, bird: Canary) -> dict[str, float]:
        """Gauges for Prometheus; called from another thread."""
        return {
            "overdue": bird.overdue,
            "pause_seconds": max(self._pause_s, bird.tally.pause_s),
            "takeover_seconds": bird.tally.takeover_s,
        }

    def end(self, bird: Canary, unanswered: int) -> int:
        """The last line: all of it. Returns the exit code."""
        self._before = dict.fromkeys(_COUNTS, 0)
        for text in bird.tally.examples:
            complain(text)
        ok = bird.tally.clean and not unanswered
        counts = {name: getattr(bird.tally, name) for name in _COUNTS}
        words = ", ".join(f"{count} {name.replace('_', ' ')}" for name, count in counts.items())
        text = f"in all: {words}, {unanswered} without a result\n{'all is right' if ok else 'something is wrong'}"
        self._shell.emit({"ok": ok, **counts, "unanswered": unanswered}, text)
        return 0 if ok else _FAILED


def _line(record: dict[str, Any], overdue: int) -> str:
    faults = ", ".join(f"{record[name]} {name.replace('_', ' ')}" for name in _COUNTS[2:7])
    times = "" if record["p50_ms"] is None else f"; p50 {record['p50_ms']} ms, p99 {record['p99_ms']} ms"
    waits = f"; {overdue} overdue" if overdue else ""
    return (
        f"{_clock()}  {record['sent']} sent, {record['performed']} performed; {faults}; "
        f"longest pause {record['pause_ms'] / 1000:.2f} s{times}{waits}"
    )


def _clock() -> str:
    return time.strftime("%H:%M:%S")
