"""What goes on inside of a client session: its core's state, what was sent and is not settled, both queues."""

import threading
import time
from collections.abc import Callable
from concurrent.futures import Future
from dataclasses import dataclass, field
from typing import Any, Final, NamedTuple

import orjson

from app.client.exchanges_link import Record, SharedLink, unanswered
from app.errors import ExchangeClosedError, FencedError, HoldfastError, UnavailableError
from app.protocol import exchange_client as core
from app.protocol import exchange_records as records
from app.protocol.exchange_client import Event, Live, Opening, Over, Side
from app.protocol.exchange_model import WINDOW_DEFAULT
from app.settings import Settings
from app.topics import Names

KEEP: Final = object()
"""Instead of restart data: those that the manager has stay."""

BEAT_S: Final = 3.0
ASK_S: Final = 5.0
"""So long a session waits for news of what it has sent before it asks how things stand."""

PATIENCE_S: Final = 30.0
"""The same for responses, which may take as long as they like."""

HEAD_BYTES: Final = 256
RESTART_SHARE: Final = 4
"""The restart data of one side may take this part of a record's limit."""


class Request(NamedTuple):
    """A request that is not answered yet."""

    number: int
    body: Any


class Response(NamedTuple):
    """The answer to request ``number``. ``error`` is None, or ``{"type", "message"}`` of a request that failed."""

    number: int
    body: Any
    error: dict[str, str] | None = None


class Restart(NamedTuple):
    """A manager has restarted this side. ``cause``: ``opened``, ``manager``, ``ordered``, ``asked``, …"""

    cause: str
    restart: Any
    submitted: int
    answered: int
    acknowledged: int


@dataclass(slots=True)
class _Sent:
    """An operation that the manager may not have yet."""

    value: bytes
    restart: Any
    number: int
    future: "Future[int]" = field(default_factory=Future)


class Conversation:
    """One client process and one exchange. Thread-safe; ``changed`` is its lock, and notified of all news."""

    def __init__(
        self, settings: Settings, exchange: str, timeout: float, on_restart: Callable[[Restart], None] | None
    ) -> None:
        self._settings = settings
        self.exchange: Final = exchange
        self._key = exchange.encode()
        self.timeout = timeout
        self._on_restart = on_restart
        self.side: Side = Opening()
        self.changed = threading.Condition(threading.RLock())
        self._sent: dict[int, _Sent] = {}
        self._settled = 0
        self.requests: dict[int, Any] = {}
        self.responses: dict[int, Response] = {}
        self._expected: list[Future[Response]] = []
        self.restart: Any = None
        self.error: HoldfastError | None = None
        self._news = self._spoken = time.monotonic()
        self._early: list[Record] | None = []
        self._closed = False
        names = Names(settings.namespace)
        self._shared = SharedLink.join(settings, names.requests, names.replies)

    def open(self, client: str, window: int | None, deadline: float | None) -> None:
        """Claim the exchange and wait until it is restarted, with both queues."""
        try:
            self._partition = self._shared.add(self._key, self._heard, self._beat)
            self._open(client, window, deadline)
        except BaseException:
            self._leave()
            raise

    def _open(self, client: str, window: int | None, deadline: float | None) -> None:
        fields: dict[str, object] = {"client": client}
        fields |= {"window": window} if window is not None else {}
        fields |= {"deadline": deadline} if deadline is not None else {}
        until = time.monotonic() + self.timeout
        # The reply may be here before the word of the offset is: nothing is taken until that is known.
        opened = self._shared.link.send_for_offset(self._key, records.say("open", **fields), self._partition)
        try:
            incarnation = opened.result(self.timeout)
        except TimeoutError:
            raise unanswered(self._settings, self.timeout, "opening") from None
        with self.changed:
            self._step(core.OpenSent(incarnation))
            early, self._early = self._early or [], None
            for record in early:
                self._take(record)
            done = self.changed.wait_for(self._complete, max(0.0, until - time.monotonic()))
            self.check()
        if not done:
            raise unanswered(self._settings, self.timeout, "opening")

    def _complete(self) -> bool:
        """Is it restarted, with both queues?"""
        side = self.side
        if isinstance(side, Live):
            queued = range(side.acknowledged + 1, side.submitted + 1)
            return all(number in self.responses or number in self.requests for number in queued)
        return isinstance(side, Over) or self.error is not None

    def close(self) -> None:
        """Let go of the exchange and leave it open."""
        with self.changed:
            if self._closed:
                return
            self._closed = True
            side = self.side
            self._fail(UnavailableError("the session is closed", retry_after_s=0))
        if isinstance(side, Live):
            self._say("bye", side.incarnation)
        self._leave()

    # -- what the program wants -------------------------------------------------------------------------------------

    @property
    def window(self) -> int:
        """How many requests may be submitted and not acknowledged."""
        return self.side.window if isinstance(self.side, Live) else WINDOW_DEFAULT

    def acknowledge(self, number: int, restart: Any) -> "Future[int]":
        """Send an acknowledgement. Raise ValueError when there is no such response."""
        data = self.encode_restart(restart)
        with self.changed:
            self.check()
            decided = self._step(core.AcknowledgeWanted(number))
            if isinstance(decided[0], core.NotYet):
                raise ValueError(  # noqa: TRY004 - an effect says so.
                    f"there is no response {number} to be acknowledged"
                )
            future = self._send(decided, "acknowledge", data, restart)
            for gone in [found for found in self.responses if found <= number]:
                del self.responses[gone]
            self.changed.notify_all()
            return future

    def finish(self) -> "Future[int]":
        """Say that the exchange is over."""
        with self.changed:
            self.check()
            return self._send(self._step(core.FinishWanted()), "finish", b"", KEEP)

    def expect(self) -> "Future[Response]":
        """Return the future of the oldest response that is not acknowledged."""
        future: Future[Response] = Future()
        with self.changed:
            self.check()
            self._expected.append(future)
            self._deliver()
        return future

    def _leave(self) -> None:
        self._shared.remove(self._key, self._heard, self._beat)
        self._shared.leave(self.timeout)

    def _say(self, kind: str, incarnation: int) -> None:
        self._spoken = time.monotonic()
        self._shared.link.send(self._key, records.say(kind, incarnation=incarnation), self._partition)

    def encode(self, body: Any) -> bytes:
        """Return a body as JSON. Raise ValueError if it cannot be, or is too large."""
        return self._checked(_dump(body, "request"), self._settings.max_record_bytes, "the request")

    def encode_restart(self, restart: Any) -> bytes:
        """Return the field of a record; nothing for :data:`KEEP`."""
        if restart is KEEP:
            return b""
        limit = self._settings.max_record_bytes // RESTART_SHARE
        return b',"restart":%b' % self._checked(_dump(restart, "restart data"), limit, "the restart data")

    @staticmethod
    def _checked(value: bytes, limit: int, what: str) -> bytes:
        if len(value) + HEAD_BYTES > limit:
            raise ValueError(
                f"{what}: {len(value)} bytes, and {limit - HEAD_BYTES} are allowed: "
                "send less, or raise HOLDFAST_MAX_RECORD_BYTES and the topics' max.message.bytes"
            )
        return value

    def submit(self, request: Any, value: bytes, restart: Any, data: bytes) -> "Future[int] | None":
        """Send a request; None while the window is closed."""
        self.check()
        self._checked(value + data, self._settings.max_record_bytes, "the request and its restart data")
        decided = self._step(core.SubmitWanted())
        if isinstance(decided[0], core.Full):
            return None
        future = self._send(decided, "submit", b'%b,"body":%b' % (data, value), restart)
        assert isinstance(self.side, Live)
        self.requests[self.side.submitted] = request
        return future

    def _send(self, decided: tuple[core.Effect, ...], kind: str, rest: bytes, restart: Any) -> "Future[int]":
        [effect] = decided
        assert isinstance(effect, core.Send)
        assert isinstance(self.side, Live)
        number = b',"number":%d' % effect.number if effect.number else b""
        value = b'{"v":1,"type":"%b","incarnation":%d,"op":%d%b%b}' % (
            kind.encode(),
            self.side.incarnation,
            effect.op,
            number,
            rest,
        )
        sent = self._sent[effect.op] = _Sent(value, restart, effect.number)
        self._spoken = time.monotonic()
        self._shared.link.send(self._key, value, self._partition)
        return sent.future

    def result(self, future: "Future[int]", until: float) -> int:
        """Wait until the manager has it."""
        left = max(0.0, until - time.monotonic())
        try:
            return future.result(left)
        except TimeoutError:
            raise unanswered(self._settings, left, f"exchange {self.exchange}") from None

    def _step(self, event: Event) -> tuple[core.Effect, ...]:
        decided = core.step(self.side, event)
        self.side = decided.side
        for effect in decided.effects:
            match effect:
                case core.Settle(op):
                    self._settle(op)
                case core.Resend(first):
                    for op in sorted(found for found in self._sent if found >= first):
                        self._shared.link.send(self._key, self._sent[op].value, self._partition)
                case core.Stop():
                    self._fail(self._why())
        return decided.effects

    def _settle(self, op: int) -> None:
        for settled in range(self._settled + 1, op + 1):
            sent = self._sent.pop(settled, None)
            if sent is not None:
                self.restart = self.restart if sent.restart is KEEP else sent.restart
                if sent.future.set_running_or_notify_cancel():
                    sent.future.set_result(sent.number)
        self._settled = max(self._settled, op)

    def _why(self) -> HoldfastError:
        side = self.side
        assert isinstance(side, Over)
        if side.reason == "fenced":
            return FencedError(f"exchange {self.exchange}", ours=side.incarnation, theirs=side.current)
        return ExchangeClosedError(self.exchange, side.reason)

    @property
    def over(self) -> bool:
        """Has it ended, for whatever reason?"""
        return self.error is not None

    def check(self) -> None:
        """Raise what has ended it."""
        if self.error is not None:
            raise self.error

    def _fail(self, error: HoldfastError) -> None:
        self.error = self.error or error
        waiting: list[Future[Any]] = [*(sent.future for sent in self._sent.values()), *self._expected]
        self._sent.clear()
        self._expected.clear()
        for future in waiting:
            if not future.done() and future.set_running_or_notify_cancel():
                future.set_exception(self.error)
        self.changed.notify_all()

    def oldest(self) -> Response | None:
        """The oldest response that is not acknowledged, if it is there."""
        side = self.side
        return self.responses.get(side.acknowledged + 1) if isinstance(side, Live) else None

    def _deliver(self) -> None:
        found = self.oldest()
        if found is not None:
            expected, self._expected = self._expected, []
            for future in expected:
                if future.set_running_or_notify_cancel():
                    future.set_result(found)

    # -- inside: in threads of the connection -----------------------------------------------------------------------

    def _heard(self, record: Record | HoldfastError) -> None:
        with self.changed:
            if isinstance(record, HoldfastError):
                self._fail(record)
            elif self._early is not None:
                self._early.append(record)
            else:
                self._take(record)

    def _take(self, record: Record) -> None:
        if record.get("incarnation") != getattr(self.side, "incarnation", None) or self.over:
            return
        self._news = time.monotonic()
        kind = record.get("type")
        if kind in ("response", "request"):
            self._queue(kind, record)
        else:
            event = records.read_reply(record)
            if event is None:
                return
            self._step(event)
            if isinstance(event, core.Restarted):
                self._restarted(record)
        self.changed.notify_all()

    def _queue(self, kind: str, record: Record) -> None:
        number, side = record["number"], self.side
        if not isinstance(side, Live) or number <= side.acknowledged:
            return
        if kind == "request":
            if number not in self.responses:
                self.requests.setdefault(number, record["body"])
            return
        self.responses[number] = Response(number, record["body"], record.get("error"))
        self.requests.pop(number, None)
        self._step(core.PositionsTold(side.incarnation, 0, number))
        self._deliver()

    def _restarted(self, record: Record) -> None:
        self.restart = record["restart"]
        self._say("alive", record["incarnation"])
        if self._on_restart is not None:
            fields = (record[name] for name in ("cause", "restart", "submitted", "answered", "acknowledged"))
            self._on_restart(Restart(*fields))

    def _beat(self, called: bool) -> None:
        now = time.monotonic()
        with self.changed:
            side = self.side
            if not isinstance(side, Live) or self.over:
                return
            patience = ASK_S if self._sent else PATIENCE_S
            if (self._sent or self.requests) and now - self._news > patience:
                self._news = now
                self._say("ask", side.incarnation)
            elif called or now - self._spoken > BEAT_S:
                self._say("alive", side.incarnation)


def _dump(value: Any, what: str) -> bytes:
    try:
        return orjson.dumps(value)
    except orjson.JSONEncodeError as error:
        raise ValueError(f"the {what} cannot be written as JSON: {error}") from None
