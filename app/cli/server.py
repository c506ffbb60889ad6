"""`holdfast server`: the numbered places where sessions live."""

import click

from app.cli.http import ask
from app.cli.orders import order
from app.cli.shell import Shell, cell, common, example
from app.errors import HoldfastError

_number = click.argument("number", metavar="N", type=click.IntRange(min=0))
_FIELDS = ("server", "up", "host", "standbys", "lag")


@click.group(epilog=example("holdfast server drain 3 --wait"))
@common
def server() -> None:
    """Look at servers, and empty them."""


@server.command("list", epilog=example("holdfast server list"))
@common
@click.pass_obj
def list_(shell: Shell) -> None:
    """List the servers and their hosts."""
    shell.table(_FIELDS, ask(shell.settings(), "/api/status").get("servers") or [])


@server.command(epilog=example("holdfast server show 3"))
@_number
@common
@click.pass_obj
def show(shell: Shell, number: int) -> None:
    """Show one server."""
    servers = ask(shell.settings(), "/api/status").get("servers") or []
    found = next((entry for entry in servers if entry["server"] == number), None)
    if found is None:
        raise HoldfastError(f"there is no server {number}: there are {len(servers)}, numbered from 0")
    shell.emit(found, "\n".join(f"{field:<10}{cell(found.get(field))}" for field in _FIELDS))


@server.command(epilog=example("holdfast server drain 3 --wait"))
@_number
@click.option("--wait", is_flag=True, help="Wait until it is empty; exit code 1 if a tenant could not be moved.")
@common
@click.pass_obj
def drain(shell: Shell, number: int, wait: bool) -> int:
    """Migrate all tenants of server N away, some at a time."""
    return order(shell, "drain-server", wait=wait, server=number)
