"""Tenants that move under load: nothing lost, nothing doubled, order kept, and every command has one end."""

import pytest

from app.protocol.placement import home_of
from tests.support.cluster import Workers
from tests.support.job import settle, when_sent
from tests.support.load import Load, Plan
from tests.support.moves import Mover

pytestmark = [pytest.mark.broker, pytest.mark.timeout(240)]

SERVERS = 8


def elsewhere(tenant: str, steps: int = 1) -> int:
    """A server that is not the tenant's home."""
    return (home_of(tenant.encode(), None, SERVERS) + steps) % SERVERS


@pytest.fixture
def mover(workers: Workers) -> "Mover":
    return Mover(workers.config, workers.namespace)


def test_a_tenant_moves_under_load(workers: Workers, mover: Mover) -> None:
    workers.start_ready("w1", "w2")
    load = Load(workers.config, workers.namespace, Plan(tasks=6_000, tenants=20, sessions=400, rate=600)).start()
    when_sent(load, 1_500)
    event = mover.succeed("t0003", elsewhere("t0003"))
    assert event["certificate"][0]["rows"] == event["rows"] == 20
    settle(workers, load)
