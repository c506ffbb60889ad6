"""The broker in a container, for machines with a Docker engine but without Java.

The data lie in a volume named after the state directory, because the image runs as a user of its own, who
could not write into ours. ``docker volume rm`` with the name that ``docker volume ls`` shows removes them.
"""

import hashlib
import shutil
import subprocess
from collections.abc import Mapping
from pathlib import Path
from typing import Final

from app.engine.embedded_kafka.storage import Ports, Storage

IMAGE: Final = "apache/kafka:4.3.0"

_ANSWER_S: Final = 5
_DATA: Final = "/var/lib/kafka/data"

# Formatting ignores a volume that is formatted already, so that the id of the first start stays.
_CLUSTER: Final = "AAAAAAAAAAAAAAAAAAAAAQ"


def engine() -> str | None:
    """Return the Docker program if its engine answers."""
    program = shutil.which("docker")
    if program is None:
        return None
    try:
        answer = subprocess.run([program, "info"], capture_output=True, timeout=_ANSWER_S, check=False)
    except (OSError, subprocess.TimeoutExpired):
        return None
    return program if answer.returncode == 0 else None


def name_of(root: Path) -> str:
    """Return the name of container and volume of one state directory."""
    return f"holdfast-{hashlib.sha256(str(root).encode()).hexdigest()[:12]}"


def command(docker: str, image: str, storage: Storage, ports: Ports, heap_mb: int) -> list[str]:
    """Return the program and arguments that run the broker in the foreground.

    Args:
        docker: the Docker program.
        image: one that formats its data directory and takes its configuration from ``KAFKA_*`` variables.
        storage: whose ``server.properties`` are written.
        ports: client and internal are published on 127.0.0.1; inside, the broker listens on every address.
        heap_mb: the largest heap of Java in MiB.
    """
    name = name_of(storage.root)
    environment = {"CLUSTER_ID": _CLUSTER, "KAFKA_HEAP_OPTS": f"-Xms32m -Xmx{heap_mb}m"}
    for key, value in _in_container(storage, ports).items():
        environment[variable(key)] = value
    return [
        *(docker, "run", "--rm", "--init", "--name", name, "--volume", f"{name}:{_DATA}"),
        *(part for port in (ports.client, ports.internal) for part in ("--publish", f"127.0.0.1:{port}:{port}")),
        *(part for key, value in environment.items() for part in ("--env", f"{key}={value}")),
        image,
    ]


def kill_command(docker: str, root: Path) -> list[str]:
    """Return what ends the container where a signal to the ``docker run`` program would not."""
    return [docker, "kill", name_of(root)]


def remove_leftover(docker: str, root: Path) -> None:
    """Remove the container that an earlier, killed process left running."""
    subprocess.run([docker, "rm", "--force", name_of(root)], capture_output=True, check=False)


def variable(key: str) -> str:
    """Return the environment variable that the image turns into the broker's property ``key``."""
    return "KAFKA_" + key.replace("-", "___").replace("_", "__").replace(".", "_").upper()


def _in_container(storage: Storage, ports: Ports) -> Mapping[str, str]:
    lines = (line.partition("=") for line in storage.properties.read_text().splitlines())
    properties = {key: value for key, _, value in lines}
    advertised = f"CLIENT://127.0.0.1:{ports.client},INTERNAL://127.0.0.1:{ports.internal}"
    return {
        **properties,
        "log.dirs": _DATA,
        "listeners": properties["listeners"].replace("127.0.0.1", "0.0.0.0"),  # noqa: S104 - published on loopback
        "advertised.listeners": advertised,
    }
