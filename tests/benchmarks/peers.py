"""Other engines on the same broker, where the directory named by ``HOLDFAST_PEERS`` holds their jobs."""

import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any, Final

LIMIT_S: Final = 400


def reference(bootstrap: str, directory: Path, count: int) -> list[dict[str, Any]]:
    """Run the peers that can run here on the reference job."""
    place = os.environ.get("HOLDFAST_PEERS", "")
    if not place:
        return []
    environment = _environment(bootstrap, directory)
    wanted = [("bare confluent-kafka loop, exactly once", "ck", "eos-f10-q20000-batch-noparse-cl")]
    if shutil.which("mvn") and shutil.which("javac"):
        wanted.append(("Kafka Streams, exactly once, in memory", "ks", "eos-mem-1t"))
    found = []
    for name, peer, mode in wanted:
        command = ["bash", str(Path(place) / "run.sh"), peer, mode, str(count)]
        done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=LIMIT_S, check=False)
        line = next((line.split() for line in done.stdout.splitlines() if line.startswith(f"{peer} ")), None)
        rate = int(line[-1]) if line is not None and line[-1] != "nan" and done.returncode == 0 else None
        found.append({"peer": name, "mode": mode, "records_per_s": rate, "why": "" if rate else done.stderr[-300:]})
    return found


def run(bootstrap: str, directory: Path, count: int) -> list[dict[str, Any]]:
    """Run the peers that can run here on the whole path; an empty list where there are none."""
    place = os.environ.get("HOLDFAST_PEERS", "")
    if not place:
        return []
    jobs = Path(place)
    environment = _environment(bootstrap, directory)
    loop = [
        sys.executable,
        str(jobs / "path.py"),
        "cmd",
        str(count),
        sys.executable,
        str(jobs / "path_ck.py"),
    ]
    found = [_path("bare confluent-kafka loop, one process", loop, environment)]
    if shutil.which("mvn") and shutil.which("javac"):
        # Its reference job builds what the whole path needs.
        once = ["bash", str(jobs / "run.sh"), "ks", "eos-mem-1t", "40000"]
        subprocess.run(once, env=environment, capture_output=True, timeout=LIMIT_S, check=False)
        streams = [sys.executable, str(jobs / "path.py"), "ks", "eos-mem-1t", str(count)]
        found.append(_path("Kafka Streams, in memory", streams, environment))
    return found


def _environment(bootstrap: str, directory: Path) -> dict[str, str]:
    (directory / "peers").mkdir(parents=True, exist_ok=True)
    return {
        **os.environ,
        "PEERS_BOOT": bootstrap,
        "PEERS_WORK": str((directory / "peers").absolute()),
        "PEERS_PYTHON": sys.executable,
        "LIMIT": "200",
    }


def _path(name: str, command: list[str], environment: dict[str, str]) -> dict[str, Any]:
    """Return the figure of a line `path KIND MODE N SECONDS RATE ok`."""
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=LIMIT_S, check=False)
    line = next((line.split() for line in done.stdout.splitlines() if line.startswith("path ")), None)
    if line is None or line[-1] != "ok":
        return {"peer": name, "tasks_per_s": None, "why": (done.stdout + done.stderr)[-500:]}
    return {"peer": name, "tasks": int(line[3]), "tasks_per_s": int(line[5])}
