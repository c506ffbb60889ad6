"""Client, server and manager killed -9, alone and in pairs: every request answered once as stored, in order."""

import json
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
from tests.support.cluster import Worker, Workers, wait_for

pytestmark = [pytest.mark.broker, pytest.mark.timeout(280)]

WAIT_S = 60.0
FOR_EVER = "1000000"
SETTINGS = {"lease": 2, "max_crashes": 100}


class Programs:
    """Processes of client and server computers; started again when they are killed."""

    def __init__(self, workers: Workers, directory: Path) -> None:
        directory.mkdir(exist_ok=True)
        self.directory = directory
        self.config = {"HOLDFAST_BOOTSTRAP": workers.settings.bootstrap, "HOLDFAST_NAMESPACE": workers.namespace}
        self.running: dict[str, subprocess.Popen[bytes]] = {}
        self._arguments: dict[str, tuple[str, ...]] = {}

    def start(self, name: str, *arguments: str) -> None:
        self._arguments[name] = arguments
        self.running[name] = exchanges.start(self.config, self.directory / f"{name}.log", *arguments)

    def kill9(self, name: str) -> None:
        self.running[name].kill()
        self.running[name].wait(10)
        self.start(name, *self._arguments[name])

    def text(self) -> str:
        files = [*sorted(self.directory.glob("*.log")), *sorted(self.directory.glob("failed-*"))]
        return "\n".join(f"--- {path.name}\n{path.read_text()[-3_000:]}" for path in files)

    def close(self) -> None:
        for process in self.running.values():
            process.kill()
            process.wait(10)


@pytest.fixture
def programs(workers: Workers, tmp_path: Path) -> Iterator[Programs]:
    made = Programs(workers, tmp_path / "programs")
    yield made
    made.close()


def finish(programs: Programs, names: list[str], timeout: float = WAIT_S) -> None:
    """Wait until the client has driven every exchange to its end, and found nothing wrong."""

    def ended() -> bool:
        return programs.running["client"].poll() is not None

    try:
        wait_for(ended, timeout, "the client ends")
        assert programs.running["client"].returncode == 0
        notes = {path.stem: json.loads(path.read_text()) for path in programs.directory.glob("*.json")}
        assert set(notes) == set(names)
        assert all(note["received"] for note in notes.values())
        assert not list(programs.directory.glob("failed-*"))
    except AssertionError as error:
        raise AssertionError(f"{error}\n{programs.text()}") from None


def stop(programs: Programs, names: list[str]) -> None:
    """The client has submitted enough: it ends when everything is answered."""
    (programs.directory / exchanges.STOP).touch()
    finish(programs, names)


def storm(workers: Workers, programs: Programs, rng: random.Random, kills: int, pause_s: float) -> None:
    """Kill one or two of the parties at a time; a worker's successor is there before the next one dies."""
    for _ in range(kills):
        if programs.running["client"].poll() is not None:
            return
        for victim in rng.sample(["client", "server-a", "server-b", "worker"], rng.choice([1, 1, 2])):
            if victim == "worker":
                name = rng.choice(["w1", "w2"])
                next(worker for worker in workers.running if worker.name == name).kill9()
                workers.start(name).wait_ready()
            else:
                programs.kill9(victim)
        threading.Event().wait(pause_s * rng.random())


def begin(workers: Workers, programs: Programs, names: list[str], requests: int, seconds: str) -> None:
    """Two workers, two server sessions that take so long for a request, a client."""
    workers.start_ready("w1", "w2")
    programs.start("server-a", "server", "a", seconds)
    programs.start("server-b", "server", "b", seconds)
    programs.start("client", "client", str(programs.directory), ",".join(names), str(requests))


@pytest.mark.settings(**SETTINGS)
def test_all_parties_killed_at_random(workers: Workers, programs: Programs) -> None:
    names = [f"storm-{number}" for number in range(8)]
    begin(workers, programs, names, 30, "0.02")
    storm(workers, programs, random.Random(1), kills=5, pause_s=2.0)
    finish(programs, names)


@pytest.mark.soak
@pytest.mark.timeout(3_600)
@pytest.mark.settings(**SETTINGS)
def test_a_thousand_exchanges_with_all_parties_killed_at_random(workers: Workers, programs: Programs) -> None:
    names = [f"storm-{number}" for number in range(1_000)]
    begin(workers, programs, names, 50, "0.002")
    storm(workers, programs, random.Random(2), kills=60, pause_s=10.0)
    finish(programs, names, 1_800)


UNIT_POINTS = ("before-changelog", "before-offsets", "before-commit", "after-commit")


@pytest.mark.settings(**SETTINGS)
def test_a_manager_killed_between_storing_and_transmitting(workers: Workers, programs: Programs) -> None:
    """At each point of a unit: its backup finds what was stored, and sends what was not."""
    workers.start_ready("w1")
    names = [f"point-{number}" for number in range(8)]
    programs.start("server", "server", "a", "0.01")
    programs.start("client", "client", str(programs.directory), ",".join(names), FOR_EVER)
    for point in UNIT_POINTS:
        # It is given managers once it is warm; its first units claim them.
        victim = workers.start("w2", HOLDFAST_CRASH_AT=f"{point}:8")
        assert victim.wait_exit(60) == -signal.SIGKILL, victim.tail() + programs.text()
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


def is_assigned(workers: Workers, exchange: str, *, submitted: int) -> bool:
    """Whether a manager has so many requests of it and a server session for them."""
    status, shown = workers.running[0].get(f"/api/exchanges/{exchange}")
    return status == 200 and shown["assignment"] == 1 and shown["submitted"] == submitted


@pytest.mark.settings(**SETTINGS)
def test_the_backup_restarts_both_sides_from_the_rows(workers: Workers) -> None:
    """With live instances on both sides: each gets its restart data and both queues, as they stand in the rows."""
    workers.start_ready("w1", "w2")
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
            # Places may have changed hands before, when the second worker came.
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
shown["exchange in the environment"] = os.environ["HOLDFAST_EXCHANGE"]
with open(os.path.join(directory, f"writing-{count}"), "w") as file:
    json.dump(shown, file)
os.rename(file.name, os.path.join(directory, f"start-{count}"))
signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))
time.sleep(120)
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
        wait_for(lambda: len(self.starts()) >= count, WAIT_S, f"start number {count}")
        return self.starts()[count - 1]

    def close(self) -> None:
        if self.process.poll() is None:
            self.process.terminate()
        self.process.wait(30)


def write(workers: Workers, topic: str, key: str, *records: dict[str, Any]) -> int:
    """Write to a topic of exchanges as a program in any language does; the offset of the first record."""
    producer = Producer({**workers.config, "enable.idempotence": True})
    offsets: list[int] = []
    partition = partition_of(key.encode(), workers.settings.routers)
    for record in records:
        producer.produce(
            Names(workers.namespace).topic(topic),
            json.dumps({"v": 1, **record}).encode(),
            key.encode(),
            partition,
            on_delivery=lambda _, message: offsets.append(message.offset() or 0),
        )
    assert producer.flush(WAIT_S) == 0
    return offsets[0]


@pytest.mark.soak
@pytest.mark.settings(**SETTINGS)
def test_programs_under_their_host_supervisors_are_started_anew(workers: Workers, tmp_path: Path) -> None:
    """A program that does not answer its manager within the lease is started again with what the rows hold."""
    workers.start_ready("w1", "w2")
    server = write(workers, "responses", "hpc-9", {"type": "open", "server": "hpc-9"})
    partition = partition_of(b"sim", workers.settings.routers)
    producer = Producer(workers.config)
    alive = {"v": 1, "type": "alive", "server": "hpc-9", "incarnation": server}
    producer.produce(Names(workers.namespace).responses, json.dumps(alive).encode(), b"hpc-9", partition)
    assert producer.flush(WAIT_S) == 0
    client = write(workers, "requests", "sim", {"type": "open", "client": "laptop"})
    submit = {"type": "submit", "incarnation": client, "body": {"n": 1}, "restart": {"step": 1}}
    write(workers, "requests", "sim", {**submit, "op": 1, "number": 1}, {**submit, "op": 2, "number": 2})
    wait_for(lambda: is_assigned(workers, "sim", submitted=2), WAIT_S, "the server session has its requests")
    respond = {"type": "respond", "server": "hpc-9", "assignment": 1, "op": 1, "number": 1}
    write(workers, "responses", "sim", {**respond, "body": {"x": 1}, "restart": {"done": 1}})
    wait_for(lambda: host_of(workers, "sim")[1]["answered"] == 1, WAIT_S, "the response is stored")
    supervised = [
        Supervised(workers, tmp_path / "client", "--client", "laptop", "--exchange", "sim"),
        Supervised(workers, tmp_path / "server", "--server", "hpc-9"),
    ]
    try:
        host, row = host_of(workers, "sim")
        if row["server"] == "hpc-9":
            host.kill9()
        for one in supervised:
            one.wait(2)
        client_told = supervised[0].starts()[-1]
        assert client_told["exchange in the environment"] == client_told["exchange"] == "sim"
        assert client_told["restart"] == {"step": 1}
        assert [entry["number"] for entry in client_told["requests"]] == [2]
        assert client_told["responses"] == [{"number": 1, "body": {"x": 1}}]
        first = supervised[1].starts()[0]["exchanges"]
        if first:
            assert (first[0]["exchange"], first[0]["restart"]) == ("sim", {"done": 1})
    finally:
        for one in supervised:
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


def _answered(workers: Workers, exchange: str) -> int:
    status, shown = workers.running[0].get(f"/api/exchanges/{exchange}")
    return int(shown["answered"]) if status == 200 else 0
