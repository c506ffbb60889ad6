"""``/files/`` of a worker beside tus: pulls with ranges and their confirmation, and what workers ask of one another."""

import asyncio
import hashlib
from collections.abc import AsyncIterator
from contextlib import suppress
from typing import Any, Final

import aiohttp
import orjson
from aiohttp import web

from agents.devices import matches
from agents.transfer_words import message_in, shelf_in
from app.protocol.conveyance import Ack, Completing, Conveying, Done, Durable, Failed, Floating, Idle, Nak, State
from app.settings import Settings
from app.storage import CHUNK_BYTES, Storage
from app.web.answers import ProblemError, answer
from app.web.files_hold import Holds
from app.web.files_owner import Desk, Owners
from app.web.tus import Tus
from app.web.tus_words import connection_of, gone_or_unknown, refused

_TIMEOUT: Final = aiohttp.ClientTimeout(total=10, sock_connect=2)
_LET_GO_S: Final = 2.0
_BODY_MAX: Final = 64 << 10


class Files:
    """Transfers over HTTP on one worker.

    Args:
        desk: the worker.
        storage: where the bytes are.
        settings: for the token, limits and times.
    """

    def __init__(self, desk: Desk, storage: Storage, settings: Settings) -> None:
        self._desk = desk
        self._storage = storage
        self._settings = settings
        self._owners = Owners(desk, settings)
        self._holds = Holds(desk, self._owners, storage, self._session)
        self._peers: aiohttp.ClientSession | None = None
        self._pulls: dict[int, web.Request] = {}

    def attach(self, application: web.Application) -> None:
        """Register all routes and what lives with them."""
        # Before tus, which has the other methods of the same path.
        application.router.add_get("/files/{id}", self._get, allow_head=False)
        Tus(self._holds, self._settings).attach(application)
        application.router.add_post("/files/{id}/ack", self._ack)
        application.router.add_post("/files/{id}/release", self._release)
        application.router.add_get("/api/transfers", self._list)
        application.router.add_get("/api/transfers/{id}", self._show)
        application.router.add_post("/api/transfers/rebalance", self._rebalance)
        application.cleanup_ctx.append(self._live)
        application.on_shutdown.append(self._let_all_go)

    async def _live(self, _application: web.Application) -> AsyncIterator[None]:
        token = self._settings.token.get_secret_value()
        headers = {"Authorization": f"Bearer {token}"} if token else {}
        self._owners.start()
        async with aiohttp.ClientSession(timeout=_TIMEOUT, headers=headers) as self._peers:
            sweeping = asyncio.ensure_future(self._holds.sweep())
            yield
            sweeping.cancel()
        await asyncio.to_thread(self._owners.close)
        self._holds.pool.shutdown(wait=False)

    async def _let_all_go(self, _application: web.Application) -> None:
        """The worker stops: what can be released at once is."""
        with suppress(TimeoutError):
            async with asyncio.timeout(_LET_GO_S):
                await self._holds.let_all_go()

    def _session(self) -> aiohttp.ClientSession:
        assert self._peers is not None, "requests come between start and end of the application"
        return self._peers

    # -- pull -----------------------------------------------------------------------------------------------------

    async def _get(self, request: web.Request) -> web.StreamResponse:
        """The bytes of a whole message; a range's start confirms what lies before it."""
        connection = connection_of(request.match_info["id"])
        state = await self._done(connection)
        if message_in(state).details.get("publish"):
            raise ProblemError(409, "published", "the message was published as a record, and is no file")
        start, stop = _range(request, state.size)
        if start > state.confirmed:
            await self._owners.call(connection, "confirm", offset=start, verified=False)
        name = shelf_in(connection, state).object
        whole = (start, stop) == (0, state.size) and "Range" not in request.headers
        headers = {
            "Accept-Ranges": "bytes",
            "Cache-Control": "no-store",
            "Content-Type": "application/octet-stream",
            "ETag": f'"{state.message.number}"',
            "X-Content-Type-Options": "nosniff",
        }
        if not whole:
            headers["Content-Range"] = f"bytes {start}-{stop - 1}/{state.size}"
        response = web.StreamResponse(status=200 if whole else 206, headers=headers)
        response.content_length = stop - start
        self._pulls[id(request)] = request
        try:
            await response.prepare(request)
            await self._send(response, name, start, stop)
            await response.write_eof()
        finally:
            del self._pulls[id(request)]
        return response

    async def _send(self, response: web.StreamResponse, name: str, start: int, stop: int) -> None:
        holds = self._holds
        opened = self._storage.reading(name)
        reader = await holds.threaded(opened.__enter__)
        try:
            while start < stop:
                data = await holds.threaded(reader.at, start, min(CHUNK_BYTES, stop - start))
                if not data:
                    raise ProblemError(500, "storage", "the file is shorter than its row says")
                await response.write(data)
                start += len(data)
        finally:
            await holds.threaded(opened.__exit__, None, None, None)

    async def _done(self, connection: str) -> Done:
        state = (await self._owners.call(connection, "show")).state
        gone_or_unknown(state)
        if not isinstance(state, Done):
            raise ProblemError(409, "unfinished", "the message is not whole yet")
        return state

    async def _ack(self, request: web.Request) -> web.Response:
        """A remote has it, up to an offset or all of it."""
        connection = connection_of(request.match_info["id"])
        offset, given = _confirmation(await request.content.read(_BODY_MAX))
        state = await self._done(connection)
        right = offset == state.size and await self._holds.threaded(
            matches, self._storage, shelf_in(connection, state).object, state.size, given, state.checksum
        )
        said = await self._owners.call(connection, "confirm", offset=offset, verified=right)
        match said.reply:
            case Ack(size, checksum):
                return answer({"acknowledged": True, "offset": size, "checksum": checksum or given})
            case Durable(confirmed):
                return answer({"acknowledged": False, "offset": confirmed})
            case Nak() as nak:
                raise refused(nak)
            case _:
                raise ProblemError(500, "internal", "an answer that does not fit")

    # -- among workers --------------------------------------------------------------------------------------------

    async def _release(self, request: web.Request) -> web.Response:
        """Another worker wants the lock: save what came and let go."""
        instance = request.query.get("instance", "")
        held = await self._holds.let_go(
            connection_of(request.match_info["id"]), int(instance) if instance.isdecimal() else None
        )
        return answer({"held": held})

    async def _rebalance(self, _request: web.Request) -> web.Response:
        """Let every live connection go; remotes come back wherever they find a worker."""
        pulls = list(self._pulls.values())
        for request in pulls:
            if request.transport is not None:
                request.transport.abort()
        return answer({"worker": self._desk.name, "pushes": await self._holds.let_all_go(), "pulls": len(pulls)})

    async def _show(self, request: web.Request) -> web.Response:
        connection = connection_of(request.match_info["id"])
        state = (await self._owners.call(connection, "show")).state
        if isinstance(state, Idle):
            raise ProblemError(404, "unknown", f"there is no connection {connection!r}")
        return answer(summary(connection, state))

    async def _list(self, request: web.Request) -> web.Response:
        """The connections of all owners, gathered from all workers."""
        if "local" in request.query:
            # In a thread: there may be many.
            return answer({"transfers": await asyncio.to_thread(self._own_rows)})
        urls = self._desk.workers()
        answers = await asyncio.gather(*(self._rows_of(name, url) for name, url in urls.items()))
        found = sorted((row for rows in answers for row in rows), key=lambda row: row["connection"])
        return answer({"transfers": found})

    def _own_rows(self) -> list[dict[str, Any]]:
        return [summary(connection, state) for connection, state in self._desk.rows()]

    async def _rows_of(self, name: str, url: str) -> list[dict[str, Any]]:
        if name == self._desk.name:
            return await asyncio.to_thread(self._own_rows)
        try:
            async with self._session().get(f"{url}/api/transfers?local=1") as reply:
                rows: list[dict[str, Any]] = orjson.loads(await reply.read())["transfers"]
                return rows
        except (aiohttp.ClientError, TimeoutError, OSError, ValueError, KeyError):
            return []


def summary(connection: str, state: State) -> dict[str, Any]:
    """A connection as ``/api/transfers`` tells it."""
    message = message_in(state)
    held = state.held if isinstance(state, Conveying | Completing) else None
    match state:
        case Done():
            offset = state.size
        case Floating() | Conveying() | Completing():
            offset = state.conveyance.offset
        case _:
            offset = 0
    return {
        "connection": connection,
        "state": type(state).__name__.lower(),
        "offset": offset,
        "size": state.size if isinstance(state, Done) else message.size,
        "worker": held.worker if held is not None else None,
        "instance": state.instance,
        "tenant": message.details.get("tenant", ""),
        "checksum": state.checksum if isinstance(state, Done) else message.checksum,
        "confirmed": state.confirmed if isinstance(state, Done) else 0,
        "acknowledged": state.acknowledged if isinstance(state, Done) else False,
        "reason": state.reason.value if isinstance(state, Failed) else None,
        "metadata": message.details.get("metadata", ""),
    }


def _range(request: web.Request, size: int) -> tuple[int, int]:
    """The one range that is asked for, as (first, behind the last) byte."""
    try:
        asked = request.http_range
    except ValueError as error:
        raise ProblemError(416, "range", "Range: one range of bytes") from error
    start, stop, _ = asked.indices(size)
    if (asked.start is not None and asked.start >= size > 0) or (size == 0 and asked.start):
        raise ProblemError(416, "range", f"the message has {size} bytes", size=size)
    return start, max(start, stop)


def _confirmation(body: bytes) -> tuple[int, str]:
    try:
        fields = orjson.loads(body)
        offset, given = fields["offset"], fields.get("checksum", "") or ""
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise ProblemError(400, "bad-request", 'send {"offset": bytes, "checksum": "sha256:..."}') from error
    algorithm = str(given).partition(":")[0]
    if type(offset) is not int or offset < 0 or (given and algorithm not in hashlib.algorithms_available):
        raise ProblemError(400, "bad-request", 'send {"offset": bytes, "checksum": "sha256:..."}')
    return offset, str(given)
