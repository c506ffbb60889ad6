"""Servers that fail and return, through the real shells, on a log in memory: every step by hand."""

import asyncio
import json
import time
from collections.abc import Awaitable, Callable
from typing import Any, cast

import pytest

from agents import alignment
from agents.router import Router
from app.handlers import Handler, Session
from app.protocol import control, holding
from app.protocol.homes import Seen
from app.protocol.markers import Leaving, Look
from app.protocol.murmur2 import partition_of
from app.protocol.placement import home_of, route
from tables import handoffs, sessions, waiting
from tests.unit.agents.slow import Slow, add
from tests.unit.agents.town import Town
from tests.unit.agents.workbench import NAMES, handler, turns

SERVERS = 4
ROUTERS = 2
TENANTS = ("acme", "beta", "gamma", "delta", "eps", "zeta")
HOMES = {tenant: home_of(tenant.encode(), None, SERVERS) for tenant in TENANTS}
FAILED = HOMES["acme"]
UP = frozenset(range(SERVERS)) - {FAILED}
SESSIONS = 12


class Poison:
    """A handler that kills its host, and notes how often."""

    def __init__(self) -> None:
        self.runs = 0

    def kill(self, session: Session[Any], payload: dict[str, Any]) -> dict[str, Any]:
        self.runs += 1
        raise KeyboardInterrupt


POISON = Poison()


def run(test: Callable[[Town], Awaitable[None]], slow: Slow | None = None, routers: int = ROUTERS) -> None:
    async def body() -> None:
        handlers: dict[str, Handler] = {"add": handler(add), "kill": handler(POISON.kill)}
        if slow is not None:
            handlers["again"] = handler(slow.again)
        town = Town(handlers, routers=routers, servers=SERVERS)
        await test(town)
        await turns()
        for host in town.hosts:
            host.resident.close()

    asyncio.run(body())


def send(town: Town, **payload: Any) -> None:
    for tenant in TENANTS:
        for number in range(SESSIONS):
            town.send(tenant, f"s{number}", **payload)


def counted(town: Town) -> dict[tuple[str, str], list[int]]:
    found: dict[tuple[str, str], list[int]] = {}
    for result in town.results():
        assert result["status"] == "done", result
        found.setdefault((result["tenant"], result["session"]), []).append(result["result"]["n"])
    return found


def clean(town: Town, tasks: int) -> None:
    """Every task has taken effect once, in order; no session is anywhere but where it belongs."""
    wanted = {(tenant, f"s{number}"): list(range(1, tasks + 1)) for tenant in TENANTS for number in range(SESSIONS)}
    assert counted(town) == wanted


def live_at(town: Town, up: frozenset[int]) -> None:
    found: list[tuple[str, str]] = []
    for server in range(town.servers):
        for key in town.server(server).rows(sessions.NAME):
            tenant, _, session = key.decode().split("\0")
            assert route(tenant, session, HOMES[tenant], up) == server
            found.append((tenant, session))
    assert len(found) == len(set(found)) == len(TENANTS) * SESSIONS


def names(town: Town, *wanted: str) -> list[str]:
    return [event["event"] for event in town.events() if not wanted or event["event"] in wanted]


def certificates(town: Town, view: int) -> tuple[list[Any], list[Any]]:
    """What has left and what has arrived in a view, by source and target."""
    lines: dict[bool, list[Any]] = {True: [], False: []}
    for event in town.events():
        if event.get("view") == view and "certificate" in event:
            for line in event["certificate"]:
                lines[line["source"] == event["server"]].append(tuple(line.values()))
    return sorted(lines[True]), sorted(lines[False])


def test_a_server_fails_and_returns() -> None:
    async def test(town: Town) -> None:
        send(town)
        town.quiet()
        town.order("fail-server", server=FAILED, id="f")
        town.quiet()
        assert (town.final("f")["event"], town.final("f")["view"]) == ("server-closed", 1)
        live_at(town, UP)
        left, arrived = certificates(town, 1)
        assert left == arrived
        assert sum(line[2] for line in left) == SESSIONS * list(HOMES.values()).count(FAILED)
        send(town)
        town.quiet()
        town.order("restore-server", server=FAILED, id="r")
        town.quiet()
        assert (town.final("r")["event"], town.final("r")["view"]) == ("server-restored", 2)
        live_at(town, frozenset(range(SERVERS)))
        left, arrived = certificates(town, 2)
        assert left == arrived
        send(town)
        town.quiet()
        clean(town, 3)

    run(test)


def test_the_sequence_of_the_patents() -> None:
    """A worker dies: detected, marked, drained to the marker, closed, normal; every step an event, in this order."""

    async def test(town: Town) -> None:
        hosts = tuple("w1" if server == FAILED else "w2" for server in range(SERVERS))
        town.seen = Seen({"w1": 1, "w2": 1}, hosts, settled=True)
        town.quiet()
        send(town)
        town.quiet()
        town.die("w1", "w2")
        for _ in range(8):
            send(town)
            # The failed server's stream takes its time.
            for host in town.hosts:
                if host is not town.server(FAILED):
                    host.turn()
        performed = len(town.results())
        assert performed > len(TENANTS) * SESSIONS * 4, "those who did not fail went on"
        town.quiet()
        clean(town, 9)
        events = names(town)
        assert events[0] == "worker-lost"
        firsts = [events.index(name) for name in ("worker-lost", "server-failed", "marker-published", "marker-reached")]
        assert firsts == sorted(firsts)
        assert events.index("marker-reached") < events.index("server-closed") < events.index("server-normal")
        assert events.index("stream-held") > events.index("marker-published")
        assert names(town, "server-failed", "stream-opened") == ["server-failed", "stream-opened"]
        assert names(town, "server-normal") == ["server-normal"] * (SERVERS - 1)
        live_at(town, UP)

    run(test)


@pytest.mark.parametrize("turns_before", range(14))
@pytest.mark.parametrize("victim", ["router", "other router", "failed", "receiver"])
def test_a_host_dies_at_any_turn(victim: str, turns_before: int) -> None:
    async def test(town: Town) -> None:
        host = {
            "router": town.router(0),
            "other router": town.router(1),
            "failed": town.server(FAILED),
            "receiver": town.server(min(UP)),
        }[victim]
        send(town)
        town.quiet()
        town.order("fail-server", server=FAILED, id="f")
        for number in range(14):
            send(town, fill="x" * 3_000)
            if number == 7:
                town.order("restore-server", server=FAILED, id="r")
            if number == turns_before:
                host.turn(commit=False)
                host.restart()
            town.turn()
        town.quiet()
        assert town.final("f")["event"] == "server-closed"
        assert town.final("r")["event"] == "server-restored"
        clean(town, 15)
        live_at(town, frozenset(range(SERVERS)))
        assert certificates(town, 1)[0]
        for host in town.hosts[town.routers :]:
            assert not [key for key in host.rows(handoffs.NAME) if key.startswith(handoffs.HELD)]

    run(test)


def hold(town: Town) -> None:
    """The server fails, and everybody but itself has read so: what goes to its sessions is held."""
    send(town)
    town.quiet()
    town.order("fail-server", server=FAILED, id="f")
    for _ in range(6):
        for host in town.hosts:
            if host is not town.server(FAILED):
                host.turn()


def test_a_held_task_that_kills_its_hosts_is_failed() -> None:
    """It is announced before it runs, then runs alone, and is failed; all others are performed.

    The first hosts die before it is committed that they hold it: those deaths count for the stream.
    """

    async def test(town: Town) -> None:
        POISON.runs = 0
        hold(town)
        for _ in range(3):
            send(town)
        target = town.server(route("acme", "s0", FAILED, UP))
        town.send("acme", "s0", "kill")
        town.send("acme", "s0")
        deaths = turn = 0
        while len(town.results()) < len(TENANTS) * SESSIONS * 4 + 2:
            turn += 1
            assert turn < 500, "it does not come to an end"
            for host in town.hosts:
                try:
                    host.turn()
                except KeyboardInterrupt:
                    assert host is target
                    deaths += 1
                    host.restart(died=True)
        town.quiet()
        assert 3 <= deaths == POISON.runs <= 5
        assert town.final("f")["event"] == "server-closed"
        (failed,) = [result for result in town.results() if result["status"] == "failed"]
        assert (failed["session"], failed["error"]["type"]) == ("s0", "HostDied")
        counts = [len(results) for results in grouped(town).values()]
        assert sorted(counts) == [4] * (len(counts) - 1) + [6]
        assert [result["sequence"] for result in grouped(town)["acme", "s0"]] == [1, 2, 3, 4, 5, 6]
        assert target.engine.suspects.standing == {}

    run(test)


def grouped(town: Town) -> dict[tuple[str, str], list[dict[str, Any]]]:
    found: dict[tuple[str, str], list[dict[str, Any]]] = {}
    for result in town.results():
        found.setdefault((result["tenant"], result["session"]), []).append(result)
    return found


def test_what_waits_goes_with_its_session() -> None:
    """A task that is to be retried leaves with its session; its wake-up finds it at the new server, once."""
    slow = Slow()

    async def test(town: Town) -> None:
        send(town)
        for tenant in TENANTS:
            town.send(tenant, "s1", "again")
            town.send(tenant, "s1")
        for _ in range(4):
            town.turn()
        assert town.server(FAILED).rows(waiting.NAME)
        town.order("fail-server", server=FAILED, id="f")
        for _ in range(10):
            town.turn()
        assert not town.server(FAILED).rows(waiting.NAME)
        slow.may_end.set()
        await until(lambda: len(town.results()) == len(TENANTS) * (SESSIONS + 2), town)
        assert counted(town)["acme", "s1"] == [1, 2, 3]
        assert slow.runs[0] == FAILED or FAILED in slow.runs
        live_at(town, UP)

    run(test, slow)


async def until(condition: Callable[[], bool], town: Town) -> None:
    """Turn until a condition is met; what runs aside goes on beside."""
    for _ in range(2_000):
        if condition():
            return
        town.turn()
        await asyncio.sleep(0.005)
    raise AssertionError("it does not come to an end")


def opened_anew(steward: Any) -> None:
    steward.restart()


def left_alone(steward: Any) -> None:
    """A new generation, in which the place stays where it is."""
    steward.engine.generation += 1


regrouped = pytest.mark.parametrize("regroup", [opened_anew, left_alone])


@regrouped
def test_a_leave_in_good_order_is_no_death(regroup: Callable[[Any], None]) -> None:
    """The plan without the worker is known before its word of leaving was read: it is not believed until then."""

    async def test(town: Town) -> None:
        town.quiet()
        steward = town.router()
        town.seen = Seen({"w1": 1}, ("w1",) * SERVERS, settled=True)
        key, value = control.encode(Leaving("w2", 1))
        town.put(NAMES.commands, 0, key, value)
        regroup(steward)
        # Timers first: nothing of `commands` was fetched yet.
        steward.resident.on_time(time.time())
        town.quiet()
        assert town.events() == []
        # And who is gone without a word has died.
        town.seen = Seen({"w3": 1}, ("w3",) * SERVERS, settled=True)
        regroup(steward)
        town.quiet()
        assert names(town)[0] == "worker-lost"

    run(test)


@regrouped
def test_a_word_of_an_earlier_plan_says_nothing(regroup: Callable[[Any], None]) -> None:
    """Only the record that this very steward wrote tells it that it has read enough."""

    async def test(town: Town) -> None:
        town.quiet()
        steward = town.router()
        (look,) = [record for record in town.log[NAMES.commands, 0] if record.key() == b"!look"]
        town.seen = Seen({"w1": 1}, ("w1",) * SERVERS, settled=True)
        town.put(NAMES.commands, 0, look.key(), look.value())
        key, value = control.encode(Leaving("w2", 1))
        town.put(NAMES.commands, 0, key, value)
        regroup(steward)
        town.quiet()
        assert town.events() == []

    run(test)


def test_a_plan_that_came_after_the_word_is_not_believed_by_it() -> None:
    async def test(town: Town) -> None:
        town.quiet()
        steward = town.router()
        steward.engine.generation += 1
        steward.resident.on_time(time.time())
        (look,) = [record for record in steward.engine.records(NAMES.commands) if record["key"] == b"!look"]
        # Before its own word comes back the group changes again, and a worker is gone whose word stands behind it.
        steward.engine.generation += 1
        town.seen = Seen({"w1": 1}, ("w1",) * SERVERS, settled=True)
        decoded = control.decode_control(look["key"], look["value"])
        assert isinstance(decoded, Look)
        stays = cast("Router", steward.resident).steward
        assert stays is not None
        stays.take(decoded)
        key, value = control.encode(Leaving("w2", 1))
        town.put(NAMES.commands, 0, key, value)
        town.quiet()
        assert town.events() == []

    run(test)


def test_commands_about_servers_have_one_end_each() -> None:
    async def test(town: Town) -> None:
        town.quiet()
        wrong: list[tuple[dict[str, Any], str]] = [
            ({"command": "restore-server", "server": 1}, "server-up"),
            ({"command": "fail-server", "server": SERVERS}, "unknown-server"),
            ({"command": "forget-worker", "worker": "w9"}, "unknown-worker"),
            ({"command": "forget-worker", "worker": "w1"}, "worker-alive"),
            ({"command": "drain-server", "server": -1}, "unknown-server"),
            ({"command": "fail-server", "server": "x"}, "bad-command"),
            ({"command": "forget-worker"}, "bad-command"),
        ]
        for number, (command, reason) in enumerate(wrong):
            town.order(**command, id=f"c{number}")
            town.quiet()
            assert (town.final(f"c{number}")["event"], town.final(f"c{number}")["reason"]) == (
                "command-rejected",
                reason,
            )
        # One that went to another router is sent on, and a repetition is answered as it was.
        order: dict[str, Any] = {"command": "fail-server", "server": 1, "id": "f"}
        town.put(NAMES.commands, 1, None, json.dumps(order).encode())
        town.quiet()
        assert town.final("f")["event"] == "server-closed"
        town.order(**order)
        town.quiet()
        assert [event["event"] for event in town.events() if event["id"] == "f" and event["final"]] == [
            "server-closed",
            "server-closed",
        ]
        assert len(names(town, "server-failed")) == 1

    run(test)


def test_a_stream_that_holds_too_much_is_read_no_further(monkeypatch: pytest.MonkeyPatch) -> None:
    """Hand-offs are read on, or nothing would ever leave."""
    monkeypatch.setattr(holding, "HELD_MAX", 5)

    async def test(town: Town) -> None:
        hold(town)
        for _ in range(4):
            send(town)
            for host in town.hosts:
                if host is not town.server(FAILED):
                    host.turn()
        full = [server for server in UP if town.server(server).resident.pausing()]
        assert full
        assert names(town, "stream-full") == ["stream-full"] * len(full)
        for _ in range(4):
            town.turn()
        town.quiet()
        clean(town, 5)
        assert not any(town.server(server).resident.pausing() for server in UP)

    run(test)


def test_nothing_overtakes_what_is_held(monkeypatch: pytest.MonkeyPatch) -> None:
    """New tasks come while held ones are performed, a few at a time: those of one session keep their order."""
    monkeypatch.setattr(alignment, "TURN_S", 0.0002)
    monkeypatch.setattr(alignment, "RESUMED_AT_ONCE", 1)

    async def test(town: Town) -> None:
        hold(town)
        for _ in range(4):
            send(town)
        for host in town.hosts:
            if host is not town.server(FAILED):
                host.turn()
        for _ in range(30):
            town.send("acme", "s0")
            town.turn()
        town.quiet()
        assert counted(town)["acme", "s0"] == list(range(1, 36))
        assert all(found == list(range(1, len(found) + 1)) for found in counted(town).values())

    run(test)


def test_a_migration_ends_before_the_view_that_fails_its_server() -> None:
    async def test(town: Town) -> None:
        send(town)
        town.quiet()
        town.order("migrate", "acme", to=min(UP), id="m", offline=True)
        town.router(partition_of(b"acme", ROUTERS)).turn()
        town.order("fail-server", server=FAILED, id="f")
        for _ in range(4):
            send(town)
            town.turn()
        town.quiet()
        ended = town.final("m")
        assert (ended["event"], ended["reason"]) == ("migration-failed", "view-change")
        assert town.final("f")["event"] == "server-closed"
        clean(town, 5)
        live_at(town, UP)
        town.order("migrate", "acme", to=min(UP), id="again")
        town.quiet()
        assert town.final("again")["reason"] == "server-down"

    run(test)


@pytest.mark.parametrize("restarts", [False, True])
def test_a_wake_up_that_comes_before_its_session_wakes_nobody(restarts: bool) -> None:
    """The router sends it to where the session is going; nothing of the session is in memory there before it is."""
    slow = Slow()

    async def test(town: Town) -> None:
        town.hurries = False
        send(town)
        for tenant in TENANTS:
            town.send(tenant, "s1", "again")
            town.send(tenant, "s1")
        for _ in range(4):
            town.turn()
        town.order("fail-server", server=FAILED, id="f")
        later = time.monotonic() + 0.7
        while time.monotonic() < later:
            for host in town.hosts:
                if host is not town.server(FAILED):
                    host.turn()
            await asyncio.sleep(0.01)
        slow.may_end.set()
        town.hurries = True
        # The failed server has sent what waits, and nobody has been told yet that this was all.
        town.server(FAILED).take(NAMES.work)
        for _ in range(3):
            town.server(FAILED).resident.on_time(time.time())
            town.server(FAILED).commit()
            for server in UP if restarts else ():
                town.server(server).turn()
                town.server(server).restart()
        await until(lambda: len(town.results()) == len(TENANTS) * (SESSIONS + 2), town)
        town.quiet()
        assert all(found == list(range(1, len(found) + 1)) for found in counted(town).values())
        live_at(town, UP)

    run(test, slow)
