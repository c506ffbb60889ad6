"""Workers that die in the middle of a migration: it ends by itself, with one final event and a clean account."""

import pytest

from app.protocol.placement import home_of
from tests.support import chain
from tests.support.cluster import Workers, wait_for
from tests.support.job import settle, when_sent
from tests.support.load import Load, Plan
from tests.support.moves import Mover
from tests.support.revival import revived

pytestmark = [pytest.mark.broker, pytest.mark.timeout(300)]

SERVERS = 8
MINE = "t0003"
HOME = home_of(MINE.encode(), None, SERVERS)
TARGET = (HOME + 3) % SERVERS
NAMES = ("w1", "w2", "w3")


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
    with Mover(workers.config, workers.namespace) as mover, revived(workers, NAMES, point) as died:
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
