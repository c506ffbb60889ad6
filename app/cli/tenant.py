"""`holdfast tenant`: where tenants live, and moving them."""

from typing import Any
from urllib.parse import quote

import click

from app.cli.http import ask
from app.cli.orders import order
from app.cli.shell import Shell, cell, common, example
from app.records import valid_name


def _checked(_context: click.Context, _parameter: click.Parameter, name: str) -> str:
    if not valid_name(name):
        raise click.UsageError(f"{name!r} is no name: use 1 to 200 characters without control characters")
    return name


_tenant = click.argument("name", metavar="TENANT", callback=_checked)
_wait = click.option("--wait", is_flag=True, help="Wait for the end and print it; exit code 1 unless it succeeded.")
_seconds = click.FloatRange(min=0, min_open=True)


@click.group(epilog=example("holdfast tenant migrate acme --to 3 --wait"))
@common
def tenant() -> None:
    """Look at tenants, and move them while they are served."""


@tenant.command("list", epilog=example("holdfast tenant list"))
@common
@click.pass_obj
def list_(shell: Shell) -> None:
    """List the tenants that have sessions or were ever moved."""
    found = ask(shell.settings(), "/api/tenants")
    shell.table(("tenant", "home", "state", "epoch"), found.get("tenants") or [])


@tenant.command(epilog=example("holdfast tenant show acme"))
@_tenant
@common
@click.pass_obj
def show(shell: Shell, name: str) -> None:
    """Show where a tenant lives, and what moves."""
    found = _ask(shell, name)
    if shell.json:
        shell.emit(found, "")
        return
    for field in ("tenant", "home", "host", "router", "state", "epoch", "migration"):
        click.echo(f"{field:<11}{cell(found.get(field))}")


@tenant.command(epilog=example("holdfast tenant history acme"))
@_tenant
@common
@click.pass_obj
def history(shell: Shell, name: str) -> None:
    """List the last moves of a tenant, oldest first."""
    shell.table(("epoch", "from", "to", "at", "id", "reason"), _ask(shell, name).get("history") or [])


def _ask(shell: Shell, name: str) -> dict[str, Any]:
    # A dot segment is a step in the tree to those who pass the request on.
    return ask(shell.settings(), f"/api/tenants/{quote(name, safe='').replace('.', '%2E')}")


@tenant.command(epilog=example("holdfast tenant migrate acme --to 3 --wait"))
@_tenant
@click.option("--to", type=click.IntRange(min=0), required=True, help="The server.")
@_wait
@click.option("--dry-run", is_flag=True, help="Only tell how much would move and what would prevent it; waits.")
@click.option("--offline", is_flag=True, help="Keep the tenant's tasks back for the whole copy.")
@click.option("--from-backups", is_flag=True, help="If its server is down: gather its sessions from the others.")
@click.option("--max-pause", type=_seconds, help="Give up rather than let the tenant wait for longer (seconds).")
@click.option("--timeout", type=_seconds, help="Seconds without progress after which the migration fails.")
@click.option("--id", "command", help="Known by this id; a repetition gets the first outcome.")
@common
@click.pass_obj
def migrate(
    shell: Shell,
    name: str,
    to: int,
    wait: bool,
    dry_run: bool,
    offline: bool,
    from_backups: bool,
    max_pause: float | None,
    timeout: float | None,
    command: str | None,
) -> int:
    """Move TENANT to another server while it is served."""
    flags = {"dry_run": dry_run, "offline": offline, "from_backups": from_backups}
    return order(
        shell,
        "migrate",
        wait=wait or dry_run,
        tenant=name,
        to=to,
        timeout=timeout,
        max_pause=max_pause,
        id=command,
        **{flag: True for flag, given in flags.items() if given},
    )


@tenant.command(epilog=example("holdfast tenant abort acme"))
@_tenant
@_wait
@common
@click.pass_obj
def abort(shell: Shell, name: str, wait: bool) -> int:
    """End the migration of TENANT where it began."""
    return order(shell, "abort-migration", wait=wait, tenant=name)


@tenant.command(epilog=example("holdfast tenant undo acme --wait"))
@_tenant
@_wait
@common
@click.pass_obj
def undo(shell: Shell, name: str, wait: bool) -> int:
    """Move TENANT back to where its last move came from."""
    return order(shell, "undo-migration", wait=wait, tenant=name)
