"""Workers that die and return: their servers fail and come home, every session where its key says, account clean."""

from collections.abc import Iterator

import pytest

from tests.support.cluster import Workers
from tests.support.job import settle, when_sent
from tests.support.load import Load, Plan
from tests.support.moves import Mover
from tests.support.views import SERVERS, certified, closed, everywhere, settled

pytestmark = [pytest.mark.broker, pytest.mark.timeout(240)]


@pytest.fixture
def mover(workers: Workers) -> Iterator[Mover]:
    with Mover(workers.config, workers.namespace) as made:
        yield made


def traffic(workers: Workers, *, rate: float = 500, sessions: int = 2_000, tenants: int = 200) -> Load:
    """Tasks that go on until the test stops them."""
    plan = Plan(tasks=int(rate * 120), tenants=tenants, sessions=sessions, rate=rate)
    load = Load(workers.config, workers.namespace, plan).start()
    when_sent(load, 1_500)
    return load


def finish(workers: Workers, load: Load, *, more: int = 500) -> None:
    when_sent(load, load.acknowledged + more)
    load.stop()
    settle(workers, load)


@pytest.mark.settings(rehome_after=0)
def test_a_worker_dies_and_returns(workers: Workers, mover: Mover) -> None:
    """Killed under load: its servers fail, their sessions spread over the survivors, and all come home with it."""
    first, second, third = workers.start_ready("w1", "w2", "w3")
    homes = settled(first, ("w1", "w2", "w3"))
    load = traffic(workers)
    third.kill9()
    lost = mover.wait("worker-lost", worker="w3")
    assert lost["servers"] == homes["w3"]
    ends = closed(mover, 1)
    up = set(range(SERVERS)) - set(homes["w3"])
    spread = certified(ends)
    even = sum(spread.values()) / len(up)
    assert set(spread) == up
    assert all(abs(rows - even) <= 0.2 * even for rows in spread.values()), spread
    assert {event["server"] for event in ends if event["event"] == "server-closed"} == set(homes["w3"])
    when_sent(load, load.acknowledged + 500)
    workers.start_ready("w3")
    ends = closed(mover, 2)
    assert {event["server"] for event in ends if event["event"] == "server-restored"} == set(homes["w3"])
    certified(ends)
    finish(workers, load)
    everywhere(workers, range(SERVERS))
    assert [event["event"] for event in mover.events if event["event"] in ("worker-lost", "server-failed")] == [
        "worker-lost",
        *["server-failed"] * len(homes["w3"]),
    ]
    assert first.get("/api/status")[1]["view"] == 2
    assert second.running
