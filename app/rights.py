"""What each kind of program may do on the brokers: the least rights with which it works.

The security guide lists them, the tests run every kind with exactly these, `holdfast topics rights` prints them for
the tools of Kafka, and a worker looks at its start whether it has them.
"""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Final, Literal

from confluent_kafka import KafkaError, KafkaException, TopicCollection
from confluent_kafka.admin import AdminClient

from app.errors import ConfigurationError
from app.settings import Settings
from app.topics import REQUEST_TIMEOUT_S, Names, specs

_REFUSED: Final = (KafkaError.TOPIC_AUTHORIZATION_FAILED, KafkaError.GROUP_AUTHORIZATION_FAILED)

Resource = Literal["topic", "group", "transactional-id", "cluster"]


@dataclass(frozen=True, slots=True)
class Right:
    """Some operations, in Kafka's spelling, on one resource, or on all whose names begin so (``prefixed``)."""

    resource: Resource
    name: str
    operations: tuple[str, ...]
    reason: str
    prefixed: bool = False

    def __str__(self) -> str:
        star = "*" if self.prefixed else ""
        return f"{', '.join(self.operations)} on {self.resource} {self.name}{star}"


def _reader(names: Names) -> Right:
    # Librdkafka asks for the coordinator of a group that nobody joins.
    return Right("group", names.topic("reader-"), ("Describe",), "read without joining a group", prefixed=True)


def worker(names: Names) -> list[Right]:
    """`holdfast worker`. Without Create, an operator must have made the topics."""
    own = names.prefix
    return [
        Right("topic", own, ("Read", "Write", "Describe"), "streams, tables, results", prefixed=True),
        Right("topic", own, ("Create",), "make topics that are missing; not needed once they are there", prefixed=True),
        *(
            Right("topic", topic, ("Delete",), "delete records that nothing needs any more")
            for topic in (names.work, names.handoffs, names.delay)
        ),
        Right("group", own, ("Read", "Describe"), "join the other workers, commit offsets", prefixed=True),
        Right("transactional-id", own, ("Write", "Describe"), "commit; fence a worker that is gone", prefixed=True),
    ]


def producer(names: Names) -> list[Right]:
    """Who sends tasks and waits for their results."""
    return [
        Right("topic", names.tasks, ("Write", "Describe"), "send tasks"),
        Right("topic", names.results, ("Read", "Describe"), "wait for results"),
        _reader(names),
    ]


def operator(names: Names) -> list[Right]:
    """Who uses the command line."""
    return [
        Right(
            "topic", names.prefix, ("Describe", "DescribeConfigs"), "`topics check`, `doctor`, `status`", prefixed=True
        ),
        Right("topic", names.prefix, ("Create", "Delete"), "`topics create`, `topics delete`", prefixed=True),
        Right("topic", names.commands, ("Write",), "migrate, drain, fail, restore"),
        Right("topic", names.events, ("Read",), "`events`, and every `--wait`"),
        Right("topic", names.dead_letters, ("Read",), "`dead-letters list`"),
        Right("topic", names.tasks, ("Write",), "`dead-letters replay`, `send`"),
        Right("topic", names.results, ("Read",), "`send --wait`"),
        Right("group", names.prefix, ("Describe", "Delete"), "find the workers; `topics delete`", prefixed=True),
        Right("cluster", "kafka-cluster", ("DescribeConfigs",), "`doctor` tells the brokers' version"),
    ]


def exchange_client(names: Names) -> list[Right]:
    """The computer of an exchange that asks."""
    return [
        Right("topic", names.requests, ("Write", "Describe"), "submit requests"),
        Right("topic", names.replies, ("Read", "Describe"), "receive responses"),
        _reader(names),
    ]


def exchange_server(names: Names) -> list[Right]:
    """The computer of an exchange that performs."""
    return [
        Right("topic", names.responses, ("Write", "Describe"), "respond"),
        Right("topic", names.assignments, ("Read", "Describe"), "receive requests"),
        _reader(names),
    ]


def device(names: Names) -> list[Right]:
    """Who transfers files over Kafka rather than HTTP."""
    return [
        Right("topic", names.transfers, ("Write", "Describe"), "send parts"),
        Right("topic", names.transfer_replies, ("Read", "Describe"), "hear what was taken"),
        _reader(names),
    ]


ROLES: Final[Mapping[str, Callable[[Names], list[Right]]]] = {
    "worker": worker,
    "producer": producer,
    "operator": operator,
    "exchange-client": exchange_client,
    "exchange-server": exchange_server,
    "device": device,
}


def require_worker(admin: AdminClient, settings: Settings) -> None:
    """Look whether this login may do what a worker does, so that a missing right shows at the start.

    The topics exist. A transactional id, and a group that nobody has joined, cannot be asked about: their use tells.
    A broker that does not tell what is allowed is believed to allow it.

    Raises:
        ConfigurationError: names the first right that is missing.
    """
    names = Names(settings.namespace)
    topics = [spec.name for spec in specs(settings)]
    asked: dict[tuple[str, str], Any] = {
        ("topic", name): future
        for name, future in admin.describe_topics(
            TopicCollection(topics), include_authorized_operations=True, request_timeout=REQUEST_TIMEOUT_S
        ).items()
    }
    asked["group", names.group] = admin.describe_consumer_groups(
        [names.group], include_authorized_operations=True, request_timeout=REQUEST_TIMEOUT_S
    )[names.group]
    for right, name in _needed(worker(names), asked):
        try:
            allowed = asked[right.resource, name].result(2 * REQUEST_TIMEOUT_S).authorized_operations
        except KafkaException as error:
            if error.args[0].code() in _REFUSED:
                raise _lacking("Describe", right.resource, name, str(error.args[0].str())) from error
            continue  # A group that nobody has joined yet.
        held = None if allowed is None else {operation.name for operation in allowed}
        for operation in right.operations:
            if held is not None and operation.upper() not in held:
                raise _lacking(operation, right.resource, name, f"it has {', '.join(sorted(held)) or 'none'}")


def _needed(rights: list[Right], asked: Mapping[tuple[str, str], Any]) -> Iterator[tuple[Right, str]]:
    for right in rights:
        if right.operations == ("Create",):
            continue
        for resource, name in asked:
            if resource == right.resource and (name.startswith(right.name) if right.prefixed else name == right.name):
                yield right, name


def _lacking(operation: str, resource: str, name: str, reason: str) -> ConfigurationError:
    return ConfigurationError(
        f"this login lacks the right {operation} on the {resource} {name} ({reason}): "
        "`holdfast topics rights worker` lists what a worker needs"
    )
