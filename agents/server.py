"""The server agent: performs the tasks of one server's stream on the sessions that live there.

One :class:`Server` serves one place. Its loop over a batch does what is common: find the session's cell, run the
handler in line, keep the new state, append the result. What waits is :mod:`agents.line`'s; how a task ends is
:mod:`agents.endings`'s.
"""

import time
from collections.abc import Callable, Iterable, Mapping, Sequence

import faust
import orjson
from faust.types import StreamT

from agents.alignment import Alignment
from agents.cells import Cell, Entry, ServerContext
from agents.copying import Copying
from agents.draining import Drains
from agents.endings import Endings
from agents.expiry import Expiry
from agents.held import HeldTask, name_of
from agents.line import Line
from agents.performing import Again, Failed, unknown
from agents.suspicion import Verdict, Vigilance
from app.engine.driver import Delivery
from app.engine.fetch import Batch, Record
from app.engine.offsets import Partition
from app.engine.places import Place
from app.errors import RecordError
from app.protocol import suspects
from app.protocol.control import (
    MARK,
    Abort,
    Commit,
    Cut,
    Drain,
    Measure,
    Placed,
    Prepare,
    Wakeup,
    decode_control,
)
from app.protocol.markers import Marker
from app.records import parse_task, valid_id
from app.topics import Names
from tables import sessions as sessions_table
from tables import waiting as waiting_table

CELLS_MAX = 20_000
"""Sessions whose state stays decoded between units; beyond it they are read from their rows again."""


class Server:
    """One server, as the worker that hosts it performs it. See :class:`app.engine.places.Resident`."""

    def __init__(self, context: ServerContext, place: Place) -> None:
        self._context = context
        self._place = place
        self._sessions = place.rows[sessions_table.NAME]
        self._waiting = place.rows[waiting_table.NAME]
        self._cells: dict[tuple[str, str], Cell] = {}
        self._dirty: dict[tuple[str, str], Cell] = {}
        self._work = (context.names.work, place.number)
        self._committed = self._position = place.committed[self._work].offset or 0
        self._settling = False
        self._expiry = Expiry(self._sessions.store, context.session_ttl)
        of_held = suspects.of_held(place.number, place.suspicions)
        self._vigilance = Vigilance(
            context.announcements,
            server=place.number,
            committed=self._position,
            end=place.ends.get(self._work, self._position),
            died=place.owner_died,
            max_crashes=context.max_crashes,
            found={key: value for key, value in place.suspicions.items() if key not in of_held},
        )
        self._endings = Endings(context, place.number)
        self._line = Line(
            context,
            place.number,
            self._waiting,
            vigilance=self._vigilance,
            endings=self._endings,
            find=lambda tenant, session: self._cells.get((tenant, session)) or self._load(tenant, session),
            touch=self._touch,
        )
        self.copying = Copying(context, place, self)
        self.tenants = self.copying.tenants
        self.drains = Drains(context, place, self.tenants)
        self.alignment = self.tenants.views = Alignment(context, place, self.tenants, self)
        self._line.reopen(self.alignment.waiting_at_open())

    # -- the stream -----------------------------------------------------------------------------------------------

    def perform(self, batch: Batch, until: float) -> None:
        """Perform records from ``batch.start`` on; stop when it is ``until``, or when too much waits."""
        if batch.topic != self._work[0]:
            self.tenants.take(batch, until)
            return
        if self._vigilance.active:
            self._carefully(batch, until)
            return
        if self.alignment.held.full or self.alignment.resuming.wants_quiet:
            return
        records, index, line = batch.records, batch.start, self._line
        clock, perform, count = time.monotonic, self._next(len(batch.records) - index), len(batch.records)
        while index < count:
            perform(records[index])
            index += 1
            if clock() >= until or (line.count and line.full):
                break
        self._advance(batch, index)

    def _next(self, records: int) -> Callable[[Record], None]:
        """What performs one record of the stream. Sessions of which tasks are held have no cells before it is asked."""
        if not self.alignment.held.total:
            return self._one
        self.alignment.keep_pace(records)
        return self._behind

    def _advance(self, batch: Batch, index: int) -> None:
        batch.start = index
        self._position = batch.records[index].offset() if index < len(batch.records) else batch.next_offset

    def _carefully(self, batch: Batch, until: float) -> None:
        """Perform what is under suspicion: announced before it runs, committed before more is announced."""
        if self._settling:
            return
        vigilance = self._vigilance
        records, index = batch.records, batch.start
        first = records[index].offset()
        if first >= vigilance.end and not vigilance.condemns:
            # The log has no record where the announcement ends (control records have offsets too).
            if self._committed != self._position:
                self._settle()
                return
            vigilance.committed(first)
        if vigilance.alone:
            self._context.trials.add(self)
            if not self._context.engine.flow.quiet:
                # What was begun before is committed first: else this record is convicted for what another one did.
                self._context.engine.hurry()
                return
        else:
            self._context.trials.discard(self)
        perform = self._next(0)
        self._line.verdict = vigilance.begin()
        while index < len(records):
            if vigilance.active and not vigilance.alone and records[index].offset() >= vigilance.end:
                break
            perform(records[index])
            index += 1
            if vigilance.alone or time.monotonic() >= until or self._line.full:
                break
        self._line.verdict = None
        self._advance(batch, index)
        if vigilance.active:
            # What was announced holds from the committed offset on: commit before anything more is performed.
            self._settle()

    def _settle(self) -> None:
        """Perform no more of the stream until what was performed is committed."""
        self._settling = True
        self._context.engine.flow.hurry(alone=self._vigilance.alone)

    def after_commit(self, offsets: Mapping[Partition, int]) -> None:
        """What was performed up to these offsets is in the log."""
        committed = offsets.get(self._work)
        if committed is not None:
            self._committed = committed
            if committed == self._position and self._vigilance.active:
                self._settling = False
                self._context.trials.discard(self)
                self._vigilance.committed(committed)
        self._line.after_commit()
        self.alignment.after_commit()

    def _behind(self, record: Record) -> None:
        """Perform one record while tasks are held: what comes of their sessions is held behind them."""
        key, value = record.key(), record.value()
        if key is not None and value is not None and key[0] != MARK:
            name = name_of(value)
            if name is not None and self.alignment.held.waits(name):
                self.alignment.hold(*name, key, value)
                return
        self._one(record)

    def perform_held(self, task: HeldTask, vigilance: Vigilance, verdict: Verdict | None) -> None:
        """Perform a task that was held, as if the stream brought it now; its session lives here."""
        if task.name not in self._cells:
            self._load(*task.name)
        vigilance.performing = task.offset
        self._line.watched, self._line.verdict = vigilance, verdict
        self._one(task)
        self._line.watched = self._line.verdict = None

    def _one(self, record: Record) -> None:
        """Perform one record of the stream."""
        key, value = record.key(), record.value()
        assert key is not None
        assert value is not None
        if key[0] == MARK:
            self._control(key, value)
            return
        where, _, number = key.partition(b":")
        partition, offset = int(where), int(number)
        try:
            task = orjson.loads(value)
            tenant, session, kind, payload = task["tenant"], task["session"], task["type"], task["payload"]
            task_id = task.get("id")
            cell = self._cells.get((tenant, session))
            handler = self._context.handlers.get(kind)
            if cell is None or handler is None or type(payload) is not dict or not valid_id(task_id):
                # A new session, an unknown type, or a record that is no task: check all of it.
                parse_task(tenant.encode(), value)
                if cell is None:
                    if not self.alignment.admits(tenant, session, key, value):
                        return
                    cell = self._load(tenant, session)
        except (RecordError, ValueError, KeyError, TypeError, AttributeError):
            self._endings.no_task(partition, offset, value)
            return
        if offset <= cell.origins.get(partition, -1):
            self._endings.out_of_place(cell, partition, offset, value)
            return
        cell.origins[partition] = offset
        entry = Entry(partition, offset, value, task_id or f"{partition}/{offset}", kind, payload)
        line = self._line
        verdict = line.verdict
        if cell.queue or (handler is not None and not handler.inline and verdict is None):
            line.arrive(cell, entry)
            return
        # A task of a session in which nothing waits is performed here and now.
        self._vigilance.performing = record.offset
        self._dirty[cell.name] = cell
        if verdict is not None or handler is None:
            refused = Failed("UnknownTask", unknown(entry.kind)) if verdict is None else Failed(*verdict)
            self._endings.conclude(cell, entry, refused, 1)
            return
        ending = line.run_inline(cell, entry, handler, 1)
        if isinstance(ending, Again):
            line.retry(cell, entry, ending)
        else:
            self._endings.conclude(cell, entry, ending, 1)

    def _control(self, key: bytes, value: bytes) -> None:
        match decode_control(key, value):
            case Wakeup() as wakeup:
                # One that was on its way while its tenant left wakes nobody: timers are set where the rows are.
                if self.tenants.serves(wakeup.tenant) and self.alignment.owns(wakeup.tenant, wakeup.session):
                    self._line.wake(wakeup)
            case Prepare() | Cut() | Commit() | Abort() | Placed() as said:
                self.tenants.feed(said.tenant, said)
            case Marker() as marker:
                self.alignment.take(marker)
            case Measure() as asked:
                self.tenants.measure(asked)
            case Drain() as ordered:
                self.drains.begin(ordered)

    # -- rows -----------------------------------------------------------------------------------------------------

    def _load(self, tenant: str, session: str) -> Cell:
        row_key = sessions_table.key_of(tenant, self.tenants.epoch(tenant), session)
        cell = self._cells[tenant, session] = Cell(tenant, session, row_key, self._context.routers)
        row = self._sessions.get(row_key)
        if row is not None:
            cell.restore(sessions_table.decode(row))
        return cell

    def _touch(self, cell: Cell) -> None:
        self._dirty[cell.name] = cell

    def before_seal(self) -> None:
        """Write the rows of all sessions that changed, once each."""
        self._write(self._dirty.values())
        self._dirty.clear()
        self.alignment.before_seal()
        self._line.fresh = 0
        if len(self._cells) > CELLS_MAX:
            self._cells = {name: cell for name, cell in self._cells.items() if cell.queue}

    def _write(self, cells: Iterable[Cell]) -> None:
        now = int(time.time())
        copied = self.tenants.marked
        for cell in cells:
            if copied and cell.tenant in copied:
                self.tenants.mark(cell.tenant, cell.session, cell.row_key)
            if cell.ended and not cell.queue:
                self._sessions.delete(cell.row_key)
                self._cells.pop(cell.name, None)
            else:
                row = sessions_table.encode(cell.sequence, cell.origins, now, cell.good)
                self._sessions.put(cell.row_key, row)
            self._line.save(cell)

    # -- sessions that move ---------------------------------------------------------------------------------------

    def freeze(self, leaves: Callable[[str, str], bool]) -> None:
        """Write the rows of sessions as they are where they leave, then forget them."""
        names = {name for name in self._cells if leaves(*name)}
        self._write([cell for name, cell in self._dirty.items() if name in names])
        self._forget(names)

    def forget(self, tenant: str) -> None:
        """Drop all that is in memory of a tenant; nothing of it ends here any more."""
        self._forget({name for name in self._cells if name[0] == tenant})

    def _forget(self, names: set[tuple[str, str]]) -> None:
        self._line.forget(names)
        for name in names:
            del self._cells[name]
            self._dirty.pop(name, None)

    def reopen(self, prefix: bytes) -> None:
        """Serve a tenant from these rows on."""
        found = self._waiting.scan(prefix)
        self._line.take_up((key, row) for key, row in found if self.alignment.lives(*waiting_table.names_of(key)))

    def take_up(self, keys: Iterable[bytes]) -> None:
        """Take up what waits under these keys."""
        found = ((key, self._waiting.get(key)) for key in keys)
        self._line.take_up((key, row) for key, row in found if row is not None)

    # -- the rest of a resident -----------------------------------------------------------------------------------

    def busy(self) -> bool:
        """Do handlers run that may end within the open unit?"""
        return self._line.fresh > 0

    def pausing(self) -> Sequence[Partition]:
        """The stream, while too much waits."""
        return (self._work,) if self._line.full or self.alignment.held.full else ()

    def due(self) -> float | None:
        """When the next retry falls due, or when to look for expired sessions again."""
        times = (self._line.due(), self._expiry.due, self.alignment.due, self.copying.due, self.drains.due)
        return min((due for due in times if due is not None), default=None)

    def on_time(self, now: float) -> None:
        """Wake retries that are due; delete sessions that nobody has used for SESSION_TTL."""
        self._line.on_time(now)
        if self._expiry.due is not None and self._expiry.due <= now:
            for key in self._expiry.expired(now):
                self._expire(key, now)
        if self.alignment.due is not None and self.alignment.due <= now:
            self.alignment.on_time(now)
        if self.copying.due is not None and self.copying.due <= now:
            self.copying.on_time(now)
        if self.drains.due is not None and self.drains.due <= now:
            self.drains.on_time(now)

    def _expire(self, key: bytes, now: float) -> None:
        tenant, epoch, session = key.decode().split("\0")
        if not self.alignment.lives(tenant, int(epoch), session):
            return  # It is copied, staged, swept or on its way: whoever serves it looks at it.
        cell = self._cells.get((tenant, session))
        # The sweep sees committed rows, and those of a while ago: the session may have been used since.
        row = self._sessions.get(key)
        unused = (tenant, session) not in self._dirty and (cell is None or not cell.queue)
        if row is not None and unused and self._expiry.over(row, now):
            if tenant in self.tenants.marked:
                self.tenants.mark(tenant, session, key)
            self._sessions.delete(key)
            self._cells.pop((tenant, session), None)

    def hold(self, topic: str) -> int | None:
        """A server commits its position."""
        return None

    def waiting_count(self) -> int:
        """Tasks that wait here."""
        return self._line.count

    def close(self) -> None:
        """Stop at once."""
        self._line.close()
        self.copying.close()
        self._context.trials.discard(self)
        self._context.aligning.discard(self._place.number)
        if not getattr(self._context.engine, "failing", False):
            # If the place stays here over a rebalance, nothing else will tell the next resident.
            withdrawn = self._vigilance.withdraw(self._line.not_begun)
            self._place.suspicions = {**withdrawn, **self.alignment.resuming.close()}


def attach(app: faust.App, names: Names) -> None:
    """Register the Faust agent of all servers with ``app``."""

    async def serve(stream: StreamT[Delivery]) -> None:
        async for delivery in stream:
            delivery.perform()

    topic = app.topic(names.work, names.handoffs, key_serializer="raw", value_serializer="raw")
    app.agent(topic, name="server")(serve)
