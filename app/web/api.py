"""The HTTP interface of a worker; every worker answers for the whole cluster.

========================================  ===================================================================
``GET /healthz``, ``/readyz``             200 or 503, with the reason
``GET /metrics``                          for Prometheus
``GET /api/status``                       the cluster as this worker sees it
``GET /api/sessions/{tenant}/{session}``  answered by the worker that hosts the session's server
``GET /api/exchanges[/{exchange}]``        see :mod:`app.web.exchanges`
``POST /api/tasks[?wait=S]``              202 and the task's place; with ``wait`` 200 and the result, or 504
========================================  ===================================================================

Errors are ``{"error": word, "message": line}``.
"""

import asyncio
import logging
from collections.abc import AsyncIterator, Callable
from typing import Any, Final
from urllib.parse import quote

import aiohttp
import orjson
from aiohttp import web
from pydantic import ValidationError
from yarl import URL

from app.records import Task, valid_name
from app.settings import Settings
from app.web.answers import ProblemError, answer, bearer, errors_as_json, seconds
from app.web.exchanges import Exchanges
from app.web.gateway import Gateway
from app.web.view import ClusterView

_LOGGER: Final = logging.getLogger(__name__)

HOPS_HEADER: Final = "X-Holdfast-Hops"
HOPS_MAX: Final = 3
WAIT_MAX_S: Final = 3600.0
_BODY_SLACK: Final = 64 * 1024
_FORWARD_TIMEOUT: Final = aiohttp.ClientTimeout(total=10, sock_connect=2)

Metrics = Callable[[], tuple[bytes, str]]
"""Return the text of ``/metrics`` and its content type."""


class Api:
    """The handlers of one worker.

    Args:
        view: the worker.
        settings: for the token and for sizes.
        gateway: where tasks go.
        metrics: None answers 404.
    """

    def __init__(self, view: ClusterView, settings: Settings, gateway: Gateway, metrics: Metrics | None = None) -> None:
        self._view = view
        self._settings = settings
        self._gateway = gateway
        self._metrics = metrics
        self._peers: aiohttp.ClientSession | None = None

    def application(self) -> web.Application:
        """Return the application, ready to be served."""
        application = web.Application(
            middlewares=[errors_as_json, bearer(self._settings.token.get_secret_value())],
            client_max_size=self._settings.max_record_bytes + _BODY_SLACK,
        )
        application.router.add_get("/healthz", self._healthz)
        application.router.add_get("/readyz", self._readyz)
        application.router.add_get("/metrics", self._metrics_text)
        application.router.add_get("/api/status", self._status)
        application.router.add_get("/api/sessions/{tenant}/{session}", self._session)
        application.router.add_post("/api/tasks", self._task)
        Exchanges(self._view, self._others).add_to(application.router)
        application.cleanup_ctx.append(self._connections)
        return application

    async def _connections(self, _application: web.Application) -> AsyncIterator[None]:
        async with aiohttp.ClientSession(timeout=_FORWARD_TIMEOUT) as self._peers:
            yield
        await asyncio.to_thread(self._gateway.close)

    def _others(self) -> aiohttp.ClientSession:
        assert self._peers is not None, "requests come between start and end of the application"
        return self._peers

    async def _healthz(self, _request: web.Request) -> web.Response:
        return _verdict(*self._view.healthy())

    async def _readyz(self, _request: web.Request) -> web.Response:
        return _verdict(*self._view.ready())

    async def _metrics_text(self, _request: web.Request) -> web.Response:
        if self._metrics is None:
            raise ProblemError(404, "not-found", "this worker keeps no metrics")
        text, kind = self._metrics()
        return web.Response(body=text, headers={"Content-Type": kind})

    async def _status(self, _request: web.Request) -> web.Response:
        return answer(self._view.status())

    async def _session(self, request: web.Request) -> web.Response:
        tenant, session = (request.match_info[name] for name in ("tenant", "session"))
        for field, name in (("tenant", tenant), ("session", session)):
            if not valid_name(name):
                raise ProblemError(400, "bad-name", f"{field}: use 1 to 200 characters without control characters")
        location = self._view.locate(tenant, session)
        if location.worker is None or location.url is None:
            raise ProblemError(503, "unavailable", f"nobody hosts server {location.server} at the moment")
        if location.worker != self._view.name:
            return await self._forward(request, location.url, tenant, session)
        rows = self._view.read_session(tenant, session)
        if rows is None:
            raise ProblemError(404, "unknown-session", f"tenant {tenant!r} has no session {session!r}")
        place = {"server": location.server, "worker": location.worker, "backup_order": location.backup_order}
        return answer({"tenant": tenant, "session": session, **place, **rows})

    async def _forward(self, request: web.Request, url: str, tenant: str, session: str) -> web.Response:
        """Ask the worker that this one believes in; it computes the same, and goes on from what it knows."""
        hops = _hops(request)
        if hops >= HOPS_MAX:
            raise ProblemError(503, "unavailable", "the workers do not agree yet on where this session lives")
        headers = {HOPS_HEADER: str(hops + 1)}
        if "Authorization" in request.headers:
            headers["Authorization"] = request.headers["Authorization"]
        target = URL(f"{url}/api/sessions/{quote(tenant, safe='')}/{quote(session, safe='')}", encoded=True)
        assert self._peers is not None, "requests come between start and end of the application"
        try:
            async with self._peers.get(target, headers=headers) as reply:
                body = await reply.read()
                again = {"Retry-After": "1"} if reply.status == 503 else None
                return web.Response(body=body, status=reply.status, content_type=reply.content_type, headers=again)
        except (aiohttp.ClientError, TimeoutError, OSError) as error:
            _LOGGER.info("%s does not answer: %r", url, error)
            raise ProblemError(503, "unavailable", "the worker that hosts this session does not answer") from error

    async def _task(self, request: web.Request) -> web.Response:
        wait = seconds(request, "wait", largest=WAIT_MAX_S)
        task = _parse(await request.read())
        try:
            if wait is None:
                return answer((await self._gateway.publish(task))._asdict(), status=202)
            sent, result = await self._gateway.perform(task, wait)
        except ValueError as error:
            raise ProblemError(413, "too-large", str(error)) from error
        if result is None:
            message = f"no result within {wait:g} s; the task is on its way"
            raise ProblemError(504, "timeout", message, **sent._asdict())
        return answer(result.model_dump(mode="json"))


def _verdict(good: bool, reason: str) -> web.Response:
    return answer({"ok": good, "message": reason}, status=200 if good else 503)


def _hops(request: web.Request) -> int:
    text = request.headers.get(HOPS_HEADER, "0")
    # What is no number came from nobody of ours: it is not passed on.
    return int(text) if text.isascii() and text.isdecimal() else HOPS_MAX


def _parse(body: bytes) -> Task:
    try:
        record: Any = orjson.loads(body)
        return Task.model_validate(record)
    except orjson.JSONDecodeError as error:
        raise ProblemError(400, "bad-task", f"the body is not JSON: {error.msg} at {error.pos}") from error
    except ValidationError as error:
        detail = error.errors(include_url=False)[0]
        field = ".".join(str(part) for part in detail["loc"]) or "the body"
        raise ProblemError(400, "bad-task", f"{field}: {detail['msg']}") from error
