"""Client, server and manager killed -9, alone and in pairs: every request answered once as stored, in order."""

import json
import os
import random
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from confluent_kafka import Producer

from app.client import ClientSession, ServerSession
from app.client.exchanges import Restart
from app.protocol.murmur2 import partition_of
from app.topics import Names
from tests.support import exchanges
from tests.support.cluster import Worker, Workers, wait_for, workers_manage
from tests.support.storm import Programs, audit, begin, finish, stop, storm

pytestmark = [pytest.mark.broker, pytest.mark.timeout(280)]

WAIT_S = 150.0
FOR_EVER = "1000000"
SETTINGS = {"lease": 2, "max_crashes": 100}


@pytest.fixture
def programs(workers: Workers, tmp_path: Path) -> Iterator[Programs]:
    made = Programs(workers, tmp_path / "programs")
    yield made
    made.close()


@pytest.mark.settings(**SETTINGS)
def test_all_parties_killed_at_random(workers: Workers, programs: Programs) -> None:
    names = [f"storm-{number}" for number in range(8)]
    begin(workers, programs, names, 30, "0.02")
    storm(workers, programs, random.Random(1), kills=5, between=60)
    finish(programs, names, WAIT_S)
    audit(workers, names, 30)


UNIT_POINTS = ("before-changelog", "before-records", "before-commit", "after-commit")


@pytest.mark.settings(**SETTINGS)
def test_a_manager_killed_between_storing_and_transmitting(workers: Workers, programs: Programs) -> None:
    """At each point of a unit, two hosts at a time: the backups find what was stored, and send what was not."""
    workers.start_ready("w1", timeout=WAIT_S)
    names = [f"point-{number}" for number in range(8)]
    programs.start("server", "server", "a", "0.01")
    programs.start("client", "client", str(programs.directory), ",".join(names), FOR_EVER)
    for points in (UNIT_POINTS[:2], UNIT_POINTS[2:]):
        # They are given managers once they are warm; their first units claim them.
        victims = [workers.start(f"w{n}", HOLDFAST_CRASH_AT=f"{point}:8") for n, point in enumerate(points, 2)]
        for victim in victims:
            assert victim.wait_exit(WAIT_S) == -signal.SIGKILL, victim.tail() + programs.text()
    stop(programs, names)


class Held:
    """A server session that performs nothing until it is let go."""

    def __init__(self, workers: Workers) -> None:
        self.gate = threading.Event()
        self.session = ServerSession(server="hpc-1", perform=self._perform, settings=workers.settings)
        self._thread = threading.Thread(target=self.session.run)
        self._thread.start()

    def _perform(self, body: Any, restart: Any) -> tuple[Any, Any]:
        if body["n"] > 3:
            self.gate.wait(WAIT_S)
        return exchanges.perform(body, restart)

    def close(self) -> None:
        self.gate.set()
        self.session.stop()
        self._thread.join(WAIT_S)


def host_of(workers: Workers, exchange: str) -> tuple[Worker, dict[str, Any]]:
    """The worker that manages an exchange, and what it shows of it."""
    status, shown = workers.running[0].get(f"/api/exchanges/{exchange}")
    assert status == 200, shown
    return next(worker for worker in workers.running if worker.name == shown["worker"]), shown


@pytest.mark.settings(**SETTINGS)
def test_the_backup_restarts_both_sides_from_the_rows(workers: Workers) -> None:
    """With live instances on both sides: each gets its restart data and both queues, as they stand in the rows."""
    workers.start_ready("w1", "w2")
    wait_for(lambda: workers_manage(workers), WAIT_S, "every worker hosts managers")
    server = Held(workers)
    told: list[tuple[float, Restart]] = []
    try:
        with ClientSession(
            exchange="sim",
            client="laptop",
            settings=workers.settings,
            on_restart=lambda restart: told.append((time.monotonic(), restart)),
        ) as session:
            for n in range(1, 7):
                session.submit(exchanges.request("sim", n), restart={"step": n})
            wait_for(lambda: len(session.responses) == 3, WAIT_S, "three are performed")
            session.acknowledge(1, restart={"step": "acknowledged"})
            # What is committed can be read a moment later.
            wait_for(
                lambda: host_of(workers, "sim")[1]["client_restart"] == {"step": "acknowledged"},
                WAIT_S,
                "the acknowledgement is in the row",
            )
            host, row = host_of(workers, "sim")
            killed = time.monotonic()
            host.kill9()
            wait_for(lambda: told[-1][0] > killed and told[-1][1].cause == "manager", WAIT_S, "the client is restarted")
            wait_for(lambda: server.session.exchanges["sim"].cause == "manager", WAIT_S, "the server is restarted")
            print(f"both sides restarted after {told[-1][0] - killed:.2f} s")
            restart = told[-1][1]
            assert restart.restart == row["client_restart"] == {"step": "acknowledged"} == session.restart
            assert (restart.submitted, restart.answered, restart.acknowledged) == (6, 3, 1)
            assert [entry._asdict() for entry in session.requests] == row["requests"]
            assert [(entry.number, entry.body) for entry in session.responses] == [
                (entry["number"], entry["body"]) for entry in row["responses"]
            ]
            held = server.session.exchanges["sim"]
            assert held.restart == row["server_restart"]
            queued = {entry["number"]: entry["body"] for entry in row["requests"]}
            wait_for(lambda: server.session.exchanges["sim"].requests == queued, WAIT_S, "its requests are there")
            responses = {entry["number"]: entry["body"] for entry in row["responses"]}
            wait_for(lambda: server.session.exchanges["sim"].responses == responses, WAIT_S, "its responses are there")
            server.gate.set()
            for n in range(2, 7):
                response = session.receive(WAIT_S)
                assert response.body == {"count": n, "link": exchanges.expected("sim", n)}
                session.acknowledge(n)
            after = host_of(workers, "sim")[1]
            assert after["assignment"] == row["assignment"], "it went on in place"
    finally:
        server.close()


PROGRAM = """
import json, os, signal, sys, time
directory = sys.argv[1]
count = len(os.listdir(directory))
shown = json.load(open(os.environ["HOLDFAST_RESTART_FILE"]))
note = {"pid": os.getpid(), "exchange": os.environ["HOLDFAST_EXCHANGE"], "shown": shown}
with open(os.path.join(directory, f"writing-{count}"), "w") as file:
    json.dump(note, file)
os.rename(file.name, os.path.join(directory, f"start-{count}"))
signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))
time.sleep(600)
"""


class Supervised:
    """`holdfast exchange host` around a program that notes what it was started with, and is silent."""

    def __init__(self, workers: Workers, directory: Path, *who: str) -> None:
        directory.mkdir()
        self.directory = directory
        where = ("--bootstrap", workers.settings.bootstrap, "--namespace", workers.namespace, "--json")
        program = (sys.executable, "-c", PROGRAM, str(directory))
        self.process = subprocess.Popen(
            [sys.executable, "-m", "app", "exchange", "host", *where, *who, "--", *program],
            stdout=subprocess.DEVNULL,
            cwd=exchanges.ROOT,
        )

    def starts(self) -> list[dict[str, Any]]:
        return [json.loads(path.read_text()) for path in sorted(self.directory.glob("start-*"))]

    def wait(self, count: int) -> dict[str, Any]:
        """What the program was started with the ``count``-th time."""
        wait_for(lambda: len(self.starts()) >= count, WAIT_S, f"start number {count}")
        return self.starts()[count - 1]

    def close(self) -> None:
        if self.process.poll() is None:
            self.process.terminate()
        self.process.wait(30)


class Voices:
    """What both programs say, written to the topics as a program in any language does, from a thread of its own.

    The programs themselves are silent, so that the test decides how long each of them is there.
    """

    def __init__(self, workers: Workers) -> None:
        self._workers = workers
        self._producer = Producer({**workers.config, "enable.idempotence": True})
        self._silent = threading.Event()
        self.client = self.write("requests", "sim", {"type": "open", "client": "laptop"})
        self.server = self.write("responses", "hpc-9", {"type": "open", "server": "hpc-9"})
        self._thread = threading.Thread(target=self._beat)
        self._thread.start()

    def write(self, topic: str, key: str, record: dict[str, Any], partition: int | None = None) -> int:
        """Write a record and return its offset."""
        offsets: list[int] = []
        self._producer.produce(
            Names(self._workers.namespace).topic(topic),
            json.dumps({"v": 1, **record}).encode(),
            key.encode(),
            partition_of(key.encode(), self._workers.settings.routers) if partition is None else partition,
            on_delivery=lambda _, message: offsets.append(message.offset() or 0),
        )
        assert self._producer.flush(WAIT_S) == 0
        return offsets[0]

    def _beat(self) -> None:
        place = partition_of(b"sim", self._workers.settings.routers)
        alive = {"type": "alive", "server": "hpc-9", "incarnation": self.server}
        while not self._silent.wait(0.2):
            self.write("requests", "sim", {"type": "alive", "incarnation": self.client})
            self.write("responses", "hpc-9", alive, place)

    def end(self) -> None:
        self._silent.set()
        self._thread.join(WAIT_S)


def converse(workers: Workers, voices: Voices) -> dict[str, Any]:
    """Two requests, one of them answered; the exchange as its manager shows it then."""
    wait_for(lambda: _shown(workers, "sim").get("assignment") == 1, WAIT_S, "a server session is assigned")
    submit = {"type": "submit", "incarnation": voices.client, "body": {"n": 1}, "restart": {"step": 1}}
    for number in (1, 2):
        voices.write("requests", "sim", {**submit, "op": number, "number": number})
    respond = {"type": "respond", "server": "hpc-9", "assignment": 1, "op": 1, "number": 1}
    wait_for(lambda: _shown(workers, "sim")["submitted"] == 2, WAIT_S, "both requests are stored")
    voices.write("responses", "sim", {**respond, "body": {"x": 1}, "restart": {"done": 1}})
    wait_for(lambda: _shown(workers, "sim")["answered"] == 1, WAIT_S, "the response is stored")
    return _shown(workers, "sim")


@pytest.mark.settings(**{**SETTINGS, "lease": 4})
def test_programs_under_their_host_supervisors_are_started_anew(workers: Workers, tmp_path: Path) -> None:
    """One that dies is started again at once; one that is silent, when the manager's backup has not reached it."""
    workers.start_ready("w1", "w2")
    client = Supervised(workers, tmp_path / "client", "--client", "laptop", "--exchange", "sim")
    server = Supervised(workers, tmp_path / "server", "--server", "hpc-9")
    voices = None
    try:
        assert client.wait(1)["shown"]["outcome"] == "unknown"
        first = server.wait(1)
        assert first["shown"] == {"server": "hpc-9", "exchanges": []}
        voices = Voices(workers)
        row = converse(workers, voices)
        os.kill(first["pid"], signal.SIGKILL)
        [given] = server.wait(2)["shown"]["exchanges"]
        assert (given["exchange"], given["restart"]) == ("sim", row["server_restart"]) == ("sim", {"done": 1})
        assert (given["requests"], given["responses"]) == (row["requests"], row["responses"])
        host_of(workers, "sim")[0].kill9()
        voices.end()
        again = client.wait(2)
        assert again["exchange"] == again["shown"]["exchange"] == "sim"
        assert again["shown"]["restart"] == row["client_restart"] == {"step": 1}
        assert again["shown"]["requests"] == row["requests"] == [{"number": 2, "body": {"n": 1}}]
        assert again["shown"]["responses"] == row["responses"] == [{"number": 1, "body": {"x": 1}}]
        assert server.wait(3)["shown"]["exchanges"] == [], "it was silent, so it has lost the exchange"
        assert _shown(workers, "sim")["server"] is None
    finally:
        if voices is not None:
            voices.end()
        for one in (client, server):
            one.close()


@pytest.mark.settings(**SETTINGS)
def test_a_worker_that_stood_still_and_one_that_thawed(workers: Workers, programs: Programs) -> None:
    """A frozen manager is replaced; a frozen server session is replaced, and what it says later changes nothing."""
    names = ["frozen-1", "frozen-2", "frozen-3"]
    begin(workers, programs, names, int(FOR_EVER), "0.02")
    wait_for(lambda: _answered(workers, names[0]) > 5, WAIT_S, "work is under way")
    frozen = programs.running["server-a"]
    frozen.send_signal(signal.SIGSTOP)
    host, _ = host_of(workers, names[0])
    host.sigstop()
    threading.Event().wait(4)
    host.sigcont()
    frozen.send_signal(signal.SIGCONT)
    stop(programs, names)


def _shown(workers: Workers, exchange: str) -> dict[str, Any]:
    """The exchange as a worker shows it; nothing when its manager is just changing its host."""
    status, shown = workers.running[0].get(f"/api/exchanges/{exchange}")
    return shown if status == 200 else {}


def _answered(workers: Workers, exchange: str) -> int:
    return int(_shown(workers, exchange).get("answered", 0))
