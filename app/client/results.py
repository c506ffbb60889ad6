"""Results as they are written: one thread reads them, anybody may wait for one by its task's id."""

import threading
from collections import OrderedDict
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, InvalidStateError
from contextlib import suppress
from typing import Final

import orjson
from confluent_kafka import Consumer, KafkaException, Message, TopicPartition
from pydantic import ValidationError

from app.client.kafka import make_consumer, translate, watermarks
from app.errors import HoldfastError, UnavailableError
from app.records import Result
from app.settings import Settings
from app.topics import Names

KEPT_BYTES_MAX: Final = 128 << 20
"""Unclaimed results take at most this much memory, however few they are."""

_POLL_S: Final = 0.1
_BATCH: Final = 1000


class ResultReader:
    """Reads ``results`` from where they ended when this was made.

    Args:
        keep: how many results that nobody has asked for yet are kept; beyond it, and beyond
            :data:`KEPT_BYTES_MAX`, the oldest are forgotten.

    Raises:
        BrokerUnreachableError: no broker answers.
        ConfigurationError: the topic does not exist.
    """

    def __init__(self, settings: Settings, keep: int) -> None:
        self._settings = settings
        self._topic = Names(settings.namespace).results
        self._keep = keep
        self._lock = threading.Lock()
        self._kept: OrderedDict[str, bytes] = OrderedDict()
        self._kept_bytes = 0
        self._waiting: dict[str, list[Future[Result]]] = {}
        self._failure: HoldfastError | None = None
        self._closing = threading.Event()
        self._consumer = make_consumer(settings)
        try:
            self._starts = [end for _, end in watermarks(self._consumer, self._topic, settings)]
        except BaseException:
            self._consumer.close()
            raise
        self._consumer.assign(self._positions())
        self._thread = threading.Thread(target=self._run, name="results", daemon=True)
        self._thread.start()

    def _positions(self) -> list[TopicPartition]:
        return [TopicPartition(self._topic, number, offset) for number, offset in enumerate(self._starts)]

    def expect(self, task_id: str) -> "Future[Result]":
        """Return the future of a task's result; a result is given out once.

        Cancel a future that is not needed any more.
        """
        future: Future[Result] = Future()
        with self._lock:
            if self._failure is not None:
                raise self._failure
            value = self._kept.pop(task_id, None)
            if value is None:
                self._waiting.setdefault(task_id, []).append(future)
                future.add_done_callback(lambda done: self._forget(task_id, done))
                return future
            self._kept_bytes -= len(value)
        future.set_result(Result.model_validate_json(value))
        return future

    def _forget(self, task_id: str, done: "Future[Result]") -> None:
        """Drop a future that was cancelled; those that got their result are out of the table already."""
        if not done.cancelled():
            return
        with self._lock:
            others = [future for future in self._waiting.get(task_id, ()) if future is not done]
            if others:
                self._waiting[task_id] = others
            else:
                self._waiting.pop(task_id, None)

    def follow(self, quiet_s: float | None) -> Iterator[Result]:
        """Yield every result since this was made, read on its own; end after ``quiet_s`` without one."""
        consumer = make_consumer(self._settings)
        try:
            consumer.assign(self._positions())
            waited_s = 0.0
            while quiet_s is None or waited_s < quiet_s:
                messages = consumer.consume(_BATCH, _POLL_S)
                waited_s = 0.0 if messages else waited_s + _POLL_S
                for message in messages:
                    if self._closing.is_set():
                        return
                    value = self._value(message)
                    with suppress(ValidationError):
                        yield Result.model_validate_json(value)
                if self._closing.is_set():
                    return
        finally:
            consumer.close()

    def close(self) -> None:
        """Stop reading; whoever still waits gets an error."""
        self._closing.set()
        self._thread.join()
        self._fail(UnavailableError("the client was closed", retry_after_s=0))

    def _run(self) -> None:
        try:
            while not self._closing.is_set():
                self._read(self._consumer)
        except HoldfastError as error:
            self._fail(error)
        except KafkaException as error:
            self._fail(translate(error, self._settings, f"read {self._topic}"))
        finally:
            self._consumer.close()

    def _read(self, consumer: Consumer) -> None:
        # A single message is given out at once; more are taken together.
        first = consumer.poll(_POLL_S)
        if first is None:
            return
        values = [self._value(message) for message in (first, *consumer.consume(_BATCH, 0))]
        ready: list[tuple[Sequence[Future[Result]], bytes]] = []
        with self._lock:
            for value in values:
                task_id = _task_of(value)
                if task_id is None:
                    continue
                if task_id in self._waiting:
                    ready.append((self._waiting.pop(task_id), value))
                else:
                    self._store(task_id, value)
        for futures, value in ready:
            _resolve(futures, value)

    def _store(self, task_id: str, value: bytes) -> None:
        self._kept_bytes += len(value) - len(self._kept.pop(task_id, b""))
        self._kept[task_id] = value
        while len(self._kept) > self._keep or self._kept_bytes > KEPT_BYTES_MAX:
            _, oldest = self._kept.popitem(last=False)
            self._kept_bytes -= len(oldest)

    def _value(self, message: Message) -> bytes:
        error = message.error()
        if error is not None:
            raise translate(error, self._settings, f"read {self._topic}")
        value = message.value()
        return value if isinstance(value, bytes) else b""

    def _fail(self, error: HoldfastError) -> None:
        with self._lock:
            self._failure = self._failure or error
            futures = [future for group in self._waiting.values() for future in group]
            self._waiting.clear()
        for future in futures:
            with suppress(InvalidStateError):
                future.set_exception(error)


def _task_of(value: bytes) -> str | None:
    """The id of a result's task; None for what is no result, which somebody else must have written."""
    try:
        task = orjson.loads(value)["task"]
    except (orjson.JSONDecodeError, KeyError, TypeError):
        return None
    return task if isinstance(task, str) else None


def _resolve(futures: Sequence["Future[Result]"], value: bytes) -> None:
    for future in futures:
        # Its owner may cancel it at this moment.
        with suppress(InvalidStateError):
            try:
                future.set_result(Result.model_validate_json(value))
            except ValidationError as error:
                future.set_exception(UnavailableError(f"a result cannot be read: {error.title}", retry_after_s=0))
