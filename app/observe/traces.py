"""OpenTelemetry, if it is wanted and installed: where spans go, and how a trace travels in a record's headers.

Nothing of OpenTelemetry is loaded unless HOLDFAST_TRACES is set. What is sampled is the SDK's business
(``OTEL_TRACES_SAMPLER``); the header is W3C's ``traceparent``.
"""

import importlib
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from types import ModuleType
from typing import Any, Final

from app.errors import ConfigurationError
from app.settings import Settings

HEADER: Final = "traceparent"
Headers = Sequence[tuple[str, Any]]


def tracer(settings: Settings, service: str, instance: str) -> Any:
    """Return a tracer that exports to the collector of the settings; None when traces are off.

    Raises:
        ConfigurationError: OpenTelemetry is not installed.
    """
    if not settings.traces:
        return None
    sdk, resources = _load("opentelemetry.sdk.trace"), _load("opentelemetry.sdk.resources")
    export = _load("opentelemetry.sdk.trace.export")
    otlp = _load("opentelemetry.exporter.otlp.proto.http.trace_exporter")
    named = {
        "service.name": service,
        "service.instance.id": instance,
        "holdfast.namespace": settings.namespace,
    }
    provider = sdk.TracerProvider(resource=resources.Resource.create(named))
    exporter = otlp.OTLPSpanExporter(endpoint=f"{settings.traces}/v1/traces")
    provider.add_span_processor(export.BatchSpanProcessor(exporter, schedule_delay_millis=1000))
    return provider.get_tracer("holdfast")


def inject(settings: Settings) -> list[tuple[str, str | bytes | None]] | None:
    """The headers that carry the trace which the caller is in; None if there is none, or traces are off."""
    if not settings.traces:
        return None
    carrier: dict[str, str] = {}
    _propagator().inject(carrier)
    return [(HEADER, carrier[HEADER].encode())] if HEADER in carrier else None


@contextmanager
def joined(settings: Settings, headers: Mapping[str, str]) -> Iterator[None]:
    """Within it the caller is in the trace that a request's headers carry, if any and if traces are on."""
    context = context_in(headers) if settings.traces else None
    if context is None:
        yield
        return
    api = _load("opentelemetry.context")
    token = api.attach(context)
    try:
        yield
    finally:
        api.detach(token)


def context_in(headers: Headers | Mapping[str, str] | None) -> Any:
    """The context that headers of a record or a request carry; None if they carry none."""
    pairs = headers.items() if isinstance(headers, Mapping) else headers or ()
    found = next((value for name, value in pairs if name.lower() == HEADER), None)
    if found is None:
        return None
    text = found.decode(errors="replace") if isinstance(found, bytes) else str(found)
    return _propagator().extract({HEADER: text})


def header_of(span: Any) -> tuple[str, bytes]:
    """The header that makes what follows a child of ``span``."""
    carrier: dict[str, str] = {}
    _propagator().inject(carrier, context=_load("opentelemetry.trace").set_span_in_context(span))
    return HEADER, carrier[HEADER].encode()


_KNOWN: Final[dict[str, Any]] = {}


def _propagator() -> Any:
    found = _KNOWN.get("propagator")
    if found is None:
        module = _load("opentelemetry.trace.propagation.tracecontext")
        found = _KNOWN["propagator"] = module.TraceContextTextMapPropagator()
    return found


def _load(name: str) -> ModuleType:
    try:
        return importlib.import_module(name)
    except ImportError as error:
        raise ConfigurationError(
            f"HOLDFAST_TRACES needs OpenTelemetry ({error}): install holdfast[traces], or leave it empty"
        ) from error
