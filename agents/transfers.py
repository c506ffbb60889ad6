"""The owner of connections: grants their locks, keeps their rows, tells all when a message is whole.

One :class:`Owner` serves one place: partition r of ``transfers``. What is asked comes as records, or from this worker's
own web server by :meth:`Owner.call`; both go through the unit of work before they are answered. Bytes are written by
whoever holds the lock: for devices that send them as records the owner itself (:mod:`agents.devices`), which also
makes the whole of what others left behind complete.
"""

import heapq
import logging
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Executor, Future
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import faust
import orjson
from faust.types import StreamT

from agents.devices import Devices
from agents.transfer_words import announcement, event_of, message_in, parse_record, reply_fields, shelf_in
from app.engine.driver import Delivery
from app.engine.engine import Engine
from app.engine.fetch import Batch
from app.engine.offsets import Partition
from app.engine.places import Place
from app.errors import RecordError, StorageError, UnavailableError
from app.protocol import transfer
from app.protocol.conveyance import (
    Announce,
    Begin,
    Completing,
    Compose,
    Composed,
    Discard,
    Done,
    Durable,
    Effect,
    Event,
    Failed,
    Granted,
    Idle,
    Lock,
    Message,
    Nak,
    Progress,
    Reason,
    Release,
    Remove,
    Reply,
    Spoiled,
    State,
    Step,
    Terms,
    Tick,
    due_ms,
    unfinished,
)
from app.storage import Storage
from app.storage.conclude import Conclusion, conclude, put_at, shelf_for
from app.topics import Names
from tables import transfers as table

log = logging.getLogger(__name__)

IDLE = Idle()
TICKS_MAX = 500
"""So many connections at most have their time looked at before something else has its turn."""


@dataclass(slots=True)
class TransferContext:
    """What the owners of a worker share.

    ``limit`` is that of a record, in bytes. ``url`` is that of what has a name in the storage. ``place`` says where a
    tenant's messages are stored from now on; empty: in the storage of all.
    """

    engine: Engine
    names: Names
    worker: str
    terms: Terms
    storage: Storage
    url: Callable[[str], str]
    pool: Executor
    limit: int
    place: Callable[[str], str] = lambda tenant: ""


class Owner:
    """One owner, as the worker that hosts it performs it. See :class:`app.engine.places.Resident`."""

    def __init__(self, context: TransferContext, place: Place) -> None:
        self.context = context
        self.number = place.number
        self._rows = place.rows[table.NAME]
        self._due: list[tuple[int, str]] = []
        self._planned: dict[str, int] = {}
        self._remotes: Counter[str] = Counter()
        self._unfinished = 0
        self._open: list[Callable[[], None]] = []
        self._sealed: list[Callable[[], None]] = []
        self._waiting: set[Future[dict[str, Any]]] = set()
        self._composing: dict[str, int] = {}
        self._asked = 0
        self.closed = False
        self.devices = Devices(self)
        for key, row in self._rows.scan():
            state = table.decode(row)
            self._count(state, 1)
            self._plan(key.decode(), state)

    @property
    def unfinished(self) -> int:
        """Connections here whose message is not whole yet."""
        return self._unfinished

    # -- requests -------------------------------------------------------------------------------------------------

    def perform(self, batch: Batch, until: float) -> None:
        """Requests that came as records, answered by records."""
        records = batch.records
        while batch.start < len(records):
            message = records[batch.start]
            batch.start += 1
            self._record(message.key(), message.value())
            if time.monotonic() >= until or self.devices.full:
                return

    def _record(self, key: bytes | None, value: bytes | None) -> None:
        connection = ""
        fields: Any = {}
        try:
            connection, fields = parse_record(key, value)
            if not self.devices.takes(connection, fields):
                reply, state = self.handle(connection, fields)
                self.answer(connection, fields, reply_fields(reply, state))
        except RecordError as error:
            if connection:
                self.answer(
                    connection, fields, {"v": 1, "reply": "nak", "reason": "bad-request", "message": str(error)}
                )
            else:
                log.debug("transfers/%d: %s", self.number, error)

    def answer(self, connection: str, fields: Mapping[str, Any], reply: Mapping[str, Any]) -> None:
        """Answer by a record, with the unit."""
        value = orjson.dumps({"request": fields.get("request"), "to": fields.get("to"), **reply})
        self.context.engine.unit.send(self.context.names.transfer_replies, value, connection.encode())

    def call(self, connection: str, fields: dict[str, Any], future: "Future[dict[str, Any]]") -> None:
        """Answer a request of this worker's own: in the engine's thread, once it is committed."""
        if not future.set_running_or_notify_cancel():
            return  # nobody waits any more; from here on nobody can stop waiting
        if self.closed:
            future.set_exception(UnavailableError("the owner of the connection moves", retry_after_s=0.1))
            return
        try:
            reply, state = self.handle(connection, fields)
        except RecordError as error:
            future.set_exception(error)
            return
        answer = reply_fields(reply, state)
        if isinstance(reply, Nak) or fields["op"] == "show":
            future.set_result(answer)
            return
        self.touch(connection, state)
        self._waiting.add(future)
        self.after(lambda: self._resolve(future, answer))

    def touch(self, connection: str, state: State) -> None:
        """Also what changes nothing is answered by the owner of this generation only: let the unit commit the row."""
        if not isinstance(state, Idle):
            self._rows.put(connection.encode(), table.encode(state))

    def _resolve(self, future: "Future[dict[str, Any]]", answer: dict[str, Any]) -> None:
        self._waiting.discard(future)
        future.set_result(answer)

    def handle(self, connection: str, fields: dict[str, Any]) -> tuple[Reply, State]:
        """Perform a request; the reply holds once the unit is committed.

        Raises:
            RecordError: it is none.
        """
        if fields.get("op") == "show":
            row = self._rows.peek(connection.encode())
            state = table.decode(row) if row is not None else IDLE
            return Durable(0), state
        now_ms = int(time.time() * 1000)
        if fields.get("op") != "begin":
            return self.step(connection, event_of(fields, now_ms), fields.get("content"))
        remote = str(fields.get("details", {}).get("remote", ""))
        event = event_of(fields, now_ms, of_remote=self._remotes[remote] if remote else 0, total=self._unfinished)
        assert isinstance(event, Begin)
        event = replace(event, message=put_at(event.message, self.context.place))
        refused = self._unpublishable(event.message)
        if refused is not None:
            return Nak(refused), self.state(connection)
        return self.step(connection, event)

    def _unpublishable(self, message: Message) -> Reason | None:
        """A message that is to become a record must fit into one, of a topic that there is."""
        topic = message.details.get("publish")
        if not topic:
            return None
        known = (
            None if topic.startswith(self.context.names.prefix) else self.context.engine.janitor.largest_record(topic)
        )
        if known is None or message.size is None:
            return Reason.MISMATCH
        limit = min(self.context.limit, known.max_bytes or self.context.limit)
        return Reason.TOO_LARGE if message.size > limit - 1024 else None

    # -- rows -----------------------------------------------------------------------------------------------------

    def state(self, connection: str) -> State:
        """The state with what this unit changed."""
        row = self._rows.get(connection.encode())
        return table.decode(row) if row is not None else IDLE

    def step(self, connection: str, event: Event, content: str | None = None) -> tuple[Reply, State]:
        """Let the core decide, keep the row, perform the effects with the unit or after it."""
        before = self.state(connection)
        decided = transfer.step(before, event, self.context.terms)
        if decided.state != before:
            self._keep(connection, before, decided.state)
        for effect in decided.effects:
            self._perform(connection, before, decided, effect, content)
        return decided.reply, decided.state

    def _keep(self, connection: str, before: State, after: State) -> None:
        key = connection.encode()
        if isinstance(after, Idle):
            self._rows.delete(key)
        else:
            self._rows.put(key, table.encode(after))
        self._count(before, -1)
        self._count(after, 1)
        self._plan(connection, after)

    def _count(self, state: State, by: int) -> None:
        if unfinished(state):
            remote = message_in(state).details.get("remote", "")
            self._unfinished += by
            self._remotes[remote] += by
            if not self._remotes[remote]:
                del self._remotes[remote]

    def _plan(self, connection: str, state: State) -> None:
        """Look at the connection when its time comes; one that was to come earlier is looked at then."""
        due = due_ms(state)
        if due is not None and due < self._planned.get(connection, due + 1):
            self._planned[connection] = due
            heapq.heappush(self._due, (due, connection))

    # -- effects --------------------------------------------------------------------------------------------------

    def after(self, call: Callable[[], None]) -> None:
        """Do something once what the open unit says is committed."""
        self._open.append(call)

    def _perform(self, connection: str, before: State, decided: Step, effect: Effect, content: str | None) -> None:
        match effect:
            case Discard():
                shelf = shelf_for(connection, message_in(before))
                self.after(lambda: self._in_pool(lambda: self.context.storage.clear(shelf.parts)))
            case Remove(message):
                name = shelf_for(connection, message).object
                self.after(lambda: self._in_pool(lambda: self.context.storage.delete([name])))
            case Compose():
                self.after(lambda: self.context.engine.submit(lambda: self._compose(connection)))
            case Announce():
                self._announce(connection, decided.state, effect, content)

    def _in_pool(self, call: Callable[[], None]) -> None:
        def run() -> None:
            try:
                call()
            except StorageError as error:
                log.warning("what is needed no more stays in the storage: %s", error)

        self.context.pool.submit(run)

    def _announce(self, connection: str, state: State, what: Announce, content: str | None) -> None:
        context, topic = self.context, message_in(state).details.get("publish", "")
        if what is Announce.COMPLETED and topic and content is not None:
            context.engine.unit.send(topic, content.encode("latin-1"), connection.encode())
        event = announcement(connection, state, what, context.url(shelf_in(connection, state).object))
        context.engine.unit.send(context.names.events, orjson.dumps(event), connection.encode(), partition=0)

    # -- making the whole -----------------------------------------------------------------------------------------

    def _compose(self, connection: str) -> None:
        """Nobody makes the whole of a complete conveyance: take the lock, and do it."""
        if self.closed or not isinstance(self.state(connection), Completing):
            return
        self._asked += 1
        request = f"compose-{time.time_ns()}-{self._asked}"
        reply, state = self.step(connection, Lock(int(time.time() * 1000), self.context.worker, request))
        if isinstance(reply, Granted) and isinstance(state, Completing):
            self.after(partial(self.conclude, connection, state))

    def conclude(self, connection: str, state: Completing) -> None:
        """Make the whole in a thread; this worker holds the lock, as the committed row says."""
        self._composing[connection] = state.instance
        future = self.context.pool.submit(conclude, self.context.storage, connection, state)
        future.add_done_callback(
            lambda done: self.context.engine.submit(lambda: self._concluded(connection, state.instance, done))
        )

    def _concluded(self, connection: str, instance: int, done: "Future[Conclusion]") -> None:
        self._composing.pop(connection, None)
        if self.closed:
            return
        now_ms = int(time.time() * 1000)
        error = done.exception()
        if error is not None:
            log.warning("a message that is complete cannot be made whole yet: %s", error)
            self.step(connection, Release(now_ms, instance, ()))
            return
        found = done.result()
        content = None if found.content is None else found.content.decode("latin-1")
        event = (
            Spoiled(now_ms, instance, found.spoiled) if found.spoiled else Composed(now_ms, instance, found.checksum)
        )
        reply, state = self.step(connection, event, content)
        self.devices.concluded(connection, reply, state)

    # -- the rest of a resident -----------------------------------------------------------------------------------

    def due(self) -> float | None:
        """When the time of a connection comes."""
        return self._due[0][0] / 1000 if self._due else None

    def on_time(self, now: float) -> None:
        """Leases and messages that have come to their end."""
        now_ms = int(now * 1000) + 1
        for _ in range(TICKS_MAX):
            if not self._due or self._due[0][0] > now_ms:
                return
            planned, connection = heapq.heappop(self._due)
            if self._planned.get(connection) != planned:
                continue
            del self._planned[connection]
            state = self.state(connection)
            due = due_ms(state)
            if due is None or due > now_ms:
                self._plan(connection, state)
                continue
            held = self._composing.get(connection) or self.devices.holds(connection)
            if held is not None and held == state.instance and not isinstance(state, Done | Failed):
                self.step(connection, Progress(now_ms, held, ()))
            else:
                self.step(connection, Tick(now_ms))
            self._plan(connection, self.state(connection))

    def before_seal(self) -> None:
        """What waits for this unit's commit is settled."""
        self._sealed += self._open
        self._open = []

    def after_commit(self, offsets: Mapping[Partition, int]) -> None:
        """Answer, and do what had to wait."""
        calls, self._sealed = self._sealed, []
        for call in calls:
            call()

    def busy(self) -> bool:
        """Nothing is about to end within the unit."""
        return False

    def hold(self, topic: str) -> int | None:
        """An owner commits its position."""
        return None

    def pausing(self) -> Sequence[Partition]:
        """The requests, while too many bytes of devices wait to be written."""
        return ((self.context.names.transfers, self.number),) if self.devices.full else ()

    def close(self) -> None:
        """Whoever waits asks the next owner."""
        self.closed = True
        self.devices.close()
        for future in self._waiting:
            future.set_exception(UnavailableError("the owner of the connection moves", retry_after_s=0.1))
        self._waiting.clear()


def attach(app: faust.App, names: Names) -> None:
    """Register the Faust agent of all owners with ``app``."""

    async def own(stream: StreamT[Delivery]) -> None:
        async for delivery in stream:
            delivery.perform()

    app.agent(app.topic(names.transfers, key_serializer="raw", value_serializer="raw"), name="transfers")(own)
