"""The topics of a namespace: their names, how each is kept, and their creation, check and deletion.

Everything that belongs to a namespace begins with ``{namespace}.``, and a namespace has no dot, so that
nothing belongs to two. Several workers may create the topics at once: the second finds them and checks them.
"""

import time
from collections.abc import Callable, Iterable, Mapping
from concurrent.futures import Future
from concurrent.futures import TimeoutError as FutureTimeoutError
from dataclasses import dataclass
from functools import partial
from typing import Final, TypeVar

from confluent_kafka import KafkaError, KafkaException
from confluent_kafka.admin import AdminClient
from confluent_kafka.admin._config import ConfigResource
from confluent_kafka.admin._metadata import ClusterMetadata, TopicMetadata
from confluent_kafka.cimpl import NewTopic

from app.errors import BrokerUnreachableError, ConfigurationError, HoldfastError, UnavailableError
from app.reach import NO_ANSWER, each_broker, topics_at, unreachable
from app.settings import INTERNAL_SLACK_BYTES, Settings, kafka_config, require_bootstrap

REQUEST_TIMEOUT_S = 10.0
READY_TIMEOUT_S = 30.0

_DAY_MS = 86_400_000
_UNLIMITED = "-1"
_SEGMENT_BYTES = 64 * 1024 * 1024
_POLL_S = 0.05
_T = TypeVar("_T")


class Names:
    """The names of everything in a namespace; see the topic reference for what each topic carries."""

    def __init__(self, namespace: str) -> None:
        self.namespace: Final = namespace
        self.prefix: Final = f"{namespace}."
        self.tasks: Final = self.topic("tasks")
        self.commands: Final = self.topic("commands")
        self.results: Final = self.topic("results")
        self.events: Final = self.topic("events")
        self.dead_letters: Final = self.topic("dead-letters")
        self.views: Final = self.topic("views")
        self.suspects: Final = self.topic("suspects")
        self.work: Final = self.topic("work")
        self.handoffs: Final = self.topic("handoffs")
        self.delay: Final = self.topic("delay")
        self.transfers: Final = self.topic("transfers")
        self.transfer_replies: Final = self.topic("transfer-replies")
        self.requests: Final = self.topic("requests")
        self.assignments: Final = self.topic("assignments")
        self.responses: Final = self.topic("responses")
        self.replies: Final = self.topic("replies")
        self.group: Final = self.topic("workers")

    def topic(self, name: str) -> str:
        """Return the full name of the topic that the topic reference calls ``name``."""
        return f"{self.prefix}{name}"

    def changelog(self, table: str) -> str:
        """Return the changelog of a table."""
        return self.topic(f"{table}-changelog")

    def transactional_id(self, worker: str) -> str:
        """Return the transactional id of a worker: stable, so that a successor can fence it."""
        return self.topic(worker)


@dataclass(frozen=True, slots=True)
class TopicSpec:
    """A topic as it should be: full name, number of partitions, topic options of Kafka."""

    name: str
    partitions: int
    config: Mapping[str, str]


def connect(settings: Settings) -> AdminClient:
    """Make an admin client. It connects at the first request, not here.

    Raises:
        ConfigurationError: librdkafka refuses an option, such as a certificate that cannot be read.
    """
    # Librdkafka would write every failed connection to stderr; the errors below say it once.
    options: dict[str, str | int | float | bool] = {**kafka_config(settings), "log_level": 0}
    try:
        return AdminClient(options)
    except KafkaException as error:
        raise ConfigurationError(f"the Kafka client refuses its settings: {_text(error)}") from error


def specs(settings: Settings) -> list[TopicSpec]:
    """Every topic of the namespace, less what depends on the number of brokers."""
    names = Names(settings.namespace)
    routers, servers = settings.routers, settings.servers
    limit = settings.max_record_bytes
    roomy = limit + INTERNAL_SLACK_BYTES
    week, month = 7 * _DAY_MS, 30 * _DAY_MS
    kept: list[tuple[str, int, int, int]] = [
        (names.tasks, routers, limit, week),
        (names.commands, routers, limit, week),
        (names.results, routers, roomy, max(1, round(settings.result_retention * 1000))),
        (names.events, 1, roomy, month),
        (names.dead_letters, 1, roomy, month),
        (names.transfers, routers, limit, week),
        (names.transfer_replies, routers, roomy, week),
        (names.requests, routers, limit, week),
        (names.assignments, routers, roomy, week),
        (names.responses, routers, limit, week),
        (names.replies, routers, roomy, week),
    ]
    streams = [(names.work, servers), (names.handoffs, servers), (names.delay, routers)]
    tables = [
        (names.views, 1),
        (names.suspects, 1),
        (names.changelog("placements"), routers),
        (names.changelog("parked"), routers),
        (names.changelog("transfers"), routers),
        (names.changelog("sessions"), servers),
        (names.changelog("waiting"), servers),
        (names.changelog("exchanges"), routers),
        (names.changelog("exchange-messages"), routers),
        (names.changelog("outcomes"), routers),
        (names.changelog("handoffs"), servers),
        (names.changelog("views"), routers),
    ]
    return [
        *(TopicSpec(name, count, _kept(size, milliseconds)) for name, count, size, milliseconds in kept),
        *(TopicSpec(name, count, _stream(roomy)) for name, count in streams),
        *(TopicSpec(name, count, _compacted(roomy)) for name, count in tables),
    ]


def _kept(size: int, milliseconds: int) -> Mapping[str, str]:
    return {"cleanup.policy": "delete", "max.message.bytes": str(size), "retention.ms": str(milliseconds)}


def _stream(size: int) -> Mapping[str, str]:
    """Kept without a limit: workers delete what nothing needs; small segments free the disk sooner."""
    unlimited = {"retention.ms": _UNLIMITED, "retention.bytes": _UNLIMITED}
    return {"cleanup.policy": "delete", "max.message.bytes": str(size), **unlimited, **_small_segments(size)}


def _compacted(size: int) -> Mapping[str, str]:
    # How long a local store may be away before a deletion could have passed it by unseen.
    kept = {"delete.retention.ms": str(_DAY_MS)}
    return {"cleanup.policy": "compact", "max.message.bytes": str(size), **kept, **_small_segments(size)}


def _small_segments(size: int) -> Mapping[str, str]:
    return {"segment.bytes": str(max(_SEGMENT_BYTES, 2 * size))}


def ensure(admin: AdminClient, settings: Settings, *, timeout_s: float = READY_TIMEOUT_S) -> None:
    """Create what is missing and wait until every topic of the namespace has its leaders, and every broker knows them.

    Topics that exist keep their options: retention is the operator's. A broker that does not answer is not waited for.

    Raises:
        BrokerUnreachableError: no broker answers.
        ConfigurationError: a topic has another number of partitions, or the brokers refuse to create one.
        UnavailableError: a topic was still without a leader, or unknown to a broker, when the time was over.
    """
    deadline = time.monotonic() + timeout_s
    wanted = specs(settings)
    metadata = _metadata(admin, settings)
    _refuse(_wrong_partitions(metadata, wanted))
    missing = [spec for spec in wanted if spec.name not in metadata.topics]
    if missing:
        _create(admin, settings, missing, brokers=len(metadata.brokers))

    def leaderless() -> list[str]:
        now = _metadata(admin, settings)
        # A topic that another worker has just created with other settings shows up here.
        _refuse(_wrong_partitions(now, wanted))
        return [spec.name for spec in wanted if not _has_leaders(now.topics.get(spec.name))]

    _wait_until_empty(leaderless, deadline, "without a leader")
    # Topics come to each broker at its own time, and a client asks any of them.
    for alone in each_broker(settings, _metadata(admin, settings)):
        state = f"not known to the broker {alone.bootstrap} yet"
        _wait_until_empty(partial(_unknown, wanted, alone), deadline, state)


def _unknown(wanted: Iterable[TopicSpec], settings: Settings) -> list[str]:
    known = topics_at(settings)
    return [] if known is None else [spec.name for spec in wanted if not _has_leaders(known.get(spec.name))]


def check(admin: AdminClient, settings: Settings) -> list[str]:
    """Say what is wrong with the topics of the namespace: one line each, none if all is well.

    Raises:
        BrokerUnreachableError: no broker answers.
    """
    wanted = specs(settings)
    metadata = _metadata(admin, settings)
    problems = [
        f"topic {spec.name} does not exist: run `holdfast topics create`"
        for spec in wanted
        if spec.name not in metadata.topics
    ]
    problems += _wrong_partitions(metadata, wanted)
    there = [spec for spec in wanted if spec.name in metadata.topics]
    problems += [
        f"topic {spec.name}: partition {number} has no leader: is a broker down?"
        for spec in there
        for number, partition in sorted(metadata.topics[spec.name].partitions.items())
        if partition.leader < 0
    ]
    found = _describe(admin, settings, [spec.name for spec in there])
    for spec in there:
        replicas = [len(p.replicas) for p in metadata.topics[spec.name].partitions.values()]
        problems += _wrong_options(spec, found[spec.name], min(replicas, default=0))
    if there and "message.timestamp.before.max.ms" not in found[there[0].name]:
        problems.append("the brokers lack a topic option of Kafka 3.6: upgrade them to 3.6 or later")
    return problems


def delete(admin: AdminClient, settings: Settings, *, timeout_s: float = READY_TIMEOUT_S) -> list[str]:
    """Delete every topic and consumer group of the namespace; return their names.

    Raises:
        BrokerUnreachableError: no broker answers.
        UnavailableError: somebody is in one of the groups, or a topic is still there when the time is over.
    """
    deadline = time.monotonic() + timeout_s
    prefix = Names(settings.namespace).prefix

    def left() -> list[str]:
        return sorted(name for name in _metadata(admin, settings).topics if name.startswith(prefix))

    topics = left()
    groups = _empty_groups(admin, settings)
    if groups:
        gone = admin.delete_consumer_groups(groups, request_timeout=REQUEST_TIMEOUT_S)
        _settle(gone, settings, "delete the group", harmless=KafkaError.GROUP_ID_NOT_FOUND)
    if topics:
        removed = admin.delete_topics(topics, operation_timeout=REQUEST_TIMEOUT_S, request_timeout=REQUEST_TIMEOUT_S)
        _settle(removed, settings, "delete the topic", harmless=KafkaError.UNKNOWN_TOPIC_OR_PART)
        _wait_until_empty(left, deadline, "not deleted yet")
    return [*topics, *groups]


def _create(admin: AdminClient, settings: Settings, missing: Iterable[TopicSpec], *, brokers: int) -> None:
    replicas = settings.replication_factor or min(3, brokers)
    in_sync = settings.min_insync or min(2, replicas)
    if in_sync > replicas:
        raise ConfigurationError(
            f"HOLDFAST_MIN_INSYNC={in_sync}: use at most {replicas}, the replicas on {brokers} broker(s)"
        )
    topics = [
        NewTopic(
            spec.name,
            num_partitions=spec.partitions,
            replication_factor=replicas,
            config={**spec.config, "min.insync.replicas": str(in_sync)},
        )
        for spec in missing
    ]
    created = admin.create_topics(topics, operation_timeout=REQUEST_TIMEOUT_S, request_timeout=REQUEST_TIMEOUT_S)
    _settle(created, settings, "create the topic", harmless=KafkaError.TOPIC_ALREADY_EXISTS)


def _settle(futures: Mapping[str, "Future[None]"], settings: Settings, doing: str, *, harmless: int) -> None:
    """Wait for all answers of an admin request, then raise the first error that matters."""
    failed: list[HoldfastError] = []
    for name, future in futures.items():
        try:
            _answer(future, settings, f"{doing} {name}")
        except HoldfastError as error:
            if not (isinstance(error.__cause__, KafkaException) and _code(error.__cause__) == harmless):
                failed.append(error)
    if failed:
        raise failed[0]


def _answer(future: "Future[_T]", settings: Settings, doing: str) -> _T:
    try:
        return future.result(timeout=2 * REQUEST_TIMEOUT_S)
    except KafkaException as error:
        raise _translate(error, settings, doing) from error
    except FutureTimeoutError as error:
        raise BrokerUnreachableError(require_bootstrap(settings), f"no answer to: {doing}") from error


def _code(error: KafkaException) -> int:
    return int(error.args[0].code())


def _translate(error: KafkaException, settings: Settings, doing: str) -> HoldfastError:
    """Say what an operator can do about an error of the Kafka client."""
    code = _code(error)
    if code == KafkaError.NON_EMPTY_GROUP:
        return UnavailableError(f"cannot {doing}: somebody has joined it", retry_after_s=REQUEST_TIMEOUT_S)
    if code in NO_ANSWER:
        return unreachable(settings, _text(error))
    return ConfigurationError(f"the brokers refuse to {doing}: {_text(error)}")


def _text(error: KafkaException) -> str:
    return " ".join(str(error.args[0].str() or error.args[0].name()).split())


def _metadata(admin: AdminClient, settings: Settings) -> ClusterMetadata:
    try:
        return admin.list_topics(timeout=REQUEST_TIMEOUT_S)
    except KafkaException as error:
        raise _translate(error, settings, "list the topics") from error


def _wrong_partitions(metadata: ClusterMetadata, wanted: Iterable[TopicSpec]) -> list[str]:
    """Topics that exist with another number of partitions; the number is fixed when a topic is created."""
    problems = []
    for spec in wanted:
        topic = metadata.topics.get(spec.name)
        count = 0 if topic is None else len(topic.partitions)
        # A topic that is being created may be listed before its partitions are.
        if count not in (0, spec.partitions):
            problems.append(
                f"topic {spec.name} has {count} partitions, the settings say {spec.partitions}: "
                "set HOLDFAST_SERVERS and HOLDFAST_ROUTERS as they were when it was created, "
                "or use another HOLDFAST_NAMESPACE"
            )
    return problems


def _refuse(problems: list[str]) -> None:
    if problems:
        raise ConfigurationError(problems[0])


def _has_leaders(topic: TopicMetadata | None) -> bool:
    if topic is None or topic.error is not None or not topic.partitions:
        return False
    return all(partition.leader >= 0 and partition.error is None for partition in topic.partitions.values())


def _wait_until_empty(unfinished: Callable[[], list[str]], deadline: float, state: str) -> None:
    while names := unfinished():
        if time.monotonic() > deadline:
            raise UnavailableError(f"{len(names)} topics are {state}, {names[0]} first", retry_after_s=5)
        time.sleep(_POLL_S)


def _describe(admin: AdminClient, settings: Settings, names: list[str]) -> dict[str, dict[str, str]]:
    """The options of topics, as far as the cluster lets this client read them."""
    if not names:
        return {}
    resources = [ConfigResource(ConfigResource.Type.TOPIC, name) for name in names]
    futures = admin.describe_configs(resources, request_timeout=REQUEST_TIMEOUT_S)
    found: dict[str, dict[str, str]] = {}
    for resource, future in futures.items():
        entries = _answer(future, settings, f"describe the topic {resource.name}")
        found[resource.name] = {name: str(entry.value) for name, entry in entries.items()}
    return found


def _wrong_options(spec: TopicSpec, found: Mapping[str, str], replicas: int) -> list[str]:
    """Options that would lose or refuse records. How long public topics are kept is the operator's choice."""
    problems = []
    for option in ("cleanup.policy", "retention.ms", "retention.bytes"):
        wanted = spec.config.get(option)
        matters = option == "cleanup.policy" or wanted == _UNLIMITED
        if matters and wanted is not None and found.get(option) != wanted:
            problems.append(f"topic {spec.name}: {option} is {found.get(option)}, set it to {wanted}")
    size = int(found.get("max.message.bytes", "0"))
    if size < int(spec.config["max.message.bytes"]):
        problems.append(
            f"topic {spec.name}: max.message.bytes is {size}, "
            f"set it to {spec.config['max.message.bytes']} or lower HOLDFAST_MAX_RECORD_BYTES"
        )
    in_sync = int(found.get("min.insync.replicas", "1"))
    if replicas and in_sync > replicas:
        problems.append(
            f"topic {spec.name}: min.insync.replicas is {in_sync} and it has {replicas} replicas, "
            "so that nothing can be written: lower it or add replicas"
        )
    return problems


def _empty_groups(admin: AdminClient, settings: Settings) -> list[str]:
    """The namespace's consumer groups, none of which has a member."""
    prefix = Names(settings.namespace).prefix
    groups = _answer(admin.list_consumer_groups(request_timeout=REQUEST_TIMEOUT_S), settings, "list groups")
    names = sorted(group.group_id for group in groups.valid if group.group_id.startswith(prefix))
    if not names:
        return []
    for name, future in admin.describe_consumer_groups(names, request_timeout=REQUEST_TIMEOUT_S).items():
        members = _answer(future, settings, f"describe the group {name}").members
        if members:
            who = ", ".join(sorted({member.client_id for member in members}))
            raise UnavailableError(
                f"{len(members)} member(s) of the group {name} are alive ({who}): stop them first",
                retry_after_s=REQUEST_TIMEOUT_S,
            )
    return names
