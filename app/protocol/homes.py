"""Home workers of servers: who has died, who has left in good order, who is back; and what follows for views.

    home worker   who hosts the server while all is well. It follows every planned move: a join, a leave in good order,
                  a rolling restart. Only when it dies does it stay what it was, while another worker hosts the server.
    lost          home workers that died, since when; until they are back or are forgotten

A worker that leaves in good order says so in the log before it leaves the group. Whoever is gone without that word has
died. One that is back must stay for a while before its servers come home to it; the while doubles with every death
within ``FLAP_MS``, so that a worker which keeps dying moves nobody to and fro.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace

from app.protocol.markers import Leaving

STEADY_MS = 1_000
"""So long a home worker is back before its servers come home."""

STEADY_MAX_MS = 300_000
FLAP_MS = 600_000
"""Deaths further apart than this have nothing to do with each other."""


@dataclass(frozen=True, slots=True)
class Seen:
    """The group of workers as of a plan that everybody has.

    ``workers``: name to incarnation. ``hosts``: who hosts each server. ``settled``: no place waits to be handed over.
    All that leavers wrote before this plan was made must have been read before (:class:`Leaving`).
    """

    workers: Mapping[str, int]
    hosts: tuple[str, ...]
    settled: bool


@dataclass(frozen=True, slots=True)
class Homes:
    """See the module. ``hosts``, ``homes``: of each server, empty names before the first plan. Times are Unix time.

    ``leaving`` is who has said that it leaves, with its incarnation. ``back``: since when a lost worker is here again.
    ``flaps``: how often servers were failed because of a worker, and when last.
    """

    hosts: tuple[str, ...]
    homes: tuple[str, ...]
    workers: Mapping[str, int] = field(default_factory=dict)
    leaving: Mapping[str, int] = field(default_factory=dict)
    lost: Mapping[str, int] = field(default_factory=dict)
    back: Mapping[str, int] = field(default_factory=dict)
    flaps: Mapping[str, tuple[int, int]] = field(default_factory=dict)

    def of(self, worker: str) -> tuple[int, ...]:
        """The servers whose home worker it is."""
        return tuple(server for server, home in enumerate(self.homes) if home == worker)


def nobody(servers: int) -> Homes:
    """Before the first plan."""
    return Homes(("",) * servers, ("",) * servers)


def see(homes: Homes, seen: Seen, down: frozenset[int], now_ms: int) -> tuple[Homes, tuple[str, ...]]:
    """A new plan: the home workers under it, and which workers have died."""
    gone = homes.workers.keys() - seen.workers.keys()
    died = {name for name in gone if homes.leaving.get(name, -1) < homes.workers[name]}
    lost = {name: since for name, since in homes.lost.items() if name not in seen.workers}
    lost |= {name: now_ms for name in died if name in homes.homes}
    back = {name: since for name, since in homes.back.items() if name in seen.workers}
    back |= {name: now_ms for name in homes.lost if name in seen.workers}
    # A word of leaving serves until the worker is gone, or here as a later incarnation.
    leaving = {name: told for name, told in homes.leaving.items() if told >= seen.workers.get(name, told + 1)}

    def home(server: int, known: str) -> str:
        host = seen.hosts[server]
        # While a failed server waits for its home worker to host it again, that stays its home.
        waits = server in down and known in seen.workers and not seen.settled
        return known if known in lost or waits else host

    now = replace(
        homes,
        hosts=seen.hosts,
        homes=tuple(home(server, known) for server, known in enumerate(homes.homes)),
        workers=dict(seen.workers),
        leaving=leaving,
        lost=lost,
        back=back,
        flaps={name: flap for name, flap in homes.flaps.items() if now_ms < flap[1] + FLAP_MS},
    )
    return now, tuple(sorted(died))


def leave(homes: Homes, said: Leaving) -> Homes:
    """A worker says that it leaves in good order. What an earlier incarnation of it said does not count."""
    if said.incarnation < homes.workers.get(said.worker, said.incarnation):
        return homes
    return replace(homes, leaving={**homes.leaving, said.worker: said.incarnation})


def forget(homes: Homes, workers: Iterable[str]) -> Homes:
    """Lost workers that are not waited for any longer: their servers are at home with whoever hosts them."""
    gone = set(workers)
    if not gone:
        return homes
    settled = tuple(host if home in gone else home for host, home in zip(homes.hosts, homes.homes, strict=True))
    return replace(homes, homes=settled, lost={name: at for name, at in homes.lost.items() if name not in gone})


def adopt(homes: Homes, servers: Iterable[int]) -> Homes:
    """These servers are at home with whoever hosts them now. A lost worker that is nobody's home is forgotten."""
    chosen = set(servers)
    now = tuple(homes.hosts[server] if server in chosen else home for server, home in enumerate(homes.homes))
    return replace(homes, homes=now, lost={name: at for name, at in homes.lost.items() if name in now})


def overdue(homes: Homes, now_ms: int, after_ms: int) -> frozenset[str]:
    """Workers that were lost so long ago."""
    return frozenset(name for name, since in homes.lost.items() if now_ms >= since + after_ms)


def orphans(homes: Homes, down: frozenset[int], now_ms: int, rehome_after_ms: int) -> frozenset[int]:
    """Servers that are up and have been without their home worker for long enough to be failed."""
    gone = overdue(homes, now_ms, rehome_after_ms)
    return frozenset(server for server, home in enumerate(homes.homes) if home in gone and server not in down)


def returning(homes: Homes, down: frozenset[int], sticky: frozenset[int], now_ms: int) -> frozenset[int]:
    """Failed servers whose home worker hosts them again, and has for long enough. A host has all rows: it is warm."""
    return frozenset(
        server
        for server in down - sticky
        if _at_home(homes, server) and now_ms >= steady_ms(homes, homes.homes[server])
    )


def _at_home(homes: Homes, server: int) -> bool:
    home = homes.homes[server]
    return home != "" and home == homes.hosts[server] and home in homes.workers


def steady_ms(homes: Homes, worker: str) -> int:
    """Until when a worker that is back is not trusted yet; 0 if it was never lost."""
    if worker not in homes.back:
        return 0
    count, _ = homes.flaps.get(worker, (0, 0))
    return homes.back[worker] + min(STEADY_MAX_MS, STEADY_MS << min(20, max(0, count - 1)))


def failed(homes: Homes, servers: Iterable[int], now_ms: int) -> Homes:
    """These servers are failed because their home workers are lost."""
    flaps = dict(homes.flaps)
    for worker in sorted({homes.homes[server] for server in servers}):
        flaps[worker] = (flaps.get(worker, (0, 0))[0] + 1, now_ms)
    return replace(homes, flaps=flaps)


def next_ms(
    homes: Homes, down: frozenset[int], sticky: frozenset[int], *, rehome_after_ms: int, forget_after_ms: int
) -> int | None:
    """When something falls due here by time alone."""
    times = [since + forget_after_ms for since in homes.lost.values()]
    times += [
        homes.lost[home] + rehome_after_ms
        for server, home in enumerate(homes.homes)
        if home in homes.lost and server not in down
    ]
    times += [steady_ms(homes, homes.homes[server]) for server in down - sticky if _at_home(homes, server)]
    return min(times, default=None)
