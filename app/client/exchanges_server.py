"""Exchanges on the server computer: see :class:`ServerSession`."""

import asyncio
import inspect
import threading
from collections import deque
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from types import TracebackType
from typing import Any, Final, NamedTuple, Self

import orjson

from app.client.exchanges_conversation import HEAD_BYTES, RESTART_SHARE
from app.client.exchanges_link import Link, Record, unanswered
from app.errors import FencedError, HoldfastError
from app.protocol import exchange_records as records
from app.protocol import exchange_server as core
from app.protocol.exchange_server import Away, Event, Held, Side
from app.settings import Settings, load
from app.topics import Names

MESSAGE_CHARS: Final = 1_000

Perform = Callable[[Any, Any], Any]
"""Takes the body of a request and the restart data, returns a body and restart data; may be a coroutine function."""


class Assigned(NamedTuple):
    """An exchange that a server session was given, or given again. Queues are bodies by number."""

    exchange: str
    cause: str
    restart: Any
    requests: dict[int, Any]
    responses: dict[int, Any]


@dataclass(slots=True)
class _Desk:
    """One exchange here. ``restart`` is what its next request is performed with."""

    key: bytes
    partition: int
    side: Side = field(default_factory=Away)
    restart: Any = None
    bodies: dict[int, Any] = field(default_factory=dict)
    answered: dict[int, Any] = field(default_factory=dict)
    cause: str = ""
    queued: bool = False
    running: Any = None


class ServerSession:
    """Performs the requests of the exchanges that its managers give it, until it is told to stop.

    The requests of one exchange are performed one by one, in order; several exchanges at once with ``threads``. An
    exception in ``perform`` answers the request as failed and leaves the restart data as they are.

    Args:
        bootstrap: Kafka's bootstrap servers; empty: those of the settings.
        server: the session's name: 1 to 200 characters without control characters. Of two processes with one name
            the younger one counts.
        perform: ``perform(body, restart) -> (body, restart)``; a function or a coroutine function. ``restart`` is None
            for the first request of an exchange.
        namespace: as the workers have it; None: that of the settings, ``holdfast`` by default.
        threads: how many requests, of different exchanges, are performed at once.
        timeout: seconds to wait for the brokers at the start.
        settings: a whole settings object instead of ``more``.
        more: any setting by its name; what is not given comes from environment variables ``HOLDFAST_*``.

    Raises:
        BrokerUnreachableError: no broker answers.
        ConfigurationError: a setting is wrong, or the namespace has no topics.
    """

    def __init__(
        self,
        bootstrap: str = "",
        server: str = "",
        perform: Perform | None = None,
        namespace: str | None = None,
        *,
        threads: int = 1,
        timeout: float = 30.0,
        settings: Settings | None = None,
        **more: object,
    ) -> None:
        if not records.valid_name(server):
            raise ValueError(f"server {server!r} is no name: use 1 to 200 characters without control characters")
        if perform is None:
            raise ValueError("perform: a function of a body and restart data is needed")
        self.server: Final = server
        self._perform = perform
        self._threads = threads
        self._settings = settings or load(None, {"bootstrap": bootstrap or None, "namespace": namespace, **more})[0]
        self._desks: dict[bytes, _Desk] = {}
        self._ready: deque[_Desk] = deque()
        self._changed = threading.Condition(threading.RLock())
        self._current = threading.local()
        self._incarnation = -1
        self._error: BaseException | None = None
        self._stopping = False
        heads = [records.server_head(kind, server) for kind in ("request", "response", "restart", "release", "fenced")]
        self._heads = tuple(heads)
        names = Names(self._settings.namespace)
        self._link = Link(
            self._settings,
            names.responses,
            names.assignments,
            heard=self._heard,
            beat=self._beat,
            failed=self._fail,
        )
        try:
            self._link.listen(*range(self._link.managers))
            self._open(timeout)
        except BaseException:
            self._link.close(0)
            raise

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()

    def _open(self, timeout: float) -> None:
        """The session's number is where its opening record stands, on the partition of its name."""
        key = self.server.encode()
        opening = records.say("open", server=self.server)
        future: Future[int] = self._link.send_for_offset(key, opening, self._link.partition_of(key))
        try:
            incarnation = future.result(timeout)
        except TimeoutError:
            raise unanswered(self._settings, timeout, "opening") from None
        with self._changed:
            self._incarnation = incarnation
        self._tell("alive")

    # -- what the program does --------------------------------------------------------------------------------------

    def run(self) -> None:
        """Perform requests until :meth:`stop`, Ctrl-C, or the end of the connection; then say goodbye.

        Raises:
            FencedError: a younger process has this session's name.
            BrokerUnreachableError, ConfigurationError: the connection ended.
        """
        try:
            if self._threads == 1:
                self._work()
            else:
                with ThreadPoolExecutor(self._threads, thread_name_prefix="exchange") as pool:
                    works = [pool.submit(self._work) for _ in range(self._threads)]
                    try:
                        for work in works:
                            work.result()
                    except BaseException:
                        self.stop()
                        raise
        finally:
            self.close()
        if isinstance(self._error, HoldfastError):
            raise self._error

    async def serve(self) -> None:
        """As :meth:`run`, for asyncio: requests are performed in threads of their own; cancel it to stop."""
        try:
            await asyncio.to_thread(self.run)
        except asyncio.CancelledError:
            self.stop()
            raise

    def stop(self) -> None:
        """Begin no further request; :meth:`run` returns when what is being performed has ended."""
        with self._changed:
            self._stopping = True
            self._changed.notify_all()

    def checkpoint(self, restart: Any) -> None:
        """Save restart data from within ``perform``: whoever performs this request again gets them.

        Raises:
            ValueError: not JSON, or too large.
            RuntimeError: this thread performs no request.
        """
        desk: _Desk | None = getattr(self._current, "desk", None)
        if desk is None:
            raise RuntimeError("checkpoint: call it from within perform, in its thread")
        value = self._encode_restart(restart)
        with self._changed:
            for effect in self._step(desk, core.Paused()):
                if isinstance(effect, core.Save):
                    desk.restart = restart
                    self._send(desk, "checkpoint", effect.op, effect.number, b',"restart":' + value)

    @property
    def exchanges(self) -> dict[str, Assigned]:
        """The exchanges that are here now, by name, with their restart data and queues as last told or performed."""
        with self._changed:
            return {
                key.decode(): Assigned(key.decode(), desk.cause, desk.restart, dict(desk.bodies), dict(desk.answered))
                for key, desk in self._desks.items()
                if isinstance(desk.side, Held)
            }

    def close(self) -> None:
        """Say goodbye, so that others go on at once, and let go of connections."""
        self.stop()
        with self._changed:
            incarnation, self._incarnation = self._incarnation, -1
        if incarnation >= 0:
            self._tell("bye", incarnation)
        self._link.close()

    # -- performing -------------------------------------------------------------------------------------------------

    def _work(self) -> None:
        with asyncio.Runner() as runner:
            while (found := self._next()) is not None:
                desk, number, body = found
                self._current.desk = desk
                try:
                    content, restart = self._run(runner, body, desk.running)
                finally:
                    self._current.desk = None
                self._ended(desk, number, content, restart)

    def _next(self) -> tuple[_Desk, int, Any] | None:
        with self._changed:
            while not self._stopping:
                while self._ready:
                    desk = self._ready.popleft()
                    desk.queued = False
                    for effect in self._step(desk, core.Free()):
                        if isinstance(effect, core.Perform):
                            return self._begin(desk, effect)
                self._changed.wait()
        return None

    def _begin(self, desk: _Desk, effect: core.Perform) -> tuple[_Desk, int, Any]:
        if effect.announce:
            self._send(desk, "begin", effect.announce, effect.number, b"")
        desk.answered.clear()
        desk.running = desk.restart
        return desk, effect.number, desk.bodies[effect.number]

    def _run(self, runner: asyncio.Runner, body: Any, restart: Any) -> tuple[bytes, Any]:
        """The rest of a response record, and what its restart data are; (content, None) leaves them."""
        try:
            returned = self._perform(body, restart)
            if inspect.iscoroutine(returned):
                returned = runner.run(returned)
        except Exception as error:  # noqa: BLE001 - whatever it is, it is the answer.
            return _failed(type(error).__name__, str(error)), None
        try:
            answer, after = returned
        except (TypeError, ValueError):
            return _failed("BadResult", "perform returns (body, restart)"), None
        try:
            content = b',"restart":%b,"body":%b' % (self._encode_restart(after), orjson.dumps(answer))
        except (orjson.JSONEncodeError, ValueError) as error:
            return _failed("BadResult", str(error)), None
        limit = self._settings.max_record_bytes - 4 * HEAD_BYTES
        if len(content) > limit:
            return _failed("TooLarge", f"a response of {len(content)} bytes; the limit is {limit}"), None
        return content, (after,)

    def _ended(self, desk: _Desk, number: int, content: bytes, restart: Any) -> None:
        with self._changed:
            for effect in self._step(desk, core.Performed()):
                if isinstance(effect, core.Respond):
                    desk.bodies.pop(number, None)
                    if restart is not None:
                        desk.restart = restart[0]
                    self._send(desk, "respond", effect.op, number, content)
            self._settle(desk)

    def _settle(self, desk: _Desk) -> None:
        """There may be something to perform: in turn with the other exchanges. What is over is forgotten."""
        side = desk.side
        if side == Away():
            self._desks.pop(desk.key, None)
        elif isinstance(side, Held) and not side.running and side.done + 1 in side.there and not desk.queued:
            desk.queued = True
            self._ready.append(desk)
            self._changed.notify()

    def _send(self, desk: _Desk, kind: str, op: int, number: int, rest: bytes) -> None:
        assert isinstance(desk.side, Held)
        value = b'%b"assignment":%d,"op":%d,"number":%d%b}' % (
            records.server_head(kind, self.server),
            desk.side.assignment,
            op,
            number,
            rest,
        )
        self._link.send(desk.key, value, desk.partition)

    def _encode_restart(self, restart: Any) -> bytes:
        try:
            value = orjson.dumps(restart)
        except orjson.JSONEncodeError as error:
            raise ValueError(f"the restart data cannot be written as JSON: {error}") from None
        limit = self._settings.max_record_bytes // RESTART_SHARE - HEAD_BYTES
        if len(value) > limit:
            raise ValueError(f"restart data of {len(value)} bytes; {limit} are allowed (HOLDFAST_MAX_RECORD_BYTES)")
        return value

    def _step(self, desk: _Desk, event: Event) -> tuple[core.Effect, ...]:
        decided = core.step(desk.side, event)
        desk.side = decided.side
        return decided.effects

    # -- in threads of the connection -------------------------------------------------------------------------------

    def _heard(self, key: bytes | None, value: bytes) -> None:
        if key is None:
            if b'"roll-call"' in value:
                self._beat()
            return
        if not value.startswith(self._heads):
            return
        record = orjson.loads(value)
        with self._changed:
            if record["type"] == "fenced":
                if record["incarnation"] == self._incarnation:
                    self._fail(
                        FencedError(f"server session {self.server}", ours=self._incarnation, theirs=record["current"])
                    )
                return
            self._take(key, record)

    def _take(self, key: bytes, record: Record) -> None:
        desk = self._desks.get(key)
        if desk is None:
            desk = self._desks[key] = _Desk(key, self._link.partition_of(key))
        if record["type"] == "response":
            if isinstance(desk.side, Held) and record["assignment"] == desk.side.assignment:
                desk.answered[record["number"]] = record["body"]
            return
        event = records.read_assignment(record)
        if event is None:
            return
        if record["type"] == "restart":
            desk.cause = record["cause"]
            self._link.send(self.server.encode(), self._alive("alive", self._incarnation), desk.partition)
        for effect in self._step(desk, event):
            match effect:
                case core.Restart():
                    desk.restart = record["restart"]
                    desk.bodies.clear()
                    desk.answered.clear()
                case core.Keep(number):
                    desk.bodies[number] = record["body"]
        self._settle(desk)

    def _fail(self, error: HoldfastError) -> None:
        with self._changed:
            self._error = self._error or error
            self.stop()

    def _beat(self) -> None:
        with self._changed:
            incarnation = self._incarnation
        if incarnation >= 0:
            self._tell("alive", incarnation)

    def _alive(self, kind: str, incarnation: int) -> bytes:
        return records.say(kind, server=self.server, incarnation=incarnation)

    def _tell(self, kind: str, incarnation: int | None = None) -> None:
        """Say something to every manager."""
        value = self._alive(kind, self._incarnation if incarnation is None else incarnation)
        for partition in range(self._link.managers):
            self._link.send(self.server.encode(), value, partition)


def _failed(kind: str, message: str) -> bytes:
    return b',"error":%b' % orjson.dumps({"type": kind, "message": message[:MESSAGE_CHARS]})
