"""Brokers that demand TLS, a password and rights: what works there, and how it fails."""

import base64
import json
import os
import shlex
import subprocess
import sys
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest
from confluent_kafka import Producer, TopicPartition

from app import rights
from app.cli import main
from app.client import Client, ClientSession, ServerSession
from app.client.kafka import make_consumer, options, partitions_of
from app.errors import ConfigurationError
from app.rights import Right
from app.settings import Settings
from app.topics import Names, connect, ensure
from tests.support.broker import OwnBrokers
from tests.support.cluster import Workers, wait_for
from tests.support.secured import Authority, Secured, certified_config, start_secured

pytestmark = pytest.mark.broker

NAMES = Names("shop")
SMALL: dict[str, Any] = {"servers": 2, "routers": 2}
COMMAND_S = 60
WAIT_S = 150


@pytest.fixture(scope="module")
def secured(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Secured]:
    directory = tmp_path_factory.mktemp("secured")
    with ExitStack() as stack:
        yield start_secured(OwnBrokers(directory, stack), directory)


@pytest.fixture(scope="module")
def operator(secured: Secured) -> dict[str, Any]:
    """The login of an operator, who has made the topics."""
    login = secured.user("operator")
    secured.grant("operator", rights.operator(NAMES))
    settings = Settings(bootstrap=secured.kafka.bootstrap, namespace="shop", **SMALL, **login)
    ensure(connect(settings), settings)
    return login


def without_create(names: Names) -> list[Right]:
    return [right for right in rights.worker(names) if right.operations != ("Create",)]


def holdfast(secured: Secured, login: dict[str, Any], *commands: str) -> dict[str, "subprocess.CompletedProcess[str]"]:
    """Run commands with this login, all at once."""
    inherited = {name: value for name, value in os.environ.items() if not name.startswith("HOLDFAST_")}
    given = {"bootstrap": secured.kafka.bootstrap, "namespace": "shop", **SMALL, **login}
    environment = inherited | {f"HOLDFAST_{name.upper()}": str(value) for name, value in given.items()}

    def run(command: str) -> "subprocess.CompletedProcess[str]":
        words = [sys.executable, "-m", "app", *shlex.split(command)]
        return subprocess.run(words, env=environment, capture_output=True, text=True, timeout=COMMAND_S, check=False)

    with ThreadPoolExecutor(len(commands)) as pool:
        return dict(zip(commands, pool.map(run, commands), strict=True))


def user_of(secured: Secured, role: str) -> dict[str, Any]:
    """A login with exactly the rights of a role."""
    secured.grant(role, rights.ROLES[role](NAMES))
    return secured.user(role)


def exchange_works(secured: Secured, client: dict[str, Any], server: dict[str, Any]) -> None:
    """A request goes from one session to the other one, and its response back."""
    bootstrap = secured.kafka.bootstrap

    def twice(body: Any, restart: Any) -> tuple[Any, Any]:
        return {"twice": 2 * body["n"]}, None

    performing = ServerSession(bootstrap, "hpc-1", twice, "shop", **SMALL, **server)
    with ThreadPoolExecutor(1) as pool:
        running = pool.submit(performing.run)
        try:
            with ClientSession(bootstrap, "sweep", "laptop-7", "shop", **SMALL, **client) as session:
                session.submit({"n": 4})
                assert session.receive(WAIT_S).body == {"twice": 8}
                session.acknowledge(1)
                session.finish()
        finally:
            performing.stop()
            running.result(WAIT_S)


def device_works(secured: Secured, login: dict[str, Any]) -> None:
    """A file goes over the topics."""
    settings = Settings(bootstrap=secured.kafka.bootstrap, namespace="shop", **login)
    consumer = make_consumer(settings)
    try:
        where = range(partitions_of(consumer, NAMES.transfer_replies, settings))
        consumer.assign([TopicPartition(NAMES.transfer_replies, number, 0) for number in where])
        producer = Producer(options(settings, partitioner="murmur2_random"))
        for part in (
            {"op": "begin", "request": "b", "name": "reading-1", "size": 5},
            {"op": "data", "request": "d", "offset": 0, "data": base64.b64encode(b"12345").decode()},
        ):
            producer.produce(NAMES.transfers, json.dumps(part).encode(), b"dev-7")
        assert producer.flush(WAIT_S) == 0

        def acknowledged() -> bool:
            message = consumer.poll(1)
            if message is None:
                return False
            assert message.error() is None, str(message.error())
            reply = json.loads(message.value() or b"")
            return (reply["request"], reply["reply"]) == ("d", "ack") and reply["size"] == 5

        wait_for(acknowledged, WAIT_S, "the device is answered")
    finally:
        consumer.close()


def test_everybody_works_with_the_rights_that_are_listed(
    secured: Secured, operator: dict[str, Any], tmp_path: Path
) -> None:
    secured.grant("worker", without_create(NAMES))
    users = {role: user_of(secured, role) for role in ("producer", "exchange-client", "exchange-server", "device")}
    assert {"worker", "operator", *users} == set(rights.ROLES)
    with Workers(secured.kafka.bootstrap, "shop", tmp_path, **SMALL, **secured.user("worker")) as workers:
        workers.start_ready("w1")
        with Client(secured.kafka.bootstrap, "shop", **users["producer"]) as client:
            task = client.send("acme", "cart-7", "cart.add", {"count": 2})
            assert client.result(task, timeout=30).result == {"items": 2}
        exchange_works(secured, users["exchange-client"], users["exchange-server"])
        device_works(secured, users["device"])
        done = holdfast(
            secured,
            operator,
            "status",
            "topics check",
            """send acme cart-7 cart.add '{"count": 1}' --wait""",
            "dead-letters list",
            "tenant migrate acme --to 1 --dry-run --wait",
        )
    for command, process in done.items():
        assert process.returncode == 0, f"{command}: {process.stdout}{process.stderr}"
        assert "secret of" not in process.stdout + process.stderr


Attempt = Callable[[str, dict[str, Any]], object]


def opens_exchange(bootstrap: str, login: dict[str, Any]) -> object:
    return ClientSession(bootstrap, "poor", "laptop-7", "shop", timeout=10, **SMALL, **login)


def serves_exchange(bootstrap: str, login: dict[str, Any]) -> object:
    session = ServerSession(bootstrap, "poor", lambda body, _: (body, None), "shop", **SMALL, **login)
    session.run()
    return session


def sends(bootstrap: str, login: dict[str, Any]) -> object:
    with Client(bootstrap, "shop", **SMALL, **login) as client:
        return client.send("acme", "s", "echo", {})


def reads(bootstrap: str, login: dict[str, Any]) -> object:
    with Client(bootstrap, "shop", **SMALL, **login) as client:
        return client.result("no-such-task", timeout=WAIT_S)


@pytest.mark.parametrize(
    ("role", "missing", "attempt"),
    [
        ("producer", "topic shop.tasks", sends),
        ("producer", "topic shop.results", reads),
        ("exchange-client", "topic shop.requests", opens_exchange),
        ("exchange-client", "topic shop.replies", opens_exchange),
        ("exchange-server", "topic shop.responses", serves_exchange),
        ("exchange-server", "topic shop.assignments", serves_exchange),
    ],
)
def test_a_client_that_lacks_a_right_is_told_where(
    secured: Secured, operator: dict[str, Any], role: str, missing: str, attempt: Attempt
) -> None:
    name = f"{role}-without-{missing.split('.')[1]}"
    secured.grant(name, [right for right in rights.ROLES[role](NAMES) if not str(right).endswith(missing)])
    with pytest.raises(ConfigurationError, match=missing.split()[1]) as refused:
        attempt(secured.kafka.bootstrap, secured.user(name))
    assert "\n" not in str(refused.value)


@pytest.mark.parametrize(
    ("missing", "said"),
    [
        ("topic shop.work", "this login lacks the right Delete on the topic shop.work"),
        ("group shop.*", "shop.workers"),
        ("transactional-id shop.*", "the brokers do not let this worker use the transactional id shop."),
    ],
)
def test_a_worker_that_lacks_a_right_says_which(
    secured: Secured, operator: dict[str, Any], tmp_path: Path, missing: str, said: str
) -> None:
    name = f"poor-{missing.split()[0]}"
    secured.grant(name, [right for right in without_create(NAMES) if not str(right).endswith(missing)])
    with Workers(secured.kafka.bootstrap, "shop", tmp_path, **SMALL, **secured.user(name)) as workers:
        worker = workers.start("poor")
        assert worker.wait_exit(60) == 2
        [line] = [line for line in worker.text().splitlines() if "ERROR" in line]
        assert said in line
        assert "`holdfast topics rights worker` lists" in line


def test_a_right_that_is_taken_away_ends_the_worker_with_a_line(
    secured: Secured, operator: dict[str, Any], tmp_path: Path
) -> None:
    secured.grant("fired", without_create(NAMES))
    with Workers(secured.kafka.bootstrap, "shop", tmp_path, **SMALL, **secured.user("fired")) as workers:
        [worker] = workers.start_ready("w2")
        [reading] = [right for right in without_create(NAMES) if str(right).startswith("Read, Write")]
        secured.revoke("fired", reading)
        assert worker.wait_exit(60) == 2
        assert "the brokers do not let this worker read shop." in worker.text()


WRONG: dict[str, tuple[Callable[[Path], dict[str, str]], str, tuple[str, ...]]] = {
    "password": (
        lambda path: {"sasl_password": "guessed"},
        "refuse the login (sasl_ssl://",
        ("send a s echo", "doctor"),
    ),
    "authority": (
        lambda path: {"ssl_ca_location": str(Authority("somebody else").write(path / "ca.pem"))},
        "certificate verify failed",
        ("status", "worker --name w3"),
    ),
    "file": (lambda path: {"ssl_ca_location": "no-such.pem"}, "ssl.ca.location", ("worker --name w3",)),
}


@pytest.mark.parametrize("name", WRONG)
def test_a_wrong_login_is_one_clear_line(secured: Secured, operator: dict[str, Any], tmp_path: Path, name: str) -> None:
    change, said, commands = WRONG[name]
    login = {**operator, **change(tmp_path)}
    for command, process in holdfast(secured, login, *commands).items():
        out, error = process.stdout, process.stderr
        assert "guessed" not in out + error
        if command == "doctor":
            assert process.returncode == 1
            assert said in out
            continue
        assert process.returncode == 2, f"{command}: {out}{error}"
        [line] = [line for line in error.splitlines() if "INFO" not in line]
        assert said in line


def test_the_mechanism_plain_works_too(secured: Secured) -> None:
    login: dict[str, Any] = {"security_protocol": "SASL_SSL", "ssl_ca_location": str(secured.ca)}
    login |= {"sasl_mechanism": "PLAIN", "sasl_username": "plain", "sasl_password": "plain secret"}
    settings = Settings(bootstrap=secured.kafka.bootstrap, **login)
    assert connect(settings).list_topics(timeout=10).brokers


def test_certificates_are_a_login(own_broker: OwnBrokers, tmp_path: Path) -> None:
    authority = Authority("holdfast test")
    kafka = own_broker(config=certified_config(authority))
    kafka.start()
    chain, key = authority.issue("worker", "secret of the key")
    (tmp_path / "worker.pem").write_text(chain)
    (tmp_path / "worker.key").write_text(key)
    trust: dict[str, Any] = {"security_protocol": "SSL", "ssl_ca_location": str(authority.write(tmp_path / "ca.pem"))}
    own: dict[str, Any] = {
        "ssl_certificate_location": str(tmp_path / "worker.pem"),
        "ssl_key_location": str(tmp_path / "worker.key"),
        "ssl_key_password": "secret of the key",
    }
    with Workers(kafka.bootstrap, "shop", tmp_path / "workers", **SMALL, **trust, **own) as workers:
        workers.topics()
        workers.start_ready("w1")
        with Client(kafka.bootstrap, "shop", **trust, **own) as client:
            task = client.send("acme", "cart-7", "cart.add", {"count": 2})
            assert client.result(task, timeout=30).result == {"items": 2}
    with pytest.raises(ConfigurationError, match="no secure connection"):
        Client(kafka.bootstrap, "shop", **trust)


def test_a_plain_client_is_told_of_the_protocol(
    secured: Secured, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("HOLDFAST_SECURITY_PROTOCOL", raising=False)
    assert main(["status", "--bootstrap", secured.kafka.bootstrap]) == 3
    assert "check HOLDFAST_SECURITY_PROTOCOL" in capsys.readouterr().err
