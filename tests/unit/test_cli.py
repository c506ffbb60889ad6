"""The command line without a broker: help, exit codes, one line per error, options anywhere."""

import json
import os
import subprocess
import sys
from collections.abc import Iterator

import click
import pytest

from app import guard
from app.cli import cli, main
from app.cli.shell import LazyGroup
from app.settings import Settings

NOBODY = "127.0.0.1:1"


@pytest.fixture(autouse=True)
def _no_environment(monkeypatch: pytest.MonkeyPatch, tmp_path_factory: pytest.TempPathFactory) -> None:
    for name in Settings.model_fields:
        monkeypatch.delenv(f"HOLDFAST_{name.upper()}", raising=False)
    monkeypatch.setenv("HOLDFAST_STATE_DIR", str(tmp_path_factory.mktemp("state")))


def commands(group: click.Group, path: tuple[str, ...] = ()) -> Iterator[tuple[tuple[str, ...], click.Command]]:
    yield path, group
    context = click.Context(group)
    for name in group.list_commands(context):
        command = group.get_command(context, name)
        assert command is not None
        if isinstance(command, click.Group):
            yield from commands(command, (*path, name))
        else:
            yield (*path, name), command


ALL = dict(commands(cli))


def test_the_commands_are_those_of_the_contract() -> None:
    assert set(ALL) >= {
        ("up",),
        ("worker",),
        ("topics", "create"),
        ("topics", "check"),
        ("topics", "delete"),
        ("send",),
        ("session", "show"),
        ("status",),
        ("workers", "list"),
        ("dead-letters", "list"),
        ("dead-letters", "replay"),
        ("events",),
        ("canary",),
        ("drill",),
        ("demo",),
        ("doctor",),
    }


@pytest.mark.parametrize("path", ALL, ids=" ".join)
def test_every_help_has_an_example_and_the_common_options(
    path: tuple[str, ...], capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([*path, "--help"]) == 0
    text = capsys.readouterr().out
    assert "Example:" in text
    assert "holdfast" in text.partition("Example:")[2]
    for option in ("--bootstrap", "--namespace", "--config", "--json"):
        assert option in text


def test_a_command_whose_module_is_missing_is_not_there() -> None:
    group = LazyGroup("group")
    group.lazy = {"absent": ("app.cli.no_such_module", "absent")}
    context = click.Context(group)
    assert group.list_commands(context) == []
    assert group.get_command(context, "absent") is None


def lines_of(capsys: pytest.CaptureFixture[str]) -> list[str]:
    return capsys.readouterr().err.splitlines()


@pytest.mark.parametrize(
    "arguments",
    [
        ["no-such-command"],
        ["send"],
        ["send", "acme"],
        ["send", "acme", "s", "echo", "{"],
        ["send", "acme", "s", "echo", "[]"],
        ["send", "acme\n", "s", "echo"],
        ["send", "acme", "s", "echo", "--file", "x"],
        ["send", "--file", "/no/such/file"],
        ["session", "show", "acme"],
        ["session", "show", "acme", "a\nb"],
        ["topics", "delete"],
        ["dead-letters", "replay"],
        ["dead-letters", "list", "--since", "yesterday"],
        ["up", "--workers", "0"],
        ["worker"],
        ["canary", "--tenant", "a/b"],
        ["canary", "--for", "0s"],
        ["drill"],
        ["drill", "--kill", "w1", "--freeze", "w2"],
        ["status", "--no-such-option"],
        # Settings: none, wrong, unknown.
        ["status"],
        ["status", "--namespace", "a.b"],
        ["--config", "/no/such/file", "status"],
    ],
    ids=" ".join,
)
def test_wrong_usage_is_one_line_and_exit_code_2(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert main(arguments) == 2
    [line] = lines_of(capsys)
    assert line.startswith("holdfast: ")


@pytest.mark.parametrize(
    "arguments",
    [
        ["status"],
        ["workers", "list"],
        ["session", "show", "acme", "s"],
        ["send", "acme", "s", "echo"],
        ["topics", "check"],
        ["dead-letters", "list"],
        ["events"],
        ["canary"],
        ["drill", "--kill", "w1"],
    ],
    ids=" ".join,
)
def test_an_unreachable_broker_is_one_line_and_exit_code_3(
    arguments: list[str], capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in (
        "client.kafka.CONNECT_TIMEOUT_S",
        "client.cluster.CONNECT_TIMEOUT_S",
        "topics.REQUEST_TIMEOUT_S",
    ):
        monkeypatch.setattr(f"app.{name}", 0.5)
    assert main([*arguments, "--bootstrap", NOBODY]) == 3
    [line] = lines_of(capsys)
    assert line.startswith(f"holdfast: no Kafka broker answers at {NOBODY}")
    assert "start it" in line


def test_no_command_shows_the_help(capsys: pytest.CaptureFixture[str]) -> None:
    assert main([]) == 2
    assert "Commands:" in capsys.readouterr().err


def test_options_may_stand_before_or_after_the_command_and_the_later_wins(
    capsys: pytest.CaptureFixture[str],
) -> None:
    arguments = ["--namespace", "first", "--json", "doctor", "--namespace", "second"]
    assert main(arguments) in (0, 1)
    found = {one["name"]: one for one in json.loads(capsys.readouterr().out)["settings"]}
    assert (found["HOLDFAST_NAMESPACE"]["value"], found["HOLDFAST_NAMESPACE"]["source"]) == ("second", "flag")
    assert found["HOLDFAST_STATE_DIR"]["source"] == "environment"


def test_the_doctor_hides_secrets_and_says_what_is_wrong(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HOLDFAST_TOKEN", "geheim")
    assert main(["doctor", "--json", "--bootstrap", NOBODY]) == 1
    text = capsys.readouterr().out
    assert "geheim" not in text
    report = json.loads(text)
    assert report["ok"] is False
    wrong = [check for check in report["checks"] if not check["ok"]]
    assert [check["check"] for check in wrong] == ["broker"]
    assert NOBODY in wrong[0]["message"]
    assert main(["doctor"]) in (0, 1)
    assert "geheim" not in capsys.readouterr().out


def test_the_doctor_reports_wrong_settings_and_directories(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HOLDFAST_STATE_DIR", "/dev/null/x")
    assert main(["doctor", "--json"]) == 1
    checks = {check["check"]: check for check in json.loads(capsys.readouterr().out)["checks"]}
    assert checks["state directory"]["ok"] is False
    assert "HOLDFAST_STATE_DIR" in checks["state directory"]["advice"]
    monkeypatch.setenv("HOLDFAST_SERVERS", "many")
    assert main(["doctor", "--json"]) == 1
    checks = {check["check"]: check for check in json.loads(capsys.readouterr().out)["checks"]}
    assert checks["settings"]["message"] == "HOLDFAST_SERVERS='many': use a whole number from 1 to 10000"


def test_the_demo_looks_first_whether_its_report_can_be_written(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HOLDFAST_STATE_DIR", "/dev/null/x")
    assert main(["demo"]) == 2
    [line] = lines_of(capsys)
    assert "the report cannot be written to /dev/null/x/demo (Not a directory)" in line


def test_the_doctor_finds_typing_errors_and_no_others(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HOLDFAST_SERVER", "4")
    # As Kubernetes sets it for a service of the name.
    monkeypatch.setenv("HOLDFAST_SERVICE_HOST", "10.0.0.1")
    assert main(["doctor", "--json"]) == 1
    wrong = [check for check in json.loads(capsys.readouterr().out)["checks"] if not check["ok"]]
    told = [(check["message"], check["advice"]) for check in wrong]
    assert told == [("HOLDFAST_SERVER is no setting", "did you mean HOLDFAST_SERVERS?")]


def test_strangers_that_own_our_names_stop_every_command(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(guard, "strangers", lambda: {"tables": {"tables"}})
    assert main(["status"]) == 2
    [line] = lines_of(capsys)
    assert "the package tables belongs to tables as well" in line


def test_an_error_of_our_own_making_is_one_line_too(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("app.cli.status.ask", lambda *_: 1 / 0)
    assert main(["status"]) == 1
    [line] = lines_of(capsys)
    assert "ZeroDivisionError" in line
    monkeypatch.setenv("HOLDFAST_LOG_LEVEL", "debug")
    assert main(["status"]) == 1
    assert "Traceback" in capsys.readouterr().err


def test_python_dash_m_is_the_same_command() -> None:
    done = subprocess.run(
        [sys.executable, "-P", "-m", "app", "topics", "delete"], capture_output=True, text=True, check=False
    )
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr == (
        "holdfast: this deletes everything in the namespace holdfast: add --yes (see `holdfast topics delete --help`)\n"
    )


def test_output_into_a_closed_pipe_ends_quietly() -> None:
    reader, writer = os.pipe()
    os.close(reader)
    try:
        done = subprocess.run(
            [sys.executable, "-P", "-m", "app", "doctor"],
            stdout=writer,
            stderr=subprocess.PIPE,
            text=True,
            check=False,
        )
    finally:
        os.close(writer)
    assert (done.returncode, done.stderr) == (1, "")
