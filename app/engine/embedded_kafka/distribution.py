"""Java, and Kafka's jars in the user's cache directory.

One directory per text of ``deploy/kafka/pom.xml``, below ``$XDG_CACHE_HOME`` or ``~/.cache``::

    holdfast/kafka-HASH/
        libs/                   the jars, as Maven resolved them
        bootstrap.checkpoint    the metadata log's first records, written by Kafka's StorageTool;
                                the same for every cluster
        broker-JAVA.jsa         class archive (AppCDS), written at the first orderly stop of a broker;
                                halves the start time

The directory is built beside its place and renamed, so it is either whole or absent, whoever is interrupted.
"""

import fcntl
import hashlib
import os
import re
import shutil
import subprocess
import sysconfig
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from app.errors import ConfigurationError

JAVA_MIN: Final = 17
WAYS_OUT: Final = "install Java 17+ and Maven, or start Docker, or set HOLDFAST_BOOTSTRAP to a Kafka that runs"

# The serial collector and the first compiler alone start soonest and keep memory small.
JVM_FLAGS: Final = ("-XX:+UseSerialGC", "-XX:TieredStopAtLevel=1")

_FETCH_TIMEOUT_S: Final = 600
_FORMAT_TIMEOUT_S: Final = 60


@dataclass(frozen=True, slots=True)
class Java:
    """A Java of at least :data:`JAVA_MIN`."""

    program: Path
    version: str

    @classmethod
    def find(cls) -> "Java | None":
        """Return the Java of ``JAVA_HOME`` or of the search path; None if there is none or it is too old."""
        home = os.environ.get("JAVA_HOME")
        found = shutil.which("java", path=str(Path(home) / "bin")) if home else None
        found = found or shutil.which("java")
        if found is None:
            return None
        program = Path(found)
        version = _released_version(program) or _printed_version(program)
        major = re.match(r"\d+", version)
        return cls(program, version) if major and int(major[0]) >= JAVA_MIN else None


def _released_version(program: Path) -> str:
    # Reading the file that comes with every Java saves the start of a virtual machine.
    try:
        text = (program.resolve().parent.parent / "release").read_text()
    except OSError:
        return ""
    match = re.search(r'^JAVA_VERSION="([^"]+)"', text, re.MULTILINE)
    return match[1] if match else ""


def _printed_version(program: Path) -> str:
    try:
        answer = subprocess.run([program, "-version"], capture_output=True, text=True, timeout=30, check=False)
    except (OSError, subprocess.TimeoutExpired):
        return ""
    match = re.search(r'version "([^"]+)"', answer.stderr)
    return match[1] if match else ""


@dataclass(frozen=True, slots=True)
class Distribution:
    """Kafka's jars, ready to run."""

    root: Path
    java: Java

    @property
    def classpath(self) -> str:
        """The class path; its order is part of what the class archive checks."""
        return os.pathsep.join(str(jar) for jar in sorted((self.root / "libs").glob("*.jar")))

    @property
    def checkpoint(self) -> Path:
        """The first records of every metadata log."""
        return self.root / "bootstrap.checkpoint"

    @property
    def archive(self) -> Path:
        """The class archive of this Java; it may not exist yet."""
        version = re.sub(r"[^0-9A-Za-z.]", "_", self.java.version)
        return self.root / f"broker-{version}.jsa"

    @classmethod
    def fetch(cls, java: Java) -> "Distribution":
        """Return the distribution of the pinned versions, fetched by Maven unless it is there.

        Raises:
            ConfigurationError: no Maven, no network, or an unusable cache directory.
        """
        pom = _pom()
        name = f"kafka-{hashlib.sha256(pom.read_bytes()).hexdigest()[:12]}"
        cache = _cache_directory()
        root = cache / name
        if not root.is_dir():
            try:
                cache.mkdir(parents=True, exist_ok=True)
                with _locked(cache / f"{name}.lock"):
                    if not root.is_dir():
                        _build(pom, cache, root, java)
            except OSError as error:
                raise ConfigurationError(
                    f"the cache directory {cache} cannot be used ({error.strerror}): "
                    "mend that, or set XDG_CACHE_HOME to another"
                ) from error
        return cls(root, java)


def can_run() -> bool:
    """Whether there is a Java and either the jars or a Maven to fetch them with."""
    if Java.find() is None:
        return False
    root = _cache_directory() / f"kafka-{hashlib.sha256(_pom().read_bytes()).hexdigest()[:12]}"
    return root.is_dir() or shutil.which("mvn") is not None


def _pom() -> Path:
    checkout = Path(__file__).resolve().parents[3] / "deploy" / "kafka" / "pom.xml"
    installed = Path(sysconfig.get_path("data")) / "share" / "holdfast" / "kafka" / "pom.xml"
    for path in (checkout, installed):
        if path.is_file():
            return path
    raise ConfigurationError(f"{installed} is missing: install Holdfast again")


def _cache_directory() -> Path:
    base = os.environ.get("XDG_CACHE_HOME")
    return (Path(base) if base else Path.home() / ".cache") / "holdfast"


@contextmanager
def _locked(path: Path) -> Iterator[None]:
    with path.open("a") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


def _build(pom: Path, cache: Path, root: Path, java: Java) -> None:
    maven = shutil.which("mvn")
    if maven is None:
        raise ConfigurationError(f"Kafka's jars are not here yet and there is no Maven to fetch them: {WAYS_OUT}")
    with tempfile.TemporaryDirectory(prefix="kafka-", dir=cache) as temporary:
        building = Path(temporary) / "new"
        libs = building / "libs"
        libs.mkdir(parents=True)
        copy = f"-DoutputDirectory={libs}"
        _run([maven, "-q", "-B", "-f", str(pom), "dependency:copy-dependencies", copy], _FETCH_TIMEOUT_S)
        shutil.copyfile(_format(Distribution(building, java), Path(temporary)), building / "bootstrap.checkpoint")
        building.rename(root)


def _format(kafka: Distribution, directory: Path) -> Path:
    """Let Kafka format a directory once; its checkpoint serves all later ones and saves a start of Java."""
    data = directory / "data"
    properties = directory / "format.properties"
    properties.write_text(
        f"node.id=1\nprocess.roles=broker,controller\nlog.dirs={data}\ncontroller.listener.names=CONTROLLER\n"
        "controller.quorum.voters=1@127.0.0.1:1\nlisteners=PLAINTEXT://127.0.0.1:2,CONTROLLER://127.0.0.1:1\n"
    )
    command = [str(kafka.java.program), *JVM_FLAGS, "-cp", kafka.classpath, "kafka.tools.StorageTool"]
    cluster = "AAAAAAAAAAAAAAAAAAAAAQ"
    _run([*command, "format", "--cluster-id", cluster, "--config", str(properties)], _FORMAT_TIMEOUT_S)
    return data / "bootstrap.checkpoint"


def _run(command: Sequence[str], timeout_s: float) -> None:
    program = Path(command[0]).name
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=timeout_s, check=False)
    except subprocess.TimeoutExpired as error:
        raise ConfigurationError(f"{program} did not end within {timeout_s:g} s: try again, or {WAYS_OUT}") from error
    if done.returncode != 0:
        lines = [line.strip() for line in (done.stdout + done.stderr).splitlines() if line.strip()]
        said = next(
            (line for line in lines if "ERROR" in line or "Exception" in line),
            lines[-1] if lines else "nothing",
        )
        raise ConfigurationError(f"{program} failed while fetching Kafka ({said[:300]}): try again, or {WAYS_OUT}")
