"""A real Kafka for the tests: one that runs already, the official image through testcontainers, or embedded.

``HOLDFAST_TEST_BOOTSTRAP``
    the address of a Kafka that runs; the first choice if it is set
``HOLDFAST_TEST_BROKER``
    ``external``, ``testcontainers`` or ``embedded``: this one or a failure
``HOLDFAST_TEST_KAFKA_IMAGE``
    what testcontainers starts; an image of the cp-kafka family, version 7 or later
"""

import os
import subprocess
import tempfile
import time
import uuid
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, ExitStack, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Literal, get_args

from confluent_kafka import KafkaException
from confluent_kafka.admin import AdminClient

from app.engine.embedded_kafka import EmbeddedKafka

Kind = Literal["external", "testcontainers", "embedded"]

_IMAGE: Final = "confluentinc/cp-kafka:7.6.0"
_ENGINE_ANSWER_S: Final = 5
_PULL_S: Final = 120
# An unreachable registry is noticed sooner than a slow one has delivered.
_MANIFEST_S: Final = 10
_READY_S: Final = 60.0


@dataclass(frozen=True, slots=True)
class Choice:
    """Which broker the session uses, and why."""

    kind: Kind
    detail: str


class NoBrokerError(Exception):
    """The broker that was asked for is not to be had."""


def choose() -> Choice:
    """Decide for this session.

    Raises:
        NoBrokerError: ``HOLDFAST_TEST_BROKER`` names one that is not to be had.
    """
    forced = os.environ.get("HOLDFAST_TEST_BROKER", "")
    if forced not in ("", *get_args(Kind)):
        raise NoBrokerError(f"HOLDFAST_TEST_BROKER={forced}: use external, testcontainers or embedded")
    bootstrap = os.environ.get("HOLDFAST_TEST_BOOTSTRAP", "")
    if forced == "external" or (not forced and bootstrap):
        if not bootstrap:
            raise NoBrokerError("HOLDFAST_TEST_BROKER=external needs HOLDFAST_TEST_BOOTSTRAP")
        return Choice("external", bootstrap)
    if forced != "embedded":
        image = os.environ.get("HOLDFAST_TEST_KAFKA_IMAGE", _IMAGE)
        missing = _why_no_container(image)
        if missing is None:
            return Choice("testcontainers", image)
        if forced:
            raise NoBrokerError(f"HOLDFAST_TEST_BROKER=testcontainers: {missing}")
        return Choice("embedded", missing)
    return Choice("embedded", "asked for")


def _docker(*arguments: str, timeout: float) -> bool:
    try:
        done = subprocess.run(["docker", *arguments], capture_output=True, timeout=timeout, check=False)
    except (OSError, subprocess.TimeoutExpired):
        return False
    return done.returncode == 0


def _why_no_container(image: str) -> str | None:
    if not _docker("info", timeout=_ENGINE_ANSWER_S):
        return "no Docker engine answers"
    if _docker("image", "inspect", image, timeout=_ENGINE_ANSWER_S):
        return None
    if _docker("manifest", "inspect", image, timeout=_MANIFEST_S) and _docker("pull", image, timeout=_PULL_S):
        return None
    return f"the image {image} is neither here nor to be pulled"


@contextmanager
def running(choice: Choice) -> Iterator[str]:
    """Start the chosen broker and yield its bootstrap address; it serves."""
    with _STARTERS[choice.kind](choice) as bootstrap:
        wait_until_ready(bootstrap)
        yield bootstrap


@contextmanager
def _external(choice: Choice) -> Iterator[str]:
    yield choice.detail


@contextmanager
def _container(choice: Choice) -> Iterator[str]:
    # The cleaning container of testcontainers is one image more to pull; the context manager cleans as well.
    os.environ.setdefault("TESTCONTAINERS_RYUK_DISABLED", "true")
    from testcontainers.community.kafka import KafkaContainer

    container = KafkaContainer(choice.detail).with_kraft()
    for key, value in {
        "KAFKA_TRANSACTION_STATE_LOG_REPLICATION_FACTOR": "1",
        "KAFKA_TRANSACTION_STATE_LOG_MIN_ISR": "1",
        "KAFKA_TRANSACTION_STATE_LOG_NUM_PARTITIONS": "4",
        "KAFKA_AUTO_CREATE_TOPICS_ENABLE": "false",
        "KAFKA_MESSAGE_MAX_BYTES": str(16 << 20),
        "KAFKA_REPLICA_FETCH_MAX_BYTES": str(16 << 20),
    }.items():
        container.with_env(key, value)
    with container:
        yield str(container.get_bootstrap_server())


@contextmanager
def _embedded(_choice: Choice) -> Iterator[str]:
    prefix = "holdfast-test-"
    with tempfile.TemporaryDirectory(prefix=prefix) as directory, EmbeddedKafka(Path(directory)) as kafka:
        yield kafka.bootstrap


_STARTERS: Final[Mapping[Kind, Callable[[Choice], AbstractContextManager[str]]]] = {
    "external": _external,
    "testcontainers": _container,
    "embedded": _embedded,
}


def wait_until_ready(bootstrap: str, timeout: float = _READY_S) -> None:
    """Return when the broker answers with its metadata.

    Raises:
        NoBrokerError: it did not within ``timeout`` seconds.
    """
    admin = AdminClient({"bootstrap.servers": bootstrap, "log_level": 0})
    deadline = time.monotonic() + timeout
    while time.monotonic() < deadline:
        with suppress(KafkaException):
            if admin.list_topics(timeout=1).brokers:
                return
    raise NoBrokerError(f"the broker at {bootstrap} did not answer within {timeout:g} s")


def new_namespace() -> str:
    """Return a namespace that no other test has."""
    return f"t-{uuid.uuid4().hex[:12]}"


def clear(bootstrap: str, namespace: str) -> None:
    """Delete every topic and every empty group whose name starts with the namespace and a dot."""
    admin = AdminClient({"bootstrap.servers": bootstrap, "log_level": 0})
    prefix = f"{namespace}."
    topics = [name for name in admin.list_topics(timeout=10).topics if name.startswith(prefix)]
    listing = admin.list_consumer_groups(request_timeout=10).result()
    groups = [group.group_id for group in listing.valid if group.group_id.startswith(prefix)]
    deleted = [
        *(admin.delete_topics(topics, operation_timeout=10).values() if topics else ()),
        *(admin.delete_consumer_groups(groups, request_timeout=10).values() if groups else ()),
    ]
    for future in deleted:
        # A group that a killed worker left is not empty until its session ends; it hurts nobody.
        with suppress(KafkaException):
            future.result()


class OwnBrokers:
    """Embedded brokers for one test that restarts, kills or secures them."""

    def __init__(self, directory: Path, stack: ExitStack) -> None:
        self._directory = directory
        self._stack = stack
        self._count = 0

    def __call__(
        self,
        *,
        state_dir: Path | None = None,
        port: int | None = None,
        config: Mapping[str, str] | None = None,
    ) -> EmbeddedKafka:
        """Return a broker that is not started; it is stopped at the end of the test."""
        self._count += 1
        kafka = EmbeddedKafka(state_dir or self._directory / f"broker-{self._count}", port=port, config=config or {})
        self._stack.callback(kafka.stop)
        return kafka
