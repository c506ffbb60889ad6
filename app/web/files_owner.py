"""Questions to the owner of a connection: here, in the engine's loop, or by the topics when it lives elsewhere."""

import asyncio
import itertools
import logging
import threading
import time
from collections.abc import Iterator
from concurrent.futures import Future
from typing import Any, Final, NamedTuple, Protocol

import orjson
from confluent_kafka import KafkaException, Message, Producer, TopicPartition

from agents.transfer_words import VERSION, reply_of
from app.client.kafka import make_consumer, options, watermarks
from app.errors import HoldfastError, UnavailableError
from app.protocol.conveyance import Reply, State
from app.settings import Settings
from app.topics import Names
from tables.transfers import state_of

_LOGGER: Final = logging.getLogger(__name__)

ANSWER_S: Final = 20.0
"""How long a request waits for an owner: longer than a takeover lasts."""

_AGAIN_S: Final = 2.0
_POLL_S: Final = 0.05


class Desk(Protocol):
    """A worker as transfers see it; :class:`app.worker.transfers.Desk` is the real one."""

    @property
    def name(self) -> str:
        """The worker's name."""

    def call(self, connection: str, fields: dict[str, Any]) -> "Future[dict[str, Any]] | None":
        """Ask an owner that lives here; None: it does not."""

    def workers(self) -> dict[str, str]:
        """URLs of all workers, by name."""

    def rows(self) -> Iterator[tuple[str, State]]:
        """The connections of the owners that live here."""


class Answer(NamedTuple):
    """What the owner says, and how it leaves the connection."""

    reply: Reply
    state: State


class Owners:
    """Asks until somebody answers. A request keeps its number, so that an owner knows one that it has answered."""

    def __init__(self, desk: Desk, settings: Settings) -> None:
        self._desk = desk
        self._post = Post(settings)
        self._prefix = f"{desk.name}-{time.time_ns():x}"
        self._numbers = itertools.count(1)

    def start(self) -> None:
        """Get ready to ask elsewhere, without waiting for it."""
        self._post.start()

    def close(self) -> None:
        """Let go of connections."""
        self._post.close()

    async def call(self, connection: str, op: str, **fields: Any) -> Answer:
        """Ask, and return what is committed.

        Raises:
            UnavailableError: no owner answers; what was asked may happen all the same.
        """
        request = f"{self._prefix}-{next(self._numbers)}"
        said = {"v": VERSION, "op": op, "request": request, "to": self._prefix, **fields}
        deadline = time.monotonic() + ANSWER_S
        while True:
            try:
                future = self._desk.call(connection, said) or self._post.ask(connection, request, said)
                # Unlike wait_for of Python 3.11, this never loses a cancellation that comes together with the answer.
                async with asyncio.timeout(_AGAIN_S):
                    answer = await asyncio.wrap_future(future)
                return Answer(reply_of(answer), state_of(answer["row"]))
            except (UnavailableError, TimeoutError) as error:
                self._post.forget(request)
                if time.monotonic() > deadline:
                    reason = f"the owner of connection {connection!r} does not answer"
                    raise UnavailableError(reason, retry_after_s=1) from error
                await asyncio.sleep(_POLL_S)


class Post:
    """Requests into ``transfers``, answers out of ``transfer-replies``; one thread, connected when first needed."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        names = Names(settings.namespace)
        self._out, self._in = names.transfers, names.transfer_replies
        self._waiting: dict[str, Future[dict[str, Any]]] = {}
        self._producer: Producer | None = None
        self._closing = threading.Event()
        self._thread: threading.Thread | None = None

    def start(self) -> None:
        """Connect in the background."""
        if self._thread is None:
            self._thread = threading.Thread(target=self._run, name="transfer-replies", daemon=True)
            self._thread.start()

    def ask(self, connection: str, request: str, fields: dict[str, Any]) -> "Future[dict[str, Any]]":
        """Send a request; its answer may never come."""
        future: Future[dict[str, Any]] = Future()
        # Whoever stops waiting leaves it alone, so that the answer finds it as it was.
        future.set_running_or_notify_cancel()
        producer = self._producer
        if producer is None:
            future.set_exception(UnavailableError("not connected yet", retry_after_s=_POLL_S))
            return future
        self._waiting[request] = future
        try:
            producer.produce(self._out, orjson.dumps(fields), connection.encode())
        except (BufferError, KafkaException) as error:
            future.set_exception(UnavailableError(f"the request cannot be sent ({error})", retry_after_s=1))
        return future

    def forget(self, request: str) -> None:
        """Nobody waits for this answer any more."""
        self._waiting.pop(request, None)

    def close(self) -> None:
        """End the thread."""
        self._closing.set()
        if self._thread is not None:
            self._thread.join()

    def _run(self) -> None:
        while not self._closing.is_set():
            try:
                self._serve()
            except (HoldfastError, KafkaException) as error:
                _LOGGER.debug("answers about transfers: %s", error)
                self._closing.wait(1)

    def _serve(self) -> None:
        own = options(self._settings, partitioner="murmur2_random", enable_idempotence=True, linger_ms=0)
        producer = Producer(own)
        consumer = make_consumer(self._settings)
        try:
            ends = [high for _, high in watermarks(consumer, self._in, self._settings)]
            consumer.assign([TopicPartition(self._in, number, end) for number, end in enumerate(ends)])
            self._producer = producer
            while not self._closing.is_set():
                producer.poll(0)
                for message in consumer.consume(100, _POLL_S if not self._waiting else 0.005):
                    self._answered(message)
        finally:
            self._producer = None
            consumer.close()

    def _answered(self, message: Message) -> None:
        if message.error() is not None:
            return
        try:
            answer = orjson.loads(message.value() or b"")
            future = self._waiting.pop(answer.get("request"), None)
        except (ValueError, AttributeError, TypeError):
            return
        if future is not None and "row" in answer and not future.done():
            future.set_result(answer)
