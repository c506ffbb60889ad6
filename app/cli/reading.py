"""Reading a topic from the command line: from where, and to where it ends now or for ever."""

import re
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from typing import Any, Final

import click
from confluent_kafka import Consumer, KafkaError, KafkaException, Message, TopicPartition

from app.client.kafka import CONNECT_TIMEOUT_S, make_consumer, translate, watermarks
from app.settings import Settings

_POLL_S: Final = 0.2
_BATCH: Final = 500
_UNITS: Final = {"s": 1, "m": 60, "h": 3600, "d": 86_400}


class Moment(click.ParamType):
    """A time: ISO 8601, in UTC unless it says otherwise, or how long ago, such as 90s, 15m, 2h, 7d."""

    name = "time"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> datetime:
        """Return a time with its zone, or fail with what is allowed."""
        if isinstance(value, datetime):
            return value
        ago = re.fullmatch(r"(\d+(?:\.\d+)?)([smhd])", value)
        try:
            if ago:
                return datetime.now(UTC) - timedelta(seconds=float(ago[1]) * _UNITS[ago[2]])
            moment = datetime.fromisoformat(value)
        except (ValueError, OverflowError):
            self.fail(f"{value!r}: use 90s, 15m, 2h, 7d or a time like 2026-11-21T10:00:00", param, ctx)
        return moment if moment.tzinfo else moment.replace(tzinfo=UTC)


class Span(click.ParamType):
    """A time that something takes, in seconds: 8, 8s, 1.5m, 2h, 7d."""

    name = "span"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> float:
        """Return seconds above 0, or fail with what is allowed."""
        if isinstance(value, int | float):
            return float(value)
        found = re.fullmatch(r"(\d+(?:\.\d+)?)([smhd]?)", value)
        if not found or float(found[1]) == 0:
            self.fail(f"{value!r}: use 8s, 1.5m, 2h or 7d", param, ctx)
        return float(found[1]) * _UNITS[found[2] or "s"]


def read(
    settings: Settings,
    topic: str,
    *,
    since: datetime | None = None,
    last: int | None = None,
    follow: bool = False,
) -> Iterator[Message]:
    """Yield a topic's committed records, all of now, since a time, or the last few; then new ones, if asked.

    Raises:
        BrokerUnreachableError: no broker answers.
        ConfigurationError: the topic does not exist.
    """
    consumer = make_consumer(settings, tell_ends=True)
    try:
        bounds = watermarks(consumer, topic, settings)
        starts = [low if last is None else max(low, high - last) for low, high in bounds]
        if since is not None:
            starts = _starts_at(consumer, topic, settings, since, [high for _, high in bounds])
        consumer.assign([TopicPartition(topic, number, start) for number, start in enumerate(starts)])
        unread = {number: high for number, (_, high) in enumerate(bounds) if starts[number] < high}
        while follow or unread:
            for message in _some(consumer):
                number, offset = message.partition() or 0, message.offset() or 0
                if not _is_end(message, settings, topic):
                    yield message
                    # What stands last may be a transaction's marker, which only the end tells.
                    offset += 1
                    if offset < unread.get(number, 0):
                        continue
                unread.pop(number, None)
    finally:
        consumer.close()


def _some(consumer: Consumer) -> list[Message]:
    first = consumer.poll(_POLL_S)
    return [] if first is None else [first, *consumer.consume(_BATCH, 0)]


def _is_end(message: Message, settings: Settings, topic: str) -> bool:
    error = message.error()
    if error is None:
        return False
    if error.code() == KafkaError._PARTITION_EOF:
        return True
    raise translate(error, settings, f"read {topic}")


def _starts_at(consumer: Consumer, topic: str, settings: Settings, since: datetime, ends: list[int]) -> list[int]:
    wanted = [TopicPartition(topic, number, int(since.timestamp() * 1000)) for number in range(len(ends))]
    try:
        found = consumer.offsets_for_times(wanted, timeout=CONNECT_TIMEOUT_S)
    except KafkaException as error:
        raise translate(error, settings, f"find a time in {topic}") from error
    return [entry.offset if entry.offset >= 0 else end for entry, end in zip(found, ends, strict=True)]
