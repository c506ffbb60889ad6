"""Clients, servers and managers of exchanges that are killed -9 and started again, and what must be true then."""

import json
import random
import subprocess
import time
from collections import Counter
from pathlib import Path
from typing import Any, Final

from app.observe.reading import end_offsets, read
from app.topics import Names
from tests.support import exchanges
from tests.support.cluster import Workers, wait_for

WAIT_S: Final = 150.0
PARTIES: Final = ("client", "server-a", "server-b", "worker")


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

    def again(self, name: str) -> None:
        """Start a program that was killed once more."""
        self.start(name, *self._arguments[name])

    def work(self, operations: int) -> None:
        """Let the client go on until so many operations more are stored, or everything is done."""
        journal = self.directory / exchanges.JOURNAL

        def stored() -> int:
            return journal.read_bytes().count(b"=") if journal.exists() else 0

        enough = stored() + operations
        wait_for(lambda: not self.working or stored() >= enough, WAIT_S, "work goes on")

    @property
    def working(self) -> bool:
        """Does the client still drive exchanges?"""
        return self.running["client"].poll() is None

    def text(self) -> str:
        files = [*sorted(self.directory.glob("*.log")), *sorted(self.directory.glob("failed-*"))]
        return "\n".join(f"--- {path.name}\n{path.read_text()[-3_000:]}" for path in files)

    def close(self) -> None:
        for process in self.running.values():
            process.kill()
            process.wait(10)


def finish(programs: Programs, names: list[str], timeout: float = WAIT_S) -> None:
    """Wait until the client has driven every exchange to its end, and found nothing wrong."""
    try:
        wait_for(lambda: not programs.working, timeout, "the client ends")
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


def begin(workers: Workers, programs: Programs, names: list[str], requests: int, seconds: str) -> None:
    """Two workers, two server sessions that take so long for a request, a client."""
    workers.start_ready("w1", "w2", timeout=WAIT_S)
    programs.start("server-a", "server", "a", seconds)
    programs.start("server-b", "server", "b", seconds)
    programs.start("client", "client", str(programs.directory), ",".join(names), str(requests))


def storm(workers: Workers, programs: Programs, rng: random.Random, kills: int, between: int) -> Counter[str]:
    """Kill one or two of the parties at once, and start new processes; return who was killed how often.

    About ``between`` operations of the client are stored from one death to the next one. A worker's successor serves
    before the next one dies, so that one of the two always has the rows.
    """
    killed: Counter[str] = Counter()
    for _ in range(kills):
        programs.work(rng.randint(between // 2, 3 * between // 2))
        if not programs.working:
            break
        victims = rng.sample(PARTIES, rng.choice([1, 1, 2]))
        name = rng.choice(["w1", "w2"])
        for victim in victims:
            if victim == "worker":
                next(worker for worker in workers.running if worker.name == name).kill9()
            else:
                programs.kill9(victim)
        for victim in victims:
            if victim != "worker":
                programs.again(victim)
        if "worker" in victims:
            workers.start(name).wait_ready(WAIT_S)
        killed["+".join(sorted(victims))] += 1
    return killed


class _Told:
    """What all managers together have told about one exchange, in the order of its partition."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.chain = exchanges.Chain(name)
        self.positions = (0, 0, 0)
        self.answers = 0

    def client(self, record: dict[str, Any]) -> None:
        """A record of ``replies``."""
        kind = record["type"]
        if kind in ("positions", "restart"):
            now = (record["submitted"], record["answered"], record["acknowledged"])
            self._right(all(new >= old for new, old in zip(now, self.positions, strict=True)), record)
            self._right(now[2] <= now[1] <= now[0] <= now[2] + exchanges.WINDOW, record)
            self.positions = now
        if kind == "restart":
            data = record["restart"] or {"submitted": 0, "received": 0}
            self._right(data == {"submitted": record["submitted"], "received": record["acknowledged"]}, record)
        if kind == "response":
            number = record["number"]
            self._right(record["body"] == {"count": number, "link": self.chain[number]}, record)
            self.answers = max(self.answers, number)

    def server(self, record: dict[str, Any]) -> None:
        """A record of ``assignments``."""
        if record["type"] == "restart":
            done = record["answered"]
            self._right(record["restart"] == ({"count": done, "link": self.chain[done]} if done else None), record)

    def _right(self, condition: bool, record: dict[str, Any]) -> None:
        assert condition, f"{self.name} at {self.positions}: {record}"


def audit(workers: Workers, names: list[str], requests: int) -> None:
    """Read all that managers have told both sides: positions that only grow, within the window; one answer to each
    request; restart data that belong to the positions; and at the end everything answered and acknowledged.
    """
    topics = Names(workers.namespace)
    deadline = time.monotonic() + WAIT_S
    ends = end_offsets(workers.config, [topics.replies, topics.assignments], deadline=deadline)
    told = {name: _Told(name) for name in names}
    for message in read(workers.config, ends, {}, deadline=deadline):
        found = told.get((message.key() or b"").decode())
        if found is not None:
            record = json.loads(message.value() or b"")
            (found.client if message.topic() == topics.replies else found.server)(record)
    assert {found.positions for found in told.values()} == {(requests, requests, requests)}
    assert {found.answers for found in told.values()} == {requests}
