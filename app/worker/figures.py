"""What ``/metrics`` of a worker answers: collected when it is asked, from what engine and agents count anyway."""

import importlib.metadata
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any, Final

from prometheus_client import CollectorRegistry, ProcessCollector
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily
from prometheus_client.exposition import choose_encoder
from prometheus_client.metrics_core import Metric
from prometheus_client.registry import Collector

from agents.cells import Copied, Rehomed
from agents.exchanges import Manager
from agents.router import RouterContext
from agents.server import Server
from agents.transfers import Owner
from app.engine.engine import Engine
from app.engine.tally import Histogram, Tally
from app.observe.metrics import BY_NAME, PREFIX, Kind
from app.topics import Names
from app.worker import exchange_view, tenants
from app.worker.happenings import Happenings

STATES: Final = ("absent", "tailing", "restoring", "claiming", "running", "parted")
PHASES: Final = ("copying", "cutting", "releasing")

Samples = Mapping[Any, float]
"""Values by the values of a metric's labels, in the order of the labels."""

_ONE: Final = ()


class Figures(Collector):
    """The metrics of one worker. ``read`` may be called from any thread.

    Args:
        name: of the worker.
        namespace: of the cluster.
        engine: gives the engine, None before the start.
        view: gives readiness, health and status.
    """

    def __init__(self, name: str, namespace: str, engine: Callable[[], Engine | None], view: Any) -> None:
        self._labels = {(name, namespace, importlib.metadata.version("holdfast")): 1.0}
        self._engine = engine
        self._view = view
        self._names = Names(namespace)
        self.happenings = Happenings()
        self.routing: RouterContext | None = None
        self.rehomed: Rehomed | None = None
        self.copied = Copied()
        self._registry = CollectorRegistry(auto_describe=False)
        self._registry.register(self)
        ProcessCollector(registry=self._registry)

    def follow(self, engine: Engine, routing: RouterContext, rehomed: Rehomed, copied: Copied) -> None:
        """The engine is there: look at what it commits."""
        self.routing = routing
        self.rehomed = rehomed
        self.copied = copied
        self.happenings.follow(engine.flow.tally, self._names)

    def read(self, accept: str) -> tuple[bytes, str]:
        """The text of ``/metrics`` in the form that the header `Accept` asks for, and its content type."""
        encode, kind = choose_encoder(accept)
        return encode(self._registry), kind

    def brief(self) -> dict[str, Any]:
        """What a console draws of this worker: counts since its start, and how long ago that was."""
        engine = self._engine()
        if engine is None:
            return {}
        tally = engine.flow.tally
        results = tally.written.get(self._names.results, 0)
        transfers, exchanges = _open(engine)
        return {
            "results": results,
            "failed": tally.failed_tasks,
            "dead_letters": sum(self.happenings.dead_letters.copy().values()),
            "units": tally.units.get("committed", 0),
            "transfers": transfers,
            "exchanges": exchanges,
            "uptime_s": round(time.time() - engine.options.incarnation / 1000, 3),
        }

    def describe(self) -> Iterable[Metric]:
        """Nothing: the registry is this worker's own, and names cannot collide in it."""
        return ()

    def collect(self) -> Iterator[Metric]:
        """All metrics, now."""
        ready, healthy = self._view.ready()[0], self._view.healthy()[0]
        yield _family("worker_info", self._labels)
        yield _family("ready", {_ONE: float(ready)})
        yield _family("healthy", {_ONE: float(healthy)})
        engine = self._engine()
        if engine is None:
            return
        yield from self._of_places(engine)
        yield from self._of_records(engine, engine.flow.tally)
        yield from self._of_tasks(engine.flow.tally)
        yield from self._of_agents(engine)
        yield from self._of_happenings(self.happenings)

    def _of_places(self, engine: Engine) -> Iterator[Metric]:
        places = list(engine.places.all.values())
        kinds = {place.kind.name for place in places}
        counted: dict[tuple[str, ...], float] = {(kind, state): 0.0 for kind in kinds for state in STATES}
        rows: dict[tuple[str, ...], float] = {}
        for place in places:
            counted[place.kind.name, type(place.holding).__name__.lower()] += 1
            for table, held in place.rows.copy().items() if place.running else ():
                count = held.store.size
                if count is not None:
                    rows[table, str(place.number)] = count
        yield _family("places", counted)
        yield _family("rows", rows)
        lags = engine.changelog.lags()
        yield _family("standby_lag_records", {(place,): lag for place, lag in lags.items() if lag is not None})

    def _of_records(self, engine: Engine, tally: Tally) -> Iterator[Metric]:
        served = {place.partitions[0] for place in engine.places.running()}
        lags = {(self._short(t), str(p)): lag for (t, p), lag in dict(engine.janitor.lags).items() if (t, p) in served}
        yield _family("lag_records", lags)
        yield _family("idle_seconds", {_ONE: time.monotonic() - engine.flow.progress})
        yield _family("generations_total", {_ONE: tally.generations})
        yield _family("restored_places_total", {_ONE: tally.restored_places})
        yield _family("restored_rows_total", {_ONE: tally.restored_rows})
        yield _family("restoring_seconds_total", {_ONE: tally.restoring_s})
        yield _family("records_read_total", self._by_topic(tally.read))
        yield _family("delivery_seconds_total", self._by_topic(tally.busy_s))
        yield _family("units_total", _by_one({"committed": 0, "aborted": 0, "refused": 0} | dict(tally.units)))
        yield _histogram("commit_seconds", {_ONE: tally.commit_s})
        yield _histogram("unit_records", {_ONE: tally.unit_records})
        yield _histogram("record_age_seconds", {(self._short(t),): found for t, found in tally.ages.copy().items()})
        yield _family("records_written_total", self._by_topic(tally.written, all_of=True))

    def _of_tasks(self, tally: Tally) -> Iterator[Metric]:
        failed = tally.failed_tasks
        results = tally.written.get(self._names.results, 0)
        yield _family("results_total", {("done",): max(0, results - failed), ("failed",): failed})
        yield _family("dead_letters_total", _by_one(self.happenings.dead_letters))
        if self.routing is not None:
            yield _family("stale_hints_total", {_ONE: self.routing.stale_hints})
            yield _family("misrouted_tasks_total", {_ONE: self.routing.misrouted})

    def _of_agents(self, engine: Engine) -> Iterator[Metric]:
        status = self._view.status()
        yield _family("view", {_ONE: status["view"]})
        yield _family("server_up", {(str(one["server"]),): float(one["up"]) for one in status["servers"]})
        if self.rehomed is not None:
            rehomed = self.rehomed
            yield _family("rehomed_rows_total", {("in",): rehomed.rows_in, ("out",): rehomed.rows_out})
            yield _family("held_tasks_total", {_ONE: rehomed.held})
            yield _family("misplaced_tasks_total", {_ONE: rehomed.misplaced})
            yield _histogram("alignment_seconds", {_ONE: rehomed.seconds})
        moving: dict[tuple[str, ...], float] = {(phase,): 0.0 for phase in PHASES}
        for one in status["migrations"]:
            moving[one["state"],] = moving.get((one["state"],), 0.0) + 1
        yield _family("migrations", moving)
        yield _family("copied_rows_total", {("in",): self.copied.rows_in, ("out",): self.copied.rows_out})
        yield _family("parked_tasks", {_ONE: status["parked"]})
        yield _family("parked_oldest_seconds", {_ONE: tenants.parked_s(engine, time.time())})
        waiting: dict[tuple[str, ...], float] = {}
        for place in engine.places.running():
            if isinstance(place.resident, Server):
                waiting[str(place.number),] = place.resident.waiting_count()
        transfers, exchanges = _open(engine)
        yield _family("waiting_tasks", waiting)
        yield _family("transfers_open", {_ONE: transfers})
        yield _family("exchanges_open", {_ONE: exchanges})
        marks = {
            (manager, "host" if mark["hosts"] else "backup"): mark["at_ms"] / 1000
            for manager, mark in exchange_view.marks(engine).items()
            if mark["at_ms"] is not None
        }
        yield _family("exchange_mark_seconds", marks)

    @staticmethod
    def _of_happenings(found: Happenings) -> Iterator[Metric]:
        yield _family("events_total", _by_one(found.events))
        yield _family("migrations_total", _by_one(found.migrations))
        yield _histogram("migration_pause_seconds", {_ONE: found.pauses})
        yield _family("migration_rows_total", {_ONE: found.moved["rows"]})
        yield _family("migration_bytes_total", {_ONE: found.moved["bytes"]})
        yield _family("tasks_parked_total", {_ONE: found.moved["parked"]})
        yield _family("tasks_redelayed_total", {_ONE: found.moved["redelayed"]})
        yield _family("transfers_total", _by_one(found.transfers))
        yield _family("transfer_bytes_total", {_ONE: found.transfer_bytes})

    def _short(self, topic: str) -> str:
        return topic.removeprefix(self._names.prefix)

    def _by_topic(self, counted: Mapping[str, float], *, all_of: bool = False) -> Samples:
        """By short name; what handlers emit to topics of others is one number, or none if only ours are asked for."""
        found: dict[tuple[str, ...], float] = {}
        for topic, count in dict(counted).items():
            name = self._short(topic) if topic.startswith(self._names.prefix) else "(emitted)"
            if all_of or name != "(emitted)":
                found[name,] = found.get((name,), 0) + count
        return found


def _open(engine: Engine) -> tuple[int, int]:
    """Transfers that are not whole and exchanges that are not over, of the places that are served here."""
    residents = [place.resident for place in engine.places.running()]
    transfers = sum(one.unfinished for one in residents if isinstance(one, Owner))
    return transfers, sum(one.open_count for one in residents if isinstance(one, Manager))


def _by_one(counted: Mapping[str, float]) -> Samples:
    # A copy is one step of the interpreter, so that the engine's thread cannot disturb it.
    return {(value,): count for value, count in dict(counted).items()}


def _family(name: str, samples: Samples) -> Metric:
    metric = BY_NAME[PREFIX + name]
    made = CounterMetricFamily if metric.kind is Kind.COUNTER else GaugeMetricFamily
    family = made(metric.name, metric.meaning, labels=metric.labels)
    for values, value in sorted(samples.items()):
        family.add_metric(values, value)
    return family


def _histogram(name: str, found: Mapping[tuple[str, ...], Histogram]) -> Metric:
    metric = BY_NAME[PREFIX + name]
    family = HistogramMetricFamily(metric.name, metric.meaning, labels=metric.labels)
    for values, histogram in sorted(found.items()):
        below, buckets = 0, []
        for bound, count in zip((*histogram.bounds, float("inf")), histogram.counts.copy(), strict=True):
            below += count
            buckets.append(("+Inf" if bound == float("inf") else str(bound), below))
        family.add_metric(values, buckets, histogram.sum)
    return family
