"""What the broker finds on disk: properties, a formatted data directory, and the lock that keeps others out.

Below the state directory::

    kafka/lock                  held while a broker uses the directory; contains its owner's process number
    kafka/port                  the client port, tried first at the next start
    kafka/data/                 Kafka's own
    kafka/server.properties     written anew at each start
    kafka/broker.log            warnings and errors; the part before the last mebibyte is kept as broker.log.1
"""

import base64
import fcntl
import os
import secrets
import shutil
import socket
import time
import uuid
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Final

from app.errors import ConfigurationError

LOG_BYTES_MAX: Final = 1 << 20

# Below the range from which Linux takes the ports of outgoing connections: a client that tries to reach a
# stopped broker would otherwise now and then be given the broker's own port, connect to itself, and keep the
# broker from coming back.
_PORT_MIN: Final = 20_000
_PORT_MAX: Final = 32_000

_LOCK_WAIT_S: Final = 15.0

_DEFAULTS: Final[Mapping[str, str]] = {
    "node.id": "1",
    "process.roles": "broker,controller",
    "controller.listener.names": "CONTROLLER",
    "inter.broker.listener.name": "INTERNAL",
    "listener.security.protocol.map": "CLIENT:PLAINTEXT,INTERNAL:PLAINTEXT,CONTROLLER:PLAINTEXT",
    # One node holds every replica.
    "default.replication.factor": "1",
    "min.insync.replicas": "1",
    "offsets.topic.replication.factor": "1",
    "transaction.state.log.replication.factor": "1",
    "transaction.state.log.min.isr": "1",
    "share.coordinator.state.topic.replication.factor": "1",
    "share.coordinator.state.topic.min.isr": "1",
    # Fewer internal partitions are created sooner.
    "offsets.topic.num.partitions": "4",
    "transaction.state.log.num.partitions": "4",
    "share.coordinator.state.topic.num.partitions": "1",
    # A topic is made by whoever knows its partitions, never by a typing error.
    "auto.create.topics.enable": "false",
    "group.initial.rebalance.delay.ms": "0",
    # Above the largest HOLDFAST_MAX_RECORD_BYTES that makes sense on one machine.
    "message.max.bytes": str(16 << 20),
    "replica.fetch.max.bytes": str(16 << 20),
    # A broker that was killed is still registered when it comes back, and must wait until that has expired.
    "broker.session.timeout.ms": "3000",
    "broker.heartbeat.interval.ms": "500",
    # An orderly stop would first give up the leadership of every partition. Alone there is nobody to take it, and
    # Kafka 4.3 then skips the markers of transactions that were answered as committed: they are torn.
    "controlled.shutdown.enable": "false",
    # Memory: 140 MB instead of 320.
    "num.network.threads": "2",
    "listener.name.internal.num.network.threads": "1",
    "num.io.threads": "2",
    "background.threads": "2",
    "log.cleaner.threads": "1",
    "log.cleaner.dedupe.buffer.size": str(2 << 20),
}

_LOG4J: Final = """<Configuration status="ERROR">
  <Appenders><Console name="out"><PatternLayout pattern="%d{ISO8601} %p %m (%c)%n"/></Console></Appenders>
  <Loggers>
    <Logger name="kafka.server.KafkaRaftServer" level="INFO"/>
    <Root level="WARN"><AppenderRef ref="out"/></Root>
  </Loggers>
</Configuration>
"""


@dataclass(frozen=True, slots=True)
class Ports:
    """Where the broker listens, on 127.0.0.1 only."""

    client: int
    """For everybody; may be secured by the configuration."""
    internal: int
    """For the broker itself and the readiness probe: always plain text."""
    controller: int


class Storage:
    """The ``kafka`` directory below a state directory.

    Args:
        state_dir: made with its parents if it is absent.

    Raises:
        ConfigurationError: the directory cannot be made or written.
    """

    def __init__(self, state_dir: Path) -> None:
        self.root = state_dir.absolute() / "kafka"
        self.data = self.root / "data"
        self.log = self.root / "broker.log"
        self.properties = self.root / "server.properties"
        self.log4j = self.root / "log4j2.xml"

    def lock(self) -> IO[str]:
        """Make the directory and take its lock; closing the file releases it.

        The lock outlives its owner for as long as the owner's broker still stops: that is waited for. A
        living owner is not.

        Raises:
            ConfigurationError: the directory is unusable or somebody else's.
        """
        try:
            self.root.mkdir(parents=True, exist_ok=True)
            file = (self.root / "lock").open("a+")
        except OSError as error:
            raise self.unusable(error) from error
        deadline = time.monotonic() + _LOCK_WAIT_S
        while not _try_lock(file):
            file.seek(0)
            owner = file.read().strip()
            if _is_alive(owner) or time.monotonic() > deadline:
                file.close()
                raise ConfigurationError(
                    f"{self.root} is in use by process {owner or 'unknown'}: "
                    "stop it, or set HOLDFAST_STATE_DIR to another"
                )
            time.sleep(0.05)
        file.truncate(0)
        file.write(f"{os.getpid()}\n")
        file.flush()
        return file

    def unusable(self, error: OSError) -> ConfigurationError:
        """Return the error for a state directory that cannot be read or written."""
        return ConfigurationError(
            f"the state directory {self.root.parent} cannot be used ({error.strerror or error}): "
            "mend that, or set HOLDFAST_STATE_DIR to another"
        )

    def choose_ports(self, wanted: int | None) -> Ports:
        """Return free ports; the client's is the wanted one, or the last one used, or any.

        Raises:
            ConfigurationError: the wanted port is taken.
        """
        if wanted is not None and not _is_free(wanted):
            raise ConfigurationError(f"port {wanted} of 127.0.0.1 is taken: stop who uses it, or choose another port")
        client = wanted or self._last_port() or _free_port(())
        internal = _free_port((client,))
        return Ports(client, internal, _free_port((client, internal)))

    def _last_port(self) -> int | None:
        try:
            port = int((self.root / "port").read_text())
        except (OSError, ValueError):
            return None
        return port if 0 < port < 1 << 16 and _is_free(port) else None

    def write(self, ports: Ports, config: Mapping[str, str]) -> None:
        """Write the broker's configuration: ours, then the caller's over it."""
        listeners = (
            f"CLIENT://127.0.0.1:{ports.client},INTERNAL://127.0.0.1:{ports.internal},"
            f"CONTROLLER://127.0.0.1:{ports.controller}"
        )
        merged = {
            **_DEFAULTS,
            "log.dirs": str(self.data),
            "listeners": listeners,
            "controller.quorum.voters": f"1@127.0.0.1:{ports.controller}",
            **config,
        }
        text = "".join(f"{key}={_escaped(value)}\n" for key, value in merged.items())
        # It may contain passwords.
        descriptor = os.open(self.properties, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
        with os.fdopen(descriptor, "w") as file:
            file.write(text)
        self.log4j.write_text(_LOG4J)
        (self.root / "port").write_text(f"{ports.client}\n")

    def format(self, checkpoint: Path) -> None:
        """Make the data directory of a new cluster, as StorageTool would; a formatted one is left alone.

        Args:
            checkpoint: the first records of the metadata log.
        """
        meta = self.data / "meta.properties"
        if meta.exists():
            return
        self.data.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(checkpoint, self.data / "bootstrap.checkpoint")
        temporary = self.data / "meta.properties.new"
        temporary.write_text(f"version=1\nnode.id=1\ncluster.id={kafka_uuid()}\ndirectory.id={kafka_uuid()}\n")
        # Last and at once: a directory whose formatting was interrupted is formatted again.
        temporary.replace(meta)

    def rotate_log(self) -> None:
        """Put a long log aside, so that the log of many starts stays small."""
        if self.log.exists() and self.log.stat().st_size > LOG_BYTES_MAX:
            self.log.replace(self.log.with_suffix(".log.1"))

    def log_size(self) -> int:
        """Return the length of the log in bytes."""
        return self.log.stat().st_size if self.log.exists() else 0

    def complaints(self, since: int) -> list[str]:
        """Return the last three error lines of the log after byte ``since``, or its last line, shortened."""
        if not self.log.exists():
            return []
        with self.log.open("rb") as file:
            file.seek(since)
            lines = [line.strip() for line in file.read().decode(errors="replace").splitlines() if line.strip()]
        marks = ("ERROR", "FATAL", "Exception", "Error:", "Error ", "error")
        errors = [line for line in lines if not line.startswith("at ") and any(mark in line for mark in marks)]
        return [line[:240] for line in (errors[-3:] or lines[-1:])]


def kafka_uuid() -> str:
    """Return a random id in Kafka's spelling: 22 characters that do not begin with a dash."""
    while True:
        text = base64.urlsafe_b64encode(uuid.uuid4().bytes).decode().rstrip("=")
        if not text.startswith("-"):
            return text


def _escaped(value: str) -> str:
    return value.replace("\\", "\\\\").replace("\n", "\\n")


def _try_lock(file: IO[str]) -> bool:
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def _is_alive(owner: str) -> bool:
    if not owner.isdecimal():
        return False
    try:
        os.kill(int(owner), 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    # A process that ended but was not yet waited for still has its number.
    try:
        state = Path(f"/proc/{owner}/stat").read_text().rpartition(")")[2].split()[0]
    except (OSError, IndexError):
        return True
    return state != "Z"


def _is_free(port: int) -> bool:
    with socket.socket() as probe:
        # As the broker does it: connections of an earlier broker that are still closing are no obstacle.
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("127.0.0.1", port))
        except OSError:
            return False
        return True


def _free_port(taken: tuple[int, ...]) -> int:
    for _ in range(1000):
        port = _PORT_MIN + secrets.randbelow(_PORT_MAX - _PORT_MIN)
        if port not in taken and _is_free(port):
            return port
    raise ConfigurationError(f"no port of 127.0.0.1 between {_PORT_MIN} and {_PORT_MAX} is free: stop what uses them")
