"""The compose project as it is written: started, used, hurt, and watched by its Prometheus (and Grafana)."""

import json
from pathlib import Path
from typing import Any, Final

import pytest
import yaml

from tests.support.cluster import wait_for
from tests.support.compose import GRAFANA, PROMETHEUS, WORKERS, Compose, available, panels
from tests.support.reasons import NO_COMPOSE

pytestmark = pytest.mark.soak

DEPLOY: Final = Path(__file__).parents[2] / "deploy"
BOARD: Final = json.loads((DEPLOY / "grafana" / "holdfast.json").read_text())
RULES: Final = yaml.safe_load((DEPLOY / "prometheus" / "alerts.yml").read_text())["groups"]

TASKS: Final = 6_000
RATE: Final = 100
WAIT_S: Final = 300

WORK: Final = f"""
import json, sys, time
from app.client import Client
from app.observe.reading import read_account, wait_for_results
from app.settings import Settings, kafka_config

settings = Settings()
begin = time.monotonic()
with Client() as client:
    for number in range({TASKS}):
        client.send(f"tenant-{{number % 40}}", f"session-{{number % 400}}", "counter.add", {{"amount": 1}})
        if number == {TASKS} // 10:
            print("under way", flush=True)
        time.sleep(max(0.0, begin + number / {RATE} - time.monotonic()))
deadline = time.monotonic() + {WAIT_S}
wait_for_results(kafka_config(settings), settings.namespace, {TASKS}, deadline=deadline, quiet_s=90)
account = read_account(kafka_config(settings), settings.namespace, deadline=deadline)
print(json.dumps({{"ok": account.ok, "sent": account.sent, "performed": account.performed, "text": str(account)}}))
"""
"""Runs in the network of the project: brokers are known by their names there only."""

QUIET: Final = {
    "Dead letters by error",
    # Nobody counts the rows of a store on disk.
    "Sessions",
    "Migrations",
    "Pause of a migration",
    "Moved",
    "Rows re-homed",
    "Tasks held and misplaced",
    "Alignment of streams",
    "Transfers",
    "Bytes of completed transfers",
    "Backups of exchanges behind",
    "Tenants that move",
    "Faults that the canary found",
    "From task to result",
    "Pauses",
    "Canary tasks",
}
"""Panels that have nothing to show while nothing of that kind happens."""


def test_the_project_serves_through_the_loss_of_a_broker_and_a_worker(capsys: pytest.CaptureFixture[str]) -> None:
    if not available():
        pytest.skip(NO_COMPOSE)
    with Compose() as compose:
        compose.wait_ready()
        compose.run("exec", "-T", "w1", "holdfast", "topics", "check")
        performed = one_task(compose, "w1", 1)
        assert performed == {"total": 1}
        work = compose.start("run", "--rm", "--no-deps", "-T", "--entrypoint", "python3", "w1", "-u", "-c", WORK)
        assert work.stdout is not None
        assert work.stdout.readline().strip() == "under way", work.communicate()
        compose.run("stop", "kafka-2")
        assert one_task(compose, "w2", 2) == {"total": 2}
        compose.run("start", "kafka-2")
        compose.kill_program("w3")
        assert one_task(compose, "w1", 3) == {"total": 3}
        # The engine starts it again: it comes back by itself.
        compose.wait_ready()
        watched(compose)
        out, _ = work.communicate(timeout=2 * WAIT_S)
        # Compose may add words of its own.
        told = [line for line in out.splitlines() if line.startswith('{"ok"')]
        assert told, out
        account = json.loads(told[0])
        assert account["ok"], account["text"]
        assert account["sent"] == account["performed"] == TASKS + 3
        wait_for(lambda: healthy(compose), WAIT_S, "all containers are healthy")
    with capsys.disabled():
        print(f"\n{account['text']}")


def one_task(compose: Compose, worker: str, expected: int) -> Any:
    """Send a task over HTTP and wait for its result."""
    task = {"tenant": "acme", "session": "s", "type": "counter.add", "payload": {"amount": 1}, "id": f"one-{expected}"}
    status, answer = compose.ask(WORKERS[worker], "/api/tasks?wait=15", body=task)
    assert status == 200, answer
    return answer["result"]


def healthy(compose: Compose) -> bool:
    return all(entry["Health"] == "healthy" for name, entry in compose.services().items() if name in WORKERS)


def watched(compose: Compose) -> None:
    """Prometheus reads all workers, has all rules, and knows what every panel of the dashboard asks for."""
    wait_for(lambda: len(compose.query('up{job="holdfast"} == 1')) == 3, WAIT_S, "three workers are scraped")
    _, answer = compose.ask(PROMETHEUS, "/api/v1/rules")
    rules = [rule for group in answer["data"]["groups"] for rule in group["rules"]]
    assert sorted(rule["name"] for rule in rules) == sorted(rule["alert"] for group in RULES for rule in group["rules"])
    wait_for(lambda: not unevaluated(compose), WAIT_S, "every rule was evaluated")
    asked = 0
    for title, expressions in panels(BOARD):
        for expression in expressions:
            wait_for(lambda e=expression, t=title: compose.query(e) or t in QUIET, WAIT_S, title)  # type: ignore[misc]
            asked += 1
    assert asked > 40
    if "grafana" in compose.services():
        status, board = compose.ask(GRAFANA, f"/api/dashboards/uid/{BOARD['uid']}", user="admin")
        assert status == 200, board
        assert board["dashboard"]["title"] == BOARD["title"]


def unevaluated(compose: Compose) -> list[str]:
    _, answer = compose.ask(PROMETHEUS, "/api/v1/rules")
    rules = [rule for group in answer["data"]["groups"] for rule in group["rules"]]
    return [f"{rule['name']}: {rule.get('lastError')}" for rule in rules if rule["health"] != "ok"]
