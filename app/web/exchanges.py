"""Exchanges over HTTP: any worker answers for all, by asking the hosts of the managers.

==================================  =========================================================================
``GET /api/exchanges``              all exchanges and their managers; for workers ``?local=1``: those of this one,
                                    ``?local=marks``: how new the rows are that this one has
``GET /api/exchanges/{exchange}``   one, with restart data and both queues
==================================  =========================================================================
"""

import asyncio
from collections.abc import Callable
from typing import Any, Final, Protocol
from urllib.parse import quote

import aiohttp
import orjson
from aiohttp import web
from yarl import URL

from app.protocol.exchange_records import valid_name
from app.web.answers import ProblemError, answer

HOPPED: Final = "X-Holdfast-Hops"


class ExchangeView(Protocol):
    """A worker as this part sees it. Every call is quick and may come from any thread."""

    @property
    def name(self) -> str:
        """The worker's name."""

    def managers(self) -> list[dict[str, Any]]:
        """Every manager with ``worker``, ``url`` and ``backups``."""

    def manager_of(self, exchange: str) -> int:
        """The number of the manager of an exchange."""

    def local_exchanges(self) -> dict[str, Any]:
        """``exchanges`` that are managed here, and ``marks`` of all managers whose rows are here."""

    def exchange_marks(self) -> dict[str, dict[str, Any]]:
        """The ``marks`` alone."""

    def read_exchange(self, exchange: str) -> dict[str, Any] | None:
        """One that is managed here; None: there is none.

        Raises:
            UnavailableError: its manager is not here.
        """


class Exchanges:
    """The handlers of one worker.

    Args:
        view: the worker.
        peers: the HTTP session to ask others with.
    """

    def __init__(self, view: ExchangeView, peers: Callable[[], aiohttp.ClientSession]) -> None:
        self._view = view
        self._peers = peers

    def add_to(self, router: web.UrlDispatcher) -> None:
        """Register the routes."""
        router.add_get("/api/exchanges", self._list)
        router.add_get("/api/exchanges/{exchange}", self._show)

    async def _list(self, request: web.Request) -> web.Response:
        if request.query.get("local") == "marks":
            return answer({"marks": self._view.exchange_marks()})
        local = await asyncio.to_thread(self._view.local_exchanges)
        if request.query.get("local"):
            return answer(local)
        managers = self._view.managers()
        others = {entry["url"] for entry in managers if entry["worker"] not in (self._view.name, None) and entry["url"]}
        answers = [local, *await asyncio.gather(*(self._ask(request, url) for url in others))]
        found = [entry for told in answers for entry in told.get("exchanges", ())]
        for entry in managers:
            entry.pop("url")
            entry["backup_lag_ms"] = _lag(str(entry["manager"]), answers)
        found.sort(key=lambda entry: entry["exchange"])
        truncated = any(told.get("truncated", True) for told in answers)
        return answer({"exchanges": found, "managers": managers, "truncated": truncated})

    async def _ask(self, request: web.Request, url: str) -> dict[str, Any]:
        """What another worker tells; nothing if it does not answer, which the answer then says."""
        try:
            target = URL(f"{url}/api/exchanges?local=1", encoded=True)
            async with self._peers().get(target, headers=_headers(request)) as reply:
                told: dict[str, Any] = orjson.loads(await reply.read()) if reply.status == 200 else {}
                return told
        except (aiohttp.ClientError, TimeoutError, OSError, ValueError):
            return {}

    async def _show(self, request: web.Request) -> web.Response:
        name = request.match_info["exchange"]
        if not valid_name(name):
            raise ProblemError(400, "bad-name", "exchange: use 1 to 200 characters without control characters")
        entry = self._view.managers()[self._view.manager_of(name)]
        if entry["worker"] is None or entry["url"] is None:
            raise ProblemError(503, "unavailable", f"nobody hosts manager {entry['manager']} at the moment")
        if entry["worker"] != self._view.name and HOPPED not in request.headers:
            return await self._forward(request, entry["url"], name)
        found = await asyncio.to_thread(self._view.read_exchange, name)
        if found is None:
            raise ProblemError(404, "unknown-exchange", f"there is no exchange {name!r}")
        return answer({**found, "worker": entry["worker"], "backups": entry["backups"]})

    async def _forward(self, request: web.Request, url: str, name: str) -> web.Response:
        target = URL(f"{url}/api/exchanges/{quote(name, safe='')}", encoded=True)
        try:
            async with self._peers().get(target, headers={**_headers(request), HOPPED: "1"}) as reply:
                return web.Response(body=await reply.read(), status=reply.status, content_type=reply.content_type)
        except (aiohttp.ClientError, TimeoutError, OSError) as error:
            raise ProblemError(503, "unavailable", "the worker that manages this exchange does not answer") from error


def _headers(request: web.Request) -> dict[str, str]:
    return {name: request.headers[name] for name in ("Authorization",) if name in request.headers}


def _lag(manager: str, answers: list[dict[str, Any]]) -> int | None:
    """How far the nearest backup is behind the host, both by the host's clock; None where one of them is not known."""
    marks = [told["marks"][manager] for told in answers if manager in told.get("marks", {})]
    host = [entry["at_ms"] for entry in marks if entry["hosts"]]
    backups = [entry["at_ms"] or 0 for entry in marks if not entry["hosts"]]
    if not host or not backups:
        return None
    return 0 if host[0] is None else max(0, host[0] - max(backups))
