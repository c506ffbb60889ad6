"""Reading `delay` a second time: parked tasks on their way to be released.

The engine's own reader passes parked tasks once, on its way to the wake-ups behind them. A release begins wherever the
first of its tasks stands, so it has a reader beside. Nothing here decides: the core releases strictly by number, and
what comes twice or too late is passed over by it.
"""

import logging
import threading
from collections.abc import Mapping
from typing import Any, cast

from confluent_kafka import Consumer, KafkaError, KafkaException, TopicPartition

from app.engine.denied import DENIED, denied
from app.engine.fetch import Record
from app.errors import HoldfastError

log = logging.getLogger(__name__)

READ_AHEAD = 20_000
READ_AHEAD_KBYTES = 16_384


class DelayReader:
    """Committed records of one partition of `delay`, from any offset; used in the engine's thread, and never waits.

    The consumer is made when a tenant of the router first moves, so that it is connected when the release begins; its
    own threads read ahead, within bounds.
    """

    def __init__(
        self, config: Mapping[str, Any], group: str, topic: str, partition: int, *, max_record_bytes: int
    ) -> None:
        self._config = {
            **config,
            "group.id": group,
            "enable.auto.commit": False,
            "enable.auto.offset.store": False,
            "auto.offset.reset": "error",
            "isolation.level": "read_committed",
            "check.crcs": False,
            "fetch.wait.max.ms": 10,
            "fetch.queue.backoff.ms": 5,
            "fetch.error.backoff.ms": 100,
            "queued.min.messages": READ_AHEAD,
            "queued.max.messages.kbytes": max(READ_AHEAD_KBYTES, 2 * max_record_bytes // 1024),
            "fetch.message.max.bytes": max(1_048_576, max_record_bytes),
            "fetch.max.bytes": max(52_428_800, max_record_bytes),
        }
        self._topic = topic
        self._partition = partition
        self._consumer: Consumer | None = None

    def follow(self, offset: int) -> None:
        """Read from ``offset`` on; what was read ahead is dropped."""
        if self._consumer is None:
            self._consumer = Consumer(self._config)
        self._consumer.assign([TopicPartition(self._topic, self._partition, offset)])

    def leave(self) -> None:
        """Read nothing."""
        if self._consumer is not None:
            self._consumer.unassign()

    def take(self, most: int) -> list[Record]:
        """What has come, in its order."""
        if self._consumer is None:
            return []
        return [message for message in cast("list[Any]", self._consumer.consume(most, 0)) if self._sound(message)]

    def _sound(self, message: Any) -> bool:
        error: KafkaError | None = message.error()
        if error is None:
            return True
        if error.code() == KafkaError._AUTO_OFFSET_RESET:
            raise HoldfastError(
                f"parked tasks are gone from {self._topic} ({error.str()}): somebody has deleted records that were "
                "still needed; restore the topic and start the worker again"
            )
        if error.code() in DENIED:
            raise denied(f"read {self._topic}", error.str())
        if error.fatal():
            raise KafkaException(error)
        log.debug("reading %s again: %s", self._topic, error.str())
        return False

    def close(self) -> None:
        """Let go of the consumer, in a thread: it may wait for the broker."""
        consumer, self._consumer = self._consumer, None
        if consumer is not None:
            threading.Thread(target=consumer.close, name="delay", daemon=True).start()
