"""`holdfast session`: what a session holds, and where."""

import json
from urllib.parse import quote

import click

from app.cli.http import ask
from app.cli.shell import Shell, cell, common, example
from app.records import valid_name


@click.group(epilog=example("holdfast session show acme cart-7"))
@common
def session() -> None:
    """Look at sessions."""


@session.command(epilog=example("holdfast session show acme cart-7"))
@click.argument("tenant")
@click.argument("session_name", metavar="SESSION")
@common
@click.pass_obj
def show(shell: Shell, tenant: str, session_name: str) -> None:
    """Show a session: state, sequence, server, backup order, what waits and why."""
    for name in (tenant, session_name):
        if not valid_name(name):
            raise click.UsageError(f"{name!r} is no name: use 1 to 200 characters without control characters")
    # A dot segment is a step in the tree to those who pass the request on.
    path = "/".join(quote(name, safe="").replace(".", "%2E") for name in (tenant, session_name))
    found = ask(shell.settings(), f"/api/sessions/{path}")
    if shell.json:
        shell.emit(found, "")
        return
    for field in ("tenant", "session", "server", "worker", "why", "home", "backup_order", "sequence"):
        click.echo(f"{field.replace('_', ' '):<13}{cell(found.get(field))}")
    click.echo(f"{'state':<13}{json.dumps(found.get('state'), ensure_ascii=False, indent=2)}")
    waiting = found.get("waiting") or []
    click.echo(f"{'waiting':<13}{len(waiting)}")
    for entry in waiting:
        click.echo(f"  {cell(entry)}")
