"""Data outside the sessions moves with its tenant, or stays with it."""

import asyncio
from pathlib import Path

import pytest

from app.movers import Share
from tables import handoffs
from tests.support.directories import Directories
from tests.unit.agents.slow import add
from tests.unit.agents.test_moves import HOME, TARGET, TENANT, clean, send
from tests.unit.agents.town import Town
from tests.unit.agents.workbench import handler

FILES = {f"file-{number}": b"%d" % number * 1_000 for number in range(5)}


async def rest(town: Town) -> None:
    """Turn until nothing happens any more; what movers do happens beside."""
    still = 0
    while still < 20:
        still = 0 if town.turn() else still + 1
        await asyncio.sleep(0.005)


@pytest.mark.parametrize("fails", ["", "export", "install"])
def test_files_move_or_stay(tmp_path: Path, fails: str) -> None:
    async def body() -> None:
        mover = Directories(tmp_path)
        town = Town({"add": handler(add)}, movers={mover.name: mover})
        source, target = Share(TENANT, HOME, 0), Share(TENANT, TARGET, 1)
        for name, data in FILES.items():
            await mover.install(source, name, data)
        send(town, 3)
        await rest(town)
        mover.fails = fails
        town.order("migrate", TENANT, to=TARGET, id="m")
        await rest(town)
        event = town.final("m")
        if fails:
            server = HOME if fails == "export" else TARGET
            reason = f"server {server}: mover files: OSError: the disk is full"
            assert (event["event"], event["reason"]) == ("migration-failed", reason)
        else:
            assert (event["event"], event["rows"]) == ("migration-succeeded", 3 + len(FILES))
        assert mover.files(source) == (FILES if fails else {})
        assert mover.files(target) == ({} if fails else FILES)
        send(town, 3)
        await rest(town)
        clean(town, 3, 2)
        for number in range(3):
            assert set(town.server(number).rows(handoffs.NAME)) <= {handoffs.tenant_key(TENANT)}
            town.server(number).resident.close()

    asyncio.run(body())


@pytest.mark.parametrize("turns", range(0, 16, 3))
@pytest.mark.parametrize("victim", ["source", "target"])
def test_a_host_dies_while_files_move(tmp_path: Path, victim: str, turns: int) -> None:
    async def body() -> None:
        mover = Directories(tmp_path)
        town = Town({"add": handler(add)}, movers={mover.name: mover})
        for name, data in FILES.items():
            await mover.install(Share(TENANT, HOME, 0), name, data)
        send(town, 3)
        await rest(town)
        town.order("migrate", TENANT, to=TARGET, id="m")
        for _ in range(turns):
            town.turn()
            await asyncio.sleep(0.002)
        host = town.server(HOME if victim == "source" else TARGET)
        host.turn(commit=False)
        host.restart()
        await rest(town)
        assert town.final("m")["event"] == "migration-succeeded"
        assert mover.files(Share(TENANT, TARGET, 1)) == FILES
        assert mover.files(Share(TENANT, HOME, 0)) == {}
        clean(town, 3, 1)

    asyncio.run(body())
