"""A task's trace: from its producer through router and server into its result."""

import json
from collections.abc import Iterator
from typing import Any

import pytest
from confluent_kafka import OFFSET_BEGINNING, Consumer, TopicPartition
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.trace import format_span_id, format_trace_id

from app.client import Client
from app.settings import Settings
from tests.support.cluster import Workers, wait_for
from tests.support.collector import Collector, Span
from tests.support.web import ask

pytestmark = pytest.mark.broker

THEIRS = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"


@pytest.fixture
def collector() -> Iterator[Collector]:
    with Collector() as made:
        yield made


def traced(workers: Workers, collector: Collector) -> Settings:
    bootstrap = str(workers.config["bootstrap.servers"])
    return Settings(bootstrap=bootstrap, namespace=workers.namespace, traces=collector.url)


def headers_in(workers: Workers, topic: str) -> list[dict[str, Any]]:
    """The headers of every record of a topic."""
    group, name = f"{workers.namespace}.reader", f"{workers.namespace}.{topic}"
    consumer = Consumer({**workers.config, "group.id": group, "enable.partition.eof": True})
    try:
        numbers = consumer.list_topics(name, timeout=10).topics[name].partitions
        consumer.assign([TopicPartition(name, number, OFFSET_BEGINNING) for number in numbers])
        found, ended = [], set[int]()
        while ended < set(numbers):
            message = consumer.poll(10.0)
            assert message is not None, f"{topic} does not end"
            if message.error() is None:
                found.append(dict(message.headers() or ()))
            else:
                ended.add(message.partition() or 0)
        return found
    finally:
        consumer.close()


def test_a_trace_leads_from_the_producer_to_the_result(workers: Workers, collector: Collector) -> None:
    workers.start("w1", HOLDFAST_TRACES=collector.url)
    workers.start("w2", HOLDFAST_TRACES=collector.url)
    for worker in workers.running:
        worker.wait_ready()
    provider = TracerProvider()
    tracer = provider.get_tracer("test")
    with Client(settings=traced(workers, collector)) as client:
        with tracer.start_as_current_span("order") as order:
            first = client.send("acme", "s1", "counter.add", {"amount": 1})
        second = client.send("acme", "s1", "fail", {})
        plain = [client.send("acme", f"p{n}", "echo", {}) for n in range(20)]
        for task in (first, second, *plain):
            client.result(task, timeout=30)
    theirs = {"tenant": "zoe", "session": "s", "type": "echo", "payload": {}}
    body, header = json.dumps(theirs).encode(), {"traceparent": THEIRS}
    assert ask(f"{workers.running[0].url}/api/tasks?wait=20", data=body, headers=header).status == 200

    def whole() -> dict[tuple[str, str], Span] | None:
        found = {(span.trace, span.name.partition(" ")[0]): span for span in collector.spans}
        return found if len(found) == 2 * (2 + len(plain) + 1) else None

    found = wait_for(whole, 20, "two spans for every task")
    assert found is not None
    trace = format_trace_id(order.get_span_context().trace_id)
    routed, performed = found[trace, "route"], found[trace, "perform"]
    assert routed.parent == format_span_id(order.get_span_context().span_id)
    assert performed.parent == routed.id
    assert performed.name == "perform counter.add"
    assert performed.attributes["holdfast.tenant"] == "acme"
    assert performed.attributes["holdfast.worker"] == performed.worker
    assert not performed.failed
    failed = next(span for span in found.values() if span.name == "perform fail")
    assert failed.failed
    assert failed.attributes["error.type"] == "RuntimeError"
    assert found[failed.trace, "route"].parent == ""
    assert found[THEIRS.split("-")[1], "route"].parent == THEIRS.split("-")[2]
    results = [given["traceparent"].decode() for given in headers_in(workers, "results")]
    # The last two digits are flags.
    assert f"00-{trace}-{performed.id}" in {header[:-3] for header in results}
    assert len(results) == 2 + len(plain) + 1


def test_without_the_setting_no_record_carries_anything(workers: Workers) -> None:
    workers.start_ready("w1")
    with Client(str(workers.config["bootstrap.servers"]), workers.namespace) as client:
        client.result(client.send("acme", "s1", "echo", {}), timeout=30)
    assert headers_in(workers, "tasks") == headers_in(workers, "work") == headers_in(workers, "results") == [{}]


def test_order_and_account_hold_with_traces(workers: Workers, collector: Collector) -> None:
    workers.start("w1", HOLDFAST_TRACES=collector.url).wait_ready()
    with Client(settings=traced(workers, collector)) as client:
        ids = [client.send_nowait("acme", f"s{n % 7}", "counter.add", {"amount": 1}) for n in range(2_000)]
        results = [client.result(sent.result().id, timeout=60) for sent in ids]
    by_session: dict[str, list[int]] = {}
    for result in results:
        by_session.setdefault(result.session, []).append(result.sequence)
    assert all(found == list(range(1, len(found) + 1)) for found in by_session.values())
