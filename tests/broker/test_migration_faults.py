"""Workers that die in the middle of a migration: it ends by itself, with one final event and a clean account."""

import threading
from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from app.protocol.placement import home_of
from tests.support import chain
from tests.support.cluster import Workers, wait_for
from tests.support.job import settle, when_sent
from tests.support.load import Load, Plan
from tests.support.moves import Mover

pytestmark = [pytest.mark.broker, pytest.mark.timeout(300)]

SERVERS = 8
MINE = "t0003"
HOME = home_of(MINE.encode(), None, SERVERS)
TARGET = (HOME + 3) % SERVERS
NAMES = ("w1", "w2", "w3")


@contextmanager
def revived(workers: Workers, point: str) -> Iterator[list[str]]:
    """Every worker dies when it first passes the point, and is started again without it; yields who has died."""
    died: list[str] = []
    stop = threading.Event()
    current = {name: workers.start(name, HOLDFAST_CRASH_AT=point) for name in NAMES}
    for worker in current.values():
        worker.wait_ready()

    def watch() -> None:
        while not stop.wait(0.05):
            for name, worker in current.items():
                if not worker.running:
                    died.append(name)
                    current[name] = workers.start(name)

    thread = threading.Thread(target=watch, name="revive")
    thread.start()
    try:
        yield died
    finally:
        stop.set()
        thread.join()


def left_behind(workers: Workers) -> list[bytes]:
    """Rows of the tenant under any epoch but its live one, at any server."""
    keys = chain.keys(workers.config, workers.namespace, tenant=MINE)
    live = max((int(key.split(b"\0")[1]) for key in keys), default=0)
    return [key for key in keys if int(key.split(b"\0")[1]) != live]


@pytest.mark.parametrize(
    "point",
    [
        pytest.param("move-copies", marks=pytest.mark.soak),
        "move-cut",
        pytest.param("move-stages", marks=pytest.mark.soak),
        "move-installed",
        pytest.param("move-decided", marks=pytest.mark.soak),
        pytest.param("move-releases", marks=pytest.mark.soak),
    ],
)
def test_a_worker_dies_in_a_phase(workers: Workers, point: str) -> None:
    with Mover(workers.config, workers.namespace) as mover, revived(workers, point) as died:
        plan = Plan(tasks=100_000, tenants=20, sessions=400, rate=400)
        load = Load(workers.config, workers.namespace, plan).start()
        when_sent(load, 1_000)
        # Parked tasks are what a release consists of: with the order they begin at once.
        command = mover.migrate(MINE, TARGET, offline=True)
        assert mover.end(command, 90)["event"] == "migration-succeeded"
        assert died, "nobody has passed the point"
        assert mover.succeed(MINE, HOME)["from"] == TARGET
        when_sent(load, load.acknowledged + 300)
        load.stop()
        settle(workers, load)
        wait_for(lambda: not left_behind(workers), 30, "no rows are left behind")
        mover.poll()
        assert len(mover.finals(command)) == 1
