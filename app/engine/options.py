"""What an engine is told when it is made."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from app.engine.places import PlaceKind
from app.engine.stores import StoreFactory


@dataclass(frozen=True, slots=True)
class EngineOptions:
    """One worker's engine.

    Args:
        name: the worker's name; its transactional id follows from it.
        url: where the worker's HTTP server answers; told to the group.
        bind: the address on which its heartbeat channel listens.
        host: the address on which other workers reach this one.
        incarnation: its start, milliseconds since the epoch.
        group: the worker group.
        transactional_id: of a worker, by its name.
        kinds: the places of the cluster.
        stores: where rows are kept.
        standby_replicas: how many workers follow a place besides its host.
        commit_interval: seconds after which a unit is committed at the latest.
        max_record_bytes: the limit of the internal topics.
        suspects: the topic of announcements.
        truncated: topics of which nothing is needed below the committed offset.
        kafka: librdkafka options common to all clients.
        membership_client: keyword arguments of aiokafka's client.
    """

    name: str
    url: str
    bind: str
    host: str
    incarnation: int
    group: str
    transactional_id: Callable[[str], str]
    kinds: Sequence[PlaceKind]
    stores: StoreFactory
    standby_replicas: int
    commit_interval: float
    max_record_bytes: int
    suspects: str
    truncated: frozenset[str]
    kafka: Mapping[str, Any]
    membership_client: Mapping[str, Any]
