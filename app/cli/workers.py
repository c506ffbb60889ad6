"""`holdfast workers`: who is in the group."""

import click

from app.cli.http import ask
from app.cli.shell import Shell, common, example


@click.group(epilog=example("holdfast workers list"))
@common
def workers() -> None:
    """Look at workers."""


@workers.command("list", epilog=example("holdfast workers list --json"))
@common
@click.pass_obj
def list_(shell: Shell) -> None:
    """List the workers and what each hosts."""
    found = ask(shell.settings(), "/api/status")
    shell.table(("name", "url", "state", "routers", "servers"), found.get("workers") or [])
