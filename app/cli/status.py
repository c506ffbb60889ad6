"""`holdfast status`: the cluster at a glance."""

import click

from app.cli.http import ask
from app.cli.shell import Shell, common, example


@click.command(epilog=example("holdfast status", "holdfast status --json"))
@common
@click.pass_obj
def status(shell: Shell) -> None:
    """Show workers, servers, migrations, and how many tasks are parked or wait."""
    found = ask(shell.settings(), "/api/status")
    if shell.json:
        shell.emit(found, "")
        return
    facts = {name: found.get(name) for name in ("namespace", "view", "parked", "waiting")}
    click.echo("   ".join(f"{name} {value}" for name, value in facts.items() if value is not None))
    shell.table(("name", "url", "state", "routers", "servers"), found.get("workers") or [])
    shell.table(("server", "up", "host", "standbys", "lag"), found.get("servers") or [])
    if found.get("migrations"):
        shell.table(("tenant", "from", "to", "state"), found["migrations"])
