"""The bounds of a unit, and a commit thread whose broker does not answer."""

import socket
import threading
import time
from collections.abc import Iterator

import pytest
from aiokafka.record.default_records import DefaultRecordBatch

from app.engine.unit_of_work import STOP_S, UNIT_BYTES, UNIT_RECORDS, Committer, Unit
from app.engine.wire import Identity

SLACK_S = 2.0
NOBODY = {"bootstrap.servers": "127.0.0.1:1", "log_level": 0}
MEGABYTE = b"x" * 2**20


def test_a_unit_is_full_of_records() -> None:
    unit = Unit(1.0)
    for _ in range(UNIT_RECORDS - 1):
        unit.send("topic", None, b"key")
    assert not unit.full
    unit.send("topic", None, b"key")
    assert unit.full


def test_a_unit_is_full_of_bytes() -> None:
    unit = Unit(1.0)
    for _ in range(UNIT_BYTES // len(MEGABYTE) - 1):
        unit.send("topic", MEGABYTE)
    assert not unit.full
    unit.send("topic", MEGABYTE)
    assert unit.full


def test_who_appends_directly_adds_to_the_size() -> None:
    unit = Unit(1.0)
    unit.output("topic", 0).append((b"key", MEGABYTE))
    unit.size += len(MEGABYTE)
    assert not unit.full
    unit.size = UNIT_BYTES
    assert unit.full


def test_what_is_packed_stands_in_front_of_what_comes_later() -> None:
    unit = Unit(1.0)
    output = unit.output("work", 0)
    output += [(b"1", b"a"), (b"2", None)]
    unit.output("work", 1).append((b"3", b"c"))
    unit.output("events", 0).extend([(b"e", b"event")] * 2)
    unit.pack(2, leave={"events"})
    assert output == []
    assert {where: batches.count for where, batches in unit.packed.items()} == {("work", 0): 2}
    output.append((b"4", b"d"))
    unit.headers["work", 0] = {0: [("trace", b"t")]}
    assert [record["value"] for record in unit.of({"work", "events"})] == [b"d", b"c", b"event", b"event"]
    unit.pack()
    [encoded] = unit.packed["work", 0].build(Identity(1, 1), 0)
    assert [(found.key, found.value, found.headers) for found in DefaultRecordBatch(encoded)] == [
        (b"1", b"a", []),
        (b"2", None, []),
        (b"4", b"d", [("trace", b"t")]),
    ]
    assert (unit.packed["work", 1].count, unit.packed["events", 0].count) == (1, 2)


@pytest.fixture
def failures() -> list[BaseException]:
    return []


@pytest.fixture
def committer(failures: list[BaseException]) -> Iterator[Committer]:
    """Its broker takes connections, and never answers."""
    with socket.create_server(("127.0.0.1", 0)) as silent:
        client = {"bootstrap_servers": [f"127.0.0.1:{silent.getsockname()[1]}"]}
        made = Committer(NOBODY, client=client, transactional_id="t", group="g", failed=failures.append)
        yield made
        made.stop()


def test_a_stop_waits_for_no_broker(committer: Committer, failures: list[BaseException]) -> None:
    started = committer.start()
    begun = time.monotonic()
    committer.stop()
    assert time.monotonic() - begun < STOP_S + SLACK_S
    assert not started.done()
    assert failures == []
    assert all(thread.daemon for thread in threading.enumerate() if thread.name == "commit")


def test_a_stop_ends_the_wait_of_a_join(committer: Committer) -> None:
    with committer._lock:
        join = threading.Thread(target=committer.block, args=(1,))
        join.start()
        committer.stop()
        join.join(SLACK_S)
        assert not join.is_alive()
