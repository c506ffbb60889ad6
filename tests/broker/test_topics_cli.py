"""Commands that need a broker and no worker: topics, send, dead letters, events, doctor."""

import json
import time
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import orjson
import pytest
from confluent_kafka import Consumer, Producer, TopicPartition

from app.cli import main
from app.client.kafka import watermarks
from app.settings import Settings
from app.topics import Names, check, connect, ensure
from tests.support.members import Member

pytestmark = pytest.mark.broker

Run = Callable[..., tuple[int, list[Any], list[str]]]


@pytest.fixture
def settings(broker: str, namespace: str) -> Settings:
    return Settings(bootstrap=broker, namespace=namespace, servers=2, routers=2)


@pytest.fixture
def run(settings: Settings, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Run:
    """Run a command with --json; return its exit code, the objects it printed, the lines of stderr."""
    for name in Settings.model_fields:
        monkeypatch.delenv(f"HOLDFAST_{name.upper()}", raising=False)
    monkeypatch.setenv("HOLDFAST_SERVERS", "2")
    monkeypatch.setenv("HOLDFAST_ROUTERS", "2")

    def execute(*arguments: str, as_json: bool = True) -> tuple[int, list[Any], list[str]]:
        capsys.readouterr()
        where = ["--bootstrap", settings.bootstrap, "--namespace", settings.namespace]
        code = main([*arguments, *where, *(["--json"] if as_json else [])])
        out, err = capsys.readouterr()
        return code, [json.loads(line) if as_json else line for line in out.splitlines()], err.splitlines()

    return execute


def write(settings: Settings, topic: str, *records: tuple[bytes | None, bytes | None, dict[str, str]]) -> None:
    """In a transaction, as workers do, so that a marker stands last."""
    name = f"{settings.namespace}.test"
    producer = Producer({"bootstrap.servers": settings.bootstrap, "transactional.id": name})
    producer.init_transactions(10)
    producer.begin_transaction()
    for key, value, headers in records:
        producer.produce(topic, value, key, headers={name: text.encode() for name, text in headers.items()})
    producer.commit_transaction(10)


def tasks_in(settings: Settings) -> list[tuple[bytes | str | None, bytes | str | None]]:
    consumer = Consumer({"bootstrap.servers": settings.bootstrap, "group.id": "unused"})
    topic = Names(settings.namespace).tasks
    partitions = [TopicPartition(topic, number, 0) for number in range(settings.routers)]
    total = sum(end for _, end in watermarks(consumer, topic, settings))
    consumer.assign(partitions)
    found: list[tuple[bytes | str | None, bytes | str | None]] = []
    deadline = time.monotonic() + 20
    while len(found) < total:
        assert time.monotonic() < deadline
        message = consumer.poll(1)
        if message is not None:
            found.append((message.key(), message.value()))
    consumer.close()
    return found


def test_topics_are_created_checked_and_deleted(settings: Settings, run: Run) -> None:
    code, [report], _ = run("topics", "check")
    assert (code, report["ok"]) == (1, False)
    code, created, errors = run("topics", "create")
    assert (code, errors) == (0, [])
    assert {"topic": Names(settings.namespace).work, "partitions": 2} in created
    assert run("topics", "check")[:2] == (0, [{"ok": True, "problems": []}])
    assert run("topics", "delete")[0] == 2
    assert check(connect(settings), settings) == []
    code, deleted, _ = run("topics", "delete", "--yes")
    assert (code, len(deleted)) == (0, len(created))
    code, _, errors = run("topics", "check", as_json=False)
    assert code == 1
    assert all("holdfast topics create" in line for line in errors)


def test_topics_are_not_deleted_while_a_worker_is_in_the_group(settings: Settings, run: Run) -> None:
    ensure(connect(settings), settings)
    with Member(settings, name="w1", url="http://127.0.0.1:1", hosts=["router-0"]):
        code, _, errors = run("topics", "delete", "--yes")
        assert code == 1
        assert "stop them first" in errors[0]
        code, _, errors = run("status")
        assert code == 1
        assert "worker w1: http://127.0.0.1:1/api/status does not answer" in errors[0]
    assert check(connect(settings), settings) == []


def test_another_partition_count_is_a_clear_error(
    settings: Settings, run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    ensure(connect(settings), settings)
    monkeypatch.setenv("HOLDFAST_SERVERS", "5")
    code, _, errors = run("topics", "create")
    assert code == 2
    assert "has 2 partitions, the settings say 5" in errors[0]


def test_a_task_is_sent(settings: Settings, run: Run) -> None:
    assert run("send", "acme", "s", "echo")[0] == 2
    ensure(connect(settings), settings)
    code, [sent], _ = run("send", "acme", "s", "echo", '{"n": 1}')
    assert (code, sent) == (0, {"id": f"{sent['partition']}/0", "partition": sent["partition"], "offset": 0})
    assert run("send", "acme", "s", "echo", "--id", "mine", "--server", "1")[1][0]["id"] == "mine"
    assert [(key, json.loads(value or b"")) for key, value in tasks_in(settings)] == [
        (b"acme", {"tenant": "acme", "session": "s", "type": "echo", "payload": {"n": 1}}),
        (
            b"acme",
            {"id": "mine", "tenant": "acme", "session": "s", "type": "echo", "payload": {}, "server": 1},
        ),
    ]
    code, _, errors = run("send", "acme", "s", "echo", "--wait", "--timeout", "0.3")
    assert code == 1
    assert "is a worker running?" in errors[0]


def test_a_file_is_sent_whole_or_not_at_all(settings: Settings, run: Run, tmp_path: Path) -> None:
    ensure(connect(settings), settings)
    file = tmp_path / "tasks.jsonl"
    task = {"tenant": "acme", "session": "s", "type": "echo", "payload": {}}
    lines = [json.dumps({**task, "id": f"t{number}"}) for number in range(500)]
    file.write_text("\n".join([*lines, "", '{"tenant": 7}']))
    code, printed, errors = run("send", "--file", str(file))
    assert (code, printed) == (2, [])
    assert "line 502" in errors[0]
    assert tasks_in(settings) == []
    file.write_text("\n".join(lines) + "\n")
    code, printed, _ = run("send", "--file", str(file))
    assert (code, [one["id"] for one in printed]) == (0, [f"t{number}" for number in range(500)])
    assert run("send", "--file", str(file), as_json=False)[1] == ["500 tasks sent"]


@pytest.fixture
def letters(settings: Settings) -> Settings:
    ensure(connect(settings), settings)
    source = {"source-topic": "x.tasks", "source-partition": "1", "source-offset": "7"}
    write(
        settings,
        Names(settings.namespace).dead_letters,
        (b"acme", b'{"broken"', {"error": "NotATask", "message": "the value is not JSON", **source}),
        (b"acme", b"\xff\x00", {"error": "NotATask", "message": "the value is not UTF-8", **source}),
        (None, None, {"error": "NotATask", "message": "the value is null", **source}),
        ("zoë".encode(), b"{}", {"error": "TaskTimeout", "message": "30 s are over", **source}),
    )
    return settings


@pytest.mark.usefixtures("letters")
def test_dead_letters_are_listed(run: Run) -> None:
    code, listed, _ = run("dead-letters", "list")
    assert code == 0
    assert [one["offset"] for one in listed] == [0, 1, 2, 3]
    assert listed[0]["source"] == {"topic": "x.tasks", "partition": 1, "offset": 7}
    assert (listed[0]["value"], listed[1]["value_base64"], listed[2]["value"]) == ('{"broken"', "/wA=", None)
    assert [one["key"] for one in run("dead-letters", "list", "--error", "TaskTimeout")[1]] == ["zoë"]
    assert run("dead-letters", "list", "--since", "2999-01-01T00:00:00")[1] == []
    assert len(run("dead-letters", "list", "--since", "1h")[1]) == 4
    assert "TaskTimeout" in "\n".join(run("dead-letters", "list", as_json=False)[1])


def test_dead_letters_are_sent_once_more_byte_by_byte(letters: Settings, run: Run) -> None:
    assert run("dead-letters", "replay")[0] == 2
    assert run("dead-letters", "replay", "--error", "TaskTimeout")[1] == [{"replayed": 1}]
    assert tasks_in(letters) == [("zoë".encode(), b"{}")]
    assert run("dead-letters", "replay", "--offset", "1", "--offset", "2")[:2] == (0, [{"replayed": 2}])
    found = tasks_in(letters)
    assert sorted(found, key=str) == sorted([("zoë".encode(), b"{}"), (b"acme", b"\xff\x00"), (None, None)], key=str)
    code, printed, errors = run("dead-letters", "replay", "--offset", "99")
    assert (code, printed) == (1, [{"replayed": 0}])
    assert "offset 99" in errors[0]
    assert run("dead-letters", "replay", "--all")[1] == [{"replayed": 4}]


def test_events_are_printed_to_their_end(settings: Settings, run: Run) -> None:
    ensure(connect(settings), settings)
    assert run("events")[:2] == (0, [])
    event = {
        "event": "worker-lost",
        "at": datetime.now(UTC).isoformat(),
        "id": None,
        "final": False,
        "worker": "w1",
    }
    write(settings, Names(settings.namespace).events, (b"w1", orjson.dumps(event), {}), (b"w1", b"no event", {}))
    assert run("events")[:2] == (0, [event])
    [line] = run("events", as_json=False)[1]
    assert "worker-lost" in line
    assert "worker=w1" in line


def test_the_doctor_finds_a_good_cluster_good(settings: Settings, run: Run) -> None:
    code, [report], _ = run("doctor")
    assert code == 1
    assert [check["message"] for check in report["checks"] if not check["ok"]] == [
        f"the namespace {settings.namespace} has no topics: run `holdfast topics create`"
    ]
    ensure(connect(settings), settings)
    code, [report], _ = run("doctor")
    assert [check for check in report["checks"] if not check["ok"]] == []
    assert (code, report["ok"]) == (0, True)
