"""`holdfast worker`: one worker in the foreground."""

import contextlib
import faulthandler
import json
import os
import sys
from collections.abc import Callable

import click

from app.cli.lifeline import follow_parent
from app.cli.shell import Shell, common, example
from app.logs import configure
from app.web.server import WebServer


@click.command(epilog=example("holdfast worker --name w1 --bootstrap localhost:9092 --port 8080"))
@click.option("--name", required=True, help="Stable, and one worker's alone: letters, digits, '.', '_' and '-'.")
@click.option("--port", type=click.IntRange(0, 65_535), help="For HTTP; 0 takes a free one.")
@click.option("--ready-fd", type=int, hidden=True, help="Write a line to this descriptor when it serves.")
@click.option("--lifeline-fd", type=int, hidden=True, help="End when this pipe is closed.")
@common
@click.pass_obj
def worker(shell: Shell, name: str, port: int | None, ready_fd: int | None, lifeline_fd: int | None) -> int:
    """Run one worker until SIGTERM or Ctrl-C, which let it finish its unit of work and leave the group."""
    settings = shell.settings(port=port)
    configure(settings)
    # A native library that crashes leaves the stacks of all threads in the log, rather than nothing.
    faulthandler.enable()
    if lifeline_fd is not None:
        follow_parent(lifeline_fd)
    # Only this command pays for loading the engine.
    from app.web.files import Files
    from app.worker import Worker, run

    def serve(made: Worker) -> WebServer:
        files = Files(made.transfers, made.storage, settings)
        return WebServer(made, settings, metrics=made.figures, files=files)

    return run(settings, name, serve=serve, ready=_report(shell, name, ready_fd))


def _report(shell: Shell, name: str, ready_fd: int | None) -> Callable[[str], None]:
    def ready(url: str) -> None:
        line = {"name": name, "pid": os.getpid(), "url": url, "state": "ready"}
        if ready_fd is not None:
            with contextlib.suppress(OSError), os.fdopen(ready_fd, "w") as pipe:
                pipe.write(json.dumps(line) + "\n")
        shell.emit(line, f"worker {name} serves {url}")
        sys.stdout.flush()

    return ready
