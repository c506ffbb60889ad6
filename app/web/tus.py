"""tus 1.0 on a worker: any worker answers any upload, whoever has served it before.

Core, and the extensions creation, creation-with-upload, creation-defer-length, checksum, termination, expiration and
concatenation of https://tus.io/protocols/resumable-upload (1.0.0).
"""

import asyncio
import uuid
from collections.abc import Awaitable, Callable
from typing import Any, Final
from urllib.parse import quote, unquote

from aiohttp import web

from app.errors import StorageError
from app.protocol.conveyance import Completing, Conveying, Done, Floating, Idle, Nak, Reason, Segment, State
from app.protocol.murmur2 import partition_of
from app.settings import Settings
from app.storage.conclude import shelf_for
from app.web.answers import ProblemError, answer
from app.web.files_hold import Hold, Holds, RefusedError, offset_of
from app.web.files_receive import InterruptedTransferError, Reception, TooMuchError, WrongChecksumError
from app.web.tus_words import (
    CHECKSUMS,
    EXTENSIONS,
    OCTETS,
    VERSION,
    checksum,
    concatenated,
    connection_of,
    describe,
    gone_or_unknown,
    metadata,
    number,
    refused,
    whole_checksum,
)
from tables.transfers import pairs_of

CONNECTION_HEADER: Final = "Holdfast-Connection"
"""Names the connection of a new upload; percent-encoded. Without it a name is made."""

_OVERRIDES: Final = frozenset({"PATCH", "DELETE", "HEAD"})


class Tus:
    """The handlers of ``/files/`` for uploads."""

    def __init__(self, holds: Holds, settings: Settings) -> None:
        self._holds = holds
        self._owners = holds.owners
        self._settings = settings

    def attach(self, application: web.Application) -> None:
        """Register the routes."""
        for path, handlers in {
            "/files/": {"OPTIONS": self.options, "POST": self.create},
            "/files": {"OPTIONS": self.options, "POST": self.create},
            "/files/{id}": {
                "OPTIONS": self.options,
                "HEAD": self.head,
                "PATCH": self.patch,
                "DELETE": self.delete,
                "POST": self.override,
            },
        }.items():
            for method, handler in handlers.items():
                application.router.add_route(method, path, self._spoken(handler))

    def _spoken(
        self, handler: Callable[[web.Request], Awaitable[web.StreamResponse]]
    ) -> Callable[[web.Request], Awaitable[web.StreamResponse]]:
        """Check the version, turn every refusal into the protocol's answer, and sign it."""

        async def speak(request: web.Request) -> web.StreamResponse:
            response = await self._answer(request, handler)
            response.headers.setdefault("Tus-Resumable", VERSION)
            if not request.content.at_eof():
                response.force_close()
            return response

        return speak

    async def _answer(
        self, request: web.Request, handler: Callable[[web.Request], Awaitable[web.StreamResponse]]
    ) -> web.StreamResponse:
        if request.method != "OPTIONS" and request.headers.get("Tus-Resumable") != VERSION:
            return _problem(ProblemError(412, "version", f"send Tus-Resumable: {VERSION}"), {"Tus-Version": VERSION})
        try:
            return await handler(request)
        except ProblemError as error:
            return _problem(error)
        except RefusedError as error:
            if isinstance(error.state, Idle):
                return _problem(refused(Nak(Reason.UNKNOWN)))
            return _problem(refused(error.nak))
        except StorageError as error:
            status, word = (507, "full") if error.full else (503, "unavailable")
            return _problem(ProblemError(status, word, str(error)))

    # -- what the server can do -----------------------------------------------------------------------------------

    async def options(self, _request: web.Request) -> web.Response:
        """Tell versions, extensions and limits."""
        headers = {
            "Tus-Version": VERSION,
            "Tus-Extension": EXTENSIONS,
            "Tus-Max-Size": str(self._settings.max_upload_bytes),
            "Tus-Checksum-Algorithm": ",".join(CHECKSUMS),
        }
        return web.Response(status=204, headers=headers)

    async def override(self, request: web.Request) -> web.StreamResponse:
        """POST on behalf of clients that cannot send other methods."""
        method = request.headers.get("X-HTTP-Method-Override", "").upper()
        if method not in _OVERRIDES:
            raise ProblemError(
                405, "method-not-allowed", "POST here needs X-HTTP-Method-Override: PATCH, DELETE or HEAD"
            )
        return await {"PATCH": self.patch, "DELETE": self.delete, "HEAD": self.head}[method](request)

    # -- creation -------------------------------------------------------------------------------------------------

    async def create(self, request: web.Request) -> web.StreamResponse:
        """Announce a message; with a body, take its first bytes as well."""
        headers = request.headers
        with_bytes = headers.get("Content-Type") == OCTETS
        fields = self._announced(request)
        connection = self._named(request, fields["details"]["remote"])
        await self._join(connection, fields)
        answer = await self._owners.call(connection, "begin", **fields)
        if isinstance(answer.reply, Nak):
            raise refused(answer.reply)
        state = answer.state
        location = {"Location": f"/files/{quote(connection, safe='')}"}
        if with_bytes and isinstance(state, Floating):
            offset, state = await self._receive(request, connection, 0)
            location["Upload-Offset"] = str(offset)
        return web.Response(status=201, headers={**location, **_expiry(state)})

    def _announced(self, request: web.Request) -> dict[str, Any]:
        """What a creation says, as the owner wants it."""
        headers = request.headers
        text = headers.get("Upload-Metadata", "")
        pairs = metadata(text)
        concat = headers.get("Upload-Concat", "")
        if concat not in ("", "partial") and not concat.startswith("final;"):
            raise ProblemError(400, "bad-request", "Upload-Concat: partial, or final; and the URLs of the parts")
        size = number(headers, "Upload-Length")
        deferred = headers.get("Upload-Defer-Length")
        if concat.startswith("final;"):
            if size is not None or deferred is not None:
                raise ProblemError(
                    400, "bad-request", "a final upload has the length of its parts: leave Upload-Length out"
                )
        elif (size is None) != (deferred == "1") or (deferred is not None and deferred != "1"):
            raise ProblemError(400, "bad-request", "send Upload-Length, or Upload-Defer-Length: 1")
        if size is not None and size > self._settings.max_upload_bytes:
            raise refused(Nak(Reason.TOO_LARGE))
        tenant = pairs.get("tenant", "")
        details = {
            "metadata": text,
            "tenant": connection_of(tenant) if tenant else "",
            "publish": pairs.get("publish", ""),
            "remote": headers.get("X-Forwarded-For", request.remote or ""),
            "concat": concat if concat.startswith("final;") else "",
        }
        return {
            # With a name of the remote's own, a creation may be repeated.
            "name": pairs.get("message") or uuid.uuid4().hex,
            "size": size,
            "partial": concat == "partial",
            "joined": bool(details["concat"]),
            "checksum": whole_checksum(pairs.get("checksum", "")),
            "details": {key: value for key, value in details.items() if value or key == "remote"},
        }

    def _named(self, request: web.Request, remote: str) -> str:
        """The connection's name: the remote's choice, or one that shares its owner with all others of this remote."""
        chosen = request.headers.get(CONNECTION_HEADER)
        if chosen is not None:
            return connection_of(unquote(chosen))
        routers = self._settings.routers
        wanted = partition_of(remote.encode(), routers)
        while True:
            name = uuid.uuid4().hex
            if partition_of(name.encode(), routers) == wanted:
                return name

    async def _join(self, connection: str, fields: dict[str, Any]) -> None:
        """A final upload: its segments are the whole messages of its parts."""
        if not fields["joined"]:
            return
        segments: list[Segment] = []
        for name in concatenated(fields["details"]["concat"]):
            state = (await self._owners.call(name, "show")).state
            gone_or_unknown(state)
            if not isinstance(state, Done) or not state.message.partial:
                raise ProblemError(409, "unfinished", f"{name} is no part that is complete")
            segments.append(Segment(shelf_for(name, state.message).object, state.size))
        fields["size"] = sum(segment.length for segment in segments)
        if fields["size"] > self._settings.max_upload_bytes:
            raise refused(Nak(Reason.TOO_LARGE))
        fields["segments"] = pairs_of(tuple(segments))

    # -- core -----------------------------------------------------------------------------------------------------

    async def head(self, request: web.Request) -> web.Response:
        """Tell how far an upload has come; who served it lets go first, so that the answer stays true."""
        connection = connection_of(request.match_info["id"])
        offset, state = await self._standing(connection)
        headers = {"Cache-Control": "no-store", **describe(state)}
        if not (isinstance(state, Completing) and state.conveyance.message.joined):
            headers["Upload-Offset"] = str(offset)
        return web.Response(status=200, headers=headers)

    async def _standing(self, connection: str) -> tuple[int, State]:
        holds = self._holds
        hold = holds.held(connection)
        if hold is not None and hold.busy:
            await holds.let_go(connection)
            hold = None
        state = (await self._owners.call(connection, "show")).state
        if hold is not None:
            if isinstance(state, Conveying) and state.instance == hold.instance:
                return hold.offset, state
            await holds.drop(hold)
        gone_or_unknown(state)
        if isinstance(state, Conveying) or (isinstance(state, Floating) and not state.clean):
            try:
                hold = await holds.take(connection)
                hold.free()
                return hold.offset, hold.state
            except RefusedError as error:
                state = error.state
                gone_or_unknown(state)
        return (state.size if isinstance(state, Done) else offset_of(state)), state

    async def patch(self, request: web.Request) -> web.Response:
        """Take bytes at an offset."""
        if request.headers.get("Content-Type") != OCTETS:
            raise ProblemError(415, "unsupported-media-type", f"send Content-Type: {OCTETS}")
        offset = number(request.headers, "Upload-Offset")
        if offset is None:
            raise ProblemError(400, "bad-request", "send Upload-Offset")
        connection = connection_of(request.match_info["id"])
        offset, state = await self._receive(request, connection, offset)
        return web.Response(status=204, headers={"Upload-Offset": str(offset), **_expiry(state)})

    async def _receive(self, request: web.Request, connection: str, offset: int) -> tuple[int, State]:
        wanted = checksum(request.headers)
        size = (
            number(request.headers, "Upload-Length") if request.method != "POST" or "id" in request.match_info else None
        )
        hold = await self._take(connection, offset)
        try:
            self._fits(hold, offset, request.content_length or 0, size)
        except ProblemError:
            hold.free()
            raise
        reception = Reception(self._holds, hold, self._settings.progress_interval, checksum=wanted, size=size)
        # A remote that goes away ends this handler, but not the saving of what it sent.
        receiving = asyncio.ensure_future(reception.run(request.content))
        try:
            return await asyncio.shield(receiving), hold.state
        except asyncio.CancelledError:
            receiving.add_done_callback(_seen)
            raise
        except WrongChecksumError:
            raise ProblemError(
                460, "checksum", "the bytes are not those that Upload-Checksum says", offset=offset
            ) from None
        except TooMuchError:
            raise refused(Nak(Reason.TOO_LARGE)) from None
        except InterruptedTransferError:
            # The next request comes to whoever has the lock then.
            if request.transport is not None:
                request.transport.abort()
            raise asyncio.CancelledError from None

    async def _take(self, connection: str, offset: int) -> Hold:
        try:
            return await self._holds.take(connection)
        except RefusedError as error:
            state = error.state
            gone_or_unknown(state)
            if isinstance(state, Done | Completing) and not _joined(state):
                end = state.size if isinstance(state, Done) else state.conveyance.offset
                if offset != end:
                    raise ProblemError(409, "offset", f"the upload is at {end}", offset=end) from None
                raise refused(Nak(Reason.COMPLETE)) from None
            raise

    def _fits(self, hold: Hold, offset: int, length: int, size: int | None) -> None:
        """Refuse what does not go on where the upload stands, and at once what would be refused later."""
        if hold.offset != offset:
            raise ProblemError(409, "offset", f"the upload is at {hold.offset}", offset=hold.offset)
        known = hold.state.conveyance.message.size if isinstance(hold.state, Conveying) else None
        if size is not None and ((known is not None and size != known) or size < offset):
            raise ProblemError(400, "bad-request", f"Upload-Length: {size} does not fit what is known of the upload")
        end = known if known is not None else size
        if offset + length > min(
            self._settings.max_upload_bytes if end is None else end, self._settings.max_upload_bytes
        ):
            raise refused(Nak(Reason.TOO_LARGE, offset))

    # -- termination ----------------------------------------------------------------------------------------------

    async def delete(self, request: web.Request) -> web.Response:
        """Cancel an upload, or delete what came of it."""
        connection = connection_of(request.match_info["id"])
        await self._holds.let_go(connection)
        answer = await self._owners.call(connection, "cancel")
        if isinstance(answer.reply, Nak):
            raise refused(answer.reply)
        return web.Response(status=204)


def _joined(state: Done | Completing) -> bool:
    return (state.message if isinstance(state, Done) else state.conveyance.message).joined


def _expiry(state: State) -> dict[str, str]:
    expires = describe(state).get("Upload-Expires")
    return {"Upload-Expires": expires} if expires else {}


def _problem(error: ProblemError, more: dict[str, str] | None = None) -> web.Response:
    headers = dict(more or {})
    offset = error.more.get("offset")
    if isinstance(offset, int) and error.status in (409, 423, 460):
        headers["Upload-Offset"] = str(offset)
    if error.status in (423, 429, 503):
        headers["Retry-After"] = "1"
    return answer({"error": error.error, "message": error.message, **error.more}, status=error.status, headers=headers)


def _seen(task: "asyncio.Future[Any]") -> None:
    """Nobody waits for it any more; what came of it is in the row."""
    if not task.cancelled():
        task.exception()
