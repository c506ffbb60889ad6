"""Workers that die and return: their servers fail and come home, every session where its key says, account clean."""

from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import pytest

from app.protocol.murmur2 import partition_of
from app.protocol.placement import home_of, route
from tests.support import chain
from tests.support.cluster import Worker, Workers, wait_for
from tests.support.job import settle, when_sent
from tests.support.load import Load, Plan
from tests.support.moves import Mover
from tests.support.probe import Probe
from tests.support.revival import revived
from tests.support.views import SERVERS, certified, closed, everywhere, settled

pytestmark = [pytest.mark.broker, pytest.mark.timeout(400)]


@pytest.fixture
def mover(workers: Workers) -> Iterator[Mover]:
    with Mover(workers.config, workers.namespace) as made:
        yield made


def traffic(
    workers: Workers,
    *,
    rate: float = 500,
    sessions: int = 2_000,
    tenants: int = 200,
    types: tuple[str, ...] = ("chain.link",),
    first: int = 1_500,
) -> Load:
    """Tasks that go on until the test stops them; ``first``: so many are there already."""
    plan = Plan(tasks=int(rate * 120), tenants=tenants, sessions=sessions, rate=rate, types=types)
    load = Load(workers.config, workers.namespace, plan).start()
    when_sent(load, first)
    return load


def finish(workers: Workers, load: Load, *, more: int = 500) -> None:
    when_sent(load, load.acknowledged + more)
    load.stop()
    settle(workers, load)


def names(mover: Mover, *wanted: str) -> list[str]:
    """The events of these names, in their order."""
    mover.poll()
    return [event["event"] for event in mover.events if event["event"] in wanted]


def in_order(mover: Mover, view: int) -> None:
    """The sequence of the patents: detected, opened elsewhere, marked, drained to the marker, closed; all normal."""
    mover.poll()
    said = [(event["event"], event.get("server")) for event in mover.events if event.get("view") in (view, None)]
    order = [name for name, _ in said]
    for failed in (server for name, server in said if name == "server-failed"):
        steps = [
            order.index("worker-lost"),
            said.index(("server-failed", failed)),
            order.index("marker-published"),
            said.index(("marker-reached", failed)),
            said.index(("server-closed", failed)),
            order.index("server-normal"),
        ]
        assert steps == sorted(steps), (failed, order)
        assert said.index(("stream-opened", failed)) < said.index(("marker-reached", failed)), (failed, said)
    assert all(n > order.index("marker-published") for n, name in enumerate(order) if name == "stream-held")


WAITS = ("chain.link", "chain.link", "chain.link", "chain.async", "chain.retry")
"""Two in five tasks wait: they run aside, or are retried."""


@pytest.mark.settings(rehome_after=0)
def test_a_worker_dies_and_returns(workers: Workers, mover: Mover) -> None:
    """Killed under load: its servers fail, their sessions spread over the survivors, and all come home with it."""
    first, _, third = workers.start_ready("w1", "w2", "w3")
    homes = settled(first, ("w1", "w2", "w3"))
    # Of about 230 sessions that each survivor gets, a fifth more or less is more than three standard deviations.
    load = traffic(workers, rate=1_000, sessions=4_000, first=6_000)
    third.kill9()
    lost = mover.wait("worker-lost", worker="w3")
    assert lost["servers"] == homes["w3"]
    ends = closed(mover, 1)
    in_order(mover, 1)
    up = set(range(SERVERS)) - set(homes["w3"])
    spread = certified(ends)
    even = sum(spread.values()) / len(up)
    assert set(spread) == up
    assert all(abs(rows - even) <= 0.2 * even for rows in spread.values()), spread
    assert {event["server"] for event in ends if event["event"] == "server-closed"} == set(homes["w3"])
    everywhere(workers, up)
    when_sent(load, load.acknowledged + 500)
    shown = first.get("/api/sessions/t0003/s00003")[1]
    assert shown["server"] == route("t0003", "s00003", shown["home"], frozenset(up))
    workers.start_ready("w3")
    ends = closed(mover, 2)
    assert {event["server"] for event in ends if event["event"] == "server-restored"} == set(homes["w3"])
    certified(ends)
    finish(workers, load)
    everywhere(workers, range(SERVERS))
    assert names(mover, "worker-lost", "server-failed") == ["worker-lost", *["server-failed"] * len(homes["w3"])]
    assert first.get("/api/status")[1]["view"] == 2


def gathered(mover: Mover, *, down: int, to: int) -> str:
    """A tenant whose home is down moves, if it is told to, from every server that is up; its name."""
    tenant = next(
        name for name in (f"t{number:04d}" for number in range(200)) if home_of(name.encode(), None, SERVERS) == down
    )
    assert mover.end(mover.migrate(tenant, to))["reason"] == "server-down"
    event = mover.end(mover.migrate(tenant, to, from_backups=True), 150)
    assert (event["event"], event["from"], event["to"]) == ("migration-succeeded", down, to)
    parts = event["certificate"]
    assert {part["source"] for part in parts} == set(range(SERVERS)) - {down}
    assert sum(part["rows"] for part in parts) == event["rows"] > 0
    return tenant


@pytest.mark.settings(rehome_after=0)
def test_only_a_death_or_an_order_fails_a_server(workers: Workers, mover: Mover) -> None:
    """An operator fails two; they stay down through a join, a rolling restart and a leave, until they are restored."""
    current = dict(zip(("w1", "w2"), workers.start_ready("w1", "w2"), strict=True))
    settled(current["w1"], ("w1", "w2"))
    load = traffic(workers, rate=300, types=WAITS)
    order = mover.order("fail-server", server=3)
    ended = mover.end(order)
    assert (ended["event"], ended["view"], ended["server"]) == ("server-closed", 1, 3)
    assert mover.end(mover.order("fail-server", server=3))["reason"] == "server-down"
    moved = {gathered(mover, down=3, to=6): 6}
    assert mover.end(mover.order("restore-server", server=4))["reason"] == "server-up"
    assert mover.end(mover.order("fail-server", server=99))["reason"] == "unknown-server"
    assert mover.end(mover.order("forget-worker", worker="w9"))["reason"] == "unknown-worker"
    assert mover.end(mover.order("forget-worker", worker="w1"))["reason"] == "worker-alive"
    second_backups(workers, mover, (3, 5), moved)
    current["w3"] = workers.start_ready("w3")[0]
    for name in ("w1", "w2"):
        assert current[name].sigterm() == 0
        current[name] = workers.start_ready(name)[0]
    assert current.pop("w3").sigterm() == 0
    settled(current["w1"], current)
    status = wait_for(lambda: current["w1"].get("/api/status")[1], 10, "status")
    assert [entry["server"] for entry in status["servers"] if not entry["up"]] == [3, 5]
    for view, server in ((3, 5), (4, 3)):
        ended = mover.end(mover.order("restore-server", server=server))
        assert (ended["event"], ended["view"]) == ("server-restored", view)
    finish(workers, load)
    everywhere(workers, range(SERVERS), moved=moved)
    assert names(mover, "worker-lost", "server-failed") == ["server-failed"] * 2


def second_backups(workers: Workers, mover: Mover, down: tuple[int, int], moved: dict[str, int]) -> None:
    """The home of some sessions is down, then their first backup as well: they go to the second."""
    home, first = down
    before = frozenset(range(SERVERS)) - {home}
    there = [
        name
        for name, server in chain.servers(workers.config, workers.namespace).items()
        if server == first == route(*name, home, before) and home_of(name[0].encode(), None, SERVERS) == home
    ]
    assert there
    assert mover.end(mover.order("fail-server", server=first))["event"] == "server-closed"
    everywhere(workers, before - {first}, moved=moved)
    tenant, session = there[0]
    shown = workers.all[0].get(f"/api/sessions/{tenant}/{session}")[1]
    assert shown["server"] == next(server for server in shown["backup_order"] if server not in down)


@pytest.mark.settings(rehome_after=0, task_timeout=200)
def test_a_receiver_with_an_older_view_sends_a_request_back(
    workers: Workers, mover: Mover, probe: Probe, tmp_path: Path
) -> None:
    """A worker is held up and reads no markers: who knows the view sends to it, it sends back; at most three hops."""
    free, busy = workers.start_ready("w1", "w2")
    homes = settled(free, ("w1", "w2"))
    status = free.get("/api/status")[1]
    routers = {worker["name"]: worker["routers"] for worker in status["workers"]}
    if 0 in routers["w2"]:
        free, busy = busy, free
    failed = homes[free.name][0]
    up = frozenset(range(SERVERS)) - {failed}
    tenants = [f"u{number}" for number in range(2_000)]
    mine = next(
        name
        for name in tenants
        if home_of(name.encode(), None, SERVERS) == failed and partition_of(name.encode(), 4) in routers[free.name]
    )
    session = next(name for name in tenants if route(mine, name, failed, up) in homes[busy.name])
    blocker = next(name for name in tenants if home_of(name.encode(), None, SERVERS) in homes[busy.name])
    assert probe.result(probe.send(mine, session, "chain.link", {"n": 1}), 150)["server"] == failed
    gate = tmp_path / "gate"
    gate.touch()
    held = probe.send(blocker, "gate", "gate", {"path": str(gate)})
    wait_for(gate.with_suffix(".begun").exists, 150, "the worker is held up")
    order = mover.order("fail-server", server=failed)
    path = f"/api/sessions/{mine}/{session}"
    assert "do not agree" in wait_for(lambda: refused(free, path), 150, "nobody answers for the session")
    gate.unlink()
    assert mover.end(order)["event"] == "server-closed"
    assert probe.result(held, 150)["status"] == "done"
    for worker in (free, busy):
        assert worker.get(path)[1]["server"] == route(mine, session, failed, up)


def refused(worker: Worker, path: str) -> str:
    """What is said when nobody answers; empty while somebody does."""
    status, said = worker.get(path)
    assert status in (0, 200, 503), said
    return said if status == 503 else ""


@pytest.mark.settings(rehome_after=0)
def test_workers_die_while_sessions_move(workers: Workers, mover: Mover) -> None:
    """Every worker dies once in the middle of it; whatever follows, all is at home again in the end."""
    with revived(workers, ("w1", "w2", "w3"), "view-takes") as died:
        settled(workers.all[0], ("w1", "w2", "w3"))
        load = traffic(workers, rate=300, types=WAITS)
        workers.all[2].kill9()
        wait_for(lambda: len(died) > 1, 150, "somebody dies at the point")
        mover.until(lambda: calm(workers), "all servers are up and every view is closed", 90)
        finish(workers, load)
        everywhere(workers, range(SERVERS))


@pytest.mark.settings(rehome_after=0)
def test_a_frozen_worker_comes_back_as_a_stranger(workers: Workers, mover: Mover) -> None:
    """SIGSTOP through the failover, SIGCONT after it: nothing of what it had begun counts."""
    first, _, third = workers.start_ready("w1", "w2", "w3")
    settled(first, ("w1", "w2", "w3"))
    load = traffic(workers, types=WAITS)
    third.sigstop()
    mover.wait("worker-lost", worker="w3")
    closed(mover, 1)
    when_sent(load, load.acknowledged + 300)
    third.sigcont()
    closed(mover, 2)
    finish(workers, load)
    everywhere(workers, range(SERVERS))
    assert third.running


@pytest.mark.settings(rehome_after=0)
def test_a_tenant_that_moves_when_its_server_fails_stays(workers: Workers, mover: Mover) -> None:
    """The view ends the migration; the tenant's sessions go where their order says, its parked tasks with them."""
    first = workers.start_ready("w1", "w2")[0]
    settled(first, ("w1", "w2"))
    load = traffic(workers, sessions=400, tenants=20)
    home = home_of(b"t0003", None, SERVERS)
    moved = mover.migrate("t0003", (home + 1) % SERVERS, offline=True)
    failed = mover.order("fail-server", server=home)
    ended = mover.end(moved)
    assert mover.end(failed)["event"] == "server-closed"
    if ended["event"] == "migration-failed":
        assert ended["reason"] == "view-change"
    assert mover.end(mover.migrate("t0003", (home + 2) % SERVERS))["event"] in (
        "command-rejected",
        "migration-succeeded",
    )
    assert mover.end(mover.order("restore-server", server=home))["event"] == "server-restored"
    finish(workers, load)


def calm(workers: Workers) -> bool:
    """All servers are up, the last view is closed, and nothing is held or on its way."""
    for worker in (worker for worker in workers.running if not worker.url):
        with suppress(AssertionError):
            worker.wait_ready(0.05)
    running = [worker for worker in workers.running if worker.url]
    status = running[0].get("/api/servers")[1] if running else None
    if not isinstance(status, dict) or len(running) < 3:
        return False
    return all(entry["up"] and entry["aligning"] is None and not entry["held"] for entry in status["servers"])
