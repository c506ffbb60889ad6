"""Sizes, words and borders of the tree that neither the linter nor the types watch."""

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PACKAGES = ("app", "agents", "tables")
MODULE_LINES_MAX = 400
FUNCTION_LINES_MAX = 60
# Written in two parts, so that this file passes its own test.
UNFINISHED = ("TO" + "DO", "FIX" + "ME", "XX" + "X")


def modules(*directories: str) -> list[Path]:
    return sorted(path for directory in directories for path in (ROOT / directory).rglob("*.py"))


def name_of(path: Path) -> str:
    return path.relative_to(ROOT).as_posix()


OURS = modules(*PACKAGES)
ALL = modules(*PACKAGES, "tests")


def functions(tree: ast.Module) -> Iterator[ast.FunctionDef | ast.AsyncFunctionDef]:
    for node in ast.walk(tree):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            yield node


def imported_names(tree: ast.Module) -> Iterator[tuple[str, str]]:
    """Yield (module, name) of each ``from module import name``."""
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and node.module is not None:
            yield from ((node.module, alias.name) for alias in node.names)


@pytest.mark.parametrize("path", OURS, ids=name_of)
def test_a_module_fits_into_one_head(path: Path) -> None:
    assert len(path.read_text().splitlines()) <= MODULE_LINES_MAX


@pytest.mark.parametrize("path", OURS, ids=name_of)
def test_a_function_fits_onto_one_page(path: Path) -> None:
    long = {
        function.name: length
        for function in functions(ast.parse(path.read_text()))
        if (length := (function.end_lineno or 0) - function.lineno + 1) > FUNCTION_LINES_MAX
    }
    assert long == {}


@pytest.mark.parametrize("path", ALL, ids=name_of)
def test_nothing_is_left_unfinished(path: Path) -> None:
    lines = path.read_text().splitlines()
    assert [line for line in lines if any(word in line for word in UNFINISHED)] == []


@pytest.mark.parametrize("path", OURS, ids=name_of)
def test_private_names_stay_in_their_module(path: Path) -> None:
    private = [
        f"{module}.{name}"
        for module, name in imported_names(ast.parse(path.read_text()))
        if module.partition(".")[0] in PACKAGES
        and any(part.startswith("_") and not part.startswith("__") for part in (*module.split("."), name))
    ]
    assert private == []


@pytest.mark.parametrize("path", [path for path in modules("app/protocol") if path.name != "__init__.py"], ids=name_of)
def test_every_protocol_core_has_its_tests(path: Path) -> None:
    wanted = f"test_{path.stem}.py"
    assert any((ROOT / "tests").rglob(wanted)), f"{wanted} is missing"
