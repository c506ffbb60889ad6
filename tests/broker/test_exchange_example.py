"""What users begin with: the worked example and its plot, and the programs of the guide; each party is killed -9."""

import re
import subprocess
import sys
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import psutil
import pytest

from tests.support.cluster import Workers, wait_for

pytestmark = [pytest.mark.broker, pytest.mark.timeout(280)]

ROOT = Path(__file__).parents[2]
EXAMPLE = ROOT / "deploy/examples/exchanges"
POINTS, SIZE, SAMPLES = 13, 14, 3_000
WAIT_S = 150.0


class Host:
    """`holdfast exchange host` around a program of the example."""

    def __init__(self, workers: Workers, who: tuple[str, ...], *program: str) -> None:
        where = ("--bootstrap", workers.settings.bootstrap, "--namespace", workers.namespace)
        command = (sys.executable, "-m", "app", "exchange", "host", *where, *who, "--", sys.executable, *program)
        self.process = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.DEVNULL)

    def program(self) -> psutil.Process | None:
        children = psutil.Process(self.process.pid).children()
        return children[0] if children else None

    def kill_program(self) -> None:
        victim = wait_for(self.program, WAIT_S, "the program runs")
        assert victim is not None
        victim.kill()

        def another() -> bool:
            now = self.program()
            return now is not None and now.pid != victim.pid

        wait_for(another, WAIT_S, "it is started again")

    def close(self) -> None:
        if self.process.poll() is None:
            self.process.terminate()
        self.process.wait(30)


@pytest.fixture
def hosts(workers: Workers, tmp_path: Path) -> Iterator[tuple[Host, Host]]:
    workers.start_ready("w1", "w2")
    server = Host(workers, ("--server", "hpc-1"), str(EXAMPLE / "work.py"), "hpc-1")
    sizes = (str(POINTS), str(SIZE), str(SAMPLES), str(tmp_path / "curve.svg"))
    client = Host(workers, ("--client", "laptop", "--exchange", "curve"), str(EXAMPLE / "sweep.py"), *sizes)
    yield server, client
    client.close()
    server.close()


def acknowledged(workers: Workers, exchange: str = "curve") -> int:
    status, shown = workers.running[0].get(f"/api/exchanges/{exchange}")
    return int(shown["acknowledged"]) if status == 200 else -1


@pytest.mark.settings(max_crashes=100)
def test_the_sweep_survives_each_of_its_parties(
    workers: Workers, hosts: tuple[Host, Host], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    server, client = hosts
    wait_for(lambda: acknowledged(workers) >= 1, WAIT_S, "the first point is there")
    client.kill_program()
    server.kill_program()
    name = workers.running[0].get("/api/exchanges/curve")[1]["worker"]
    next(worker for worker in workers.running if worker.name == name).kill9()
    assert client.process.wait(WAIT_S) == 0
    monkeypatch.syspath_prepend(str(EXAMPLE))
    from percolation import fraction  # type: ignore[import-not-found]

    drawn = re.findall(r'cy="([\d.]+)"', (tmp_path / "curve.svg").read_text())
    right = [
        fraction({"probability": round(0.4 + 0.4 * number / (POINTS - 1), 4), "size": SIZE, "samples": SAMPLES})
        for number in range(POINTS)
    ]
    assert drawn == [f"{340 - 300 * share:.1f}" for share in right]
    assert right[0] < 0.2 < 0.8 < right[-1]


def guide(workers: Workers, directory: Path) -> tuple[Path, Path]:
    """Both programs of the guide, as they stand there."""
    text = (ROOT / "docs/exchanges.md").read_text().replace("localhost:9092", workers.settings.bootstrap)
    programs = re.findall(r"^```python\n(.*?)^```$", text, re.DOTALL | re.MULTILINE)
    client, server = directory / "drive.py", directory / "work.py"
    client.write_text(next(program for program in programs if "ClientSession(" in program))
    server.write_text(next(program for program in programs if "ServerSession(" in program))
    return client, server


def reached(workers: Workers, steps: int) -> bool:
    return acknowledged(workers, "sim-42") >= steps


@pytest.mark.settings(max_crashes=100)
def test_the_programs_of_the_guide(workers: Workers, tmp_path: Path) -> None:
    """Every step is performed and answered, however often either of them is killed -9."""
    workers.start_ready("w1")
    drive, work = guide(workers, tmp_path)
    server = Host(workers, ("--server", "hpc-1"), str(work))
    client = Host(workers, ("--client", "laptop-7", "--exchange", "sim-42"), str(drive))
    try:
        for steps in (5, 25):
            wait_for(partial(reached, workers, steps), WAIT_S, f"{steps} steps")
            client.kill_program()
        server.kill_program()
        assert client.process.wait(WAIT_S) == 0
        shown = workers.running[0].get("/api/exchanges/sim-42")[1]
        assert (shown["state"], shown["answered"], shown["acknowledged"]) == ("finished", 100, 100)
        assert (shown["client_restart"], shown["server_restart"]) == ({"step": 100}, {"total": sum(range(100))})
    finally:
        client.close()
        server.close()
