"""Server-sent events: what happens, and what the console draws.

=======================  ====================================================================================
``GET /api/events``      every event as a message, ``id`` is its offset; ``?last=N`` begins with the last N, the header
                         ``Last-Event-ID`` with those behind it
``GET /api/live``        messages ``event`` as above, and once a second ``state``: the cluster and the figures of its
                         workers
=======================  ====================================================================================
"""

import asyncio
import time
from collections.abc import Awaitable, Callable, Mapping
from typing import Any, Final

import orjson
from aiohttp import web

from app.settings import Settings
from app.web.answers import ProblemError
from app.web.feed import EventFeed, Told

WATCHERS_MAX: Final = 200
LAST_MAX: Final = 1_000
STATE_S: Final = 1.0
ALIVE_S: Final = 15.0
MIGRATIONS_MAX: Final = 200

_HEADERS: Final = {
    "Content-Type": "text/event-stream; charset=utf-8",
    "Cache-Control": "no-store",
    # A reverse proxy that collects what it passes on would keep it back.
    "X-Accel-Buffering": "no",
}

Ask = Callable[[], Awaitable[dict[str, Any]]]
"""Ask the whole cluster for its state."""


class Live:
    """The streams of one worker.

    Args:
        settings: where `events` is.
        ask: gathers the state; it is asked at most once a second, however many watch.
    """

    def __init__(self, settings: Settings, ask: Ask) -> None:
        self._settings = settings
        self._ask = ask
        self._feed: EventFeed
        self._watching = 0
        self._asking = asyncio.Lock()
        self._state: tuple[float, bytes] = (-STATE_S, b"")
        self._ended = False

    def add_to(self, application: web.Application) -> None:
        """Register the routes and what lives with them."""
        application.router.add_get("/api/events", self._events)
        application.router.add_get("/api/live", self._live)
        application.on_startup.append(self._start)
        application.on_shutdown.append(self._shut)
        application.on_cleanup.append(self._clean)

    async def _start(self, _application: web.Application) -> None:
        self._feed = EventFeed(self._settings)

    async def _shut(self, _application: web.Application) -> None:
        """End every stream now: a stop waits for requests, and these never end."""
        self._ended = True
        self._feed.close()

    async def _clean(self, _application: web.Application) -> None:
        await self._feed.join()

    async def _events(self, request: web.Request) -> web.StreamResponse:
        return await self._stream(request, None)

    async def _live(self, request: web.Request) -> web.StreamResponse:
        return await self._stream(request, b"event")

    async def _stream(self, request: web.Request, name: bytes | None) -> web.StreamResponse:
        last, after = _whence(request.query, request.headers)
        if self._watching >= WATCHERS_MAX or self._ended:
            raise ProblemError(503, "too-many", f"{self._watching} streams are open here already: ask another worker")
        self._watching += 1
        try:
            watcher = await self._feed.watch(last=last, after=after)
            try:
                response = web.StreamResponse(headers=_HEADERS)
                await response.prepare(request)
                await response.write(b"".join(_message(told, name) for told in watcher.before) or b": open\n\n")
                await self._write(response, watcher.queue, name)
            finally:
                self._feed.leave(watcher)
        finally:
            self._watching -= 1
        return response

    async def _write(
        self, response: web.StreamResponse, queue: "asyncio.Queue[Told | None]", name: bytes | None
    ) -> None:
        every = ALIVE_S if name is None else STATE_S
        due = time.monotonic() + (every if name is None else 0.0)
        while not self._ended:
            try:
                told = await asyncio.wait_for(queue.get(), max(0.0, due - time.monotonic()))
            except TimeoutError:
                due = time.monotonic() + every
                beat = b": alive\n\n" if name is None else b"event: state\ndata: %b\n\n" % await self._now()
                await response.write(beat)
                continue
            if told is None:
                return
            await response.write(_message(told, name))

    async def _now(self) -> bytes:
        """The state as JSON, no older than a second."""
        async with self._asking:
            at, state = self._state
            if time.monotonic() - at >= 0.9 * STATE_S:
                found = await self._ask()
                status = found["status"]
                moving = status.get("migrations", [])
                status["moving"] = len(moving)
                status["migrations"] = moving[:MIGRATIONS_MAX]
                state = orjson.dumps(found)
                self._state = (time.monotonic(), state)
            return state


def _message(told: Told, name: bytes | None) -> bytes:
    kind = b"" if name is None else b"event: %b\n" % name
    return b"id: %d\n%bdata: %b\n\n" % (told.offset, kind, told.json)


def _whence(query: Mapping[str, str], headers: Mapping[str, str]) -> tuple[int, int | None]:
    """How many of the last events to begin with, and behind which offset instead."""
    seen = headers.get("Last-Event-ID") or query.get("after", "")
    text = query.get("last", "0")
    if not (text.isascii() and text.isdecimal()):
        raise ProblemError(400, "bad-request", f"last={text}: use a number from 0 to {LAST_MAX}")
    return min(int(text), LAST_MAX), int(seen) if seen.isascii() and seen.isdecimal() else None
