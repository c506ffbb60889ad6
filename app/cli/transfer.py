"""`holdfast transfer`: push, pull, look at and move transfers."""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import click

from app.cli.http import ask
from app.cli.shell import LazyGroup, Shell, common, example
from app.client.transfers import Transfers
from app.errors import HoldfastError
from app.records import valid_name


class _Name(click.ParamType):
    name = "id"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> str:
        if not valid_name(value) or value in (".", ".."):
            self.fail("1 to 200 characters without control characters", param, ctx)
        return str(value)


_ID = _Name()
_FILE = click.Path(dir_okay=False, path_type=Path)
_COLUMNS = ("connection", "state", "offset", "size", "worker", "tenant")


@click.group(cls=LazyGroup, epilog=example("holdfast transfer put report.pdf report-7", "holdfast transfer list"))
@common
def transfer() -> None:
    """Push files into the storage and pull them out, over lines and workers that break."""


@transfer.command(epilog=example("holdfast transfer put report.pdf report-7 --tenant acme"))
@click.argument("file", type=_FILE)
@click.argument("connection", metavar="ID", type=_ID)
@click.option("--tenant", default="", help="Whose file it is.")
@click.option("--publish", default="", metavar="TOPIC", help="Publish a small file as a record instead.")
@common
@click.pass_obj
def put(shell: Shell, file: Path, connection: str, tenant: str, publish: str) -> None:
    """Push FILE; one that was begun is gone on with. Returns when it is whole and checked."""
    _push(shell, file, connection, {"tenant": tenant, "publish": publish}, begun=False)


@transfer.command(epilog=example("holdfast transfer resume report-7 report.pdf"))
@click.argument("connection", metavar="ID", type=_ID)
@click.argument("file", type=_FILE)
@common
@click.pass_obj
def resume(shell: Shell, connection: str, file: Path) -> None:
    """Go on with a push that was begun, wherever it stopped."""
    _push(shell, file, connection, {}, begun=True)


def _push(shell: Shell, file: Path, connection: str, metadata: Mapping[str, str], *, begun: bool) -> None:
    if not file.is_file():
        raise click.UsageError(f"there is no file {str(file)!r}")
    with Transfers(settings=shell.settings()) as transfers, shell.progress() as progress:
        task = progress.add_task(f"pushing {file.name}", total=file.stat().st_size)
        advance: Callable[[int], None] = lambda offset: progress.update(task, completed=offset)  # noqa: E731
        done = transfers.push(file, connection, metadata=metadata, begun=begun, advance=advance)
    shell.emit(done, f"{connection}: {done['size']} bytes, {done['checksum']}")


@transfer.command(epilog=example("holdfast transfer get report-7 report.pdf"))
@click.argument("connection", metavar="ID", type=_ID)
@click.argument("file", type=_FILE)
@common
@click.pass_obj
def get(shell: Shell, connection: str, file: Path) -> None:
    """Pull a message into FILE and acknowledge it. FILE appears when it is whole; what broke is gone on with."""
    with Transfers(settings=shell.settings()) as transfers, shell.progress() as progress:
        task = progress.add_task(f"pulling {connection}", total=None)
        done = transfers.pull(connection, file, lambda o, total: progress.update(task, completed=o, total=total))
    shell.emit(done, f"{file}: {done['size']} bytes, {done['checksum']}")


@transfer.command("list", epilog=example("holdfast transfer list --json"))
@common
@click.pass_obj
def list_(shell: Shell) -> None:
    """All connections."""
    shell.table(_COLUMNS, ask(shell.settings(), "/api/transfers")["transfers"])


@transfer.command(epilog=example("holdfast transfer show report-7"))
@click.argument("connection", metavar="ID", type=_ID)
@common
@click.pass_obj
def show(shell: Shell, connection: str) -> None:
    """One connection."""
    with Transfers(settings=shell.settings()) as transfers:
        found = transfers.show(connection)
    if found is None:
        raise HoldfastError(f"there is no connection {connection!r}")
    shell.emit(found, "\n".join(f"{name}: {value}" for name, value in found.items() if value not in (None, "")))


@transfer.command(epilog=example("holdfast transfer cancel report-7"))
@click.argument("connection", metavar="ID", type=_ID)
@common
@click.pass_obj
def cancel(shell: Shell, connection: str) -> None:
    """Cancel a push, or delete the file that came of it."""
    with Transfers(settings=shell.settings()) as transfers:
        transfers.cancel(connection)
    shell.emit({"connection": connection, "cancelled": True}, f"{connection}: cancelled")


@transfer.command(epilog=example("holdfast transfer rebalance w1"))
@click.argument("worker")
@common
@click.pass_obj
def rebalance(shell: Shell, worker: str) -> None:
    """Let all live connections of a worker go; remotes reconnect and go on."""
    with Transfers(settings=shell.settings()) as transfers:
        moved = transfers.rebalance(worker)
    shell.emit(moved, f"{worker}: {moved['pushes']} pushes and {moved['pulls']} pulls let go")
