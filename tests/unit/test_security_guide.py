"""The security guide says what is so: rights, limits, and the tests that meet them."""

import ast
import re
from importlib import import_module
from pathlib import Path
from typing import Any, Final

import pytest
from pydantic import SecretStr

from app.cli import main
from app.rights import ROLES, require_worker
from app.settings import Settings
from app.topics import Names, specs

ROOT: Final = Path(__file__).parents[2]
TEXT: Final = (ROOT / "docs" / "security.md").read_text()


def rows(heading: str) -> list[list[str]]:
    """The cells of the table under a heading."""
    part = TEXT.split(f"## {heading}\n")[1].split("\n## ")[0]
    lines = [line for line in part.splitlines() if line.startswith("| ")]
    return [[cell.strip() for cell in line.strip("|").split(" | ")] for line in lines[1:]]


def test_the_rights_are_those_of_the_program() -> None:
    names = Names("{namespace}")
    wanted = [
        [role, r.resource, f"`{r.name}{'*' if r.prefixed else ''}`", ", ".join(r.operations), r.reason]
        for role, of in ROLES.items()
        for r in of(names)
    ]
    assert rows("Rights on the brokers") == wanted


@pytest.mark.parametrize("role", ROLES)
def test_rights_stay_within_the_namespace(role: str) -> None:
    names = Names("shop")
    for right in ROLES[role](names):
        assert right.name.startswith("shop.") or right.resource == "cluster"
        assert "Alter" not in right.operations
        assert "All" not in right.operations


def test_rights_are_printed_for_kafkas_own_tool(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["topics", "rights", "producer", "--namespace", "shop", "--principal", "User:till"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == "--add --allow-principal User:till --operation Write --operation Describe --topic shop.tasks"
    assert lines[-1].endswith("--group shop.reader- --resource-pattern-type prefixed")


LIMITS: Final = rows("Limits")


def value_at(where: str) -> Any:
    """The value of ``module:NAME``, or the default of ``module:Settings.name``."""
    module, _, name = where.partition(":")
    if name.startswith("Settings."):
        return getattr(Settings(), name.removeprefix("Settings."))
    return getattr(import_module(module), name)


@pytest.mark.parametrize("row", LIMITS, ids=lambda row: row[0])
def test_a_limit_is_what_the_guide_says_and_a_test_meets_it(row: list[str]) -> None:
    found = re.fullmatch(r"`([\w.]+:[\w.]+)` = (\d+)", row[2])
    assert found is not None, row[2]
    assert value_at(found[1]) == int(found[2])
    path, _, name = row[4].strip("`").partition("::")
    tree = ast.parse((ROOT / path).read_text())
    assert name in {node.name for node in ast.walk(tree) if isinstance(node, ast.FunctionDef)}, row[4]


def test_the_table_of_limits_is_read() -> None:
    assert len(LIMITS) > 15


def test_no_secret_has_a_default() -> None:
    defaults = Settings()
    secrets = [name for name, field in Settings.model_fields.items() if field.annotation is SecretStr]
    assert set(secrets) == {"token", "sasl_password", "ssl_key_password"}
    assert [name for name in secrets if getattr(defaults, name).get_secret_value()] == []


class Allowing:
    """An admin client of a broker that does not tell what is allowed, as those without ACLs may do."""

    class _Answer:
        authorized_operations = None

        def result(self, _timeout: float) -> "Allowing._Answer":
            return self

    def describe_topics(self, topics: Any, **_: object) -> dict[str, "_Answer"]:
        return {spec.name: self._Answer() for spec in specs(Settings())}

    def describe_consumer_groups(self, names: list[str], **_: object) -> dict[str, "_Answer"]:
        return {name: self._Answer() for name in names}


def test_a_broker_that_does_not_tell_rights_is_believed() -> None:
    require_worker(Allowing(), Settings())  # type: ignore[arg-type]
