"""The topic ``suspects``: what is written outside the unit of work, because it must outlive its writer."""

import logging
import threading
import time
from collections.abc import Mapping
from typing import Any

from confluent_kafka import Consumer, KafkaError, KafkaException, Producer, TopicPartition

from app.errors import UnavailableError

log = logging.getLogger(__name__)


class Announcements:
    """Writes and reads ``suspects``: compacted, one partition, the newest record of a key holds."""

    def __init__(self, config: Mapping[str, Any], topic: str) -> None:
        self._config = config
        self._topic = topic
        self._producer: Producer | None = None
        self._lock = threading.Lock()

    def write(self, key: bytes, value: bytes | None, *, timeout: float | None = None) -> None:
        """Return when the record is durable; None deletes the key. Without a ``timeout`` it waits for the broker.

        Raises:
            UnavailableError: the broker did not take it in time.
        """
        with self._lock:
            if self._producer is None:
                self._producer = Producer({**self._config, "enable.idempotence": True, "linger.ms": 0})
            answers: list[KafkaError | None] = []
            self._producer.produce(self._topic, value, key, 0, on_delivery=lambda error, message: answers.append(error))
            deadline = None if timeout is None else time.monotonic() + timeout
            while not answers:
                self._producer.poll(0.1)
                if deadline is not None and not answers and time.monotonic() > deadline:
                    raise UnavailableError("an announcement could not be written", retry_after_s=1.0)
        if answers[0] is not None:
            if timeout is not None:
                raise UnavailableError(f"an announcement could not be written ({answers[0].str()})", retry_after_s=1.0)
            self.write(key, value)

    def read(self) -> dict[bytes, bytes]:
        """All announcements that stand now."""
        consumer = Consumer(
            {
                **self._config,
                "group.id": f"{self._topic}-reader",
                "enable.auto.commit": False,
                "enable.partition.eof": True,
                "fetch.wait.max.ms": 5,
            }
        )
        found: dict[bytes, bytes] = {}
        try:
            consumer.assign([TopicPartition(self._topic, 0, 0)])
            while True:
                for message in consumer.consume(1, 0.1):
                    error = message.error()
                    key, value = message.key(), message.value()
                    if error is None and key is not None:
                        if value is None:
                            found.pop(key, None)
                        else:
                            found[key] = value
                    elif error is None:
                        log.warning("%s: a record without a key is passed over", self._topic)
                    elif error.code() == KafkaError._PARTITION_EOF:
                        return found
                    elif error.fatal():
                        raise KafkaException(error)
        finally:
            consumer.close()
