"""Migrations in tests: commands on the bare topics, and what `events` says of them."""

import json
import time
import uuid
from collections.abc import Callable
from types import TracebackType
from typing import Any, Final, Self

from confluent_kafka import Consumer, Producer, TopicPartition

from app.observe.reading import Config
from app.topics import Names

ANSWER_S: Final = 150.0


class Mover:
    """Orders migrations; holds all events committed so far, in their order."""

    def __init__(self, config: Config, namespace: str) -> None:
        self.names = Names(namespace)
        self.events: list[dict[str, Any]] = []
        self._producer = Producer({**config, "partitioner": "murmur2_random", "linger.ms": 0, "log_level": 0})
        self._consumer = Consumer(
            {
                **config,
                "group.id": "holdfast-mover",
                "isolation.level": "read_committed",
                "enable.auto.commit": False,
                "auto.offset.reset": "earliest",
                "fetch.wait.max.ms": 20,
                "log_level": 0,
            }
        )
        self._consumer.assign([TopicPartition(self.names.events, 0, 0)])

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._consumer.close()

    def order(self, command: str, tenant: str | None = None, **fields: Any) -> str:
        """Write a command and return its id."""
        known = fields.pop("id", None) or f"c-{uuid.uuid4().hex[:8]}"
        about = {} if tenant is None else {"tenant": tenant}
        self.write(json.dumps({"command": command, "id": known, **about, **fields}).encode(), tenant)
        return known

    def write(self, value: bytes, key: str | None, partition: int = -1) -> None:
        """Write any record into `commands`."""
        if key is None and partition < 0:
            partition = 0
        self._producer.produce(self.names.commands, value, None if key is None else key.encode(), partition=partition)
        assert self._producer.flush(30) == 0

    def migrate(self, tenant: str, to: int, **fields: Any) -> str:
        return self.order("migrate", tenant, to=to, **fields)

    def poll(self, timeout: float = 0.05) -> None:
        """Take in what has been committed."""
        for message in self._consumer.consume(1_000, timeout):
            if message.error() is None:
                self.events.append(json.loads(message.value() or b""))

    def until(self, condition: Callable[[], bool], what: str, timeout: float = ANSWER_S) -> None:
        """Take in events until a condition is met."""
        deadline = time.monotonic() + timeout
        while not condition():
            assert time.monotonic() < deadline, f"not within {timeout:g} s: {what}; last: {self.events[-5:]}"
            self.poll()

    def wait(self, what: str, timeout: float = ANSWER_S, **fields: Any) -> dict[str, Any]:
        """Wait for the first event of this name with these fields."""
        deadline = time.monotonic() + timeout
        while True:
            for event in self.events:
                if event["event"] == what and all(event.get(name) == value for name, value in fields.items()):
                    return event
            assert time.monotonic() < deadline, f"no {what} {fields} within {timeout:g} s; last: {self.events[-5:]}"
            self.poll()

    def end(self, command: str, timeout: float = ANSWER_S) -> dict[str, Any]:
        """Wait for the final event of a command."""
        deadline = time.monotonic() + timeout
        while True:
            found = self.finals(command)
            if found:
                return found[0]
            assert time.monotonic() < deadline, f"{command} has no end within {timeout:g} s; last: {self.events[-5:]}"
            self.poll()

    def finals(self, command: str) -> list[dict[str, Any]]:
        """The final events of a command so far."""
        return [event for event in self.events if event["id"] == command and event["final"]]

    def succeed(self, tenant: str, to: int, timeout: float = ANSWER_S, **fields: Any) -> dict[str, Any]:
        """Move a tenant and wait for the end."""
        event = self.end(self.migrate(tenant, to, **fields), timeout)
        assert event["event"] == "migration-succeeded", event
        assert (event["tenant"], event["to"]) == (tenant, to)
        return event
