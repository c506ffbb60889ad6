"""A server's line, its endings and its housekeeping, performed on real rows without a broker."""

import asyncio
import time
from collections.abc import Awaitable, Callable
from typing import Any

import pytest

from agents import line as line_module
from agents.performing import MESSAGE_CHARS, unknown
from app.engine.janitor import EmitLimit
from app.handlers import Retry, Session
from app.protocol import sessions as protocol
from app.protocol import suspects
from app.protocol.control import WAKE_KEY, Wakeup, encode_wakeup
from app.protocol.suspects import Suspicion
from tables import sessions, waiting
from tests.unit.agents.workbench import LIMIT, NAMES, Message, ServerBench, batch, handler, task, turns

Payload = dict[str, Any]


def retry_once(session: Session[Any], payload: Payload) -> int:
    if session.attempt == 1:
        raise Retry(after=payload.get("after", 60))
    return session.attempt


def emit(session: Session[Any], payload: Payload) -> None:
    session.emit(payload["topic"], "x" * payload.get("bytes", 1), payload.get("key"))


def send(session: Session[Any], payload: Payload) -> None:
    session.send("other", "echo", {"x": "x" * payload["bytes"]})


def echo(session: Session[Any], payload: Payload) -> Payload:
    return payload


async def cancels_itself(session: Session[Any], payload: Payload) -> None:
    running = asyncio.current_task()
    assert running is not None
    running.cancel()
    await asyncio.sleep(0)


async def later(session: Session[Any], payload: Payload) -> Payload:
    await asyncio.sleep(0)
    return payload


HANDLERS = {
    "later": handler(later, asynchronous=True),
    "retry": handler(retry_once),
    "emit": handler(emit),
    "send": handler(send),
    "echo": handler(echo),
    "cancels": handler(cancels_itself, asynchronous=True),
}


def run(test: Callable[[ServerBench], Awaitable[None]], **options: Any) -> None:
    """Run a test of a server in an event loop, as the engine does."""

    async def inside() -> None:
        made = ServerBench(HANDLERS, **options)
        await turns()
        try:
            await test(made)
        finally:
            made.server.close()
            made.pool.shutdown()

    asyncio.run(inside())


def statuses(bench: ServerBench) -> list[tuple[str, str | None]]:
    return [(found["status"], (found["error"] or {}).get("type")) for found in bench.engine.results()]


# -- retries ------------------------------------------------------------------------------------------------------


def test_a_full_server_wakes_its_own_retries(monkeypatch: pytest.MonkeyPatch) -> None:
    """Their wake-ups stand in the stream behind tasks that it does not read while it is full."""
    monkeypatch.setattr(line_module, "WAITING_MAX", 2)

    async def test(bench: ServerBench) -> None:
        bench.perform(task("retry", "a"), task("retry", "b"))
        bench.commit()
        assert bench.server.pausing() == ((NAMES.work, 0),)
        due = bench.server.due()
        assert due is not None
        assert 50 < due - time.time() < 61
        bench.server.on_time(due - 1)
        assert bench.engine.results() == []
        bench.server.on_time(due + 1)
        assert statuses(bench) == [("done", None)] * 2
        bench.commit()
        assert (bench.server.pausing(), bench.server.due(), bench.server.waiting_count()) == ((), None, 0)
        # What comes through the stream afterwards wakes nobody.
        for session in ("a", "b"):
            wakeup = Message(bench.offset, encode_wakeup(Wakeup("acme", session, 1, 1)), WAKE_KEY)
            bench.server.perform(batch(NAMES.work, [wakeup]), time.monotonic() + 60)
        assert bench.engine.results() == []

    run(test)


def test_a_new_owner_wakes_the_retries_it_finds() -> None:
    async def test(bench: ServerBench) -> None:
        bench.perform(task("retry"), task("echo"))
        bench.commit()
        bench.reopen(died=False)
        await turns()
        due = bench.server.due()
        assert due is not None
        bench.server.on_time(due + 1)
        assert [found["result"] for found in bench.engine.results()] == [2, {}]

    run(test)


def test_what_stands_behind_a_retry_that_is_due_at_the_opening_runs_once() -> None:
    """The retry may be woken before the loop takes up what was running: what follows it is running by then."""

    async def test(bench: ServerBench) -> None:
        bench.perform(task("retry"), task("later"), task("later"), task("echo"))
        bench.commit()
        bench.reopen(died=False)
        due = bench.server.due()
        assert due is not None
        bench.server.on_time(due + 1)
        await turns()
        assert [found["source"]["offset"] for found in bench.engine.results()] == [0, 1, 2, 3]

    run(test)


def test_no_retry_begins_beside_a_record_on_trial() -> None:
    async def test(bench: ServerBench) -> None:
        bench.perform(task("retry"))
        bench.commit()
        due = bench.server.due()
        assert due is not None
        somebody = object()
        bench.context.trials.add(somebody)
        assert bench.server.due() is None
        bench.server.on_time(due + 1)
        assert bench.engine.results() == []
        bench.context.trials.discard(somebody)
        bench.server.on_time(due + 1)
        assert statuses(bench) == [("done", None)]

    run(test)


def test_a_record_on_trial_ends_with_its_commit() -> None:
    async def test(bench: ServerBench) -> None:
        bench.place.owner_died = True
        bench.place.ends = {(NAMES.work, 0): 1}
        bench.server = type(bench.server)(bench.context, bench.place)
        bench.perform(task("echo"))
        assert bench.context.trials == {bench.server}
        bench.commit()
        assert bench.context.trials == set()

    run(test, max_crashes=2)


def test_a_defect_in_what_the_loop_calls_ends_the_worker(monkeypatch: pytest.MonkeyPatch) -> None:
    async def test(bench: ServerBench) -> None:
        bench.perform(task("later"))
        bench.commit()
        monkeypatch.setattr(protocol, "step", lambda queue, event: 1 / 0)
        bench.reopen(died=False)
        await turns()
        assert isinstance(bench.engine.failure, ZeroDivisionError)

    run(test)


def test_a_handler_that_cancels_its_own_task_fails_it() -> None:
    async def test(bench: ServerBench) -> None:
        bench.perform(task("cancels"), task("echo"))
        await turns()
        assert statuses(bench) == [("failed", "CancelledError"), ("done", None)]

    run(test)


# -- suspicion ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("failing", [False, True])
def test_a_worker_that_fails_withdraws_nothing(failing: bool) -> None:
    """What it announced is evidence: its successor counts this death."""

    async def test(bench: ServerBench) -> None:
        bench.place.owner_died = True
        bench.place.ends = {(NAMES.work, 0): 3}
        bench.server = type(bench.server)(bench.context, bench.place)
        bench.perform(task("echo"))
        bench.engine.failing = failing
        bench.server.close()
        (value,) = bench.engine.suspects.standing.values()
        assert Suspicion.decode(value).running is failing

    run(test)


def test_a_suspicion_about_a_task_that_has_ended_is_dropped_when_the_server_opens() -> None:
    async def test(bench: ServerBench) -> None:
        bench.perform(task("retry"))
        bench.commit()
        row_key = sessions.key_of("acme", 0, "s")
        keys = [suspects.waiting_key(0, row_key, arrival) for arrival in (1, 2)]
        for arrival, key in enumerate(keys, 1):
            bench.engine.suspects.write(key, Suspicion(arrival, arrival + 1, 1, alone=False).encode())
        bench.reopen(died=False)
        assert list(bench.engine.suspects.standing) == keys[:1]

    run(test)


# -- what cannot be produced --------------------------------------------------------------------------------------


def test_records_that_a_topic_would_refuse_fail_their_task() -> None:
    async def test(bench: ServerBench) -> None:
        bench.engine.topics.update(
            own=EmitLimit(10_000, keyed=False), keyed=EmitLimit(10_000, keyed=True), untold=EmitLimit(None, keyed=False)
        )
        cases: list[tuple[dict[str, Any], str | None]] = [
            ({"topic": "own", "bytes": 10_000 - 512}, None),
            ({"topic": "own", "bytes": 10_000 - 511}, "TooLarge"),
            ({"topic": "own", "bytes": 10_000 - 512, "key": "k"}, "TooLarge"),
            ({"topic": "untold", "bytes": LIMIT}, None),
            ({"topic": "keyed"}, "NoKey"),
            ({"topic": "keyed", "key": "k"}, None),
            ({"topic": "nowhere"}, "UnknownTopic"),
            ({"topic": "ns.results"}, "UnknownTopic"),
            ({"topic": "bad topic!"}, "ValueError"),
            ({"topic": "own", "key": 7}, "TypeError"),
        ]
        bench.perform(*(task("emit", payload=payload) for payload, _ in cases))
        assert [error for _, error in statuses(bench)] == [error for _, error in cases]

    run(test)


def test_a_sent_task_leaves_room_for_its_batch() -> None:
    async def test(bench: ServerBench) -> None:
        empty = len(b'{"tenant":"acme","session":"other","type":"echo","payload":{"x":""}}') + len("acme")
        room = LIMIT - 512 - empty
        bench.perform(task("send", payload={"bytes": room}), task("send", payload={"bytes": room + 1}))
        assert [error for _, error in statuses(bench)] == [None, "TooLarge"]

    run(test)


def test_an_id_or_type_that_is_too_long_is_a_dead_letter_also_in_a_known_session() -> None:
    async def test(bench: ServerBench) -> None:
        bench.perform(task("echo"), task("echo", id="x" * 1_001), task("x" * 201), task("\x01" * 200))
        assert statuses(bench) == [("done", None), ("failed", "UnknownTask")]
        assert len(bench.engine.records(NAMES.dead_letters)) == 3
        assert all(len(found["error"]["message"]) <= MESSAGE_CHARS for found in bench.engine.results()[1:])

    run(test)


def test_what_an_unknown_type_is_told_is_cut() -> None:
    assert len(unknown("\x01" * 1_000)) == MESSAGE_CHARS


# -- expiry -------------------------------------------------------------------------------------------------------


def test_a_session_that_is_used_while_it_expires_stays() -> None:
    async def test(bench: ServerBench) -> None:
        rows = bench.place.rows[sessions.NAME]
        old = sessions.encode(1, {0: -1}, int(time.time()) - 1_000, b"{}")
        for session in ("used", "unused"):
            rows.store.apply([(sessions.key_of("acme", 0, session), old)], None)
        bench.perform(task("echo", "used"))
        bench.server.before_seal()
        rows.seal()  # on its way: the store has the old row still
        bench.server.on_time(time.time())
        assert rows.get(sessions.key_of("acme", 0, "used")) is not None
        assert rows.get(sessions.key_of("acme", 0, "unused")) is None

    run(test, ttl=100.0)


def test_waiting_tasks_are_no_business_of_expiry() -> None:
    async def test(bench: ServerBench) -> None:
        bench.perform(task("retry"))
        bench.commit()
        key = sessions.key_of("acme", 0, "s")
        bench.place.rows[sessions.NAME].store.apply([(key, sessions.encode(1, {0: 0}, 0, b"{}"))], None)
        bench.server.on_time(time.time())
        assert bench.place.rows[sessions.NAME].get(key) is not None
        assert [found for found, _ in bench.place.rows[waiting.NAME].scan()] == [waiting.key_of(key, 1)]

    run(test, ttl=100.0)
