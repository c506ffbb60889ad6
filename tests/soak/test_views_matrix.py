"""Who dies when, while servers fail and return: every point of a view, many servers, all workers but one."""

from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import pytest

from tests.support.cluster import Workers, wait_for
from tests.support.job import settle, when_sent
from tests.support.load import Load, Plan
from tests.support.moves import Mover
from tests.support.revival import revived
from tests.support.views import SERVERS, certified, closed, everywhere, settled

pytestmark = [pytest.mark.broker, pytest.mark.soak, pytest.mark.timeout(600)]

WAITS = ("chain.link", "chain.link", "chain.link", "chain.async", "chain.retry")
POINTS = (
    "view-published",
    "view-marks",
    "view-freezes",
    "view-ships",
    "view-handed",
    "view-takes",
    "view-opens",
    "view-resumes",
    "view-closed",
)


@pytest.fixture
def workers(request: pytest.FixtureRequest, broker: str, namespace: str, tmp_path: Path) -> Iterator[Workers]:
    mark = request.node.get_closest_marker("settings")
    given = {"rehome_after": 0, **(mark.kwargs if mark else {})}
    with Workers(broker, namespace, tmp_path / "workers", **given) as made:
        made.topics()
        yield made


@pytest.fixture
def mover(workers: Workers) -> Iterator[Mover]:
    with Mover(workers.config, workers.namespace) as made:
        yield made


def traffic(workers: Workers, types: tuple[str, ...] = WAITS) -> Load:
    plan = Plan(tasks=120_000, tenants=200, sessions=2_000, rate=300, types=types)
    load = Load(workers.config, workers.namespace, plan).start()
    when_sent(load, 1_500)
    return load


def finish(workers: Workers, load: Load, servers: int = SERVERS) -> None:
    when_sent(load, load.acknowledged + 500)
    load.stop()
    settle(workers, load)
    everywhere(workers, range(servers), servers)


def calm(workers: Workers, count: int) -> bool:
    """All workers run, all servers are up, and nothing is on its way."""
    for worker in (worker for worker in workers.running if not worker.url):
        with suppress(AssertionError):
            worker.wait_ready(0.05)
    running = [worker for worker in workers.running if worker.url]
    status = running[0].get("/api/servers")[1] if running else None
    if not isinstance(status, dict) or len(running) < count:
        return False
    return all(entry["up"] and entry["aligning"] is None and not entry["held"] for entry in status["servers"])


@pytest.mark.parametrize("point", POINTS)
def test_everybody_dies_once_at_a_point(workers: Workers, mover: Mover, point: str) -> None:
    with revived(workers, ("w1", "w2", "w3"), point) as died:
        settled(workers.all[0], ("w1", "w2", "w3"))
        load = traffic(workers)
        workers.all[2].kill9()
        wait_for(lambda: len(died) > 1, 120, "somebody dies at the point")
        mover.until(lambda: calm(workers, 3), "all servers are up and every view is closed", 240)
        finish(workers, load)


@pytest.mark.settings(servers=64)
def test_many_servers_fail_in_one_view(workers: Workers, mover: Mover) -> None:
    """Four routers, 64 servers, five workers: one death fails a dozen servers, and all come back."""
    names = [f"w{number}" for number in range(1, 6)]
    first = workers.start_ready(*names, timeout=120)[0]
    homes = settled(first, names, 64)
    load = traffic(workers, ("chain.link",))
    workers.all[4].kill9()
    lost = mover.wait("worker-lost", worker="w5")
    assert lost["servers"] == homes["w5"]
    spread = certified(closed(mover, 1, 64, 120))
    assert set(spread) == set(range(64)) - set(homes["w5"])
    workers.start_ready("w5", timeout=120)
    certified(closed(mover, 2, 64, 120))
    finish(workers, load, 64)


def test_all_workers_but_one_die(workers: Workers, mover: Mover) -> None:
    """One after the other: what is left serves everybody, and everything comes home in the end."""
    first, second, third = workers.start_ready("w1", "w2", "w3")
    settled(first, ("w1", "w2", "w3"))
    load = traffic(workers)
    for victim in (third, second):
        victim.kill9()
        mover.wait("worker-lost", worker=victim.name)
        when_sent(load, load.acknowledged + 500)
    for name in ("w2", "w3"):
        workers.start_ready(name)
    mover.until(lambda: calm(workers, 3), "all servers are up and every view is closed", 240)
    finish(workers, load)


def test_the_failover_host_dies_as_well(workers: Workers, mover: Mover) -> None:
    """Whoever manages the failed streams is killed as soon as the view names him."""
    first = workers.start_ready("w1", "w2", "w3", "w4")[0]
    settled(first, ("w1", "w2", "w3", "w4"))
    load = traffic(workers)
    running = {worker.name: worker for worker in workers.all}
    running["w4"].kill9()
    manager = mover.wait("server-failed", view=1)["manager"]
    running[manager].kill9()
    mover.wait("worker-lost", worker=manager)
    closed(mover, 1)
    for name in ("w4", manager):
        workers.start_ready(name)
    mover.until(lambda: calm(workers, 4), "all servers are up and every view is closed", 240)
    finish(workers, load)
