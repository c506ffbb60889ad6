"""`holdfast exchange`: restartable exchanges between a client and server sessions."""

import json
from typing import Any
from urllib.parse import quote

import click

from app.cli.http import ask
from app.cli.shell import Shell, cell, common, example
from app.errors import HoldfastError
from app.protocol.exchange_records import valid_name

COLUMNS = ("exchange", "state", "client", "server", "submitted", "answered", "acknowledged", "waiting")


class Json(click.ParamType):
    """Any JSON."""

    name = "json"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        """Return what it says, in a list, so that null is told from nothing."""
        if isinstance(value, list):
            return value
        try:
            return [json.loads(value)]
        except json.JSONDecodeError as error:
            self.fail(f"{value!r} is not JSON: {error}", param, ctx)


def checked(name: str) -> str:
    """Return a name, or fail with what is allowed."""
    if not valid_name(name):
        raise click.UsageError(f"{name!r} is no name: use 1 to 200 characters without control characters")
    return name


@click.group(epilog=example("holdfast exchange list", "holdfast exchange show sim-42"))
@common
def exchange() -> None:
    """Look at restartable exchanges, take part in them, supervise their programs."""


@exchange.command("list", epilog=example("holdfast exchange list --json"))
@common
@click.pass_obj
def list_(shell: Shell) -> None:
    """List the exchanges: how far each is, and who waits for whom."""
    found = ask(shell.settings(), "/api/exchanges")
    shell.table(COLUMNS, found.get("exchanges") or [])
    if found.get("truncated"):
        click.echo("some are missing: a worker does not answer, or there are too many", err=True)


@exchange.command(epilog=example("holdfast exchange show sim-42"))
@click.argument("name", metavar="EXCHANGE")
@common
@click.pass_obj
def show(shell: Shell, name: str) -> None:
    """Show an exchange: positions, restart data of both sides, both queues, who waits for whom."""
    # A dot segment is a step in the tree to those who pass the request on.
    path = quote(checked(name), safe="").replace(".", "%2E")
    found = ask(shell.settings(), f"/api/exchanges/{path}")
    if shell.json:
        shell.emit(found, "")
        return
    for field in (*COLUMNS, "window", "assignment", "manager", "worker", "backups"):
        click.echo(f"{field:<15}{cell(found.get(field))}")
    for field in ("client_restart", "server_restart"):
        click.echo(f"{field.replace('_', ' '):<15}{json.dumps(found.get(field), ensure_ascii=False)}")
    for queue in ("requests", "responses"):
        entries = found.get(queue) or []
        click.echo(f"{queue:<15}{len(entries)}")
        for entry in entries:
            click.echo(f"  {cell(entry)[:200]}")


@exchange.command(epilog=example("holdfast exchange submit sim-42 '{\"seed\": 1}' --client laptop-7 --wait 30"))
@click.argument("name", metavar="EXCHANGE")
@click.argument("request", metavar="JSON", type=Json())
@click.option("--client", default="cli", show_default=True, help="Name of the client.")
@click.option("--restart", type=Json(), metavar="JSON", help="Restart data of the client.")
@click.option("--wait", type=float, metavar="SECONDS", help="Wait for the response, print and acknowledge it.")
@common
@click.pass_obj
def submit(
    shell: Shell, name: str, request: list[Any], client: str, restart: list[Any] | None, wait: float | None
) -> None:
    """Submit one request. A client that has the exchange open loses it: the younger one counts."""
    from app.client.exchanges import KEEP, ClientSession  # only who uses it pays for loading it

    data = restart[0] if restart else KEEP
    with ClientSession(exchange=checked(name), client=checked(client), settings=shell.settings()) as session:
        number = session.submit(request[0], restart=data)
        if wait is None:
            shell.emit({"exchange": name, "number": number}, f"request {number} of {name}")
            return
        response = session.receive(wait)
        while response.number < number:
            session.acknowledge(response.number)
            response = session.receive(wait)
        session.acknowledge(response.number)
    told = {"exchange": name, **response._asdict()}
    shell.emit(told, json.dumps(response.error or response.body, ensure_ascii=False))
    if response.error is not None:
        raise HoldfastError(f"request {response.number} failed: {response.error['message']}")


def ordered(shell: Shell, kind: str, name: str, timeout: float, **fields: object) -> None:
    """Give an order and print the final event."""
    from app.client.exchanges_look import Watcher

    with Watcher(shell.settings(), "events") as watcher:
        event = watcher.order(kind, checked(name), timeout, **fields)
    shell.emit(event, f"{event['event']}: {name}")
    if event["event"] == "command-rejected":
        raise HoldfastError(f"exchange {name}: {event.get('reason')}")


@exchange.command(epilog=example("holdfast exchange restart sim-42 --programs"))
@click.argument("name", metavar="EXCHANGE")
@click.option("--programs", is_flag=True, help="Have host supervisors start the programs of both sides anew.")
@click.option("--timeout", type=float, default=30.0, show_default=True, metavar="SECONDS")
@common
@click.pass_obj
def restart(shell: Shell, name: str, programs: bool, timeout: float) -> None:
    """Send both sides their restart data and queues again."""
    ordered(shell, "restart", name, timeout, programs=programs)


@exchange.command(epilog=example("holdfast exchange cancel sim-42 --reason 'wrong seed'"))
@click.argument("name", metavar="EXCHANGE")
@click.option("--reason", default="", help="Told to the client.")
@click.option("--timeout", type=float, default=30.0, show_default=True, metavar="SECONDS")
@common
@click.pass_obj
def cancel(shell: Shell, name: str, reason: str, timeout: float) -> None:
    """End an exchange: what is queued is dropped, both sides are told."""
    ordered(shell, "cancel", name, timeout, reason=reason)


@exchange.command(
    epilog=example(
        "holdfast exchange host --server hpc-1 -- python work.py",
        "holdfast exchange host --client laptop-7 --exchange sim-42 -- python drive.py",
    )
)
@click.option("--client", default="", metavar="NAME", help="Supervise the client of --exchange.")
@click.option("--exchange", "name", default="", metavar="ID", help="The exchange of --client.")
@click.option("--server", default="", metavar="NAME", help="Supervise a server session.")
@click.argument("program", nargs=-1, required=True, metavar="-- PROGRAM ...")
@common
@click.pass_obj
def host(shell: Shell, client: str, name: str, server: str, program: tuple[str, ...]) -> int:
    """Start a session's program, and start it again when it dies or when its manager says so.

    The program finds its exchange in HOLDFAST_EXCHANGE, and its restart data and queues in the file that
    HOLDFAST_RESTART_FILE names.
    """
    from app.cli.exchange_host import Part, Supervisor, process_environment

    if bool(server) == bool(client) or bool(client) != bool(name):
        raise click.UsageError("use either --server NAME, or --client NAME and --exchange ID")
    for given in filter(None, (client, name, server)):
        checked(given)

    def say(line: str, record: dict[str, Any]) -> None:
        shell.emit(record, line)

    return Supervisor(shell.settings(), Part(client, name, server), program, say, process_environment()).run()
