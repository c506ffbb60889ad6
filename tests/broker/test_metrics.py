"""Metrics of workers that work: every name of the registry is there, and the numbers are those of what happened."""

import re
from collections.abc import Mapping

import pytest
from prometheus_client import Metric
from prometheus_client.parser import text_string_to_metric_families

from app.client import Client
from app.observe.metrics import METRICS, Kind
from tests.support.cluster import Worker, Workers, wait_for
from tests.support.web import ask

pytestmark = pytest.mark.broker

TASKS = 300
FAILING = 30
SESSIONS = 20


def scrape(worker: Worker) -> dict[str, Metric]:
    reply = ask(f"{worker.url}/metrics")
    assert reply.status == 200
    return {family.name: family for family in text_string_to_metric_families(reply.body.decode())}


def total(found: Mapping[str, Metric], name: str, **labels: str) -> float:
    """The sum of a metric's samples with these labels."""
    family = found[re.sub(r"_(total|bucket|sum|count)$", "", name)]
    return sum(
        sample.value for sample in family.samples if sample.name == name and labels.items() <= sample.labels.items()
    )


def test_metrics_tell_what_happened(workers: Workers) -> None:
    running = workers.start_ready("w1", "w2")
    with Client(str(workers.config["bootstrap.servers"]), workers.namespace) as client:
        kinds = ["fail"] * FAILING + ["counter.add"] * (TASKS - FAILING)
        ids = [client.send(f"tenant-{n % 5}", f"s{n % SESSIONS}", kind, {"amount": 1}) for n, kind in enumerate(kinds)]
        for task in ids:
            client.result(task, timeout=30)
        moved = client.migrate("tenant-1", to=_elsewhere(running[0], "tenant-1"), timeout=30)
        assert moved.event == "migration-succeeded"

    def settled() -> list[dict[str, Metric]] | None:
        found = [scrape(worker) for worker in running]
        done = sum(total(one, "holdfast_migrations_total", outcome="succeeded") for one in found)
        behind = sum(total(one, "holdfast_lag_records") for one in found)
        # The rows that were left behind are deleted a little at a time.
        rows = sum(total(one, "holdfast_rows", table="sessions") for one in found)
        return found if done == 1 and behind == 0 and rows <= SESSIONS else None

    found = wait_for(settled, 20, "metrics of everything that was done")
    assert found is not None

    def together(name: str, **labels: str) -> float:
        return sum(total(one, name, **labels) for one in found)

    for one in found:
        assert {name for name in one if name.startswith("holdfast_")} == {
            metric.name.removesuffix("_total") if metric.kind is Kind.COUNTER else metric.name for metric in METRICS
        }
        assert total(one, "holdfast_ready") == total(one, "holdfast_healthy") == 1
    assert together("holdfast_results_total", status="done") == TASKS - FAILING
    assert together("holdfast_results_total", status="failed") == FAILING
    assert together("holdfast_dead_letters_total", error="RuntimeError") == FAILING
    assert together("holdfast_records_read_total", topic="tasks") >= TASKS
    assert together("holdfast_records_written_total", topic="results") == TASKS
    assert together("holdfast_places", kind="server", state="running") == workers.settings.servers
    assert together("holdfast_places", kind="server", state="tailing") == workers.settings.servers
    assert together("holdfast_events_total", event="migration-succeeded") == 1
    assert together("holdfast_units_total", outcome="committed") > 0
    assert together("holdfast_rows", table="sessions") == SESSIONS
    assert together("holdfast_migration_pause_seconds_count") == 1
    assert together("holdfast_migration_rows_total") == 4
    assert together("holdfast_copied_rows_total", direction="out") >= 4
    assert together("holdfast_copied_rows_total", direction="in") >= 4
    assert together("holdfast_parked_oldest_seconds") == 0
    assert together("holdfast_server_up") == 2 * workers.settings.servers
    ages = together("holdfast_record_age_seconds_count", topic="tasks")
    assert 0 < ages <= together("holdfast_records_read_total", topic="tasks")


def _elsewhere(worker: Worker, tenant: str) -> int:
    home: int = worker.get(f"/api/tenants/{tenant}")[1]["home"]
    return (home + 1) % 8
