"""`holdfast doctor`: what is wrong here, and how to mend it."""

from collections.abc import Mapping
from typing import Any

import click
from pydantic import SecretStr

from app.cli.checks import Finding, of_the_cluster, of_the_machine
from app.cli.shell import Shell, cell, common, example
from app.errors import HoldfastError
from app.settings import Settings, Source, load, typing_errors


@click.command(epilog=example("holdfast doctor --bootstrap localhost:9092"))
@common
@click.pass_obj
def doctor(shell: Shell) -> int:
    """Check machine, settings, broker and topics; say what is wrong and how to mend it.

    Exit code 1 if anything is. Also prints every setting and where it comes from.
    """
    findings = list(of_the_machine())
    settings: list[dict[str, Any]] = []
    try:
        values, sources = load(shell.config, shell.flags)
    except HoldfastError as error:
        findings.append(Finding("settings", False, str(error)))
    else:
        settings = [_setting(values, name, sources) for name in Settings.model_fields]
        findings.append(Finding("settings", True, f"{len(settings)} settings are valid"))
        findings += [
            Finding("settings", False, f"{name} is no setting", f"did you mean {meant}?")
            for name, meant in typing_errors()
        ]
        findings += of_the_cluster(values)
    good = all(finding.ok for finding in findings)
    record = {"ok": good, "checks": [finding.as_json() for finding in findings], "settings": settings}
    if shell.json:
        shell.emit(record, "")
    else:
        _print(shell, findings, settings)
    return 0 if good else 1


def _setting(values: Settings, name: str, sources: Mapping[str, Source]) -> dict[str, Any]:
    value = getattr(values, name)
    shown = _hidden(value) if isinstance(value, SecretStr) else value
    plain = list(shown) if isinstance(shown, tuple) else shown
    if not isinstance(plain, str | int | float | list | None):
        plain = str(plain)
    return {"name": f"HOLDFAST_{name.upper()}", "value": plain, "source": str(sources[name])}


def _hidden(secret: SecretStr) -> str:
    return "(set, hidden)" if secret.get_secret_value() else ""


def _print(shell: Shell, findings: list[Finding], settings: list[dict[str, Any]]) -> None:
    for finding in findings:
        mark = click.style("ok   ", fg="green") if finding.ok else click.style("WRONG", fg="red")
        click.echo(f"{mark} {finding.check:<16} {finding.message}")
        if finding.advice:
            click.echo(f"{'':<23}{finding.advice}")
    shell.table(
        ("setting", "value", "source"),
        ({"setting": one["name"], "value": cell(one["value"]), "source": one["source"]} for one in settings),
    )
