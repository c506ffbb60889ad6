"""Who dies when, while servers fail and return: every point of a view, many servers, all workers but one."""

from collections.abc import Iterator, Mapping
from contextlib import suppress
from pathlib import Path
from types import MappingProxyType

import pytest

from app.protocol.placement import home_of
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


def traffic(
    workers: Workers,
    types: tuple[str, ...] = WAITS,
    *,
    tenants: int = 200,
    sessions: int = 2_000,
    first: int = 1_500,
    rate: float = 300,
) -> Load:
    plan = Plan(tasks=120_000, tenants=tenants, sessions=sessions, rate=rate, types=types)
    load = Load(workers.config, workers.namespace, plan).start()
    when_sent(load, first)
    return load


def finish(
    workers: Workers, load: Load, servers: int = SERVERS, *, moved: Mapping[str, int] = MappingProxyType({})
) -> None:
    when_sent(load, load.acknowledged + 500)
    load.stop()
    settle(workers, load)
    everywhere(workers, range(servers), servers, moved=moved)


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
    first = workers.start_ready(*names)[0]
    homes = settled(first, names, 64)
    # About 400 sessions come to each surviving worker: a fifth is four standard deviations.
    load = traffic(workers, ("chain.link",), tenants=1_000, sessions=8_000, first=20_000, rate=2_000)
    workers.all[4].kill9()
    lost = mover.wait("worker-lost", worker="w5")
    assert lost["servers"] == homes["w5"]
    spread = certified(closed(mover, 1, 64))
    up = set(range(64)) - set(homes["w5"])
    assert set(spread) == up
    everywhere(workers, up, 64)
    even = spread.total() / len(up)
    for name in names[:4]:
        come = sum(spread[server] for server in homes[name])
        assert abs(come - even * len(homes[name])) <= 0.2 * even * len(homes[name]), (name, spread)
    workers.start_ready("w5")
    certified(closed(mover, 2, 64))
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


@pytest.mark.parametrize("victim", ["who returns", "who hosts", "the steward"])
def test_a_worker_dies_while_servers_come_home(workers: Workers, mover: Mover, victim: str) -> None:
    """The second kill falls into the fail-back."""
    names = ("w1", "w2", "w3")
    first = workers.start_ready(*names)[0]
    settled(first, names)
    load = traffic(workers)
    workers.all[2].kill9()
    closed(mover, 1)
    workers.start("w3").wait_ready()
    mover.wait("marker-published", view=2)
    running = {worker.name: worker for worker in workers.running}
    status = wait_for(lambda: running["w1"].get("/api/status")[1], 30, "status")
    steward = next(worker["name"] for worker in status["workers"] if 0 in worker["routers"])
    name = {"who returns": "w3", "who hosts": "w2", "the steward": steward}[victim]
    running[name].kill9()
    workers.start(name).wait_ready()
    mover.until(lambda: calm(workers, 3), "all servers are up and every view is closed", 240)
    finish(workers, load)


@pytest.mark.parametrize("phase", ["started", "cutting", "releasing", "succeeded"])
def test_the_home_of_a_tenant_dies_while_the_tenant_moves(workers: Workers, mover: Mover, phase: str) -> None:
    """The migration ends in one way or the other, and its tenant is where that says."""
    names = ("w1", "w2", "w3")
    first = workers.start_ready(*names)[0]
    homes = settled(first, names)
    load = traffic(workers, tenants=20)
    tenants = (f"t{number:04d}" for number in range(20))
    tenant = next(name for name in tenants if home_of(name.encode(), None, SERVERS) in homes["w3"])
    home, target = home_of(tenant.encode(), None, SERVERS), homes["w1"][0]
    order = mover.migrate(tenant, target)
    if phase in ("cutting", "releasing"):
        mover.wait("migration-phase", tenant=tenant, phase=phase)
    else:
        mover.wait(f"migration-{phase}", tenant=tenant)
    workers.all[2].kill9()
    mover.wait("worker-lost", worker="w3")
    ended = mover.end(order)
    assert (ended["event"], ended.get("reason")) in (("migration-succeeded", None), ("migration-failed", "view-change"))
    workers.start_ready("w3")
    mover.until(lambda: calm(workers, 3), "all servers are up and every view is closed", 240)
    finish(workers, load, moved={tenant: target if ended["event"] == "migration-succeeded" else home})


def test_a_frozen_worker_wakes_when_its_servers_have_failed(workers: Workers, mover: Mover) -> None:
    """SIGSTOP through the failover, SIGCONT in the middle of the next one."""
    names = ("w1", "w2", "w3")
    first, second, third = workers.start_ready(*names)
    settled(first, names)
    load = traffic(workers)
    third.sigstop()
    mover.wait("worker-lost", worker="w3")
    closed(mover, 1)
    second.kill9()
    mover.wait("server-failed", view=2)
    third.sigcont()
    workers.start_ready("w2")
    mover.until(lambda: calm(workers, 3), "all servers are up and every view is closed", 240)
    finish(workers, load)
    assert third.running
