"""Which rows a view touches, through the real shells: what is staged is not served, and what is no session stays."""

import asyncio
import time

import pytest

from agents import alignment, leaving
from agents.server import Server
from app.protocol.affinity import Sending
from tables import sessions, waiting
from tests.unit.agents.slow import Slow, add
from tests.unit.agents.test_views import (
    FAILED,
    HOMES,
    SERVERS,
    SESSIONS,
    TENANTS,
    UP,
    certificates,
    run,
    send,
    until,
)
from tests.unit.agents.town import Host, Town
from tests.unit.agents.workbench import NAMES, handler

AT_HOME = next(tenant for tenant in TENANTS if HOMES[tenant] == FAILED)
WAITING = 9


def waits(host: Host) -> int:
    """How many tasks the server has taken up that wait."""
    assert isinstance(host.resident, Server)
    return host.resident.waiting_count()


def returning(source: Host) -> list[bytes]:
    """What waits there of sessions that go home."""
    return [key for key in source.rows(waiting.NAME) if HOMES[key.split(b"\0", 1)[0].decode()] == FAILED]


def sends(source: Host) -> bool:
    """Is there anything left to be said of what has left?"""
    assert isinstance(source.resident, Server)
    return any(isinstance(state, Sending) for state in source.resident.alignment.states)


class Homecoming:
    """A server returns; one source after the other sends what waits, a row at a time."""

    def __init__(self, town: Town, *, restarts: bool) -> None:
        self.home = town.server(FAILED)
        self.sources = [town.server(server) for server in sorted(UP)]
        self.sending = {source.number: len(returning(source)) for source in self.sources}
        self.restarts = restarts
        self.early = self.whole = 0
        """Rows that have come, of sources that had more to send; and of those that have said that this was all."""

    def begin(self, town: Town) -> None:
        """Everybody has read the markers, and nobody has sent anything."""
        town.order("restore-server", server=FAILED, id="r")
        for _ in range(6):
            for host in town.hosts:
                if host not in self.sources:
                    host.turn()
        for source in self.sources:
            source.take(NAMES.work)

    def page(self, source: Host) -> None:
        """The next row comes."""
        source.resident.on_time(time.time())
        source.commit()
        self.home.turn()
        if self.restarts:
            self.home.restart()
        self.early = max(self.early, len(self.home.rows(waiting.NAME)) - self.whole)
        self.check()

    def first(self, source: Host) -> None:
        while len(returning(source)) == self.sending[source.number]:
            self.page(source)

    def rest(self, source: Host) -> None:
        while returning(source):
            self.page(source)
        while sends(source):
            source.resident.on_time(time.time())
            source.commit()
        self.home.turn()
        self.whole += self.sending[source.number]
        self.check()

    def check(self) -> None:
        assert waits(self.home) <= self.whole


@pytest.mark.parametrize("restarts", [False, True])
def test_what_waits_is_taken_up_when_all_of_its_source_has_come(
    monkeypatch: pytest.MonkeyPatch, restarts: bool
) -> None:
    async def test() -> None:
        slow = Slow()
        handlers = {"add": handler(add), "aside": handler(slow.aside, asynchronous=True)}
        town = Town(handlers, routers=1, servers=SERVERS)
        for number in range(WAITING):
            town.send(AT_HOME, f"s{number}", "aside")
        town.order("fail-server", server=FAILED, id="f")
        town.quiet()
        coming = Homecoming(town, restarts=restarts)
        assert waits(coming.home) == 0
        coming.begin(town)
        monkeypatch.setattr(alignment, "TURN_S", 1e-6)
        monkeypatch.setattr(leaving, "PAGE_ROWS", 1)
        for source in coming.sources:
            coming.first(source)
        assert coming.early == len(coming.sources)
        for source in coming.sources:
            coming.rest(source)
        assert coming.whole == len(coming.home.rows(waiting.NAME)) == waits(coming.home) == WAITING
        slow.may_end.set()
        await until(lambda: len(town.results()) == WAITING, town)
        assert {result["server"] for result in town.results()} == {FAILED}
        for host in town.hosts:
            host.resident.close()

    asyncio.run(test())


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
