"""`holdfast server`: the numbered places where sessions live."""

import click

from app.cli.http import ask
from app.cli.orders import order
from app.cli.shell import Shell, cell, common, example

_number = click.argument("number", metavar="N", type=click.IntRange(min=0))
_wait = click.option("--wait", is_flag=True, help="Wait for the outcome; exit code 1 if it was refused.")
_LISTED = ("server", "up", "host", "home", "sticky", "lag", "aligning", "held")
_FIELDS = ("server", "up", "host", "standbys", "home", "sticky", "lag", "view", "aligning", "held")


@click.group(epilog=example("holdfast server drain 3 --wait"))
@common
def server() -> None:
    """Look at servers, declare them down or up, and empty them."""


@server.command("list", epilog=example("holdfast server list"))
@common
@click.pass_obj
def list_(shell: Shell) -> None:
    """List the servers: up or down, host, home worker, what they do for a view."""
    shell.table(_LISTED, ask(shell.settings(), "/api/servers").get("servers") or [])


@server.command(epilog=example("holdfast server show 3"))
@_number
@common
@click.pass_obj
def show(shell: Shell, number: int) -> None:
    """Show one server."""
    found = ask(shell.settings(), f"/api/servers/{number}")
    shell.emit(found, "\n".join(f"{field:<10}{cell(found.get(field))}" for field in _FIELDS))


@server.command(epilog=example("holdfast server fail 3 --wait"))
@_number
@_wait
@common
@click.pass_obj
def fail(shell: Shell, number: int, wait: bool) -> int:
    """Declare server N down: its sessions go to other servers until it is restored."""
    return order(shell, "fail-server", wait=wait, server=number)


@server.command(epilog=example("holdfast server restore 3 --wait"))
@_number
@_wait
@common
@click.pass_obj
def restore(shell: Shell, number: int, wait: bool) -> int:
    """Declare server N up again: its sessions come home."""
    return order(shell, "restore-server", wait=wait, server=number)


@server.command(epilog=example("holdfast server drain 3 --wait"))
@_number
@click.option("--wait", is_flag=True, help="Wait until it is empty; exit code 1 if a tenant could not be moved.")
@common
@click.pass_obj
def drain(shell: Shell, number: int, wait: bool) -> int:
    """Migrate all tenants of server N away, some at a time."""
    return order(shell, "drain-server", wait=wait, server=number)
