"""A collector of OpenTelemetry traces that keeps what it is sent."""

import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from types import TracebackType
from typing import Any, NamedTuple, Self

from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest


class Span(NamedTuple):
    """A span as it was exported; ids are hexadecimal, ``parent`` is empty at the begin of a trace."""

    name: str
    trace: str
    id: str
    parent: str
    worker: str
    attributes: dict[str, Any]
    failed: bool


def _value(value: Any) -> Any:
    return getattr(value, value.WhichOneof("value"))


class Collector:
    """Listens on a free port of this machine."""

    def __init__(self) -> None:
        self._spans: list[Span] = []
        outer = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                body = self.rfile.read(int(self.headers["Content-Length"]))
                outer._spans += outer._read(body)
                self.send_response(200)
                self.end_headers()

            def log_message(self, *_: object) -> None:
                """Say nothing."""

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._thread = threading.Thread(target=self._server.serve_forever, daemon=True)

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self._server.server_port}"

    @property
    def spans(self) -> list[Span]:
        """What has come so far."""
        return list(self._spans)

    @staticmethod
    def _read(body: bytes) -> list[Span]:
        request = ExportTraceServiceRequest()
        request.ParseFromString(body)
        return [
            Span(
                name=span.name,
                trace=span.trace_id.hex(),
                id=span.span_id.hex(),
                parent=span.parent_span_id.hex(),
                worker=next(_value(one.value) for one in by.resource.attributes if one.key == "service.instance.id"),
                attributes={one.key: _value(one.value) for one in span.attributes},
                failed=span.status.code == 2,
            )
            for by in request.resource_spans
            for scope in by.scope_spans
            for span in scope.spans
        ]

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()
