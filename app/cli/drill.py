"""`holdfast drill`."""

import signal
import statistics
import sys
import time
from collections import Counter
from dataclasses import dataclass
from typing import Any, Final

import click

from app.cli.canary_run import Canary
from app.cli.ending import interruptible
from app.cli.reading import Span
from app.cli.shell import Shell, common, complain, example
from app.cli.victims import Victim, find
from app.client.cluster import Worker, find_workers
from app.errors import HoldfastError, UnavailableError
from app.observe.canary import Lane

QUIET_S: Final = 3.0
"""Traffic before the blow: what is measured afterwards begins from there."""

AFTER_S: Final = 4.0
"""Traffic after the last session has gone on: whatever still stirs is seen."""

WITHIN_S: Final = 60.0
"""By then every session must have gone on."""

_Places = dict[tuple[str, str], tuple[int, str]]
"""Server and worker of the last result, by tenant and session."""

_PREFIX: Final = "drill"
_FAILED: Final = 1
_SLICE_S: Final = 0.2


@dataclass(frozen=True, slots=True)
class Blow:
    """What is done to which worker; ``seconds`` of a freeze, None for a kill."""

    worker: str
    seconds: float | None

    @property
    def words(self) -> str:
        """What is done, in words."""
        return f"kill -9 of {self.worker}" if self.seconds is None else f"{self.worker} frozen for {self.seconds:g} s"


@click.command(epilog=example("holdfast drill --kill w2", "holdfast drill --freeze w2 --for 8s --yes --json"))
@common
@click.option("--kill", metavar="WORKER", help="End it with SIGKILL.")
@click.option("--freeze", metavar="WORKER", help="Stop its time with SIGSTOP, and let it go on after --for.")
@click.option(
    "--for", "seconds", type=Span(), default="8s", show_default=True, metavar="TIME", help="How long it is frozen."
)
@click.option(
    "--rate", type=click.FloatRange(1, 10_000), default=200.0, show_default=True, help="Tasks a second, in all."
)
@click.option(
    "--sessions", type=click.IntRange(1, 1_000), default=4, show_default=True, help="Sessions at each server."
)
@click.option("--yes", is_flag=True, help="Do not ask.")
@click.pass_obj
def drill(
    shell: Shell, kill: str | None, freeze: str | None, seconds: float, rate: float, sessions: int, yes: bool
) -> int:
    """Kill or freeze a worker of this machine on purpose, and measure how its sessions go on.

    Numbered tasks of the drill's own run before, meanwhile and afterwards; each of them is accounted for. Whoever
    watches the worker has to start it again. Exit code 1 if a task was lost, doubled, out of order or failed, or if a
    session did not go on.
    """
    if (kill is None) == (freeze is None):
        raise click.UsageError("say what to do: --kill WORKER, or --freeze WORKER --for 8s")
    blow = Blow(kill or freeze or "", None if freeze is None else seconds)
    settings = shell.settings()
    workers = find_workers(settings)
    victim = _choose(workers, blow.worker)
    _confirm(shell, blow, victim, yes)
    with interruptible(), victim, Canary(settings, _PREFIX, sessions=sessions, rate=rate) as bird:
        bird.open()
        bird.go(QUIET_S)
        before = _places(bird)
        struck = [lane for lane in bird.lanes.values() if lane.worker == blow.worker]
        if not struck:
            raise HoldfastError(
                f"worker {blow.worker} serves nothing at the moment: wait until it does, or choose another"
            )
        away = _strike(bird, blow, victim, struck)
        unanswered = bird.finish()
        moved = _moved(before, away, _places(bird))
    return _tell(shell, blow, bird, moved, struck, unanswered)


def _choose(workers: list[Worker], name: str) -> Victim:
    worker = next((worker for worker in workers if worker.name == name), None)
    if worker is None:
        there = ", ".join(worker.name for worker in workers) or "none"
        raise UnavailableError(f"there is no worker {name} (there are: {there})", retry_after_s=5)
    if len(workers) == 1:
        raise HoldfastError(f"{name} is the only worker: nobody would go on; start a second one")
    return find(worker)


def _confirm(shell: Shell, blow: Blow, victim: Victim, yes: bool) -> None:
    if yes:
        return
    if shell.json or not sys.stdin.isatty():
        raise click.UsageError(f"{blow.words} (process {victim.pid}) wants to be confirmed: add --yes")
    click.confirm(f"{blow.words}, process {victim.pid}, in namespace {shell.settings().namespace}?", abort=True)


def _places(bird: Canary) -> _Places:
    return {name: (lane.server, lane.worker) for name, lane in bird.lanes.items()}


def _strike(bird: Canary, blow: Blow, victim: Victim, struck: list[Lane]) -> _Places:
    """Do it, and send until all sessions have gone on, and the worker has woken up; return who took what over."""
    before, away = _places(bird), _Places()
    bird.reset_pauses()
    victim.signal(signal.SIGKILL if blow.seconds is None else signal.SIGSTOP)
    at = time.monotonic()
    wake_at = None if blow.seconds is None else at + blow.seconds
    end = at + WITHIN_S
    while (now := time.monotonic()) < end:
        bird.go(_SLICE_S)
        for name, place in _places(bird).items():
            if place != before[name]:
                away.setdefault(name, place)
        if wake_at is not None and now >= wake_at:
            victim.signal(signal.SIGCONT)
            wake_at = None
        if wake_at is None and end == at + WITHIN_S and all(lane.heard_after(at) for lane in struck):
            end = time.monotonic() + AFTER_S
    return away


def _tell(
    shell: Shell,
    blow: Blow,
    bird: Canary,
    moved: list[dict[str, Any]],
    struck: list[Lane],
    unanswered: int,
) -> int:
    tally = bird.tally
    ok = tally.clean and not unanswered
    gaps = sorted(lane.pause_s for lane in struck)
    others = sorted(lane.pause_s for lane in bird.lanes.values() if lane not in struck)
    record: dict[str, Any] = {
        "ok": ok,
        "kind": "kill" if blow.seconds is None else "freeze",
        "worker": blow.worker,
        "sessions": len(struck),
        **_spread(gaps, "gap"),
        "others": {"sessions": len(others), **_spread(others, "gap")},
        "moved": moved,
        **{name: getattr(tally, name) for name in ("sent", "performed", "failed", "lost", "doubled", "out_of_order")},
        "unanswered": unanswered,
    }
    for text in tally.examples:
        complain(text)
    shell.emit(record, _words(blow, record))
    return 0 if ok else _FAILED


def _spread(values: list[float], name: str) -> dict[str, int | None]:
    shares: dict[str, int | None] = dict.fromkeys((f"{name}_p50_ms", f"{name}_p95_ms", f"{name}_max_ms"))
    if values:
        p95 = values[min(len(values) - 1, int(0.95 * len(values)))]
        found = (statistics.median(values), p95, values[-1])
        shares = dict(zip(shares, (round(value * 1000) for value in found), strict=True))
    return shares


def _moved(before: _Places, away: _Places, now: _Places) -> list[dict[str, Any]]:
    """Who took what over: the sessions by where they were, where they went first, and whether they are back."""
    counts = Counter((before[name], place, now[name] == before[name]) for name, place in away.items())
    return [
        {"server": server, "worker": worker, "to_server": to_server, "to_worker": to, "sessions": n, "back": back}
        for ((server, worker), (to_server, to), back), n in sorted(counts.items())
    ]


def _words(blow: Blow, record: dict[str, Any]) -> str:
    others = record["others"]
    lines = [
        f"{blow.words}; it served {record['sessions']} of the drill's sessions",
        "",
        f"{'longest gap of a session':<34}{'p50':>10}{'p95':>10}{'longest':>10}",
        _row(f"its {record['sessions']} sessions", record),
        _row(f"the {others['sessions']} sessions of the others", others),
        "",
        "taken over:" if record["moved"] else "nothing was taken over",
    ]
    for entry in record["moved"]:
        rehomed = f" -> server {entry['to_server']}" if entry["to_server"] != entry["server"] else ""
        back = f", back at {entry['worker']}" if entry["back"] else ""
        hosts = f"{entry['worker']} -> {entry['to_worker']}"
        lines.append(f"  server {entry['server']}{rehomed}: {hosts}, {entry['sessions']} sessions{back}")
    counts = ", ".join(
        f"{record[name]} {name.replace('_', ' ')}"
        for name in ("sent", "performed", "failed", "lost", "doubled", "out_of_order")
    )
    lines += ["", f"account: {counts}, {record['unanswered']} without a result"]
    if blow.seconds is None:
        lines.append(f"{blow.worker} is dead: `up --restart`, or whoever watches it, starts it again")
    lines.append("all is right" if record["ok"] else "something is wrong")
    return "\n".join(lines)


def _row(name: str, record: dict[str, Any]) -> str:
    cells = (record[f"gap_{share}_ms"] for share in ("p50", "p95", "max"))
    return f"{name:<34}" + "".join(f"{'-' if cell is None else f'{cell} ms':>10}" for cell in cells)
