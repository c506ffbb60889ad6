"""Migrations through the real shells, on a log in memory: every step by hand."""

import asyncio
import time
from collections.abc import Awaitable, Callable
from typing import Any

import pytest

from app.errors import LocalProtocolError
from app.handlers import Handler
from app.protocol import pacing, shipping
from app.protocol.control import Measure
from app.protocol.placement import home_of
from tables import handoffs, sessions, waiting
from tests.unit.agents.slow import Slow, add
from tests.unit.agents.town import Town
from tests.unit.agents.workbench import NAMES, handler, task, turns

TENANT = "acme"
HOME = home_of(TENANT.encode(), None, 3)
TARGET = (HOME + 1) % 3
THIRD = (HOME + 2) % 3


def run(test: Callable[[Town], Awaitable[None]], slow: Slow | None = None) -> None:
    async def body() -> None:
        handlers = {"add": handler(add)}
        if slow is not None:
            handlers["aside"] = handler(slow.aside, asynchronous=True)
            handlers["blocking"] = Handler("blocking", slow.blocking, True, False, None, None)
            handlers["again"] = handler(slow.again)
        town = Town(handlers)
        await test(town)
        await turns()
        for host in town.hosts:
            host.resident.close()

    asyncio.run(body())


def counted(town: Town) -> dict[str, list[int]]:
    """What each session's results say, in their order."""
    found: dict[str, list[int]] = {}
    for result in town.results():
        assert result["status"] == "done", result
        found.setdefault(result["session"], []).append(result["result"]["n"])
    return found


def clean(town: Town, sessions_: int, tasks: int) -> None:
    assert counted(town) == {f"s{n}": list(range(1, tasks + 1)) for n in range(sessions_)}


def send(town: Town, count: int, **payload: Any) -> None:
    for number in range(count):
        town.send(TENANT, f"s{number}", **payload)


def test_a_tenant_moves_with_its_sessions() -> None:
    async def test(town: Town) -> None:
        send(town, 5)
        town.quiet()
        town.order("migrate", TENANT, to=TARGET, id="m")
        town.quiet()
        event = town.final("m")
        assert event["event"] == "migration-succeeded"
        assert (event["from"], event["to"], event["rows"], event["parked"]) == (HOME, TARGET, 5, 0)
        (part,) = event["certificate"]
        assert (part["source"], part["target"], part["rows"]) == (HOME, TARGET, 5)
        send(town, 5)
        town.quiet()
        clean(town, 5, 2)
        assert {result["server"] for result in town.results()[5:]} == {TARGET}
        assert town.server(HOME).rows(sessions.NAME) == {}
        assert {key.split(b"\0")[1] for key in town.server(TARGET).rows(sessions.NAME)} == {b"1"}
        assert set(town.server(HOME).rows(handoffs.NAME)) == {handoffs.tenant_key(TENANT)}

    run(test)


def test_tasks_are_parked_behind_the_cut_and_released_in_their_order() -> None:
    async def test(town: Town) -> None:
        send(town, 4)
        town.quiet()
        town.order("migrate", TENANT, to=TARGET, id="m", offline=True)
        town.router().turn()
        for _ in range(3):
            send(town, 4)
            town.router().turn()
        assert len([r for r in town.log[NAMES.delay, 0] if r.headers()]) == 12
        town.quiet()
        assert town.final("m")["parked"] == 12
        send(town, 4)
        town.quiet()
        clean(town, 4, 5)

    run(test)


def test_a_source_that_does_not_answer_in_time_keeps_its_tenant() -> None:
    async def test(town: Town) -> None:
        send(town, 4)
        town.quiet()
        town.order("migrate", TENANT, to=TARGET, id="m", offline=True, timeout=0.001)
        town.router().turn()
        send(town, 4)
        town.router().turn()
        town.router().turn()
        town.quiet()
        event = town.final("m")
        assert (event["event"], event["reason"]) == ("migration-failed", "timeout")
        send(town, 4)
        town.quiet()
        clean(town, 4, 3)
        assert {result["server"] for result in town.results()} == {HOME}
        town.order("migrate", TENANT, to=TARGET, id="again")
        town.quiet()
        assert town.final("again")["event"] == "migration-succeeded"
        assert town.final("again")["epoch"] == 2

    run(test)


@pytest.mark.parametrize("turns_before", range(12))
@pytest.mark.parametrize("victim", ["router", "source", "target"])
def test_a_host_dies_at_any_turn(victim: str, turns_before: int) -> None:
    async def test(town: Town) -> None:
        host = {"router": town.router(), "source": town.server(HOME), "target": town.server(TARGET)}[victim]
        send(town, 6, fill="x" * 30_000)
        town.quiet()
        town.order("migrate", TENANT, to=TARGET, id="m")
        for number in range(12):
            send(town, 6)
            if number == turns_before:
                host.turn(commit=False)
                host.restart()
            town.turn()
        town.quiet()
        assert town.final("m")["event"] == "migration-succeeded"
        clean(town, 6, 13)
        assert town.server(HOME).rows(sessions.NAME) == {}

    run(test)


async def until(condition: Callable[[], bool], town: Town) -> None:
    """Turn until a condition is met; what runs aside goes on beside."""
    for _ in range(2_000):
        if condition():
            return
        town.turn()
        await asyncio.sleep(0.002)
    raise AssertionError("it does not come to that")


@pytest.mark.parametrize("outcome", ["migration-succeeded", "migration-failed"])
@pytest.mark.parametrize("kind", ["aside", "blocking", "again"])
def test_what_waits_goes_with_its_tenant(kind: str, outcome: str) -> None:
    """What runs at the source at the cut comes to nothing there; it runs where the tenant is in the end."""
    slow = Slow()

    async def test(town: Town) -> None:
        send(town, 2)
        town.send(TENANT, "s0", kind)
        town.send(TENANT, "s0", "add")
        await until(lambda: len(slow.runs) >= 1 and len(counted(town).get("s1", [])) == 1, town)
        fails = outcome == "migration-failed"
        town.order("migrate", TENANT, to=TARGET, id="m", offline=True)
        if fails:
            town.order("abort-migration", TENANT, id="a")
        before = len(slow.runs)
        await until(lambda: any(event["id"] == "m" and event["final"] for event in town.events()), town)
        assert town.final("m")["event"] == outcome
        await until(lambda: len(slow.runs) > before, town)
        slow.may_end.set()
        send(town, 2)
        await until(lambda: len(counted(town)["s0"]) == 4, town)
        for _ in range(20):
            town.turn()
            await asyncio.sleep(0.002)
        assert counted(town) == {"s0": [1, 2, 3, 4], "s1": [1, 2]}
        assert slow.runs[-1] == (HOME if fails else TARGET)
        for host in town.hosts:
            assert host.engine.failure is None
            assert waiting.NAME not in host.place.rows or host.rows(waiting.NAME) == {}

    run(test, slow)


def test_a_task_behind_the_cut_stops_the_server() -> None:
    """No router may send one: it is taken for a defect, not performed."""

    async def test(town: Town) -> None:
        send(town, 1)
        town.quiet()
        town.order("migrate", TENANT, to=TARGET, id="m", offline=True)
        while not town.server(HOME).resident.tenants.known(TENANT).frozen:  # type: ignore[attr-defined]
            town.turn()
        town.put(NAMES.work, HOME, b"0:99", task("add", "s0"))
        with pytest.raises(LocalProtocolError, match="is frozen"):
            town.server(HOME).turn()

    run(test)


def test_a_task_where_it_does_not_belong_goes_its_way_again() -> None:
    """No router sends one; whatever did, it has no place in the order, but its end."""

    async def test(town: Town) -> None:
        send(town, 1)
        town.quiet()
        town.order("migrate", TENANT, to=TARGET, id="m")
        town.quiet()
        town.put(NAMES.work, HOME, b"0:99", task("add", "s0"))
        town.quiet()
        (event,) = [event for event in town.events() if event["event"] == "task-misplaced"]
        assert (event["server"], event["to"], event["source"]) == (HOME, TARGET, {"partition": 0, "offset": 99})
        clean(town, 1, 2)

    run(test)


def test_a_server_is_emptied() -> None:
    async def test(town: Town) -> None:
        tenants = [f"t{number}" for number in range(40)]
        for tenant in tenants:
            town.send(tenant, "s")
        town.quiet()
        mine = [tenant for tenant in tenants if home_of(tenant.encode(), None, 3) == HOME]
        assert len(mine) > 8
        town.order("drain-server", server=HOME, id="d")
        town.quiet(4_000)
        assert town.final("d") | {"at": None} == {
            "event": "server-drained",
            "at": None,
            "id": "d",
            "final": True,
            "server": HOME,
            "moved": len(mine),
            "failed": [],
        }
        assert town.server(HOME).rows(sessions.NAME) == {}
        town.order("drain-server", server=HOME, id="d")
        town.quiet()
        assert [event["event"] for event in town.events() if event["id"] == "d"] == ["server-drained"] * 2

    run(test)


def test_a_plan_counts_what_would_move() -> None:
    async def test(town: Town) -> None:
        send(town, 5)
        town.quiet()
        town.order("migrate", TENANT, to=TARGET, id="p", dry_run=True)
        town.quiet()
        plan = town.final("p")
        assert (plan["event"], plan["sessions"], plan["waiting"], plan["blocked"]) == ("migration-plan", 5, 0, [])
        assert plan["bytes"] == sum(map(len, town.server(HOME).rows(sessions.NAME).values()))
        assert not town.server(HOME).rows(handoffs.NAME)

    run(test)


def test_what_is_parked_is_kept_however_often_it_falls_due() -> None:
    """A router that takes over reads it from where the first of it stands: nothing below may have been given up."""

    async def test(town: Town) -> None:
        send(town, 4)
        town.quiet()
        router = town.router()
        town.order("migrate", TENANT, to=TARGET, id="m", offline=True)
        router.turn()
        for later in (3, 6, 9):
            send(town, 4)
            router.turn()
            router.resident.on_time(time.time() + later)
            router.commit()
        router.turn()
        router.restart()
        town.quiet()
        event = town.final("m")
        assert (event["event"], event["parked"]) == ("migration-succeeded", 12)
        assert event["redelayed"] >= 12
        clean(town, 4, 4)

    run(test)


def test_sessions_that_change_while_they_are_copied_are_copied_again(monkeypatch: pytest.MonkeyPatch) -> None:
    """One session a turn; those before, at and behind it change meanwhile, and new ones come."""
    monkeypatch.setattr(pacing, "CALM", pacing.Pace(rows=1, period_s=0.01, rest=9.0))
    monkeypatch.setattr(shipping, "FEW", 0)

    async def test(town: Town) -> None:
        send(town, 8)
        town.quiet()
        town.order("migrate", TENANT, to=TARGET, id="m")
        for _ in range(6):
            town.turn()
            send(town, 10)
        town.quiet()
        event = town.final("m")
        assert (event["event"], event["rows"]) == ("migration-succeeded", 10)
        assert counted(town) == {f"s{n}": list(range(1, 8 if n < 8 else 7)) for n in range(10)}

    run(test)


def test_a_copy_keeps_its_pace_however_often_the_target_answers(monkeypatch: pytest.MonkeyPatch) -> None:
    """As many rows a second as the pace says, though every answer makes the server look again."""
    slices = 20
    monkeypatch.setattr(pacing, "CALM", pacing.Pace(rows=5, period_s=0.2, rest=0.0))

    async def test(town: Town) -> None:
        send(town, slices * pacing.CALM.rows)
        town.quiet()
        begun = time.time() + town.skipped
        town.order("migrate", TENANT, to=TARGET, id="m")
        while not any(event["event"] == "migration-phase" for event in town.events()):
            town.turn()
        assert time.time() + town.skipped - begun >= (slices - 1) * pacing.CALM.period_s
        gates = town.router().resident.gates  # type: ignore[attr-defined]
        (told,) = gates.copied[TENANT.encode()].items()
        assert told[0] == HOME
        assert 0 < told[1][0] <= slices * pacing.CALM.rows
        town.quiet()
        assert gates.copied == {}
        assert town.final("m")["rows"] == slices * pacing.CALM.rows
        clean(town, slices * pacing.CALM.rows, 1)

    run(test)


def test_a_plan_does_not_wait_for_a_sweep(monkeypatch: pytest.MonkeyPatch) -> None:
    """Rows that nobody reads any more are deleted one by one; meanwhile somebody asks about another tenant."""
    monkeypatch.setattr(pacing, "SWEEP", pacing.Pace(rows=1, period_s=0.01, rest=9.0))

    async def test(town: Town) -> None:
        other = next(name for name in map(str, range(50)) if home_of(name.encode(), None, 3) == HOME)
        send(town, 40)
        town.send(other, "s")
        town.quiet()
        town.order("migrate", TENANT, to=TARGET, id="m")
        source = town.server(HOME)
        while 0 < len(source.rows(sessions.NAME)) - 1 != 30:
            town.turn()
        town.order("migrate", other, to=TARGET, id="plan", dry_run=True)
        for _ in range(8):
            town.turn()
        assert town.final("plan")["sessions"] == 1
        assert len(source.rows(sessions.NAME)) > 10
        # One about the tenant that is swept waits until that is done: its chores do not meet.
        source.resident.tenants.measure(Measure(TENANT, "late", 0, THIRD))  # type: ignore[attr-defined]
        for _ in range(4):
            town.turn()
        assert len(source.rows(sessions.NAME)) > 1
        assert not [event for event in town.events() if event["id"] == "late"]
        town.quiet()
        assert town.final("late")["sessions"] == 0
        assert set(source.rows(sessions.NAME)) == {sessions.key_of(other, 0, "s")}
        assert set(source.rows(handoffs.NAME)) == {handoffs.tenant_key(TENANT)}

    run(test)


def test_a_target_that_dies_serves_nothing_that_is_only_staged() -> None:
    slow = Slow()

    async def test(town: Town) -> None:
        town.send(TENANT, "s0", "aside")
        town.send(TENANT, "s0", "add")
        await until(lambda: len(slow.runs) == 1, town)
        town.order("migrate", TENANT, to=TARGET, id="m", offline=True)
        target = town.server(TARGET)
        await until(lambda: waiting.NAME in target.place.rows and target.rows(waiting.NAME) != {}, town)
        target.restart()
        await turns()
        assert slow.runs == [HOME]
        slow.may_end.set()
        await until(lambda: len(counted(town).get("s0", [])) == 2, town)
        assert slow.runs == [HOME, TARGET]

    run(test, slow)


def test_a_release_that_has_passed_another_tenants_tasks_goes_back_for_them() -> None:
    """Two tenants are parked in turns; the first is released while the other one still waits for its source."""

    async def test(town: Town) -> None:
        other = next(name for name in map(str, range(50)) if home_of(name.encode(), None, 3) == THIRD)
        for tenant in (TENANT, other):
            town.send(tenant, "s")
        town.quiet()
        town.order("migrate", TENANT, to=TARGET, id="one", offline=True)
        town.order("migrate", other, to=TARGET, id="two", offline=True)
        for _ in range(3):
            town.router().turn()
            for tenant in (TENANT, other):
                town.send(tenant, "s")
        for _ in range(20):
            for host in (town.router(), town.server(HOME), town.server(TARGET)):
                host.turn()
        assert town.final("one")["parked"] == 3
        assert [event for event in town.events() if event["id"] == "two" and event["final"]] == []
        town.quiet()
        assert town.final("two")["parked"] == 3
        found: dict[str, list[int]] = {}
        for result in town.results():
            found.setdefault(result["tenant"], []).append(result["result"]["n"])
        assert found == {TENANT: [1, 2, 3, 4], other: [1, 2, 3, 4]}

    run(test)
