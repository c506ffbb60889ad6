"""Every way in which a handler's run can end."""

import asyncio
import math
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import orjson
import pytest
from pydantic import BaseModel, ValidationError

from agents.performing import MESSAGE_CHARS, Again, Done, Ending, Failed, failed, run_aside, run_inline
from app.handlers import RETRY_S_MAX, Handler, Retry, Session

LIMIT = 1_000


class Cart(BaseModel):
    items: int = 0


class Item(BaseModel):
    count: int


Function = Callable[[Any, Any], Any]
Run = Callable[..., Ending]


def made(
    function: Function,
    *,
    blocking: bool = False,
    asynchronous: bool = False,
    state: type[BaseModel] | None = None,
    payload: type[BaseModel] | None = None,
) -> Handler:
    return Handler("cart.add", function, blocking, asynchronous, state, payload)


def session(state: dict[str, Any] | None = None) -> Session[Any]:
    return Session("acme", "cart-7", 3, "t-1", 1, {} if state is None else state)


@pytest.fixture
def pool() -> Iterator[ThreadPoolExecutor]:
    with ThreadPoolExecutor(2) as made_pool:
        yield made_pool


@pytest.fixture(params=["inline", "blocking", "async"])
def run(request: pytest.FixtureRequest, pool: ThreadPoolExecutor) -> Run:
    """Runs a plain function as each kind of handler: the endings are the same."""

    def inline(function: Function, given: Any = None, of: Session[Any] | None = None, **types: Any) -> Ending:
        return run_inline(made(function, **types), of or session(), given or {}, LIMIT)

    def aside(function: Function, given: Any = None, of: Session[Any] | None = None, **types: Any) -> Ending:
        async def coroutine(one: Session[Any], other: Any) -> Any:
            await asyncio.sleep(0)
            return function(one, other)

        asynchronous = request.param == "async"
        handler = made(
            coroutine if asynchronous else function, asynchronous=asynchronous, blocking=not asynchronous, **types
        )
        return asyncio.run(run_aside(handler, of or session(), given or {}, LIMIT, timeout_s=10, pool=pool))

    return inline if request.param == "inline" else aside


def raises(error: BaseException | type[BaseException]) -> Function:
    def function(session: Any, payload: Any) -> None:
        raise error

    return function


# -- done ---------------------------------------------------------------------------------------------------------


def test_done(run: Run) -> None:
    def add(session: Session[Any], payload: dict[str, Any]) -> dict[str, int]:
        session.state["items"] = payload["count"]
        return {"items": payload["count"]}

    of = session()
    assert run(add, {"count": 2}, of) == Done(b'{"items":2}', b'{"items":2}', of)


@pytest.mark.parametrize(
    ("result", "written"),
    [
        (None, b"null"),
        (0, b"0"),
        ("\N{SNOWMAN}", '"\N{SNOWMAN}"'.encode()),
        ([1, {"a": None}], b'[1,{"a":null}]'),
        (Item(count=3), b'{"count":3}'),
    ],
)
def test_a_result_is_anything_that_json_can_say(run: Run, result: Any, written: bytes) -> None:
    ending = run(lambda session, payload: result)
    assert isinstance(ending, Done)
    assert ending.result == written


def test_models_come_typed_and_go_as_json(run: Run) -> None:
    def add(session: Session[Cart], payload: Item) -> Item:
        assert type(session.state) is Cart
        session.state.items += payload.count
        return payload

    ending = run(add, {"count": 2}, session({"items": 5}), state=Cart, payload=Item)
    assert isinstance(ending, Done)
    assert (ending.state, ending.result) == (b'{"items":7}', b'{"count":2}')


def test_a_state_may_be_replaced_by_another_dict(run: Run) -> None:
    def replace(session: Session[Any], payload: Any) -> None:
        session.state = {"new": True}

    ending = run(replace)
    assert isinstance(ending, Done)
    assert ending.state == b'{"new":true}'


def test_what_was_sent_comes_with_the_session(run: Run) -> None:
    def send(session: Session[Any], payload: Any) -> None:
        session.send("cart-8", "cart.add", {})
        session.emit("prices", 7)
        session.end()

    ending = run(send)
    assert isinstance(ending, Done)
    outbox = ending.session.outbox
    assert outbox is not None
    assert (len(outbox.tasks), len(outbox.records), ending.session.ended) == (1, 1, True)


# -- failed -------------------------------------------------------------------------------------------------------


class UnspeakableError(Exception):
    def __str__(self) -> str:
        raise RuntimeError("no words")


class StrangeError(BaseException):
    """Not an Exception."""


@pytest.mark.parametrize(
    ("error", "expected"),
    [
        (ValueError("no such item"), Failed("ValueError", "no such item")),
        (KeyError("count"), Failed("KeyError", "'count'")),
        (ValueError(), Failed("ValueError", "ValueError()")),
        (ValueError, Failed("ValueError", "ValueError()")),
        (RecursionError("too deep"), Failed("RecursionError", "too deep")),
        (TimeoutError("of its own"), Failed("TimeoutError", "of its own")),
        (SystemExit(3), Failed("SystemExit", "3")),
        (StrangeError("neither"), Failed("StrangeError", "neither")),
        (GeneratorExit("closed"), Failed("GeneratorExit", "closed")),
        (asyncio.CancelledError("inside"), Failed("CancelledError", "inside")),
        (
            ValidationError.from_exception_data("Empty", []),
            Failed("ValidationError", "0 validation errors for Empty\n"),
        ),
        (UnspeakableError(), Failed("UnspeakableError", "(its message cannot be read)")),
        # Names of files that are not UTF-8 come into messages like this.
        (OSError("no file \udcff"), Failed("OSError", "no file ?")),
        (ValueError("x" * 5_000), Failed("ValueError", "x" * MESSAGE_CHARS)),
    ],
    ids=repr,
)
def test_an_exception_fails_the_task(run: Run, error: Any, expected: Failed) -> None:
    ending = run(raises(error))
    assert ending == expected
    assert isinstance(ending, Failed)
    orjson.dumps({"type": ending.type, "message": ending.message})


def test_a_payload_that_does_not_fit_its_model(run: Run) -> None:
    ending = run(lambda session, payload: None, {"count": "many"}, payload=Item)
    assert isinstance(ending, Failed)
    assert ending.type == "ValidationError"
    assert ending.message.startswith("Item: count: Input should be a valid integer")
    assert "\n" not in ending.message


def test_a_state_that_does_not_fit_its_model(run: Run) -> None:
    ending = run(lambda session, payload: None, {}, session({"items": []}), state=Cart)
    assert isinstance(ending, Failed)
    assert (ending.type, ending.message.partition(": Input")[0]) == ("ValidationError", "Cart: items")


def test_a_missing_field_is_named(run: Run) -> None:
    assert run(lambda session, payload: None, {}, payload=Item) == Failed(
        "ValidationError", "Item: count: Field required"
    )


# -- again --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("error", "after_ms"),
    [
        (Retry(after=1.5), 1_500),
        (Retry(after=0), 0),
        (Retry, 1_000),
        (Retry(after=RETRY_S_MAX), RETRY_S_MAX * 1_000),
    ],
)
def test_a_retry(run: Run, error: Any, after_ms: int) -> None:
    assert run(raises(error)) == Again(after_ms)
    # Rows and records hold it.
    orjson.dumps(int(time.time() * 1000) + after_ms)


def spoilt(after: Any) -> Retry:
    error = Retry()
    error.after = after
    return error


@pytest.mark.parametrize("after", [-1, math.inf, math.nan, 1e300, "soon", None], ids=repr)
def test_a_retry_at_no_time_fails_the_task(run: Run, after: Any) -> None:
    ending = run(lambda session, payload: raises(Retry(after=after))(session, payload))
    assert isinstance(ending, Failed)
    assert ending.type in {"ValueError", "TypeError"}
    assert isinstance(run(raises(spoilt(after))), Failed)


def _kind(value: Any) -> str:
    return type(value).__name__


# -- bad results --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "result", [object(), {1: 2}, {"a": {1, 2}}, 2**70, "\udc00", b"bytes", lambda: None], ids=_kind
)
def test_a_result_that_is_no_json(run: Run, result: Any) -> None:
    ending = run(lambda session, payload: result)
    assert isinstance(ending, Failed)
    assert ending.type == "BadResult"
    assert "cannot be written as JSON" in ending.message
    assert len(ending.message) <= MESSAGE_CHARS


@pytest.mark.parametrize("value", [object(), 2**70, "\udc00", b"bytes"], ids=_kind)
def test_a_state_that_is_no_json(run: Run, value: Any) -> None:
    def spoil(session: Session[Any], payload: Any) -> None:
        session.state["x"] = value

    ending = run(spoil)
    assert isinstance(ending, Failed)
    assert ending.type == "BadResult"


@pytest.mark.parametrize("state", [None, [], "text", 7])
def test_a_state_that_is_no_dict(run: Run, state: Any) -> None:
    def spoil(session: Session[Any], payload: Any) -> None:
        session.state = state

    ending = run(spoil)
    assert ending == Failed("BadResult", f"session.state must stay a dict, it is {type(state).__name__}")


def test_a_model_that_is_replaced_by_something_else(run: Run) -> None:
    def spoil(session: Session[Any], payload: Any) -> None:
        session.state = {"items": 1}

    ending = run(spoil, {}, session({"items": 1}), state=Cart)
    assert isinstance(ending, Failed)
    assert ending.type == "BadResult"


# -- too large ----------------------------------------------------------------------------------------------------


def test_a_result_may_be_as_large_as_the_limit_and_no_larger(run: Run) -> None:
    assert isinstance(run(lambda session, payload: "x" * (LIMIT - 2)), Done)
    ending = run(lambda session, payload: "x" * (LIMIT - 1))
    assert isinstance(ending, Failed)
    assert ending.type == "TooLarge"
    assert "1001 bytes; the limit is 1000 (MAX_RECORD_BYTES)" in ending.message


def test_a_state_that_is_too_large(run: Run) -> None:
    def grow(session: Session[Any], payload: Any) -> None:
        session.state["x"] = "\N{SNOWMAN}" * (LIMIT // 3)

    ending = run(grow)
    assert isinstance(ending, Failed)
    assert ending.type == "TooLarge"


def test_an_emitted_record_that_is_too_large(run: Run) -> None:
    def emit(session: Session[Any], payload: Any) -> None:
        session.emit("prices", None)
        session.emit("prices", b"x" * (LIMIT + 1))

    ending = run(emit)
    assert isinstance(ending, Failed)
    assert ending.type == "TooLarge"


# -- aside --------------------------------------------------------------------------------------------------------


def aside(handler: Handler, pool: ThreadPoolExecutor, timeout_s: float) -> Ending:
    return asyncio.run(run_aside(handler, session(), {}, LIMIT, timeout_s=timeout_s, pool=pool))


def test_an_async_handler_that_does_not_end_is_cancelled(pool: ThreadPoolExecutor) -> None:
    cancelled = []

    async def hang(session: Any, payload: Any) -> None:
        try:
            await asyncio.Event().wait()
        except asyncio.CancelledError:
            cancelled.append(True)
            raise

    ending = aside(made(hang, asynchronous=True), pool, 0.05)
    assert ending == Failed("TaskTimeout", "'cart.add' did not end within 0.05 s (TASK_TIMEOUT)")
    assert cancelled == [True]


def test_a_blocking_handler_that_does_not_end_is_given_up(pool: ThreadPoolExecutor) -> None:
    go_on = threading.Event()
    try:
        ending = aside(made(lambda session, payload: go_on.wait(60), blocking=True), pool, 0.05)
    finally:
        go_on.set()
    assert ending == Failed("TaskTimeout", "'cart.add' did not end within 0.05 s (TASK_TIMEOUT)")


def test_what_a_blocking_handler_raises_need_not_fit_into_a_future(pool: ThreadPoolExecutor) -> None:
    ending = aside(made(raises(StopIteration(7)), blocking=True), pool, 10)
    assert ending == Failed("RuntimeError", "coroutine raised StopIteration")


def test_the_time_of_a_blocking_handler_begins_when_a_thread_takes_it_up() -> None:
    """The two run one after the other: the second waits for the thread for most of the time it may take itself."""

    def work(session: Any, payload: Any) -> bool:
        return not threading.Event().wait(0.6)

    async def both(pool: ThreadPoolExecutor) -> list[Ending]:
        handler = made(work, blocking=True)
        runs = [run_aside(handler, session(), {}, LIMIT, timeout_s=1.0, pool=pool) for _ in range(2)]
        return list(await asyncio.gather(*runs))

    with ThreadPoolExecutor(1) as pool:
        endings = asyncio.run(both(pool))
    assert [type(ending) for ending in endings] == [Done, Done]


def test_a_run_ends_although_every_thread_hangs() -> None:
    go_on, ran = threading.Event(), []

    async def both(pool: ThreadPoolExecutor) -> list[Ending]:
        hanging = run_aside(
            made(lambda session, payload: go_on.wait(60), blocking=True), session(), {}, LIMIT, timeout_s=0.1, pool=pool
        )
        behind = run_aside(
            made(lambda session, payload: ran.append(1), blocking=True), session(), {}, LIMIT, timeout_s=0.1, pool=pool
        )
        return list(await asyncio.gather(hanging, behind))

    with ThreadPoolExecutor(1) as pool:
        endings = asyncio.run(both(pool))
        go_on.set()
    assert [ending.type for ending in endings if isinstance(ending, Failed)] == ["TaskTimeout", "ThreadsHangError"]
    assert ran == []


def test_something_cancelled_inside_the_handler_fails_the_task(pool: ThreadPoolExecutor) -> None:
    """The run must end: nobody waits for it with a deadline of his own."""

    async def waits_for_a_cancelled_task(session: Any, payload: Any) -> None:
        inner = asyncio.ensure_future(asyncio.sleep(60))
        asyncio.get_running_loop().call_soon(inner.cancel)
        await inner

    ending = aside(made(waits_for_a_cancelled_task, asynchronous=True), pool, 10)
    assert isinstance(ending, Failed)
    assert ending.type == "CancelledError"


def test_a_run_that_the_worker_gives_up_is_cancelled_and_says_nothing(pool: ThreadPoolExecutor) -> None:
    async def hang(session: Any, payload: Any) -> None:
        await asyncio.Event().wait()

    async def give_up() -> None:
        handler = made(hang, asynchronous=True)
        task = asyncio.ensure_future(run_aside(handler, session(), {}, LIMIT, timeout_s=10, pool=pool))
        await asyncio.sleep(0)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task

    asyncio.run(give_up())


def test_others_go_on_while_handlers_wait(pool: ThreadPoolExecutor) -> None:
    """Each waits for the other, so they end only if they run at the same time."""
    here, there = threading.Event(), threading.Event()

    def first(session: Any, payload: Any) -> bool:
        here.set()
        return there.wait(10)

    async def second(session: Any, payload: Any) -> bool:
        await asyncio.get_running_loop().run_in_executor(None, here.wait, 10)
        there.set()
        return True

    async def both() -> list[Ending]:
        handlers = made(first, blocking=True), made(second, asynchronous=True)
        runs = [run_aside(handler, session(), {}, LIMIT, timeout_s=10, pool=pool) for handler in handlers]
        return list(await asyncio.gather(*runs))

    endings = asyncio.run(both())
    assert [ending.result for ending in endings if isinstance(ending, Done)] == [b"true", b"true"]


def test_the_text_of_an_error_is_the_exceptions_own() -> None:
    assert failed(LookupError("here")) == Failed("LookupError", "here")
