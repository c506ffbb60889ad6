"""The router agent: decides where each task goes, and wakes sessions whose retries fall due.

One :class:`Router` serves one place: partition r of ``tasks``, ``commands`` and ``delay``. A task of a settled tenant
takes the fast path: a lookup by the key's bytes and a few searches in the value's bytes, no parse. Whatever those
bytes leave open goes the slow way, which gives the same outputs.
"""

import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import islice
from typing import Any

import faust
from faust.types import StreamT

from agents.adopting import Adopting
from agents.endings import dead_letter_headers
from agents.gates import Counts, Gates
from agents.orders import SERVER_COMMANDS_AT, Orders
from agents.release import DelayReader
from agents.steward import Steward
from app.engine.driver import Delivery
from app.engine.engine import Engine
from app.engine.fetch import Batch
from app.engine.offsets import Partition
from app.engine.places import Place
from app.errors import PeerProtocolError, RecordError
from app.protocol.control import MARK, WAKE_KEY, ParkedDue, Wakeup, decode_control, decode_due, encode_wakeup
from app.protocol.homes import Seen
from app.protocol.murmur2 import partition_of
from app.protocol.parking import Clock, Read, ReadDue, Skip, WakeUps
from app.records import NAME_MAX_CHARS, parse_task
from app.settings import INTERNAL_SLACK_BYTES
from app.topics import Names
from tables import views

log = logging.getLogger(__name__)

SETTLED_MAX = 1_200_000
"""Tenants whose server a worker's routers remember by the bytes of their key, together, at some 120 bytes each."""

WAKEUPS_MAX = 100_000
"""Wake-ups that are held in memory before `delay` is read on."""

COPY_BYTES = 256
"""What the headers of a copy and its batch take at most; the copy goes into a topic that takes just the limit."""

KEY_BYTES_MAX = 4 * NAME_MAX_CHARS
"""A longer key is no tenant's."""

ORIGIN_PARTITION = "origin-partition"
ORIGIN_OFFSET = "origin-offset"


@dataclass(slots=True)
class RouterContext:
    """What the routers of a worker share. ``stale_hints``, ``misrouted`` and ``counts`` count since the start.

    ``reader`` makes the second reader of a router's `delay`. ``delay_ms``, ``timeout_ms`` and ``offline`` are those of
    migrations, ``rehome_after_ms`` and ``forget_after_ms`` those of views. ``seen`` tells the plan of the group.
    ``settled`` is what each of the open routers remembers.
    """

    engine: Engine
    names: Names
    routers: int
    servers: int
    reader: Callable[[int], DelayReader]
    delay_ms: int
    timeout_ms: int
    seen: Callable[[], Seen]
    offline: bool = False
    rehome_after_ms: int = 30_000
    forget_after_ms: int = 600_000
    counts: Counts = field(default_factory=Counts)
    stale_hints: int = 0
    misrouted: int = 0
    warned: set[bytes] = field(default_factory=set)
    settled: list[dict[bytes, int]] = field(default_factory=list)


class Router:
    """One router, as the worker that hosts it performs it. See :class:`app.engine.places.Resident`."""

    def __init__(self, context: RouterContext, place: Place) -> None:
        self._context = context
        self._number = place.number
        # What internal topics take beyond it is room for what is added to a task.
        self._limit = context.engine.options.max_record_bytes - INTERNAL_SLACK_BYTES
        # Small numbers, not objects that say more: with a million tenants each of them would be a miss of the caches.
        self._settled: dict[bytes, int] = {}
        context.settled.append(self._settled)
        names = context.names
        committed = place.committed[names.delay, place.number].offset or 0
        self._wakeups = WakeUps(committed, WAKEUPS_MAX)
        self.views = Adopting(
            context, place, tell=lambda changed: self.gates.view_adopted(changed), unsettle=self._settled.clear
        )
        self.gates = Gates(context, place, self._wakeups, self.views, lambda key: self._settled.pop(key, None))
        self.steward: Steward | None = None
        if place.number == SERVER_COMMANDS_AT:
            self.steward = Steward(context, place.rows[views.NAME], self.gates.announcer)
        self._orders = Orders(
            context,
            place.number,
            announcer=self.gates.announcer,
            feed=self.gates.feed,
            adopt=self.views.take,
            steward=self.steward,
        )
        self._perform = {
            names.tasks: self._tasks,
            names.delay: self._delay,
            names.commands: self._commands,
        }

    def perform(self, batch: Batch, until: float) -> None:
        self._perform[batch.topic](batch)

    # -- tasks ----------------------------------------------------------------------------------------------------

    def _tasks(self, batch: Batch) -> None:
        """Route a whole batch: at a few microseconds a record, no deadline falls within one."""
        settled = self._settled.get
        unit = self._context.engine.unit
        prefix = b"%d:" % self._number
        work = self._context.names.work
        limit = self._limit
        outputs = [unit.output(work, server).append for server in range(self._context.servers)]
        records = batch.records
        for index in range(batch.start, len(records)):
            message = records[index]
            value = message.value()
            key = message.key() or b""
            server = settled(key)
            if (
                server is not None
                and value is not None
                and len(value) + len(key) <= limit
                and (b'"tenant":"' + key + b'"' in value or b'"tenant": "' + key + b'"' in value)
                and value.count(b'"tenant"') == 1
                and b"\\" not in value
                and b'"server"' not in value
                and message.headers() is None
            ):
                outputs[server]((prefix + b"%d" % message.offset(), value))
            else:
                self._slowly(message, value)
        unit.weight += len(records) - batch.start
        batch.start = len(records)

    def _slowly(self, message: Any, value: bytes | None) -> None:
        """Route one record by all that it says."""
        context = self._context
        key = message.key()
        origin = self._origin(message)
        size = len(value or b"") + len(key or b"")
        if size > self._limit:
            # The topic's limit is on a compressed batch. What is so large once read cannot be written anywhere.
            kept = key if len(key or b"") <= KEY_BYTES_MAX else None
            self._dead_letter(kept, None, origin, "TooLarge", f"a record of {size} bytes; {self._rule()}")
            return
        try:
            task = parse_task(key, value)
        except RecordError as error:
            self._dead_letter(key, value, origin, "RecordError", error.reason)
            return
        assert value is not None
        right = partition_of(key, context.routers)
        if right != self._number:
            if size + COPY_BYTES > self._limit:
                text = f"a task of {size} bytes in the wrong partition, too large to be sent on; {self._rule()}"
                self._dead_letter(key, value, origin, "TooLarge", text)
            else:
                self._republish(key, value, right, origin)
            return
        if key in self.gates.moving:
            self.gates.arrived(key, b"%d:%d" % origin, value)
            return
        home = self.gates.state(key).home
        server = self.views.route(task.tenant, task.session, home)
        if task.server is not None and task.server != server:
            context.stale_hints += 1
        if home in self.views.up and key not in self._settled:
            self._settle(key, home)
        where = context.engine.unit.output(context.names.work, server)
        where.append((b"%d:%d" % origin, value))

    def _rule(self) -> str:
        return f"the limit is {self._limit} (MAX_RECORD_BYTES)"

    def _dead_letter(
        self, key: bytes | None, value: bytes | None, origin: tuple[int, int], error: str, text: str
    ) -> None:
        names = self._context.names
        headers = dead_letter_headers(error, text, names.tasks, *origin)
        self._context.engine.unit.send(names.dead_letters, value, key, partition=0, headers=headers)

    def _origin(self, message: Any) -> tuple[int, int]:
        """Where the record first stood in ``tasks``: here, or where a copy's headers say it was published."""
        here = (self._number, message.offset())
        headers = dict(message.headers() or ())
        try:
            there = (int(headers[ORIGIN_PARTITION]), int(headers[ORIGIN_OFFSET]))
        except (KeyError, ValueError, TypeError):
            return here
        # A copy comes from another partition. One that claims to come from this one is no copy of ours.
        if 0 <= there[0] < self._context.routers and there[0] != self._number and there[1] >= 0:
            return there
        return here

    def _republish(self, key: bytes, value: bytes, right: int, origin: tuple[int, int]) -> None:
        context = self._context
        context.misrouted += 1
        if key not in context.warned and len(context.warned) < 1000:
            context.warned.add(key)
            log.warning(
                "a producer puts tasks of %r on partition %d instead of %d: let it partition by murmur2 of the key",
                key.decode(errors="replace"),
                self._number,
                right,
            )
        context.engine.unit.send(
            context.names.tasks,
            value,
            key,
            partition=right,
            headers=[(ORIGIN_PARTITION, b"%d" % origin[0]), (ORIGIN_OFFSET, b"%d" % origin[1])],
        )

    def _settle(self, key: bytes, home: int) -> None:
        settled = self._context.settled
        if sum(map(len, settled)) >= SETTLED_MAX:
            largest = max(settled, key=len)
            for earliest in list(islice(largest, (len(largest) + 1) // 2)):
                del largest[earliest]
        self._settled[key] = home

    # -- delay ----------------------------------------------------------------------------------------------------

    def _delay(self, batch: Batch) -> None:
        records = batch.records
        while batch.start < len(records) and not self._wakeups.full:
            message = records[batch.start]
            batch.start += 1
            key = message.key()
            if key and key[0] != MARK:
                # A parked task: it is released by its number.
                self._wakeups.step(Skip(message.offset()))
                continue
            try:
                self._wakeups.step(self._due(message.offset(), key, message.value()))
            except PeerProtocolError as error:
                log.warning("delay/%d offset %d: %s", self._number, message.offset(), error)
                self._wakeups.step(Skip(message.offset()))

    @staticmethod
    def _due(offset: int, key: bytes | None, value: bytes | None) -> Read | ReadDue:
        if key == WAKE_KEY:
            due = decode_due(key, value)
            return Read(offset, due.wakeup, due.due_ms)
        said = decode_control(key, value)
        if isinstance(said, ParkedDue):
            return ReadDue(offset, said)
        raise PeerProtocolError(f"{key!r:.40} does not belong here")

    def due(self) -> float | None:
        next_ms = self._wakeups.next_due_ms
        steward = None if self.steward is None else self.steward.due
        times = (None if next_ms is None else next_ms / 1000, self.gates.due(), steward)
        return min((at for at in times if at is not None), default=None)

    def on_time(self, now: float) -> None:
        held = self._wakeups.hold_offset
        for sent in self._wakeups.step(Clock(int(now * 1000) + 1)):
            self._wake(sent.wakeup)
        self.gates.fall_due()
        if self._wakeups.hold_offset != held:
            # The offsets that are now free to commit go with this unit.
            topic = (self._context.names.delay, self._number)
            self._context.engine.unit.offsets.setdefault(topic, self._wakeups.hold_offset)
        self.gates.on_time(now)
        if self.steward is not None:
            self.steward.on_time(now)

    def _wake(self, wakeup: Wakeup) -> None:
        context = self._context
        home = self.gates.state(wakeup.tenant.encode()).home
        server = self.views.route(wakeup.tenant, wakeup.session, home)
        where = context.engine.unit.output(context.names.work, server)
        where.append((WAKE_KEY, encode_wakeup(wakeup)))

    def hold(self, topic: str) -> int | None:
        if topic != self._context.names.delay:
            return None
        # Nothing that a release still reads may be deleted behind the committed offset.
        floor = self.gates.floor
        return self._wakeups.hold_offset if floor is None else min(floor, self._wakeups.hold_offset)

    # -- commands -------------------------------------------------------------------------------------------------

    def _commands(self, batch: Batch) -> None:
        for message in batch.records[batch.start :]:
            self._orders.take(message)
        batch.start = len(batch.records)

    # -- the rest of a resident -----------------------------------------------------------------------------------

    def pausing(self) -> Sequence[Partition]:
        return ((self._context.names.delay, self._number),) if self._wakeups.full else ()

    def before_seal(self) -> None:
        """Write the rows of tenants that move, and the steward's."""
        self.gates.before_seal()
        if self.steward is not None:
            self.steward.before_seal()

    def after_commit(self, offsets: Mapping[Partition, int]) -> None:
        """Nothing waits for a commit."""

    def busy(self) -> bool:
        return False

    def close(self) -> None:
        self._settled.clear()
        settled = self._context.settled
        settled[:] = [other for other in settled if other is not self._settled]
        self.gates.close()


def attach(app: faust.App, names: Names) -> None:
    """Register the Faust agent of all routers with ``app``."""

    async def route_tasks(stream: StreamT[Delivery]) -> None:
        async for delivery in stream:
            delivery.perform()

    topics = (names.tasks, names.commands, names.delay)
    app.agent(app.topic(*topics, key_serializer="raw", value_serializer="raw"), name="router")(route_tasks)
