"""Feeding an audit from Kafka: what a namespace holds, as ``read_committed`` readers see it."""

import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from types import MappingProxyType
from typing import Final

from confluent_kafka import (
    OFFSET_BEGINNING,
    OFFSET_END,
    Consumer,
    KafkaError,
    KafkaException,
    Message,
    TopicPartition,
)

from app.errors import UnavailableError
from app.observe.account import Account, Audit
from app.topics import Names

Config = Mapping[str, str | int]
"""Options of librdkafka that every client needs, from :func:`app.settings.kafka_config`."""

Offsets = Mapping[tuple[str, int], int]
"""Offsets by topic and partition."""

Progress = Callable[[int, int], None]
"""Called with the records read so far and with the offsets still to be read over."""

_HOPELESS: Final = (KafkaError.TOPIC_AUTHORIZATION_FAILED, KafkaError.UNKNOWN_TOPIC_OR_PART)
_BATCH: Final = 5_000
_POLL_S: Final = 0.2
_ATTEMPT_S: Final = 10.0


def end_offsets(config: Config, topics: list[str], *, deadline: float) -> dict[tuple[str, int], int]:
    """Return where each partition ends for a ``read_committed`` reader.

    Args:
        config: options of the Kafka client.
        topics: full names.
        deadline: on the clock of ``time.monotonic()``.

    Raises:
        UnavailableError: the broker did not say in time.
    """
    said = "no answer"
    with _reader(config) as consumer:
        while time.monotonic() < deadline:
            try:
                return _ends(consumer, topics, max(0.1, min(_ATTEMPT_S, deadline - time.monotonic())))
            except (KafkaException, KeyError) as error:
                # A broker that has just started, or a topic without a leader yet.
                said = str(error)
                time.sleep(_POLL_S)
    raise UnavailableError(f"the end of {', '.join(topics)} is unknown ({said})", retry_after_s=_ATTEMPT_S)


def _ends(consumer: Consumer, topics: list[str], timeout: float) -> dict[tuple[str, int], int]:
    found = consumer.list_topics(timeout=timeout).topics
    # The protocol has a time that means the end. The administrator's call for the ends may end the process.
    wanted = [TopicPartition(name, part, OFFSET_END) for name in topics for part in found[name].partitions]
    ends = consumer.offsets_for_times(wanted, timeout)
    for entry in ends:
        if entry.error is not None:
            raise KafkaException(entry.error)
    return {(entry.topic, entry.partition): entry.offset for entry in ends}


def read_account(
    config: Config,
    namespace: str,
    *,
    deadline: float,
    since: Offsets | None = None,
    restarts: bool = False,
    progress: Progress | None = None,
) -> Account:
    """Read everything up to now, or from ``since`` up to now, and compare it.

    Tasks that are under way count as lost: wait for their results first, see :func:`wait_for_results`.

    Args:
        config: options of the Kafka client.
        namespace: whose account.
        deadline: on the clock of ``time.monotonic()``.
        since: where to begin in ``tasks``, ``results``, ``dead-letters``; taken while nothing was under way.
        restarts: sessions may have been ended by ``session.end()``.
        progress: told now and then.

    Raises:
        UnavailableError: the deadline has passed.
    """
    names = Names(namespace)
    # Answers first: then each of them has its task before the end of ``tasks``.
    ends = end_offsets(config, [names.results, names.dead_letters], deadline=deadline)
    ends |= end_offsets(config, [names.tasks], deadline=deadline)
    routers = sum(topic == names.tasks for topic, _ in ends)
    audit = Audit(names.tasks, restarts=restarts, midway=since is not None, routers=routers)
    told = _Progress(progress, ends, since or {})
    for topic in (names.tasks, names.results, names.dead_letters):
        own = {place: end for place, end in ends.items() if place[0] == topic}
        for message in read(config, own, since or {}, deadline=deadline):
            told.one_more()
            partition, offset, value = message.partition(), message.offset(), message.value()
            assert partition is not None, "a message that was read stands in a partition"
            assert offset is not None, "a message that was read has an offset"
            if topic == names.tasks:
                audit.add_task(partition, offset, message.key(), value, headers_of(message))
            elif topic == names.results:
                audit.add_result(partition, offset, value)
            else:
                audit.add_dead_letter(partition, offset, value, headers_of(message))
    told.finish()
    return audit.verdict()


def read(config: Config, ends: Offsets, since: Offsets, *, deadline: float) -> Iterator[Message]:
    """Yield the committed records of partitions from ``since``, or their beginning, up to ``ends``.

    Raises:
        UnavailableError: the deadline has passed.
    """
    open_ends = {place: end for place, end in ends.items() if end > since.get(place, 0)}
    with _reader(config, open_ends, since) as consumer:
        while open_ends:
            if time.monotonic() > deadline:
                raise UnavailableError(f"{min(open_ends)} was not read to its end", retry_after_s=_ATTEMPT_S)
            for message in consumer.consume(_BATCH, _POLL_S):
                error, place = message.error(), _place(message)
                if error is not None:
                    _pass_over(error)
                    # The end for this reader: behind it are control records or nothing.
                    if error.code() == KafkaError._PARTITION_EOF:
                        open_ends.pop(place, None)
                    continue
                end, offset = open_ends.get(place, 0), message.offset() or 0
                if offset < end:
                    yield message
                if offset >= end - 1:
                    open_ends.pop(place, None)


def headers_of(message: Message) -> list[tuple[str, bytes | None]]:
    """Return the headers of a message that was read, in their order; their values are bytes."""
    headers = message.headers() or ()
    pairs = headers.items() if isinstance(headers, dict) else headers
    return [(name, value) for name, value in pairs if not isinstance(value, str)]


def wait_for_results(
    config: Config,
    namespace: str,
    count: int,
    *,
    deadline: float,
    quiet_s: float = 30.0,
    since: Offsets | None = None,
    progress: Progress | None = None,
) -> int:
    """Wait until ``count`` results are committed; return how many are.

    Fewer are returned when the deadline passes, or when no result came for ``quiet_s`` seconds.
    """
    topic = Names(namespace).results
    ends = end_offsets(config, [topic], deadline=deadline)
    seen, last = 0, time.monotonic()
    with _reader(config, ends, since or {}) as consumer:
        while seen < count and time.monotonic() < min(deadline, last + quiet_s):
            messages = consumer.consume(_BATCH, _POLL_S)
            for message in messages:
                error = message.error()
                if error is not None:
                    _pass_over(error)
                else:
                    seen, last = seen + 1, time.monotonic()
            if progress is not None:
                progress(seen, count - seen)
    return seen


@contextmanager
def _reader(
    config: Config, places: Offsets = MappingProxyType({}), since: Offsets = MappingProxyType({})
) -> Iterator[Consumer]:
    consumer = Consumer(
        {
            **config,
            # Named because librdkafka asks for it; nobody joins a group, nothing is committed to it.
            "group.id": "holdfast-account",
            "enable.auto.commit": False,
            "enable.partition.eof": True,
            "isolation.level": "read_committed",
            "auto.offset.reset": "earliest",
            "fetch.queue.backoff.ms": 10,
            "fetch.wait.max.ms": 50,
            "log_level": 0,
        }
    )
    try:
        consumer.assign([TopicPartition(*place, since.get(place, OFFSET_BEGINNING)) for place in places])
        yield consumer
    finally:
        consumer.close()


def _place(message: Message) -> tuple[str, int]:
    return message.topic() or "", message.partition() or 0


def _pass_over(error: KafkaError) -> None:
    """Raise what will not mend itself; a lost connection does."""
    if error.fatal() or error.code() in _HOPELESS:
        raise KafkaException(error)


class _Progress:
    """Tells a callback every few thousand records."""

    def __init__(self, callback: Progress | None, ends: Offsets, since: Offsets) -> None:
        self._callback = callback
        self._total = sum(end - since.get(place, 0) for place, end in ends.items())
        self._seen = 0

    def one_more(self) -> None:
        self._seen += 1
        if self._callback is not None and self._seen % _BATCH == 0:
            self._callback(self._seen, max(0, self._total - self._seen))

    def finish(self) -> None:
        if self._callback is not None:
            self._callback(self._seen, 0)
