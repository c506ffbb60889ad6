"""Views in any interleaving, with migrations in each of their phases and hosts that die at any point (I1 to I6)."""

import random
from typing import Any

import pytest

from app.protocol import holding, migration
from app.protocol.migration import ViewAdopted
from app.protocol.moves import Copying, Cutting, Releasing
from tests.property.mutation import Choose
from tests.simulation import test_migrations
from tests.simulation.machine import by_hypothesis
from tests.simulation.view_world import ViewScript, ViewWorld


def small(monkeypatch: pytest.MonkeyPatch) -> None:
    """Limits that a short history reaches."""
    test_migrations.small(monkeypatch)
    monkeypatch.setattr(holding, "HELD_MAX", 3)


def joint(choose: Choose) -> ViewScript:
    """Anything: orders, deaths and returns of workers, migrations, retries, doubled records."""
    return ViewScript(
        servers=choose([2, 3, 4]),
        sessions=choose([("x",), ("x", "y", "z"), tuple("uvwxyz")]),
        tasks=choose([10, 25, 40]),
        moves=choose([0, 1, 3]),
        slow=choose([0, 4]),
        retries=choose([0, 3]),
        crashes=choose([0, 2, 6]),
        duplicates=choose([0, 3, 10]),
        timeout_ms=choose([40, 10_000]),
        orders_of_views=choose([0, 3, 6]),
        turns=choose([0, 4, 8]),
        rehome_after_ms=choose([0, 30, 10_000_000]),
        forget_after_ms=choose([50, 5_000]),
    )


def views_only(choose: Choose) -> ViewScript:
    """Views follow each other as fast as they close, under many tasks of few sessions."""
    return ViewScript(
        servers=choose([2, 3, 4]),
        routers=choose([1, 2]),
        tenants=choose([("a", "b"), ("a", "b", "c", "d")]),
        sessions=("x", "y"),
        tasks=60,
        moves=0,
        slow=choose([0, 6]),
        retries=choose([0, 6]),
        crashes=choose([0, 4]),
        duplicates=choose([0, 12]),
        orders_of_views=12,
        steps=300,
    )


def moving(choose: Choose) -> ViewScript:
    """One tenant moves again and again, while its servers fail and return."""
    return ViewScript(
        servers=3,
        tenants=("a",),
        sessions=("x", "y", "z"),
        tasks=40,
        moves=8,
        orders=("migrate",),
        slow=4,
        retries=3,
        crashes=choose([0, 3]),
        duplicates=choose([0, 10]),
        orders_of_views=8,
    )


def gathering(choose: Choose) -> ViewScript:
    """The tenant's sessions live at their backups, from where it is gathered while views change."""
    return ViewScript(
        servers=choose([3, 4]),
        routers=choose([1, 2]),
        tenants=("a",),
        sessions=tuple("uvwxyz"),
        tasks=40,
        moves=6,
        orders=("migrate",),
        slow=choose([0, 4]),
        retries=choose([0, 3]),
        crashes=choose([0, 3]),
        orders_of_views=choose([0, 2, 4]),
        home_fails=True,
    )


def repeating(choose: Choose) -> ViewScript:
    """Two servers fail and return in turn, while records of earlier views come again."""
    return ViewScript(
        servers=2,
        routers=1,
        tenants=("a",),
        sessions=("x", "y"),
        tasks=60,
        moves=0,
        duplicates=80,
        orders_of_views=20,
        steps=600,
        repeats=("handoffs",),
    )


def waiting(choose: Choose) -> ViewScript:
    """Most tasks run aside or are to be retried, so that much waits when sessions move."""
    return ViewScript(
        servers=choose([2, 3]),
        sessions=tuple("uvwxyz"),
        tasks=60,
        moves=0,
        slow=60,
        retries=40,
        crashes=choose([0, 3]),
        orders_of_views=10,
        steps=300,
    )


def play(choose: Choose, script: ViewScript) -> ViewWorld:
    """One history: chance for a while, then everything has to end. A failure shows what happened."""
    world = ViewWorld(choose, script)
    try:
        for _ in range(script.steps):
            world.happen()
        world.settle()
    except Exception as error:
        error.add_note(world.told())
        raise
    return world


def history(choose: Choose) -> ViewWorld:
    return play(choose, choose([joint, views_only, moving, gathering, waiting])(choose))


@pytest.mark.parametrize("seed", range(8))
def test_histories(seed: int, monkeypatch: pytest.MonkeyPatch) -> None:
    small(monkeypatch)
    for number in range(15):
        history(random.Random(f"{seed}/{number}").choice)


@pytest.mark.soak
@pytest.mark.parametrize("seed", range(20))
def test_many_histories(seed: int, monkeypatch: pytest.MonkeyPatch) -> None:
    small(monkeypatch)
    for number in range(1_000):
        history(random.Random(f"{seed}/{number}/long").choice)


def test_the_histories_reach_what_they_are_about(monkeypatch: pytest.MonkeyPatch) -> None:
    """Views while migrations are in each phase, gathered from backups, held tasks, every kind of end."""
    small(monkeypatch)
    phases: set[str] = set()
    gathered = 0
    real = migration.step

    def step(state: Any, event: Any, moment: Any) -> Any:
        nonlocal gathered
        if isinstance(event, ViewAdopted):
            phases.add(type(state).__name__)
        if isinstance(state, Cutting) and len(state.move.sources) > 1:
            gathered += 1
        return real(state, event, moment)

    monkeypatch.setattr(migration, "step", step)
    worlds = [history(random.Random(seed).choice) for seed in range(120)]
    events = [event for world in worlds for event in world.log.events]
    assert phases == {kind.__name__ for kind in (Copying, Cutting, Releasing)}
    assert gathered
    names = {event["event"] for event in events}
    assert names >= {"worker-lost", "server-failed", "marker-published", "marker-reached", "stream-held"}
    assert names >= {"server-closed", "server-normal", "server-restored"}
    reasons = {event.get("reason") for event in events}
    assert reasons >= {"view-change", "last-server", "server-down", "server-up", "view-change-under-way", None}
    assert any(event.get("certificate") for event in events if event["event"] == "server-restored")
    moved = [event for event in events if event["event"] == "migration-succeeded"]
    assert any(len(event["certificate"]) > 1 for event in moved)


def test_what_leaves_is_what_arrives(monkeypatch: pytest.MonkeyPatch) -> None:
    """The certificates of sources and targets have the same lines, view by view."""
    small(monkeypatch)
    lines = 0
    for seed in range(40):
        world = play(random.Random(seed).choice, views_only(random.Random(seed).choice))
        left: dict[int, set[tuple[Any, ...]]] = {}
        arrived: dict[int, set[tuple[Any, ...]]] = {}
        for event in world.log.events:
            for line in event.get("certificate", ()):
                side = left if line["source"] == event["server"] else arrived
                side.setdefault(event["view"], set()).add(tuple(line.values()))
        assert left == arrived
        lines += sum(map(len, left.values()))
    assert lines


def test_the_sequence_of_a_failover_is_visible_in_the_events(monkeypatch: pytest.MonkeyPatch) -> None:
    """Failed, marked in all streams, drained up to the markers, closed; only then are the others normal again."""
    small(monkeypatch)
    found = 0
    for seed in range(40):
        world = play(random.Random(seed).choice, views_only(random.Random(seed).choice))
        by_view: dict[int, list[dict[str, Any]]] = {}
        for event in world.log.events:
            if "view" in event and not event["final"]:
                by_view.setdefault(event["view"], []).append(event)
        for events in by_view.values():
            failed = [event["server"] for event in events if event["event"] == "server-failed"]
            if not failed:
                continue
            found += 1
            at = {(e["event"], e.get("server", e.get("router"))): number for number, e in enumerate(events)}
            last_marker = max(at["marker-published", router.number] for router in world.routers)
            closed = [at["server-closed", server] for server in failed]
            normal = [number for (name, _), number in at.items() if name == "server-normal"]
            held = [number for (name, _), number in at.items() if name == "stream-held"]
            assert at["server-failed", failed[0]] < min(at["marker-published", r.number] for r in world.routers)
            assert all(last_marker < at["marker-reached", server] for server in range(world.servers))
            assert all(at["marker-reached", server] < at["server-closed", server] for server in failed)
            assert max(closed) < min(normal)
            assert all(number < max(normal) for number in held)
    assert found


def test_views_by_hypothesis(monkeypatch: pytest.MonkeyPatch) -> None:
    small(monkeypatch)
    by_hypothesis(lambda choose: ViewWorld(choose, joint(choose)))
