"""The metric registry, its document, the dashboard and the alert rules say the same."""

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

import promql_parser
import pytest
import yaml
from prometheus_client.parser import text_string_to_metric_families

from app.cli.canary_metrics import COUNTERS, GAUGES
from app.observe.metrics import BY_NAME, METRICS, Kind
from app.worker.figures import Figures
from tests.support.web import FakeView

ROOT: Final = Path(__file__).parents[2]
DOCUMENT: Final = ROOT / "docs" / "metrics.md"
ALERTS: Final = yaml.safe_load((ROOT / "deploy" / "prometheus" / "alerts.yml").read_text())
RULES: Final = [rule for group in ALERTS["groups"] for rule in group["rules"]]
BOARD: Final = json.loads((ROOT / "deploy" / "grafana" / "holdfast.json").read_text())

# Prometheus adds these to whatever it scrapes.
ADDED: Final = {"job", "instance"}
CANARY: Final = {
    "holdfast_canary_latency_seconds_bucket": {"le"},
    **{f"holdfast_canary_{name}_total": set[str]() for name in COUNTERS},
    **{f"holdfast_canary_{name}": set[str]() for name in GAUGES},
}
FOREIGN: Final = {
    **CANARY,
    "up": set[str](),
    "process_resident_memory_bytes": set[str](),
    "process_cpu_seconds_total": set[str](),
}


def walk(value: object) -> Iterator[dict[str, Any]]:
    """Every object within a JSON value."""
    if isinstance(value, dict):
        yield value
    for inner in value.values() if isinstance(value, dict) else value if isinstance(value, list) else ():
        yield from walk(inner)


QUERIES: Final = [
    *(pytest.param(rule["expr"], id=rule["alert"]) for rule in RULES),
    *(
        pytest.param(target["expr"], id=panel["title"])
        for panel in walk(BOARD)
        if "title" in panel
        for target in panel.get("targets", ())
    ),
    *(pytest.param(note["expr"], id=note["name"]) for note in BOARD["annotations"]["list"]),
]


def labels_of(name: str) -> set[str]:
    """The labels of a series; fails for one that nobody tells."""
    if name in FOREIGN:
        return FOREIGN[name] | ADDED
    base = re.sub(r"_(bucket|sum|count)$", "", name)
    metric = BY_NAME.get(name) or BY_NAME.get(base)
    assert metric is not None, f"{name} is no metric"
    assert (metric.kind is Kind.HISTOGRAM) is (metric.name != name), f"{name} is no series of {metric.name}"
    return {*metric.labels, *ADDED, *(("le",) if name.endswith("_bucket") else ())}


def selectors(query: str) -> Iterator[Any]:
    """Every selector of a query, with its metric and its matchers."""
    # Grafana's own variable stands where a duration is.
    waiting: list[Any] = [promql_parser.parse(query.replace("$__rate_interval", "1m"))]
    while waiting:
        part = waiting.pop()
        if isinstance(part, promql_parser.VectorSelector):
            yield part
        elif isinstance(part, promql_parser.MatrixSelector):
            yield part.vector_selector
        else:
            inner = (getattr(part, field, None) for field in ("expr", "lhs", "rhs"))
            waiting += [one for one in (*inner, *getattr(part, "args", ())) if one is not None]


@pytest.mark.parametrize("query", QUERIES)
def test_a_query_asks_for_what_workers_tell(query: str) -> None:
    found = list(selectors(query))
    assert found
    labels = [labels_of(one.name) for one in found]
    for one, known in zip(found, labels, strict=True):
        assert {matcher.name for matcher in one.matchers.matchers} <= known
    grouped = {label for by in re.findall(r"\bby \(([^)]*)\)", query) for label in by.replace(",", " ").split()}
    assert grouped <= set.union(*labels)


def test_a_wrong_query_would_be_found() -> None:
    with pytest.raises(AssertionError, match="is no metric"):
        test_a_query_asks_for_what_workers_tell("sum(holdfast_nothing)")
    with pytest.raises(AssertionError, match="is no series"):
        test_a_query_asks_for_what_workers_tell("rate(holdfast_commit_seconds[1m])")
    with pytest.raises(AssertionError):
        test_a_query_asks_for_what_workers_tell('holdfast_ready{server="1"}')
    with pytest.raises(AssertionError):
        test_a_query_asks_for_what_workers_tell("sum by (server) (holdfast_ready)")


def test_every_metric_is_on_the_dashboard_or_in_a_rule() -> None:
    asked = {
        re.sub(r"_(bucket|sum|count)$", "", one.name) for param in QUERIES for one in selectors(str(param.values[0]))
    }
    apart = {"holdfast_worker_info", "holdfast_idle_seconds", "holdfast_stale_hints_total"}
    rest = {
        "holdfast_records_read_total",
        "holdfast_records_written_total",
        "holdfast_restored_places_total",
        "holdfast_restoring_seconds_total",
        "holdfast_migration_rows_total",
        "holdfast_tasks_parked_total",
        "holdfast_tasks_redelayed_total",
    }
    assert set(BY_NAME) - asked == apart | rest
    assert {name.removesuffix("_bucket") for name in CANARY} - asked == {"holdfast_canary_takeovers_total"}


def test_the_document_has_every_metric_as_it_is() -> None:
    rows = re.findall(r"^\| `(holdfast_\w+)` \| (\w+) \| ([^|]*) \| (.*) \|$", DOCUMENT.read_text(), re.MULTILINE)
    said = [(name, kind, tuple(re.findall(r"`(\w+)`", labels)), meaning) for name, kind, labels, meaning in rows]
    assert said == [(one.name, one.kind.value, one.labels, one.meaning) for one in METRICS]


def test_every_alert_is_explained() -> None:
    explained = re.findall(r"^\| `(Holdfast\w+)` \|", DOCUMENT.read_text(), re.MULTILINE)
    assert sorted(explained) == sorted(rule["alert"] for rule in RULES)


@pytest.mark.parametrize("rule", RULES, ids=lambda rule: str(rule["alert"]))
def test_an_alert_says_how_bad_it_is_and_what_happened(rule: dict[str, Any]) -> None:
    assert set(rule) <= {"alert", "expr", "for", "labels", "annotations"}
    assert rule["labels"]["severity"] in ("warning", "critical")
    assert re.fullmatch(r"\d+[smh]", rule.get("for", "0s"))
    used = set(re.findall(r"\$labels\.(\w+)", rule["annotations"]["summary"]))
    assert used <= {"instance", *(label for one in selectors(rule["expr"]) for label in labels_of(one.name))}


def test_the_dashboard_has_room_for_each_panel() -> None:
    places = [panel["gridPos"] for panel in BOARD["panels"]]
    cells = [(place["x"] + x, place["y"] + y) for place in places for x in range(place["w"]) for y in range(place["h"])]
    assert len(cells) == len(set(cells))
    assert max(x for x, _ in cells) < 24
    assert len({panel["id"] for panel in BOARD["panels"]}) == len(BOARD["panels"])


def test_names_follow_the_rules_of_prometheus() -> None:
    for metric in METRICS:
        assert re.fullmatch(r"holdfast_[a-z_]+", metric.name)
        assert metric.name.endswith("_total") is (metric.kind is Kind.COUNTER), metric.name
        if metric.kind is Kind.HISTOGRAM:
            assert metric.name.endswith(("_seconds", "_records")), metric.name


def test_a_worker_that_has_not_begun_tells_so() -> None:
    view = FakeView(is_ready=(False, "waiting for the group"))
    text, kind = Figures("w1", "test", lambda: None, view).read("")
    assert kind.startswith("text/plain")
    found = {family.name: family for family in text_string_to_metric_families(text.decode())}
    assert found["holdfast_ready"].samples[0].value == 0
    assert found["holdfast_healthy"].samples[0].value == 1
    assert found["holdfast_worker_info"].samples[0].labels["worker"] == "w1"


def test_openmetrics_is_told_to_who_asks_for_it() -> None:
    text, kind = Figures("w1", "test", lambda: None, FakeView()).read("application/openmetrics-text; version=1.0.0")
    assert kind.startswith("application/openmetrics-text")
    assert text.endswith(b"# EOF\n")
