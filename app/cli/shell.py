"""What every command shares: the options that may stand anywhere, the settings made of them, the output."""

import importlib
import importlib.util
import json
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final, ParamSpec, TypeVar

import click
from rich import box
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskProgressColumn, TextColumn
from rich.progress import TimeRemainingColumn as Remaining
from rich.table import Table

from app.settings import Settings, load

_P = ParamSpec("_P")
_R = TypeVar("_R")
_WIDE: Final = 1_000


@dataclass
class Shell:
    """One invocation: flags as they were given, on the group or on the command; the command's win."""

    flags: dict[str, object] = field(default_factory=dict)
    config: Path | None = None
    json: bool = False

    def settings(self, **more: object) -> Settings:
        """Merge flags, environment and file; ``more`` are further flags, None where one was not given.

        Raises:
            ConfigurationError: a value is not allowed.
        """
        return load(self.config, {**self.flags, **more})[0]

    def emit(self, record: Mapping[str, Any], text: str) -> None:
        """Print one object: a line of JSON, or a line for people."""
        click.echo(json.dumps(record, ensure_ascii=False) if self.json else text)

    def table(self, columns: Sequence[str], records: Iterable[Mapping[str, Any]]) -> None:
        """Print objects: a line of JSON each, or a table of some of their fields."""
        if self.json:
            for record in records:
                click.echo(json.dumps(record, ensure_ascii=False))
            return
        table = Table(*columns, box=box.SIMPLE_HEAD)
        for record in records:
            table.add_row(*(cell(record.get(column)) for column in columns))
        if not table.row_count:
            table.add_row("none")
        console = Console(soft_wrap=True)
        if not console.is_terminal:
            # Nobody's window: what reads it wants whole values.
            console.width = _WIDE
        console.print(table)

    def progress(self) -> Progress:
        """A progress bar on stderr, shown to people only."""
        console = Console(stderr=True)
        return Progress(
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TaskProgressColumn(),
            Remaining(),
            console=console,
            disable=self.json or not console.is_terminal,
        )


def cell(value: object) -> str:
    """A value as people read it in a table."""
    match value:
        case None:
            return "-"
        case bool():
            return "yes" if value else "no"
        case str():
            return value
        case list() | tuple():
            return ", ".join(map(cell, value)) or "-"
        case dict():
            return json.dumps(value, ensure_ascii=False)
        case _:
            return str(value)


def _keep_flag(context: click.Context, parameter: click.Parameter, value: object) -> None:
    if value is not None and parameter.name is not None:
        context.ensure_object(Shell).flags[parameter.name] = value


def _keep_config(context: click.Context, _parameter: click.Parameter, value: Path | None) -> None:
    if value is not None:
        context.ensure_object(Shell).config = value


def _keep_json(context: click.Context, _parameter: click.Parameter, value: bool) -> None:
    if value:
        context.ensure_object(Shell).json = True


_COMMON: Final = (
    click.option(
        "--bootstrap",
        metavar="HOST:PORT,...",
        help="Kafka bootstrap servers.",
        expose_value=False,
        callback=_keep_flag,
    ),
    click.option(
        "--namespace",
        metavar="NAME",
        help="Prefix of all topics and groups.",
        expose_value=False,
        callback=_keep_flag,
    ),
    click.option(
        "--config",
        type=click.Path(dir_okay=False, path_type=Path),
        metavar="FILE",
        help="Settings in TOML.",
        expose_value=False,
        callback=_keep_config,
    ),
    click.option(
        "--json",
        "as_json",
        is_flag=True,
        help="One JSON object per line.",
        expose_value=False,
        callback=_keep_json,
    ),
)


def common(function: Callable[_P, _R]) -> Callable[_P, _R]:
    """Add the options that every command and the groups take."""
    for option in reversed(_COMMON):
        function = option(function)
    return function


def example(*lines: str) -> str:
    """The end of a help text: commands that can be copied."""
    return "\b\nExample:\n" + "\n".join(f"  {line}" for line in lines)


class LazyGroup(click.Group):
    """Loads a command's module when the command is asked for, so that each starts fast and alone.

    ``lazy`` maps names to (module, attribute); a command whose module does not exist is not there.
    """

    lazy: Mapping[str, tuple[str, str]] = {}

    def list_commands(self, ctx: click.Context) -> list[str]:
        """Names in alphabetical order."""
        there = [name for name, (module, _) in self.lazy.items() if importlib.util.find_spec(module)]
        return sorted({*there, *super().list_commands(ctx)})

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        """Load it, or None."""
        entry = self.lazy.get(cmd_name)
        if entry is None or importlib.util.find_spec(entry[0]) is None:
            return super().get_command(ctx, cmd_name)
        command = getattr(importlib.import_module(entry[0]), entry[1])
        assert isinstance(command, click.Command)
        return command


def complain(message: str) -> None:
    """One line on stderr."""
    text = " ".join(message.split())
    sys.stderr.write(f"holdfast: {text}\n")
