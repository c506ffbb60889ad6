"""Send tasks and wait for their results, on confluent-kafka alone.

::

    with Client("localhost:9092") as client:
        task_id = client.send("acme", "cart-7", "cart.add", {"count": 2})
        result = client.result(task_id, timeout=10)
"""

import threading
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import Future
from functools import partial
from types import TracebackType
from typing import Any, Final, NamedTuple, Self

import orjson
from confluent_kafka import KafkaError, KafkaException, Message, Producer
from pydantic import ValidationError

from app.client.commands import Commands
from app.client.kafka import options, partitions_of, say, translate
from app.client.results import ResultReader
from app.errors import BrokerUnreachableError, ConfigurationError, UnavailableError
from app.observe.traces import inject
from app.records import Event, Result, Task, valid_name
from app.settings import INTERNAL_SLACK_BYTES, Settings, load, require_bootstrap
from app.topics import Names

SEND_TIMEOUT_S: Final = 30.0
KEEP_RESULTS: Final = 100_000
_IN_FLIGHT: Final = 10_000
_POLL_S: Final = 0.1


class Sent(NamedTuple):
    """A task that stands in ``tasks`` for good. ``id`` is the given one, else ``partition/offset``."""

    id: str
    partition: int
    offset: int


class Client:
    """Sends tasks and receives results. Thread-safe; one for a whole program is enough.

    A result is given out once, by :meth:`result` or :meth:`expect`. Results that nobody has asked for yet are
    kept, the newest ``keep_results`` of them and at most 128 MiB: ask soon, or read all with :meth:`results`.

    Args:
        bootstrap: Kafka's bootstrap servers; empty: those of the settings.
        namespace: as the cluster's workers have it; None: that of the settings.
        settings: a whole settings object instead of ``more``.
        read_results: False for a client that only sends.
        keep_results: see above.
        send_timeout: seconds after which a task that no broker confirmed is given up. It may still arrive.
        more: any setting of Holdfast by its name, such as ``security_protocol``; what is not given comes from
            environment variables ``HOLDFAST_*``.

    Raises:
        BrokerUnreachableError: no broker answers within 5 s.
        ConfigurationError: a setting is wrong, or the namespace has no topics.
    """

    def __init__(
        self,
        bootstrap: str = "",
        namespace: str | None = "holdfast",
        *,
        settings: Settings | None = None,
        read_results: bool = True,
        keep_results: int = KEEP_RESULTS,
        send_timeout: float = SEND_TIMEOUT_S,
        **more: object,
    ) -> None:
        self._settings = settings or load(None, {"bootstrap": bootstrap or None, "namespace": namespace, **more})[0]
        self._topic = Names(self._settings.namespace).tasks
        self._send_timeout = send_timeout
        self._closing = threading.Event()
        self._producer = _make_producer(self._settings, send_timeout)
        partitions_of(self._producer, self._topic, self._settings)
        self._reader = ResultReader(self._settings, keep_results) if read_results else None
        self._poller = threading.Thread(target=self._poll, name="deliveries", daemon=True)
        self._poller.start()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()

    def send(
        self,
        tenant: str,
        session: str,
        type: str,  # noqa: A002 - the name of the record's field.
        payload: Mapping[str, Any],
        *,
        server: int | None = None,
        id: str | None = None,  # noqa: A002 - the name of the record's field.
    ) -> str:
        """Send a task and return its id once the brokers have it.

        Args:
            tenant: 1 to 200 characters without control characters; the record's key.
            session: the same.
            type: which handler is to perform it.
            payload: anything that JSON can express.
            server: the server that the session is believed to live on; only a hint.
            id: the task's id; default: ``partition/offset`` of its place in ``tasks``.

        Raises:
            ValueError: the task is none, or too large.
            BrokerUnreachableError: no broker confirmed it in time; it may arrive all the same.
        """
        return self.send_nowait(tenant, session, type, payload, server=server, id=id).result().id

    def send_nowait(
        self,
        tenant: str,
        session: str,
        type: str,  # noqa: A002
        payload: Mapping[str, Any],
        *,
        server: int | None = None,
        id: str | None = None,  # noqa: A002
    ) -> "Future[Sent]":
        """Send a task without waiting; the future has the errors of :meth:`send`. A full queue is waited for.

        Raises:
            ValueError: the task is none, or too large.
        """
        value = encode_task(tenant, session, type, payload, server=server, task_id=id)
        if len(value) > self._settings.max_record_bytes:
            raise ValueError(_too_large(len(value), self._settings))
        future: Future[Sent] = Future()
        self._produce(value, tenant.encode(), partial(self._delivered, future, id))
        return future

    def send_many(self, tasks: Iterable[Task]) -> Iterator[Sent]:
        """Send tasks and yield what became of each, in their order; at most 10,000 are under way.

        Raises:
            ValueError: a task is too large.
            BrokerUnreachableError: as in :meth:`send`.
        """
        waiting: deque[Future[Sent]] = deque()
        for task in tasks:
            waiting.append(
                self.send_nowait(task.tenant, task.session, task.type, task.payload, server=task.server, id=task.id)
            )
            while waiting and (waiting[0].done() or len(waiting) >= _IN_FLIGHT):
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()

    def flush(self, timeout: float = SEND_TIMEOUT_S) -> None:
        """Return when the brokers have answered for every task sent so far.

        Raises:
            TimeoutError: they have not within ``timeout`` seconds.
        """
        left = self._producer.flush(timeout)
        if left:
            raise TimeoutError(f"{left} tasks are not confirmed after {timeout:g} s")

    def result(self, task_id: str, timeout: float | None = None) -> Result:
        """Wait for the result of a task, written since this client was made.

        Args:
            task_id: what :meth:`send` returned.
            timeout: seconds; None waits for ever.

        Raises:
            TimeoutError: it has not come.
        """
        future = self.expect(task_id)
        try:
            return future.result(timeout)
        except TimeoutError:
            raise TimeoutError(f"no result of task {task_id} within {timeout:g} s") from None
        finally:
            future.cancel()

    def expect(self, task_id: str) -> "Future[Result]":
        """Return the future of a task's result. Cancel a future that is not needed any more."""
        return self._results().expect(task_id)

    def results(self, quiet: float | None = None) -> Iterator[Result]:
        """Yield every result written since this client was made, as each is committed, whoever sent the task.

        Args:
            quiet: end after so many seconds without a result; None goes on until the client is closed.
        """
        return self._results().follow(quiet)

    def migrate(
        self,
        tenant: str,
        to: int,
        *,
        timeout: float = 60.0,
        phase_timeout: float | None = None,
        max_pause: float | None = None,
        dry_run: bool = False,
        offline: bool = False,
        from_backups: bool = False,
        id: str | None = None,  # noqa: A002 - the name of the record's field.
    ) -> Event:
        """Move a tenant to server ``to`` while it is served, and return the final event, whatever it says.

        Args:
            tenant: whose sessions move.
            to: the server's number.
            timeout: seconds to wait for the end; the migration goes on after that.
            phase_timeout: seconds without progress after which the migration fails; None: the cluster's setting.
            max_pause: the migration fails rather than keep the tenant waiting for longer than so many seconds.
            dry_run: only tell what would be moved, and what would prevent it.
            offline: keep the tenant's tasks back for the whole copy.
            from_backups: if the tenant's server is down, gather its sessions from where they are served now.
            id: a second command with the same id is answered with the first one's outcome, for a day.

        Raises:
            ValueError: this is no command.
            TimeoutError: it has not ended.
            BrokerUnreachableError: no broker answers.
        """
        flags = {"dry_run": dry_run, "offline": offline, "from_backups": from_backups}
        with Commands(self._settings) as commands:
            command = commands.order(
                "migrate",
                tenant=tenant,
                to=to,
                id=id,
                timeout=phase_timeout,
                max_pause=max_pause,
                **{name: True for name, wanted in flags.items() if wanted},
            )
            return commands.end(command, timeout)

    def close(self) -> None:
        """Wait for what was sent, at most ``send_timeout``, and let go of connections."""
        self._producer.flush(self._send_timeout)
        self._closing.set()
        self._poller.join()
        if self._reader is not None:
            self._reader.close()

    def _results(self) -> ResultReader:
        if self._reader is None:
            raise ValueError("this client only sends: make one with read_results=True")
        return self._reader

    def _poll(self) -> None:
        while not self._closing.is_set():
            self._producer.poll(_POLL_S)

    def _produce(self, value: bytes, key: bytes, done: Callable[[KafkaError | None, Message], None]) -> None:
        deadline = time.monotonic() + self._send_timeout
        headers = inject(self._settings)
        while True:
            if self._closing.is_set():
                raise UnavailableError("the client was closed", retry_after_s=0)
            try:
                self._producer.produce(self._topic, value, key, on_delivery=done, headers=headers)
            except BufferError:
                if time.monotonic() > deadline:
                    raise BrokerUnreachableError(
                        require_bootstrap(self._settings), "the queue of unsent tasks stays full"
                    ) from None
                self._closing.wait(0.01)
            except KafkaException as error:
                raise self._refused(error.args[0], len(value)) from error
            else:
                return

    def _delivered(
        self, future: "Future[Sent]", task_id: str | None, error: KafkaError | None, message: Message
    ) -> None:
        if error is not None:
            future.set_exception(self._refused(error, _size(message)))
            return
        partition, offset = message.partition() or 0, message.offset() or 0
        future.set_result(Sent(task_id or f"{partition}/{offset}", partition, offset))

    def _refused(self, error: KafkaError, size: int) -> Exception:
        if error.code() == KafkaError.MSG_SIZE_TOO_LARGE:
            return ValueError(_too_large(size, self._settings))
        return translate(error, self._settings, "take the task")


def encode_task(
    tenant: str,
    session: str,
    type: str,  # noqa: A002 - the name of the record's field.
    payload: Mapping[str, Any],
    *,
    server: int | None = None,
    task_id: str | None = None,
) -> bytes:
    """Return the record's value, or raise ValueError saying what is wrong with it."""
    names: dict[str, object] = {"tenant": tenant, "session": session}
    for field, name in names.items():
        if not isinstance(name, str) or not valid_name(name):
            raise ValueError(f"{field} {name!r} is no name: use 1 to 200 characters without control characters")
    record = {
        "id": task_id,
        "tenant": tenant,
        "session": session,
        "type": type,
        "payload": payload,
        "server": server,
    }
    given = {name: value for name, value in record.items() if value is not None}
    try:
        Task.model_validate(given)
        return orjson.dumps(given)
    except ValidationError as error:
        detail = error.errors(include_url=False)[0]
        field = ".".join(str(part) for part in detail["loc"])
        raise ValueError(f"task field {field}: {detail['msg']}") from None
    except orjson.JSONEncodeError as error:
        raise ValueError(f"the payload cannot be written as JSON: {error}") from None


def _size(message: Any) -> int:
    return len(message.value() or b"")


def _too_large(size: int, settings: Settings) -> str:
    return (
        f"the task has {size} bytes and the brokers take less than {settings.max_record_bytes}: "
        "send less, or raise HOLDFAST_MAX_RECORD_BYTES and the topic's max.message.bytes"
    )


def _make_producer(settings: Settings, send_timeout: float) -> Producer:
    own = options(
        settings,
        enable_idempotence=True,
        # Java's default partitioner: every producer of a tenant must agree on its router.
        partitioner="murmur2_random",
        message_max_bytes=settings.max_record_bytes + INTERNAL_SLACK_BYTES,
        message_timeout_ms=max(1, round(send_timeout * 1000)),
        queue_buffering_max_kbytes=65_536,
        linger_ms=2,
    )
    try:
        return Producer(own)
    except KafkaException as error:
        raise ConfigurationError(f"the Kafka client refuses its settings: {say(error)}") from error
