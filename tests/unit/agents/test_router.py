"""The router's limits: what cannot be written again is a dead letter, on the fast path as on the slow one."""

import pytest

import agents.router
from agents.router import Router
from app.protocol.murmur2 import partition_of
from tests.unit.agents.workbench import LIMIT, NAMES, TENANT, Message, Workshop, batch, make_router, task

KEY = TENANT.encode()


def of_size(size: int) -> bytes:
    """A task whose key and value are so large together."""
    empty = task("echo", payload={"x": ""})
    return task("echo", payload={"x": "x" * (size - len(empty) - len(KEY))})


def route(router: Router, *messages: Message) -> None:
    router.perform(batch(NAMES.tasks, list(messages)), 0.0)


def headers(record: dict[str, object]) -> dict[str, bytes]:
    return dict(record["headers"])  # type: ignore[call-overload, no-any-return]


@pytest.mark.parametrize("settled", [False, True])
def test_a_record_that_was_compressed_may_be_too_large_to_be_written(settled: bool) -> None:
    router, engine = make_router()
    if settled:
        route(router, Message(0, task("echo"), KEY))
    before = len(engine.records(NAMES.work))
    route(router, Message(1, of_size(LIMIT), KEY), Message(2, of_size(LIMIT + 1), KEY), Message(3, task("echo"), KEY))
    assert [record["key"] for record in engine.records(NAMES.work)[before:]] == [b"0:1", b"0:3"]
    (letter,) = engine.records(NAMES.dead_letters)
    assert (letter["key"], letter["value"]) == (KEY, None)
    said = headers(letter)
    assert (said["error"], said["source-offset"]) == (b"TooLarge", b"2")
    assert said["message"] == b"a record of 100001 bytes; the limit is 100000 (MAX_RECORD_BYTES)"


def test_a_key_that_is_too_large_is_cut_off_as_well() -> None:
    router, engine = make_router()
    route(router, Message(0, b"x", b"k" * LIMIT))
    (letter,) = engine.records(NAMES.dead_letters)
    assert (letter["key"], letter["value"], headers(letter)["error"]) == (None, None, b"TooLarge")


@pytest.fixture
def stranger() -> tuple[Router, Workshop]:
    """A router that the tenant's tasks are not meant for."""
    assert partition_of(KEY, 5) != 0
    return make_router(routers=5)


def test_a_misrouted_task_is_sent_on_if_it_fits_with_its_headers(stranger: tuple[Router, Workshop]) -> None:
    router, engine = stranger
    route(router, Message(0, of_size(LIMIT - 256), KEY), Message(1, of_size(LIMIT - 255), KEY))
    (copy,) = engine.records(NAMES.tasks)
    assert len(copy["value"]) + len(KEY) == LIMIT - 256
    (letter,) = engine.records(NAMES.dead_letters)
    assert (letter["key"], letter["value"]) == (KEY, of_size(LIMIT - 255))
    assert headers(letter)["error"] == b"TooLarge"


TASKS = [
    b'{"tenant":"acme","session":"s","type":"t","payload":{}}',
    b'{"tenant": "acme", "session": "s", "type": "t", "payload": {}}',
    b'{"tenant" : "acme","session":"s","type":"t","payload":{}}',
    b'{"session":"s","type":"t","payload":{"tenant":"other"},"tenant":"acme"}',
    b'{"session":"s","type":"t","payload":{"tenant":"acme"},"tenant":"other"}',
    b'{"tenant":"acme","session":"\\u0073","type":"t","payload":{}}',
    b'{"tenant":"acme","session":"s","type":"t","payload":{},"\\u0074enant":"other"}',
    b'{"tenant":"acme","session":"s","type":"t","payload":{},"server":1}',
    b'{"tenant":"acme","session":"s","type":"t","payload":{},"server":"x"}',
    b'{"tenant":"acme2","session":"s","type":"t","payload":{}}',
    b'{"tenant":"other","session":"s","type":"t","payload":{}}',
    b"",
    b"null",
]


@pytest.mark.parametrize("value", [*TASKS, None])
def test_the_fast_path_gives_what_the_slow_one_gives(value: bytes | None) -> None:
    slow, slowly = make_router()
    route(slow, Message(1, value, KEY))
    fast, quickly = make_router()
    route(fast, Message(0, task("echo"), KEY))
    quickly.unit = type(quickly.unit)(60.0)
    route(fast, Message(1, value, KEY))
    for topic in (NAMES.work, NAMES.dead_letters):
        assert quickly.records(topic) == slowly.records(topic)


def test_a_router_forgets_the_earliest_tenants_first(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(agents.router, "SETTLED_MAX", 4)
    router, engine = make_router()
    for number in range(6):
        tenant = f"tenant-{number}"
        value = b'{"tenant":"%b","session":"s","type":"t","payload":{}}' % tenant.encode()
        route(router, Message(number, value, tenant.encode()))
    assert len(engine.records(NAMES.work)) == 6
    assert list(router._settled) == [b"tenant-2", b"tenant-3", b"tenant-4", b"tenant-5"]


def test_routers_of_a_worker_remember_so_many_tenants_together(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(agents.router, "SETTLED_MAX", 4)
    router, _ = make_router()
    other = dict.fromkeys((b"a", b"b", b"c"), 0)
    router._context.settled.append(other)
    for number in range(2):
        tenant = f"tenant-{number}"
        value = b'{"tenant":"%b","session":"s","type":"t","payload":{}}' % tenant.encode()
        route(router, Message(number, value, tenant.encode()))
    assert (list(other), list(router._settled)) == ([b"c"], [b"tenant-0", b"tenant-1"])
    router.close()
    assert router._context.settled == [other]
