"""The HTTP interface of a worker, on real sockets and a worker that is made up."""

import json
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from urllib.parse import quote

import pytest

from app.errors import BrokerUnreachableError, ConfigurationError
from app.protocol.forwarding import Forward, Perform, Refuse, Wait
from app.settings import Settings
from app.web.peers import HOPS_HEADER, HOPS_MAX
from app.web.server import WebServer
from tests.support.web import FakeGateway, FakeView, Place, ask

TASK = {"tenant": "acme", "session": "cart-7", "type": "echo", "payload": {"answer": 7}}
Serve = Callable[..., str]


@pytest.fixture
def serve() -> Iterator[Serve]:
    """Start a server for a view and return its URL."""
    with ExitStack() as stack:

        def start(view: FakeView, gateway: FakeGateway | None = None, **settings: object) -> str:
            made = Settings(**settings)  # type: ignore[arg-type]
            server = WebServer(view, made, gateway=gateway or FakeGateway())
            url = server.start()
            stack.callback(server.stop)
            return url

        yield start


def body(**changed: object) -> bytes:
    return json.dumps({**TASK, **changed}).encode()


def test_health_and_readiness_say_why_not(serve: Serve) -> None:
    view = FakeView()
    url = serve(view)
    assert ask(f"{url}/healthz").json() == {"ok": True, "message": ""}
    view.is_healthy, view.is_ready = (False, "lag 7 and nothing moves"), (False, "restoring server-3")
    for path, message in (("healthz", "lag 7 and nothing moves"), ("readyz", "restoring server-3")):
        reply = ask(f"{url}/{path}")
        assert (reply.status, reply.json()) == (503, {"ok": False, "message": message})


def test_status_is_the_views(serve: Serve) -> None:
    reply = ask(f"{serve(FakeView())}/api/status")
    assert reply.json()["namespace"] == "test"
    assert reply.headers["Content-Type"] == "application/json"


@pytest.mark.parametrize(
    ("tenant", "session"),
    [
        ("acme", "cart-7"),
        ("a/b", "c?d#e"),
        ("zoë", "50%"),
        ("..", "."),
        ("a b", "%2F"),
        ("+", "a+b"),
        ("日本", "x" * 200),
    ],
)
def test_a_session_is_found_whatever_its_name(serve: Serve, tenant: str, session: str) -> None:
    rows = {"state": {"n": 1}, "sequence": 17, "waiting": []}
    owner = FakeView(rows={(tenant, session): rows})
    owner_url = serve(owner)
    other = FakeView(name="w2", place=Place(3, "w1", owner_url, [3, 1]))
    for url in (owner_url, serve(other)):
        # Clients take a dot segment for a step in the tree unless the dots are encoded.
        path = "/".join(quote(name, safe="").replace(".", "%2E") for name in (tenant, session))
        reply = ask(f"{url}/api/sessions/{path}")
        assert reply.status == 200, reply.body
        place = {"server": 3, "worker": "w1", "backup_order": [3, 1, 0, 2]}
        assert reply.json() == {"tenant": tenant, "session": session, **place, **rows}


def test_an_unknown_session_is_not_found_and_an_unhosted_one_is_unavailable(serve: Serve) -> None:
    view = FakeView()
    url = serve(view)
    unknown = ask(f"{url}/api/sessions/acme/none")
    assert (unknown.status, unknown.json()["error"]) == (404, "unknown-session")
    view.place = Place(3, None, None, [3, 1])
    unhosted = ask(f"{url}/api/sessions/acme/none")
    assert (unhosted.status, unhosted.json()["error"]) == (503, "unavailable")
    assert unhosted.headers["Retry-After"] == "1"
    bad = ask(f"{url}/api/sessions/acme/a%0Ab")
    assert (bad.status, bad.json()["error"]) == (400, "bad-name")


def test_workers_that_do_not_agree_stop_after_three_hops(serve: Serve) -> None:
    view = FakeView(name="w1")
    url = serve(view)
    # It believes that somebody else hosts the server, and that somebody is itself.
    view.place = Place(3, "w2", url, [3, 1])
    reply = ask(f"{url}/api/sessions/acme/s")
    assert (reply.status, reply.json()["error"]) == (503, "unavailable")
    assert "do not agree" in reply.json()["message"]
    assert ask(f"{url}/api/sessions/acme/s", headers={HOPS_HEADER: str(HOPS_MAX)}).status == 503
    assert ask(f"{url}/api/sessions/acme/s", headers={HOPS_HEADER: "-1"}).status == 503


def test_a_request_goes_on_until_somebody_may_answer_it(serve: Serve) -> None:
    """The first worker's view is old: the host of the failed server knows better, and the session is on its way."""
    rows = {("acme", "s"): {"state": {}, "sequence": 1, "waiting": []}}
    owner = FakeView(name="w3", rows=rows, decisions=[Wait(), Wait(), Perform()])
    owner.place = Place(1, "w3", serve(owner), [3, 1])
    between = FakeView(name="w2", decisions=[Forward(1, 2)])
    between_url = serve(between)
    between.hosted = {3: ("w2", between_url), 1: ("w3", owner.place.url)}
    first = FakeView(place=Place(3, "w2", between_url, [3, 1]))
    reply = ask(f"{serve(first)}/api/sessions/acme/s?server=3")
    assert (reply.status, reply.json()["server"], reply.json()["worker"]) == (200, 1, "w3")
    assert (owner.decisions, between.decisions) == ([], [])


def test_servers_that_do_not_agree_stop_after_three_hops(serve: Serve) -> None:
    view = FakeView(decisions=[Forward(1, 1), Forward(3, 2), Forward(1, 3), Refuse()])
    reply = ask(f"{serve(view)}/api/sessions/acme/s")
    assert (reply.status, reply.json()["error"], view.decisions) == (503, "unavailable", [])
    assert ask(f"{serve(view)}/api/sessions/acme/s?server=x").status == 400


def test_a_task_that_names_its_primary_goes_there(serve: Serve) -> None:
    """It is published by the host of the session's server, also while the session is still on its way there."""
    gateway, other = FakeGateway(), FakeGateway()
    host = FakeView(name="w2", decisions=[Wait()])
    host.place = Place(2, "w2", serve(host, gateway), [2])
    url = serve(FakeView(place=Place(2, "w2", host.place.url, [2])), other)
    done = ask(f"{url}/api/tasks?wait=5", data=body(id="mine", server=2))
    assert (done.status, done.json()["task"]) == (200, "mine")
    assert (len(gateway.tasks), len(other.tasks)) == (1, 0)


def test_a_host_that_does_not_answer_is_unavailable(serve: Serve) -> None:
    reply = ask(f"{serve(FakeView(place=Place(3, 'w2', 'http://127.0.0.1:1', [3])))}/api/sessions/acme/s")
    assert (reply.status, reply.json()["error"]) == (503, "unavailable")


def test_a_task_is_taken_and_its_result_waited_for(serve: Serve) -> None:
    gateway = FakeGateway()
    url = serve(FakeView(), gateway)
    taken = ask(f"{url}/api/tasks", data=body(server=2))
    assert (taken.status, taken.json()) == (202, {"id": "0/0", "partition": 0, "offset": 0})
    assert gateway.tasks[0].server == 2
    done = ask(f"{url}/api/tasks?wait=5", data=body(id="mine"))
    assert done.status == 200
    assert (done.json()["task"], done.json()["result"], done.json()["error"]) == ("mine", 7, None)
    late = ask(f"{url}/api/tasks?wait=0.1", data=body(payload={}))
    assert (late.status, late.json()["error"], late.json()["id"]) == (504, "timeout", "0/2")


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"", "not JSON"),
        (b"{", "not JSON"),
        (b"[]", "the body"),
        (body(tenant=""), "tenant"),
        (body(session="a\nb"), "session"),
        (body(payload=[]), "payload"),
        (body(server="x"), "server"),
        (b'{"tenant": "acme"}', "session"),
    ],
)
def test_what_is_no_task_is_refused(serve: Serve, data: bytes, message: str) -> None:
    gateway = FakeGateway()
    reply = ask(f"{serve(FakeView(), gateway)}/api/tasks", data=data, method="POST")
    assert (reply.status, reply.json()["error"]) == (400, "bad-task")
    assert message in reply.json()["message"]
    assert gateway.tasks == []


@pytest.mark.parametrize("wait", ["soon", "-1", "nan", "inf", "1e9", ""])
def test_a_wait_that_is_no_number_of_seconds_is_refused(serve: Serve, wait: str) -> None:
    reply = ask(f"{serve(FakeView())}/api/tasks?wait={wait}", data=body())
    assert (reply.status, reply.json()["error"]) == (400, "bad-request")


def test_a_body_over_the_limit_is_refused(serve: Serve) -> None:
    reply = ask(f"{serve(FakeView(), max_record_bytes=1024)}/api/tasks", data=body(payload={"x": "y" * 100_000}))
    assert (reply.status, reply.json()["error"]) == (413, "too-large")


@pytest.mark.parametrize(
    ("refuse", "status", "error"),
    [
        (ValueError("the task has 7 bytes"), 413, "too-large"),
        (BrokerUnreachableError("kafka:9092"), 503, "broker-unreachable"),
        (ConfigurationError("the topic does not exist"), 500, "failed"),
        (KeyError("secret"), 500, "internal"),
    ],
)
def test_what_goes_wrong_is_an_object_too(serve: Serve, refuse: Exception, status: int, error: str) -> None:
    reply = ask(f"{serve(FakeView(), FakeGateway(refuse=refuse))}/api/tasks", data=body())
    assert (reply.status, reply.json()["error"]) == (status, error)
    assert "secret" not in reply.json()["message"]


def test_unknown_paths_and_methods_are_errors_in_json(serve: Serve) -> None:
    url = serve(FakeView())
    assert ask(f"{url}/nothing").json()["error"] == "not-found"
    assert ask(f"{url}/api/tasks").json()["error"] == "method-not-allowed"
    assert ask(f"{url}/metrics").json()["error"] == "not-found"


def test_a_token_guards_all_but_health_and_readiness(serve: Serve) -> None:
    owner_url = serve(FakeView(rows={("acme", "s"): {"state": {}}}), token="geheim-ä")
    url = serve(FakeView(name="w2", place=Place(3, "w1", owner_url, [3])), token="geheim-ä")
    assert ask(f"{url}/healthz").status == 200
    assert ask(f"{url}/readyz").status == 200
    for given in (None, "Bearer wrong", "Basic geheim-ä", "Bearer", ""):
        headers = {} if given is None else {"Authorization": given.encode().decode("latin-1")}
        reply = ask(f"{url}/api/status", headers=headers)
        assert (reply.status, reply.json()["error"]) == (401, "unauthorized")
        assert reply.headers["WWW-Authenticate"] == "Bearer"
        assert ask(f"{url}/nothing", headers=headers).status == 401
    right = {"Authorization": "Bearer geheim-ä".encode().decode("latin-1")}
    assert ask(f"{url}/api/status", headers=right).status == 200
    assert ask(f"{url}/api/sessions/acme/s", headers=right).status == 200


EVERYBODY = {"host": "0.0.0.0"}  # noqa: S104 - for the length of a test.


@pytest.mark.parametrize(("settings", "said"), [(EVERYBODY, True), ({**EVERYBODY, "token": "t"}, False), ({}, False)])
def test_http_that_is_open_to_other_machines_says_so(
    serve: Serve, caplog: pytest.LogCaptureFixture, settings: dict[str, str], said: bool
) -> None:
    serve(FakeView(), **settings)
    assert ("anybody who reaches" in caplog.text) is said


def test_metrics_come_from_the_hook() -> None:
    class Counted:
        def read(self, accept: str) -> tuple[bytes, str]:
            return f"asked for {accept}\n".encode(), "text/plain"

        def brief(self) -> dict[str, int]:
            return {"results": 7}

    server = WebServer(FakeView(), Settings(), gateway=FakeGateway(), metrics=Counted())
    url = server.start()
    try:
        assert ask(f"{url}/metrics", headers={"Accept": "text/x"}).body == b"asked for text/x\n"
        assert ask(f"{url}/api/figures").json() == {"worker": "w1", "ready": True, "results": 7}
    finally:
        server.stop()


def test_a_taken_port_is_one_clear_line_and_the_advertised_url_wins(serve: Serve) -> None:
    view, gateway = FakeView(), FakeGateway()
    url = serve(view)
    port = int(url.rpartition(":")[2])
    server = WebServer(view, Settings(port=port), gateway=gateway)
    with pytest.raises(ConfigurationError, match=f"cannot listen on 127.0.0.1:{port}"):
        server.start()
    server.stop()
    assert gateway.closed
    assert serve(view, advertised_url="https://w1.example/") == "https://w1.example"
