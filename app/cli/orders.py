"""What commands that order something share: write it, and wait for its end if asked."""

from collections.abc import Mapping
from typing import Any, Final

import click

from app.cli.shell import Shell, cell, complain
from app.client.commands import Commands
from app.errors import HoldfastError
from app.records import Event

WAIT_S: Final = 3600.0
"""How long `--wait` waits: every command ends by its own deadlines."""

GOOD: Final = frozenset(
    {
        "migration-succeeded",
        "migration-aborted",
        "migration-plan",
        "server-drained",
        "server-closed",
        "server-restored",
        "worker-forgotten",
    }
)


def order(shell: Shell, command: str, *, wait: bool, tenant: str | None = None, **fields: object) -> int:
    """Write a command; print its id, or with ``wait`` its final event. Returns the exit code."""
    try:
        with Commands(shell.settings(), read_events=wait) as commands:
            known = commands.order(command, tenant=tenant, **fields)
            if not wait:
                shell.emit({"id": known}, f"ordered: {known}")
                return 0
            event = commands.end(known, WAIT_S)
    except ValueError as error:
        raise click.UsageError(str(error)) from None
    except TimeoutError as error:
        raise HoldfastError(str(error)) from None
    return report(shell, event)


def report(shell: Shell, event: Event) -> int:
    """Print the final event of a command; 0 if it has succeeded."""
    record = event.model_dump(mode="json")
    shell.emit(record, text_of(record))
    if event.event in GOOD and not record.get("failed") and not record.get("blocked"):
        return 0
    complain(f"{event.event}: {record.get('reason') or cell(record.get('failed') or record.get('blocked'))}")
    return 1


def text_of(record: Mapping[str, Any]) -> str:
    """An event as a line for people."""
    rest = {name: value for name, value in record.items() if name not in ("event", "at", "final")}
    return f"{record['event']}  " + "  ".join(f"{n} {cell(v)}" for n, v in rest.items() if v is not None)
