"""`holdfast demo`."""

import json
import shutil
import tempfile
import uuid
import webbrowser
from contextlib import ExitStack
from pathlib import Path
from typing import Final

import click

from app.cli.demo_report import page
from app.cli.demo_run import Demo
from app.cli.demo_show import Show, choose
from app.cli.demo_story import Story
from app.cli.ending import interruptible
from app.cli.shell import Shell, common, example
from app.errors import ConfigurationError
from app.settings import Settings

REPORT: Final = "report.html"
_FAILED: Final = 1
_NAMESPACE_CHARS: Final = 60


@click.command(epilog=example("holdfast demo", "holdfast demo --seconds 60 --open", "holdfast demo --json"))
@common
@click.option(
    "--seconds",
    type=click.FloatRange(5, 3600),
    default=40.0,
    show_default=True,
    help="How long there is traffic, or longer if the steps take longer.",
)
@click.option(
    "--state-dir",
    type=click.Path(file_okay=False, path_type=Path),
    metavar="DIRECTORY",
    help="Keep data, logs and the report there; without it only the report stays, in .holdfast/demo.",
)
@click.option("--open", "open_", is_flag=True, help="Open the console, and in the end the report, in a browser.")
@click.pass_obj
def demo(shell: Shell, seconds: float, state_dir: Path | None, open_: bool) -> int:
    """Show it: a cluster on a real Kafka, traffic, and everything that may happen to it, with a checked account.

    A tenant moves, a move fails and returns, an exchange and an upload are interrupted, a worker is killed with -9, a
    server is taken out of service and back. Starts an embedded broker unless --bootstrap names one. Exit code 1 unless
    every task was performed once and in order, and every step went as it should.
    """
    with interruptible() as ending, ExitStack() as stack:
        kept = _kept(shell, state_dir)
        directory = state_dir or Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="holdfast-demo-")))
        show = stack.enter_context(choose(as_json=shell.json))

        def opened(console: str) -> None:
            show.event(f"console: {console}", console=console)
            if open_:
                webbrowser.open(console)

        story = Demo(_settings(shell, directory, state_dir), seconds, show, ending).run(opened)
        report = _write(story, kept, directory, show)
    if open_ and report is not None:
        webbrowser.open(report.as_uri())
    click.echo(json.dumps(story.as_json()) if shell.json else _words(story, report))
    return 0 if story.ok else _FAILED


def _settings(shell: Shell, directory: Path, state_dir: Path | None) -> Settings:
    """The given settings, but for what the demo needs for itself and what it must not touch."""
    own: dict[str, object] = {
        "state_dir": directory,
        "handlers": "app.samples",
        "storage": f"file://{directory.absolute()}/files",
        # It fails a server itself, and at a time of its own.
        "rehome_after": 600.0,
    }
    settings = shell.settings(**own)
    if settings.servers < 2:
        raise ConfigurationError("the demo needs two servers to move a tenant between: set HOLDFAST_SERVERS")
    if state_dir is None and not settings.bootstrap:
        return settings
    # What is there of earlier runs is not this run's account.
    namespace = f"{settings.namespace[:_NAMESPACE_CHARS]}-demo-{uuid.uuid4().hex[:8]}"
    return shell.settings(**own, namespace=namespace)


def _kept(shell: Shell, state_dir: Path | None) -> Path:
    """Where the report stays; made before a minute's work that would end without it."""
    kept = (state_dir or shell.settings().state_dir / "demo").absolute()
    try:
        kept.mkdir(parents=True, exist_ok=True)
        tempfile.TemporaryFile(dir=kept).close()
    except OSError as error:
        raise ConfigurationError(
            f"the report cannot be written to {kept} ({error.strerror or error}): "
            "mend that, or set HOLDFAST_STATE_DIR to another directory"
        ) from error
    return kept


def _write(story: Story, kept: Path, directory: Path, show: Show) -> Path | None:
    """Write the report and, of a run that failed, keep the logs; a disk that is full by now fails nothing."""
    try:
        report = kept / REPORT
        report.write_text(page(story), encoding="utf-8")
        logs = directory / "logs"
        if not story.ok and logs.is_dir() and kept / "logs" != logs:
            shutil.copytree(logs, kept / "logs", dirs_exist_ok=True)
    except OSError as error:
        show.event(f"the report cannot be written: {error}")
        return None
    show.event(f"report: {report}", report=str(report))
    return report


def _words(story: Story, report: Path | None) -> str:
    lines = [str(story.account), *story.problems]
    if story.pause_ms is not None:
        lines.append(f"pause of the tenant that moved: {story.pause_ms} ms")
    if story.takeover_ms is not None:
        lines.append(f"takeover after the kill: {story.takeover_ms} ms")
    if report is not None:
        lines.append(f"report: {report}")
    lines.append("all is right" if story.ok else "something is wrong")
    return "\n".join(lines)
