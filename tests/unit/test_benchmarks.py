"""What benchmarks conclude from their samples; the samples themselves are measured by `make bench`."""

import json
from pathlib import Path

import pytest

from tests.benchmarks.__main__ import BENCHMARKS, _parse
from tests.benchmarks.kafka import rate
from tests.benchmarks.measurement import Goal, Sample, compared, figure, number, percentile
from tests.benchmarks.options import Options
from tests.benchmarks.report import Record, table
from tests.benchmarks.traffic import replayed


def test_a_ratio_is_the_median_of_the_pairs_ratios_not_the_ratio_of_the_medians() -> None:
    pairs = [(10.0, 10.0), (30.0, 10.0), (40.0, 80.0)]
    found = compared("x", "1/s", pairs, "peer", goal=Goal("≥", 1.0, of_ratio=True))
    assert found.ratios == (1.0, 3.0, 0.5)
    assert found.ratio == 1.0
    assert (found.value, found.peer_value) == (30.0, 10.0)
    assert found.met is True


@pytest.mark.parametrize(
    ("sign", "value", "met"), [("≤", 1.5, True), ("≤", 1.6, False), ("≥", 1.5, True), ("≥", 1, False)]
)
def test_a_goal_is_met_at_its_limit(sign: str, value: float, met: bool) -> None:
    goal = Goal(sign, 1.5)  # type: ignore[arg-type]
    assert figure("x", "s", [value], goal=goal).met is met


def test_without_a_figure_no_goal_is_met() -> None:
    assert figure("x", "s", [], goal=Goal("≤", 1)).met is None
    assert compared("x", "s", [], "peer", goal=Goal("≤", 1)).met is None


def test_percentiles_are_values_that_were_measured() -> None:
    values = [float(value) for value in range(1, 21)]
    assert [percentile(share)(values) for share in (0.5, 0.95, 1.0)] == [11.0, 20.0, 20.0]
    assert percentile(0.95)([3.0]) == 3.0


def test_a_rate_does_not_count_the_start() -> None:
    # Nothing for ten seconds, then 100 records a second; 300 offsets hold 250 records and 50 markers.
    curve = [(0.0, 0), (10.0, 30), (11.0, 165), (12.0, 300)]
    assert rate(curve, 250, 0.1) == pytest.approx(0.9 * 250 / 2)
    assert rate(curve, 250, 0.5) == pytest.approx(0.45 * 250 / 1)


def test_a_rate_of_a_single_commit_is_one_all_the_same() -> None:
    assert rate([(0.0, 0), (2.0, 100)], 100, 0.5) == pytest.approx(50)


@pytest.mark.parametrize(
    ("value", "text"), [(0, "0"), (1234.5, "1,234"), (123.4, "123"), (12.34, "12.3"), (1.5, "1.5"), (0.0123, "0.0123")]
)
def test_numbers_have_three_digits_that_say_something(value: float, text: str) -> None:
    assert number(value) == text


def test_restores_are_read_from_a_log() -> None:
    text = (
        "2026-11-21 10:00:01,500 INFO    app.engine.places: server-3: 1200 rows replayed in 0.25 s\n"
        "2026-11-21 10:00:02,000 INFO    app.engine.engine: stopping\n"
    )
    assert replayed(text) == [(36_001.5, "server-3", 1200, 0.25)]


def test_quick_takes_small_numbers_unless_told_otherwise() -> None:
    quick = Options.taken_from(_parse(["--quick", "--tasks", "7"]))
    assert quick.pairs == 1
    assert quick.tasks == 7
    assert Options.taken_from(_parse([])) == Options()


SAMPLES: dict[str, list[Sample]] = {
    "reference": [
        {
            "series": "run",
            "engine": engine,
            "round": "a-0",
            "records": 2_000_000,
            "cold_per_s": cold,
            "warm_per_s": warm,
            "steady_per_s": warm,
        }
        for engine, cold, warm in (("holdfast", 200.0, 300.0), ("streams-memory", 100.0, 150.0), ("quix", 10.0, 10.0))
    ]
    + [{"series": "absent", "engine": "faust", "why": "no wheel"}],
    "takeover": [
        {
            "series": "takeover",
            "kind": kind,
            "rate": 2_000,
            "sessions": 100_000,
            "first_s": first,
            "last_s": first + 0.1,
            "transaction_open": True,
            "replayed_rows": 5,
        }
        for kind, first in (("kill", 1.0), ("kill", 3.0), ("freeze", 2.0))
    ],
    "moves": [{"series": "move", "event": "stop", "gaps_s": [0.1, 1.2], "worst_s": 1.2}],
    "migration": [
        {
            "series": "move",
            "sessions": sessions,
            "rate": 1_000,
            "number": 0,
            "paired": sessions > 10,
            "pause_s": pause,
            "took_s": 2.0,
            "p99_before_s": 0.02,
            "p99_copying_s": 0.03,
            "phases": [["cutting", 1.5], ["releasing", 1.8]],
            "mine": [[-1.0, 0.01], [1.6, 0.2], [2.5, 0.01]],
            "others": [[-1.0, 0.01], [1.6, 0.01]],
        }
        for sessions, pause in ((10, 0.1), (200_000, 0.2))
    ]
    + [{"series": "release", "parked": 200_000, "took_s": 2.0}],
    "broker": [{"series": "start", "new_s": 1.0, "again_s": 2.0}],
}


def test_a_directory_of_samples_is_concluded(tmp_path: Path) -> None:
    record = Record(tmp_path)
    for name, samples in SAMPLES.items():
        for sample in samples:
            record.add(name, sample)
    found = record.conclude(BENCHMARKS, {"machine": "this"})
    assert set(found) == set(SAMPLES)
    met = {(entry.name, entry.peer): entry.met for entries in found.values() for entry in entries}
    assert met["reference job, cold", "Kafka Streams, in memory"] is True
    assert met["reference job, cold", "Quix Streams"] is True
    assert met["takeover after kill -9, first result, p95", ""] is False
    assert met["takeover after SIGSTOP, first result, p50", ""] is True
    assert met["longest gap of a session, planned stop, worst", ""] is False
    assert met["pause of a tenant with 200000 sessions, p95", ""] is True
    assert met["pause with 200000 to 10 sessions, p95", ""] is False
    assert met["neighbours' p99 while 200000 sessions are copied", "nothing moves"] is True
    assert met["parked tasks released", ""] is True
    absent = [entry for entry in found["reference"] if entry.absent]
    assert [(entry.peer, entry.absent) for entry in absent] == [("stock Faust, at least once", "no wheel")]
    written = json.loads((tmp_path / "results.json").read_text())
    assert written["results"]["broker"][0]["value"] == 1.0
    assert table(found, "title").row_count == sum(map(len, found.values()))


def test_a_goal_is_not_judged_by_less_than_it_names(tmp_path: Path) -> None:
    record = Record(tmp_path)
    for sample in SAMPLES["takeover"]:
        record.add("takeover", {**sample, "sessions": 2_000})
    for sample in SAMPLES["reference"]:
        record.add("reference", {**sample, "records": 20_000})
    for sample in SAMPLES["migration"][:2]:
        record.add("migration", {**sample, "rate": 300})
    found = record.conclude(BENCHMARKS, {})
    assert {entry.met for entry in found["migration"]} == {None}
    assert {entry.met for entry in found["takeover"]} == {None}
    assert {entry.met for entry in found["reference"] if entry.peer.startswith("Kafka")} == {None}


@pytest.mark.parametrize("benchmark", BENCHMARKS, ids=lambda benchmark: benchmark.NAME)
def test_no_samples_are_no_error(benchmark: object) -> None:
    benchmark.judge([])  # type: ignore[attr-defined]
