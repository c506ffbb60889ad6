"""Operators' commands: write one, wait for its one final event."""

import time
import uuid
from typing import Any, Final, Self

import orjson
from confluent_kafka import KafkaError, KafkaException, Message, Producer, TopicPartition
from pydantic import ValidationError

from app.client.kafka import make_consumer, options, partitions_of, say, translate, watermarks
from app.errors import BrokerUnreachableError, ConfigurationError
from app.records import Command, Event
from app.settings import Settings, require_bootstrap
from app.topics import Names

SEND_TIMEOUT_S: Final = 30.0
_POLL_S: Final = 0.1
_SERVERS_AT: Final = 0


class Commands:
    """Writes commands and reads the events since it was made. A context manager; for one thread.

    Raises:
        BrokerUnreachableError: no broker answers.
        ConfigurationError: the topics do not exist.
    """

    def __init__(self, settings: Settings, *, read_events: bool = True) -> None:
        self._settings = settings
        self._names = Names(settings.namespace)
        try:
            own = options(settings, enable_idempotence=True, partitioner="murmur2_random", linger_ms=0)
            self._producer = Producer({**own, "message.timeout.ms": round(SEND_TIMEOUT_S * 1000)})
        except KafkaException as error:
            raise ConfigurationError(f"the Kafka client refuses its settings: {say(error)}") from error
        partitions_of(self._producer, self._names.commands, settings)
        self._consumer = make_consumer(settings) if read_events else None
        if self._consumer is not None:
            [(_, end)] = watermarks(self._consumer, self._names.events, settings)
            self._consumer.assign([TopicPartition(self._names.events, 0, end)])

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def order(self, command: str, *, tenant: str | None = None, **fields: object) -> str:
        """Write a command and return its id once the brokers have it; fields that are None are left out.

        Raises:
            ValueError: it is no command.
            BrokerUnreachableError: no broker confirmed it in time; it may be carried out all the same.
        """
        given: dict[str, object] = {"command": command, "tenant": tenant, **fields}
        record = {"id": uuid.uuid4().hex, **{name: value for name, value in given.items() if value is not None}}
        try:
            Command.model_validate(record)
        except ValidationError as error:
            detail = error.errors(include_url=False)[0]
            where = ".".join(str(part) for part in detail["loc"])
            raise ValueError(f"{where}: {detail['msg']}" if where else detail["msg"]) from None
        self._send(orjson.dumps(record), tenant)
        return str(record["id"])

    def _send(self, value: bytes, tenant: str | None) -> None:
        reports: list[KafkaError | None] = []

        def delivered(error: KafkaError | None, _message: Message) -> None:
            reports.append(error)

        partition = _SERVERS_AT if tenant is None else -1
        key = None if tenant is None else tenant.encode()
        self._producer.produce(self._names.commands, value, key, partition=partition, on_delivery=delivered)
        if self._producer.flush(SEND_TIMEOUT_S) or not reports:
            raise BrokerUnreachableError(require_bootstrap(self._settings), "the command is not confirmed")
        if reports[0] is not None:
            raise translate(reports[0], self._settings, "take the command")

    def end(self, command_id: str, timeout: float) -> Event:
        """Wait for the final event of a command that was written by this object.

        Raises:
            TimeoutError: it has not come within ``timeout`` seconds; the command goes on.
        """
        deadline = time.monotonic() + timeout
        while time.monotonic() < deadline:
            event = self._next(min(_POLL_S, max(0.0, deadline - time.monotonic())))
            if event is not None and event.get("final") is True and event.get("id") == command_id:
                return Event.model_validate(event)
        raise TimeoutError(f"no outcome of command {command_id} within {timeout:g} s; it goes on")

    def _next(self, timeout: float) -> dict[str, Any] | None:
        if self._consumer is None:
            raise ValueError("made without read_events")
        message = self._consumer.poll(timeout)
        if message is None or message.error() is not None:
            return None
        try:
            found = orjson.loads(message.value() or b"")
        except orjson.JSONDecodeError:
            return None
        return found if type(found) is dict else None

    def close(self) -> None:
        """Let go of connections."""
        if self._consumer is not None:
            self._consumer.close()
