"""Start, end and outage of a worker: what it says, and how the others go on."""

import re
import shutil
import signal
import subprocess
import time
from pathlib import Path

import pytest
from confluent_kafka.admin import AdminClient

from app.topics import Names
from tests.support.broker import OwnBrokers
from tests.support.cluster import Workers, wait_for
from tests.support.job import settle, when_sent
from tests.support.load import Load, Plan
from tests.support.probe import Probe

pytestmark = pytest.mark.broker

# A member that only stops answering stays in the group for the session timeout, 6 s at least.
AT_ONCE_S = 3.0


def members(workers: Workers) -> int:
    admin = AdminClient({**workers.config})
    group = f"{workers.namespace}.workers"
    return len(admin.describe_consumer_groups([group])[group].result(10).members)


def complaint(text: str) -> str:
    """Return the one line that says why a command ended; fail on a traceback."""
    assert "Traceback" not in text, text
    lines = [line for line in text.splitlines() if line.strip()]
    assert lines, "nothing was said"
    return lines[-1]


def test_sigterm_finishes_the_unit_and_leaves_at_once(workers: Workers) -> None:
    first, second = workers.start_ready("w1", "w2")
    load = Load(workers.config, workers.namespace, Plan(tasks=4_000, rate=600)).start()
    when_sent(load, 1_000)
    assert members(workers) == 2
    begun = time.monotonic()
    assert first.sigterm(10) == 0
    assert members(workers) == 1
    assert time.monotonic() - begun < AT_ONCE_S
    settle(workers, load)
    assert second.sigterm(10) == 0
    assert members(workers) == 0
    assert "Traceback" not in first.text() + second.text()


def test_workers_that_stop_together_leave_nobody_in_the_group(workers: Workers) -> None:
    running = workers.start_ready("w1", "w2", "w3")
    for worker in running:
        worker.process.send_signal(signal.SIGTERM)
    assert [worker.wait_exit() for worker in running] == [0, 0, 0]
    group = Names(workers.namespace).group
    admin = AdminClient({**workers.config})
    assert admin.describe_consumer_groups([group])[group].result(30).members == []


def test_sigint_is_the_same(workers: Workers) -> None:
    worker = workers.start_ready("w1")[0]
    worker.process.send_signal(signal.SIGINT)
    assert worker.wait_exit(10) == 0
    assert members(workers) == 0


def test_sigterm_during_the_start(workers: Workers) -> None:
    worker = workers.start("w1")
    wait_for(lambda: "w1" in worker.text() or not worker.running, 20, "the first line of the log")
    assert worker.sigterm(15) in (0, -signal.SIGTERM)
    workers.start_ready("w1")


def test_healthz_and_readyz(workers: Workers) -> None:
    worker = workers.start_ready("w1")[0]
    assert worker.get("/healthz")[0] == 200
    assert worker.get("/readyz")[0] == 200
    status, body = worker.get("/api/status")
    assert status == 200
    assert body["namespace"] == workers.namespace
    assert [entry["name"] for entry in body["workers"]] == ["w1"]
    assert {entry["host"] for entry in body["servers"]} == {"w1"}


def test_of_two_workers_with_one_name_the_younger_wins(workers: Workers, probe: Probe) -> None:
    older = workers.start_ready("w1")[0]
    probe.done(probe.send("acme", "s", "counter.add", {"amount": 1}))
    seen = len(older.text())
    younger = workers.start("w1")
    younger.wait_ready()
    assert older.wait_exit(20) == 1
    assert "Traceback" not in older.text()[seen:]
    assert re.search(r"w1.*(younger|another|taken over)", older.text()[seen:])
    assert probe.done(probe.send("acme", "s", "counter.add", {"amount": 1})) == {"total": 2}
    assert younger.running
    assert members(workers) == 1


def test_another_number_of_partitions_is_one_line(workers: Workers) -> None:
    worker = workers.start("w1", HOLDFAST_SERVERS="9")
    assert worker.wait_exit() == 2
    assert "has 8 partitions, the settings say 9" in complaint(worker.text())


@pytest.mark.parametrize(
    ("variable", "value", "named"),
    [
        ("HANDLERS", "no.such.module", "no.such.module"),
        ("SERVERS", "none", "HOLDFAST_SERVERS"),
        ("STORE", "disk", "HOLDFAST_STORE"),
    ],
)
def test_a_wrong_setting_is_one_line(workers: Workers, variable: str, value: str, named: str) -> None:
    worker = workers.start("w1", **{f"HOLDFAST_{variable}": value})
    assert worker.wait_exit() == 2
    assert named in complaint(worker.text())


@pytest.mark.parametrize("store", [pytest.param("memory", marks=pytest.mark.soak), "rocksdb"])
def test_a_state_directory_that_is_a_file_is_one_line(workers: Workers, tmp_path: Path, store: str) -> None:
    unusable = tmp_path / "file"
    unusable.write_text("not a directory")
    worker = workers.start("w1", HOLDFAST_STATE_DIR=str(unusable), HOLDFAST_STORE=store)
    assert worker.wait_exit() == 2
    assert str(unusable) in complaint(worker.text())


def test_nobody_at_the_bootstrap_address_is_one_line_and_exit_3(tmp_path: Path) -> None:
    with Workers("127.0.0.1:1", "nobody", tmp_path) as workers:
        worker = workers.start("w1")
        assert worker.wait_exit(60) == 3
        assert "127.0.0.1:1" in complaint(worker.text())


def test_an_outage_of_the_broker_is_waited_for(own_broker: OwnBrokers, tmp_path: Path) -> None:
    """Longer than the group's session timeout; the worker goes on by itself and says so in few lines."""
    kafka = own_broker()
    kafka.start()
    with Workers(kafka.bootstrap, "outage", tmp_path / "workers") as workers:
        workers.topics()
        worker = workers.start_ready("w1")[0]
        with Probe(workers.config, workers.namespace) as probe:
            assert probe.done(probe.send("acme", "s", "counter.add", {"amount": 1})) == {"total": 1}
        kafka.stop()
        time.sleep(15)
        assert worker.running
        assert worker.get("/healthz")[0] != 0
        kafka.start()
        with Probe(workers.config, workers.namespace) as probe:
            assert probe.done(probe.send("acme", "s", "counter.add", {"amount": 1}), 60) == {"total": 2}
        assert worker.running
        assert len(worker.text().splitlines()) < 100, worker.tail(120)


@pytest.mark.parametrize("tasks", [pytest.param(0, id="idle"), pytest.param(500, id="busy", marks=pytest.mark.soak)])
def test_sigterm_during_an_outage_ends_the_worker(own_broker: OwnBrokers, tmp_path: Path, tasks: int) -> None:
    """It cannot commit what it has begun and cannot leave the group; its successor does each task once."""
    kafka = own_broker()
    kafka.start()
    with Workers(kafka.bootstrap, "outage", tmp_path / "workers") as workers:
        workers.topics()
        worker = workers.start_ready("w1")[0]
        with Probe(workers.config, workers.namespace) as probe:
            sent = [probe.send("acme", "s", "counter.add", {"amount": 1}) for _ in range(tasks)]
        kafka.kill()
        assert worker.sigterm(12) == 0
        assert "Traceback" not in worker.text()
        if tasks:
            kafka.start()
            workers.start_ready("w1")
            with Probe(workers.config, workers.namespace) as probe:
                assert [probe.done(position, 30)["total"] for position in sent] == list(range(1, tasks + 1))


def test_state_of_another_cluster_is_set_aside(own_broker: OwnBrokers, tmp_path: Path) -> None:
    """The same namespace on a new cluster: sessions begin anew, and the old files are still there."""
    state = tmp_path / "state"
    said = ""
    for number in (1, 2):
        kafka = own_broker(state_dir=tmp_path / f"cluster-{number}")
        kafka.start()
        directory = tmp_path / f"workers-{number}"
        with Workers(kafka.bootstrap, "same", directory, state_dir=state, store="rocksdb") as workers:
            workers.topics()
            worker = workers.start_ready("w1")[0]
            with Probe(workers.config, workers.namespace) as probe:
                position = probe.send("acme", "s", "counter.add", {"amount": 1})
                assert probe.done(position) == {"total": 1}
            assert worker.sigterm() == 0
            said = worker.text()
        kafka.stop()
    assert "set aside" in said


def test_rocksdb_replays_only_what_it_has_not(workers: Workers, probe: Probe) -> None:
    rocksdb = {"HOLDFAST_STORE": "rocksdb"}
    worker = workers.start("w1", **rocksdb)
    worker.wait_ready()
    load = Load(workers.config, workers.namespace, Plan(tasks=2_000, sessions=500)).start()
    settle(workers, load)
    assert worker.sigterm() == 0
    before = len(worker.text())
    again = workers.start("w1", **rocksdb)
    again.wait_ready()
    assert probe.done(probe.send("acme", "s", "chain.link", {"n": 1}))
    assert 0 <= replayed(again.text(), since=before) <= 50


@pytest.mark.parametrize("store", ["memory", "rocksdb"])
def test_a_warm_standby_does_not_replay_the_changelog(workers: Workers, store: str) -> None:
    """The rows are written once each, so the whole changelog is at least as long as there are sessions."""
    first, second = (workers.start(name, HOLDFAST_STORE=store) for name in ("w1", "w2"))
    first.wait_ready()
    second.wait_ready()
    load = Load(workers.config, workers.namespace, Plan(tasks=6_000, sessions=2_000, rate=1_000)).start()
    when_sent(load, 4_000)
    before = len(second.text())
    first.kill9()
    settle(workers, load)
    assert replayed(second.text(), since=before) < 1_000


def replayed(text: str, *, since: int) -> int:
    """Return how many rows restores have replayed, as the log says."""
    counts = [int(count) for count in re.findall(r"(\d+) rows replayed", text[since:])]
    assert counts, text[since:]
    return sum(counts)


@pytest.mark.skipif(shutil.which("mount") is None, reason="a small file system cannot be mounted here")
def test_a_full_disk_is_one_line(workers: Workers, tmp_path: Path) -> None:
    small = tmp_path / "small"
    small.mkdir()
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=24m", "tmpfs", str(small)], check=False)
    if mounted.returncode:
        pytest.xfail("mounting a small file system needs the privileges of root")
    try:
        worker = workers.start("w1", HOLDFAST_STORE="rocksdb", HOLDFAST_STATE_DIR=str(small))
        worker.wait_ready()
        with Probe(workers.config, workers.namespace) as probe:
            for number in range(40):
                probe.send(f"t{number}", "s", "big.state", {"bytes": 1_900_000, "seed": number})
            assert worker.wait_exit(60) == 1
            said = [line for line in worker.text().splitlines() if " INFO " not in line and "rdkafka" not in line]
            assert len(said) == 2, said
            assert said[0].startswith("worker w1 serves")
            assert re.search(f"ERROR.*{small}.*No space left on device.*free some space", said[1])
            workers.start("w2").wait_ready()
            assert probe.done(probe.send("acme", "s", "counter.add", {"amount": 1})) == {"total": 1}
    finally:
        subprocess.run(["umount", "-l", str(small)], check=False)
