"""Which rows a view touches, through the real shells: what is staged is not served, and what is no session stays."""

import time

import pytest

from agents import alignment, leaving
from agents.server import Server
from tables import sessions, waiting
from tests.unit.agents.slow import Slow
from tests.unit.agents.test_views import (
    FAILED,
    HOMES,
    SERVERS,
    SESSIONS,
    TENANTS,
    UP,
    certificates,
    clean,
    live_at,
    run,
    send,
    until,
)
from tests.unit.agents.town import Host, Town
from tests.unit.agents.workbench import NAMES


def waits(host: Host) -> int:
    """How many tasks the server has taken up that wait."""
    assert isinstance(host.resident, Server)
    return host.resident.waiting_count()


@pytest.mark.parametrize("restarts", [False, True])
def test_what_waits_is_not_taken_up_before_all_of_its_session_has_come(
    monkeypatch: pytest.MonkeyPatch, restarts: bool
) -> None:
    """A server returns; one source after the other sends what waits, and says at last that this was all."""
    slow = Slow()

    async def test(town: Town) -> None:
        send(town)
        for tenant in TENANTS:
            for number in range(SESSIONS):
                town.send(tenant, f"s{number}", "again")
        town.order("fail-server", server=FAILED, id="f")
        town.quiet()
        home = town.server(FAILED)
        sources = [town.server(server) for server in sorted(UP)]
        others = [host for host in town.hosts if host not in sources]
        before = sum(waits(source) for source in sources)
        assert waits(home) == 0 < before
        town.order("restore-server", server=FAILED, id="r")
        for _ in range(6):
            for host in others:
                host.turn()
        for source in sources:
            source.take(NAMES.work)
        monkeypatch.setattr(alignment, "TURN_S", 1e-6)
        monkeypatch.setattr(leaving, "PAGE_ROWS", 1)
        early = taken = 0
        for source in sources:
            while source.rows(waiting.NAME) and any(_home(key) == FAILED for key in source.rows(waiting.NAME)):
                source.resident.on_time(time.time())
                source.commit()
                home.turn()
                if restarts:
                    home.restart()
                early += len(home.rows(waiting.NAME)) - taken
                # A task that is due again is about to run, and is not counted.
                assert waits(home) <= taken
            source.turn()
            source.turn()
            home.turn()
            taken = len(home.rows(waiting.NAME))
        assert early > taken > 0
        slow.may_end.set()
        await until(lambda: len(town.results()) == 2 * len(TENANTS) * SESSIONS, town)
        town.quiet()
        clean(town, 2)
        live_at(town, frozenset(range(SERVERS)))

    run(test, slow, routers=1)


def _home(key: bytes) -> int:
    return HOMES[key.split(b"\0", 1)[0].decode()]


def test_rows_of_other_epochs_do_not_leave() -> None:
    """What a copy has staged, or a sweep has not come to, is no session."""

    async def test(town: Town) -> None:
        send(town)
        town.quiet()
        host = town.server(FAILED)
        (row, *_) = host.rows(sessions.NAME).values()
        strangers = {sessions.key_of("acme", epoch, f"s{epoch}"): row for epoch in (1, 10)}
        host.place.rows[sessions.NAME].store.apply(strangers.items(), None)
        left = waiting.key_of(sessions.key_of("acme", 1, "s1"), 1)
        host.place.rows[waiting.NAME].store.apply([(left, b"{}")], None)
        town.order("fail-server", server=FAILED, id="f")
        town.quiet()
        assert town.final("f")["event"] == "server-closed"
        assert host.rows(sessions.NAME) == strangers
        assert host.rows(waiting.NAME) == {left: b"{}"}
        sent, _ = certificates(town, 1)
        assert sum(line[2] for line in sent) == SESSIONS * list(HOMES.values()).count(FAILED)
        live = {key for server in UP for key in town.server(server).rows(sessions.NAME)}
        assert not live & strangers.keys()
        assert len(live) == len(TENANTS) * SESSIONS

    run(test)
