"""Spans of tasks, by what passes through units of work."""

import asyncio
import json
from collections.abc import Sequence
from types import SimpleNamespace
from typing import Any, cast

import pytest
from opentelemetry.sdk.trace import ReadableSpan, TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.trace import format_span_id, format_trace_id

from agents.router import ORIGIN_OFFSET, ORIGIN_PARTITION
from app.engine.fetch import Batch
from app.engine.flow import Flow
from app.engine.places import Resident
from app.engine.unit_of_work import Unit
from app.engine.wire import Headers
from app.errors import ConfigurationError
from app.observe import traces
from app.observe.traces import HEADER
from app.settings import Settings
from app.topics import Names
from app.worker.tracing import KEPT_MAX, ROOM_BYTES, Tracing

NAMES = Names("ns")
LIMIT = 10_000
THEIRS = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"
Pairs = Sequence[tuple[str, bytes]]


class Message:
    """A fetched record."""

    def __init__(self, offset: int, key: bytes, headers: Pairs | None = None) -> None:
        self._offset, self._key, self._headers = offset, key, headers

    def offset(self) -> int:
        return self._offset

    def key(self) -> bytes:
        return self._key

    def headers(self) -> Pairs | None:
        return self._headers


class Bench:
    """A flow that hands batches over by doing nothing, and whose unit is sealed by the test."""

    def __init__(self) -> None:
        self.exported = InMemorySpanExporter()
        provider = TracerProvider()
        provider.add_span_processor(SimpleSpanProcessor(self.exported))
        self.unit = Unit(1.0)
        self.tracing = Tracing(provider.get_tracer("test"), NAMES, LIMIT)
        self.flow: Any = SimpleNamespace(deliver=self._deliver)
        self.tracing.follow(cast("Flow", self.flow))

    async def _deliver(self, batch: Batch, resident: Resident, until: float) -> None:
        batch.start = len(batch.records)

    def take(self, topic: str, *records: Message) -> None:
        batch = Batch(topic, 0, cast("Any", list(records)), 99)
        asyncio.run(self.flow.deliver(batch, cast("Resident", None), 0.0))

    def seal(self, *, committed: bool = True) -> Unit:
        unit, self.unit = self.unit, Unit(1.0)
        self.flow.sealing(unit)
        self.flow.settled(committed)
        return unit

    @property
    def spans(self) -> list[ReadableSpan]:
        return list(self.exported.get_finished_spans())


@pytest.fixture
def bench() -> Bench:
    return Bench()


def result(offset: int, *, error: str | None = None, pad: str = "") -> tuple[bytes, bytes]:
    """A record of `results`, as a unit holds it."""
    body = {
        "task": "t", "tenant": "acme", "session": "s", "type": "echo", "status": "failed" if error else "done",
        "result": pad, "error": {"type": error, "message": ""} if error else None, "server": 1, "worker": "w1",
        "sequence": 1, "attempts": 1, "source": {"partition": 0, "offset": offset},
    }  # fmt: skip
    return b"acme", json.dumps(body).encode()


def carried(headers: Headers) -> str:
    return str(dict(headers)[HEADER].decode())


def name_of(span: ReadableSpan) -> str:
    """The header that a span gives to what follows it, without the flags."""
    context = span.get_span_context()
    assert context is not None
    return f"00-{format_trace_id(context.trace_id)}-{format_span_id(context.span_id)}"


def test_a_route_follows_what_the_task_came_with(bench: Bench) -> None:
    bench.take(NAMES.tasks, Message(7, b"acme", [(HEADER, THEIRS.encode())]))
    bench.unit.output(NAMES.work, 3).append((b"0:7", b"{}"))
    unit = bench.seal()
    [span] = bench.spans
    assert span.name == "route"
    assert span.parent is not None
    assert format_span_id(span.parent.span_id) == THEIRS.split("-")[2]
    assert carried(unit.headers[NAMES.work, 3][0]).startswith(name_of(span))


def test_only_what_was_routed_just_now_has_a_header(bench: Bench) -> None:
    bench.take(NAMES.tasks, Message(7, b"acme"))
    keys = [b"!marker", b"0:7", b"0:5"]
    bench.unit.output(NAMES.work, 3).extend((key, b"{}") for key in keys)
    assert list(bench.seal().headers[NAMES.work, 3]) == [keys.index(b"0:7")]


def test_what_has_no_trace_stays_as_it_is(bench: Bench) -> None:
    bench.take(NAMES.work, Message(1, b"0:7"))
    bench.unit.output(NAMES.results, 0).append(result(7))
    assert not bench.seal().headers.get((NAMES.results, 0))
    assert bench.spans == []


def test_a_performance_says_how_it_ended(bench: Bench) -> None:
    for offset, error in ((7, None), (8, "ValueError")):
        bench.take(NAMES.work, Message(offset, b"0:%d" % offset, [(HEADER, THEIRS.encode())]))
        bench.unit.output(NAMES.results, 0).append(result(offset, error=error))
    bench.seal()
    done, failed = bench.spans
    assert done.name == "perform echo"
    assert done.status.is_unset
    assert not failed.status.is_ok
    assert (failed.attributes or {})["error.type"] == "ValueError"


def test_an_aborted_unit_leaves_no_span(bench: Bench) -> None:
    for committed in (False, True):
        bench.take(NAMES.tasks, Message(7, b"acme", [(HEADER, THEIRS.encode())]))
        bench.unit.output(NAMES.work, 3).append((b"0:7", b"{}"))
        bench.seal(committed=committed)
        assert len(bench.spans) == committed


def test_a_parked_task_takes_its_trace_along(bench: Bench) -> None:
    bench.take(NAMES.tasks, Message(7, b"acme", [(HEADER, THEIRS.encode())]))
    headers = [("parked", b"acme")]
    bench.unit.send(NAMES.delay, b"{}", b"0:7", partition=0, headers=headers)
    [parked] = bench.seal().others
    assert [name for name, _ in parked["headers"]] == ["parked", HEADER]
    bench.unit.output(NAMES.work, 3).append((b"0:7", b"{}"))
    bench.seal()
    park, route = bench.spans
    assert (park.name, route.name) == ("park", "route")
    assert route.parent is not None
    assert carried(parked["headers"]).startswith(name_of(park))
    assert format_span_id(route.parent.span_id) == name_of(park).split("-")[2]


def test_a_task_on_the_wrong_partition_takes_its_trace_along(bench: Bench) -> None:
    bench.take(NAMES.tasks, Message(7, b"acme", [(HEADER, THEIRS.encode())]))
    origin = [(ORIGIN_PARTITION, b"0"), (ORIGIN_OFFSET, b"7")]
    bench.unit.send(NAMES.tasks, b"{}", b"acme", partition=1, headers=origin)
    [copy] = bench.seal().others
    bench.take(NAMES.tasks, Message(9, b"acme", copy["headers"]))
    bench.unit.output(NAMES.work, 3).append((b"0:7", b"{}"))
    bench.seal()
    sent_on, route = bench.spans
    assert sent_on.name == "send on"
    assert route.parent is not None
    assert format_span_id(route.parent.span_id) == name_of(sent_on).split("-")[2]


def test_a_record_at_the_limit_goes_without_a_header(bench: Bench) -> None:
    bench.take(NAMES.work, Message(1, b"0:7", [(HEADER, THEIRS.encode())]))
    bench.unit.output(NAMES.results, 0).append(result(7, pad="x" * (LIMIT - ROOM_BYTES)))
    assert not bench.seal().headers.get((NAMES.results, 0))


def test_only_so_many_are_remembered(bench: Bench) -> None:
    for start in range(0, KEPT_MAX + 1_000, 1_000):
        bench.take(NAMES.tasks, *(Message(offset, b"acme") for offset in range(start, start + 1_000)))
    bench.unit.output(NAMES.work, 0).extend((b"0:%d" % offset, b"{}") for offset in (0, KEPT_MAX))
    assert list(bench.seal().headers[NAMES.work, 0]) == [1]


def test_a_header_that_is_none_begins_a_trace(bench: Bench) -> None:
    bench.take(NAMES.tasks, Message(7, b"acme", [(HEADER, b"nonsense \xff")]))
    bench.unit.output(NAMES.work, 0).append((b"0:7", b"{}"))
    bench.seal()
    assert bench.spans[0].parent is None


def test_without_the_setting_there_is_no_tracer() -> None:
    assert traces.tracer(Settings(), "holdfast", "w1") is None
    assert traces.inject(Settings()) is None


def test_without_its_packages_the_setting_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    def missing(name: str) -> Any:
        raise ImportError(f"No module named {name!r}")

    monkeypatch.setattr("importlib.import_module", missing)
    with pytest.raises(ConfigurationError, match=r"install holdfast\[traces\]"):
        traces.tracer(Settings(traces="http://collector:4318"), "holdfast", "w1")
