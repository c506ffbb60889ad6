"""The owner of connections, and devices that speak to it by records: real rows and files, no Kafka."""

import base64
import hashlib
import json
import os
import time
from collections.abc import Iterator
from concurrent.futures import Future
from pathlib import Path
from typing import Any

import pytest

from agents.transfer_words import parse_record
from app.engine.janitor import EmitLimit
from app.errors import RecordError
from app.protocol.conveyance import Completing, Conveying, Done, Failed, Floating, Idle, Lock, Progress
from app.settings import Settings
from app.storage import open_storage
from app.storage.layout import at_server
from tests.support.cluster import wait_for
from tests.support.transfers import NAMES, OwnerBench
from tests.unit.agents.workbench import Message, batch

DATA = os.urandom(10_000)


@pytest.fixture
def bench(tmp_path: Path) -> Iterator[OwnerBench]:
    settings = Settings(storage=f"file://{tmp_path}", routers=1, lease=5, upload_expires=600)
    made = OwnerBench(settings, open_storage(settings.storage))
    yield made
    made.close()


def send(bench: OwnerBench, connection: str, *requests: dict[str, Any]) -> None:
    """Records of a device, read in one batch and committed together."""
    messages = [Message(n, json.dumps(request).encode(), connection.encode()) for n, request in enumerate(requests)]
    bench.run(lambda: bench.owner.perform(batch(NAMES.transfers, messages), time.monotonic() + 60))


def begin(size: int | None = len(DATA), name: str = "m1", **more: Any) -> dict[str, Any]:
    return {"op": "begin", "request": "b", "name": name, "size": size, **more}


def data(start: int, stop: int, request: str = "d") -> dict[str, Any]:
    return {"op": "data", "request": request, "offset": start, "data": base64.b64encode(DATA[start:stop]).decode()}


def replies(bench: OwnerBench, connection: str, count: int) -> list[dict[str, Any]]:
    return wait_for(lambda: (r := bench.replies(connection)) and len(r) >= count and r, 10, f"{count} replies") or []


def file_of(bench: OwnerBench, connection: str, tmp_path: Path) -> bytes:
    [event] = [e for e in bench.events(connection) if e["event"] == "transfer-completed"]
    return Path(event["url"].removeprefix("file://")).read_bytes()


def test_a_device_pushes(bench: OwnerBench, tmp_path: Path) -> None:
    send(bench, "dev", begin())
    send(bench, "dev", data(0, 4000, "d1"), data(4000, 7000, "d2"))
    said = replies(bench, "dev", 3)
    assert [(r["request"], r["reply"], r["offset"]) for r in said] == [
        ("b", "durable", 0),
        ("d1", "durable", 7000),
        ("d2", "durable", 7000),
    ]
    assert isinstance(bench.state("dev"), Conveying)
    send(bench, "dev", data(7000, len(DATA), "d3"))
    said = replies(bench, "dev", 5)[3:]
    assert [(r["request"], r["reply"], r["offset"]) for r in said] == [
        ("d3", "durable", len(DATA)),
        ("d3", "ack", len(DATA)),
    ]
    assert isinstance(bench.state("dev"), Done)
    assert file_of(bench, "dev", tmp_path) == DATA


def test_duplicate_and_reordered_records(bench: OwnerBench, tmp_path: Path) -> None:
    send(bench, "dev", begin(), begin())
    send(bench, "dev", data(0, 4000), data(0, 4000), data(5000, 6000, "early"), data(2000, 5000), data(100, 200))
    said = replies(bench, "dev", 7)
    assert {r["offset"] for r in said[2:]} == {5000}
    assert {r["request"]: r["reply"] for r in said[2:]}["early"] == "durable"
    send(bench, "dev", data(6000, 7000, "gap"), {"op": "show", "request": "s"})
    gap = next(r for r in replies(bench, "dev", 9) if r["request"] == "gap")
    assert (gap["reply"], gap["reason"], gap["offset"]) == ("nak", "mismatch", 5000)
    send(bench, "dev", data(5000, len(DATA)), begin())
    replies(bench, "dev", 12)
    assert file_of(bench, "dev", tmp_path) == DATA
    send(bench, "dev", begin())
    last = replies(bench, "dev", 13)[-1]
    assert last["reply"] == "ack", "what is whole is not begun again"
    assert len(bench.events("dev")) == 1


def test_the_next_message_of_a_device(bench: OwnerBench, tmp_path: Path) -> None:
    for name in ("m1", "m2"):
        send(bench, "dev", begin(name=name), data(0, len(DATA)))
        wait_for(lambda n=name: isinstance(s := bench.state("dev"), Done) and s.message.name == n, 10, name)  # type: ignore[misc]
    assert [event["message"] for event in bench.events("dev")] == ["m1", "m2"]
    assert len({event["url"] for event in bench.events("dev")}) == 2


def test_a_new_host_goes_on(bench: OwnerBench, tmp_path: Path) -> None:
    send(bench, "dev", begin())
    send(bench, "dev", data(0, 4000))
    replies(bench, "dev", 2)
    # The lease of the host that died is not over.
    bench.context.worker = "w2"
    bench.reopen()
    send(bench, "dev", data(4000, len(DATA)))
    wait_for(lambda: isinstance(bench.state("dev"), Done), 10, "the whole")
    assert file_of(bench, "dev", tmp_path) == DATA


def test_what_a_worker_services_is_not_a_devices(bench: OwnerBench) -> None:
    send(bench, "dev", begin())
    bench.run(lambda: print(bench.owner.step("dev", Lock(int(time.time() * 1000), "w9", "r"))))
    send(bench, "dev", data(0, 4000))
    last = replies(bench, "dev", 2)[-1]
    assert (last["reason"], last["holder"]) == ("locked", "w9")


def test_a_device_that_is_silent_is_let_go(bench: OwnerBench) -> None:
    send(bench, "dev", begin())
    send(bench, "dev", data(0, 4000))
    replies(bench, "dev", 2)
    state = bench.state("dev")
    assert isinstance(state, Conveying)
    bench.owner.devices._sessions["dev"].used -= 100
    bench.tick(6)
    assert isinstance(bench.state("dev"), Floating)


def test_a_device_pulls_and_acknowledges_once(bench: OwnerBench) -> None:
    send(bench, "dev", begin())
    send(bench, "dev", {"op": "read", "request": "r0", "offset": 0, "length": 10})
    assert replies(bench, "dev", 2)[-1]["reason"] == "busy"
    send(bench, "dev", data(0, len(DATA)))
    wait_for(lambda: isinstance(bench.state("dev"), Done), 10, "the whole")
    come = b""
    while len(come) < len(DATA):
        before = len(bench.replies("dev"))
        send(bench, "dev", {"op": "read", "request": "r", "offset": len(come), "length": 3000})
        come += base64.b64decode(replies(bench, "dev", before + 1)[-1]["data"])
    assert come == DATA
    state = bench.state("dev")
    assert isinstance(state, Done)
    assert state.confirmed == 9000
    before = len(bench.replies("dev"))
    send(bench, "dev", {"op": "ack", "request": "wrong", "checksum": "sha256:" + "0" * 64})
    assert replies(bench, "dev", before + 1)[-1]["reason"] == "checksum"
    right = {"op": "ack", "request": "a", "checksum": f"sha256:{hashlib.sha256(DATA).hexdigest()}"}
    send(bench, "dev", right, right)
    assert [r["reply"] for r in replies(bench, "dev", before + 3)[-2:]] == ["ack", "ack"]
    assert [e["event"] for e in bench.events("dev")] == ["transfer-completed", "transfer-acknowledged"]


def test_a_small_message_becomes_a_record(bench: OwnerBench, tmp_path: Path) -> None:
    bench.topics["orders"] = EmitLimit(1_000_000, keyed=False)
    publish: dict[str, Any] = {"details": {"publish": "orders"}}
    send(bench, "dev", begin(**publish))
    send(bench, "dev", data(0, len(DATA)))
    wait_for(lambda: isinstance(bench.state("dev"), Done), 10, "the whole")
    send(bench, "dev", data(0, len(DATA)), begin(**publish))
    assert [r["value"] for r in bench.sent if r["topic"] == "orders"] == [DATA]
    [event] = bench.events("dev")
    assert (event["topic"], event["url"]) == ("orders", None)


@pytest.mark.parametrize(("topic", "size"), [("unknown", 10), ("ns.work", 10), ("orders", None), ("orders", 999_999)])
def test_what_cannot_become_a_record(bench: OwnerBench, topic: str, size: int | None) -> None:
    bench.topics["orders"] = EmitLimit(100_000, keyed=False)
    send(bench, "dev", begin(size, details={"publish": topic}))
    assert replies(bench, "dev", 1)[0]["reply"] == "nak"
    assert bench.state("dev") == Idle()


def test_what_a_dead_holder_left_complete_is_made_whole(bench: OwnerBench, tmp_path: Path) -> None:
    send(bench, "up", begin(5))
    now = int(time.time() * 1000)
    bench.run(lambda: print(bench.owner.step("up", Lock(now, "w9"))))
    state = bench.state("up")
    assert isinstance(state, Conveying)
    writer = bench.context.storage.writer(f"parts/common/x/{state.conveyance.message.number}/{state.instance}-")
    writer.write([b"whole"])
    own = writer.sync(final=True)
    bench.run(lambda: print(bench.owner.step("up", Progress(now, state.instance, own))))
    assert isinstance(bench.state("up"), Completing)
    # It dies; nobody asks for the upload again.
    bench.reopen()
    bench.tick(6)
    wait_for(lambda: isinstance(bench.state("up"), Done), 10, "the whole")
    assert file_of(bench, "up", tmp_path) == b"whole"
    writer.close()


def test_a_storage_that_does_not_compose_is_asked_again(bench: OwnerBench, tmp_path: Path) -> None:
    send(bench, "up", begin(0))
    wait_for(lambda: isinstance(bench.state("up"), Done), 10, "the whole")
    (tmp_path / "objects").rename(tmp_path / "aside")
    (tmp_path / "objects").touch()
    send(bench, "up", begin(0, "m2"))
    wait_for(
        lambda: isinstance(s := bench.state("up"), Completing) and s.instance > s.by and s.held is None, 10, "a try"
    )
    (tmp_path / "objects").unlink()
    bench.tick(12)
    wait_for(lambda: isinstance(bench.state("up"), Done), 10, "the whole")


def test_segments_that_are_gone_fail_it(bench: OwnerBench) -> None:
    lost = begin(5, joined=True, segments=[[f"objects/common/{'0' * 32}/1", 5]])
    send(bench, "up", lost)
    wait_for(lambda: isinstance(bench.state("up"), Failed), 10, "the end")
    assert [event["reason"] for event in bench.events("up")] == ["storage"]


@pytest.mark.parametrize(
    "name",
    ["../../etc/passwd", "/etc/passwd", "objects/../../x", f"@1/../parts/common/{'0' * 32}/1/1-0", "objects/x/1"],
)
def test_segments_that_are_no_names_of_the_storage_are_refused(bench: OwnerBench, name: str) -> None:
    send(bench, "up", begin(5, joined=True, segments=[[name, 5]]))
    assert replies(bench, "up", 1)[0]["reason"] == "bad-request"
    assert bench.state("up") == Idle()


def test_a_message_lies_where_its_tenant_is_at_home(bench: OwnerBench) -> None:
    bench.context.place = lambda tenant: at_server(len(tenant), 2)
    send(bench, "mine", begin(5, details={"tenant": "acme", "place": "../../x"}))
    send(bench, "nobodys", begin(5, details={"place": "../../x"}))
    for name, place in (("mine", "4.2"), ("nobodys", None)):
        state = bench.state(name)
        assert isinstance(state, Floating)
        assert state.conveyance.message.details.get("place") == place


def test_quotas_are_counted_over_a_move(bench: OwnerBench) -> None:
    bench.context.terms = type(bench.context.terms)(remote_max=2)
    remote: dict[str, Any] = {"details": {"remote": "10.0.0.1"}}
    send(bench, "a", begin(5, **remote))
    send(bench, "b", begin(5, **remote))
    bench.reopen()
    send(bench, "c", begin(5, **remote))
    assert replies(bench, "c", 1)[0]["reason"] == "remote-quota"
    send(bench, "a", {"op": "cancel", "request": "x"})
    send(bench, "c", begin(5, **remote))
    assert replies(bench, "c", 2)[1]["reply"] == "durable"


@pytest.mark.parametrize(
    ("key", "value"),
    [(None, b"{}"), (b"", b"{}"), (b"c", None), (b"c", b"[]"), (b"c", b"x"), (b"\xff", b"{}"), (b"a\0b", b"{}")],
)
def test_records_that_are_no_requests(bench: OwnerBench, key: bytes | None, value: bytes | None) -> None:
    with pytest.raises(RecordError):
        parse_record(key, value)
    messages = [Message(0, value, key)]
    bench.run(lambda: bench.owner.perform(batch(NAMES.transfers, messages), time.monotonic() + 60))
    assert bench.sent == []


@pytest.mark.parametrize(
    "request_",
    [
        {},
        {"op": "dance"},
        {"op": "lock"},
        {"op": "data", "offset": 0},
        {"op": "data", "offset": 0, "data": "!"},
        {"op": "read", "offset": "x", "length": 1},
        {"op": "begin", "size": -1},
        {"op": "begin", "size": "5"},
        {"op": "begin", "size": 5, "details": {"a": 1}},
        {"op": "progress", "instance": 1, "segments": "x"},
    ],
)
def test_requests_that_are_wrong_are_answered(bench: OwnerBench, request_: dict[str, Any]) -> None:
    send(bench, "dev", request_)
    [reply] = replies(bench, "dev", 1)
    assert (reply["reply"], reply["reason"]) == ("nak", "bad-request")
    assert bench.state("dev") == Idle()


def test_the_clock_looks_at_each_connection_once(bench: OwnerBench) -> None:
    send(bench, "dev", begin())
    now = int(time.time() * 1000)
    bench.run(lambda: print(bench.owner.step("dev", Lock(now, "w9"))))
    state = bench.state("dev")
    for later in range(100):
        bench.run(lambda at=now + later: print(bench.owner.step("dev", Progress(at, state.instance, ()))))  # type: ignore[misc]
    assert len(bench.owner._due) <= 3
    bench.tick(5.01)
    assert isinstance(bench.state("dev"), Conveying), "renewed"
    bench.tick(6)
    assert isinstance(bench.state("dev"), Floating)
    bench.tick(700)
    assert isinstance(bench.state("dev"), Failed)
    bench.tick(1400)
    assert bench.state("dev") == Idle()
    assert not bench.owner._due
    assert not bench.owner._planned


def test_who_stops_waiting_does_no_harm(bench: OwnerBench) -> None:
    gone: Future[dict[str, Any]] = Future()
    gone.cancel()
    bench.run(lambda: bench.owner.call("dev", begin(), gone))
    assert bench.state("dev") == Idle()
    waits: Future[dict[str, Any]] = Future()
    bench.run(lambda: bench.owner.call("dev", begin(), waits))
    assert not waits.cancel()
    assert waits.result(10)["reply"] == "durable"
