"""Questions that other workers answer."""

import asyncio
import logging
from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import Any, Final

import aiohttp
from aiohttp import web
from yarl import URL

from app.web.answers import ProblemError

_LOGGER: Final = logging.getLogger(__name__)

HOPS_HEADER: Final = "X-Holdfast-Hops"
HOPS_MAX: Final = 3
FORWARD_TIMEOUT: Final = aiohttp.ClientTimeout(total=10, sock_connect=2)
_PATIENT: Final = aiohttp.ClientTimeout(total=None, sock_connect=2)
_ALL_TIMEOUT: Final = aiohttp.ClientTimeout(total=0.8, sock_connect=0.3)


class Peers:
    """The other workers of the cluster, asked in the name of whoever asks here."""

    def __init__(self, connections: aiohttp.ClientSession) -> None:
        self._connections = connections

    @staticmethod
    def hops(request: web.Request) -> int:
        """How often a request has been passed on. What is no number came from nobody of ours: it is not passed on."""
        text = request.headers.get(HOPS_HEADER, "0")
        return int(text) if text.isascii() and text.isdecimal() else HOPS_MAX

    async def forward(
        self,
        request: web.Request,
        target: str,
        *,
        hops: int | None = None,
        headers: Mapping[str, str] = MappingProxyType({}),
    ) -> web.Response:
        """Ask the worker that this one believes in; it computes the same, and goes on from what it knows.

        Raises:
            ProblemError: nobody answers, or too many have passed it on.
        """
        hops = self.hops(request) if hops is None else hops
        if hops >= HOPS_MAX:
            raise ProblemError(503, "unavailable", "the workers do not agree yet on where this lives")
        sent = {HOPS_HEADER: str(hops + 1), **headers, **_authorization(request)}
        body = await request.read() if request.body_exists else None
        where = URL(target, encoded=True)
        # A task that is waited for takes as long as it takes.
        timeout = FORWARD_TIMEOUT if request.method == "GET" else _PATIENT
        try:
            async with self._connections.request(
                request.method, where, headers=sent, data=body, timeout=timeout
            ) as reply:
                body = await reply.read()
                again = {"Retry-After": "1"} if reply.status == 503 else None
                return web.Response(body=body, status=reply.status, content_type=reply.content_type, headers=again)
        except (aiohttp.ClientError, TimeoutError, OSError) as error:
            _LOGGER.info("%s does not answer: %r", target, error)
            raise ProblemError(503, "unavailable", "the worker that hosts this does not answer") from error

    async def all(self, request: web.Request, urls: Sequence[str], path: str) -> list[dict[str, Any]]:
        """Ask all of them at once; those that do not answer in time are left out."""
        return await self.told(_authorization(request), urls, path)

    async def told(self, headers: dict[str, str], urls: Sequence[str], path: str) -> list[dict[str, Any]]:
        """The same in the name of whoever has the headers."""
        found = await asyncio.gather(*(self._one(f"{url}{path}", headers) for url in urls))
        return [answered for answered in found if answered is not None]

    async def _one(self, target: str, headers: dict[str, str]) -> dict[str, Any] | None:
        try:
            async with self._connections.get(target, headers=headers, timeout=_ALL_TIMEOUT) as reply:
                answered = await reply.json() if reply.status == 200 else None
        except (aiohttp.ClientError, TimeoutError, OSError, ValueError) as error:
            _LOGGER.debug("%s does not answer: %r", target, error)
            return None
        return answered if isinstance(answered, dict) else None


def _authorization(request: web.Request) -> dict[str, str]:
    given = request.headers.get("Authorization")
    return {} if given is None else {"Authorization": given}
