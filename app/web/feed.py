"""The topic `events`, read once for everybody who watches it on this worker."""

import asyncio
import threading
from collections import deque
from contextlib import suppress
from typing import Final, NamedTuple

from confluent_kafka import Consumer, KafkaException, Message, TopicPartition

from app.client.kafka import make_consumer, watermarks
from app.errors import HoldfastError
from app.settings import Settings
from app.topics import Names

KEPT: Final = 1_000
"""Events that are remembered, for those who begin to watch."""

QUEUED_MAX: Final = 2_000
"""A watcher that is further behind is let go; it comes again and names the last event that it has seen."""

REST_S: Final = 60.0
"""So long after the last watcher has gone nothing is read any more."""

_POLL_S: Final = 0.2
_BATCH: Final = 500
_AGAIN_S: Final = 1.0
# Each transaction puts a marker behind its events, which takes an offset too.
_OFFSETS_BACK: Final = 4 * KEPT


class Told(NamedTuple):
    """An event: its offset in `events` and its JSON."""

    offset: int
    json: bytes


class Watcher(NamedTuple):
    """Who watches: what came before, and what comes; None in the queue is the end."""

    before: list[Told]
    queue: "asyncio.Queue[Told | None]"


class EventFeed:
    """Reads `events` from its last thousand on, in a thread that starts with the first watcher and rests without one.

    Everything but that thread happens in the loop of the web server.
    """

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._topic = Names(settings.namespace).events
        self._kept: deque[Told] = deque(maxlen=KEPT)
        self._watchers: set[asyncio.Queue[Told | None]] = set()
        self._stopping = threading.Event()
        self._wanted = threading.Event()
        self._caught_up = asyncio.Event()
        self._loop: asyncio.AbstractEventLoop | None = None
        self._thread: threading.Thread | None = None
        self._position = 0

    async def watch(self, *, last: int = 0, after: int | None = None) -> Watcher:
        """Begin to watch, with the last events or all that are known behind offset ``after``."""
        if self._thread is None:
            self._loop = asyncio.get_running_loop()
            self._thread = threading.Thread(target=self._run, name="events", daemon=True)
            self._thread.start()
        self._wanted.set()
        # Not for ever: while the broker is away there is nothing to tell, but the stream is open.
        with suppress(TimeoutError):
            await asyncio.wait_for(self._caught_up.wait(), 2 * _AGAIN_S)
        queue: asyncio.Queue[Told | None] = asyncio.Queue(QUEUED_MAX)
        self._watchers.add(queue)
        # Once more: the last watcher before this one may have gone a minute ago while this one waited.
        self._wanted.set()
        kept = list(self._kept)
        before = kept[len(kept) - last :] if after is None else [told for told in kept if told.offset > after]
        return Watcher(before, queue)

    def leave(self, watcher: Watcher) -> None:
        """Watch no more."""
        self._watchers.discard(watcher.queue)
        if not self._watchers and self._loop is not None:
            self._loop.call_later(REST_S, self._rest)

    def _rest(self) -> None:
        if not self._watchers and not self._stopping.is_set():
            self._wanted.clear()
            self._caught_up.clear()

    def close(self) -> None:
        """Let everybody go."""
        self._stopping.set()
        self._wanted.set()
        for queue in list(self._watchers):
            self._let_go(queue)

    async def join(self) -> None:
        """Wait for the thread."""
        if self._thread is not None:
            await asyncio.to_thread(self._thread.join, 5)

    def _let_go(self, queue: "asyncio.Queue[Told | None]") -> None:
        self._watchers.discard(queue)
        while queue.full():
            queue.get_nowait()
        queue.put_nowait(None)

    def _tell(self, told: list[Told], *, caught_up: bool) -> None:
        self._kept.extend(told)
        if caught_up:
            self._caught_up.set()
        for queue in list(self._watchers):
            if queue.qsize() + len(told) > QUEUED_MAX:
                self._let_go(queue)
                continue
            for one in told:
                queue.put_nowait(one)

    # -- the thread -----------------------------------------------------------------------------------------------

    def _run(self) -> None:
        while not self._stopping.is_set():
            self._wanted.wait()
            try:
                self._read()
            except (HoldfastError, KafkaException):
                # The broker is away, which the worker's log tells already.
                self._stopping.wait(_AGAIN_S)

    def _read(self) -> None:
        consumer = make_consumer(self._settings, tell_ends=True)
        try:
            [(low, high)] = watermarks(consumer, self._topic, self._settings)
            start = max(low, high - _OFFSETS_BACK, self._position)
            consumer.assign([TopicPartition(self._topic, 0, start)])
            while self._wanted.is_set() and not self._stopping.is_set():
                self._hand_over(_some(consumer))
        finally:
            consumer.close()

    def _hand_over(self, messages: list[Message]) -> None:
        told = [
            Told(message.offset() or 0, _one_line(message.value() or b""))
            for message in messages
            if message.error() is None
        ]
        if told:
            self._position = told[-1].offset + 1
        if messages and self._loop is not None and not self._stopping.is_set():
            ended = any(message.error() is not None for message in messages)
            self._loop.call_soon_threadsafe(lambda: self._tell(told, caught_up=ended))


def _some(consumer: Consumer) -> list[Message]:
    first = consumer.poll(_POLL_S)
    return [] if first is None else [first, *consumer.consume(_BATCH, 0)]


def _one_line(value: bytes) -> bytes:
    # A line of a stream of events ends at a line break, which JSON needs nowhere.
    return value.replace(b"\r", b" ").replace(b"\n", b" ")
