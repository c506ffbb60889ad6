"""The manager of exchanges: keeps both queues and the restart data of both sides, and restarts them.

One :class:`Manager` serves one place: partition r of ``requests`` and ``responses``. A unit of work stores what came
and sends what follows from it together, so that nobody is told of anything that is not stored. Its backup is the
engine's standby: when the place opens at another host, both sides of every exchange are restarted from the rows.
"""

import logging
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import faust
from faust.types import StreamT

from agents.exchange_attendance import Attendance, Session
from agents.exchange_desk import Desk
from agents.exchange_ledger import Ledger
from agents.exchange_mail import Mail
from agents.exchange_timers import Timers
from app.engine.driver import Delivery
from app.engine.engine import Engine
from app.engine.fetch import Batch, Record
from app.engine.offsets import Partition
from app.engine.places import Place
from app.errors import RecordError
from app.protocol import exchange as core
from app.protocol import exchange_model as model
from app.protocol import exchange_records as records
from app.protocol.exchange_model import Ended, Event, Exchange, Open
from app.protocol.exchange_presence import Arrived, Effect, Fence, Gone, Silent, choose
from app.protocol.exchange_records import Look, Order, Word
from app.protocol.murmur2 import partition_of
from app.topics import Names
from tables import exchanges as table

log = logging.getLogger(__name__)

RESTART_SHARE = 4
"""The restart data of one side may take this part of a record's limit, so that those of both fit into a row."""

HELD_S = 0.02


@dataclass(slots=True)
class ExchangeContext:
    """What the managers of a worker share. Times are seconds; ``limit`` is that of a record, in bytes.

    ``lag`` tells how far the backup of a manager is behind, in seconds, None where nobody knows; with ``lag_max`` above
    0 nothing is acknowledged while it is farther.
    """

    engine: Engine
    names: Names
    managers: int
    worker: str
    limit: int
    lease: float
    timeout: float
    retention: float
    crashes_max: int
    lag_max: float = 0.0
    lag: Callable[[int], float | None] = lambda number: None


class Manager:
    """One manager, as the worker that hosts it performs it. See :class:`app.engine.places.Resident`."""

    def __init__(self, context: ExchangeContext, place: Place) -> None:
        names = context.names
        self._context = context
        self._number = place.number
        self._host = f"{context.engine.options.name} {context.engine.options.incarnation}"
        self._ledger = Ledger(place.rows[table.NAME], place.rows[table.MESSAGES])
        self._mail = Mail(context.engine, names, place.number)
        self._attendance = Attendance(round(context.lease * 1000), self._presence_changed, self._mail.roll_call)
        self._requests: Partition = (names.requests, place.number)
        self._responses: Partition = (names.responses, place.number)
        self._position = place.committed[self._requests].offset or 0
        self._by_server: dict[str, set[bytes]] = {}
        self._orphans: set[bytes] = set()
        self._timers = Timers(context.timeout, context.retention)
        self._held = False
        self._again: float | None = None
        self._desk = Desk(context.engine, self._ledger, self._mail, find=self._find_server, forget=self._forget)
        self._open()

    @property
    def open_count(self) -> int:
        """Exchanges here that are not over."""
        return len(self._orphans) + sum(map(len, list(self._by_server.values())))

    # -- taking over ------------------------------------------------------------------------------------------------

    def _open(self) -> None:
        """Find out who takes part; another host's exchanges are restarted on both sides."""
        ours = self._ledger.host == self._host
        count = 0
        for key, row in self._ledger.all():
            exchange = row.exchange
            self._timers.arm(key, exchange, row.changed_ms)
            if not isinstance(exchange, Open):
                continue
            count += 1
            self._attendance.expect(("client", key), exchange.incarnation)
            if exchange.server:
                self._by_server.setdefault(exchange.server, set()).add(key)
                self._attendance.expect(("server", exchange.server), exchange.server_incarnation)
            else:
                self._orphans.add(key)
            if not ours:
                self.apply(key, model.ManagerStarted())
        if self._ledger.host:
            self._mail.roll_call()
        if count and not ours:
            log.info("exchange-%d: taken over; both sides of %d exchanges are restarted", self._number, count)
            subject = b"exchange-%d" % self._number
            fields = {"manager": self._number, "worker": self._context.worker, "exchanges": count}
            self._mail.event("exchanges-restarted", _wall_ms(), subject, fields)
        self._drain()
        self._own()

    # -- records ----------------------------------------------------------------------------------------------------

    def perform(self, batch: Batch, until: float) -> None:
        """Handle records from ``batch.start`` on; stop when it is ``until``."""
        requests = batch.topic == self._requests[0]
        take = self._request if requests else self._response
        all_records, index = batch.records, batch.start
        now_ms, clock = _wall_ms(), time.monotonic
        while index < len(all_records):
            record = all_records[index]
            try:
                take(record, now_ms)
            except RecordError as error:
                self._dead_letter(batch.topic, record, "RecordError", error.reason)
            index += 1
            if clock() >= until:
                break
        batch.start = index
        if requests:
            self._position = all_records[index].offset() if index < len(all_records) else batch.next_offset
        self._drain()

    def _dead_letter(self, topic: str, record: Record, error: str, text: str) -> None:
        key = record.key()
        kept = key if len(key or b"") <= 4 * records.NAME_MAX else None
        value = record.value() if error != "TooLarge" else None
        self._mail.dead_letter(topic, record.offset(), kept, value, (error, text))

    def _fits(self, topic: str, record: Record, restart: bytes | None) -> bool:
        """The topic's limit is on compressed batches; a row's is on what is in it."""
        limit = self._context.limit
        if len(record.value() or b"") <= limit and len(restart or b"") <= limit // RESTART_SHARE:
            return True
        text = f"a record of more than {limit} bytes, or restart data of more than {limit // RESTART_SHARE}"
        self._dead_letter(topic, record, "TooLarge", f"{text} (MAX_RECORD_BYTES)")
        return False

    def _request(self, record: Record, now_ms: int) -> None:
        key = record.key() or b""
        event, content = records.read_request(key, record.value(), record.offset(), now_ms)
        match event:
            case model.Submitted(incarnation) | model.Acknowledged(incarnation):
                if not self._fits(self._requests[0], record, event.restart):
                    refused = records.say(
                        "refused", incarnation=incarnation, op=event.op, reason="too-large", expected=0
                    )
                    self._mail.reply(key, refused)
                    return
                self._attendance.heard(("client", key), incarnation)
                self.apply(key, event, content)
            case model.ClientOpened():
                self._client_opened(key, event)
            case model.Finished(incarnation) | model.ClientAsked(incarnation):
                self._attendance.heard(("client", key), incarnation)
                self.apply(key, event)
            case Word():
                self._client_word(key, event)
            case Look(asker):
                self._desk.show(key, asker)
                self._mail.reply(key, records.say("look-end", asker=asker, manager=self._number))
            case Order():
                self._order(key, event)

    def _client_opened(self, key: bytes, event: model.ClientOpened) -> None:
        right = partition_of(key, self._context.managers)
        if right != self._number:
            raise RecordError(f"this exchange belongs on partition {right}: partition by murmur2 of the key")
        before = self._ledger.get(key)
        self.apply(key, event)
        after = self._ledger.get(key)
        if isinstance(after, Open) and after is not before:
            self._attendance.heard(("client", key), after.incarnation)
            self._timers.arm(key, after, _wall_ms())

    def _client_word(self, key: bytes, word: Word) -> None:
        exchange = self._ledger.get(key)
        if not isinstance(exchange, Open) or exchange.incarnation != word.incarnation:
            self.apply(key, model.ClientAsked(word.incarnation))
        elif word.bye:
            self._attendance.left(("client", key), word.incarnation)
        else:
            self._attendance.heard(("client", key), word.incarnation)

    def _order(self, key: bytes, order: Order) -> None:
        exchange, now_ms = self._ledger.get(key), _wall_ms()
        if not isinstance(exchange, Open):
            reason = "unknown-exchange" if not isinstance(exchange, Ended) else exchange.outcome
            self._mail.event("command-rejected", now_ms, key, {"reason": reason}, order.id, final=True)
        elif order.kind == "cancel":
            self.apply(key, model.Closed("cancelled", order.reason))
            self._mail.event("exchange-closed", now_ms, key, {"exchange": key.decode()}, order.id, final=True)
        else:
            self.apply(key, model.RestartOrdered(order.programs))
            self._mail.event("exchange-restarted", now_ms, key, {"exchange": key.decode()}, order.id, final=True)

    def _response(self, record: Record, now_ms: int) -> None:
        key = record.key() or b""
        event, content = records.read_response(key, record.value(), record.offset())
        match event:
            case model.Responded() | model.Checkpointed():
                if not self._fits(self._responses[0], record, event.restart):
                    content = records.failure("TooLarge", "the response and its restart data exceed MAX_RECORD_BYTES")
                    event = model.Responded(event.server, event.assignment, event.op, event.number)
                self.apply(key, event, content)
            case model.Begun():
                self.apply(key, event)
            case Word(server, incarnation, bye):
                session: Session = ("server", server)
                if bye:
                    self._attendance.left(session, incarnation)
                else:
                    self._attendance.heard(session, incarnation)
            case Look(asker, server):
                for held in sorted(self._by_server.get(server, ())):
                    self._desk.show(held, asker, server=True)
                self._mail.assign(key, records.say("look-end", asker=asker, manager=self._number))

    # -- decisions --------------------------------------------------------------------------------------------------

    def apply(self, key: bytes, event: Event, content: bytes = b"") -> None:
        """Load, step, store, perform."""
        before = self._ledger.get(key)
        decided = core.step(before, event)
        after = decided.exchange
        if after is not before:
            self._ledger.put(key, after)
            self._index(key, before, after)
        for effect in decided.effects:
            self._desk.perform(key, effect, content)

    def _index(self, key: bytes, before: Exchange, after: Exchange) -> None:
        old = before.server if isinstance(before, Open) else ""
        new = after.server if isinstance(after, Open) else ""
        if old != new:
            self._by_server.get(old, set()).discard(key)
            if new:
                self._by_server.setdefault(new, set()).add(key)
        if isinstance(after, Open) and not new:
            self._orphans.add(key)
        else:
            self._orphans.discard(key)
        if isinstance(after, Ended):
            self._timers.arm(key, after, _wall_ms())
        else:
            self._timers.touch(key)

    def _presence_changed(self, session: Session, effect: Effect) -> None:
        side, name = session
        if side == "client":
            assert isinstance(name, bytes)
            if isinstance(effect, Silent):
                self._mail.reply(name, records.say("start", incarnation=effect.incarnation))
            return
        assert isinstance(name, str)
        match effect:
            case Gone(incarnation, crashed):
                lost = model.ServerLost(name, incarnation, crashed, self._context.crashes_max)
                for key in sorted(self._by_server.get(name, ())):
                    self.apply(key, lost)
            case Arrived():
                for key in sorted(self._orphans):
                    self._find_server(key, "")
            case Fence(incarnation, current):
                told = records.server_head("fenced", name) + b'"incarnation":%d,"current":%d}' % (incarnation, current)
                self._mail.assign(name.encode(), told)
            case Silent(incarnation):
                told = records.server_head("start", name) + b'"incarnation":%d}' % incarnation
                self._mail.assign(name.encode(), told)

    def _find_server(self, key: bytes, prefer: str) -> None:
        servers = self._attendance.servers()
        name = choose(key, servers, prefer)
        if name:
            self.apply(key, model.ServerFound(name, servers[name]))

    def _forget(self, key: bytes) -> None:
        self._attendance.forget(("client", key))
        self._timers.forget(key)

    # -- time -------------------------------------------------------------------------------------------------------

    def due(self) -> float | None:
        wait = self._attendance.due
        if self._timers.due is not None:
            wait = min(wait, self._timers.due)
        if self._again is not None:
            wait = min(wait, self._again - time.monotonic())
        # What is due is long past: a time that is just now would not be so for whoever took the time before.
        return time.time() + wait if wait > 0 else 0.0

    def on_time(self, now: float) -> None:
        """``now`` is not looked at: the wall clock may jump."""
        self._again = None
        self._attendance.look()
        for key, reason in self._timers.passed(
            lambda found: self._attendance.present(("client", found)) is not None, self._ledger.get
        ):
            self.apply(key, model.Forgotten() if reason == "retention" else model.Closed("expired", reason))
        self._drain()
        if self._held:
            self._held = self._behind()
            if not self._held:
                self._desk.tell()
        self._own()

    def _own(self) -> None:
        """Whatever this unit says in our name commits an offset of ours, so that only the owner can say it."""
        unit, names = self._context.engine.unit, self._context.names
        if self._ledger.dirty or any(
            (topic, self._number) in unit.records for topic in (names.replies, names.assignments)
        ):
            unit.offsets.setdefault(self._requests, self._position)

    # -- the rest of a resident -------------------------------------------------------------------------------------

    def before_seal(self) -> None:
        self._held = self._behind()
        if not self._held:
            self._desk.tell()
        if self._ledger.dirty:
            self._ledger.flush(_wall_ms())

    def _behind(self) -> bool:
        """Is the backup too far behind for anything to be acknowledged?"""
        if not self._context.lag_max or not self._desk.telling:
            return False
        lag = self._context.lag(self._number)
        behind = lag is None or lag > self._context.lag_max
        if behind:
            self._look_again(HELD_S)
        return behind

    def _drain(self) -> None:
        """Send what is due of restarts; the rest when the loop has looked at something else."""
        self._desk.drain()
        if self._desk.pending:
            self._look_again(HELD_S if self._context.engine.unit.full else 0.0)
        else:
            self._ledger.restarted_by(self._host)

    def _look_again(self, after_s: float) -> None:
        at = time.monotonic() + after_s
        self._again = at if self._again is None else min(self._again, at)

    def after_commit(self, offsets: Mapping[Partition, int]) -> None:
        self._attendance.committed()

    def busy(self) -> bool:
        return False

    def hold(self, topic: str) -> int | None:
        return None

    def pausing(self) -> Sequence[Partition]:
        return ()

    def close(self) -> None:
        self._desk.close()


def _wall_ms() -> int:
    return round(time.time() * 1000)


def attach(app: faust.App, names: Names) -> None:
    """Register the Faust agent of all managers with ``app``."""

    async def manage(stream: StreamT[Delivery]) -> None:
        async for delivery in stream:
            delivery.perform()

    topic = app.topic(names.requests, names.responses, key_serializer="raw", value_serializer="raw")
    app.agent(topic, name="exchange")(manage)
