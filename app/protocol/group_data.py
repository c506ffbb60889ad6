"""What members of the worker group tell each other: bytes in the consumer group protocol, JSON inside.

A member's data travel with its JoinGroup request (anybody who may describe the group can read them: that is how
clients and other workers find a worker's URL); the leader's plan travels back with each member's assignment.
"""

import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

VERSION = 1


@dataclass(frozen=True, slots=True)
class MemberData:
    """One worker, as it describes itself when it joins.

    ``incarnation``: its start, milliseconds since the epoch. ``hosts``: places that it served until this join.
    ``warm``: places whose rows it holds nearly complete. ``knows``: the members of its last assignment.
    ``beat``: ``host:port`` of its heartbeat channel. ``join`` counts its joins: to a member that joins again with
    the same data the broker gives the generation that it had, and generations would no longer tell joins apart.
    """

    name: str
    url: str
    incarnation: int
    hosts: frozenset[str] = frozenset()
    warm: frozenset[str] = frozenset()
    knows: frozenset[str] = frozenset()
    beat: str = ""
    join: int = 0

    def encode(self) -> bytes:
        return _dump(
            {
                "v": VERSION,
                "name": self.name,
                "url": self.url,
                "incarnation": self.incarnation,
                "hosts": sorted(self.hosts),
                "warm": sorted(self.warm),
                "knows": sorted(self.knows),
                "beat": self.beat,
                "join": self.join,
            }
        )

    @classmethod
    def decode(cls, data: bytes) -> "MemberData":
        """Raise ValueError for data that no worker wrote."""
        fields = _load(data)
        with _strangers_refused():
            return cls(
                name=str(fields["name"]),
                url=str(fields["url"]),
                incarnation=int(fields["incarnation"]),
                hosts=frozenset(fields.get("hosts", ())),
                warm=frozenset(fields.get("warm", ())),
                knows=frozenset(fields.get("knows", ())),
                beat=str(fields.get("beat", "")),
                join=int(fields.get("join", 0)),
            )


@dataclass(frozen=True, slots=True)
class GroupPlan:
    """The leader's word to every member, the same for all.

    ``host``, ``standbys`` and ``warmups`` map places to worker names; ``workers`` maps names to (url, incarnation);
    ``departed`` are workers of earlier assignments that are not members now; ``superseded`` are member ids of
    workers that must end because a younger one has their name. ``leader`` is a worker's name; ``beats`` maps
    names to ``host:port`` of their heartbeat channels, ``members`` to their member ids.
    """

    host: dict[str, str]
    standbys: dict[str, tuple[str, ...]]
    warmups: dict[str, str]
    workers: dict[str, tuple[str, int]]
    departed: frozenset[str]
    superseded: frozenset[str]
    leader: str = ""
    beats: dict[str, str] = field(default_factory=dict)
    members: dict[str, str] = field(default_factory=dict)

    def encode(self) -> bytes:
        return _dump(
            {
                "v": VERSION,
                "host": self.host,
                "standbys": {place: list(names) for place, names in self.standbys.items()},
                "warmups": self.warmups,
                "workers": {name: list(entry) for name, entry in self.workers.items()},
                "departed": sorted(self.departed),
                "superseded": sorted(self.superseded),
                "leader": self.leader,
                "beats": self.beats,
                "members": self.members,
            }
        )

    @classmethod
    def decode(cls, data: bytes) -> "GroupPlan":
        """Raise ValueError for data that no leader wrote."""
        fields = _load(data)
        with _strangers_refused():
            return cls(
                host=dict(fields["host"]),
                standbys={place: tuple(names) for place, names in fields["standbys"].items()},
                warmups=dict(fields["warmups"]),
                workers={name: (str(entry[0]), int(entry[1])) for name, entry in fields["workers"].items()},
                departed=frozenset(fields["departed"]),
                superseded=frozenset(fields["superseded"]),
                leader=str(fields.get("leader", "")),
                beats=dict(fields.get("beats", {})),
                members=dict(fields.get("members", {})),
            )

    def hosted_by(self, worker: str) -> frozenset[str]:
        return frozenset(place for place, name in self.host.items() if name == worker)

    def followed_by(self, worker: str) -> frozenset[str]:
        """Places that ``worker`` keeps warm: as a standby, or because it is to host them next."""
        standby = {place for place, names in self.standbys.items() if worker in names}
        return frozenset(standby | {place for place, name in self.warmups.items() if name == worker})


NO_PLAN = GroupPlan({}, {}, {}, {}, frozenset(), frozenset())
"""Before the first word of a leader."""


def _dump(fields: dict[str, object]) -> bytes:
    return json.dumps(fields, separators=(",", ":"), ensure_ascii=False, sort_keys=True).encode()


@contextmanager
def _strangers_refused() -> Iterator[None]:
    try:
        yield
    except (KeyError, TypeError, AttributeError, IndexError) as error:
        raise ValueError(f"not the data of a Holdfast worker: {error!r}") from error


def _load(data: bytes) -> dict[str, Any]:
    fields = json.loads(data)
    if not isinstance(fields, dict) or fields.get("v") != VERSION:
        raise ValueError("not the data of a Holdfast worker of this version")
    return fields
