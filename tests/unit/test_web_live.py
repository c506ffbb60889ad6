"""Streams, commands and the console's files, on real sockets and a worker that is made up."""

import json
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from importlib.resources import files

import pytest

from app.settings import Settings
from app.web.server import WebServer
from tests.support.web import FakeGateway, FakeView, ask

Serve = Callable[..., str]
JSON = {"Content-Type": "application/json"}


class FakeDesk:
    """Takes commands."""

    def __init__(self) -> None:
        self.taken: list[dict[str, object]] = []

    def order(self, command: str, *, tenant: str | None, **fields: object) -> str:
        if command == "dance":
            raise ValueError("command: Input should be 'migrate'")
        self.taken.append({"command": command, "tenant": tenant, **fields})
        return str(fields.get("id", "made"))

    def close(self) -> None:
        """Nothing to let go of."""


@pytest.fixture
def desk() -> FakeDesk:
    return FakeDesk()


@pytest.fixture
def serve(desk: FakeDesk) -> Iterator[Serve]:
    """Start a server and return its URL."""
    with ExitStack() as stack:

        def start(**settings: object) -> str:
            # Nobody listens there: the streams stay open, and have nothing to tell.
            made = Settings(bootstrap="127.0.0.1:1", **settings)  # type: ignore[arg-type]
            server = WebServer(FakeView(), made, gateway=FakeGateway(), desk=desk)
            url = server.start()
            stack.callback(server.stop)
            return url

        yield start


def order(url: str, body: object, **headers: str) -> tuple[int, dict[str, str]]:
    reply = ask(f"{url}/api/commands", data=json.dumps(body).encode(), headers={**JSON, **headers})
    return reply.status, reply.json()


def test_a_command_is_taken_and_its_id_returned(serve: Serve, desk: FakeDesk) -> None:
    url = serve()
    assert order(url, {"command": "migrate", "tenant": "acme", "to": 3, "id": "x"}) == (202, {"id": "x"})
    assert order(url, {"command": "fail-server", "server": 2}) == (202, {"id": "made"})
    assert desk.taken == [
        {"command": "migrate", "tenant": "acme", "to": 3, "id": "x"},
        {"command": "fail-server", "tenant": None, "server": 2},
    ]


@pytest.mark.parametrize("body", [[], "migrate", {"command": "dance"}, {"command": "migrate", "colour": "red"}])
def test_what_is_no_command_is_refused(serve: Serve, desk: FakeDesk, body: object) -> None:
    status, said = order(serve(), body)
    assert (status, said["error"]) == (400, "bad-command")
    assert desk.taken == []


def test_a_page_of_somebody_else_gives_no_orders(serve: Serve, desk: FakeDesk) -> None:
    url = serve()
    given = {"command": "fail-server", "server": 2}
    assert order(url, given, Origin="https://elsewhere.example")[0] == 403
    assert order(url, given, Origin="null")[0] == 403
    assert (
        ask(f"{url}/api/commands", data=json.dumps(given).encode(), headers={"Content-Type": "text/plain"}).status
        == 415
    )
    assert desk.taken == []
    assert order(url, given, Origin=url)[0] == 202


def test_orders_and_streams_need_the_token_and_the_page_asks_for_it(serve: Serve, desk: FakeDesk) -> None:
    url = serve(token="open-sesame")
    assert order(url, {"command": "fail-server", "server": 2})[0] == 401
    for path in ("/api/live", "/api/events", "/api/figures"):
        assert ask(f"{url}{path}").status == 401
    page = ask(f"{url}/")
    assert (page.status, b"<!doctype html>" in page.body) == (401, True)
    assert ask(f"{url}/", headers={"Authorization": "Bearer open-sesame"}).status == 200
    assert ask(f"{url}/console/main.js").status == 200
    assert desk.taken == []


def test_every_part_of_the_console_is_served_with_its_type_and_its_tag(serve: Serve) -> None:
    url = serve()
    kinds = {".js": "text/javascript", ".css": "text/css", ".svg": "image/svg+xml", ".html": "text/html"}
    parts = [part.name for part in (files("app.web") / "static").iterdir()]
    assert "main.js" in parts
    for name in parts:
        reply = ask(f"{url}/console/{name}")
        assert reply.headers["Content-Type"].startswith(kinds[name[name.rindex(".") :]]), name
        assert reply.headers["X-Content-Type-Options"] == "nosniff"
        assert ask(f"{url}/console/{name}", headers={"If-None-Match": reply.headers["ETag"]}).status == 304
    for name in ("..%2fapi.py", "nothing.js", "%2e%2e"):
        assert ask(f"{url}/console/{name}").status == 404


def test_parts_name_each_other_and_nothing_elsewhere() -> None:
    parts = {part.name: part.read_text() for part in (files("app.web") / "static").iterdir()}
    for name, text in parts.items():
        bare = text.replace("http://www.w3.org/2000/svg", "")
        assert "http://" not in bare, name
        assert "https://" not in bare, name
        for word in ("innerHTML", "outerHTML", "insertAdjacentHTML", "document.write", "eval(", "new Function"):
            assert word not in text, f"{name}: {word}"


def test_a_question_for_events_that_makes_no_sense_is_refused(serve: Serve) -> None:
    assert ask(f"{serve()}/api/events?last=-1").status == 400
