"""`holdfast demo`."""

import json
import tempfile
import uuid
from contextlib import ExitStack
from pathlib import Path

import click

from app.cli.demo_run import Demo, Outcome
from app.cli.demo_show import choose
from app.cli.shell import Shell, common, example

_FAILED = 1
_NAMESPACE_CHARS = 60


@click.command(epilog=example("holdfast demo", "holdfast demo --seconds 60 --json"))
@common
@click.option(
    "--seconds",
    type=click.FloatRange(5, 3600),
    default=40.0,
    show_default=True,
    help="How long there is traffic.",
)
@click.option(
    "--state-dir",
    type=click.Path(file_okay=False, path_type=Path),
    metavar="DIRECTORY",
    help="Keep data and logs there; without it they are temporary.",
)
@click.pass_obj
def demo(shell: Shell, seconds: float, state_dir: Path | None) -> int:
    """Show it: a cluster on a real Kafka, traffic, a worker killed with -9, and a checked account at the end.

    Starts an embedded broker unless --bootstrap names one. Exit code 1 unless every task was performed once
    and in order.
    """
    with ExitStack() as stack:
        directory = state_dir or Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="holdfast-demo-")))
        settings = shell.settings(state_dir=directory)
        if state_dir is not None or settings.bootstrap:
            # What is there of earlier runs is not this run's account.
            own = f"{settings.namespace[:_NAMESPACE_CHARS]}-demo-{uuid.uuid4().hex[:8]}"
            settings = shell.settings(state_dir=directory, namespace=own)
        with choose(as_json=shell.json) as show:
            outcome = Demo(settings, seconds, show).run()
    click.echo(json.dumps(outcome.as_json()) if shell.json else _words(outcome))
    return 0 if outcome.ok else _FAILED


def _words(outcome: Outcome) -> str:
    lines = [str(outcome.account), *outcome.problems]
    if outcome.takeover_ms is not None:
        lines.append(f"takeover after the kill: {outcome.takeover_ms} ms")
    lines.append("all is right" if outcome.ok else "something is wrong")
    return "\n".join(lines)
