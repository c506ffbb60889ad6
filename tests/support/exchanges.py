"""Programs of client and server computers for the tests of exchanges: each checks what it is told.

``python -m tests.support.exchanges client DIRECTORY EXCHANGES REQUESTS`` drives exchanges to their end, a thread each,
and notes in a file what it was told. ``… server NAME SECONDS`` performs. Both find the cluster in the environment.
"""

import hashlib
import json
import os
import subprocess
import sys
import threading
import time
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

from app.client import ClientSession, ServerSession
from app.client.exchanges import Response, Restart
from app.errors import HoldfastError

WINDOW = 8
STOP = "stop"
JOURNAL = "journal"
TIMEOUT_S = 120.0
ROOT = Path(__file__).parents[2]


def link(before: str, body: Mapping[str, Any]) -> str:
    """The next link of a chain over requests: one that is lost, doubled or out of order shows in all that follow."""
    text = before + json.dumps(body, sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def request(exchange: str, number: int) -> dict[str, Any]:
    return {"exchange": exchange, "n": number}


class Chain:
    """What the answers of an exchange must be, whoever performed the requests and how often."""

    def __init__(self, exchange: str) -> None:
        self._exchange = exchange
        self._links = [""]

    def __getitem__(self, number: int) -> str:
        while len(self._links) <= number:
            self._links.append(link(self._links[-1], request(self._exchange, len(self._links))))
        return self._links[number]


def expected(exchange: str, number: int) -> str:
    """What the answer to request ``number`` must be."""
    return Chain(exchange)[number]


def perform(body: dict[str, Any], restart: Any) -> tuple[Any, Any]:
    """Append a link to the chain that the restart data keep."""
    before = restart or {"count": 0, "link": ""}
    after = {"count": before["count"] + 1, "link": link(before["link"], body)}
    return after, after


class MismatchError(Exception):
    """What was told differs from what it must be."""


def check(what: str, told: object, right: object) -> None:
    if told != right:
        raise MismatchError(f"{what}: {told!r}, not {right!r}")


def check_in(what: str, told: object, right: Collection[object]) -> None:
    if told not in right:
        raise MismatchError(f"{what}: {told!r}, not one of {right!r}")


class Journal:
    """What the client's processes have sent, and what they were told is stored; it survives them.

    A line for each operation before it is sent (``?``) and when the manager has it (``=``): the restart data with it.
    """

    def __init__(self, directory: Path) -> None:
        path = directory / JOURNAL
        self._known: dict[str, dict[str, tuple[int, int]]] = {}
        for line in path.read_text().splitlines() if path.exists() else ():
            exchange, kind, submitted, received = line.split()
            known = self._known.setdefault(exchange, {})
            known[kind] = (int(submitted), int(received))
        self._file = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT)

    def note(self, exchange: str, kind: str, state: Mapping[str, int]) -> None:
        os.write(self._file, f"{exchange} {kind} {state['submitted']} {state['received']}\n".encode())

    def possible(self, exchange: str) -> list[dict[str, int]]:
        """The restart data that its next process may find: the last that were acknowledged, or those on their way."""
        known = self._known.get(exchange, {})
        stored = known.get("=", (0, 0))
        found = {stored, max(stored, known.get("?", stored), key=sum)}
        return [{"submitted": submitted, "received": received} for submitted, received in sorted(found)]


def drive(exchange: str, requests: int, note: Path, journal: Journal) -> None:
    """Take an exchange to its end, from wherever it stands; once there is a file ``stop``, submit no more."""
    stop, chain = note.with_name(STOP), Chain(exchange)
    restarts: list[Restart] = []
    with ClientSession(
        exchange=exchange, client="driver", window=WINDOW, timeout=TIMEOUT_S, on_restart=restarts.append
    ) as session:
        first = restarts[0]
        state = session.restart or {"submitted": 0, "received": 0}
        # Every operation carries them, so they must say what the positions say.
        check("restart data", state, {"submitted": first.submitted, "received": first.acknowledged})
        check_in("restart data after what was acknowledged", state, journal.possible(exchange))
        check_queues(session, first, chain)
        journal.note(exchange, "=", state)
        while state["received"] < (state["submitted"] if stop.exists() else requests):
            while state["submitted"] - state["received"] < WINDOW and not (
                state["submitted"] >= requests or stop.exists()
            ):
                number = state["submitted"] + 1
                state = {**state, "submitted": number}
                journal.note(exchange, "?", state)
                check("number", session.submit(request(exchange, number), restart=state), number)
                journal.note(exchange, "=", state)
            if state["submitted"] == state["received"]:
                break
            response = session.receive(timeout=TIMEOUT_S)
            check("the order of responses", response.number, state["received"] + 1)
            check_answer(response, chain)
            state = {**state, "received": response.number}
            journal.note(exchange, "?", state)
            session.acknowledge(response.number, restart=state)
            journal.note(exchange, "=", state)
        check("restarts", [told.cause for told in restarts[1:] if told.cause not in ("manager", "asked")], [])
        note.write_text(json.dumps({"restarts": len(restarts), "received": state["received"]}))


def check_queues(session: ClientSession, restart: Restart, chain: Chain) -> None:
    """Both queues of a restarted client: everything that is neither answered nor acknowledged, whole and in order."""
    requests, responses = session.requests, session.responses
    numbers = [*(answer.number for answer in responses), *(queued.number for queued in requests)]
    check("queued numbers", numbers, list(range(restart.acknowledged + 1, restart.submitted + 1)))
    for queued in requests:
        check("a queued request", queued.body, request(session.exchange, queued.number))
    for answer in responses:
        check_answer(answer, chain)


def check_answer(response: Response, chain: Chain) -> None:
    right = {"count": response.number, "link": chain[response.number]}
    check(f"response {response.number}, {response.error}", response.body, right)


def client(directory: Path, names: list[str], requests: int) -> int:
    failures: list[str] = []
    journal = Journal(directory)

    def run(exchange: str) -> None:
        note = directory / f"{exchange}.json"
        if note.exists():
            return
        try:
            drive(exchange, requests, note, journal)
        except (MismatchError, TimeoutError, HoldfastError) as error:
            failures.append(f"{exchange}: {type(error).__name__}: {error}")

    threads = [threading.Thread(target=run, args=(name,)) for name in names]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    if failures:
        (directory / f"failed-{os.getpid()}").write_text("\n".join(failures))
    return 3 if failures else 0


def server(name: str, seconds: float) -> int:
    def slowly(body: dict[str, Any], restart: Any) -> tuple[Any, Any]:
        time.sleep(seconds)
        return perform(body, restart)

    ServerSession(server=name, perform=slowly).run()
    return 0


def start(config: Mapping[str, str], log: Path, *arguments: str) -> "subprocess.Popen[bytes]":
    """Start one of these programs against the cluster that ``config`` names."""
    with log.open("ab") as output:
        return subprocess.Popen(
            [sys.executable, "-m", "tests.support.exchanges", *arguments],
            env={**os.environ, **config},
            cwd=ROOT,
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=output,
        )


def main(arguments: list[str]) -> int:
    if arguments[0] == "client":
        return client(Path(arguments[1]), arguments[2].split(","), int(arguments[3]))
    return server(arguments[1], float(arguments[2]))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
