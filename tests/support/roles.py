"""Migrations whose hosts are killed: who plays which part, who dies when, and what may be left of it.

A case is a point and the roles that die there. Whoever passes the point first stops; then the hosts of those roles are
killed at once, the others go on. The dead are started again, the migration has to end by itself. Nobody waits for those
that come back: there are more workers than roles, so the next case begins while they join.
"""

import subprocess
import time
from collections.abc import Iterable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from itertools import combinations, count, islice
from pathlib import Path
from types import TracebackType
from typing import Any, Final, NamedTuple, Self

from app.observe.reading import read_account, wait_for_results
from app.protocol.moves import Settled
from app.protocol.murmur2 import partition_of
from app.protocol.placement import home_of
from tables import handoffs, parked, placements, sessions, waiting
from tests.support import chain
from tests.support.cluster import Worker, Workers, wait_for
from tests.support.job import check_chains, when_sent
from tests.support.load import Load, Plan
from tests.support.moves import Mover

POINTS: Final = {
    "move-ordered": "router",
    "move-copies": "source",
    "move-stages": "target",
    "move-closes": "router",
    "move-cut": "source",
    "move-complete": "source",
    "move-installed": "target",
    "move-decided": "router",
    "move-lives": "target",
    "move-releases": "router",
    "move-settled": "router",
    "move-sweeps": "source",
}
"""The points of a migration in their order, and who passes them."""

ROUTERS: Final = 4
ROLES: Final = ("source", "target", "router")
DEATHS: Final = tuple(dead for size in (1, 2) for dead in combinations(ROLES, size))
NAMES: Final = ("w1", "w2", "w3", "w4", "w5")
PATIENCE_S: Final = 150.0
TYPES: Final = (*["chain.link"] * 8, "chain.async", "chain.retry")
"""Few enough are retried that the sessions keep up with what is sent."""


class Cast(NamedTuple):
    """A tenant that three workers have to do with: ``hosts`` by role."""

    prefix: str
    tenant: str
    home: int
    target: int
    hosts: dict[str, str]


@dataclass(frozen=True)
class Told:
    """What became of a case."""

    point: str
    dead: tuple[str, ...]
    event: dict[str, Any]
    seconds: float

    def __str__(self) -> str:
        event = self.event
        ended = f"{event['event']}, {event['rows']} rows, {event['parked']} parked, pause {event['pause_ms']} ms"
        return f"{self.point:15} {' and '.join(self.dead):18} {ended}, {self.seconds:.1f} s"


class Stage:
    """Five workers that halt where they are told, with neighbours' traffic; every case has a tenant of its own.

    They are to return before their servers fail: let ``rehome_after`` be long.
    """

    def __init__(self, workers: Workers, mover: Mover) -> None:
        self.workers = workers
        self.mover = mover
        self._orders = Path(workers.directory) / "halt"
        self._current: dict[str, Worker] = {}
        self._loads: list[Load] = []
        self._numbers = count()

    def __enter__(self) -> Self:
        for name in NAMES:
            self._start(name)
        for worker in self._current.values():
            worker.wait_ready(PATIENCE_S)
        self._load("n", 20, 50, 10)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        for load in self._loads:
            load.stop()

    def _start(self, name: str) -> None:
        self._current[name] = self.workers.start(name, HOLDFAST_CRASH_AT=f"@{self._orders}")

    def _load(self, prefix: str, tenants: int, rate: float, sessions: int) -> Load:
        plan = Plan(
            tasks=10**7, tenants=tenants, sessions=tenants * sessions, rate=rate, types=TYPES, prefix=prefix, seed=7
        )
        load = Load(self.workers.config, self.workers.namespace, plan).start()
        self._loads.append(load)
        return load

    # -- a case -------------------------------------------------------------------------------------------------------

    def play(self, point: str, dead: tuple[str, ...], *, offline: bool = False) -> Told:
        """Let these roles die at the point, and see the migration end as if nothing had been."""
        found = self._cast()
        begun = time.monotonic()
        load = self._load(found.prefix, 1, 200, 50)
        when_sent(load, 150)
        for path in self._orders.parent.glob(f"{self._orders.name}.*"):
            path.unlink()
        self._orders.write_text(point)
        command = self.mover.migrate(found.tenant, found.target, offline=offline)
        self.mover.until(
            lambda: bool(self._halted() or self._given_up(command, point)), f"{point} is passed", PATIENCE_S
        )
        halted = self._halted()
        if not halted and self.mover.finals(command)[0].get("parked") == 0:
            # Nothing was parked, so nothing is released: once more, with another tenant.
            load.stop()
            return self.play(point, dead, offline=True)
        assert halted, f"nobody has passed {point}: {self.mover.finals(command)}"
        # Whoever has joined meanwhile may have taken a place over: who halts plays the part, whatever was expected.
        hosts = {**found.hosts, POINTS[point]: halted}
        self._kill({hosts[role] for role in dead})
        if self._current[halted].running:
            self._current[halted].sigcont()
        for name in [name for name, worker in self._current.items() if not worker.running]:
            self._start(name)
        event = self.mover.end(command, PATIENCE_S)
        told = Told(point, dead, event, time.monotonic() - begun)
        assert event["event"] == "migration-succeeded", (told, event)
        when_sent(load, load.acknowledged + 50)
        load.stop()
        load.join()
        config, namespace = self.workers.config, self.workers.namespace
        left = time.monotonic() + PATIENCE_S
        while rest := remains(config, namespace, found.tenant, found.target):
            assert time.monotonic() < left, f"{told}: {len(rest)} rows are left behind: {rest[:5]}"
        self.mover.poll()
        assert len(self.mover.finals(command)) == 1, told
        return told

    def _given_up(self, command: str, point: str) -> bool:
        """Has the migration ended without passing the point?"""
        passed = {"move-releases": "parked"}.get(point, "event")
        return any(event["event"] != "migration-succeeded" or not event[passed] for event in self.mover.finals(command))

    def _halted(self) -> str:
        pids = {worker.pid: name for name, worker in self._current.items()}
        for path in self._orders.parent.glob(f"{self._orders.name}.*"):
            pid = int(path.suffix[1:])
            if pid in pids and _stopped(pid):
                return pids[pid]
        return ""

    def _kill(self, names: Iterable[str]) -> None:
        """All at once: nobody may notice the one before the other."""
        killed = [self._current[name] for name in names]
        for worker in killed:
            worker.process.kill()
        for worker in killed:
            worker.process.wait(10)

    # -- who plays what -----------------------------------------------------------------------------------------------

    def _cast(self) -> Cast:
        """A new tenant whose source, target and router three workers host, once all is calm."""
        found = wait_for(self._distinct, PATIENCE_S, "three workers host places, and all servers are up")
        assert found is not None
        return found

    def _distinct(self) -> Cast | None:
        found = self._calm()
        if not found:
            return None
        routers = {router: entry["name"] for entry in found["workers"] for router in entry["routers"]}
        servers = {entry["server"]: entry["host"] for entry in found["servers"]}
        for number in islice(self._numbers, 50):
            prefix = f"m{number:04d}-"
            tenant = f"{prefix}0000"
            home = home_of(tenant.encode(), None, len(servers))
            router = routers.get(partition_of(tenant.encode(), ROUTERS), "")
            for target, host in servers.items():
                if router and len({servers[home], host, router}) == len(ROLES):
                    hosts = {"source": servers[home], "target": host, "router": router}
                    return Cast(prefix, tenant, home, target, hosts)
        return None

    def _calm(self) -> dict[str, Any]:
        """What a worker tells of all others, once every server is up at one that runs; nothing before."""
        for worker in self._current.values():
            if not worker.url and worker.running:
                with suppress(AssertionError):
                    worker.wait_ready(0.01)
        ready = [worker for worker in self._current.values() if worker.url and worker.running]
        status = ready[0].get("/api/status")[1] if len(ready) >= len(ROLES) else None
        if not isinstance(status, dict):
            return {}
        names = {worker.name for worker in ready}
        return status if all(entry["up"] and entry["host"] in names for entry in status["servers"]) else {}

    # -- the end ------------------------------------------------------------------------------------------------------

    def account(self) -> None:
        """Every task of every load has its one result, in its order."""
        for load in self._loads:
            load.stop()
        sent = sum(load.join() for load in self._loads)
        config, namespace = self.workers.config, self.workers.namespace
        wait_for_results(config, namespace, sent, deadline=time.monotonic() + PATIENCE_S, quiet_s=60)
        account = read_account(config, namespace, deadline=time.monotonic() + PATIENCE_S)
        assert account.ok, f"{account}\n{self.workers.logs()}"
        assert account.sent == sent == account.performed, str(account)
        check_chains(self.workers, deadline=time.monotonic() + PATIENCE_S)


def _stopped(pid: int) -> bool:
    said = subprocess.run(["ps", "-o", "stat=", "-p", str(pid)], capture_output=True, text=True, check=False)
    return said.stdout.strip().startswith("T")


def remains(config: dict[str, str | int], namespace: str, tenant: str, home: int) -> list[str]:
    """What there is of a tenant anywhere but at its home: rows, marks, what is staged, what is parked, chores."""
    return list(_remains(config, namespace, tenant, home))


def _remains(config: dict[str, str | int], namespace: str, tenant: str, home: int) -> Iterator[str]:
    def rows(table: str) -> Iterator[tuple[bytes, int, bytes]]:
        found = chain.latest(config, namespace, table, deadline=time.monotonic() + PATIENCE_S)
        return ((key, where, row) for (key, where), row in found.items())

    name = tenant.encode()
    states = {key: placements.decode(row) for key, _, row in rows(placements.NAME)}
    state = states.get(name)
    if state is None or not isinstance(state, Settled) or state.home != home:
        yield f"it is {state}"
        return
    live = sessions.key_of(tenant, state.placement.epoch, "")
    for table in (sessions.NAME, waiting.NAME):
        for key, where, _ in rows(table):
            if key.startswith(name + b"\0") and (where != home or not key.startswith(live)):
                yield f"{table} at server {where}: {key!r}"
    for key, where, row in rows(handoffs.NAME):
        if key == handoffs.tenant_key(tenant):
            known = handoffs.decode(row)
            if (known.shipping, known.staging) != (None, None):
                yield f"server {where}: {known}"
        elif key.split(b"\0")[1:2] == [name]:
            yield f"handoffs at server {where}: {key!r}"
    yield from (f"parked: {key!r}" for key, _, _ in rows(parked.NAME) if key.startswith(name + b"\0"))
