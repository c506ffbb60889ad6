"""Migrations in any interleaving, with hosts that die at any point (I1 to I4, I6)."""

import random

import pytest

from app.protocol import migration, parking, shipping
from app.protocol.control import Refused
from app.protocol.moves import Cutting, Move, Placement
from app.protocol.parking import Lot
from tests.property.mutation import Choose
from tests.simulation.log import Record
from tests.simulation.machine import by_hypothesis
from tests.simulation.world import Script, World

RESTLESS = ("migrate", "abort-migration")
MOVE = Move("c1", 0, 1, (0,), 10_000, None, 20, offline=False, ordered_ms=0)


def restless(choose: Choose) -> Script:
    """One tenant that hardly comes to rest, with answers that come again when they are long out of date."""
    return Script(servers=2, tenants=("a",), sessions=("x", "y"), tasks=25, moves=10, orders=RESTLESS, duplicates=12)


def mixed(choose: Choose) -> Script:
    """Anything."""
    return Script(
        servers=choose([2, 3, 4]),
        sessions=choose([("x",), ("x", "y", "z"), tuple("uvwxyz")]),
        tasks=choose([10, 25]),
        moves=choose([1, 2, 4]),
        slow=choose([0, 4]),
        retries=choose([0, 3]),
        crashes=choose([0, 2, 6]),
        failures=choose([0, 0, 1]),
        hangs=choose([0, 0, 1]),
        duplicates=choose([0, 3, 10]),
        timeout_ms=choose([40, 10_000]),
    )


def small(monkeypatch: pytest.MonkeyPatch) -> None:
    """Limits that a short history reaches."""
    monkeypatch.setattr(shipping, "WINDOW", 600)
    monkeypatch.setattr(shipping, "WINDOW_SERVED", 400)
    monkeypatch.setattr(shipping, "FEW", 1)
    monkeypatch.setattr(parking, "KEPT_MAX", 3)
    monkeypatch.setattr(parking, "LITTLE", 2)


def play(choose: Choose, script: Script, steps: int = 120) -> World:
    """One history: chance for a while, then everything has to end. A failure shows what happened."""
    world = World(choose, script)
    try:
        for _ in range(steps):
            world.happen()
        world.settle()
    except Exception as error:
        error.add_note(world.told())
        raise
    return world


def history(choose: Choose) -> World:
    return play(choose, choose([restless, mixed, mixed])(choose))


@pytest.mark.parametrize("seed", range(8))
def test_histories(seed: int, monkeypatch: pytest.MonkeyPatch) -> None:
    small(monkeypatch)
    for number in range(20):
        history(random.Random(f"{seed}/{number}").choice)


@pytest.mark.soak
@pytest.mark.parametrize("seed", range(20))
def test_many_histories(seed: int, monkeypatch: pytest.MonkeyPatch) -> None:
    small(monkeypatch)
    for number in range(2_000):
        history(random.Random(f"{seed}/{number}/long").choice)


def test_the_histories_reach_what_they_are_about(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every kind of end, with tasks parked, delayed again and kept; else the checks would be about nothing."""
    small(monkeypatch)
    kept = 0
    keep = parking.keep

    def counted(lot: parking.Lot, size: int) -> tuple[parking.Lot, parking.Keep]:
        nonlocal kept
        kept += 1
        return keep(lot, size)

    monkeypatch.setattr(migration, "keep", counted)
    events = [event for seed in range(150) for event in history(random.Random(seed).choice).log.events]
    ends = {(event["event"], event.get("reason")) for event in events if event["final"]}
    reasons = {reason for _, reason in ends}
    assert reasons >= {"aborted", "timeout", "too-late", "migration-under-way", "nothing-to-undo", "same-server", None}
    moved = [event for event in events if event["event"] == "migration-succeeded"]
    failed = [event for event in events if event["event"] == "migration-failed"]
    assert any(event["parked"] and event["redelayed"] for event in moved)
    assert any(event["parked"] for event in failed)
    assert any(event["rows"] for event in moved)
    assert kept


def test_migrations_by_hypothesis(monkeypatch: pytest.MonkeyPatch) -> None:
    small(monkeypatch)
    by_hypothesis(lambda choose: World(choose, mixed(choose)))


# -- the end of a release under load (L8) -----------------------------------------------------------------------------


def units_until_settled(arrivals: int, read: int, monkeypatch: pytest.MonkeyPatch, kept: int) -> int | None:
    """Units until a release ends while each brings ``arrivals`` tasks and can read ``read`` of those before it."""
    monkeypatch.setattr(parking, "KEPT_MAX", kept)
    world = World(random.Random(0).choice, Script(tenants=("a",), routers=1, tasks=0, moves=0))
    router = world.routers[0]
    now = Cutting(Placement(0, 0, 1), MOVE, Lot(), 0, 0)
    router.moving["a"] = now
    number = 0

    def arrive(count: int) -> None:
        nonlocal number
        for _ in range(count):
            number += 1
            task = Record(b"0:%d" % number, b'{"tenant":"a","session":"x","k":%d}' % number)
            router.feed("a", migration.Arrived(len(task.value), router.wakeups.position), task)

    arrive(1_000)
    router.commit()
    router.feed("a", Refused("a", 1, 0, "for this test"))
    router.commit()
    for unit in range(300):
        # What a unit parks, it cannot read: tasks come first.
        arrive(arrivals)
        router.release("a", read)
        router.commit()
        if not router.moving:
            work = [record for where, found in world.log.records.items() if where[0] == "work" for record in found]
            keys = [record.key for record in work if record is not None and not str(record.key).startswith("b'!")]
            assert keys == [b"0:%d" % task for task in range(1, number + 1)]
            return unit
    return None


@pytest.mark.parametrize("arrivals", [0, 1, 50, 200])
def test_a_release_ends_while_tasks_arrive(arrivals: int, monkeypatch: pytest.MonkeyPatch) -> None:
    assert units_until_settled(arrivals, 250, monkeypatch, parking.KEPT_MAX) is not None


def test_without_kept_rows_one_task_a_unit_keeps_a_release_from_ending(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(parking, "LITTLE", -1)
    assert units_until_settled(1, 250, monkeypatch, parking.KEPT_MAX) is None
