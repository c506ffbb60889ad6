"""A server fails while one of its tenants moves, through the real shells: at any turn, whichever way the move ends."""

import pytest

from app.protocol.placement import route
from tables import sessions
from tests.unit.agents.test_views import FAILED, HOMES, SERVERS, SESSIONS, TENANTS, UP, clean, run, send
from tests.unit.agents.town import Town

TARGET = min(UP)
TURNS = 8


def everybody_at(town: Town, up: frozenset[int], home: int) -> None:
    """Every session is where its key says, with the moved tenant at home at ``home``, and nowhere else."""
    found = set()
    for server in range(SERVERS):
        for key in town.server(server).rows(sessions.NAME):
            tenant, _, session = key.decode().split("\0")
            assert route(tenant, session, home if tenant == "acme" else HOMES[tenant], up) == server
            assert (tenant, session) not in found
            found.add((tenant, session))
    assert len(found) == len(TENANTS) * SESSIONS


@pytest.mark.parametrize("failed", [FAILED, TARGET])
@pytest.mark.parametrize("turn", range(TURNS))
def test_a_server_fails_at_any_turn_of_a_migration(turn: int, failed: int) -> None:
    async def test(town: Town) -> None:
        send(town)
        town.quiet()
        town.order("migrate", "acme", to=TARGET, id="m")
        for number in range(TURNS):
            if number == turn:
                town.order("fail-server", server=failed, id="f")
            send(town)
            town.turn()
        town.quiet()
        ended = town.final("m")
        moved = ended["event"] == "migration-succeeded"
        assert moved or (ended["event"], ended["reason"]) == ("migration-failed", "view-change")
        assert town.final("f")["event"] == "server-closed"
        home = TARGET if moved else FAILED
        everybody_at(town, frozenset(range(SERVERS)) - {failed}, home)
        town.order("restore-server", server=failed, id="r")
        town.quiet()
        everybody_at(town, frozenset(range(SERVERS)), home)
        send(town)
        town.quiet()
        clean(town, TURNS + 2)

    run(test)
