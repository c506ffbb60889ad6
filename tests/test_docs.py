"""The documents say what is true: commands, links, settings, paths, and what the first screens let a reader try."""

import ast
import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Final

import click
import pytest

from app.cli import cli
from app.cli.shell import Shell
from app.handlers import Handler, load
from app.settings import ENV_PREFIX, Settings
from app.topics import Names, specs

ROOT: Final = Path(__file__).parents[1]
DOCUMENTS: Final = sorted([*ROOT.glob("*.md"), *(ROOT / "docs").glob("*.md")])
READY_S: Final = 120
STOPPED_S: Final = 40

# Variables that are no settings: hooks of tests and benchmarks, and what a supervised program is told.
OTHERS: Final = {
    "HOLDFAST_CRASH_AT",
    "HOLDFAST_EXCHANGE",
    "HOLDFAST_RESTART_FILE",
    "HOLDFAST_TEST_BOOTSTRAP",
    "HOLDFAST_TEST_BROKER",
    "HOLDFAST_TEST_COMPOSE",
    "HOLDFAST_TEST_KAFKA_IMAGE",
}
PROGRAMS: Final = {"curl", "export", ".ci/run"}
DEPLOYING: Final = {"docker", "kubectl", "systemctl", "python3", "/opt/holdfast/bin/pip", "useradd", "install", "cp"}


def name_of(path: Path) -> str:
    return path.relative_to(ROOT).as_posix()


def blocks(path: Path, language: str) -> list[str]:
    """The code blocks of a document that are marked with exactly these words."""
    return re.findall(rf"^```{language}\n(.*?)^```$", path.read_text(), re.MULTILINE | re.DOTALL)


def commands(text: str) -> Iterator[list[str]]:
    """The commands of a shell block, without comments and without variables set in front of them."""
    for line in text.replace("\\\n", " ").splitlines():
        words = shlex.split(line, comments=True)
        while words and re.match(r"[A-Z_]+=", words[0]):
            words.pop(0)
        if words:
            yield words


SHELL: Final = [
    pytest.param(words, id=f"{name_of(path)}: {shlex.join(words)[:60]}")
    for path in DOCUMENTS
    for block in (*blocks(path, "sh"), *blocks(path, "sh runnable"), *blocks(path, "sh background"))
    for words in commands(block)
]


def parse(command: click.Command, name: str, arguments: Sequence[str], parent: click.Context | None) -> None:
    """Parse arguments as the command line does, without running anything; raise click's errors."""
    context = command.make_context(name, list(arguments), parent=parent, obj=Shell())
    if isinstance(command, click.Group):
        found, inner, rest = command.resolve_command(context, [*context._protected_args, *context.args])
        assert inner is not None
        parse(inner, str(found), rest, context)


@pytest.mark.parametrize("words", SHELL)
def test_a_command_in_a_document_exists(request: pytest.FixtureRequest, words: list[str]) -> None:
    program = words[0]
    if program == "holdfast":
        parse(cli, program, words[1:], None)
    elif program == "make":
        targets = re.findall(r"^([a-z]+):", (ROOT / "Makefile").read_text(), re.MULTILINE)
        assert [word for word in words[1:] if "=" not in word and word not in targets] == []
    elif program == ".venv/bin/python":
        assert words[1] == "-m"
        assert (ROOT / words[2].replace(".", "/") / "__main__.py").exists()
    else:
        assert program in (PROGRAMS | DEPLOYING if "deployment.md" in request.node.name else PROGRAMS)


def test_a_wrong_command_would_be_found() -> None:
    with pytest.raises(click.UsageError):
        parse(cli, "holdfast", ["no-such-command"], None)
    with pytest.raises(click.UsageError):
        parse(cli, "holdfast", ["send", "acme", "cart-7", "echo", "--no-such-option"], None)


def help_texts(command: click.Command, name: str, parent: click.Context | None) -> Iterator[tuple[str, str]]:
    """Every command by its words, and the end of its help, where the examples are."""
    context = click.Context(command, info_name=name, parent=parent, obj=Shell())
    yield context.command_path, command.epilog or ""
    if isinstance(command, click.Group):
        for inner in command.list_commands(context):
            found = command.get_command(context, inner)
            assert found is not None
            yield from help_texts(found, inner, context)


@pytest.mark.parametrize(("path", "text"), list(help_texts(cli, "holdfast", None)), ids=lambda value: value[:40])
def test_the_examples_of_a_help_text_can_be_typed(path: str, text: str) -> None:
    lines = list(commands(text.partition("Example:")[2]))
    assert any(shlex.join(words).startswith(path) for words in lines), text
    for words in lines:
        assert words[0] == "holdfast"
        parse(cli, "holdfast", words[1:], None)


def anchors(path: Path) -> set[str]:
    """The anchors of a document's headings, as they are made where it is read."""
    text = re.sub(r"^```.*?^```$", "", path.read_text(), flags=re.MULTILINE | re.DOTALL)
    headings = re.findall(r"^#+ (.+)$", text, re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("path", DOCUMENTS, ids=name_of)
def test_links_lead_somewhere(path: Path) -> None:
    lost = []
    for link in re.findall(r"\]\(([^)\s]+)\)", path.read_text()):
        if re.match(r"https?:", link):
            continue
        file, _, anchor = link.partition("#")
        target = path.parent / file if file else path
        if not target.exists() or (anchor and anchor not in anchors(target)):
            lost.append(link)
    assert lost == []


@pytest.mark.parametrize("path", DOCUMENTS, ids=name_of)
def test_files_that_are_named_exist(path: Path) -> None:
    named = re.findall(r"`((?:app|agents|tables|tests|deploy|docs)/[\w./-]+)`", path.read_text())
    assert [name for name in named if not (ROOT / name).exists()] == []


def variables(path: Path) -> set[str]:
    return set(re.findall(rf"\b{ENV_PREFIX}[A-Z_]*[A-Z]\b", path.read_text()))


SETTINGS: Final = {f"{ENV_PREFIX}{name.upper()}" for name in Settings.model_fields}


@pytest.mark.parametrize("path", DOCUMENTS, ids=name_of)
def test_settings_that_are_named_exist(path: Path) -> None:
    assert variables(path) - SETTINGS - OTHERS == set()


def test_every_setting_is_documented_with_its_default() -> None:
    path = ROOT / "docs" / "operations.md"
    assert SETTINGS - variables(path) == set()
    rows = re.findall(r"^\| `(HOLDFAST_[A-Z_]+)` \| `([^`]+)`", path.read_text(), re.MULTILINE)
    assert len(rows) > 20
    defaults = Settings()
    for variable, said in rows:
        name = variable.removeprefix(ENV_PREFIX).lower()
        if name == "storage":
            continue
        value = getattr(defaults, name)
        if isinstance(value, tuple):
            assert ",".join(value) == said, variable
        elif isinstance(value, int | float):
            assert float(said) == value, variable
        else:
            assert str(value) == said, variable


def test_every_topic_is_documented_with_its_partitions() -> None:
    text = (ROOT / "docs" / "topics.md").read_text()
    words = {4: "routers", 8: "servers", 1: "1"}
    prefix = Names("holdfast").prefix
    for spec in specs(Settings()):
        name = spec.name.removeprefix(prefix)
        [row] = re.findall(rf"^\| \[[^]]*`{name}`[^]]*\].*$", text, re.MULTILINE)
        cells = [cell.strip() for cell in row.split("|")]
        assert cells[3] == words[spec.partitions], name
        policy = "compact" if spec.config["cleanup.policy"] == "compact" else "delete"
        unlimited = spec.config.get("retention.ms") == "-1"
        assert cells[4].startswith("none" if unlimited else policy), name


def log_lines() -> Iterator[tuple[str, str]]:
    """The constant texts of what workers log from level info on, by module."""
    for path in (path for package in ("agents", "app/engine", "app/worker") for path in (ROOT / package).rglob("*.py")):
        if path.parent.name == "embedded_kafka":
            continue
        for node in ast.walk(ast.parse(path.read_text())):
            match node:
                case ast.Call(
                    func=ast.Attribute(value=ast.Name(id="log"), attr="info" | "warning" | "error" | "critical"),
                    args=[ast.Constant(value=str(text)), *_],
                ):
                    yield name_of(path), text


@pytest.mark.parametrize(("path", "line"), sorted(log_lines()))
def test_every_log_line_of_a_worker_is_explained(path: str, line: str) -> None:
    text = (ROOT / "docs" / "operations.md").read_text()
    if line == "worker %s: %s":
        return  # An error's own text: see the table of errors.
    parts = [part.strip(" :,()") for part in re.split(r"%[-+.\d]*[a-z]", line)]
    enough = min(12, max(map(len, parts)))
    assert any(len(part) >= enough and part in text for part in parts), path


def write_module(directory: Path, name: str, *sources: str) -> None:
    (directory / f"{name}.py").write_text("\n\n".join(sources), encoding="utf-8")


def test_the_guides_handlers_can_be_loaded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    registered: dict[str, Handler] = {}
    monkeypatch.setattr("app.handlers._registered", registered)
    monkeypatch.syspath_prepend(str(tmp_path))
    # The last one is a test that calls the first one's function: it runs at the import.
    write_module(tmp_path, "guide_handlers", *blocks(ROOT / "docs" / "handlers.md", "python"))
    loaded = load(["guide_handlers"])
    assert set(loaded) >= {"cart.put", "mail.send", "report.print", "account.deposit", "order.charge", "order.close"}
    assert loaded["report.print"].blocking
    assert loaded["mail.send"].asynchronous
    assert loaded["account.deposit"].typed


class Terminal:
    """A shell in which ``holdfast`` is the command of this environment, in a directory of its own."""

    def __init__(self, directory: Path) -> None:
        programs = directory / "bin"
        programs.mkdir(parents=True)
        command = programs / "holdfast"
        command.write_text(f'#!/bin/sh\nexec {shlex.quote(sys.executable)} -P -m app "$@"\n')
        command.chmod(0o755)
        self.directory = directory
        self.environment = {n: v for n, v in os.environ.items() if not n.startswith(ENV_PREFIX)}
        self.environment["PATH"] = f"{programs}{os.pathsep}{self.environment['PATH']}"

    def run(self, command: Sequence[str]) -> str:
        """Run one command to its end and return what it printed; fail unless it succeeds."""
        done = subprocess.run(
            command,
            cwd=self.directory,
            env=self.environment,
            capture_output=True,
            text=True,
            timeout=READY_S,
            check=False,
        )
        assert done.returncode == 0, f"{command}: {done.stdout}{done.stderr}"
        return done.stdout

    def up(self) -> "subprocess.Popen[str]":
        return subprocess.Popen(
            ["holdfast", "up", "--port", "0", "--workers", "2"],
            cwd=self.directory,
            env=self.environment,
            stdout=subprocess.PIPE,
            text=True,
            start_new_session=True,
        )


@pytest.fixture
def terminal(tmp_path: Path) -> Iterator[Terminal]:
    """A cluster that was started as the README says, and a terminal beside it."""
    handlers = [block for block in blocks(ROOT / "README.md", "python") if "@handler" in block]
    with running(tmp_path / "shop", "shop", handlers) as made:
        yield made


@contextmanager
def running(directory: Path, module: str, sources: Sequence[str]) -> Iterator[Terminal]:
    """`holdfast up` in a directory with one module of handlers, to its orderly end."""
    made = Terminal(directory)
    write_module(directory, module, *sources)
    made.environment["HOLDFAST_HANDLERS"] = f"app.samples,{module}"
    process = made.up()
    try:
        assert process.stdout is not None
        line = process.stdout.readline()
        found = re.fullmatch(r"ready: (\S+)   broker (\S+)   namespace holdfast\n", line)
        assert found is not None, line
        made.environment |= {"URL": found[1], "HOLDFAST_BOOTSTRAP": found[2]}
        yield made
        process.send_signal(signal.SIGINT)
        assert process.wait(STOPPED_S) == 0
        assert process.stdout.read().endswith("all stopped\n")
    finally:
        if process.poll() is None:
            process.terminate()
            process.wait(STOPPED_S)
        if process.stdout is not None:
            process.stdout.close()


@pytest.mark.broker
@pytest.mark.timeout(240)
def test_what_the_readme_lets_a_reader_try_works(terminal: Terminal) -> None:
    said = {}
    for block in blocks(ROOT / "README.md", "sh runnable"):
        for line in block.splitlines():
            if line.startswith("curl") and shutil.which("curl") is None:
                continue
            said[line] = terminal.run(["sh", "-c", line])
    first = next(text for line, text in said.items() if "order.place" in line)
    assert re.fullmatch(r'\{"orders": 1\} \(task 0/0, server \d, sequence 1\)\n', first)
    assert any("session show" in line and '"chair"' in text for line, text in said.items())
    for command in ("holdfast status", "holdfast dead-letters list", "holdfast doctor"):
        assert said[command]
    for block in blocks(ROOT / "README.md", "python"):
        if "Client" in block:
            assert terminal.run([sys.executable, "-c", block]).startswith("done {'items': ")
