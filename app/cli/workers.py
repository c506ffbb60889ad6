"""`holdfast workers`: who is in the group."""

import click

from app.cli.http import ask
from app.cli.orders import order
from app.cli.shell import Shell, common, example


@click.group(epilog=example("holdfast workers list"))
@common
def workers() -> None:
    """Look at workers, and forget those that are gone for good."""


@workers.command("list", epilog=example("holdfast workers list --json"))
@common
@click.pass_obj
def list_(shell: Shell) -> None:
    """List the workers and what each hosts."""
    found = ask(shell.settings(), "/api/status")
    shell.table(("name", "url", "state", "routers", "servers"), found.get("workers") or [])


@workers.command(epilog=example("holdfast workers forget w3 --wait"))
@click.argument("name")
@click.option("--wait", is_flag=True, help="Wait for the outcome; exit code 1 if it was refused.")
@common
@click.pass_obj
def forget(shell: Shell, name: str, wait: bool) -> int:
    """Wait no longer for a dead worker: its servers come home to whoever hosts them."""
    return order(shell, "forget-worker", wait=wait, worker=name)
