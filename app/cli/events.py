"""`holdfast events`: what happened."""

import json
from datetime import datetime

import click
import orjson

from app.cli.reading import Moment, read
from app.cli.shell import Shell, cell, common, example
from app.topics import Names

_SHOWN_FIRST = 10


@click.command(epilog=example("holdfast events --since 1h", "holdfast events --follow"))
@click.option("--follow", is_flag=True, help=f"The last {_SHOWN_FIRST} events, then new ones until Ctrl-C.")
@click.option("--since", type=Moment(), help="From this time on: 15m, 2h, or 2026-11-21T10:00:00.")
@common
@click.pass_obj
def events(shell: Shell, follow: bool, since: datetime | None) -> None:
    """Print the events of the namespace, oldest first."""
    settings = shell.settings()
    last = _SHOWN_FIRST if follow and since is None else None
    for message in read(settings, Names(settings.namespace).events, since=since, last=last, follow=follow):
        try:
            event = orjson.loads(message.value() or b"")
        except orjson.JSONDecodeError:
            continue
        if isinstance(event, dict):
            rest = {name: value for name, value in event.items() if name not in ("at", "event", "v")}
            details = " ".join(f"{name}={cell(value)}" for name, value in rest.items() if value is not None)
            text = f"{event.get('at', '')}  {event.get('event', '')}  {details}".rstrip()
            click.echo(json.dumps(event, ensure_ascii=False) if shell.json else text)
