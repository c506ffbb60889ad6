"""`holdfast topics`: create, check, delete, and who needs which rights on them."""

import shlex
from dataclasses import asdict

import click

from app import rights as roles
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


@topics.command(
    epilog=example("holdfast topics rights worker --principal User:shop", "holdfast topics rights producer")
)
@click.argument("role", type=click.Choice(list(roles.ROLES)))
@click.option("--principal", default="User:NAME", show_default=True, help="Whom to grant them to.")
@common
@click.pass_obj
def rights(shell: Shell, role: str, principal: str) -> None:
    """List the least rights with which a ROLE works, as arguments of Kafka's own kafka-acls.sh.

    Asks no broker. Nobody needs more, and workers say at their start what they lack.
    """
    for right in roles.ROLES[role](library.Names(shell.settings().namespace)):
        words = ["--add", "--allow-principal", principal]
        words += [word for operation in right.operations for word in ("--operation", operation)]
        # There is one cluster, and the tool knows its name.
        words += ["--cluster"] if right.resource == "cluster" else [f"--{right.resource}", right.name]
        words += ["--resource-pattern-type", "prefixed"] if right.prefixed else []
        shell.emit({**asdict(right), "principal": principal}, shlex.join(words))
