"""Start, stop, kill and restart one real broker, and tell when it serves.

The child of this process is the guard, whose child is the broker: :mod:`app.engine.embedded_kafka.guard`.
"""

import json
import logging
import socket
import subprocess
import sys
import time
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from types import MappingProxyType, TracebackType
from typing import IO, Final, Self

from confluent_kafka import KafkaException
from confluent_kafka.admin import AdminClient

from app.engine.embedded_kafka import container
from app.engine.embedded_kafka.distribution import JVM_FLAGS, WAYS_OUT, Distribution, Java, can_run
from app.engine.embedded_kafka.guard import Spec
from app.engine.embedded_kafka.storage import Ports, Storage
from app.errors import BrokerUnreachableError, ConfigurationError

_LOGGER: Final = logging.getLogger(__name__)

_GUARD: Final = Path(__file__).with_name("guard.py")
_STOP_S: Final = 15.0
# Writing the class archive takes a few seconds of one processor, once per machine and Java.
_STOP_WITH_ARCHIVE_S: Final = 60.0
_ATTEMPTS: Final = 3
_TAKEN: Final = ("Address already in use", "port is already allocated")
_NO_CONFIG: Final[Mapping[str, str]] = MappingProxyType({})


class EmbeddedKafka:
    """A Kafka cluster of one node that listens on 127.0.0.1 and ends with this process.

    Data stay in ``state_dir/kafka``: the next start is the same cluster and, if it is free, the same port.

    Args:
        state_dir: made if it is absent; used by one broker at a time.
        port: for clients; None: the last one used here, else a free one.
        heap_mb: the largest heap of Java in MiB.
        config: broker properties that are added to ours or replace them. The listener for clients is
            ``CLIENT``; to secure it, map it to another protocol in ``listener.security.protocol.map``.
        image: for machines with Docker but without Java.
    """

    def __init__(
        self,
        state_dir: Path,
        *,
        port: int | None = None,
        heap_mb: int = 256,
        config: Mapping[str, str] = _NO_CONFIG,
        image: str = container.IMAGE,
    ) -> None:
        self._storage = Storage(state_dir)
        self._wanted_port = port
        self._heap_mb = heap_mb
        self._config = dict(config)
        self._image = image
        self._ports: Ports | None = None
        self._guard: subprocess.Popen[bytes] | None = None
        self._pid: int | None = None
        self._lock: IO[str] | None = None
        self._stop_s = _STOP_S

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.stop()

    def __repr__(self) -> str:
        return f"<EmbeddedKafka {self._storage.root} {'running' if self.running else 'stopped'}>"

    @property
    def bootstrap(self) -> str:
        """The address for clients, ``127.0.0.1:port``; known after the first start."""
        if self._ports is None:
            raise ConfigurationError("the embedded broker has no address yet: start it first")
        return f"127.0.0.1:{self._ports.client}"

    @property
    def pid(self) -> int | None:
        """The process number of the broker (of ``docker run`` in a container); None when it does not run."""
        return self._pid if self.running else None

    @property
    def running(self) -> bool:
        """Whether the broker's process exists."""
        return self._guard is not None and self._guard.poll() is None

    @property
    def log_path(self) -> Path:
        """What the broker printed: warnings and errors of all starts."""
        return self._storage.log

    def start(self, timeout: float = 60) -> None:
        """Start the broker and return when it serves; do nothing if it runs.

        Args:
            timeout: seconds until the broker must answer; fetching the jars (once a machine) does not count.

        Raises:
            ConfigurationError: neither Java nor Docker, an unusable or occupied directory, a taken port.
            BrokerUnreachableError: the broker ended or did not answer in time; quotes its log's last errors.
        """
        if self.running:
            return
        self._clean_up()
        self._lock = self._storage.lock()
        try:
            self._start_on_free_ports(timeout)
        except OSError as error:
            self.kill()
            raise self._storage.unusable(error) from error
        except BaseException:
            self.kill()
            raise

    def stop(self) -> None:
        """End the broker in order, its data flushed; do nothing if it does not run."""
        if self._guard is not None:
            _close(self._guard.stdin)
            try:
                self._guard.wait(self._stop_s + 5)
            except subprocess.TimeoutExpired:
                _LOGGER.warning("the guard of the embedded broker does not end; it is killed")
                self._guard.kill()
        self._clean_up()

    def kill(self) -> None:
        """End the broker as a power cut would (SIGKILL)."""
        if self._guard is not None and self._guard.stdin is not None:
            with suppress(OSError, ValueError):
                self._guard.stdin.write(b"k")
                self._guard.stdin.flush()
        self.stop()

    def restart(self, timeout: float = 60) -> None:
        """Stop the broker, if it runs, and start it on the same port."""
        self.stop()
        self.start(timeout)

    def _clean_up(self) -> None:
        if self._guard is not None:
            self._guard.wait()
            _close(self._guard.stdin)
            _close(self._guard.stdout)
            self._guard = None
        self._pid = None
        if self._lock is not None:
            self._lock.close()
            self._lock = None

    def _start_on_free_ports(self, timeout: float) -> None:
        """Try again with other ports when somebody takes one between our look at it and the broker's."""
        self._storage.rotate_log()
        for attempt in range(1, _ATTEMPTS + 1):
            ports = self._storage.choose_ports(self._wanted_port)
            self._storage.write(ports, self._config)
            since = self._storage.log_size()
            spec = self._spec(ports)
            deadline = time.monotonic() + timeout
            self._launch(spec)
            try:
                self._wait_until_it_serves(ports, deadline)
            except _EndedError as error:
                complaints = self._storage.complaints(since)
                if attempt < _ATTEMPTS and any(text in line for line in complaints for text in _TAKEN):
                    self._end_guard()
                    continue
                raise self._failed(ports, str(error), complaints) from None
            self._ports = ports
            return

    def _spec(self, ports: Ports) -> Spec:
        if can_run():
            return self._java_spec()
        docker = container.engine()
        if docker is None:
            raise ConfigurationError(f"there is no way to run Kafka here: {WAYS_OUT}")
        container.remove_leftover(docker, self._storage.root)
        return Spec(
            command=container.command(docker, self._image, self._storage, ports, self._heap_mb),
            log=str(self._storage.log),
            grace=_STOP_S,
            kill_command=container.kill_command(docker, self._storage.root),
            archive=[],
        )

    def _java_spec(self) -> Spec:
        java = Java.find()
        if java is None:
            raise ConfigurationError(f"there is no way to run Kafka here: {WAYS_OUT}")
        kafka = Distribution.fetch(java)
        self._storage.format(kafka.checkpoint)
        archive, flags = _class_archive(kafka, self._storage)
        self._stop_s = _STOP_WITH_ARCHIVE_S if archive else _STOP_S
        return Spec(
            command=[
                *(str(java.program), "-Xms32m", f"-Xmx{self._heap_mb}m", *JVM_FLAGS, *flags),
                f"-Dlog4j2.configurationFile={self._storage.log4j}",
                *("-cp", kafka.classpath, "kafka.Kafka", str(self._storage.properties)),
            ],
            log=str(self._storage.log),
            grace=self._stop_s,
            kill_command=[],
            archive=archive,
        )

    def _launch(self, spec: Spec) -> None:
        assert self._lock is not None, "the state directory is locked before a broker is started in it"
        self._guard = subprocess.Popen(
            [sys.executable, "-I", "-S", str(_GUARD), json.dumps(spec)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            # The guard holds the lock as well, so that it outlives this process until the broker has ended.
            pass_fds=[self._lock.fileno()],
            # Ctrl-C is for this process.
            start_new_session=True,
        )
        assert self._guard.stdout is not None, "a pipe was asked for"
        word, _, number = self._guard.stdout.readline().decode().partition(" ")
        if word != "pid":
            raise OSError(f"{spec['command'][0]} could not be started")
        self._pid = int(number)

    def _end_guard(self) -> None:
        assert self._guard is not None, "called after a launch only"
        _close(self._guard.stdin)
        self._guard.wait()
        _close(self._guard.stdout)
        self._guard = None

    def _wait_until_it_serves(self, ports: Ports, deadline: float) -> None:
        while not _accepts(ports.internal):
            self._check(deadline)
            time.sleep(0.02)
        admin = AdminClient({"bootstrap.servers": f"127.0.0.1:{ports.internal}", "log_level": 0})
        while True:
            try:
                if admin.list_topics(timeout=0.5).brokers:
                    return
            except KafkaException as error:
                _LOGGER.debug("not yet: %s", error)
            self._check(deadline)

    def _check(self, deadline: float) -> None:
        assert self._guard is not None, "called after a launch only"
        code = self._guard.poll()
        if code is not None:
            raise _EndedError(f"the embedded broker ended with code {code}")
        if time.monotonic() > deadline:
            raise _EndedError("the embedded broker did not answer in time")

    def _failed(self, ports: Ports, what: str, complaints: list[str]) -> BrokerUnreachableError:
        said = " | ".join(complaints) or "nothing"
        return BrokerUnreachableError(
            f"127.0.0.1:{ports.client}",
            f"{what}; it said: {said}",
            advice=f"read {self._storage.log}, or set HOLDFAST_BOOTSTRAP to a Kafka that runs",
        )


class _EndedError(Exception):
    """The broker ended, or is too slow."""


def _close(pipe: IO[bytes] | None) -> None:
    # What was not yet written to a guard that has ended is of no use to anybody.
    if pipe is not None:
        with suppress(OSError):
            pipe.close()


def _accepts(port: int) -> bool:
    with socket.socket() as probe:
        probe.settimeout(1)
        return probe.connect_ex(("127.0.0.1", port)) == 0


def _class_archive(kafka: Distribution, storage: Storage) -> tuple[list[str], list[str]]:
    """Return the archive to be written (two paths or none) and Java's flags to write or to use it."""
    if kafka.archive.exists():
        return [], [f"-XX:SharedArchiveFile={kafka.archive}", "-Xlog:disable", "-Xlog:all=error:stdout"]
    # Each broker writes its own file; the guard gives the last whole one the final name.
    written = kafka.archive.with_name(f"{kafka.archive.name}.{abs(hash(storage.root)):x}.new")
    return [str(written), str(kafka.archive)], [
        f"-XX:ArchiveClassesAtExit={written}",
        "-Xlog:cds=off,cds+dynamic=off",
    ]
