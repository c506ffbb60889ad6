"""The engines of the reference job and of the whole path: how each is prepared and started."""

import fcntl
import hashlib
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

HERE: Final = Path(__file__).parent
OURS: Final = "holdfast"
_INSTALL_S: Final = 600

Prepare = Callable[[Path], list[str]]
"""Given the directory for tools, makes what is missing and returns the command; raises :class:`Absent`."""


class Absent(Exception):  # noqa: N818 - it is an answer as good as any.
    """This engine cannot run here; the text says why, in one line."""


@dataclass(frozen=True, slots=True)
class Engine:
    """``key`` selects it; ``most``: records it is given at most, None for all; ``variables`` are added to its own."""

    key: str
    name: str
    prepare: Prepare
    most: int | None = None
    variables: Mapping[str, str] = field(default_factory=dict)

    def records(self, count: int) -> int:
        return count if self.most is None else min(count, self.most)


def _python(*arguments: str) -> Prepare:
    return lambda _tools: [sys.executable, *arguments]


def run(command: list[str], what: str) -> None:
    """Run what fetches or builds a peer; a failure is its absence."""
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=_INSTALL_S, check=False)
    except (OSError, subprocess.TimeoutExpired) as error:
        raise Absent(f"{what}: {error}") from None
    if done.returncode:
        lines = [line.strip() for line in (done.stdout + done.stderr).splitlines() if line.strip()]
        said = next((line for line in lines if "ERROR" in line), lines[-1] if lines else "no word")
        raise Absent(f"{what} failed: {said[:200]}")


@contextmanager
def alone(tools: Path) -> Iterator[None]:
    """Hold the directory of tools, so that two runs do not build the same thing."""
    tools.mkdir(parents=True, exist_ok=True)
    with (tools / "lock").open("a") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


def _streams(main_class: str) -> Prepare:
    def prepare(tools: Path) -> list[str]:
        """Jars by Maven, classes by javac; once for each text of the sources."""
        for program in ("java", "javac", "mvn"):
            if shutil.which(program) is None:
                raise Absent(f"there is no {program} on the search path")
        sources = sorted((HERE / "streams").iterdir())
        digest = hashlib.sha256(b"\0".join(source.read_bytes() for source in sources)).hexdigest()[:12]
        place = tools / f"streams-{digest}"
        with alone(tools):
            if not place.exists():
                new = tools / f"streams-{digest}.new"
                shutil.rmtree(new, ignore_errors=True)
                copy = ["dependency:copy-dependencies", f"-DoutputDirectory={new / 'libs'}"]
                run(["mvn", "-q", "-B", "-f", str(HERE / "streams" / "pom.xml"), *copy], "fetching Kafka Streams")
                java = [str(source) for source in sources if source.suffix == ".java"]
                run(["javac", "-cp", f"{new}/libs/*", "-d", str(new / "classes"), *java], "compiling the Streams peer")
                new.rename(place)
        return ["java", "-Xmx1g", "-cp", f"{place}/classes:{place}/libs/*", main_class]

    return prepare


def _quix(tools: Path) -> list[str]:
    """Quix Streams pins its own librdkafka, so it has an environment of its own."""
    place = tools / "venv-quix"
    with alone(tools):
        if not (place / "ready").exists():
            run([sys.executable, "-m", "venv", "--clear", str(place)], "an environment for Quix Streams")
            run(
                [str(place / "bin" / "python"), "-m", "pip", "install", "-q", "quixstreams>=3.28"],
                "installing quixstreams",
            )
            (place / "ready").touch()
    return [str(place / "bin" / "python"), str(HERE / "quix_job.py")]


def _faust(_tools: Path) -> list[str]:
    return [sys.executable, str(HERE / "faust_job.py")]


STREAMS_MEMORY: Final = Engine(
    "streams-memory", "Kafka Streams, in memory", _streams("Reference"), variables={"PEER_STORE": "memory"}
)
STREAMS_CACHED: Final = Engine(
    "streams-cached", "Kafka Streams, RocksDB with caching", _streams("Reference"), variables={"PEER_STORE": "cached"}
)
STREAMS_SLICE: Final = Engine(
    "streams-slice",
    "Kafka Streams, in memory, without a JSON parse",
    _streams("Reference"),
    variables={"PEER_STORE": "memory", "PEER_PARSE": "slice"},
)

REFERENCE: Final = (
    Engine(OURS, "Holdfast", _python("-m", "tests.benchmarks.reference_worker")),
    STREAMS_MEMORY,
    STREAMS_CACHED,
    STREAMS_SLICE,
    Engine("loop", "bare confluent-kafka loop", _python("-m", "tests.benchmarks.peers.loop", "reference")),
    Engine("quix", "Quix Streams", _quix, most=300_000),
    Engine("faust", "stock Faust, at least once", _faust, most=30_000),
)
"""On the reference job; ours comes first."""

PATH: Final = (
    Engine(OURS, "Holdfast", _python("-m", "app", "worker", "--name", "w1", "--port", "0")),
    Engine("streams-memory", "Kafka Streams, in memory", _streams("WholePath"), variables={"PEER_STORE": "memory"}),
    Engine(
        "streams-cached",
        "Kafka Streams, RocksDB with caching",
        _streams("WholePath"),
        variables={"PEER_STORE": "cached"},
    ),
    Engine("loop", "bare confluent-kafka loop", _python("-m", "tests.benchmarks.peers.loop", "path")),
)
"""On the whole path; ours comes first."""


def wanted(engines: tuple[Engine, ...], keys: tuple[str, ...]) -> list[Engine]:
    """Ours and those that were asked for, or all."""
    return [engine for engine in engines if not keys or engine.key in (OURS, *keys)]


def variables(engine: Engine, bootstrap: str, run: str, state: Path, topics: Mapping[str, str]) -> dict[str, str]:
    """The environment of one run. ``run`` names its group; all that it makes begins with it."""
    state.mkdir(parents=True, exist_ok=True)
    found = {
        "PEER_BOOTSTRAP": bootstrap,
        "PEER_GROUP": run,
        "PEER_STATE": str(state),
        "PEER_COMMIT_MS": "100",
        "PEER_PARSE": "json",
        **{f"PEER_{name}": topic for name, topic in topics.items()},
        **engine.variables,
        "PYTHONUNBUFFERED": "1",
    }
    if engine.key == OURS:
        found |= {"HOLDFAST_BOOTSTRAP": bootstrap, "HOLDFAST_NAMESPACE": run, "HOLDFAST_STATE_DIR": str(state)}
    return found
