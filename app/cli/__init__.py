"""The command line: `holdfast`, a module per command group.

Exit codes: 0 done, 1 failed, 2 wrong usage or settings, 3 the broker is not reachable.
"""

import os
import sys
import traceback
from collections.abc import Sequence
from importlib.metadata import PackageNotFoundError, version
from typing import Final

import click

from app import guard
from app.cli.shell import LazyGroup, Shell, common, complain, example
from app.errors import HoldfastError

_FAILED: Final = 1
_USAGE: Final = 2


class _Commands(LazyGroup):
    lazy = {  # noqa: RUF012 - never changed.
        "up": ("app.cli.up", "up"),
        "worker": ("app.cli.worker", "worker"),
        "demo": ("app.cli.demo", "demo"),
        "canary": ("app.cli.canary", "canary"),
        "drill": ("app.cli.drill", "drill"),
        "topics": ("app.cli.topics", "topics"),
        "send": ("app.cli.send", "send"),
        "transfer": ("app.cli.transfer", "transfer"),
        "tenant": ("app.cli.tenant", "tenant"),
        "server": ("app.cli.server", "server"),
        "session": ("app.cli.session", "session"),
        "status": ("app.cli.status", "status"),
        "workers": ("app.cli.workers", "workers"),
        "dead-letters": ("app.cli.dead_letters", "dead_letters"),
        "events": ("app.cli.events", "events"),
        "exchange": ("app.cli.exchange", "exchange"),
        "doctor": ("app.cli.doctor", "doctor"),
    }


def _version() -> str:
    try:
        return version("holdfast")
    except PackageNotFoundError:
        return "unknown (not installed)"


@click.group(
    cls=_Commands,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 110},
    epilog=example("holdfast up", "holdfast send acme cart-7 cart.add '{\"count\": 2}' --wait"),
)
@click.version_option(_version(), prog_name="holdfast")
@common
def cli() -> None:
    """Keep every session on its server while tenants move and servers fail.

    Settings come from flags, environment variables HOLDFAST_*, and the file of --config, in this order;
    `holdfast doctor` prints them all.
    """


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command and return its exit code; errors are one line on stderr."""
    shell = Shell()
    try:
        guard.check()
        outcome = cli.main(
            args=None if arguments is None else list(arguments),
            prog_name="holdfast",
            standalone_mode=False,
            obj=shell,
        )
        sys.stdout.flush()
    except click.exceptions.Exit as error:
        return error.exit_code
    except click.exceptions.NoArgsIsHelpError as error:
        click.echo(error.format_message(), err=True)
        return _USAGE
    except click.UsageError as error:
        where = f" (see `{error.ctx.command_path} --help`)" if error.ctx else ""
        complain(f"{error.format_message()}{where}")
        return _USAGE
    except click.ClickException as error:
        complain(error.format_message())
        return _FAILED
    except HoldfastError as error:
        complain(str(error))
        return error.exit_code
    except (KeyboardInterrupt, click.Abort):
        complain("interrupted")
        return _FAILED
    except BrokenPipeError:
        # Whoever read the output has seen enough; Python would complain once more at its end.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return _FAILED
    except Exception as error:  # noqa: BLE001 - the last net: a line, and the rest on demand.
        return _unexpected(error, shell)
    return outcome if isinstance(outcome, int) else 0


def _unexpected(error: Exception, shell: Shell) -> int:
    try:
        verbose = shell.settings().log_level == "debug"
    except HoldfastError:
        verbose = False
    if verbose:
        traceback.print_exception(error)
    complain(
        f"an error inside Holdfast, {type(error).__name__}: {error}; "
        "HOLDFAST_LOG_LEVEL=debug shows where, please report it"
    )
    return _FAILED
