"""The server agent: performs the tasks of one server's stream on the sessions that live there.

One :class:`Server` serves one place. Its loop over a batch does what is common: find the session's cell, run the
handler in line, keep the new state, append the result. Everything else (tasks that wait, retries, handlers that run
aside) is decided by :mod:`app.protocol.sessions` and performed here.
"""

import asyncio
import logging
import time
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import faust
import orjson
from faust.types import StreamT

from agents.cells import Cell, Entry, ServerContext
from agents.expiry import Expiry
from agents.performing import Again, Done, Ending, Failed, run_aside, run_inline
from agents.suspicion import Verdict, Vigilance
from app.engine.driver import Delivery
from app.engine.fetch import Batch
from app.engine.offsets import Partition
from app.engine.places import Place
from app.errors import LocalProtocolError, RecordError
from app.handlers import Handler, Session
from app.protocol import sessions
from app.protocol.control import Wakeup, decode_control
from app.protocol.murmur2 import partition_of
from app.protocol.suspects import Suspicion
from app.protocol.sessions import Arrived, Ended, GiveUp, Phase, Remove, Reopened, RetryAsked, Run, Save, Wake, Woken
from app.records import parse_task
from app.topics import Names
from tables import sessions as sessions_table
from tables import waiting as waiting_table
from tables.waiting import WaitingRow

log = logging.getLogger(__name__)

CELLS_MAX = 20_000
"""Sessions whose state stays decoded between units; beyond it they are read from their rows again."""

WAITING_MAX = 10_000
"""Waiting tasks at one server; beyond it the server reads no further until some have ended (L6)."""


class Server:
    """One server, as the worker that hosts it performs it. See :class:`app.engine.places.Resident`."""

    def __init__(self, context: ServerContext, place: Place) -> None:
        self._context = context
        self._number = place.number
        self._sessions = place.rows[sessions_table.NAME]
        self._waiting = place.rows[waiting_table.NAME]
        self._cells: dict[tuple[str, str], Cell] = {}
        self._dirty: dict[tuple[str, str], Cell] = {}
        self._blocked: dict[tuple[str, str], Cell] = {}
        self._waiting_count = 0
        self._aside: set[asyncio.Task[None]] = set()
        self._fresh = 0
        self._closed = False
        self._expiry = Expiry(self._sessions.store, context.session_ttl)
        self._work = (context.names.work, place.number)
        self._committed = self._position = place.committed[self._work].offset or 0
        self._settling = False
        self._verdict: Verdict | None = None
        self._suspects: deque[tuple[Cell, Entry, int]] = deque()
        self._on_trial: tuple[Cell, Entry] | None = None
        self._running: Callable[[], int] = lambda: self._position
        self._acquitted: list[tuple[Cell, Entry]] = []
        self._vigilance = Vigilance(
            context.announcements,
            server=place.number,
            committed=self._position,
            end=place.ends.get(self._work, self._position),
            died=place.owner_died,
            max_crashes=context.max_crashes,
            found=place.suspicions,
        )
        self._reopen()

    # -- the stream -----------------------------------------------------------------------------------------------

    def perform(self, batch: Batch, until: float) -> None:
        if self._vigilance.active:
            self._carefully(batch, until)
            return
        records, index = batch.records, batch.start
        clock = time.monotonic
        while index < len(records):
            self._one(records[index])
            index += 1
            if clock() >= until or self.paused:
                break
        self._advance(batch, index)

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
        self._verdict = vigilance.begin()
        while index < len(records):
            if vigilance.active and not vigilance.alone and records[index].offset() >= vigilance.end:
                break
            self._one(records[index])
            index += 1
            if vigilance.alone or time.monotonic() >= until or self.paused:
                break
        self._verdict = None
        self._advance(batch, index)
        if vigilance.active:
            # What was announced holds from the committed offset on: commit before anything more is performed.
            self._settle()

    def _settle(self) -> None:
        """Perform no more of the stream until what was performed is committed."""
        self._settling = True
        self._context.engine.hurry()

    def after_commit(self, offsets: Mapping[Partition, int]) -> None:
        committed = offsets.get(self._work)
        if committed is not None:
            self._committed = committed
            if committed == self._position and self._vigilance.active:
                self._settling = False
                self._vigilance.committed(committed)
        if self._acquitted:
            for cell, entry in self._acquitted:
                self._vigilance.ended_waiting(cell.row_key, entry.arrival)
            self._acquitted.clear()
            self._try_next()

    def _one(self, message: Any) -> None:
        verdict = self._verdict
        key: bytes = message.key()
        value: bytes = message.value()
        if key[0] == 33:  # "!": a control record
            self._control(key, value)
            return
        where, _, number = key.partition(b":")
        partition, offset = int(where), int(number)
        try:
            record = orjson.loads(value)
            tenant, session, kind, payload = record["tenant"], record["session"], record["type"], record["payload"]
            cell = self._cells.get((tenant, session))
            task_id = record.get("id")
            if cell is None or type(payload) is not dict or type(kind) is not str or (
                task_id is not None and (type(task_id) is not str or not task_id)
            ):
                parse_task(tenant.encode(), value)
                cell = cell or self._load(tenant, session)
        except (RecordError, ValueError, KeyError, TypeError, AttributeError):
            self._no_task(partition, offset, value)
            return
        if offset <= cell.origins.get(partition, -1):
            self._out_of_place(cell, partition, offset, value)
            return
        cell.origins[partition] = offset
        entry = Entry(partition, offset, value, task_id or f"{partition}/{offset}", kind, payload)
        handler = self._context.handlers.get(kind)
        if cell.queue or (handler is not None and not handler.inline and verdict is None):
            self._wait(cell, entry)
        else:
            self._running = message.offset
            self._perform(cell, entry, handler, verdict)

    def _perform(self, cell: Cell, entry: Entry, handler: Handler | None, verdict: Verdict | None) -> None:
        """Perform a task of a session in which nothing waits, here and now."""
        self._touch(cell)
        if verdict is not None:
            self._conclude(cell, entry, Failed(*verdict), 1)
        elif handler is None:
            self._conclude(cell, entry, Failed("UnknownTask", f"no handler is registered for {entry.kind!r}"), 1)
        else:
            ending = self._inline(cell, entry, handler, 1)
            if isinstance(ending, Again):
                self._wait(cell, entry, running=True)
                self._retry(cell, ending)
            else:
                self._conclude(cell, entry, ending, 1)

    def _inline(self, cell: Cell, entry: Entry, handler: Handler, attempt: int) -> Ending:
        session: Session[Any] = Session(
            cell.tenant, cell.session, self._number, entry.task_id, attempt, cell.current_state()
        )
        watchdog = self._context.watchdog
        watchdog.current = (self, cell, entry)
        ending = run_inline(handler, session, entry.payload, self._context.limit)
        watchdog.current = None
        if not isinstance(ending, Done):
            cell.spoil()
        return ending

    def timed_out(self, cell: Cell, entry: Entry) -> None:
        """The watchdog is about to end this worker because of ``entry``: write it down. In the watchdog's thread."""
        if entry.arrival:
            self._vigilance.timed_out_waiting(cell.row_key, entry.arrival)
        else:
            self._vigilance.timed_out(self._running())

    # -- endings --------------------------------------------------------------------------------------------------

    def _conclude(self, cell: Cell, entry: Entry, ending: Done | Failed, attempts: int) -> None:
        """The task has ended: count it, write its result, and whatever it sent or failed with."""
        context = self._context
        cell.sequence += 1
        if isinstance(ending, Done):
            record = context.result(cell, entry, attempts, self._number, b'"done"', ending.result, b"null")
            if len(record) > context.limit:
                cell.spoil()
                ending = Failed("TooLarge", f"a result record of {len(record)} bytes; the limit is {context.limit}")
        if isinstance(ending, Done):
            cell.keep(ending.state, ending.session)
            if ending.session.outbox is not None:
                ending = self._send(ending)
        if isinstance(ending, Failed):
            record = context.failure(cell, entry, attempts, self._number, ending)
            context.dead_letter(entry, cell.tenant.encode(), ending)
        unit = context.engine.unit
        unit.output(context.names.results, cell.results_partition).append({"key": cell.tenant_key, "value": record})
        unit.weight += 1

    def _send(self, done: Done) -> Done:
        context = self._context
        outbox = done.session.outbox
        assert outbox is not None
        for tenant, session, kind, payload in outbox.tasks:
            value = orjson.dumps({"tenant": tenant, "session": session, "type": kind, "payload": payload})
            key = tenant.encode()
            where = context.engine.unit.output(context.names.tasks, partition_of(key, context.routers))
            where.append({"key": key, "value": value})
        for topic, record, record_key in outbox.records:
            context.engine.unit.send(topic, record, record_key)
        return done

    def _no_task(self, partition: int, offset: int, value: bytes) -> None:
        """The router passed it by its bytes; it is no task all the same: a dead letter, with the key it came with."""
        key = self._context.key_in(value)
        try:
            parse_task(key, value)
            reason = "the record is no task"
        except RecordError as error:
            reason = error.reason
        self._context.dead_letter(Entry(partition, offset, value, "", "", {}), key, Failed("RecordError", reason))

    def _out_of_place(self, cell: Cell, partition: int, offset: int, value: bytes) -> None:
        """L1's check: a router sent what was performed already, or a producer forged the origin of a copy."""
        if partition == cell.results_partition:
            raise LocalProtocolError(
                f"server {self._number}: task {partition}/{offset} of {cell.tenant}/{cell.session} came after "
                f"{partition}/{cell.origins[partition]}"
            )
        forged = Failed("RecordError", f"a copy names origin {partition}/{offset}, which was performed already")
        self._context.dead_letter(Entry(partition, offset, value, "", "", {}), cell.tenant.encode(), forged)

    # -- what waits -----------------------------------------------------------------------------------------------

    @property
    def paused(self) -> bool:
        """Too much waits here: read no further for now."""
        return self._waiting_count >= WAITING_MAX

    def _wait(self, cell: Cell, entry: Entry, *, running: bool = False) -> None:
        """Put a task behind what waits in its session; ``running``: its first run has just asked for a retry."""
        self._touch(cell)
        cell.last_arrival += 1
        entry.arrival = cell.last_arrival
        cell.entries[entry.arrival] = entry
        self._blocked[cell.name] = cell
        self._waiting_count += 1
        step = sessions.step(cell.queue, Arrived(entry.arrival))
        if running:
            cell.queue = step.queue
            entry.changed = True
        else:
            self._follow(cell, step)

    def _retry(self, cell: Cell, again: Again) -> None:
        asked = RetryAsked(int(time.time() * 1000), again.after_ms, self._context.max_attempts)
        self._follow(cell, sessions.step(cell.queue, asked))

    def _follow(self, cell: Cell, step: sessions.Step) -> None:
        """Perform the effects of a step. An inline handler ends within it, so this goes on until nothing follows."""
        pending = [step]
        while pending:
            step = pending.pop()
            cell.queue = step.queue
            for effect in step.effects:
                entry = cell.entries[effect.waiting.arrival if isinstance(effect, Save) else effect.arrival]
                match effect:
                    case Save():
                        entry.changed = True
                        self._touch(cell)
                    case Remove():
                        del cell.entries[effect.arrival]
                        self._acquit(cell, entry)
                        cell.removed.append(entry)
                        self._waiting_count -= 1
                        self._touch(cell)
                    case Wake(_, attempt, due_ms):
                        self._acquit(cell, entry)
                        self._context.wake(cell, entry, attempt, due_ms)
                    case GiveUp():
                        self._conclude(
                            cell,
                            entry,
                            Failed("MaxAttempts", f"asked for a retry {cell.queue[0].attempt} times"),
                            cell.queue[0].attempt,
                        )
                        pending.append(sessions.step(cell.queue, Ended()))
                    case Run(_, attempt):
                        following = self._run(cell, entry, attempt)
                        if following is not None:
                            pending.append(following)
        if not cell.queue:
            self._blocked.pop(cell.name, None)

    def _run(self, cell: Cell, entry: Entry, attempt: int) -> sessions.Step | None:
        """Start the head's handler; what follows, if it has ended already."""
        if entry.restored and self._vigilance.waiting_suspected(cell.row_key, entry.arrival):
            self._suspects.append((cell, entry, attempt))
            asyncio.get_running_loop().call_soon(self._try_next)
            return None
        return self._run_now(cell, entry, attempt, self._verdict)

    def _try_next(self) -> None:
        """Run the next suspected waiting task; one that is announced alone is committed before another one runs."""
        while self._suspects and self._on_trial is None and not self._closed:
            cell, entry, attempt = self._suspects.popleft()
            said = self._vigilance.begin_waiting(cell.row_key, entry.arrival)
            entry.restored, entry.carried = False, True
            verdict = said if isinstance(said, tuple) else None
            if verdict is not None or (isinstance(said, Suspicion) and said.alone):
                self._on_trial = (cell, entry)
            following = self._run_now(cell, entry, attempt, verdict)
            if following is not None:
                self._follow(cell, following)
        self._context.engine.wake()

    def _run_now(self, cell: Cell, entry: Entry, attempt: int, verdict: Verdict | None) -> sessions.Step | None:
        handler = self._context.handlers.get(entry.kind)
        if handler is not None and not handler.inline and verdict is None:
            self._start_aside(cell, entry, handler, attempt)
            return None
        ending: Ending
        if verdict is not None:
            ending = Failed(*verdict)
        elif handler is None:
            ending = Failed("UnknownTask", f"no handler is registered for {entry.kind!r}")
        else:
            ending = self._inline(cell, entry, handler, attempt)
        return self._after(cell, entry, ending, attempt)

    def _after(self, cell: Cell, entry: Entry, ending: Ending, attempt: int) -> sessions.Step:
        if isinstance(ending, Again):
            asked = RetryAsked(int(time.time() * 1000), ending.after_ms, self._context.max_attempts)
            return sessions.step(cell.queue, asked)
        self._conclude(cell, entry, ending, attempt)
        return sessions.step(cell.queue, Ended())

    def _acquit(self, cell: Cell, entry: Entry) -> None:
        """A waiting task has ended here: once that is committed, it is no suspect and the next may run."""
        if entry.carried:
            self._acquitted.append((cell, entry))
        if self._on_trial == (cell, entry):
            self._on_trial = None
            # Not before the commit: a host that dies of the next must not find this one still waiting.
            self._context.engine.hurry()

    def _start_aside(self, cell: Cell, entry: Entry, handler: Handler, attempt: int) -> None:
        session: Session[Any] = Session(
            cell.tenant, cell.session, self._number, entry.task_id, attempt, orjson.loads(cell.good)
        )
        context = self._context
        run = run_aside(
            handler, session, entry.payload, context.limit, timeout=context.task_timeout, pool=context.pool
        )
        task = asyncio.ensure_future(self._aside_run(cell, entry, attempt, run))
        self._aside.add(task)
        task.add_done_callback(self._aside.discard)
        self._fresh += 1

    async def _aside_run(self, cell: Cell, entry: Entry, attempt: int, run: Any) -> None:
        try:
            ending = await run
        except asyncio.CancelledError:
            return
        if self._closed:
            return
        self._fresh = max(0, self._fresh - 1)
        try:
            self._follow(cell, self._after(cell, entry, ending, attempt))
        except Exception as error:  # a defect here must end the worker, not one coroutine
            self._context.engine.fail(error)
        self._context.engine.wake()

    def _control(self, key: bytes, value: bytes) -> None:
        match decode_control(key, value):
            case Wakeup(tenant, session, arrival, attempt):
                cell = self._cells.get((tenant, session)) or self._load(tenant, session)
                self._follow(cell, sessions.step(cell.queue, Woken(arrival, attempt)))

    # -- rows -----------------------------------------------------------------------------------------------------

    def _load(self, tenant: str, session: str) -> Cell:
        row_key = sessions_table.key_of(tenant, 0, session)
        cell = self._cells[tenant, session] = Cell(tenant, session, row_key, self._context.routers)
        row = self._sessions.get(row_key)
        if row is not None:
            cell.restore(sessions_table.decode(row))
        return cell

    def _reopen(self) -> None:
        """Take up what waited when the place opened: load every waiting row, run what was running."""
        for key, row in self._waiting.scan():
            tenant, session, found = waiting_table.decode(key, row)
            cell = self._cells.get((tenant, session)) or self._load(tenant, session)
            task = orjson.loads(found.task)
            task_id = task.get("id") or f"{found.partition}/{found.offset}"
            entry = Entry(found.partition, found.offset, found.task, task_id, task["type"], task["payload"])
            entry.arrival = cell.last_arrival = found.waiting.arrival
            entry.saved = True
            entry.restored = True
            cell.entries[entry.arrival] = entry
            cell.queue = (*cell.queue, found.waiting)
            self._blocked[cell.name] = cell
            self._waiting_count += 1
        # Once the loop runs again: a handler that runs in line here must find the place open.
        asyncio.get_running_loop().call_soon(self._resume)

    def _resume(self) -> None:
        if self._closed:
            return
        for cell in list(self._blocked.values()):
            self._follow(cell, sessions.step(cell.queue, Reopened()))
        self._context.engine.wake()

    def _touch(self, cell: Cell) -> None:
        self._dirty[cell.name] = cell

    def before_seal(self) -> None:
        now = int(time.time())
        for cell in self._dirty.values():
            if cell.ended and not cell.queue:
                self._sessions.delete(cell.row_key)
                self._cells.pop(cell.name, None)
            else:
                self._sessions.put(
                    cell.row_key, sessions_table.encode(cell.sequence, cell.origins, now, cell.good)
                )
            self._save_waiting(cell)
        self._dirty.clear()
        self._fresh = 0
        if len(self._cells) > CELLS_MAX:
            self._cells = {name: cell for name, cell in self._cells.items() if cell.queue}

    def _save_waiting(self, cell: Cell) -> None:
        for entry in cell.removed:
            if entry.saved:
                self._waiting.delete(waiting_table.key_of(cell.row_key, entry.arrival))
        cell.removed.clear()
        for waiting in cell.queue:
            entry = cell.entries[waiting.arrival]
            if entry.changed:
                if self._vigilance.active and waiting.phase is Phase.RUNNING and not entry.saved:
                    self._vigilance.carry_over(cell.row_key, entry.arrival)
                    entry.carried = True
                row = WaitingRow(waiting, entry.partition, entry.offset, entry.value)
                self._waiting.put(waiting_table.key_of(cell.row_key, entry.arrival), waiting_table.encode(row))
                entry.changed, entry.saved = False, True

    # -- the rest of a resident -----------------------------------------------------------------------------------

    def busy(self) -> bool:
        return self._fresh > 0

    def pausing(self) -> Sequence[Partition]:
        return ((self._context.names.work, self._number),) if self.paused else ()

    def due(self) -> float | None:
        return self._expiry.due

    def on_time(self, now: float) -> None:
        """Delete sessions that nobody has used for SESSION_TTL. (Wake-ups come through the stream.)"""
        for key in self._expiry.expired(now):
            _, _, rest = key.partition(b"\0")
            name = (key.partition(b"\0")[0].decode(), rest.partition(b"\0")[2].decode())
            cell = self._cells.get(name)
            if name not in self._dirty and (cell is None or not cell.queue):
                self._sessions.delete(key)
                self._cells.pop(name, None)

    def waiting_count(self) -> int:
        """Tasks that wait here."""
        return self._waiting_count

    def hold(self, topic: str) -> int | None:
        return None

    def close(self) -> None:
        self._closed = True
        self._vigilance.withdraw()
        for task in list(self._aside):
            task.cancel()


def attach(app: faust.App, names: Names) -> None:
    """Register the Faust agent of all servers with ``app``."""

    async def serve(stream: StreamT[Delivery]) -> None:
        async for delivery in stream:
            delivery.perform()

    topic = app.topic(names.work, names.handoffs, key_serializer="raw", value_serializer="raw")
    app.agent(topic, name="server")(serve)
