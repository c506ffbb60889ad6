"""Servers that fail and return, in tests: what `events` says of views, and where sessions are."""

from collections import Counter
from collections.abc import Iterable, Mapping
from typing import Any

from app.protocol.placement import home_of, route
from tests.support import chain
from tests.support.cluster import Worker, Workers, wait_for
from tests.support.moves import Mover

SERVERS = 8


def hosted(worker: Worker, servers: int = SERVERS) -> dict[str, list[int]]:
    """The servers of each worker, as one of them tells."""
    found: dict[str, list[int]] = {}
    for entry in worker.get("/api/status")[1]["servers"]:
        found.setdefault(entry["host"], []).append(entry["server"])
    assert sum(map(len, found.values())) == servers
    return found


def settled(worker: Worker, names: Iterable[str], servers: int = SERVERS) -> dict[str, list[int]]:
    """Wait until every worker of these hosts servers, and no place is to move on; the servers of each."""
    wanted = set(names)

    def found() -> dict[str, list[int]]:
        status = worker.get("/api/status")[1]
        if not isinstance(status, dict) or {entry["host"] for entry in status["servers"]} != wanted:
            return {}
        return hosted(worker, servers) if not status.get("warming") else {}

    return wait_for(found, 30, f"{sorted(wanted)} all host servers")


def closed(mover: Mover, view: int, servers: int = SERVERS, timeout: float = 60) -> list[dict[str, Any]]:
    """Wait until every server that takes part has ended the view; those events."""

    def ends() -> list[dict[str, Any]]:
        return [event for event in mover.events if event.get("view") == view and "certificate" in event]

    mover.until(lambda: len({event["server"] for event in ends()}) == servers, f"view {view} is closed", timeout)
    return ends()


def certified(ends: list[dict[str, Any]]) -> Counter[int]:
    """What has left is what has arrived; the rows that have arrived, by target."""
    lines = [(end["server"], *line.values()) for end in ends for line in end["certificate"]]
    left = sorted(line[1:] for line in lines if line[0] == line[1])
    come = sorted(line[1:] for line in lines if line[0] == line[2])
    assert left == come
    return Counter({target: sum(line[2] for line in come if line[1] == target) for target in {c[1] for c in come}})


def everywhere(
    workers: Workers, up: Iterable[int], servers: int = SERVERS, moved: Mapping[str, int] | None = None
) -> None:
    """Every session is where its key says; ``moved``: the homes of tenants that a router has moved."""
    alive = frozenset(up)
    homes = moved or {}
    found = chain.servers(workers.config, workers.namespace)
    right = {name: route(*name, home_of(name[0].encode(), homes.get(name[0]), servers), alive) for name in found}
    wrong = [(name, server, right[name]) for name, server in found.items() if server != right[name]]
    assert not wrong, f"{len(wrong)} of {len(found)} sessions are not where they belong: {wrong[:5]}"
