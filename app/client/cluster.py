"""Find the workers of a cluster, from what each tells its consumer group and anybody who describes that."""

import struct
import time
import warnings
from dataclasses import dataclass
from typing import Any, Final

from confluent_kafka import KafkaException
from confluent_kafka.admin import AdminClient

from app.client.kafka import CONNECT_TIMEOUT_S, explain
from app.protocol.group_data import GroupPlan, MemberData
from app.settings import Settings
from app.topics import Names, connect

SETTLE_TIMEOUT_S: Final = 3.0
"""How long a rebalance is waited for: while it lasts, the group tells little about its members."""

_STABLE: Final = "Stable"
_POLL_S: Final = 0.1


@dataclass(frozen=True, slots=True)
class Worker:
    """A member of the group. ``routers`` and ``servers`` are the numbers of the places that it hosts."""

    name: str
    url: str
    incarnation: int
    routers: tuple[int, ...]
    servers: tuple[int, ...]


def find_workers(settings: Settings, *, settle_timeout: float = SETTLE_TIMEOUT_S) -> list[Worker]:
    """Return the live workers in the order of their names; during a rebalance those that are known already.

    Raises:
        BrokerUnreachableError: no broker answers.
        ConfigurationError: the brokers refuse to describe the group.
    """
    admin = connect(settings)
    group = Names(settings.namespace).group
    deadline = time.monotonic() + settle_timeout
    while True:
        try:
            described = _describe(admin, group)
        except KafkaException as error:
            raise explain(error, settings, f"describe the group {group}") from error
        found = next((entry for entry in described if entry.id == group), None)
        if found is None or not found.members:
            return []
        if found.state == _STABLE or time.monotonic() > deadline:
            return _workers(found)
        time.sleep(_POLL_S)


def _describe(admin: AdminClient, group: str) -> list[Any]:
    # The call that replaces the deprecated one leaves out what members tell the group.
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        return [*admin.list_groups(group, timeout=CONNECT_TIMEOUT_S)]


def _workers(group: Any) -> list[Worker]:
    workers: dict[str, Worker] = {}
    for member in group.members:
        try:
            data = MemberData.decode(subscription_data(member.metadata or b""))
        except (ValueError, KeyError, TypeError):
            # Somebody else has joined the group, or a worker has not yet said who it is.
            continue
        hosted = _hosted(member.assignment or b"", data.name)
        worker = Worker(data.name, data.url, data.incarnation, _numbers(hosted, "router"), _numbers(hosted, "server"))
        known = workers.get(data.name)
        if known is None or known.incarnation < worker.incarnation:
            workers[data.name] = worker
    return [workers[name] for name in sorted(workers)]


def _hosted(assignment: bytes, name: str) -> frozenset[str]:
    try:
        return GroupPlan.decode(assignment_data(assignment)).hosted_by(name)
    except (ValueError, KeyError, TypeError):
        return frozenset()


def _numbers(places: frozenset[str], kind: str) -> tuple[int, ...]:
    pairs = (place.rpartition("-") for place in places)
    return tuple(sorted(int(number) for name, _, number in pairs if name == kind))


def subscription_data(metadata: bytes) -> bytes:
    """Return the user data of a ConsumerProtocolSubscription: version, topics, bytes (Kafka protocol guide).

    Raises:
        ValueError: it is none.
    """
    try:
        (count,) = struct.unpack_from(">i", metadata, 2)
        position = 6
        for _ in range(count):
            position = _after_string(metadata, position)
        return _bytes_at(metadata, position)
    except struct.error as error:
        raise ValueError("not a consumer's subscription") from error


def assignment_data(assignment: bytes) -> bytes:
    """Return the user data of a ConsumerProtocolAssignment: version, topics with partitions, bytes.

    Raises:
        ValueError: it is none.
    """
    try:
        (count,) = struct.unpack_from(">i", assignment, 2)
        position = 6
        for _ in range(count):
            position = _after_string(assignment, position)
            (partitions,) = struct.unpack_from(">i", assignment, position)
            position += 4 + 4 * partitions
        return _bytes_at(assignment, position)
    except struct.error as error:
        raise ValueError("not a consumer's assignment") from error


def _after_string(data: bytes, position: int) -> int:
    (length,) = struct.unpack_from(">h", data, position)
    return position + 2 + int(length)


def _bytes_at(data: bytes, position: int) -> bytes:
    (length,) = struct.unpack_from(">i", data, position)
    return data[position + 4 : position + 4 + max(0, length)]
