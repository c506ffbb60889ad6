"""Each alert rule fires on the series of its trouble, and is silent on those of health; Prometheus' own tool tells."""

import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final, NamedTuple

import pytest
import yaml

from tests.support.reasons import NO_PROMTOOL

RULES: Final = Path(__file__).parents[3] / "deploy" / "prometheus" / "alerts.yml"
ALERTS: Final[dict[str, dict[str, Any]]] = {
    rule["alert"]: rule for group in yaml.safe_load(RULES.read_text())["groups"] for rule in group["rules"]
}
W1: Final = 'job="holdfast",instance="w1:8080"'
W2: Final = 'job="holdfast",instance="w2:8080"'
CANARY: Final = 'job="holdfast-canary",instance="canary:6067"'
AT: Final = "95m"
"""When the rules are looked at: their series have then been as they are for longer than any rule waits."""


class Case(NamedTuple):
    """What fires an alert: its name, series by what they do when ill and when well, its labels, and what it says."""

    alert: str
    series: dict[str, tuple[str, str]]
    labels: str
    summary: str


def at(value: float) -> str:
    """A series that stays where it is."""
    return f"{value}x100"


def by(step: int) -> str:
    """A series that grows by so much in a minute."""
    return f"0+{step}x100"


CASES: Final = [
    Case("HoldfastWorkerDown", {f"up{{{W1}}}": (at(0), at(1))}, W1, "Worker w1:8080 does not answer"),
    Case(
        "HoldfastWorkerNotReady",
        {f"holdfast_ready{{{W1}}}": (at(0), at(1))},
        W1,
        "Worker w1:8080 does not serve all that it was given",
    ),
    Case(
        "HoldfastWorkerStuck",
        {f"holdfast_healthy{{{W1}}}": (at(0), at(1))},
        W1,
        "Worker w1:8080 has work, and nothing moves",
    ),
    Case(
        "HoldfastPlaceWithoutHost",
        {
            f'holdfast_places{{{W1},kind="server",state="running"}}': (at(3), at(4)),
            f'holdfast_places{{{W1},kind="server",state="tailing"}}': (at(4), at(4)),
            f'holdfast_places{{{W1},kind="server",state="absent"}}': (at(1), at(0)),
            f'holdfast_places{{{W2},kind="server",state="running"}}': (at(4), at(4)),
            f'holdfast_places{{{W2},kind="server",state="tailing"}}': (at(4), at(4)),
        },
        'kind="server"',
        "7 places of kind server are served, fewer than there are",
    ),
    Case(
        "HoldfastNoStandby",
        {
            f'holdfast_places{{{W1},kind="server",state="running"}}': (at(4), at(4)),
            f'holdfast_places{{{W1},kind="server",state="tailing"}}': (at(0), at(4)),
            f'holdfast_places{{{W1},kind="server",state="absent"}}': (at(4), at(0)),
            f'holdfast_places{{{W2},kind="server",state="running"}}': (at(4), at(4)),
            f'holdfast_places{{{W2},kind="server",state="tailing"}}': (at(4), at(4)),
        },
        'kind="server"',
        "Not every place of kind server has a standby",
    ),
    Case(
        "HoldfastStandbyBehind",
        {f'holdfast_standby_lag_records{{{W1},place="server-3"}}': (at(20_000), at(9))},
        f'{W1},place="server-3"',
        "w1:8080 is 20000 records behind on server-3",
    ),
    Case(
        "HoldfastLagGrows",
        {f'holdfast_lag_records{{{W1},topic="work",partition="3"}}': (by(1_000), at(20_000))},
        'topic="work",partition="3"',
        "work/3 is 95000 records behind, and it becomes more",
    ),
    Case(
        "HoldfastTasksFail",
        {
            f'holdfast_results_total{{{W1},status="failed"}}': (by(6), by(4)),
            f'holdfast_results_total{{{W1},status="done"}}': (by(94), by(96)),
        },
        "",
        "More than one task in twenty fails",
    ),
    Case(
        "HoldfastHandlerKills",
        {
            f'holdfast_dead_letters_total{{{W1},error="HostDied"}}': (by(1), at(1)),
            f'holdfast_dead_letters_total{{{W1},error="BadRecord"}}': (by(9), by(9)),
        },
        'error="HostDied"',
        "Tasks were given up: HostDied",
    ),
    Case(
        "HoldfastUnitsAbort",
        {
            f'holdfast_units_total{{{W1},outcome="aborted"}}': (by(60), by(3)),
            f'holdfast_units_total{{{W1},outcome="committed"}}': (by(600), by(600)),
        },
        f'{W1},outcome="aborted"',
        "Units of work of w1:8080 are aborted again and again",
    ),
    Case(
        "HoldfastCommitSlow",
        {
            f'holdfast_commit_seconds_bucket{{{W1},le="2"}}': (by(90), by(100)),
            f'holdfast_commit_seconds_bucket{{{W1},le="4"}}': (by(100), by(100)),
            f'holdfast_commit_seconds_bucket{{{W1},le="+Inf"}}': (by(100), by(100)),
        },
        "",
        "Commits take 3.8s",
    ),
    Case(
        "HoldfastProducerPartitions",
        {f"holdfast_misrouted_tasks_total{{{W1}}}": (by(1), at(7))},
        "",
        "A producer does not partition tasks by murmur2 of the key",
    ),
    Case(
        "HoldfastMigrationFailed",
        {
            f'holdfast_migrations_total{{{W1},outcome="failed"}}': (by(1), at(7)),
            f'holdfast_migrations_total{{{W1},outcome="succeeded"}}': (by(1), by(1)),
        },
        "",
        "A migration has failed; its tenant is where it was",
    ),
    Case(
        "HoldfastMigrationStands",
        {
            f'holdfast_migrations{{{W1},state="cutting"}}': (at(1), at(1)),
            f'holdfast_migrations_total{{{W1},outcome="succeeded"}}': (at(5), by(1)),
        },
        "",
        "Tenants have been moving for half an hour, and no migration ends",
    ),
    Case(
        "HoldfastTasksParked",
        {f"holdfast_parked_tasks{{{W1}}}": (at(12), "0 12 0 9 0x96")},
        "",
        "12 tasks have been parked for ten minutes",
    ),
    Case(
        "HoldfastServerDown",
        {
            f'holdfast_server_up{{{W1},server="3"}}': (at(0), at(1)),
            f'holdfast_server_up{{{W2},server="3"}}': (at(1), at(1)),
        },
        'server="3"',
        "Server 3 has been down in the view for an hour",
    ),
    Case(
        "HoldfastViewStuck",
        {f'holdfast_events_total{{{W1},event="view-stuck"}}': (by(1), at(1))},
        'event="view-stuck"',
        "A change of view does not end: view-stuck",
    ),
    Case(
        "HoldfastBackupBehind",
        {
            f'holdfast_exchange_mark_seconds{{{W1},manager="2",role="host"}}': (at(1_000), at(1_000)),
            f'holdfast_exchange_mark_seconds{{{W2},manager="2",role="backup"}}': (at(880), at(999)),
        },
        'manager="2"',
        "The backup of manager 2 is 2m 0s behind",
    ),
    Case(
        "HoldfastCanaryLost",
        {f"holdfast_canary_lost_total{{{CANARY}}}": (by(1), at(7))},
        CANARY,
        "The canary misses tasks that the brokers confirmed",
    ),
    Case(
        "HoldfastCanaryWrong",
        {
            f"holdfast_canary_doubled_total{{{CANARY}}}": (at(0), at(0)),
            f"holdfast_canary_out_of_order_total{{{CANARY}}}": (by(1), at(7)),
            f"holdfast_canary_failed_total{{{CANARY}}}": (at(0), at(0)),
        },
        CANARY,
        "The canary's tasks were doubled, out of order or failed",
    ),
    Case(
        "HoldfastCanaryWaits",
        {f"holdfast_canary_overdue{{{CANARY}}}": (at(4), at(0))},
        CANARY,
        "4 tasks of the canary have had no result for a minute",
    ),
    Case(
        "HoldfastCanarySlow",
        {
            f"holdfast_canary_late_total{{{CANARY}}}": (by(20), by(2)),
            f"holdfast_canary_sent_total{{{CANARY}}}": (by(1_200), by(1_200)),
        },
        CANARY,
        "More than one task of the canary in a hundred is late",
    ),
    Case("HoldfastCanaryDown", {f"up{{{CANARY}}}": (at(0), at(1))}, CANARY, "Canary canary:6067 does not answer"),
]


def promtool(cases: list[Case], directory: Path, expect: Callable[[Case], list[dict[str, Any]]], column: int) -> None:
    """Let Prometheus compute the rules on one column of the cases' series, and compare."""
    tool = shutil.which("promtool")
    if tool is None:
        pytest.skip(NO_PROMTOOL)
    tests = [
        {
            "interval": "1m",
            "input_series": [{"series": name, "values": values[column]} for name, values in case.series.items()],
            "alert_rule_test": [{"eval_time": AT, "alertname": case.alert, "exp_alerts": expect(case)}],
        }
        for case in cases
    ]
    file = directory / "alerts.test.yml"
    file.write_text(yaml.safe_dump({"rule_files": [str(RULES)], "evaluation_interval": "5m", "tests": tests}))
    done = subprocess.run([tool, "test", "rules", file], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr


def fired(case: Case) -> list[dict[str, Any]]:
    """The alert as Prometheus tells it."""
    labels = dict(pair.replace('"', "").split("=") for pair in case.labels.split(",") if pair)
    labels["severity"] = ALERTS[case.alert]["labels"]["severity"]
    return [{"exp_labels": labels, "exp_annotations": {"summary": case.summary}}]


def test_every_alert_has_a_case() -> None:
    assert sorted(case.alert for case in CASES) == sorted(ALERTS)


def test_every_alert_fires_when_it_should(tmp_path: Path) -> None:
    promtool(CASES, tmp_path, fired, 0)


def test_no_alert_fires_when_all_is_well(tmp_path: Path) -> None:
    promtool(CASES, tmp_path, lambda case: [], 1)


def test_a_rule_that_is_silent_would_be_found(tmp_path: Path) -> None:
    with pytest.raises(AssertionError, match="HoldfastWorkerDown"):
        promtool(CASES[:1], tmp_path, fired, 1)
