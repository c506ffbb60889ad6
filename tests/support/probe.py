"""Single tasks and what comes of them, on the bare topics."""

import json
import time
from dataclasses import dataclass
from types import TracebackType
from typing import Any, Final, Self

from confluent_kafka import OFFSET_BEGINNING, Consumer, KafkaException, Producer, TopicPartition

from app.observe.reading import Config, headers_of
from app.topics import Names

Position = tuple[int, int]
"""Partition and offset in ``tasks``."""

ANSWER_S: Final = 30.0
_POLL_S: Final = 0.1


@dataclass(frozen=True, slots=True)
class DeadLetter:
    key: bytes | None
    value: bytes | None
    headers: dict[str, str]


class Probe:
    """Sends tasks; holds all results and dead letters committed so far, by the position of the task."""

    def __init__(self, config: Config, namespace: str) -> None:
        self.names = Names(namespace)
        self.order: list[Position] = []
        self.results: dict[Position, list[dict[str, Any]]] = {}
        self.letters: dict[Position, list[DeadLetter]] = {}
        self._producer = Producer(
            {
                **config,
                "partitioner": "murmur2_random",
                "linger.ms": 0,
                "enable.idempotence": True,
                "message.max.bytes": 20_000_000,
                "log_level": 0,
            }
        )
        self._consumer = Consumer(
            {
                **config,
                "group.id": "holdfast-probe",
                "isolation.level": "read_committed",
                "enable.auto.commit": False,
                "auto.offset.reset": "earliest",
                "fetch.wait.max.ms": 20,
                "fetch.message.max.bytes": 20_000_000,
                "log_level": 0,
            }
        )
        found = self._consumer.list_topics(timeout=10).topics
        self._consumer.assign(
            [
                TopicPartition(name, part, OFFSET_BEGINNING)
                for name in (self.names.results, self.names.dead_letters)
                for part in found[name].partitions
            ]
        )

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._consumer.close()

    def send(
        self, tenant: str, session: str, kind: str, payload: dict[str, Any] | None = None, **fields: Any
    ) -> Position:
        """Send a task and return where it stands."""
        task = {"tenant": tenant, "session": session, "type": kind, "payload": payload or {}, **fields}
        return self.send_raw(tenant.encode(), json.dumps(task).encode())

    def send_raw(self, key: bytes | None, value: bytes | None, partition: int | None = None) -> Position:
        """Send any record; raise KafkaException when somebody refuses it."""
        done: list[Any] = []
        self._producer.produce(
            self.names.tasks,
            value,
            key,
            partition=-1 if partition is None else partition,
            on_delivery=lambda *report: done.append(report),
        )
        assert self._producer.flush(ANSWER_S) == 0, "the broker does not confirm"
        error, message = done[0]
        if error is not None:
            raise KafkaException(error)
        return message.partition(), message.offset()

    def poll(self, timeout: float = _POLL_S) -> None:
        """Take in what has been committed."""
        message = self._consumer.poll(timeout)
        while message is not None:
            if message.error() is None:
                if message.topic() == self.names.results:
                    self._take_result(message.value() or b"")
                else:
                    self._take_letter(message.key(), message.value(), headers_of(message))
            message = self._consumer.poll(0)

    def _take_result(self, value: bytes) -> None:
        result = json.loads(value)
        position = (result["source"]["partition"], result["source"]["offset"])
        self.order.append(position)
        self.results.setdefault(position, []).append(result)

    def _take_letter(self, key: bytes | None, value: bytes | None, headers: list[tuple[str, bytes | None]]) -> None:
        fields = {name: (content or b"").decode() for name, content in headers}
        position = (int(fields["source-partition"]), int(fields["source-offset"]))
        self.letters.setdefault(position, []).append(DeadLetter(key, value, fields))

    def result(self, position: Position, timeout: float = ANSWER_S) -> dict[str, Any]:
        """Wait for the result of a task."""
        deadline = time.monotonic() + timeout
        while position not in self.results:
            assert time.monotonic() < deadline, f"no result for tasks {position} within {timeout:g} s"
            self.poll()
        (result,) = self.results[position]
        return result

    def letter(self, position: Position, timeout: float = ANSWER_S) -> DeadLetter:
        """Wait for the dead letter of a record."""
        deadline = time.monotonic() + timeout
        while position not in self.letters:
            assert time.monotonic() < deadline, f"no dead letter for tasks {position} within {timeout:g} s"
            self.poll()
        (letter,) = self.letters[position]
        assert letter.headers["source-topic"] == self.names.tasks
        return letter

    def failed(self, position: Position, timeout: float = ANSWER_S) -> str:
        """Wait for the failure of a task, result and dead letter; return the error's type."""
        result = self.result(position, timeout)
        assert result["status"] == "failed", result
        assert result["result"] is None
        letter = self.letter(position, 5)
        assert letter.headers["error"] == result["error"]["type"]
        assert letter.headers["message"] == result["error"]["message"]
        return str(result["error"]["type"])

    def done(self, position: Position, timeout: float = ANSWER_S) -> Any:
        """Wait for the success of a task; return what its handler returned."""
        result = self.result(position, timeout)
        assert result["status"] == "done", result
        return result["result"]
