"""The HTTP interface of a worker; every worker answers for the whole cluster.

========================================  ===================================================================
``GET /healthz``, ``/readyz``             200 or 503, with the reason
``GET /metrics``                          for Prometheus
``GET /api/status``                       the cluster as this worker sees it
``GET /api/tenants``                      tenants that have sessions or were ever moved
``GET /api/tenants/{tenant}``             answered by the worker that hosts the tenant's router
``GET /api/servers[/{n}]``                 where servers are, and what they do for a view
``GET /api/sessions/{tenant}/{session}``  answered by the worker that hosts the session's server
``GET /api/exchanges[/{exchange}]``        see :mod:`app.web.exchanges`
``GET /api/events``, ``/api/live``         server-sent events, see :mod:`app.web.live`
``GET /api/figures``                       a few numbers of the asked worker, for the console
``POST /api/commands``                     202 and the command's id, see :mod:`app.web.orders`
``POST /api/tasks[?wait=S]``              202 and the task's place; with ``wait`` 200 and the result, or 504
``GET /``                                  the console
========================================  ===================================================================

Errors are ``{"error": word, "message": line}``.
"""

import asyncio
import logging
from collections.abc import AsyncIterator
from typing import Any, Final, Protocol
from urllib.parse import quote

import aiohttp
import orjson
from aiohttp import web
from pydantic import ValidationError

from app.observe.traces import joined
from app.records import Task, valid_name
from app.settings import Settings
from app.web.answers import ProblemError, answer, bearer, errors_as_json, seconds
from app.web.console import Console, unless_console
from app.web.exchanges import Exchanges
from app.web.gateway import Gateway
from app.web.live import Live
from app.web.orders import Desk, KafkaDesk, Orders
from app.web.peers import FORWARD_TIMEOUT, Peers
from app.web.sessions import Sessions
from app.web.view import ClusterView

_LOGGER: Final = logging.getLogger(__name__)

HERE: Final = "here"
"""With this in its query a question is about the asked worker alone."""

WAIT_MAX_S: Final = 3600.0
_BODY_SLACK: Final = 64 * 1024


class Metrics(Protocol):
    """What a worker counts."""

    def read(self, accept: str) -> tuple[bytes, str]:
        """The text of ``/metrics`` in the form that the header `Accept` asks for, and its content type."""

    def brief(self) -> dict[str, Any]:
        """A few numbers for the console."""


class Api:
    """The handlers of one worker.

    Args:
        view: the worker.
        settings: for the token and for sizes.
        gateway: where tasks go.
        metrics: None answers 404.
        desk: where commands go; default: to Kafka.
    """

    def __init__(
        self,
        view: ClusterView,
        settings: Settings,
        gateway: Gateway,
        metrics: Metrics | None = None,
        desk: Desk | None = None,
    ) -> None:
        self._view = view
        self._token = settings.token.get_secret_value()
        self._orders = Orders(desk or KafkaDesk(settings))
        self._settings = settings
        self._gateway = gateway
        self._metrics = metrics
        self._sessions = Sessions(view)
        self._peers: Peers
        self._connected: aiohttp.ClientSession

    def application(self) -> web.Application:
        """Return the application, ready to be served."""
        application = web.Application(
            middlewares=[errors_as_json, unless_console(bearer(self._token))],
            client_max_size=self._settings.max_record_bytes + _BODY_SLACK,
        )
        application.router.add_get("/healthz", self._healthz)
        application.router.add_get("/readyz", self._readyz)
        application.router.add_get("/metrics", self._metrics_text)
        application.router.add_get("/api/status", self._status)
        application.router.add_get("/api/tenants", self._tenants)
        application.router.add_get("/api/tenants/{tenant}", self._tenant)
        application.router.add_get("/api/servers", self._servers)
        application.router.add_get("/api/servers/{number}", self._server)
        application.router.add_get("/api/sessions/{tenant}/{session}", self._session)
        application.router.add_post("/api/tasks", self._task)
        application.router.add_get("/api/figures", self._figures)
        self._orders.add_to(application)
        Live(self._settings, self._everything).add_to(application)
        Console(self._token).add_to(application.router)
        Exchanges(self._view, lambda: self._connected).add_to(application.router)
        application.cleanup_ctx.append(self._connections)
        return application

    async def _connections(self, _application: web.Application) -> AsyncIterator[None]:
        async with aiohttp.ClientSession(timeout=FORWARD_TIMEOUT) as connections:
            self._peers, self._connected = Peers(connections), connections
            yield
        await asyncio.to_thread(self._gateway.close)

    async def _healthz(self, _request: web.Request) -> web.Response:
        return _verdict(*self._view.healthy())

    async def _readyz(self, _request: web.Request) -> web.Response:
        return _verdict(*self._view.ready())

    async def _metrics_text(self, request: web.Request) -> web.Response:
        if self._metrics is None:
            raise ProblemError(404, "not-found", "this worker keeps no metrics")
        # In a thread: with many places it takes some milliseconds.
        text, kind = await asyncio.to_thread(self._metrics.read, request.headers.get("Accept", ""))
        response = web.Response(body=text, headers={"Content-Type": kind})
        response.enable_compression()
        return response

    async def _status(self, request: web.Request) -> web.Response:
        """What is counted by place is asked of every worker; who does not answer in time counts nothing."""
        return answer(_merged(self._view.status(), await self._ask_others(request, "/api/status")))

    async def _figures(self, _request: web.Request) -> web.Response:
        return answer(self._brief())

    def _brief(self) -> dict[str, Any]:
        counted = self._metrics.brief() if self._metrics is not None else {}
        return {"worker": self._view.name, "ready": self._view.ready()[0], **counted}

    async def _everything(self) -> dict[str, Any]:
        """The cluster and what its workers count, for those who watch; asked in this worker's own name."""
        headers = {"Authorization": f"Bearer {self._token}"} if self._token else {}
        others = self._view.others()
        statuses, figures = await asyncio.gather(
            self._peers.told(headers, others, f"/api/status?{HERE}=1"),
            self._peers.told(headers, others, "/api/figures"),
        )
        status = _merged(self._view.status(), statuses)
        return {"told_by": self._view.name, "status": status, "figures": [self._brief(), *figures]}

    async def _tenants(self, request: web.Request) -> web.Response:
        found: dict[str, Any] = {}
        asked = [{"tenants": await asyncio.to_thread(self._view.tenants)}]
        for entry in (
            e for said in (*asked, *await self._ask_others(request, "/api/tenants")) for e in said["tenants"]
        ):
            # A server's host may not have heard of the last move; the router's has.
            known = found.get(entry["tenant"])
            if known is None or (entry["epoch"], entry["state"] != "settled") > (known["epoch"], False):
                found[entry["tenant"]] = entry
        return answer({"tenants": [found[tenant] for tenant in sorted(found)]})

    async def _ask_others(self, request: web.Request, path: str) -> list[dict[str, Any]]:
        if HERE in request.query:
            return []
        return await self._peers.all(request, self._view.others(), f"{path}?{HERE}=1")

    async def _tenant(self, request: web.Request) -> web.Response:
        tenant = _name(request, "tenant")
        location = self._view.locate_tenant(tenant)
        if location.worker is None or location.url is None:
            raise ProblemError(503, "unavailable", "nobody hosts this tenant's router at the moment")
        if location.worker != self._view.name:
            return await self._peers.forward(request, f"{location.url}/api/tenants/{quote(tenant, safe='')}")
        return answer(self._view.read_tenant(tenant))

    async def _servers(self, request: web.Request) -> web.Response:
        return answer({"servers": await self._told(request)})

    async def _server(self, request: web.Request) -> web.Response:
        number = request.match_info["number"]
        servers = await self._told(request)
        found = next((entry for entry in servers if str(entry["server"]) == number), None)
        if found is None:
            raise ProblemError(404, "unknown-server", f"there is no server {number}: there are {len(servers)}")
        return answer(found)

    async def _told(self, request: web.Request) -> list[dict[str, Any]]:
        """The servers; what only a host knows is asked of every worker."""
        servers = {entry["server"]: entry for entry in self._view.servers()}
        for other in await self._ask_others(request, "/api/servers"):
            for entry in other["servers"]:
                mine = servers.get(entry["server"])
                if mine is not None:
                    mine.update({name: value for name, value in entry.items() if mine.get(name) is None})
        return list(servers.values())

    async def _session(self, request: web.Request) -> web.Response:
        tenant, session = _name(request, "tenant"), _name(request, "session")
        found = await self._sessions.show(request, self._peers, tenant, session)
        return found if isinstance(found, web.Response) else answer(found)

    async def _task(self, request: web.Request) -> web.Response:
        wait = seconds(request, "wait", largest=WAIT_MAX_S)
        body = await request.read()
        task = _parse(body)
        if task.server is not None:
            forwarded = await self._sessions.task(request, self._peers, body)
            if forwarded is not None:
                return forwarded
        try:
            with joined(self._settings, request.headers):
                if wait is None:
                    return answer((await self._gateway.publish(task))._asdict(), status=202)
                sent, result = await self._gateway.perform(task, wait)
        except ValueError as error:
            raise ProblemError(413, "too-large", str(error)) from error
        if result is None:
            message = f"no result within {wait:g} s; the task is on its way"
            raise ProblemError(504, "timeout", message, **sent._asdict())
        return answer(result.model_dump(mode="json"))


def _merged(status: dict[str, Any], others: list[dict[str, Any]]) -> dict[str, Any]:
    """What is counted by place, added up; a worker that is not ready says so itself."""
    for other in others:
        status["migrations"] = [*status.get("migrations", []), *other.get("migrations", [])]
        for field in ("parked", "waiting"):
            status[field] = status.get(field, 0) + other.get(field, 0)
    return status


def _verdict(good: bool, reason: str) -> web.Response:
    return answer({"ok": good, "message": reason}, status=200 if good else 503)


def _name(request: web.Request, field: str) -> str:
    name = request.match_info[field]
    if not valid_name(name):
        raise ProblemError(400, "bad-name", f"{field}: use 1 to 200 characters without control characters")
    return name


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
