"""The handlers' side: registering, loading, what a session offers."""

import asyncio
import math
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import orjson
import pytest
from pydantic import BaseModel

from app import canary, handlers
from app.errors import ConfigurationError
from app.handlers import RETRY_S_MAX, Handler, Retry, Session, handler


class Cart(BaseModel):
    items: int = 0


class Item(BaseModel):
    count: int


@pytest.fixture(autouse=True)
def registered(monkeypatch: pytest.MonkeyPatch) -> dict[str, Handler]:
    """A registry of the test's own."""
    mine: dict[str, Handler] = {}
    monkeypatch.setattr(handlers, "_registered", mine)
    return mine


@pytest.fixture
def module(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[str, str], None]]:
    """Writes modules into the working directory, which is not on the Python path yet."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    monkeypatch.setattr(sys, "dont_write_bytecode", True)
    before = set(sys.modules)

    def write(name: str, text: str) -> None:
        (tmp_path / f"{name}.py").write_text(text)

    yield write
    for name in set(sys.modules) - before:
        del sys.modules[name]


# -- registering --------------------------------------------------------------------------------------------------


def test_the_function_comes_back_unchanged(registered: dict[str, Handler]) -> None:
    def add(session: Session[Any], payload: dict[str, Any]) -> None:
        """Nothing."""

    assert handler("cart.add")(add) is add
    assert registered == {"cart.add": Handler("cart.add", add, False, False, None, None)}
    assert registered["cart.add"].inline
    assert not registered["cart.add"].typed


def test_plain_blocking_and_async_handlers_are_told_apart(registered: dict[str, Handler]) -> None:
    @handler("plain")
    def plain(session: Session[Any], payload: dict[str, Any]) -> None: ...

    @handler("blocking", blocking=True)
    def blocking(session: Session[Any], payload: dict[str, Any]) -> None: ...

    @handler("async")
    async def aside(session: Session[Any], payload: dict[str, Any]) -> None: ...

    modes = {name: (found.inline, found.blocking, found.asynchronous) for name, found in registered.items()}
    assert modes == {
        "plain": (True, False, False),
        "blocking": (False, True, False),
        "async": (False, False, True),
    }


def test_without_annotations_everything_is_plain(registered: dict[str, Handler]) -> None:
    handler("plain")(lambda session, payload: None)
    assert not registered["plain"].typed


def test_annotations_name_the_models(registered: dict[str, Handler]) -> None:
    @handler("both")
    def both(session: Session[Cart], payload: Item) -> None: ...

    @handler("state")
    def state(session: Session[Cart], payload: dict[str, Any]) -> None: ...

    @handler("payload")
    def payload_only(session: Session, payload: Item) -> None: ...  # type: ignore[type-arg]

    models = {name: (found.state_model, found.payload_model) for name, found in registered.items()}
    assert models == {"both": (Cart, Item), "state": (Cart, None), "payload": (None, Item)}
    assert all(found.typed for found in registered.values())


def test_two_handlers_of_one_type_are_refused(registered: dict[str, Handler]) -> None:
    def one(session: Session[Any], payload: dict[str, Any]) -> None: ...

    def other(session: Session[Any], payload: dict[str, Any]) -> None: ...

    handler("cart.add")(one)
    with pytest.raises(ConfigurationError, match=r"two handlers for 'cart\.add'.*one.*other.*rename"):
        handler("cart.add")(other)
    assert registered["cart.add"].function is one


def test_the_same_definition_again_replaces_itself(registered: dict[str, Handler]) -> None:
    """As when a module is loaded anew."""

    def make() -> Callable[..., Any]:
        def add(session: Session[Any], payload: dict[str, Any]) -> None: ...

        return add

    handler("cart.add")(make())
    second = make()
    handler("cart.add")(second)
    assert registered["cart.add"].function is second


@pytest.mark.parametrize(
    "function",
    [
        lambda: None,
        lambda session: None,
        lambda session, payload, more: None,
        lambda session, payload, more=1: None,
        lambda *arguments: None,
    ],
)
def test_a_handler_takes_a_session_and_a_payload(registered: dict[str, Handler], function: Callable[..., Any]) -> None:
    with pytest.raises(ConfigurationError, match="a handler takes a session and a payload"):
        handler("bad")(function)
    assert registered == {}


def test_async_and_blocking_exclude_each_other(registered: dict[str, Handler]) -> None:
    async def aside(session: Session[Any], payload: dict[str, Any]) -> None: ...

    with pytest.raises(ConfigurationError, match="leave blocking=True away"):
        handler("async", blocking=True)(aside)
    assert registered == {}


# -- loading ------------------------------------------------------------------------------------------------------

ADDER = """
from app.handlers import Session, handler

@handler("{type}")
def {name}(session: Session, payload: dict) -> dict:
    return payload
"""


def test_modules_are_found_in_the_working_directory(module: Callable[[str, str], None]) -> None:
    module("shop_handlers", ADDER.format(type="cart.add", name="add"))
    module("more_handlers", ADDER.format(type="cart.drop", name="drop"))
    found = handlers.load(["shop_handlers", "more_handlers"])
    assert sorted(found) == ["cart.add", "cart.drop"]
    assert found["cart.add"].function(None, {"count": 2}) == {"count": 2}


def test_the_python_path_comes_first(module: Callable[[str, str], None]) -> None:
    module("json", ADDER.format(type="never", name="never"))
    assert handlers.load(["json"]) == {}


def test_what_is_loaded_does_not_change_afterwards(module: Callable[[str, str], None]) -> None:
    module("shop_handlers", ADDER.format(type="cart.add", name="add"))
    found = handlers.load(["shop_handlers"])
    handler("later")(lambda session, payload: None)
    assert sorted(found) == ["cart.add"]


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("import no_such_module_at_all", "ModuleNotFoundError"),
        ("def (", "SyntaxError"),
        ("1 / 0", "ZeroDivisionError"),
        (ADDER.format(type="a", name="add").replace("payload: dict", "payload: Nowhere"), "NameError"),
    ],
)
def test_a_module_that_fails_is_named_with_its_reason(
    module: Callable[[str, str], None], text: str, reason: str
) -> None:
    module("broken_handlers", text)
    with pytest.raises(ConfigurationError, match=rf"'broken_handlers'.*{reason}.*HOLDFAST_HANDLERS"):
        handlers.load(["broken_handlers"])


def test_a_missing_module_is_named() -> None:
    with pytest.raises(ConfigurationError, match="'no_such_handlers' cannot be imported"):
        handlers.load(["no_such_handlers"])


def test_two_modules_with_one_type_are_told_as_such(module: Callable[[str, str], None]) -> None:
    module("one_handlers", ADDER.format(type="cart.add", name="add"))
    module("two_handlers", ADDER.format(type="cart.add", name="add"))
    with pytest.raises(ConfigurationError, match=r"one_handlers\.add and two_handlers\.add"):
        handlers.load(["one_handlers", "two_handlers"])


def test_the_types_of_holdfast_itself_are_reserved() -> None:
    with pytest.raises(ConfigurationError, match=r"'holdfast\.mine'.*rename"):
        handler("holdfast.mine")
    assert all(known.type.startswith("holdfast.") for known in canary.HANDLERS.values())


def test_the_canary_is_told_what_came_before_it() -> None:
    session: Session[dict[str, Any]] = Session("acme", "one", 0, "1", 1, {})
    function = canary.HANDLERS[canary.TYPE].function
    assert function(session, {"number": canary.ASK, "run": "a"}) == {"previous": 0, "run": ""}
    assert session.state == {}
    assert function(session, {"number": 1, "run": "a"}) == {"previous": 0, "run": ""}
    assert function(session, {"number": 2, "run": "b"}) == {"previous": 1, "run": "a"}
    assert function(session, {"number": canary.ASK, "run": "c"}) == {"previous": 2, "run": "b"}


# -- retry --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("after", "expected"),
    [
        (0, 0.0),
        (1.5, 1.5),
        (3, 3.0),
        (RETRY_S_MAX, float(RETRY_S_MAX)),
    ],
)
def test_after(after: float, expected: float) -> None:
    assert Retry(after=after).after == expected


@pytest.mark.parametrize("after", [-4, -1e-9, math.nan, math.inf, -math.inf, 1e300, RETRY_S_MAX + 1])
def test_a_retry_is_within_a_week(after: float) -> None:
    with pytest.raises(ValueError, match="after must be 0 to 604800 seconds"):
        Retry(after=after)


def test_a_retry_without_a_time_is_after_a_second() -> None:
    assert Retry().after == 1.0


# -- the session --------------------------------------------------------------------------------------------------


def session() -> Session[Any]:
    return Session("acme", "cart-7", 3, "t-1", 2, {"items": 1})


def test_what_a_handler_sees() -> None:
    seen = session()
    assert (seen.tenant, seen.id, seen.server, seen.task_id, seen.attempt) == ("acme", "cart-7", 3, "t-1", 2)
    assert seen.state == {"items": 1}
    assert seen.outbox is None
    assert not seen.ended


def test_send_goes_to_the_same_tenant_unless_told_otherwise() -> None:
    sender = session()
    sender.send("cart-8", "cart.add", {"count": 1})
    sender.send("\N{SNOWMAN}", "cart.drop", {}, tenant="other")
    assert sender.outbox is not None
    assert [(key, orjson.loads(task)) for key, task in sender.outbox.tasks] == [
        (b"acme", {"tenant": "acme", "session": "cart-8", "type": "cart.add", "payload": {"count": 1}}),
        (b"other", {"tenant": "other", "session": "\N{SNOWMAN}", "type": "cart.drop", "payload": {}}),
    ]


def test_what_is_sent_is_what_it_was_when_it_was_sent() -> None:
    sender, payload = session(), {"count": 1}
    sender.send("cart-8", "cart.add", payload)
    payload["count"] = 2
    assert sender.outbox is not None
    assert orjson.loads(sender.outbox.tasks[0][1])["payload"] == {"count": 1}


@pytest.mark.parametrize(
    ("to", "kind", "payload", "tenant", "error"),
    [
        ("", "t", {}, None, ValueError),
        ("a\0b", "t", {}, None, ValueError),
        ("x" * 201, "t", {}, None, ValueError),
        ("s", "", {}, None, ValueError),
        ("s", "t" * 201, {}, None, ValueError),
        ("s", 7, {}, None, ValueError),
        ("s", "t", {}, "", ValueError),
        ("s", "t", {}, "a\nb", ValueError),
        ("s", "t", [], None, TypeError),
        ("s", "t", None, None, TypeError),
        ("s", "t", {"x": object()}, None, TypeError),
    ],
)
def test_what_is_no_task_is_not_sent(
    to: str, kind: str, payload: Any, tenant: str | None, error: type[Exception]
) -> None:
    sender = session()
    with pytest.raises(error):
        sender.send(to, kind, payload, tenant)
    assert sender.outbox is None or sender.outbox.tasks == []


@pytest.mark.parametrize(
    ("value", "written"),
    [
        (None, None),
        (b"\xff\x00", b"\xff\x00"),
        ("\N{SNOWMAN}", "\N{SNOWMAN}".encode()),
        ({"a": [1, None]}, b'{"a":[1,null]}'),
        (7, b"7"),
        ("", b""),
    ],
)
def test_emit_writes_bytes_text_and_json(value: Any, written: bytes | None) -> None:
    sender = session()
    sender.emit("prices", value)
    sender.emit("prices", value, key="k")
    sender.emit("prices", value, key=b"\xfe")
    assert sender.outbox is not None
    assert sender.outbox.records == [
        ("prices", written, None),
        ("prices", written, b"k"),
        ("prices", written, b"\xfe"),
    ]


@pytest.mark.parametrize("topic", ["", "bad topic!", "a/b", "x" * 250, "caf\u00e9", "a\n", None, 7, b"prices"])
def test_emit_refuses_what_cannot_be_a_topic(topic: Any) -> None:
    sender = session()
    with pytest.raises(ValueError, match="emit: a topic's name"):
        sender.emit(topic, 1)
    assert sender.outbox is None


@pytest.mark.parametrize("key", [7, 1.5, ["k"], object()], ids=lambda key: type(key).__name__)
def test_emit_refuses_a_key_that_is_no_text(key: Any) -> None:
    sender = session()
    with pytest.raises(TypeError, match="emit: the key"):
        sender.emit("prices", 1, key)
    assert sender.outbox is None


def test_emit_refuses_what_json_cannot_say() -> None:
    with pytest.raises(TypeError):
        session().emit("prices", {"x": object()})


def test_end() -> None:
    ending = session()
    ending.end()
    assert ending.ended


def test_an_async_handler_is_still_a_coroutine_function() -> None:
    @handler("async")
    async def aside(session: Session[Any], payload: dict[str, Any]) -> str:
        return session.id

    assert asyncio.run(aside(session(), {})) == "cart-7"
