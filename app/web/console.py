"""The console: one page and its parts, static files that say nothing about the cluster.

The page is a page even to who has no token yet: it asks for one. Its parts are open for the same reason.
"""

import hashlib
import mimetypes
from importlib.resources import files
from typing import Final

from aiohttp import web
from aiohttp.typedefs import Handler, Middleware

from app.web.answers import may_pass

PARTS: Final = "/console/"
PAGE: Final = "index.html"

HEADERS: Final = {
    # Nothing comes from elsewhere, nothing is written into the page as text that is read as markup.
    "Content-Security-Policy": (
        "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; connect-src 'self'; "
        "base-uri 'none'; form-action 'none'; frame-ancestors 'none'; "
        "require-trusted-types-for 'script'; trusted-types 'none'"
    ),
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "DENY",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Permissions-Policy": "camera=(), geolocation=(), microphone=()",
    # It is asked each time whether the page is still this one: a worker of another release has another.
    "Cache-Control": "no-cache",
}


class Console:
    """Serves the console."""

    def __init__(self, token: str) -> None:
        self._token = token
        folder = files("app.web") / "static"
        self._parts = {part.name: part.read_bytes() for part in folder.iterdir() if part.is_file()}
        self._tags = {name: f'"{hashlib.sha256(body).hexdigest()[:20]}"' for name, body in self._parts.items()}

    def add_to(self, router: web.UrlDispatcher) -> None:
        """Register the routes."""
        router.add_get("/", self._page)
        router.add_get(PARTS + "{name}", self._part)

    async def _page(self, request: web.Request) -> web.Response:
        # Without a token it is refused like everything else, with a page that asks for the token as the text of it.
        return self._file(request, PAGE, status=200 if may_pass(request, self._token) else 401)

    async def _part(self, request: web.Request) -> web.Response:
        return self._file(request, request.match_info["name"])

    def _file(self, request: web.Request, name: str, *, status: int = 200) -> web.Response:
        body = self._parts.get(name)
        if body is None:
            raise web.HTTPNotFound(text=f"the console has no part {name!r}")
        tag = self._tags[name]
        if status == 200 and request.headers.get("If-None-Match") == tag:
            return web.Response(status=304, headers={**HEADERS, "ETag": tag})
        response = web.Response(
            body=body,
            status=status,
            content_type=mimetypes.guess_type(name)[0] or "application/octet-stream",
            charset="utf-8",
            headers={**HEADERS, "ETag": tag},
        )
        response.enable_compression()
        return response


def unless_console(check: Middleware) -> Middleware:
    """The check of the token, but for the console, which has nothing to hide and answers for itself."""

    @web.middleware
    async def checked(request: web.Request, handler: Handler) -> web.StreamResponse:
        if request.path == "/" or request.path.startswith(PARTS):
            return await handler(request)
        return await check(request, handler)

    return checked
