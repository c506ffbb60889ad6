"""What the client's parts share: options of librdkafka, the words for its errors, reading a topic's ends."""

import time
import uuid
from typing import Any, Final

from confluent_kafka import Consumer, KafkaError, KafkaException, TopicPartition

from app.errors import BrokerUnreachableError, ConfigurationError, HoldfastError
from app.reach import NO_ANSWER, unreachable
from app.settings import INTERNAL_SLACK_BYTES, Settings, kafka_config, require_bootstrap

CONNECT_TIMEOUT_S: Final = 5.0
"""How long a broker may take to give its first answer."""

_LEADER_MOVES: Final = frozenset(
    {
        KafkaError.NOT_LEADER_FOR_PARTITION,
        KafkaError.LEADER_NOT_AVAILABLE,
        KafkaError.UNKNOWN_TOPIC_OR_PART,
        KafkaError.OFFSET_NOT_AVAILABLE,
    }
)
_POLL_S: Final = 0.05


def options(settings: Settings, **more: str | int | float | bool) -> dict[str, Any]:
    """Options of a client of this cluster, and ``more`` with underscores for dots.

    The result holds passwords: pass it to a client, never to a log.
    """
    # Librdkafka would write every failed connection to stderr; errors are raised instead.
    own = {name.replace("_", "."): value for name, value in more.items()}
    return {**kafka_config(settings), "log_level": 0, **own}


def say(error: KafkaError | KafkaException) -> str:
    """What the library said, in one line."""
    cause = error.args[0] if isinstance(error, KafkaException) else error
    return " ".join(str(cause.str() or cause.name()).split())


def translate(error: KafkaError | KafkaException, settings: Settings, doing: str) -> HoldfastError:
    """Return what an operator can do about an error of the Kafka library."""
    cause = error.args[0] if isinstance(error, KafkaException) else error
    if cause.code() in NO_ANSWER:
        return BrokerUnreachableError(require_bootstrap(settings), say(error))
    return ConfigurationError(f"the brokers refuse to {doing}: {say(error)}")


def explain(error: KafkaError | KafkaException, settings: Settings, doing: str) -> HoldfastError:
    """As :func:`translate`, for the first call of a client: where nobody answers, it asks why, for some seconds."""
    cause = error.args[0] if isinstance(error, KafkaException) else error
    return unreachable(settings, say(error)) if cause.code() in NO_ANSWER else translate(error, settings, doing)


def make_consumer(settings: Settings, *, tell_ends: bool = False, wait_ms: int = 50) -> Consumer:
    """Make a read_committed consumer that joins no group and commits nothing; ``assign`` it partitions.

    Args:
        settings: where the cluster is.
        tell_ends: deliver an error ``_PARTITION_EOF`` whenever a partition is read to its end.
        wait_ms: how long a broker may hold an idle fetch, and a partition that is assigned meanwhile may wait.

    Raises:
        ConfigurationError: librdkafka refuses an option.
    """
    largest = settings.max_record_bytes + INTERNAL_SLACK_BYTES
    own = options(
        settings,
        # Librdkafka wants a name; nobody joins this group.
        group_id=f"{settings.namespace}.reader-{uuid.uuid4().hex[:12]}",
        isolation_level="read_committed",
        enable_auto_commit=False,
        enable_partition_eof=tell_ends,
        auto_offset_reset="earliest",
        fetch_wait_max_ms=wait_ms,
        fetch_queue_backoff_ms=10,
        queued_min_messages=10_000,
        queued_max_messages_kbytes=16_384,
        max_partition_fetch_bytes=largest,
        fetch_max_bytes=max(16 << 20, largest),
        receive_message_max_bytes=max(16 << 20, largest) + (1 << 20),
    )
    try:
        return Consumer(own)
    except KafkaException as error:
        raise ConfigurationError(f"the Kafka client refuses its settings: {say(error)}") from error


def partitions_of(client: Any, topic: str, settings: Settings) -> int:
    """Return the number of a topic's partitions, asked through any producer, consumer or admin client.

    Raises:
        BrokerUnreachableError: no broker answers within :data:`CONNECT_TIMEOUT_S`.
        ConfigurationError: the topic does not exist.
    """
    try:
        found = client.list_topics(topic, timeout=CONNECT_TIMEOUT_S).topics.get(topic)
    except KafkaException as error:
        raise explain(error, settings, f"describe the topic {topic}") from error
    if found is None or found.error is not None or not found.partitions:
        raise ConfigurationError(
            f"the topic {topic} does not exist: run `holdfast topics create`, or check HOLDFAST_NAMESPACE"
        )
    return len(found.partitions)


def watermarks(consumer: Consumer, topic: str, settings: Settings) -> list[tuple[int, int]]:
    """Return (first, next) offset of each partition, as a read_committed reader sees them now.

    Raises:
        BrokerUnreachableError: no broker answers.
        ConfigurationError: the topic does not exist.
    """
    count = partitions_of(consumer, topic, settings)
    return [_watermarks(consumer, TopicPartition(topic, number), settings) for number in range(count)]


def _watermarks(consumer: Consumer, partition: TopicPartition, settings: Settings) -> tuple[int, int]:
    deadline = time.monotonic() + CONNECT_TIMEOUT_S
    while True:
        try:
            return consumer.get_watermark_offsets(partition, timeout=CONNECT_TIMEOUT_S)
        except KafkaException as error:
            if error.args[0].code() not in _LEADER_MOVES or time.monotonic() > deadline:
                raise explain(error, settings, f"tell the offsets of {partition.topic}") from error
        # A topic that was created a moment ago, or a broker that has just started.
        time.sleep(_POLL_S)
