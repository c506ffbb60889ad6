"""What the leader of the worker group does in a rebalance: everybody's part, and the plan that all are told."""

from collections.abc import Mapping, Sequence
from typing import Any

from aiokafka.coordinator.protocol import ConsumerProtocolMemberAssignment, ConsumerProtocolMemberMetadata

from app.protocol.assignment import Member, assign
from app.protocol.group_data import GroupPlan, MemberData

Places = Mapping[str, Sequence[tuple[str, int]]]


def plan_shares(
    joined: Sequence[Sequence[Any]], places: Places, standby_replicas: int, *, leader: str
) -> list[tuple[str, bytes]]:
    """Every member's id and its part, from the ids and metadata with which they joined."""
    members = []
    for entry in joined:
        data = MemberData.decode(ConsumerProtocolMemberMetadata.decode(entry[-1]).user_data)
        members.append((entry[0], data))
    decided = assign(
        [
            Member(
                name=data.name,
                member_id=member_id,
                incarnation=data.incarnation,
                url=data.url,
                warm=data.warm,
                hosts=data.hosts,
            )
            for member_id, data in members
        ],
        list(places),
        standby_replicas,
    )
    live = {data.name: data for member_id, data in members if member_id not in decided.superseded}
    known: set[str] = set().union(*(data.knows for _, data in members))
    word = GroupPlan(
        host=dict(decided.host),
        standbys={place: tuple(names) for place, names in decided.standbys.items()},
        warmups=dict(decided.warmups),
        workers={name: (data.url, data.incarnation) for name, data in live.items()},
        departed=frozenset(known - set(live)),
        superseded=decided.superseded,
        leader=leader,
        beats={name: data.beat for name, data in live.items()},
        members={data.name: member_id for member_id, data in members if member_id not in decided.superseded},
    ).encode()
    return [
        (
            member_id,
            ConsumerProtocolMemberAssignment(
                0,
                _partitions(decided.host, places, data.name) if member_id not in decided.superseded else [],
                word,
            ).encode(),
        )
        for member_id, data in members
    ]


def _partitions(host: Mapping[str, str], places: Places, name: str) -> list[tuple[str, list[int]]]:
    """A member's partitions by topic, so that ordinary tools show who consumes what and how far behind."""
    by_topic: dict[str, list[int]] = {}
    for place, worker in host.items():
        if worker == name:
            for topic, partition in places[place]:
                by_topic.setdefault(topic, []).append(partition)
    return [(topic, sorted(partitions)) for topic, partitions in sorted(by_topic.items())]
