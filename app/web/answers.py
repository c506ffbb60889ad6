"""What every handler shares: JSON answers, errors as JSON, the token."""

import hmac
import logging
import math
from collections.abc import Awaitable, Callable, Mapping
from typing import Any, Final

import orjson
from aiohttp import web
from aiohttp.typedefs import Handler, Middleware

from app.errors import BrokerUnreachableError, HoldfastError, UnavailableError

_LOGGER: Final = logging.getLogger(__name__)

OPEN_PATHS: Final = frozenset({"/healthz", "/readyz"})
"""These answer without a token: what restarts a worker does not know it."""

_NAMES: Final[Mapping[int, str]] = {
    400: "bad-request",
    401: "unauthorized",
    403: "forbidden",
    404: "not-found",
    405: "method-not-allowed",
    413: "too-large",
    415: "unsupported-media-type",
    503: "unavailable",
}


class ProblemError(Exception):
    """An answer that is an error.

    Args:
        status: of HTTP.
        error: a word for programs.
        message: a line for people.
        more: further fields of the answer.
    """

    def __init__(self, status: int, error: str, message: str, **more: object) -> None:
        super().__init__(status, error, message)
        self.status = status
        self.error = error
        self.message = message
        self.more = more


def answer(body: Mapping[str, Any], *, status: int = 200, headers: Mapping[str, str] | None = None) -> web.Response:
    """A JSON object."""
    return web.Response(
        body=orjson.dumps(body) + b"\n", status=status, content_type="application/json", headers=headers
    )


def problem(status: int, error: str, message: str, **more: object) -> web.Response:
    """An error as JSON; 503 asks for another attempt soon."""
    headers = {401: {"WWW-Authenticate": "Bearer"}, 503: {"Retry-After": "1"}}.get(status)
    return answer({"error": error, "message": message, **more}, status=status, headers=headers)


@web.middleware
async def errors_as_json(request: web.Request, handler: Handler) -> web.StreamResponse:
    """Turn every error into an object with ``error`` and ``message``; what nobody expected is logged."""
    try:
        return await handler(request)
    except ProblemError as error:
        return problem(error.status, error.error, error.message, **error.more)
    except web.HTTPException as error:
        if error.status < 400:
            raise
        return problem(error.status, _NAMES.get(error.status, "error"), error.text or error.reason)
    except UnavailableError as error:
        return problem(503, "unavailable", str(error))
    except BrokerUnreachableError as error:
        return problem(503, "broker-unreachable", str(error))
    except HoldfastError as error:
        return problem(500, "failed", str(error))
    except Exception:
        _LOGGER.exception("%s %s failed", request.method, request.path)
        return problem(500, "internal", "an error inside the worker: read its log")


def may_pass(request: web.Request, token: str) -> bool:
    """Does a request have the token? It is compared in constant time; an empty one is everybody's."""
    wanted = token.encode()
    scheme, _, given = request.headers.get("Authorization", "").partition(" ")
    same = hmac.compare_digest(given.strip().encode(errors="surrogateescape"), wanted)
    return not wanted or (scheme.lower() == "bearer" and same)


def bearer(token: str) -> Middleware:
    """Let in only who sends the token; an empty token lets everybody in."""

    @web.middleware
    async def check(
        request: web.Request, handler: Callable[[web.Request], Awaitable[web.StreamResponse]]
    ) -> web.StreamResponse:
        if request.path not in OPEN_PATHS and not may_pass(request, token):
            return problem(401, "unauthorized", "send the header `Authorization: Bearer TOKEN`")
        return await handler(request)

    return check


def seconds(request: web.Request, name: str, *, largest: float) -> float | None:
    """Read a number of seconds from the query; None if it is not there.

    Raises:
        ProblemError: 400, not a number from 0 to ``largest``.
    """
    text = request.query.get(name)
    if text is None:
        return None
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not 0 <= value <= largest:
        raise ProblemError(400, "bad-request", f"{name}={text}: use a number of seconds from 0 to {largest:g}")
    return value
