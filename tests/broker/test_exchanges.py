"""Exchanges on a real Kafka, by sessions of this process: what each call promises, and what people see of it."""

import asyncio
import json
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from confluent_kafka import Producer

from app.cli import main
from app.client import ClientSession, ServerSession
from app.client.exchanges import Response
from app.errors import ExchangeClosedError, FencedError, UnavailableError
from app.observe.reading import end_offsets, read
from app.protocol.murmur2 import partition_of
from app.topics import Names
from tests.support.broker import clear, new_namespace
from tests.support.cluster import Workers, wait_for

pytestmark = [pytest.mark.broker, pytest.mark.timeout(180)]

WAIT_S = 30.0


def doubled(body: Any, restart: Any) -> tuple[Any, Any]:
    """Answer with twice the number, and count."""
    if body == "fail":
        raise ValueError("as asked")
    if body == "bad":
        return object(), None
    if body == "large":
        return "x" * 3_000_000, None
    count = (restart or {"count": 0})["count"] + 1
    return {"twice": body["n"] * 2, "size": len(body.get("pad", ""))}, {"count": count}


class Performing:
    """A server session in a thread."""

    def __init__(self, workers: Workers, name: str, perform: Callable[..., Any], **more: Any) -> None:
        self.session = ServerSession(server=name, perform=perform, settings=workers.settings, **more)
        self.error: BaseException | None = None
        self._thread = threading.Thread(target=self._run, name=name)
        self._thread.start()

    def _run(self) -> None:
        try:
            self.session.run()
        except BaseException as error:  # noqa: BLE001 - told to the test.
            self.error = error

    def __enter__(self) -> "Performing":
        return self

    def __exit__(self, *_: object) -> None:
        self.session.stop()
        self._thread.join(WAIT_S)
        assert not self._thread.is_alive()


@pytest.fixture(scope="module")
def cluster(broker: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Workers]:
    """Two workers for all tests of this file."""
    namespace = new_namespace()
    with Workers(broker, namespace, tmp_path_factory.mktemp("workers"), lease=2, max_crashes=100) as made:
        made.topics()
        made.start_ready("w1", "w2")
        yield made
    clear(broker, namespace)


@pytest.fixture(scope="module")
def hpc(cluster: Workers) -> Iterator[Performing]:
    with Performing(cluster, "hpc-1", doubled) as made:
        yield made


def opened(cluster: Workers, exchange: str, **more: Any) -> ClientSession:
    return ClientSession(exchange=exchange, client="laptop-7", settings=cluster.settings, **more)


def shown(cluster: Workers, exchange: str) -> dict[str, Any]:
    status, body = cluster.running[0].get(f"/api/exchanges/{exchange}")
    assert status == 200, body
    found: dict[str, Any] = body
    return found


def test_request_response_acknowledgement(cluster: Workers, hpc: Performing) -> None:
    with opened(cluster, "basic") as session:
        assert (session.restart, session.requests, session.responses) == (None, (), ())
        assert session.submit({"n": 1}, restart={"step": 1}) == 1
        assert session.restart == {"step": 1}
        response = session.receive(WAIT_S)
        assert response == Response(1, {"twice": 2, "size": 0})
        assert session.receive(WAIT_S) == response
        assert shown(cluster, "basic")["client_restart"] == {"step": 1}
        session.acknowledge(1, restart={"step": 2})
        # Who asks over HTTP is told what is committed a moment later than who is answered through the topics.
        wait_for(lambda: shown(cluster, "basic")["client_restart"] == {"step": 2}, WAIT_S, "the row is there")
        row = shown(cluster, "basic")
        assert row["server_restart"] == {"count": 1}
        assert (row["submitted"], row["answered"], row["acknowledged"]) == (1, 1, 1)
        assert (row["requests"], row["responses"]) == ([], [])
        with pytest.raises(TimeoutError, match="no response"):
            session.receive(0.01)
        with pytest.raises(ValueError, match="no response 2"):
            session.acknowledge(2)
        session.finish()
    with pytest.raises(ExchangeClosedError, match=r"basic is over \(finished\)"):
        opened(cluster, "basic")


def test_a_new_process_is_restarted_with_what_was_stored(cluster: Workers, hpc: Performing) -> None:
    with opened(cluster, "again") as session:
        for n in (1, 2, 3):
            session.submit({"n": n}, restart={"step": n})
        wait_for(lambda: len(session.responses) == 3, WAIT_S, "three responses")
        session.acknowledge(1)
    with opened(cluster, "again") as session:
        assert session.restart == {"step": 3}
        assert [response.number for response in session.responses] == [2, 3]
        assert session.receive(0).body == {"twice": 4, "size": 0}
        assert session.submit({"n": 4}) == 4
        assert session.restart == {"step": 3}


def test_of_two_clients_the_older_one_is_fenced(cluster: Workers, hpc: Performing) -> None:
    with opened(cluster, "two") as older, opened(cluster, "two") as younger:
        with pytest.raises(FencedError, match="exchange two was taken over"):
            older.submit({"n": 1})
        with pytest.raises(FencedError):
            older.receive(WAIT_S)
        assert younger.submit({"n": 1}) == 1


def test_a_client_that_never_acknowledges_closes_its_window(cluster: Workers, hpc: Performing) -> None:
    with opened(cluster, "window", window=3) as session:
        assert session.window == 3
        for n in (1, 2, 3):
            session.submit({"n": n})
        with pytest.raises(TimeoutError, match="window of 3 requests"):
            session.submit({"n": 4}, timeout=0.2)
        with pytest.raises(UnavailableError, match="closed"):
            session.submit_nowait({"n": 4})
        waiting = threading.Thread(target=lambda: session.acknowledge(session.receive(WAIT_S).number))
        waiting.start()
        assert session.submit({"n": 4}) == 4
        waiting.join()


def test_requests_that_fail_are_answered(cluster: Workers, hpc: Performing) -> None:
    with opened(cluster, "failing") as session:
        errors = []
        for number, body in enumerate(({"n": 1}, "fail", "bad", "large", {"n": 5}), 1):
            session.submit(body)
            response = session.receive(WAIT_S)
            session.acknowledge(number)
            errors.append(response.error and response.error["type"])
        assert errors == [None, "ValueError", "BadResult", "TooLarge", None]
        assert shown(cluster, "failing")["server_restart"] == {"count": 2}


def test_bodies_of_a_megabyte_and_bodies_over_the_limit(cluster: Workers, hpc: Performing) -> None:
    with opened(cluster, "large") as session:
        session.submit({"n": 1, "pad": "x" * 1_000_000}, restart="y" * 500_000)
        assert session.receive(WAIT_S).body["size"] == 1_000_000
    with opened(cluster, "large") as session:
        assert session.restart == "y" * 500_000
        with pytest.raises(ValueError, match="are allowed"):
            session.submit("x" * 2_200_000)
        with pytest.raises(ValueError, match="restart data"):
            session.submit(1, restart="x" * 600_000)
        with pytest.raises(ValueError, match="JSON"):
            session.submit({1, 2})
        assert session.submit({"n": 2}) == 2


def test_asyncio(cluster: Workers, hpc: Performing) -> None:
    async def drive(exchange: str) -> list[int]:
        session = await asyncio.to_thread(opened, cluster, exchange)
        found = []
        for n in range(1, 4):
            await asyncio.wrap_future(session.submit_nowait({"n": n}))
            response = await asyncio.wrap_future(session.expect())
            await asyncio.wrap_future(session.acknowledge_nowait(response.number))
            found.append(response.body["twice"])
        await asyncio.to_thread(session.close)
        return found

    async def all_of_them() -> list[list[int]]:
        return await asyncio.gather(*(drive(f"async-{n}") for n in range(3)))

    assert asyncio.run(all_of_them()) == [[2, 4, 6]] * 3


def test_a_server_session_within_asyncio(cluster: Workers, hpc: Performing) -> None:
    """It performs coroutines; when it is cancelled, another one goes on at once with its restart data."""
    names = [f"serve-{n}" for n in range(20)]

    async def count(body: Any, restart: Any) -> tuple[Any, Any]:
        await asyncio.sleep(0)
        return "within asyncio", {"count": 10}

    async def serve() -> ClientSession:
        server = ServerSession(server="aio", perform=count, settings=cluster.settings, threads=2)
        serving = asyncio.create_task(server.serve())
        sessions = [await asyncio.to_thread(opened, cluster, name) for name in names]
        await asyncio.to_thread(wait_for, lambda: set(server.exchanges) & set(names), WAIT_S, "it has an exchange")
        mine = next(session for session in sessions if session.exchange in server.exchanges)
        for other in sessions:
            if other is not mine:
                await asyncio.to_thread(other.finish)
        await asyncio.wrap_future(mine.submit_nowait({"n": 1}))
        assert (await asyncio.wrap_future(mine.expect())).body == "within asyncio"
        serving.cancel()
        with pytest.raises(asyncio.CancelledError):
            await serving
        return mine

    with asyncio.run(serve()) as session:
        session.acknowledge(1)
        session.submit({"n": 2})
        assert session.receive(WAIT_S).body["twice"] == 4
        counted = {"count": 11}
        wait_for(lambda: shown(cluster, session.exchange)["server_restart"] == counted, WAIT_S, "the row is there")
        session.finish()


def test_a_checkpoint_is_what_the_next_server_session_goes_on_from(cluster: Workers, hpc: Performing) -> None:
    reached = threading.Event()
    go_on = threading.Event()
    seen: list[Any] = []

    async def long(body: Any, restart: Any) -> tuple[Any, Any]:
        seen.append(restart)
        if restart is None:
            first.session.checkpoint({"half": True})
            reached.set()
            await asyncio.to_thread(go_on.wait, WAIT_S)
        return "done", {"whole": True}

    name = "ckpt-a"
    with Performing(cluster, name, long) as first:
        sessions = [opened(cluster, f"ckpt-{n}") for n in range(40)]
        mine = wait_for(lambda: sorted(first.session.exchanges), WAIT_S, "an exchange is assigned to it")[0]
        session = next(found for found in sessions if found.exchange == mine)
        for other in sessions:
            if other is not session:
                other.finish()
        session.submit("long")
        assert reached.wait(WAIT_S)
        wait_for(lambda: shown(cluster, mine)["server_restart"] == {"half": True}, WAIT_S, "the checkpoint is stored")
        # A younger process of this name: the older one's result counts no more.
        with Performing(cluster, name, long) as second:
            assert session.receive(WAIT_S).body == "done"
            assert second.session.server == name
            go_on.set()
            wait_for(lambda: isinstance(first.error, FencedError), WAIT_S, "the older one is fenced")
    assert seen == [None, {"half": True}]
    assert shown(cluster, mine)["server_restart"] == {"whole": True}
    session.close()


def run_cli(cluster: Workers, capsys: pytest.CaptureFixture[str], *arguments: str) -> tuple[int, list[Any]]:
    where = ("--bootstrap", cluster.settings.bootstrap, "--namespace", cluster.namespace, "--json")
    code = main(["exchange", arguments[0], *where, *arguments[1:]])
    return code, [json.loads(line) for line in capsys.readouterr().out.splitlines()]


def test_the_command_line(cluster: Workers, hpc: Performing, capsys: pytest.CaptureFixture[str]) -> None:
    code, [answer] = run_cli(
        cluster, capsys, "submit", "cli-1", '{"n": 21}', "--restart", '{"by": "hand"}', "--wait", "30"
    )
    assert (code, answer) == (0, {"exchange": "cli-1", "number": 1, "body": {"twice": 42, "size": 0}, "error": None})
    code, [submitted] = run_cli(cluster, capsys, "submit", "cli-1", '{"n": 1}')
    assert (code, submitted) == (0, {"exchange": "cli-1", "number": 2})
    code, found = run_cli(cluster, capsys, "list")
    assert code == 0
    [mine] = [entry for entry in found if entry["exchange"] == "cli-1"]
    assert (mine["state"], mine["client"], mine["server"], mine["submitted"]) == ("open", "cli", "hpc-1", 2)
    code, [row] = run_cli(cluster, capsys, "show", "cli-1")
    assert (code, row["client_restart"], row["server_restart"]["count"]) == (0, {"by": "hand"}, 2)
    assert {row["worker"], *row["backups"]} == {"w1", "w2"}
    assert run_cli(cluster, capsys, "restart", "cli-1")[0] == 0
    code, [event] = run_cli(cluster, capsys, "cancel", "cli-1", "--reason", "not needed")
    assert (code, event["final"]) == (0, True)
    assert shown(cluster, "cli-1")["waiting"] == "over: not needed"
    code, [event] = run_cli(cluster, capsys, "cancel", "unheard-of")
    assert (code, event["reason"]) == (1, "unknown-exchange")
    assert main(["exchange", "show", "unheard-of", "--bootstrap", cluster.settings.bootstrap]) == 1
    assert run_cli(cluster, capsys, "submit", "cli-2", '"fail"', "--wait", "30")[0] == 1


def test_what_every_worker_tells(cluster: Workers, hpc: Performing) -> None:
    with opened(cluster, "told") as session:
        session.submit({"n": 1})
        session.receive(WAIT_S)
        answers = [worker.get("/api/exchanges")[1] for worker in cluster.running]
        lists = [[entry for entry in answer["exchanges"] if entry["exchange"] == "told"] for answer in answers]
        assert lists[0] == lists[1]
        assert lists[0][0]["waiting"] == "the manager for laptop-7: response 1 of 1 to be acknowledged"
        for answer in answers:
            assert not answer["truncated"]
            assert len(answer["managers"]) == cluster.settings.routers

        def caught_up() -> bool:
            told = cluster.running[0].get("/api/exchanges")[1]["managers"]
            return all(entry["backup_lag_ms"] == 0 for entry in told)

        wait_for(caught_up, WAIT_S, "the backups have what their managers have")
        assert cluster.running[0].get("/api/exchanges/unheard-of")[0] == 404


@pytest.mark.settings(exchange_backup_lag=5, lease=2)
def test_nothing_is_acknowledged_without_a_backup_that_has_it(workers: Workers) -> None:
    """One worker has no backup: what is submitted is stored, and told only when another worker follows it."""
    workers.start_ready("w1")
    with Performing(workers, "hpc-1", doubled), opened(workers, "backed-up") as session:
        future = session.submit_nowait({"n": 1})
        wait_for(lambda: shown(workers, "backed-up")["answered"] == 1, WAIT_S, "it is performed")
        assert not future.done()
        workers.start_ready("w2")
        assert future.result(WAIT_S) == 1


def test_cancelled_under_its_client(cluster: Workers, hpc: Performing, capsys: pytest.CaptureFixture[str]) -> None:
    with opened(cluster, "cancelled") as session:
        assert run_cli(cluster, capsys, "cancel", "cancelled")[0] == 0
        with pytest.raises(ExchangeClosedError, match="cancelled"):
            session.receive(WAIT_S)
        with pytest.raises(ExchangeClosedError):
            session.submit({"n": 1})


def test_an_exchange_expires_at_its_deadline(cluster: Workers, hpc: Performing) -> None:
    with opened(cluster, "deadline", deadline=0.5) as session, pytest.raises(ExchangeClosedError, match="expired"):
        session.receive(WAIT_S)


def test_records_that_are_none_become_dead_letters(cluster: Workers, hpc: Performing) -> None:
    names = Names(cluster.namespace)
    producer = Producer(cluster.config)
    wrong = [b"", b"\xff", b"{", b'{"v":1,"type":"nothing"}', b'{"v":2,"type":"open","client":"x"}']
    for value in wrong:
        for topic in (names.requests, names.responses):
            producer.produce(topic, value, b"malformed", partition_of(b"malformed", cluster.settings.routers))
    assert producer.flush(WAIT_S) == 0

    def found() -> list[bytes]:
        until = time.monotonic() + WAIT_S
        ends = end_offsets(cluster.config, [names.dead_letters], deadline=until)
        letters = read(cluster.config, ends, {}, deadline=until)
        return [letter.value() or b"" for letter in letters if letter.key() == b"malformed"]

    wait_for(lambda: len(found()) == 2 * len(wrong), WAIT_S, "all of them are dead letters")
    assert sorted(found()) == sorted(wrong * 2)


def test_ctrl_c_while_performing_says_goodbye(cluster: Workers, tmp_path: Path) -> None:
    """Others go on at once, rather than after a lease."""

    def interrupted(body: Any, restart: Any) -> tuple[Any, Any]:
        raise KeyboardInterrupt

    names = [f"ctrl-{n}" for n in range(20)]
    with Performing(cluster, "ctrl-c", interrupted) as dying:
        sessions = [opened(cluster, name) for name in names]
        wait_for(lambda: dying.session.exchanges, WAIT_S, "it has an exchange")
        mine = [session for session in sessions if session.exchange in dying.session.exchanges]
        started = time.monotonic()
        mine[0].submit({"n": 4})
        with Performing(cluster, "ctrl-d", doubled):
            assert mine[0].receive(WAIT_S).body["twice"] == 8
        assert isinstance(dying.error, KeyboardInterrupt)
        assert time.monotonic() - started < WAIT_S
        for session in sessions:
            session.finish()
