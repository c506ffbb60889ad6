"""Handlers that are slow, wrong or deadly: each ends as the contract says, and the others are not harmed."""

import threading
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from confluent_kafka import Consumer, TopicPartition
from confluent_kafka.admin import AdminClient
from confluent_kafka.cimpl import NewTopic

from app.observe.reading import read_account
from tests.support import chain
from tests.support.cluster import Workers, wait_for
from tests.support.probe import Position, Probe

pytestmark = pytest.mark.broker

NEIGHBOURS = 40


def clean(workers: Workers, *, restarts: bool = False) -> None:
    deadline = time.monotonic() + 30
    account = read_account(workers.config, workers.namespace, deadline=deadline, restarts=restarts)
    assert account.ok, str(account)


def state_of(workers: Workers, tenant: str, session: str) -> dict[str, object] | None:
    deadline = time.monotonic() + 30
    return dict(chain.rows(workers.config, workers.namespace, deadline=deadline)).get((tenant, session))


def neighbours(probe: Probe, count: int = NEIGHBOURS) -> list[Position]:
    """Tasks of as many tenants, so that every server has some."""
    return [probe.send(f"n{number}", "s", "chain.link", {"n": number}) for number in range(count)]


@contextmanager
def revived(workers: Workers, *names: str) -> Iterator[list[int]]:
    """Start a worker again whenever it ends, as a process manager would; yields the exit codes so far."""
    exits: list[int] = []
    stop = threading.Event()
    current = {name: workers.start(name) for name in names}
    for worker in current.values():
        worker.wait_ready()

    def watch() -> None:
        while not stop.wait(0.1):
            for name, worker in current.items():
                if not worker.running:
                    exits.append(worker.process.wait())
                    current[name] = workers.start(name)

    thread = threading.Thread(target=watch, name="revive")
    thread.start()
    try:
        yield exits
    finally:
        stop.set()
        thread.join()


@pytest.mark.parametrize(
    ("kind", "error"),
    [
        ("raise", "ValueError"),
        ("unserialisable", "BadResult"),
        ("no.such.type", "UnknownTask"),
    ],
)
def test_a_failing_task_changes_nothing(workers: Workers, probe: Probe, kind: str, error: str) -> None:
    workers.start_ready("w1")
    first = probe.done(probe.send("acme", "s", "chain.link", {"n": 1}))
    bad = probe.send("acme", "s", kind, {"n": 2})
    assert probe.failed(bad) == error
    assert state_of(workers, "acme", "s") == first
    last = probe.send("acme", "s", "chain.link", {"n": 3})
    assert probe.done(last) == {"h": chain.link(first["h"], {"n": 3})}
    assert probe.result(last)["sequence"] == 3
    clean(workers)


def test_a_state_that_cannot_be_serialised_fails_its_task(workers: Workers, probe: Probe) -> None:
    workers.start_ready("w1")
    assert probe.failed(probe.send("acme", "s", "unserialisable.state")) == "BadResult"
    assert "h" in probe.done(probe.send("acme", "s", "chain.link", {"n": 1}))
    clean(workers)


@pytest.mark.parametrize("kind", ["slow.async", "slow.blocking"])
def test_neighbours_overtake_a_slow_handler(workers: Workers, probe: Probe, kind: str) -> None:
    workers.start_ready("w1")
    slow = probe.send("acme", "s", kind, {"seconds": 4})
    behind = probe.send("acme", "s", "chain.link", {"n": 2})
    others = neighbours(probe)
    for position in others:
        probe.done(position)
    assert slow not in probe.results
    assert behind not in probe.results
    first = chain.link("", {"seconds": 4})
    assert probe.done(slow) == {"h": first}
    assert probe.done(behind) == {"h": chain.link(first, {"n": 2})}
    clean(workers)


@pytest.mark.parametrize(
    ("kind", "payload", "error"),
    [
        ("quit", {}, "SystemExit"),
        ("retry", {"until": 2, "after": -1}, "ValueError"),
        ("retry", {"until": 2, "after": 1e300}, "ValueError"),
        ("emit", {"topic": "bad topic!", "value": 1}, "ValueError"),
        ("emit", {"topic": "own", "value": 1, "key": 7}, "TypeError"),
    ],
)
def test_a_handler_cannot_end_its_worker_by_raising(
    workers: Workers, probe: Probe, kind: str, payload: dict[str, object], error: str
) -> None:
    worker = workers.start_ready("w1")[0]
    wrong = probe.send("acme", "s", kind, payload)
    after = probe.send("acme", "s", "chain.link", {"n": 2})
    assert probe.failed(wrong) == error
    assert probe.done(after) == {"h": chain.link("", {"n": 2})}
    assert worker.running
    clean(workers)


def test_a_slow_sync_handler_holds_up_its_own_worker_only(workers: Workers, probe: Probe) -> None:
    first, second = workers.start_ready("w1", "w2")
    slow = probe.send("acme", "s", "slow.sync", {"seconds": 8})
    others = neighbours(probe)
    while slow not in probe.results:
        probe.poll()
    owner = probe.result(slow)["worker"]
    for position in others:
        probe.done(position)
    before = [p for p in probe.order[: probe.order.index(slow)] if probe.results[p][0]["worker"] != owner]
    assert before, "the other worker went on meanwhile"
    assert first.running
    assert second.running
    clean(workers)


@pytest.mark.settings(task_timeout=1.5)
@pytest.mark.parametrize("kind", ["slow.async", "slow.blocking"])
def test_a_handler_over_its_time_is_cancelled(workers: Workers, probe: Probe, kind: str) -> None:
    worker = workers.start_ready("w1")[0]
    slow = probe.send("acme", "s", kind, {"seconds": 4})
    after = probe.send("acme", "s", "chain.link", {"n": 2})
    assert probe.failed(slow) == "TaskTimeout"
    assert probe.done(after) == {"h": chain.link("", {"n": 2})}
    assert worker.running
    clean(workers)


@pytest.mark.settings(task_timeout=300)
def test_what_stays_where_it_is_goes_on_while_another_worker_joins(
    workers: Workers, probe: Probe, tmp_path: Path
) -> None:
    first = workers.start_ready("w1")[0]
    gate = tmp_path / "gate"
    gate.touch()
    begun = gate.with_suffix(".begun")
    running = {f"n{n}": probe.send(f"n{n}", "s", "gate.async", {"path": str(gate)}) for n in range(16)}
    wait_for(lambda: begun.exists() and len(begun.read_text().split()) == len(running), 150, "all handlers run")
    workers.start_ready("w2")

    def hosted() -> dict[str, str]:
        status = first.get("/api/status")[1]
        return {} if status["warming"] else {entry["server"]: entry["host"] for entry in status["servers"]}

    wait_for(lambda: set(hosted().values()) == {"w1", "w2"}, 150, "both workers host servers")
    host = hosted()
    wait_for(lambda: all(worker.get("/readyz")[0] == 200 for worker in workers.running), 150, "all are served")
    gate.unlink()
    server = {tenant: probe.done(position, 150)["server"] for tenant, position in running.items()}
    starts = Counter(begun.read_text().split())
    stayed = [tenant for tenant in running if host[server[tenant]] == "w1"]
    moved = [tenant for tenant in running if host[server[tenant]] == "w2"]
    assert stayed
    assert moved
    assert {starts[tenant] for tenant in stayed} == {1}
    assert {starts[tenant] for tenant in moved} == {2}
    clean(workers)


@pytest.mark.timeout(240)
@pytest.mark.settings(task_timeout=2.0, max_crashes=2)
@pytest.mark.parametrize(
    ("kind", "error"),
    [
        pytest.param("exit", "HostDied", marks=pytest.mark.soak),
        ("segv", "HostDied"),
        ("loop", "TaskTimeout"),
    ],
)
def test_a_deadly_task_takes_few_workers_down(workers: Workers, probe: Probe, kind: str, error: str) -> None:
    """No more hosts than MAX_CRASHES; every other task is performed, also those behind it in its session."""
    with revived(workers, "w1", "w2") as exits:
        before = neighbours(probe)
        deadly = probe.send("acme", "s", kind)
        after = probe.send("acme", "s", "chain.link", {"n": 2})
        others = neighbours(probe)
        assert probe.failed(deadly, 120) == error
        assert probe.done(after, 60) == {"h": chain.link("", {"n": 2})}
        for position in (*before, *others):
            probe.done(position, 60)
        assert len(exits) <= 2, exits
    clean(workers)


def test_a_retried_task_holds_its_session_and_nobody_else(workers: Workers, probe: Probe) -> None:
    workers.start_ready("w1")
    payload = {"until": 3, "after": 1.0}
    retried = probe.send("acme", "s", "retry", payload)
    behind = probe.send("acme", "s", "chain.link", {"n": 2})
    same_tenant = probe.send("acme", "other", "chain.link", {"n": 1})
    for position in (*neighbours(probe), same_tenant):
        probe.done(position)
    assert retried not in probe.results
    link = chain.link("", payload)
    assert probe.done(retried) == {"attempt": 3, "h": link}
    assert probe.result(retried)["attempts"] == 3
    assert probe.done(behind) == {"h": chain.link(link, {"n": 2})}
    clean(workers)


def test_a_retry_survives_its_worker(workers: Workers, probe: Probe) -> None:
    first = workers.start_ready("w1")[0]
    payload = {"until": 3, "after": 2.0}
    retried = probe.send("acme", "s", "retry", payload)
    behind = probe.send("acme", "s", "chain.link", {"n": 2})
    probe.done(probe.send("n1", "s", "chain.link", {"n": 1}))
    first.kill9()
    workers.start("w2")
    assert probe.done(retried, 60)["attempt"] == 3
    assert probe.done(behind) == {"h": chain.link(chain.link("", payload), {"n": 2})}
    clean(workers)


@pytest.mark.settings(max_attempts=3)
def test_a_task_that_always_retries_fails_in_the_end(workers: Workers, probe: Probe) -> None:
    workers.start_ready("w1")
    endless = probe.send("acme", "s", "retry", {"until": 99, "after": 0.05})
    behind = probe.send("acme", "s", "chain.link", {"n": 2})
    assert probe.failed(endless) == "MaxAttempts"
    assert probe.result(endless)["attempts"] == 3
    assert probe.done(behind) == {"h": chain.link("", {"n": 2})}
    clean(workers)


def test_a_task_sent_to_another_session(workers: Workers, probe: Probe) -> None:
    workers.start_ready("w1", "w2")
    probe.done(probe.send("acme", "s", "send", {"to": "s2", "payload": {"n": 1}}))
    probe.done(probe.send("acme", "s", "send", {"to": "s2", "payload": {"n": 2}, "tenant": "zeta"}))
    for tenant, number in (("acme", 1), ("zeta", 2)):
        while not any((r[0]["tenant"], r[0]["session"]) == (tenant, "s2") for r in probe.results.values()):
            probe.poll()
        found = [r[0] for r in probe.results.values() if (r[0]["tenant"], r[0]["session"]) == (tenant, "s2")]
        assert [r["result"]["h"] for r in found] == [chain.link("", {"n": number})]
    clean(workers)


@pytest.fixture
def own_topic(workers: Workers) -> Iterator[str]:
    """A topic of the user's: outside the namespace, whose topics are Holdfast's own."""
    topic = f"{workers.namespace}-own"
    admin = AdminClient({**workers.config})
    admin.create_topics([NewTopic(topic, 1, 1)])[topic].result(30)
    yield topic
    admin.delete_topics([topic])[topic].result(30)


def test_what_a_handler_emits_goes_out_only_if_it_succeeds(workers: Workers, probe: Probe, own_topic: str) -> None:
    workers.start_ready("w1")
    probe.done(probe.send("acme", "s", "emit", {"topic": own_topic, "value": {"n": 1}, "key": "k"}))
    failed = probe.send("acme", "s", "emit", {"topic": own_topic, "value": {"n": 2}, "fail": True})
    assert probe.failed(failed) == "ValueError"
    for name in ("no-such-topic-here", f"{workers.namespace}.results"):
        wrong = probe.send("acme", "s", "emit", {"topic": name, "value": 1})
        assert probe.failed(wrong) == "UnknownTopic"
    probe.done(probe.send("acme", "s", "emit", {"topic": own_topic, "value": "three"}))
    assert records(workers, own_topic, 2) == [(b"k", b'{"n":1}'), (None, b"three")]
    clean(workers)


def test_what_a_topic_would_refuse_fails_its_task(workers: Workers, probe: Probe) -> None:
    """Produced, it would abort its unit of work again and again."""
    topic = f"{workers.namespace}-keyed"
    admin = AdminClient({**workers.config})
    config = {"cleanup.policy": "compact", "max.message.bytes": "10000"}
    admin.create_topics([NewTopic(topic, 1, 1, config=config)])[topic].result(30)
    try:
        worker = workers.start_ready("w1")[0]
        without = probe.send("acme", "s", "emit", {"topic": topic, "value": 1})
        large = probe.send("acme", "s", "emit", {"topic": topic, "value": "x" * 9_900, "key": "k"})
        right = probe.send("acme", "s", "emit", {"topic": topic, "value": "x" * 9_487, "key": "k"})
        assert probe.failed(without) == "NoKey"
        assert probe.failed(large) == "TooLarge"
        probe.done(right)
        assert worker.running
        assert records(workers, topic, 1) == [(b"k", b"x" * 9_487)]
    finally:
        admin.delete_topics([topic])[topic].result(30)
    clean(workers)


def records(workers: Workers, topic: str, count: int) -> list[tuple[bytes | None, bytes | None]]:
    consumer = Consumer(
        {**workers.config, "group.id": "x", "isolation.level": "read_committed", "enable.auto.commit": False}
    )
    consumer.assign([TopicPartition(topic, 0, 0)])
    found = consumer.consume(count, 20)
    consumer.close()
    return [(message.key(), message.value()) for message in found]


def test_a_session_that_was_ended_begins_anew(workers: Workers, probe: Probe) -> None:
    workers.start_ready("w1")
    for number in (1, 2):
        probe.done(probe.send("acme", "s", "chain.link", {"n": number}))
    ended = probe.send("acme", "s", "end")
    probe.done(ended)
    assert probe.result(ended)["sequence"] == 3
    assert state_of(workers, "acme", "s") is None
    again = probe.send("acme", "s", "chain.link", {"n": 3})
    assert probe.done(again) == {"h": chain.link("", {"n": 3})}
    assert probe.result(again)["sequence"] == 1
    clean(workers, restarts=True)
