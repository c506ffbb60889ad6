"""Records of `tasks` that are no tasks, too large, or in the wrong partition: nobody else notices."""

import json
import time
from typing import Any

import pytest
from confluent_kafka import KafkaError, KafkaException, Producer

from app.observe.reading import read_account
from app.protocol.murmur2 import partition_of
from tests.support.cluster import Workers
from tests.support.probe import Probe

pytestmark = pytest.mark.broker

GOOD: dict[str, Any] = {"tenant": "acme", "session": "s", "type": "echo", "payload": {"a": 1}}


def but(**changes: object) -> bytes:
    """Return a good task with some fields changed; an Ellipsis removes one."""
    fields = {name: value for name, value in {**GOOD, **changes}.items() if value is not ...}
    return json.dumps(fields).encode()


BAD: dict[str, tuple[bytes | None, bytes | None]] = {
    "null": (b"acme", None),
    "empty": (b"acme", b""),
    "not UTF-8": (b"acme", but(session="x").replace(b'"x"', b'"\xff"')),
    "not JSON": (b"acme", b"{"),
    "trailing text": (b"acme", but() + b" x"),
    "not an object": (b"acme", b"[1]"),
    "a JSON null": (b"acme", b"null"),
    "no tenant": (b"acme", but(tenant=...)),
    "no session": (b"acme", but(session=...)),
    "no type": (b"acme", but(type=...)),
    "no payload": (b"acme", but(payload=...)),
    "tenant a number": (b"7", but(tenant=7)),
    "session null": (b"acme", but(session=None)),
    "type a list": (b"acme", but(type=["echo"])),
    "payload a string": (b"acme", but(payload="a")),
    "id a number": (b"acme", but(id=7)),
    "server a string": (b"acme", but(server="3")),
    "another key": (b"acme2", but()),
    "no key": (None, but()),
    "an empty tenant": (b"", but(tenant="")),
    "an empty session": (b"acme", but(session="")),
    "a long session": (b"acme", but(session="s" * 201)),
    "a control character": (b"acme", but(session="a\x00b")),
    "half a surrogate pair": (b"acme", but(session="x").replace(b'"x"', b'"\\ud800"')),
    "deep nesting": (b"acme", b'{"payload":' + b"[" * 5_000),
}


def test_each_bad_record_is_one_dead_letter_with_its_bytes(workers: Workers, probe: Probe) -> None:
    workers.start_ready("w1")
    before = probe.send("acme", "s", "counter.add", {"amount": 1})
    sent = {name: probe.send_raw(key, value) for name, (key, value) in BAD.items()}
    after = probe.send("acme", "s", "counter.add", {"amount": 1})
    assert probe.done(before) == {"total": 1}
    assert probe.done(after) == {"total": 2}
    for name, position in sent.items():
        letter = probe.letter(position)
        assert (letter.key, letter.value) == BAD[name], name
        assert letter.headers["error"], name
        assert letter.headers["message"], name
    account = read_account(workers.config, workers.namespace, deadline=time.monotonic() + 30)
    assert account.ok, str(account)
    assert (account.sent, account.bad, account.dead_lettered) == (2, len(BAD), len(BAD))
    assert set(sent.values()).isdisjoint(probe.results)


@pytest.mark.parametrize("tenant", ["acme", "Zoë", "日本", "a b", "x" * 200])
def test_names_that_are_allowed(workers: Workers, probe: Probe, tenant: str) -> None:
    workers.start_ready("w1")
    position = probe.send(tenant, f"{tenant[::-1]}", "counter.add", {"amount": 2}, extra="ignored")
    assert probe.done(position) == {"total": 2}
    result = probe.result(position)
    assert (result["tenant"], result["session"]) == (tenant, tenant[::-1])
    assert result["task"] == f"{position[0]}/{position[1]}"
    assert result["sequence"] == result["attempts"] == 1


def test_a_task_in_the_wrong_partition_is_performed_once(workers: Workers, probe: Probe) -> None:
    """A producer with another partitioner: the task goes to its router, and keeps its origin."""
    workers.start_ready("w1", "w2")
    right = partition_of(b"acme", workers.settings.routers)
    wrong = (right + 1) % workers.settings.routers
    first = probe.send_raw(b"acme", but(type="counter.add", payload={"amount": 5}), partition=wrong)
    assert first[0] == wrong
    assert probe.done(first) == {"total": 5}
    second = probe.send("acme", "s", "counter.add", {"amount": 1})
    assert probe.done(second) == {"total": 6}
    result = probe.result(first)
    assert result["source"] == {"partition": first[0], "offset": first[1]}
    assert result["task"] == f"{first[0]}/{first[1]}"
    account = read_account(workers.config, workers.namespace, deadline=time.monotonic() + 30)
    assert account.ok, str(account)
    assert account.sent == 2


def test_a_payload_of_5_mb_is_refused_to_its_producer(workers: Workers, probe: Probe) -> None:
    """The topic refuses it, so the producer hears of it at once and nothing has to be cleaned up."""
    workers.start_ready("w1")
    with pytest.raises(KafkaException) as refusal:
        probe.send("acme", "s", "echo", {"text": "x" * 5_000_000})
    assert refusal.value.args[0].code() == KafkaError.MSG_SIZE_TOO_LARGE
    assert probe.done(probe.send("acme", "s", "counter.add", {"amount": 1})) == {"total": 1}


def test_a_task_that_is_too_large_once_it_is_read_is_a_dead_letter(workers: Workers, probe: Probe) -> None:
    """The topic's limit is on the compressed batch; nobody could write the task again as it is."""
    workers.start_ready("w1")
    assert probe.done(probe.send("acme", "s", "counter.add", {"amount": 1})) == {"total": 1}
    compressing = Producer({**workers.config, "compression.type": "gzip", "message.max.bytes": 20_000_000})
    sent: list[Any] = []
    value = but(payload={"text": "x" * 3_000_000})
    where = partition_of(b"acme", workers.settings.routers)
    compressing.produce(probe.names.tasks, value, b"acme", where, on_delivery=lambda *report: sent.append(report))
    assert compressing.flush(30) == 0
    error, message = sent[0]
    assert error is None
    letter = probe.letter((message.partition(), message.offset()))
    assert (letter.key, letter.value, letter.headers["error"]) == (b"acme", None, "TooLarge")
    assert str(len(value) + 4) in letter.headers["message"]
    assert probe.done(probe.send("acme", "s", "counter.add", {"amount": 1})) == {"total": 2}
    assert all(worker.running for worker in workers.all)
    account = read_account(workers.config, workers.namespace, deadline=time.monotonic() + 150)
    assert account.ok, str(account)
    assert (account.sent, account.bad, account.dead_lettered) == (2, 1, 1)


def test_a_task_just_below_the_limit_is_performed(workers: Workers, probe: Probe) -> None:
    workers.start_ready("w1")
    room = workers.settings.max_record_bytes - 1_000
    position = probe.send("acme", "s", "chain.link", {"text": "x" * room})
    assert set(probe.done(position)) == {"h"}


@pytest.mark.settings(max_record_bytes=4_194_304)
def test_a_state_of_3_mb_is_kept_where_the_limit_allows_it(workers: Workers, probe: Probe) -> None:
    first, _ = workers.start_ready("w1", "w2")
    assert probe.done(probe.send("acme", "s", "big.state", {"bytes": 3_000_000})) == {"bytes": 3_000_000}
    first.kill9()
    assert "h" in probe.done(probe.send("acme", "s", "chain.link", {"n": 1}))
    assert "h" in probe.done(probe.send("other", "s", "chain.link", {"n": 1}))


@pytest.mark.parametrize("kind", ["big.state", "big.result"])
def test_a_state_or_result_over_the_limit_fails_its_task_alone(workers: Workers, probe: Probe, kind: str) -> None:
    workers.start_ready("w1")
    probe.done(probe.send("acme", "s", "chain.link", {"n": 1}))
    large = probe.send("acme", "s", kind, {"bytes": 3_000_000})
    after = probe.send("acme", "s", "chain.link", {"n": 2})
    assert probe.failed(large) == "TooLarge"
    assert "h" in probe.done(after)
    assert probe.result(after)["sequence"] == 3
