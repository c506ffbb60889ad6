"""The proxy of `holdfast up`: any request, to any live worker, streamed."""

import asyncio
import socket
import threading
from collections.abc import Iterator
from http.client import HTTPConnection

import pytest
from aiohttp import web

from app.web import proxy
from app.web.proxy import Proxy
from app.web.server import ServerThread
from tests.support.web import ask


class Worker:
    """Answers what the tests of the proxy ask."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.go_on = threading.Event()
        application = web.Application(client_max_size=1 << 30)
        application.router.add_get("/name", self._name)
        application.router.add_get("/stream", self._stream)
        application.router.add_get("/cut", self._cut)
        application.router.add_route("*", "/echo/{path:.*}", self._echo)
        self.server = ServerThread(application, "127.0.0.1", 0)
        self.url = self.server.start()

    async def _name(self, _request: web.Request) -> web.Response:
        return web.Response(text=self.name)

    async def _echo(self, request: web.Request) -> web.Response:
        headers = {"X-Path": request.raw_path, "X-Method": request.method, "X-Length": "0"}
        length = 0
        async for chunk in request.content.iter_any():
            length += len(chunk)
        return web.Response(text="moved", status=307, headers={**headers, "X-Length": str(length), "Location": "/x"})

    async def _stream(self, request: web.Request) -> web.StreamResponse:
        response = web.StreamResponse(headers={"Content-Type": "text/event-stream"})
        await response.prepare(request)
        await response.write(b"data: 1\n\n")
        await asyncio.to_thread(self.go_on.wait, 30)
        await response.write(b"data: 2\n\n")
        return response

    async def _cut(self, request: web.Request) -> web.StreamResponse:
        response = web.StreamResponse()
        response.content_length = 100
        await response.prepare(request)
        await response.write(b"half")
        assert request.transport is not None
        request.transport.close()
        return response


@pytest.fixture
def workers() -> Iterator[list[Worker]]:
    made = [Worker("w1"), Worker("w2")]
    yield made
    for worker in made:
        worker.server.stop()


@pytest.fixture
def targets(workers: list[Worker]) -> list[str]:
    return [worker.url for worker in workers]


@pytest.fixture
def front(targets: list[str]) -> Iterator[str]:
    server = ServerThread(Proxy(lambda: targets).application(), "127.0.0.1", 0)
    yield server.start()
    server.stop()


def test_workers_take_turns_and_dead_ones_are_passed_over(front: str, targets: list[str]) -> None:
    assert {ask(f"{front}/name").body for _ in range(4)} == {b"w1", b"w2"}
    targets[0] = "http://127.0.0.1:1"
    assert {ask(f"{front}/name").body for _ in range(4)} == {b"w2"}
    targets.clear()
    reply = ask(f"{front}/name")
    assert (reply.status, reply.json()["error"]) == (503, "unavailable")


def test_a_silent_worker_is_passed_over(front: str, targets: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(proxy, "_SILENCE_S", 0.2)
    with socket.create_server(("127.0.0.1", 0)) as silent:
        targets[0] = f"http://127.0.0.1:{silent.getsockname()[1]}"
        assert {ask(f"{front}/name").body for _ in range(2)} == {b"w2"}


def test_path_method_body_and_headers_arrive_as_they_were(front: str) -> None:
    connection = HTTPConnection(front.removeprefix("http://"))
    connection.request("PATCH", "/echo/a%2Fb/%2E%2E?q=1%202&q=", body=b"x" * 3_000_000)
    reply = connection.getresponse()
    reply.read()
    connection.close()
    assert (reply.status, reply.getheader("Location")) == (307, "/x")
    assert reply.getheader("X-Path") == "/echo/a%2Fb/%2E%2E?q=1%202&q="
    assert (reply.getheader("X-Method"), reply.getheader("X-Length")) == ("PATCH", "3000000")


def test_an_answer_is_passed_on_while_it_grows(front: str, workers: list[Worker]) -> None:
    connection = HTTPConnection(front.removeprefix("http://"), timeout=30)
    connection.request("GET", "/stream")
    reply = connection.getresponse()
    assert reply.getheader("Content-Type") == "text/event-stream"
    assert reply.read1() == b"data: 1\n\n"
    for worker in workers:
        worker.go_on.set()
    assert reply.read() == b"data: 2\n\n"
    connection.close()


def test_an_answer_that_is_cut_off_is_seen_as_cut_off(front: str) -> None:
    connection = HTTPConnection(front.removeprefix("http://"), timeout=30)
    connection.request("GET", "/cut")
    reply = connection.getresponse()
    with pytest.raises((ConnectionError, OSError, Exception), match=r"IncompleteRead|reset"):
        reply.read()
    connection.close()
