"""The client on a real broker: where tasks land, what comes back, what is refused and how."""

import json
import time
from collections.abc import Iterator

import orjson
import pytest
from confluent_kafka import Consumer, Producer, TopicPartition

from app.client import Client
from app.client.cluster import find_workers
from app.errors import BrokerUnreachableError, ConfigurationError, UnavailableError
from app.protocol.murmur2 import partition_of
from app.records import Task
from app.settings import Settings
from app.topics import Names, connect, ensure
from tests.support.members import Member

pytestmark = pytest.mark.broker


@pytest.fixture
def settings(broker: str, namespace: str) -> Settings:
    made = Settings(bootstrap=broker, namespace=namespace, servers=2, routers=3)
    ensure(connect(made), made)
    return made


@pytest.fixture
def client(settings: Settings) -> Iterator[Client]:
    with Client(settings.bootstrap, settings.namespace) as made:
        yield made


def result_of(task: str, *, tenant: str = "acme", sequence: int = 1) -> bytes:
    return orjson.dumps(
        {
            "v": 1,
            "task": task,
            "tenant": tenant,
            "session": "s",
            "type": "echo",
            "status": "done",
            "result": {"n": sequence},
            "error": None,
            "server": 0,
            "worker": "w1",
            "sequence": sequence,
            "attempts": 1,
            "source": {"partition": 0, "offset": 0},
        }
    )


def write_results(settings: Settings, *values: bytes) -> None:
    producer = Producer({"bootstrap.servers": settings.bootstrap})
    for value in values:
        producer.produce(Names(settings.namespace).results, value, b"acme")
    assert producer.flush(10) == 0


def read_at(settings: Settings, partition: int, offset: int) -> tuple[bytes | str | None, bytes | str | None]:
    consumer = Consumer({"bootstrap.servers": settings.bootstrap, "group.id": "unused"})
    consumer.assign([TopicPartition(Names(settings.namespace).tasks, partition, offset)])
    message = consumer.poll(10)
    consumer.close()
    assert message is not None
    assert message.error() is None
    assert (message.partition(), message.offset()) == (partition, offset)
    return message.key(), message.value()


def test_a_task_lands_on_its_tenants_router_and_is_known_by_its_place(settings: Settings, client: Client) -> None:
    for tenant in ("acme", "zoë", "t-17"):
        partition, _, offset = client.send(tenant, "cart-7", "echo", {"n": 1}).partition("/")
        assert int(partition) == partition_of(tenant.encode(), 3)
        key, value = read_at(settings, int(partition), int(offset))
        assert key == tenant.encode()
        assert json.loads(value or b"") == {
            "tenant": tenant,
            "session": "cart-7",
            "type": "echo",
            "payload": {"n": 1},
        }


def test_a_given_id_is_the_tasks_id(client: Client) -> None:
    assert client.send("acme", "s", "echo", {}, id="mine", server=1) == "mine"


def test_many_tasks_keep_their_order(client: Client) -> None:
    tasks = (Task(tenant="acme", session="s", type="echo", payload={"n": n}) for n in range(25_000))
    offsets = [sent.offset for sent in client.send_many(tasks)]
    assert offsets == list(range(25_000))


def test_a_result_is_found_whether_it_came_before_or_after_the_question(settings: Settings, client: Client) -> None:
    expected = client.expect("late")
    write_results(settings, result_of("early"), b"not a result", b'{"task": 7}', result_of("late", sequence=2))
    assert expected.result(10).sequence == 2
    assert client.result("early", timeout=10).result == {"n": 1}
    with pytest.raises(TimeoutError, match=r"no result of task early within 0\.2 s"):
        client.result("early", timeout=0.2)


def test_results_older_than_the_client_are_not_its_business(settings: Settings) -> None:
    write_results(settings, result_of("old"))
    with Client(settings.bootstrap, settings.namespace) as client:
        write_results(settings, result_of("new"))
        assert [result.task for result in client.results(quiet=2)] == ["new"]
        assert client.result("new", timeout=10).task == "new"


def test_an_aborted_result_is_never_seen(settings: Settings, client: Client) -> None:
    producer = Producer({"bootstrap.servers": settings.bootstrap, "transactional.id": f"{settings.namespace}.test"})
    producer.init_transactions(10)
    topic = Names(settings.namespace).results
    for task, end in (("aborted", producer.abort_transaction), ("committed", producer.commit_transaction)):
        producer.begin_transaction()
        producer.produce(topic, result_of(task), b"acme")
        producer.flush(10)
        end(10)
    assert client.result("committed", timeout=10).task == "committed"
    with pytest.raises(TimeoutError):
        client.result("aborted", timeout=0.1)


def test_only_the_newest_unclaimed_results_are_kept(settings: Settings) -> None:
    with Client(settings.bootstrap, settings.namespace, keep_results=2) as client:
        last = client.expect("last")
        write_results(settings, *(result_of(task) for task in ("a", "b", "c", "last")))
        last.result(10)
        assert {client.result(task, timeout=5).task for task in ("b", "c")} == {"b", "c"}
        with pytest.raises(TimeoutError):
            client.result("a", timeout=0.1)


def test_closing_tells_those_who_wait(settings: Settings) -> None:
    client = Client(settings.bootstrap, settings.namespace)
    waiting = client.expect("never")
    client.close()
    with pytest.raises(UnavailableError, match="closed"):
        waiting.result(1)
    with pytest.raises(UnavailableError, match="closed"):
        client.send("acme", "s", "echo", {})


@pytest.mark.parametrize(
    ("changed", "match"),
    [
        ({"tenant": ""}, "tenant '' is no name"),
        ({"tenant": "x" * 201}, "1 to 200 characters"),
        ({"session": "a\nb"}, "session 'a\\\\nb' is no name"),
        ({"tenant": 7}, "tenant 7 is no name"),
        ({"payload": ["list"]}, "task field payload"),
        ({"payload": {"x": object()}}, "cannot be written as JSON"),
        ({"type": 7}, "task field type"),
        ({"id": ""}, "task field id"),
        ({"payload": {"x": "y" * 3_000_000}}, "the task has 30000.. bytes"),
        # Below our limit, but above it with what Kafka adds: the brokers refuse it.
        ({"payload": {"x": "y" * (2_097_152 - 70)}}, "HOLDFAST_MAX_RECORD_BYTES"),
    ],
)
def test_what_is_no_task_is_refused_before_it_is_sent(client: Client, changed: dict[str, object], match: str) -> None:
    task: dict[str, object] = {"tenant": "acme", "session": "s", "type": "echo", "payload": {}, **changed}
    with pytest.raises(ValueError, match=match):
        client.send(**task)  # type: ignore[arg-type]


def test_an_unreachable_broker_is_reported_within_seconds() -> None:
    started = time.monotonic()
    with pytest.raises(BrokerUnreachableError, match=r"no Kafka broker answers at 127\.0\.0\.1:1"):
        Client("127.0.0.1:1")
    assert time.monotonic() - started < 10


def test_a_namespace_without_topics_says_what_to_do(broker: str, namespace: str) -> None:
    with pytest.raises(ConfigurationError, match="holdfast topics create"):
        Client(broker, namespace)


def test_the_workers_are_found_through_their_group(settings: Settings) -> None:
    assert find_workers(settings) == []
    member = Member(settings, name="w1", url="http://127.0.0.1:1", hosts=["router-0", "server-0", "server-1"])
    with member:
        worker = find_workers(settings, settle_timeout=10)[0]
    assert (worker.name, worker.url, worker.incarnation) == ("w1", "http://127.0.0.1:1", 7)
    assert (worker.routers, worker.servers) == ((0,), (0, 1))
