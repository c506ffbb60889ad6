"""The connection of exchanges to Kafka: one producer and one consumer for all sessions of a process.

Two threads: one reads and hands records to whoever listens, the other one serves the producer and the heartbeats.
"""

import contextlib
import threading
import time
from collections.abc import Callable
from concurrent.futures import Future, wait
from queue import Empty, Queue
from typing import Any, ClassVar, Final, Self

import orjson
from confluent_kafka import KafkaError, KafkaException, Message, Producer, TopicPartition

from app.client.kafka import make_consumer, options, partitions_of, say, translate, watermarks
from app.errors import ConfigurationError, HoldfastError, UnavailableError
from app.protocol.murmur2 import partition_of
from app.settings import INTERNAL_SLACK_BYTES, Settings, require_bootstrap

FETCH_WAIT_MS: Final = 100
"""A record that comes, and the end of its transaction, end a fetch at once; so this is no part of any latency.

It bounds how late a partition is read that was not read before. An idle session costs its brokers ten fetches a second.
"""

BEAT_S: Final = 1.0
_POLL_S: Final = 0.1
_BATCH: Final = 1_000
_QUEUE_KBYTES: Final = 262_144

Record = dict[str, Any]
Listen = Callable[[bytes | None, bytes], None]
"""Takes key and value of a record, in the reading thread; must not block."""

Hear = Callable[[Record | HoldfastError], None]
"""Takes a record of one exchange, or the error that ended the connection."""

Beat = Callable[[bool], None]
"""Says that a session is there, if it has said nothing for a while; True: at once, a manager asks."""


class Link:
    """Writes one topic and reads another one, both with one partition per manager.

    Args:
        settings: where the cluster is.
        out: the topic to write.
        inward: the topic to read, from where a partition ends when it is first listened to.
        heard: takes every record.
        beat: called about every :data:`BEAT_S` seconds.
        failed: takes the error that ends it.

    Raises:
        BrokerUnreachableError: no broker answers.
        ConfigurationError: the namespace has no topics.
    """

    def __init__(
        self,
        settings: Settings,
        out: str,
        inward: str,
        *,
        heard: Listen,
        beat: Callable[[], None],
        failed: Callable[[HoldfastError], None],
    ) -> None:
        self.settings = settings
        self._out = out
        self._inward = inward
        self._heard = heard
        self._beat = beat
        self._failed = failed
        self._closing = threading.Event()
        self._read: frozenset[int] = frozenset()
        self._wanted: Queue[tuple[tuple[int, ...], Future[None]]] = Queue()
        self._producer = _make_producer(settings)
        self.managers = partitions_of(self._producer, out, settings)
        self._consumer = make_consumer(settings, wait_ms=FETCH_WAIT_MS)
        self._threads = [
            threading.Thread(target=self._reading, name="exchange-reader", daemon=True),
            threading.Thread(target=self._serving, name="exchange-producer", daemon=True),
        ]
        for thread in self._threads:
            thread.start()

    def partition_of(self, key: bytes) -> int:
        """The manager of an exchange, by murmur2 of its name."""
        return partition_of(key, self.managers)

    def listen(self, *partitions: int) -> None:
        """Read these partitions from where they end now, unless they are read already.

        Raises:
            BrokerUnreachableError, ConfigurationError: the brokers do not tell where they end.
            UnavailableError: the connection is closed.
        """
        if self._read.issuperset(partitions):
            return
        done: Future[None] = Future()
        self._wanted.put((partitions, done))
        while not done.done() and self._threads[0].is_alive():
            wait([done], _POLL_S)
        if not done.done():
            raise UnavailableError("the connection is closed", retry_after_s=0)
        done.result()

    def send(self, key: bytes, value: bytes, partition: int, done: Callable[..., None] | None = None) -> None:
        """Write a record; it is sent until the brokers have it, in the order of the calls. A full queue is waited for.

        Raises:
            UnavailableError: the connection is closed.
            ValueError: the record is too large.
        """
        more: dict[str, Any] = {} if done is None else {"on_delivery": done}
        while True:
            if self._closing.is_set():
                raise UnavailableError("the connection is closed", retry_after_s=0)
            try:
                self._producer.produce(self._out, value, key, partition, **more)
                return
            except BufferError:
                self._closing.wait(0.005)
            except KafkaException as error:
                raise self._refused(error.args[0], len(value)) from error

    def send_for_offset(self, key: bytes, value: bytes, partition: int) -> "Future[int]":
        """Write a record and learn where it stands."""
        future: Future[int] = Future()

        def done(error: KafkaError | None, message: Message) -> None:
            offset = message.offset()
            if error is not None:
                future.set_exception(self._refused(error, len(value)))
            elif offset is None or offset < 0:
                # The broker had it already from an attempt whose answer was lost: the next one tells its offset.
                self.send(key, value, partition, done)
            else:
                future.set_result(offset)

        self.send(key, value, partition, done)
        return future

    def _refused(self, error: KafkaError, size: int) -> Exception:
        if error.code() == KafkaError.MSG_SIZE_TOO_LARGE:
            return ValueError(f"a record of {size} bytes is too large: HOLDFAST_MAX_RECORD_BYTES is the limit")
        return translate(error, self.settings, f"take a record of {self._out}")

    def close(self, timeout: float = 10.0) -> None:
        """Wait for what was sent, and let go of connections. Not from a thread of its own."""
        if self._closing.is_set():
            return
        self._producer.flush(timeout)
        self._closing.set()
        for thread in self._threads:
            if thread is not threading.current_thread():
                thread.join()

    # -- the threads ------------------------------------------------------------------------------------------------

    def _serving(self) -> None:
        next_beat = time.monotonic() + BEAT_S
        while not self._closing.is_set():
            self._producer.poll(_POLL_S)
            if time.monotonic() >= next_beat:
                next_beat = time.monotonic() + BEAT_S
                self._beat()

    def _reading(self) -> None:
        """All calls of the consumer are made here: two at once may wait for each other."""
        try:
            while not self._closing.is_set():
                self._assign()
                if self._read and not self._poll():
                    return
        except KafkaException as error:
            self._failed(translate(error, self.settings, f"read {self._inward}"))
        finally:
            self._closing.set()
            self._assign()
            self._consumer.close()

    def _assign(self) -> None:
        """Begin to read what is wanted; without anything to read, wait for that."""
        while True:
            try:
                idle = not self._read and not self._closing.is_set()
                partitions, done = self._wanted.get(block=idle, timeout=_POLL_S)
            except Empty:
                return
            if self._closing.is_set():
                done.set_exception(UnavailableError("the connection is closed", retry_after_s=0))
                continue
            try:
                new = [number for number in partitions if number not in self._read]
                ends = [end for _, end in watermarks(self._consumer, self._inward, self.settings)] if new else []
                if new:
                    starts = [TopicPartition(self._inward, number, ends[number]) for number in new]
                    self._consumer.incremental_assign(starts)
                    self._read |= set(new)
                done.set_result(None)
            except (HoldfastError, KafkaException) as error:
                done.set_exception(error)

    def _poll(self) -> bool:
        first = self._consumer.poll(_POLL_S)
        if first is None:
            return True
        for message in (first, *self._consumer.consume(_BATCH, 0)):
            error = message.error()
            if error is None:
                self._heard(message.key(), message.value() or b"")
            elif error.fatal():
                self._failed(translate(error, self.settings, f"read {self._inward}"))
                return False
        return True


class SharedLink:
    """The connection of all client sessions of a process to one cluster: made for the first, closed with the last.

    Listeners are told apart by the record's key, the exchange.
    """

    _all: ClassVar[dict[Settings, "SharedLink"]] = {}
    _guard: ClassVar[threading.Lock] = threading.Lock()

    def __init__(self, settings: Settings, out: str, inward: str) -> None:
        self._listeners: dict[bytes, list[Hear]] = {}
        self._beats: list[Beat] = []
        self._users = 0
        self._settings = settings
        self._lock = threading.Lock()
        self.link = Link(settings, out, inward, heard=self._heard, beat=self._beat, failed=self._failed)

    @classmethod
    def join(cls, settings: Settings, out: str, inward: str) -> Self:
        """Return the connection of this process, with one user more."""
        with cls._guard:
            found = cls._all.get(settings)
            if found is None:
                found = cls._all[settings] = cls(settings, out, inward)
            found._users += 1
            assert isinstance(found, cls)
            return found

    def leave(self, timeout: float) -> None:
        """One user less; the last one closes it."""
        with self._guard:
            self._users -= 1
            if self._users:
                return
            self._retire()
        self.link.close(timeout)

    def _retire(self) -> None:
        """Nobody joins any more."""
        if self._all.get(self._settings) is self:
            del self._all[self._settings]

    def add(self, key: bytes, listener: Hear, beat: Beat) -> int:
        """Listen to an exchange; return its partition."""
        partition = self.link.partition_of(key)
        with self._lock:
            self._listeners.setdefault(key, []).append(listener)
            self._beats.append(beat)
        self.link.listen(partition)
        return partition

    def remove(self, key: bytes, listener: Hear, beat: Beat) -> None:
        """Listen no more."""
        with self._lock:
            left = [other for other in self._listeners.get(key, ()) if other != listener]
            if left:
                self._listeners[key] = left
            else:
                self._listeners.pop(key, None)
            self._beats = [other for other in self._beats if other != beat]

    def _heard(self, key: bytes | None, value: bytes) -> None:
        if key is None:
            if b'"roll-call"' in value:
                self._beat(called=True)
            return
        listeners = self._listeners.get(key)
        if not listeners:
            return
        try:
            record = orjson.loads(value)
        except orjson.JSONDecodeError:
            return
        if isinstance(record, dict):
            for listener in listeners:
                listener(record)

    def _beat(self, *, called: bool = False) -> None:
        with self._lock:
            beats = list(self._beats)
        for beat in beats:
            with contextlib.suppress(UnavailableError):
                beat(called)

    def _failed(self, error: HoldfastError) -> None:
        with self._guard:
            self._retire()
        with self._lock:
            listeners = [listener for found in self._listeners.values() for listener in found]
        for listener in listeners:
            listener(error)


def _make_producer(settings: Settings) -> Producer:
    own = options(
        settings,
        enable_idempotence=True,
        # Never given up: the order of a session's records is what its manager relies on.
        message_timeout_ms=0,
        message_max_bytes=settings.max_record_bytes + INTERNAL_SLACK_BYTES,
        queue_buffering_max_kbytes=_QUEUE_KBYTES,
        linger_ms=1,
    )
    try:
        return Producer(own)
    except KafkaException as error:
        raise ConfigurationError(f"the Kafka client refuses its settings: {say(error)}") from error


def unanswered(settings: Settings, waited_s: float, what: str) -> TimeoutError:
    """What to raise when a manager has not answered."""
    return TimeoutError(
        f"no manager of exchanges at {require_bootstrap(settings)} has answered within {waited_s:g} s ({what}): "
        "is a worker running?"
    )
