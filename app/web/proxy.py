"""One address in front of several workers: passes every request to a live one, streams both ways."""

import asyncio
import logging
from collections.abc import AsyncIterator, Callable, Sequence
from typing import Final

import aiohttp
from aiohttp import web
from multidict import CIMultiDict
from yarl import URL

from app.web.answers import ProblemError, errors_as_json

_LOGGER: Final = logging.getLogger(__name__)

# They concern one connection, not the request (RFC 9110, 7.6.1); the client sets its own length or chunks.
_HOP_BY_HOP: Final = frozenset(
    {
        "connection",
        "keep-alive",
        "proxy-authenticate",
        "proxy-authorization",
        "proxy-connection",
        "te",
        "trailer",
        "transfer-encoding",
        "upgrade",
    }
)
_CHUNK: Final = 64 * 1024
_CONNECT_S: Final = 2.0
# A frozen worker accepts connections and says nothing: whoever only reads is sent to another one.
_SILENCE_S: Final = 5.0
_SAFE: Final = frozenset({"GET", "HEAD", "OPTIONS"})

Targets = Callable[[], Sequence[str]]
"""Return the URLs of live workers."""


class Proxy:
    """Takes turns among the live workers; one that cannot be connected to is passed over."""

    def __init__(self, targets: Targets) -> None:
        self._targets = targets
        self._turn = 0
        self._session: aiohttp.ClientSession | None = None

    def application(self) -> web.Application:
        """Return the application, ready to be served."""
        application = web.Application(middlewares=[errors_as_json])
        application.router.add_route("*", "/{path:.*}", self._pass)
        application.cleanup_ctx.append(self._connections)
        return application

    async def _connections(self, _application: web.Application) -> AsyncIterator[None]:
        timeout = aiohttp.ClientTimeout(total=None, sock_connect=_CONNECT_S)
        # What the worker compressed stays as it is.
        async with aiohttp.ClientSession(timeout=timeout, auto_decompress=False) as self._session:
            yield

    def _in_turn(self) -> list[str]:
        urls = list(self._targets())
        if urls:
            self._turn = (self._turn + 1) % len(urls)
        return urls[self._turn :] + urls[: self._turn]

    async def _pass(self, request: web.Request) -> web.StreamResponse:
        for url in self._in_turn():
            try:
                reply = await self._ask(request, url)
            except aiohttp.ClientConnectorError as error:
                _LOGGER.debug("%s cannot be connected to: %r", url, error)
            except (aiohttp.ClientError, TimeoutError) as error:
                # Another worker may repeat what only reads; anything else may have taken effect.
                if request.method not in _SAFE:
                    message = f"the worker ended while it answered ({error!r})"
                    raise ProblemError(502, "bad-gateway", message) from error
            else:
                return await _return(request, reply)
        raise ProblemError(503, "unavailable", "no worker answers at the moment")

    async def _ask(self, request: web.Request, url: str) -> aiohttp.ClientResponse:
        assert self._session is not None, "requests come between start and end of the application"
        headers = CIMultiDict(request.headers)
        for name in _named_hop_by_hop(request.headers.get("Connection", "")):
            headers.popall(name, None)
        if request.remote:
            headers["X-Forwarded-For"] = request.remote
        asked = self._session.request(
            request.method,
            URL(url + request.raw_path, encoded=True),
            headers=headers,
            data=request.content.iter_chunked(_CHUNK) if request.body_exists else None,
            allow_redirects=False,
            skip_auto_headers=("User-Agent", "Accept", "Accept-Encoding", "Content-Type"),
        )
        if request.method in _SAFE:
            return await asyncio.wait_for(asked, _SILENCE_S)
        return await asked


def _named_hop_by_hop(connection: str) -> frozenset[str]:
    return _HOP_BY_HOP | {name.strip().lower() for name in connection.split(",") if name.strip()}


async def _return(request: web.Request, reply: aiohttp.ClientResponse) -> web.StreamResponse:
    async with reply:
        response = web.StreamResponse(status=reply.status, reason=reply.reason)
        unwanted = _named_hop_by_hop(reply.headers.get("Connection", ""))
        for name, value in reply.headers.items():
            if name.lower() not in unwanted:
                response.headers.add(name, value)
        await response.prepare(request)
        try:
            async for chunk in reply.content.iter_any():
                await response.write(chunk)
        except aiohttp.ClientError as error:
            # The head is out: only a broken connection can tell that the rest is missing.
            _LOGGER.info("a worker ended in the middle of an answer: %r", error)
            if request.transport is not None:
                request.transport.abort()
            return response
        await response.write_eof()
        return response
