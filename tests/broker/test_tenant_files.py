"""Files of a tenant move with it, or stay with it, from the storage of one server to that of another."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from app.client import Client
from app.protocol.placement import home_of
from tests.support.cluster import Workers, wait_for
from tests.support.moves import Mover
from tests.support.revival import revived
from tests.support.tenant_files import Files, break_storage
from tests.support.transfers import ask, in_background

pytestmark = [pytest.mark.broker, pytest.mark.timeout(300)]

SERVERS = 4
MINE = "t0003"
HOME = home_of(MINE.encode(), None, SERVERS)
A, B = ((HOME + steps) % SERVERS for steps in (1, 2))


@pytest.fixture
def workers(broker: str, namespace: str, tmp_path: Path) -> Iterator[Workers]:
    storage = f"file://{tmp_path}/at-{{server}}"
    given = {"servers": SERVERS, "routers": 2, "lease": 3, "progress_interval": 0.2, "server_storage": storage}
    with Workers(broker, namespace, tmp_path / "workers", **given) as made:
        made.topics()
        yield made


@pytest.fixture
def files(workers: Workers) -> Files:
    return Files(workers.settings, MINE)


@pytest.fixture
def mover(workers: Workers) -> Iterator[Mover]:
    with Mover(workers.config, workers.namespace) as made:
        yield made


def test_files_move_with_their_tenant(workers: Workers, mover: Mover, files: Files, tmp_path: Path) -> None:
    """There, on by an order that is offline, and not to where the storage fails; pulled and pushed all the while."""
    first, second = workers.start_ready("w1", "w2")
    files.push(first, 4)
    files.lie_at(HOME, 0, servers=SERVERS)
    event = mover.wait("transfer-completed")
    assert event["url"].startswith(f"file://{tmp_path}/at-{HOME}/objects/")
    live = files.begin(first)
    pulling = in_background(lambda: [files.wrong(second) for _ in range(20)])
    moved = mover.succeed(MINE, A)
    assert (moved["rows"], moved["epoch"]) == (4, 1)
    assert not any(pulling.result(60)), "a file can be pulled at every moment"
    # The upload goes on at another worker, and is found where it began.
    files.end(second, *live)
    assert files.wrong(first) + files.wrong(second) == []
    wait_for(lambda: len(files.at(HOME)) == 1, 30, "what was copied is deleted")
    # What comes now lies at the new home.
    files.push(first, 1)
    files.lie_at(A, 1, servers=SERVERS, besides=1)
    broken = break_storage(tmp_path, B)
    failed = mover.end(mover.migrate(MINE, B))
    assert failed["event"] == "migration-failed"
    assert f"server {B}: mover files: StorageError" in failed["reason"]
    assert files.wrong(first) == []
    broken.unlink()
    files.lie_at(A, 1, servers=SERVERS, besides=1)
    assert mover.succeed(MINE, B, offline=True)["rows"] == 5
    files.lie_at(B, 3, servers=SERVERS, besides=1)
    assert files.wrong(first) + files.wrong(second) == []
    for path in files.whole:
        assert ask(second.url, "DELETE", path).status == 204
    files.whole.clear()
    files.lie_at(B, 3, servers=SERVERS)


SOAK = pytest.mark.soak


@pytest.mark.parametrize(
    "point",
    [
        pytest.param("move-copies", marks=SOAK),
        pytest.param("move-cut", marks=SOAK),
        pytest.param("move-exports", marks=SOAK),
        pytest.param("move-stages", marks=SOAK),
        "move-installs:2",
        pytest.param("move-installed", marks=SOAK),
        pytest.param("move-decided", marks=SOAK),
        pytest.param("move-releases", marks=SOAK),
        pytest.param("move-deletes", marks=SOAK),
    ],
)
def test_everybody_dies_once_in_a_phase(workers: Workers, mover: Mover, files: Files, point: str) -> None:
    """Each worker is killed when it first passes the point: the files are at the target, whole, and nowhere else."""
    with revived(workers, ("w1", "w2"), point) as died, Client(settings=workers.settings) as client:
        files.push(workers.running[0], 3)
        command = mover.migrate(MINE, A, offline=True)
        # Some of them are parked, and are what a release consists of.
        tasks = [client.send(MINE, "s", "counter.add", {"amount": 1}) for _ in range(200)]
        assert mover.end(command, 150)["event"] == "migration-succeeded"
        assert client.result(tasks[-1], timeout=150).result == {"total": len(tasks)}
        files.lie_at(A, 1, servers=SERVERS)
        wait_for(lambda: died, 30, "somebody dies at the point")
        wait_for(lambda: all(worker.url or worker.wait_ready() for worker in workers.running), 60, "all serve again")
        for worker in workers.running:
            assert wait_for(lambda w=worker: not files.wrong(w), 60, "the files can be pulled")  # type: ignore[misc]
        assert len(mover.finals(command)) == 1
