"""The checks of `holdfast doctor`: each looks at one thing and says how to mend it."""

import os
import platform
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, Final

from confluent_kafka import KafkaException, libversion
from confluent_kafka.admin import AdminClient
from confluent_kafka.admin._config import ConfigResource

from app import guard, topics
from app.client.cluster import find_workers
from app.client.kafka import CONNECT_TIMEOUT_S, explain
from app.engine.embedded_kafka.distribution import WAYS_OUT, Java, can_run
from app.errors import HoldfastError
from app.handlers import load as load_handlers
from app.settings import Settings

PYTHON_MIN: Final = (3, 11)
_DOCKER_TIMEOUT_S: Final = 10

# Options of brokers and a release that had them first, newest first: nothing else tells their version.
_VERSION_MARKS: Final = (
    ("group.streams.heartbeat.interval.ms", "4.0"),
    ("log.message.timestamp.before.max.ms", "3.6"),
)
_TOO_OLD: Final = "older than 3.6"


@dataclass(frozen=True, slots=True)
class Finding:
    """What one check found. ``advice`` is empty when all is well, or when the message says what to do."""

    check: str
    ok: bool
    message: str
    advice: str = ""

    def as_json(self) -> dict[str, Any]:
        """As `--json` prints it."""
        return {"check": self.check, "ok": self.ok, "message": self.message, "advice": self.advice}


def of_the_machine() -> Iterator[Finding]:
    """Checks that need no settings."""
    yield _python()
    yield _packages()


def of_the_cluster(settings: Settings) -> Iterator[Finding]:
    """Checks of what the settings name."""
    yield _state_directory(settings)
    yield _handlers(settings)
    yield _embedded(settings)
    if not settings.bootstrap:
        yield Finding("broker", True, "no HOLDFAST_BOOTSTRAP: `up` and `demo` start a broker, other commands need it")
        return
    broker = _broker(settings)
    yield broker
    if broker.ok:
        yield from _topics(settings)


def _python() -> Finding:
    version = platform.python_version()
    if sys.version_info < PYTHON_MIN:
        return Finding("python", False, version, f"use Python {'.'.join(map(str, PYTHON_MIN))} or newer")
    return Finding("python", True, f"{version}, librdkafka {libversion()[0]}")


def _packages() -> Finding:
    problems = guard.problems()
    if problems:
        return Finding("packages", False, "; ".join(problems))
    return Finding("packages", True, f"{', '.join(guard.OURS)} are Holdfast's own")


def _state_directory(settings: Settings) -> Finding:
    directory = settings.state_dir.absolute()
    # It is made when it is needed: here is asked only whether it could be.
    there = next(path for path in (directory, *directory.parents) if path.exists())
    if not there.is_dir() or not os.access(there, os.W_OK | os.X_OK):
        what = "is no directory" if not there.is_dir() else "cannot be written"
        return Finding("state directory", False, f"{there} {what}", "mend that, or set HOLDFAST_STATE_DIR to another")
    return Finding("state directory", True, f"{directory}, {shutil.disk_usage(there).free / 2**30:.1f} GiB free")


def _handlers(settings: Settings) -> Finding:
    names = ", ".join(settings.handlers)
    try:
        load_handlers(settings.handlers)
    except HoldfastError as error:
        return Finding("handlers", False, str(error), "mend the module, or set HOLDFAST_HANDLERS")
    return Finding("handlers", True, f"{names} can be loaded")


def _embedded(settings: Settings) -> Finding:
    """A way to run a broker; it is needed only where no other is named."""
    java = Java.find()
    if java is not None and can_run():
        maven = "Maven" if shutil.which("mvn") else "Kafka's jars already here"
        return Finding("embedded broker", True, f"Java {java.version} and {maven}")
    if _docker_answers():
        return Finding("embedded broker", True, "Docker")
    found = f"Java {java.version} without Maven" if java else "neither Java 17+ nor a Docker engine"
    if settings.bootstrap:
        return Finding("embedded broker", True, f"{found}; not needed with HOLDFAST_BOOTSTRAP")
    return Finding("embedded broker", False, found, WAYS_OUT)


def _docker_answers() -> bool:
    try:
        done = subprocess.run(["docker", "info"], capture_output=True, timeout=_DOCKER_TIMEOUT_S, check=False)
    except (OSError, subprocess.TimeoutExpired):
        return False
    return done.returncode == 0


def _broker(settings: Settings) -> Finding:
    try:
        admin = topics.connect(settings)
        brokers = _asked(settings, lambda: admin.list_topics(timeout=CONNECT_TIMEOUT_S)).brokers
    except HoldfastError as error:
        return Finding("broker", False, str(error), "start it, or mend HOLDFAST_BOOTSTRAP and the security settings")
    version = _version(admin, str(min(brokers)))
    cluster = admin.cluster_id(CONNECT_TIMEOUT_S)
    message = f"{len(brokers)} at {settings.bootstrap}, Kafka {version}, cluster {cluster}"
    if version == _TOO_OLD:
        return Finding("broker", False, message, "upgrade the brokers to 3.6 or newer")
    return Finding("broker", True, message)


def _version(admin: AdminClient, broker: str) -> str:
    resource = ConfigResource(ConfigResource.Type.BROKER, broker)
    try:
        [future] = admin.describe_configs([resource], request_timeout=CONNECT_TIMEOUT_S).values()
        options = future.result(2 * CONNECT_TIMEOUT_S)
    except (KafkaException, TimeoutError):
        return "of a version that they do not tell"
    return next((f"{release} or newer" for mark, release in _VERSION_MARKS if mark in options), _TOO_OLD)


def _topics(settings: Settings) -> Iterator[Finding]:
    try:
        problems = topics.check(topics.connect(settings), settings)
    except HoldfastError as error:
        problems = [str(error)]
    count = len(topics.specs(settings))
    if len(problems) == count and all("does not exist" in problem for problem in problems):
        problems = [f"the namespace {settings.namespace} has no topics: run `holdfast topics create`"]
    for problem in problems:
        yield Finding("topics", False, problem)
    if not problems:
        yield Finding("topics", True, f"{count} of the namespace {settings.namespace} are as they should be")
    try:
        names = [worker.name for worker in find_workers(settings)]
    except HoldfastError as error:
        yield Finding("workers", False, str(error))
    else:
        yield Finding("workers", True, ", ".join(names) or "none is running")


def _asked(settings: Settings, question: Callable[[], Any]) -> Any:
    try:
        return question()
    except KafkaException as error:
        raise explain(error, settings, "answer") from error
