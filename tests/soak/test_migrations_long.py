"""Migrations in numbers: many at once, large tenants, a release that tasks keep coming to; every account clean."""

from collections.abc import Iterator

import pytest

from app.protocol.placement import home_of
from tests.support.cluster import Workers, wait_for
from tests.support.job import settle, when_sent
from tests.support.load import Load, Plan
from tests.support.moves import Mover
from tests.support.roles import PATIENCE_S, remains

pytestmark = [pytest.mark.broker, pytest.mark.soak, pytest.mark.timeout(1_200)]

SERVERS = 8
LONG_S = 300.0
WAITS = (*["chain.link"] * 4, "chain.async", "chain.retry")
"""Some tasks are retried: `delay` holds their wake-ups while it holds parked tasks."""


@pytest.fixture
def mover(workers: Workers) -> Iterator[Mover]:
    with Mover(workers.config, workers.namespace) as made:
        yield made


def home(tenant: str) -> int:
    return home_of(tenant.encode(), None, SERVERS)


def load_of(workers: Workers, *, first: int, **plan: object) -> Load:
    """Traffic of which ``first`` tasks are there."""
    made = Load(workers.config, workers.namespace, Plan(tasks=10**7, **plan)).start()  # type: ignore[arg-type]
    when_sent(made, first)
    return made


def finish(workers: Workers, *loads: Load, timeout: float = LONG_S) -> None:
    for load in loads:
        load.stop()
    print(settle(workers, *loads, timeout=timeout))


def gone(workers: Workers, tenant: str, server: int) -> None:
    """Nothing of the tenant is anywhere but at this server."""
    wait_for(lambda: not remains(workers.config, workers.namespace, tenant, server), PATIENCE_S, f"{tenant} is whole")


def test_fifty_tenants_move_at_once(workers: Workers, mover: Mover) -> None:
    """And a worker joins meanwhile."""
    workers.start_ready("w1", "w2")
    load = load_of(workers, first=2_000, tenants=50, sessions=1_000, rate=400, types=WAITS)
    targets = {tenant: (home(tenant) + 1) % SERVERS for tenant in (f"t{number:04d}" for number in range(50))}
    ordered = [mover.migrate(tenant, to) for tenant, to in targets.items()]
    joins = workers.start("w3")
    assert {mover.end(command, LONG_S)["event"] for command in ordered} == {"migration-succeeded"}
    joins.wait_ready(PATIENCE_S)
    when_sent(load, load.acknowledged + 500)
    finish(workers, load)
    for tenant in ("t0000", "t0017", "t0049"):
        gone(workers, tenant, targets[tenant])
    assert all(len(mover.finals(command)) == 1 for command in ordered)


def test_a_server_with_200_tenants_is_emptied(workers: Workers, mover: Mover) -> None:
    workers.start_ready("w1", "w2")
    tenants = [name for name in (f"t{number:04d}" for number in range(2_500)) if home(name) == 0][:200]
    last = int(tenants[-1][1:]) + 1
    load = load_of(workers, first=3 * last, tenants=last, sessions=last, rate=800)
    drained = mover.end(mover.order("drain-server", server=0), LONG_S)
    assert (drained["event"], drained["failed"]) == ("server-drained", [])
    assert drained["moved"] >= 200
    when_sent(load, load.acknowledged + 500)
    finish(workers, load)


def test_a_tenant_with_200_000_sessions_moves(workers: Workers, mover: Mover) -> None:
    """In chunks, there and on, under load; nothing stays where it was."""
    workers.start_ready("w1", "w2")
    # Of so many names, chosen at random so often, 204,000 are chosen.
    fill = Plan(tasks=400_000, tenants=1, sessions=260_000, prefix="big-")
    filled = Load(workers.config, workers.namespace, fill).start()
    when_sent(filled, fill.tasks)
    tenant = "big-0000"
    load = load_of(workers, first=500, tenants=20, sessions=200, rate=300)
    ordered = mover.migrate(tenant, (home(tenant) + 1) % SERVERS)
    first = mover.end(ordered, LONG_S)
    assert first["event"] == "migration-succeeded"
    assert first["rows"] >= 200_000
    on = (home(tenant) + 2) % SERVERS
    second = mover.succeed(tenant, on, LONG_S)
    assert second["rows"] >= first["rows"]
    print(f"{first['rows']} rows, pauses {first['pause_ms']} and {second['pause_ms']} ms")
    finish(workers, load, filled)
    gone(workers, tenant, on)


def test_a_release_ends_while_tasks_come_faster_than_they_leave(workers: Workers, mover: Mover) -> None:
    """As fast as the broker takes them, from the order on until the release is over, or 600,000 are there."""
    workers.start_ready("w1", "w2")
    neighbours = load_of(workers, first=500, tenants=20, sessions=200, rate=200)
    tenant = "fast-0000"
    fill = Plan(tasks=20_000, tenants=1, sessions=20_000, prefix="fast-", seed=2)
    filled = Load(workers.config, workers.namespace, fill).start()
    when_sent(filled, fill.tasks)
    ordered = mover.migrate(tenant, (home(tenant) + 1) % SERVERS, offline=True)
    flood = Load(
        workers.config,
        workers.namespace,
        Plan(tasks=600_000, tenants=1, sessions=2_000, prefix="fast-", seed=3),
    ).start()
    event = mover.end(ordered, LONG_S)
    assert event["event"] == "migration-succeeded"
    assert event["parked"] > 0
    print(f"{event['parked']} parked, {flood.acknowledged} sent by the end of the release")
    finish(workers, neighbours, filled, flood, timeout=600)
    gone(workers, tenant, event["to"])


def test_on_and_on_and_back(workers: Workers, mover: Mover) -> None:
    """A, B, A, C in a row, with tasks that are retried and parked ones that fall due again."""
    workers.start_ready("w1", "w2", "w3")
    tenant = "t0003"
    load = load_of(workers, first=1_000, tenants=20, sessions=400, rate=400, types=WAITS)
    route = [(home(tenant) + step) % SERVERS for step in (1, 2, 1, 3) * 5]
    for server in route:
        mover.succeed(tenant, server, LONG_S)
    when_sent(load, load.acknowledged + 300)
    finish(workers, load)
    gone(workers, tenant, route[-1])
