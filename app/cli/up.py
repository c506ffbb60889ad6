"""`holdfast up`: a whole cluster from one command."""

import json
import os
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Final

import click

from app.cli.shell import Shell, common, complain, example
from app.cli.supervisor import Cluster
from app.cli.worker_process import Change
from app.settings import Settings
from app.web.proxy import Proxy
from app.web.server import ServerThread

_PORT: Final = 6066
_SIGNALS: Final = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


@click.command(epilog=example("holdfast up", "holdfast up --workers 5 --restart --bootstrap localhost:9092"))
@click.option("--workers", type=click.IntRange(1, 100), default=3, show_default=True, help="How many.")
@click.option(
    "--port",
    type=click.IntRange(0, 65_535),
    default=_PORT,
    show_default=True,
    help="Passes requests to a live worker; 0 takes a free port.",
)
@click.option("--restart", is_flag=True, help="Start workers that die again.")
@common
@click.pass_obj
def up(shell: Shell, workers: int, port: int, restart: bool) -> None:
    """Start Kafka, unless --bootstrap names one, and workers; Ctrl-C stops all of it cleanly.

    Data stay in HOLDFAST_STATE_DIR for the next `up`.
    """
    settings = shell.settings()
    _Up(shell, settings, workers, port, restart=restart).run()


class _Up:
    def __init__(self, shell: Shell, settings: Settings, workers: int, port: int, *, restart: bool) -> None:
        self._shell = shell
        self._serving = threading.Event()
        self._cluster = Cluster(settings, workers, restart=restart, on_change=self._changed)
        self._front = ServerThread(Proxy(self._cluster.urls).application(), settings.host, port, name="front")

    def run(self) -> None:
        """Start everything, wait for a signal, stop everything."""
        with _signals() as stop:
            try:
                # First, since a taken port is noticed sooner than a broker is started.
                console = self._front.start()
                self._cluster.start()
                stop.defer()
                self._announce(console)
                self._serving.set()
                stop.wait()
            finally:
                stop.stopping()
                self._front.stop()
                self._cluster.stop()
        if not self._shell.json:
            click.echo("all stopped")

    def _announce(self, console: str) -> None:
        cluster = self._cluster
        workers = [{"name": one.name, "pid": one.pid, "url": one.url} for one in cluster.workers]
        if self._shell.json:
            line = {
                "ready": True,
                "bootstrap": cluster.bootstrap,
                "namespace": cluster.settings.namespace,
                "console": console,
                "workers": workers,
            }
            click.echo(json.dumps(line))
            return
        click.echo(f"ready: {console}   broker {cluster.bootstrap}   namespace {cluster.settings.namespace}")
        for worker in workers:
            click.echo(f"  worker {worker['name']}  process {worker['pid']}  {worker['url']}")
        click.echo("Ctrl-C stops all")

    def _changed(self, change: Change) -> None:
        # Before the first line that says all are ready there is nothing that could have changed.
        if not self._serving.is_set():
            return
        if self._shell.json:
            click.echo(json.dumps(change.as_json()))
        elif change.state != "died":
            click.echo(f"worker {change.worker} {change.state}  process {change.pid}")
        if change.state == "died":
            complain(change.note)


class _Stop:
    """The way from a signal to an orderly end.

    Until everything runs, a signal interrupts what is being started; once it is being stopped, signals change
    nothing any more.
    """

    def __init__(self) -> None:
        # A pipe that the interpreter writes to, whichever thread the signal reaches: a handler alone would run only
        # once the main thread wakes up, and could not take a lock that this thread may be holding.
        self._asked, self._ask = os.pipe()
        os.set_blocking(self._ask, False)
        self._wakeup_before = signal.set_wakeup_fd(self._ask, warn_on_full_buffer=False)
        self._waiting = False
        self._stopping = False

    def handle(self, _number: int, _frame: FrameType | None) -> None:
        if not self._waiting and not self._stopping:
            self._stopping = True
            raise KeyboardInterrupt

    def defer(self) -> None:
        """From now on a signal is only noted, for :meth:`wait`."""
        self._waiting = True

    def wait(self) -> None:
        os.read(self._asked, 1)

    def stopping(self) -> None:
        self._stopping = True

    def close(self) -> None:
        signal.set_wakeup_fd(self._wakeup_before)
        os.close(self._asked)
        os.close(self._ask)


@contextmanager
def _signals() -> Iterator[_Stop]:
    stop = _Stop()
    before = {number: signal.signal(number, stop.handle) for number in _SIGNALS}
    try:
        yield stop
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
        stop.close()
