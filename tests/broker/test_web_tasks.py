"""`POST /api/tasks` on a real broker, the worker's part played by the test."""

import json
import threading
from collections.abc import Iterator

import orjson
import pytest
from confluent_kafka import Consumer, Producer, TopicPartition

from app.settings import Settings
from app.topics import Names, connect, ensure
from app.web.server import WebServer
from tests.support.web import FakeView, ask

pytestmark = pytest.mark.broker


@pytest.fixture
def settings(broker: str, namespace: str) -> Settings:
    made = Settings(bootstrap=broker, namespace=namespace, servers=1, routers=1)
    ensure(connect(made), made)
    return made


@pytest.fixture
def url(settings: Settings) -> Iterator[str]:
    server = WebServer(FakeView(), settings)
    yield server.start()
    server.stop()


def answer_next(settings: Settings, offset: int) -> None:
    """Wait for the task at ``offset``; answer its id first for another place, then for its own."""
    names = Names(settings.namespace)
    consumer = Consumer({"bootstrap.servers": settings.bootstrap, "group.id": "unused"})
    consumer.assign([TopicPartition(names.tasks, 0, offset)])
    message = consumer.poll(30)
    consumer.close()
    assert message is not None
    task = json.loads(message.value() or b"")
    producer = Producer({"bootstrap.servers": settings.bootstrap})
    for place in (offset + 1000, offset):
        result = {
            **{name: task[name] for name in ("tenant", "session", "type")},
            "task": task.get("id", f"0/{offset}"),
            "status": "done",
            "result": place,
            "error": None,
            "server": 0,
            "worker": "w1",
            "sequence": 1,
            "attempts": 1,
            "source": {"partition": 0, "offset": place},
        }
        producer.produce(names.results, orjson.dumps(result), b"acme")
    producer.flush(10)


@pytest.mark.parametrize("given", [{}, {"id": "mine"}])
def test_a_result_is_that_of_the_task_that_was_posted(settings: Settings, url: str, given: dict[str, str]) -> None:
    body = orjson.dumps({"tenant": "acme", "session": "s", "type": "echo", "payload": {}, **given})
    sent = ask(f"{url}/api/tasks", data=body)
    assert sent.status == 202
    assert (sent.json()["partition"], sent.json()["offset"]) == (0, 0)
    worker = threading.Thread(target=answer_next, args=(settings, 1))
    worker.start()
    done = ask(f"{url}/api/tasks?wait=30", data=body)
    worker.join()
    assert (done.status, done.json()["result"]) == (200, 1)


def test_a_result_that_does_not_come_is_a_timeout_with_the_tasks_id(url: str) -> None:
    body = orjson.dumps({"tenant": "acme", "session": "s", "type": "echo", "payload": {}})
    late = ask(f"{url}/api/tasks?wait=0.3", data=body)
    assert (late.status, late.json()["error"], late.json()["id"]) == (504, "timeout", "0/0")


def test_a_broker_that_does_not_answer_is_unavailable() -> None:
    server = WebServer(FakeView(), Settings(bootstrap="127.0.0.1:1"))
    url = server.start()
    try:
        body = orjson.dumps({"tenant": "acme", "session": "s", "type": "echo", "payload": {}})
        reply = ask(f"{url}/api/tasks", data=body)
        assert (reply.status, reply.json()["error"]) == (503, "broker-unreachable")
    finally:
        server.stop()
