"""The embedded broker: it serves, keeps its data, and never outlives who started it."""

import os
import re
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import psutil
import pytest
from confluent_kafka import Consumer, Producer
from confluent_kafka.admin import AdminClient
from confluent_kafka.cimpl import NewTopic

from app.engine.embedded_kafka import EmbeddedKafka
from app.errors import BrokerUnreachableError, ConfigurationError
from tests.support.broker import OwnBrokers

pytestmark = pytest.mark.broker


def wait_for(condition: Callable[[], bool], timeout: float = 30) -> None:
    deadline = time.monotonic() + timeout
    while not condition():
        assert time.monotonic() < deadline, "the condition did not come true in time"
        time.sleep(0.02)


def produce(bootstrap: str, topic: str, values: list[bytes], config: dict[str, str] | None = None) -> None:
    options: dict[str, str | int | float | bool] = {"bootstrap.servers": bootstrap, **(config or {})}
    admin = AdminClient(options)
    if topic not in admin.list_topics(timeout=10).topics:
        admin.create_topics([NewTopic(topic, num_partitions=1, replication_factor=1)])[topic].result(10)
    producer = Producer(options)
    for value in values:
        producer.produce(topic, value)
    assert producer.flush(10) == 0


def consume(bootstrap: str, topic: str, count: int) -> list[bytes]:
    consumer = Consumer(
        {"bootstrap.servers": bootstrap, "group.id": f"{topic}.reader", "auto.offset.reset": "earliest"}
    )
    try:
        consumer.subscribe([topic])
        values: list[bytes] = []
        deadline = time.monotonic() + 20
        while len(values) < count and time.monotonic() < deadline:
            message = consumer.poll(0.2)
            if message is not None and message.error() is None:
                values.append(message.value() or b"")
        return values
    finally:
        consumer.close()


def cluster_of(bootstrap: str) -> str:
    return str(AdminClient({"bootstrap.servers": bootstrap}).list_topics(timeout=10).cluster_id)


def test_the_chosen_broker_takes_and_gives_records(broker: str, namespace: str) -> None:
    produce(broker, f"{namespace}.numbers", [b"1", b"2"])
    assert consume(broker, f"{namespace}.numbers", 2) == [b"1", b"2"]


def test_the_chosen_broker_has_transactions(broker: str, namespace: str) -> None:
    topic = f"{namespace}.numbers"
    produce(broker, topic, [])
    producer = Producer({"bootstrap.servers": broker, "transactional.id": f"{namespace}.writer"})
    producer.init_transactions(20)
    for value, end in ((b"aborted", producer.abort_transaction), (b"committed", producer.commit_transaction)):
        producer.begin_transaction()
        producer.produce(topic, value)
        producer.flush(10)
        end(20)
    assert consume(broker, topic, 1) == [b"committed"]


def test_a_restart_keeps_data_cluster_and_port(own_broker: OwnBrokers) -> None:
    kafka = own_broker()
    kafka.start()
    bootstrap, cluster = kafka.bootstrap, cluster_of(kafka.bootstrap)
    produce(bootstrap, "numbers", [b"1"])
    kafka.restart()
    assert (kafka.bootstrap, cluster_of(bootstrap)) == (bootstrap, cluster)
    assert consume(bootstrap, "numbers", 1) == [b"1"]


def test_a_killed_broker_starts_again_with_its_data(own_broker: OwnBrokers) -> None:
    kafka = own_broker()
    kafka.start()
    produce(kafka.bootstrap, "numbers", [b"1"])
    pid = kafka.pid
    kafka.kill()
    assert pid is not None
    assert not psutil.pid_exists(pid)
    assert kafka.pid is None
    kafka.start()
    assert consume(kafka.bootstrap, "numbers", 1) == [b"1"]


def test_a_broker_killed_by_somebody_else_is_noticed(own_broker: OwnBrokers) -> None:
    kafka = own_broker()
    kafka.start()
    assert kafka.pid is not None
    os.kill(kafka.pid, signal.SIGKILL)
    wait_for(lambda: not kafka.running)
    kafka.start()
    assert kafka.running


def test_stop_and_start_may_be_called_twice(own_broker: OwnBrokers) -> None:
    kafka = own_broker()
    kafka.stop()
    kafka.start()
    pid = kafka.pid
    kafka.start()
    assert kafka.pid == pid
    kafka.stop()
    kafka.stop()
    assert not kafka.running


def test_it_listens_on_loopback_only(own_broker: OwnBrokers) -> None:
    kafka = own_broker()
    kafka.start()
    listening = {
        str(connection.laddr.ip)
        for connection in psutil.Process(kafka.pid).net_connections("tcp")
        if connection.status == psutil.CONN_LISTEN
    }
    assert {address.removeprefix("::ffff:") for address in listening} == {"127.0.0.1"}


PARENT = """
import sys, time
from pathlib import Path
from app.engine.embedded_kafka import EmbeddedKafka
kafka = EmbeddedKafka(Path(sys.argv[1]))
kafka.start()
print(kafka.pid, kafka.bootstrap, flush=True)
time.sleep(600)
"""


@pytest.mark.parametrize("signal_number", [signal.SIGKILL, signal.SIGTERM])
def test_it_ends_with_its_parent(tmp_path: Path, own_broker: OwnBrokers, signal_number: signal.Signals) -> None:
    command = [sys.executable, "-c", PARENT, str(tmp_path)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env={**os.environ, "PYTHONPATH": "."}) as parent:
        assert parent.stdout is not None
        pid, bootstrap = parent.stdout.readline().split()
        assert psutil.pid_exists(int(pid))
        parent.send_signal(signal_number)
    # The directory is free as soon as the broker has ended, and it is waited for.
    kafka = own_broker(state_dir=tmp_path)
    kafka.start()
    assert not psutil.pid_exists(int(pid))
    assert kafka.bootstrap == bootstrap


def test_it_ends_with_its_guard(own_broker: OwnBrokers) -> None:
    kafka = own_broker()
    kafka.start()
    pid = kafka.pid
    assert pid is not None
    guard = psutil.Process(pid).parent()
    assert guard is not None
    guard.kill()
    wait_for(lambda: not psutil.pid_exists(pid) or psutil.Process(pid).status() == psutil.STATUS_ZOMBIE)
    wait_for(lambda: not kafka.running)


def test_a_second_user_of_a_directory_is_refused(tmp_path: Path, own_broker: OwnBrokers) -> None:
    own_broker(state_dir=tmp_path).start()
    with pytest.raises(ConfigurationError, match=rf"in use by process {os.getpid()}: stop it, or"):
        own_broker(state_dir=tmp_path).start()


def test_a_taken_port_is_refused(own_broker: OwnBrokers) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        with pytest.raises(ConfigurationError, match=f"port {port} of 127.0.0.1 is taken"):
            own_broker(port=port).start()


def test_another_port_is_used_when_the_last_one_is_taken(own_broker: OwnBrokers) -> None:
    kafka = own_broker()
    kafka.start()
    first = kafka.bootstrap
    kafka.stop()
    with socket.socket() as taken:
        taken.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        taken.bind(("127.0.0.1", int(first.rpartition(":")[2])))
        taken.listen()
        kafka.start()
        assert kafka.bootstrap != first


def test_a_failed_start_quotes_the_log(own_broker: OwnBrokers) -> None:
    kafka = own_broker(config={"num.io.threads": "none"})
    with pytest.raises(BrokerUnreachableError) as caught:
        kafka.start()
    text = str(caught.value)
    assert re.search(r"ended with code \d+; it said: .*num\.io\.threads", text)
    assert str(kafka.log_path) in text
    assert "\n" not in text
    assert not kafka.running


def test_a_broker_that_is_too_slow_is_ended(own_broker: OwnBrokers) -> None:
    kafka = own_broker()
    with pytest.raises(BrokerUnreachableError, match="did not answer in time"):
        kafka.start(timeout=0.1)
    assert not kafka.running


def test_an_unusable_state_directory_is_one_clear_line(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    kafka = EmbeddedKafka(tmp_path / "file")
    with pytest.raises(ConfigurationError, match=r"cannot be used \(Not a directory\): mend that, or"):
        kafka.start()


def test_no_java_and_no_docker_names_the_ways_out(
    own_broker: OwnBrokers, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.delenv("JAVA_HOME", raising=False)
    with pytest.raises(
        ConfigurationError, match=r"install Java 17\+ and Maven, or start Docker, or set HOLDFAST_BOOTS"
    ):
        own_broker().start()


JAAS = "org.apache.kafka.common.security.plain.PlainLoginModule required user_worker='secret';"
SECURED = {
    "listener.security.protocol.map": "CLIENT:SASL_PLAINTEXT,INTERNAL:PLAINTEXT,CONTROLLER:PLAINTEXT",
    "listener.name.client.sasl.enabled.mechanisms": "PLAIN",
    "listener.name.client.plain.sasl.jaas.config": JAAS,
}


def test_the_client_listener_can_be_secured(own_broker: OwnBrokers) -> None:
    kafka = own_broker(config=SECURED)
    kafka.start()
    login = {
        "security.protocol": "SASL_PLAINTEXT",
        "sasl.mechanism": "PLAIN",
        "sasl.username": "worker",
        "sasl.password": "secret",
    }
    produce(kafka.bootstrap, "numbers", [b"1"], login)
    assert kafka.log_path.parent.joinpath("server.properties").stat().st_mode & 0o077 == 0
