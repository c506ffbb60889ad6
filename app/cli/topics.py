"""`holdfast topics`: create, check, delete."""

import click

from app import topics as library
from app.cli.shell import Shell, common, complain, example


@click.group(epilog=example("holdfast topics create", "holdfast topics check"))
@common
def topics() -> None:
    """Create, check and delete the topics of the namespace."""


@topics.command(epilog=example("HOLDFAST_SERVERS=16 holdfast topics create --bootstrap localhost:9092"))
@common
@click.pass_obj
def create(shell: Shell) -> None:
    """Create the topics that are missing.

    HOLDFAST_SERVERS and HOLDFAST_ROUTERS set the numbers of partitions, which never change afterwards.
    """
    settings = shell.settings()
    library.ensure(library.connect(settings), settings)
    specs = library.specs(settings)
    if shell.json:
        for spec in specs:
            shell.emit({"topic": spec.name, "partitions": spec.partitions}, "")
        return
    click.echo(f"{len(specs)} topics of the namespace {settings.namespace} are there")


@topics.command(epilog=example("holdfast topics check"))
@common
@click.pass_obj
def check(shell: Shell) -> int:
    """Say what is wrong with the topics; exit code 1 if anything is."""
    settings = shell.settings()
    problems = library.check(library.connect(settings), settings)
    if shell.json:
        shell.emit({"ok": not problems, "problems": problems}, "")
    elif problems:
        for problem in problems:
            complain(problem)
    else:
        click.echo(f"all topics of the namespace {settings.namespace} are as they should be")
    return 1 if problems else 0


@topics.command(epilog=example("holdfast topics delete --namespace trial --yes"))
@click.option("--yes", is_flag=True, help="Without it nothing is deleted.")
@common
@click.pass_obj
def delete(shell: Shell, yes: bool) -> None:
    """Delete every topic and group of the namespace, and with them all its state.

    Refused while a worker is in the group.
    """
    settings = shell.settings()
    if not yes:
        raise click.UsageError(f"this deletes everything in the namespace {settings.namespace}: add --yes")
    gone = library.delete(library.connect(settings), settings)
    if shell.json:
        for name in gone:
            shell.emit({"deleted": name}, "")
        return
    click.echo(f"{len(gone)} topics and groups of the namespace {settings.namespace} are deleted")
