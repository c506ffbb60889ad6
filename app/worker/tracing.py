"""Traces of tasks through a worker: ``route`` at the router, ``perform`` at the server, carried on by the result.

It watches the flow from outside: which records an agent was handed, and which records the open unit holds when it is
sealed. A span is exported when its unit is committed; one of an aborted unit is dropped, and made again with the
records. A task that waits as a row does not take its trace to another worker.
"""

import time
from collections import OrderedDict
from collections.abc import Callable, Sequence
from typing import Any, Final, NamedTuple

import orjson

from agents.router import ORIGIN_OFFSET, ORIGIN_PARTITION
from app.engine.fetch import Batch
from app.engine.flow import Deliver, Flow
from app.engine.offsets import Partition
from app.engine.places import Resident
from app.engine.unit_of_work import Unit
from app.engine.wire import Headers, Pair
from app.observe import traces
from app.observe.traces import HEADER, context_in, header_of
from app.settings import Settings
from app.topics import Names

KEPT_MAX: Final = 100_000
"""Tasks under way whose trace is remembered; of older ones it ends here."""

ROOM_BYTES: Final = 1_024
"""A record so near to the limit goes on without its header."""


def follow(flow: Flow, settings: Settings, worker: str) -> None:
    """Trace what passes, if the settings ask for it.

    Raises:
        ConfigurationError: OpenTelemetry is not installed.
    """
    tracer = traces.tracer(settings, "holdfast", worker)
    if tracer is not None:
        Tracing(tracer, Names(settings.namespace), settings.max_record_bytes).follow(flow)


SpanOf = Callable[[bytes | None, bytes | None, int], Any]
"""Begins the span of a record (key, value) of a partition, or None."""


class _Seen(NamedTuple):
    """A record that an agent has taken: the trace it came with (None: it begins one), and when (Unix time, ns)."""

    context: Any
    at_ns: int


class Tracing:
    """The traces of one worker.

    Args:
        tracer: of OpenTelemetry.
        names: of the topics.
        limit: of a record, in bytes.
    """

    def __init__(self, tracer: Any, names: Names, limit: int) -> None:
        self._tracer = tracer
        self._names = names
        self._limit = limit - ROOM_BYTES
        self._routed: OrderedDict[bytes, _Seen] = OrderedDict()
        self._arrived: OrderedDict[tuple[int, int], _Seen] = OrderedDict()
        self._spans: list[Any] = []
        self._sealed: list[Any] = []

    def follow(self, flow: Flow) -> None:
        """Watch what passes."""
        flow.deliver = self._watching(flow.deliver)
        flow.sealing = self.sealing
        flow.settled = self.settled

    def _watching(self, deliver: Deliver) -> Deliver:
        takes: dict[str, Callable[[Batch, int, int], None]] = {
            self._names.tasks: self._take_tasks,
            self._names.work: self._take_work,
        }

        async def watch(batch: Batch, resident: Resident, until: float) -> None:
            before, at_ns = batch.start, time.time_ns()
            await deliver(batch, resident, until)
            take = takes.get(batch.topic)
            if take is not None:
                take(batch, before, at_ns)

        return watch

    # -- what came ------------------------------------------------------------------------------------------------

    def _take_tasks(self, batch: Batch, start: int, at_ns: int) -> None:
        for record in batch.records[start : batch.start]:
            headers = record.headers()
            given = dict(headers or ())
            origin = b"%d:%d" % (batch.partition, record.offset())
            if ORIGIN_PARTITION in given and ORIGIN_OFFSET in given:
                origin = given[ORIGIN_PARTITION] + b":" + given[ORIGIN_OFFSET]
            self._routed[origin] = _Seen(context_in(headers), at_ns)
        _bound(self._routed)

    def _take_work(self, batch: Batch, start: int, at_ns: int) -> None:
        for record in batch.records[start : batch.start]:
            context = context_in(record.headers())
            key = record.key()
            if context is not None and key is not None:
                partition, _, offset = key.partition(b":")
                self._arrived[int(partition), int(offset)] = _Seen(context, at_ns)
        _bound(self._arrived)

    # -- what leaves ----------------------------------------------------------------------------------------------

    def sealing(self, unit: Unit) -> None:
        """Make the spans of what the unit holds, and put their headers on its records."""
        for where, records in unit.records.items() if self._routed or self._arrived else ():
            if where[0] == self._names.work:
                unit.headers[where] = self._mark(where, records, self._route)
            elif where[0] == self._names.results and self._arrived:
                unit.headers[where] = self._mark(where, records, self._perform)
        for record in unit.others:
            if record["topic"] == self._names.delay and record["key"] in self._routed:
                self._park(record)
            elif record["topic"] == self._names.tasks:
                self._copy(record)
        self._sealed, self._spans = self._spans, []

    def settled(self, committed: bool) -> None:
        """The unit that was sealed last is in the log, or has not happened."""
        for span, at_ns in self._sealed if committed else ():
            span.end(at_ns)
        self._sealed = []

    def _mark(self, where: Partition, records: Sequence[Pair], span_of: SpanOf) -> dict[int, Headers]:
        """The headers of those records that have a span, by their index."""
        found = {}
        for index, (key, value) in enumerate(records):
            if len(value or b"") <= self._limit:
                span = span_of(key, value, where[1])
                if span is not None:
                    found[index] = [header_of(span)]
        return found

    def _begin(self, name: str, seen: _Seen, attributes: dict[str, Any]) -> Any:
        span = self._tracer.start_span(name, context=seen.context, start_time=seen.at_ns, attributes=attributes)
        self._spans.append((span, time.time_ns()))
        return span

    def _route(self, key: bytes | None, value: bytes | None, server: int) -> Any:
        seen = self._routed.pop(key, None) if key is not None else None
        if key is None or seen is None:
            return None
        return self._begin("route", seen, {"holdfast.origin": key.decode(), "holdfast.server": server})

    def _perform(self, key: bytes | None, value: bytes | None, partition: int) -> Any:
        result = orjson.loads(value or b"")
        seen = self._arrived.pop((result["source"]["partition"], result["source"]["offset"]), None)
        if seen is None:
            return None
        fields = ("tenant", "session", "task", "server", "worker", "sequence", "attempts", "status")
        span = self._begin(f"perform {result['type']}", seen, {f"holdfast.{name}": result[name] for name in fields})
        if result["error"] is not None:
            span.set_attribute("error.type", result["error"]["type"])
            span.set_status(_error_status())
        return span

    def _park(self, record: dict[str, Any]) -> None:
        """The task waits in `delay`; when it is released it is routed as a child of this span."""
        seen = self._routed[record["key"]]
        span = self._begin("park", seen, {"holdfast.origin": record["key"].decode()})
        record["headers"] = [*record["headers"], header_of(span)]
        self._routed[record["key"]] = _Seen(context_in(record["headers"]), time.time_ns())

    def _copy(self, record: dict[str, Any]) -> None:
        """A task that is sent on to the right router takes its trace along."""
        given = dict(record.get("headers") or ())
        origin = given.get(ORIGIN_PARTITION, b"") + b":" + given.get(ORIGIN_OFFSET, b"")
        seen = self._routed.pop(origin, None)
        if seen is not None and len(record["value"]) <= self._limit and HEADER not in given:
            span = self._begin("send on", seen, {"holdfast.origin": origin.decode()})
            record["headers"] = [*record["headers"], header_of(span)]


def _bound(kept: OrderedDict[Any, Any]) -> None:
    while len(kept) > KEPT_MAX:
        kept.popitem(last=False)


def _error_status() -> Any:
    from opentelemetry.trace import StatusCode  # only who traces pays for loading it

    return StatusCode.ERROR
