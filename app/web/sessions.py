"""Requests about one session: sent to where it lives, and checked again there before anything is answered.

The worker that takes a request computes where it belongs and forwards it with the server that it believes in. The host
of that server asks what its stream has told, and performs the request, waits for a session that is on its way, or
sends the request on; see :mod:`app.protocol.forwarding`. Source: US 8,090,829; design 3.1.
"""

import asyncio
import time
from typing import Any, Final
from urllib.parse import quote

import orjson
from aiohttp import web

from app.protocol.forwarding import Forward, Perform, Refuse, Wait
from app.web.answers import ProblemError
from app.web.peers import Peers
from app.web.view import ClusterView

SERVER_HEADER: Final = "X-Holdfast-Server"
"""The server at which the worker that forwards believes the session to be."""

PRIMARY: Final = "server"
"""In the query of a read: the primary server that the sender believes in."""

WAIT_S: Final = 5.0
"""So long a read waits for a session that is on its way."""

_LOOK_S: Final = 0.02


class Sessions:
    """Finds the server of a session for a request."""

    def __init__(self, view: ClusterView) -> None:
        self._view = view
        self.stale_hints = 0
        """Requests that named another primary than where the session lives."""

    async def reach(
        self,
        request: web.Request,
        peers: Peers,
        tenant: str,
        session: str,
        *,
        primary: int | None,
        path: str,
        waits: bool = True,
    ) -> int | web.Response:
        """The server that answers, which is hosted here; or what another worker has answered.

        Args:
            primary: the server that the request names, or None.
            path: of the request, for the worker that it is forwarded to.
            waits: whether it has to wait for a session that is on its way here.

        Raises:
            ProblemError: nobody hosts the server, or too many have passed the request on, or the session does not come.
        """
        hops = peers.hops(request)
        server = _whole(request.headers.get(SERVER_HEADER)) if hops else None
        if server is None or not self._view.knows(server):
            server = self._view.locate(tenant, session, primary).server
        deadline = time.monotonic() + WAIT_S
        while True:
            worker, url = self._view.host_of(server)
            if worker is None or url is None:
                raise ProblemError(503, "unavailable", f"nobody hosts server {server} at the moment")
            if worker != self._view.name:
                return await peers.forward(request, url + path, hops=hops, headers={SERVER_HEADER: str(server)})
            match self._view.receive(tenant, session, server, hops):
                case Forward(to, passed):
                    server = to
                    # Sent to another worker, it is counted there.
                    hops = passed if self._view.host_of(to)[0] == self._view.name else hops
                case Refuse():
                    raise ProblemError(503, "unavailable", "the workers do not agree yet on where this lives")
                case Wait() if waits:
                    if time.monotonic() > deadline:
                        raise ProblemError(503, "unavailable", f"the session is on its way to server {server}")
                    await asyncio.sleep(_LOOK_S)
                case Perform() | Wait():
                    self.stale_hints += primary is not None and primary != server
                    return server

    async def show(
        self, request: web.Request, peers: Peers, tenant: str, session: str
    ) -> dict[str, Any] | web.Response:
        """A session as the server that it lives at has it."""
        names = "/".join(quote(name, safe="") for name in (tenant, session))
        given = request.query.get(PRIMARY)
        primary = _whole(given)
        if given is not None and primary is None:
            raise ProblemError(400, "bad-request", f"{PRIMARY}={given}: use the number of a server")
        path = f"/api/sessions/{names}" + ("" if primary is None else f"?{PRIMARY}={primary}")
        found = await self.reach(request, peers, tenant, session, primary=primary, path=path)
        if not isinstance(found, int):
            return found
        rows = self._view.read_session(tenant, session, found)
        if rows is None:
            raise ProblemError(404, "unknown-session", f"tenant {tenant!r} has no session {session!r}")
        return {"tenant": tenant, "session": session, "server": found, "worker": self._view.name, **rows}

    async def task(self, request: web.Request, peers: Peers, body: bytes) -> web.Response | None:
        """Send a task that names its primary to where its session lives; None: it is to be published here."""
        task = orjson.loads(body)
        path = str(request.rel_url)
        found = await self.reach(
            request, peers, task["tenant"], task["session"], primary=task["server"], path=path, waits=False
        )
        return None if isinstance(found, int) else found


def _whole(text: str | None) -> int | None:
    return int(text) if text is not None and text.isascii() and text.isdecimal() and len(text) < 9 else None
