"""The topic ``suspects``: what is written outside the unit of work, because it must outlive its writer."""

import logging
import threading
import time
from collections.abc import Mapping
from typing import Any

from confluent_kafka import Consumer, KafkaError, KafkaException, Producer, TopicPartition

from app.engine.denied import DENIED, denied
from app.errors import HoldfastError, UnavailableError

log = logging.getLogger(__name__)

RETRY_S = 0.2
PURGE_S = 0.5
CONNECT_S = 5.0
STOP_S = 1.0

LASTING = {
    KafkaError.TOPIC_AUTHORIZATION_FAILED,
    KafkaError.CLUSTER_AUTHORIZATION_FAILED,
    KafkaError.MSG_SIZE_TOO_LARGE,
    KafkaError.INVALID_RECORD,
    KafkaError.POLICY_VIOLATION,
    KafkaError.UNKNOWN_TOPIC_OR_PART,
    KafkaError._UNKNOWN_TOPIC,  # noqa: SLF001 - librdkafka's own error codes are public all the same.
    KafkaError._UNKNOWN_PARTITION,  # noqa: SLF001 - the same.
}
"""Errors that trying again does not mend."""


class Announcements:
    """Writes and reads ``suspects``: compacted, one partition, the newest record of a key holds."""

    def __init__(self, config: Mapping[str, Any], topic: str) -> None:
        self._config = config
        self._topic = topic
        self._producer: Producer | None = None
        self._lock = threading.Lock()
        self._reader: Consumer | None = None
        self._reading = threading.Lock()

    def prepare(self) -> None:
        """Connect ahead of the first announcement: a new producer takes half a second before it sends.

        Who announces is the thread in which everything happens, for all places of the worker; and who reads keeps the
        sessions of a dead host waiting. Returns at once.
        """
        threading.Thread(target=self._connect, name="suspects", daemon=True).start()

    def _connect(self) -> None:
        with self._lock:
            producer = self._made()
        try:
            producer.list_topics(self._topic, CONNECT_S)
            self.read()
        except KafkaException as error:
            log.debug("%s: %s", self._topic, error)

    def _made(self) -> Producer:
        if self._producer is None:
            self._producer = Producer({**self._config, "enable.idempotence": True, "linger.ms": 0})
        return self._producer

    def write(self, key: bytes, value: bytes | None, *, timeout: float | None = None) -> None:
        """Return when the record is durable; None deletes the key. Without a ``timeout`` it waits for the broker.

        Raises:
            UnavailableError: the broker did not take it in time. It is not written later either, unless it was on
                its way already.
            ConfigurationError: the worker has no right to write there.
            HoldfastError: the broker refuses it and always will.
        """
        deadline = None if timeout is None else time.monotonic() + timeout
        with self._lock:
            while (error := self._attempt(key, value, deadline)) is not None:
                if error.code() in DENIED:
                    raise denied(f"write {self._topic}", error.str())
                if error.code() in LASTING:
                    raise HoldfastError(f"{self._topic} takes no announcements: {error.str()}")
                if deadline is not None and time.monotonic() >= deadline:
                    raise UnavailableError("an announcement could not be written", retry_after_s=1.0)
                log.warning("%s: %s; trying again", self._topic, error.str())
                time.sleep(RETRY_S)

    def _attempt(self, key: bytes, value: bytes | None, deadline: float | None) -> KafkaError | None:
        """Write once; returns why it was not."""
        producer = self._made()
        answers: list[KafkaError | None] = []
        try:
            producer.produce(self._topic, value, key, 0, on_delivery=lambda error, message: answers.append(error))
            while not answers and (deadline is None or time.monotonic() < deadline):
                producer.poll(0.1 if deadline is None else max(0.0, min(0.1, deadline - time.monotonic())))
        except KafkaException as error:
            answers.append(error.args[0])
        if not answers:
            # It must not come behind what a successor announces. What was sent is no longer known to this producer,
            # so the next record takes a new one.
            producer.purge()
            producer.flush(PURGE_S)
            answers = answers or [KafkaError(KafkaError._TIMED_OUT)]
        if answers[0] is not None:
            self._producer = None
        return answers[0]

    def read(self) -> dict[bytes, bytes]:
        """All announcements that stand now."""
        with self._reading:
            reader = self._reader or self._new_reader()
            self._reader = None
            try:
                reader.assign([TopicPartition(self._topic, 0, 0)])
                found = self._read_all(reader)
                reader.unassign()
            except BaseException:
                reader.close()
                raise
            self._reader = reader
            return found

    def stop(self) -> None:
        """Read nothing more. A reader that the broker does not answer is left behind."""
        if self._reading.acquire(timeout=STOP_S):
            if self._reader is not None:
                self._reader.close()
                self._reader = None
            self._reading.release()

    def _new_reader(self) -> Consumer:
        return Consumer(
            {
                **self._config,
                "group.id": f"{self._topic}-reader",
                "enable.auto.commit": False,
                "enable.partition.eof": True,
                "fetch.wait.max.ms": 5,
            }
        )

    def _read_all(self, reader: Consumer) -> dict[bytes, bytes]:
        found: dict[bytes, bytes] = {}
        while True:
            for message in reader.consume(1, 0.1):
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
                elif error.code() in DENIED:
                    raise denied(f"read {self._topic}", error.str())
                elif error.fatal() or error.code() in LASTING:
                    raise KafkaException(error)
