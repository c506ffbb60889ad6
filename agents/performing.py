"""Running a handler for one task, and what came of it.

Nothing here knows streams or tables: a run ends in :class:`Done`, :class:`Failed` or :class:`Again`, and whoever asked
for it decides what that means for the session.
"""

import asyncio
import contextlib
from collections.abc import Callable
from concurrent.futures import Executor
from dataclasses import dataclass
from typing import Any, NamedTuple, TypeAlias
from weakref import WeakKeyDictionary

import orjson
from pydantic import ValidationError

from app.handlers import Handler, Retry, Session

MESSAGE_CHARS = 2_000
"""Longer error messages are cut: they go into a result and a record header."""


class ThreadsHangError(Exception):
    """All threads for blocking handlers are lost to handlers that do not return."""


@dataclass(slots=True)
class Done:
    """``result`` and ``state`` are JSON; what the handler sent is in ``session.outbox``."""

    result: bytes
    state: bytes
    session: Session[Any]


class Failed(NamedTuple):
    """The error of the result."""

    type: str
    message: str


class Again(NamedTuple):
    """The handler asked for a retry."""

    after_ms: int


Ending: TypeAlias = Done | Failed | Again


def failed(error: BaseException) -> Failed | Again:
    """What an exception of a handler means."""
    try:
        if isinstance(error, Retry):
            return Again(int(Retry(error.after).after * 1000))
        if isinstance(error, ValidationError):
            first = error.errors(include_url=False)[0]
            where = ".".join(str(part) for part in first["loc"])
            return Failed("ValidationError", _cut(f"{error.title}: {where}: {first['msg']}"))
    except Exception:  # noqa: BLE001, S110 - a retry at no time, or a model that fails at telling what is wrong.
        pass
    return Failed(type(error).__name__, _text(error))


def _text(error: BaseException) -> str:
    """The error's message, fit for JSON; an exception of a user's may fail even at telling what it is."""
    try:
        return _cut(str(error) or repr(error))
    except Exception:  # noqa: BLE001 - whatever it is, the task's own error is the one to tell.
        return "(its message cannot be read)"


def _cut(text: str) -> str:
    return text[:MESSAGE_CHARS].encode(errors="replace").decode()


def prepare(handler: Handler, session: Session[Any], payload: dict[str, Any]) -> Any:
    """Give session and payload the types that the handler's annotations ask for."""
    if handler.state_model is not None:
        session.state = handler.state_model.model_validate(session.state)
    return payload if handler.payload_model is None else handler.payload_model.model_validate(payload)


def conclude(handler: Handler, session: Session[Any], result: Any, limit: int) -> Done | Failed:
    """Turn what the handler left behind into bytes; a result or state that is no JSON or too large fails the task."""
    try:
        if handler.state_model is not None:
            state = orjson.dumps(session.state.model_dump(mode="json"))
        elif type(session.state) is dict:
            state = orjson.dumps(session.state)
        else:
            return Failed("BadResult", f"session.state must stay a dict, it is {type(session.state).__name__}")
        plain = type(result) is dict or not hasattr(result, "model_dump")
        answer = orjson.dumps(result if plain else result.model_dump(mode="json"))
    except Exception as error:  # noqa: BLE001 - a model's own code may fail in any way.
        return Failed("BadResult", f"result or state cannot be written as JSON: {_text(error)}"[:MESSAGE_CHARS])
    if len(state) > limit or len(answer) > limit or session.outbox is not None:
        outbox = session.outbox
        records = outbox.records if outbox is not None else ()
        largest = max(len(state), len(answer), *(len(value or b"") for _, value, _ in records))
        if largest > limit:
            return Failed(
                "TooLarge", f"state, result or record of {largest} bytes; the limit is {limit} (MAX_RECORD_BYTES)"
            )
    return Done(answer, state, session)


def unknown(kind: str) -> str:
    """What an unknown task's error says."""
    return f"no handler is registered for {kind!r} (HANDLERS)"[:MESSAGE_CHARS]


def run_inline(handler: Handler, session: Session[Any], payload: dict[str, Any], limit: int) -> Ending:
    """Run a plain function here and now."""
    try:
        if handler.typed:
            payload = prepare(handler, session, payload)
        result = handler.function(session, payload)
    except KeyboardInterrupt:
        raise
    except BaseException as error:  # noqa: BLE001 - a handler may fail in any way; the task does, not the worker.
        return failed(error)
    return conclude(handler, session, result, limit)


async def run_aside(
    handler: Handler,
    session: Session[Any],
    payload: dict[str, Any],
    limit: int,
    *,
    timeout_s: float,
    pool: Executor,
) -> Ending:
    """Run an async function as a task, a blocking one in the pool; at most ``timeout_s`` seconds from its start."""
    clock = asyncio.timeout(None)
    try:
        argument = prepare(handler, session, payload)
        async with clock:
            if handler.asynchronous:
                clock.reschedule(asyncio.get_running_loop().time() + timeout_s)
                result = await handler.function(session, argument)
            else:
                result = await _in_pool(pool, lambda: handler.function(session, argument), clock, timeout_s)
    except KeyboardInterrupt:
        raise
    except asyncio.CancelledError as error:
        running = asyncio.current_task()
        if running is None or running.cancelling():
            raise  # This worker gives the run up.
        return failed(error)  # Something that the handler waited for was cancelled: the handler failed.
    except BaseException as error:  # noqa: BLE001 - as in run_inline.
        if isinstance(error, TimeoutError) and clock.expired():
            return Failed("TaskTimeout", f"{handler.type!r} did not end within {timeout_s:g} s (TASK_TIMEOUT)")
        return failed(error)
    return conclude(handler, session, result, limit)


_taken_up: WeakKeyDictionary[Executor, float] = WeakKeyDictionary()
"""When a thread of a pool last took up a run, by the loop's clock."""


async def _in_pool(pool: Executor, call: Callable[[], Any], clock: asyncio.Timeout, timeout_s: float) -> Any:
    """Return what ``call`` returns in a thread of the pool; ``clock`` starts when it does.

    Raises ThreadsHangError when no thread has taken up anything for ``timeout_s``: each hangs in a run that is over
    its time and can neither be cancelled nor waited for.
    """
    loop = asyncio.get_running_loop()
    started = asyncio.Event()

    def begin() -> None:
        _taken_up[pool] = loop.time()
        clock.reschedule(loop.time() + timeout_s)
        started.set()

    def run() -> tuple[Any, BaseException | None]:
        loop.call_soon_threadsafe(begin)
        try:
            return call(), None
        except BaseException as error:  # noqa: BLE001 - a future cannot carry all of them.
            return None, error

    since = loop.time()
    running = loop.run_in_executor(pool, run)
    try:
        while not started.is_set():
            left = max(since, _taken_up.get(pool, since)) + timeout_s - loop.time()
            if left <= 0:
                raise ThreadsHangError("no thread was free for it: all hang in blocking handlers over TASK_TIMEOUT")
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(started.wait(), left)
        result, error = await running
    finally:
        running.cancel()
    if error is not None:
        raise error
    return result
