"""Who hosts what: the leader's plan for a generation of the worker group, a pure function of its members.

* order of workers for a place: rendezvous, descending first 8 bytes of SHA-256(place, zero byte, worker name)
* ideal host: the first of the order with room; nobody is to host more than ceil(places / workers) of a kind,
  routers and servers counted separately
* warm first: an ideal host that is not warm waits, as the place's warm-up, while somebody is warm; the place
  stays where it is, or goes to the first warm worker of its order
* standbys: the next workers of the order that are neither host nor warm-up

A place moves when its own ideal host changes, and that changes only by a worker that is first in the place's
order or by the load bound. Nobody serves from rows it does not hold as long as another worker holds them: a
newcomer warms up first and a later plan hands over (see :func:`settled`).

Source: rendezvous hashing (Thaler, Ravishankar 1998), bounded loads (Mirrokni, Thorup, Zadimoghaddam 2018),
warm-up replicas (Kafka KIP-441).
"""

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from hashlib import sha256

from app.errors import LocalProtocolError


@dataclass(frozen=True, slots=True)
class Member:
    """One process in the worker group, as it described itself when it joined.

    ``incarnation``: its start, milliseconds since the epoch. ``hosts``: the places it serves now. ``warm``:
    the places whose rows it holds nearly complete; those it serves count as warm whether or not they are
    named.
    """

    name: str
    member_id: str
    incarnation: int
    url: str
    warm: frozenset[str]
    hosts: frozenset[str]


@dataclass(frozen=True, slots=True)
class Plan:
    """Which worker does what, by worker name.

    ``host`` has every place. ``standbys`` has every place, as many workers as there are, best first, without
    the host. ``warmups`` has the places that wait for their ideal host, which reads their rows in addition to
    the standbys. ``superseded`` are the ids of members that a younger one of the same name replaces: they get
    nothing.
    """

    host: Mapping[str, str]
    standbys: Mapping[str, tuple[str, ...]]
    warmups: Mapping[str, str]
    superseded: frozenset[str]


def assign(members: Iterable[Member], places: Sequence[str], standby_replicas: int) -> Plan:
    """Make the plan. The order of ``members`` and ``places`` does not matter.

    Args:
        members: everybody in the group.
        places: ``router-0``, ``server-0`` and so on; the part before the last dash is the kind.
        standby_replicas: standbys of a place, as far as there are workers.

    Raises:
        LocalProtocolError: the group is empty.
    """
    workers, superseded = _youngest(members)
    if not workers:
        raise LocalProtocolError("a group without members has no plan")
    orders = {place: _order(place, workers) for place in sorted(set(places), key=_natural)}
    ideal = _ideal_hosts(orders)
    host: dict[str, str] = {}
    standbys: dict[str, tuple[str, ...]] = {}
    warmups: dict[str, str] = {}
    for place, order in orders.items():
        host[place] = _host_now(place, order, ideal[place], workers)
        if host[place] != ideal[place]:
            warmups[place] = ideal[place]
        others = [name for name in order if name not in (host[place], ideal[place])]
        standbys[place] = tuple(others[:standby_replicas])
    return Plan(host, standbys, warmups, superseded)


def settled(plan: Plan) -> bool:
    """Tell whether every place is with its ideal host; if not, plan again when the warm-ups are warm."""
    return not plan.warmups


def _youngest(members: Iterable[Member]) -> tuple[dict[str, Member], frozenset[str]]:
    """The one member that counts for each name, and the ids of the others."""
    workers: dict[str, Member] = {}
    superseded: set[str] = set()
    for member in sorted(members, key=lambda m: (m.incarnation, m.member_id)):
        if member.name in workers:
            superseded.add(workers[member.name].member_id)
        workers[member.name] = member
    return workers, frozenset(superseded)


def _order(place: str, workers: Iterable[str]) -> list[str]:
    return sorted(workers, key=lambda name: (-_score(place, name), name))


def _score(place: str, worker: str) -> int:
    return int.from_bytes(sha256(place.encode() + b"\x00" + worker.encode()).digest()[:8], "big")


def _kind(place: str) -> str:
    return place.rpartition("-")[0]


def _natural(place: str) -> tuple[str, int, str]:
    """Sort server-2 before server-10."""
    return _kind(place), len(place), place


def _ideal_hosts(orders: Mapping[str, list[str]]) -> dict[str, str]:
    """Give each place, in their fixed order, the first worker of its own order that has room."""
    places_of_kind = Counter(map(_kind, orders))
    load: Counter[tuple[str, str]] = Counter()
    ideal: dict[str, str] = {}
    for place, order in orders.items():
        kind = _kind(place)
        bound = -(-places_of_kind[kind] // len(order))
        ideal[place] = next(name for name in order if load[kind, name] < bound)
        load[kind, ideal[place]] += 1
    return ideal


def _host_now(place: str, order: list[str], ideal: str, workers: Mapping[str, Member]) -> str:
    current = [name for name in order if place in workers[name].hosts]
    warm = [name for name in order if place in workers[name].warm or name in current]
    if ideal in warm or not warm:
        return ideal
    return current[0] if current else warm[0]
