"""What a canary tells Prometheus, at an HTTP address of its own."""

from collections.abc import Callable, Iterator
from types import TracebackType
from typing import Final, Self

from prometheus_client import CollectorRegistry, Histogram, start_http_server
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from app.errors import ConfigurationError
from app.observe.canary import Tally

COUNTERS: Final = {
    "sent": "tasks that were sent",
    "performed": "tasks that were performed",
    "failed": "tasks that were answered as failed",
    "lost": "tasks that were confirmed by the brokers and have no result or no effect",
    "doubled": "tasks that have two results or two effects",
    "out_of_order": "tasks that were answered after a later one of their session",
    "late": "tasks whose result took longer than --late",
    "takeovers": "results by another worker than the one before, in the same session",
}
GAUGES: Final = {
    "overdue": "tasks that are late and have no result yet",
    "pause_seconds": "the longest time for which a session had a task and no result, in this period and the last",
    "takeover_seconds": "how long the session waited at the last takeover",
}
_BUCKETS: Final = (0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0, 2.0, 5.0, 10.0, 30.0, 60.0)


class Metrics(Collector):
    """The numbers of one canary, as they are when they are asked for.

    Args:
        tally: the counters.
        gauges: returns the gauges by name.
    """

    def __init__(self, tally: Tally, gauges: Callable[[], dict[str, float]]) -> None:
        self._tally = tally
        self._gauges = gauges
        self._registry = CollectorRegistry()
        self._registry.register(self)
        self._latency = Histogram(
            "holdfast_canary_latency_seconds",
            "from sending a task to its result",
            buckets=_BUCKETS,
            registry=self._registry,
        )
        self._stop: Callable[[], None] = lambda: None

    def observe(self, seconds: float) -> None:
        """Count a result."""
        self._latency.observe(seconds)

    def collect(self) -> Iterator[Metric]:
        """Called by the registry whenever somebody asks."""
        for name, about in COUNTERS.items():
            yield CounterMetricFamily(f"holdfast_canary_{name}", about, value=getattr(self._tally, name))
        found = self._gauges()
        for name, about in GAUGES.items():
            yield GaugeMetricFamily(f"holdfast_canary_{name}", about, value=found[name])

    def serve(self, host: str, port: int) -> str:
        """Listen, and return the URL; 0 takes a free port.

        Raises:
            ConfigurationError: the address cannot be listened on.
        """
        try:
            server, thread = start_http_server(port, host, registry=self._registry)
        except (OSError, OverflowError) as error:
            raise ConfigurationError(f"cannot listen on {host}:{port} ({error}): choose another --port") from error

        def stop() -> None:
            server.shutdown()
            server.server_close()
            thread.join()

        self._stop = stop
        return f"http://{host}:{server.server_port}/metrics"

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._stop()
