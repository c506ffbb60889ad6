"""Tenants that move under load: nothing lost, nothing doubled, order kept, and every command has one end."""

import json
import time
from collections.abc import Iterator
from typing import Any

import pytest

from app.client import Client
from app.observe.reading import end_offsets, read
from app.protocol.murmur2 import partition_of
from app.protocol.placement import home_of
from app.topics import Names
from tests.support.cluster import Workers, wait_for
from tests.support.job import settle, when_sent
from tests.support.load import Load, Plan
from tests.support.moves import Mover
from tests.support.slow_mover import BROKEN

pytestmark = [pytest.mark.broker, pytest.mark.timeout(240)]

SERVERS = 8
ROUTERS = 4
MINE = "t0003"
"""The tenant that moves; all others are neighbours."""

HOME = home_of(MINE.encode(), None, SERVERS)
A, B, C = ((HOME + steps) % SERVERS for steps in (1, 2, 3))


@pytest.fixture
def mover(workers: Workers) -> Iterator[Mover]:
    with Mover(workers.config, workers.namespace) as made:
        yield made


def traffic(workers: Workers, *, seconds: float = 60, rate: float = 500, types: tuple[str, ...] = ()) -> Load:
    """Tasks of 20 tenants, all of them known when this returns."""
    plan = Plan(tasks=int(rate * seconds), tenants=20, sessions=400, rate=rate, types=types or ("chain.link",))
    load = Load(workers.config, workers.namespace, plan).start()
    when_sent(load, 1_000)
    return load


def finish(workers: Workers, load: Load, *others: Load, more: int = 300) -> None:
    when_sent(load, load.acknowledged + more)
    load.stop()
    settle(workers, load, *others)


def test_a_tenant_moves_there_and_on_and_back(workers: Workers, mover: Mover) -> None:
    """HOME to A, B by its command line, back by undo, offline to C: each under load, in one account."""
    first, _ = workers.start_ready("w1", "w2")
    load = traffic(workers)
    event = mover.succeed(MINE, A)
    assert [part["rows"] for part in event["certificate"]] == [event["rows"]]
    assert (event["from"], event["reason"], event["final"]) == (HOME, None, True)
    assert first.get(f"/api/tenants/{MINE}")[1]["home"] == A
    with Client(settings=workers.settings, read_results=False) as client:
        moved = client.migrate(MINE, to=B, timeout=60)
    assert (moved.event, (moved.model_extra or {})["from"]) == ("migration-succeeded", A)
    undone = mover.end(mover.order("undo-migration", MINE))
    assert (undone["event"], undone["from"], undone["to"]) == ("migration-succeeded", B, A)
    offline = mover.succeed(MINE, C, offline=True)
    assert offline["epoch"] == 4
    shown = wait_for(lambda: first.get(f"/api/tenants/{MINE}")[1], 10, "the tenant is shown")
    assert [(past["from"], past["to"]) for past in shown["history"]] == [(HOME, A), (A, B), (B, A), (A, C)]
    finish(workers, load)
    session = next(name for name in ("s00003", "s00023", "s00043"))
    assert first.get(f"/api/sessions/{MINE}/{session}")[1]["server"] == C
    listed = {entry["tenant"]: entry for entry in first.get("/api/tenants")[1]["tenants"]}
    assert (len(listed), listed[MINE]["home"]) == (20, C)


@pytest.mark.settings(delay=0.4)
def test_a_move_that_fails_leaves_the_tenant_where_it_was(workers: Workers, mover: Mover) -> None:
    """Aborted in the copy and behind the cut, out of time, too long a pause: parked tasks go back in order."""
    workers.start_ready("w1", "w2")
    load = traffic(workers)
    for fields, reason in (({"offline": True, "max_pause": 0.001}, "max-pause"), ({"timeout": 0.001}, "timeout")):
        ended = mover.end(mover.migrate(MINE, A, **fields))
        assert (ended["event"], ended["reason"]) == ("migration-failed", reason)
    ordered = mover.migrate(MINE, A)
    aborted = mover.order("abort-migration", MINE)
    assert mover.end(aborted)["event"] == "migration-aborted"
    assert (mover.end(ordered)["event"], mover.end(ordered)["reason"]) == ("migration-failed", "aborted")
    assert mover.succeed(MINE, A)["from"] == HOME
    finish(workers, load)
    assert all(len(mover.finals(command)) == 1 for command in (ordered, aborted))


def rejected(mover: Mover, command: str, tenant: str | None = MINE, **fields: object) -> str:
    event = mover.end(mover.order(command, tenant, **fields))
    assert event["event"] == "command-rejected"
    return str(event["reason"])


def test_commands_that_are_not_carried_out_say_why(workers: Workers, mover: Mover) -> None:
    workers.start_ready("w1")
    assert rejected(mover, "migrate", to=SERVERS) == "unknown-server"
    assert rejected(mover, "migrate", to=HOME) == "same-server"
    assert rejected(mover, "abort-migration") == "no-migration"
    assert rejected(mover, "undo-migration") == "nothing-to-undo"
    assert rejected(mover, "migrate", to="there") == "bad-command"
    assert rejected(mover, "drain-server", None, server=SERVERS) == "unknown-server"
    mover.write(b"not JSON", MINE)
    place = f"commands/{partition_of(MINE.encode(), ROUTERS)}/"
    mover.until(lambda: mover.events[-1]["id"].startswith(place), "it is known by its place")
    assert mover.events[-1]["reason"] == "bad-command"
    plan = mover.end(mover.migrate(MINE, A, dry_run=True))
    assert (plan["event"], plan["sessions"], plan["waiting"], plan["blocked"]) == ("migration-plan", 0, 0, [])
    # A tenant without sessions moves as well; a repeated id is answered with the first outcome.
    event = mover.succeed(MINE, A, id="mine")
    assert event["rows"] == 0
    mover.migrate(MINE, B, id="mine")
    mover.until(lambda: len(mover.finals("mine")) == 2, "the outcome is repeated")
    assert mover.finals("mine") == [event, event]
    # One that comes to the wrong router is sent on.
    wrong = (partition_of(MINE.encode(), ROUTERS) + 1) % ROUTERS
    mover.write(b'{"command":"migrate","tenant":"t0003","to":%d,"id":"astray"}' % HOME, MINE, wrong)
    assert mover.end("astray")["event"] == "migration-succeeded"


def burst(workers: Workers, tenant: str, **plan: Any) -> Load:
    """Tasks of one tenant, all of them acknowledged when this returns."""
    made = Plan(tenants=1, prefix=tenant.removesuffix("0000"), **plan)
    load = Load(workers.config, workers.namespace, made).start()
    load.join()
    return load


def performed(workers: Workers, tenant: str) -> dict[str, list[int]]:
    """The servers of each session's results, in their order."""
    deadline = time.monotonic() + 150
    ends = end_offsets(workers.config, [Names(workers.namespace).results], deadline=deadline)
    found: dict[str, list[int]] = {}
    for message in read(workers.config, ends, {}, deadline=deadline):
        if message.key() == tenant.encode():
            result = json.loads(message.value() or b"")
            found.setdefault(result["session"], []).append(result["server"])
    return found


DELAY = 0.3


@pytest.mark.settings(delay=DELAY, handlers="app.samples,tests.support.handlers,tests.support.slow_mover")
def test_a_move_that_lasts_several_delays(workers: Workers, mover: Mover) -> None:
    """Each time a parked task falls due it is delayed again, and keeps its place; a mover may fail.

    With a mover, a migration is offline: it parks from the order on. What stood in `tasks`, or behind a retry, at the
    order goes along.
    """
    workers.start_ready("w1", "w2")
    load = traffic(workers)
    late = "late-0000"
    home = home_of(late.encode(), None, SERVERS)
    target = (home + 1) % SERVERS
    retried = burst(workers, late, tasks=30, sessions=10, seed=1, types=("chain.retry",), after=2.5)
    command = mover.migrate(late, target)
    mover.wait("migration-phase", tenant=late, phase="cutting")
    parked = burst(workers, late, tasks=200, sessions=20, seed=2)
    event = mover.end(command, 150)
    assert event["event"] == "migration-succeeded"
    assert event["rows"] >= 30
    assert event["parked"] >= 200
    rounds = event["pause_ms"] / (DELAY * 1000)
    assert rounds > 10
    assert 5 * event["parked"] <= event["redelayed"] <= rounds * event["parked"]
    ended = mover.end(mover.migrate(BROKEN, (home_of(BROKEN.encode(), None, SERVERS) + 1) % SERVERS), 150)
    assert ended["event"] == "migration-failed"
    assert "mover slow: OSError: the disk is broken" in ended["reason"]
    finish(workers, load, retried, parked)
    for servers in performed(workers, late).values():
        assert servers == [home] * servers.count(home) + [target] * servers.count(target)
    assert sum(servers.count(target) for servers in performed(workers, late).values()) == 230


@pytest.mark.settings(max_attempts=8)
def test_what_waits_travels_along(workers: Workers, mover: Mover) -> None:
    """Retries, slow handlers and what stands behind them move with their sessions, timers included."""
    workers.start_ready("w1", "w2")
    types = (*["chain.link"] * 4, "chain.async", "chain.blocking", "chain.retry")
    load = traffic(workers, types=types, rate=300)
    for target in (A, B, HOME):
        assert mover.succeed(MINE, target)["rows"] > 0
    finish(workers, load)


def test_many_tenants_move_at_once_and_a_server_is_emptied(workers: Workers, mover: Mover) -> None:
    """A worker joins while they move."""
    workers.start_ready("w1", "w2")
    load = traffic(workers)
    tenants = [f"t{number:04d}" for number in range(20)]
    targets = {tenant: (home_of(tenant.encode(), None, SERVERS) + 1) % SERVERS for tenant in tenants}
    joins = workers.start("w3")
    ordered = [mover.migrate(tenant, to) for tenant, to in targets.items()]
    assert {mover.end(command)["event"] for command in ordered} == {"migration-succeeded"}
    # A server is emptied while its tenants are served; those of other servers stay.
    full = max(set(targets.values()), key=list(targets.values()).count)
    drained = mover.end(mover.order("drain-server", server=full))
    assert (drained["event"], drained["failed"]) == ("server-drained", [])
    assert drained["moved"] == list(targets.values()).count(full)
    joins.wait_ready(150)
    finish(workers, load)
