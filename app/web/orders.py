"""Operators' commands by HTTP: ``POST /api/commands`` with a command; 202 and its id, its end is an event."""

import asyncio
from collections.abc import AsyncIterator
from typing import Any, Final, Protocol
from urllib.parse import urlsplit

import orjson
from aiohttp import web

from app.client.commands import Commands
from app.settings import Settings
from app.web.answers import ProblemError, answer

_FIELDS: Final = frozenset(
    {"command", "id", "tenant", "to", "server", "timeout", "max_pause", "dry_run", "offline", "from_backups", "worker"}
)


class Desk(Protocol):
    """Writes commands; :class:`KafkaDesk` is the real one."""

    def order(self, command: str, *, tenant: str | None, **fields: object) -> str:
        """Return the id once the brokers have the command; ValueError: it is none."""

    def close(self) -> None:
        """Let go of connections."""


class KafkaDesk:
    """Connects at the first command. Not for two threads at once."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._commands: Commands | None = None

    def order(self, command: str, *, tenant: str | None, **fields: object) -> str:
        """Return the id once the brokers have the command; ValueError: it is none."""
        if self._commands is None:
            self._commands = Commands(self._settings, read_events=False)
        return self._commands.order(command, tenant=tenant, **fields)

    def close(self) -> None:
        """Let go of connections."""
        if self._commands is not None:
            self._commands.close()


class Orders:
    """The handler of one worker."""

    def __init__(self, desk: Desk) -> None:
        self._desk = desk
        self._one = asyncio.Lock()

    def add_to(self, application: web.Application) -> None:
        """Register the route and what lives with it."""
        application.router.add_post("/api/commands", self._order)
        application.cleanup_ctx.append(self._close)

    async def _close(self, _application: web.Application) -> AsyncIterator[None]:
        yield
        await asyncio.to_thread(self._desk.close)

    async def _order(self, request: web.Request) -> web.Response:
        _refuse_strangers(request)
        given = _parse(await request.read())
        command, tenant = str(given.pop("command", "")), given.pop("tenant", None)
        try:
            async with self._one:
                known = await asyncio.to_thread(self._desk.order, command, tenant=tenant, **given)
        except ValueError as error:
            raise ProblemError(400, "bad-command", str(error)) from error
        return answer({"id": known}, status=202)


def _parse(body: bytes) -> dict[str, Any]:
    try:
        given = orjson.loads(body)
    except orjson.JSONDecodeError as error:
        raise ProblemError(400, "bad-command", f"the body is not JSON: {error.msg} at {error.pos}") from error
    if type(given) is not dict or not given.keys() <= _FIELDS:
        raise ProblemError(400, "bad-command", f"send an object with some of {', '.join(sorted(_FIELDS))}")
    return given


def _refuse_strangers(request: web.Request) -> None:
    """A page of somebody else, in the browser of somebody who may give orders, must not give them in their name.

    Browsers name the page's origin with such a request, and ask first before they send JSON.
    """
    origin = request.headers.get("Origin")
    if origin is not None and urlsplit(origin).netloc != request.headers.get("Host", ""):
        raise ProblemError(403, "forbidden", "commands are taken from this address's own pages only")
    if request.content_type != "application/json":
        raise ProblemError(415, "unsupported", "send Content-Type: application/json")
