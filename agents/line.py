"""What waits at one server: tasks that run aside, that are to be retried, and those behind them.

The decisions are :mod:`app.protocol.sessions`'s; this module runs handlers for it and keeps the waiting rows in step.
"""

import asyncio
import heapq
import time
from collections import deque
from collections.abc import Callable, Coroutine, Iterable, Set
from typing import Any

import orjson

from agents.cells import Cell, Entry, ServerContext, read_again
from agents.endings import Endings
from agents.performing import Again, Done, Ending, Failed, run_aside, run_inline, unknown
from agents.suspicion import Verdict, Vigilance
from app.engine.table import Rows
from app.handlers import Handler, Session
from app.protocol import sessions
from app.protocol.control import WAKE_KEY, Wakeup, encode_wakeup
from app.protocol.sessions import (
    Arrived,
    Ended,
    GiveUp,
    Phase,
    Remove,
    Reopened,
    RetryAsked,
    Run,
    Save,
    Wake,
    Woken,
)
from app.protocol.suspects import Suspicion
from tables import waiting as waiting_table
from tables.waiting import WaitingRow

RETRY_S = 0.005
"""How often a suspected task looks whether everything before it is committed."""

WAKE_S = 0.05
"""So long retries that are due are woken in a row, before the loop looks at something else."""

WAITING_MAX = 10_000
WAITING_BYTES_MAX = 64 * 2**20
"""Waiting tasks at one server; beyond it the server reads no further until some have ended (L6)."""


class Line:
    """The waiting tasks of one server.

    Args:
        find: the cell of a session, loaded if need be.
        touch: a cell whose row is to be written with this unit.
    """

    def __init__(
        self,
        context: ServerContext,
        server: int,
        rows: Rows,
        *,
        vigilance: Vigilance,
        endings: Endings,
        find: Callable[[str, str], Cell],
        touch: Callable[[Cell], None],
    ) -> None:
        self._context = context
        self._server = server
        self._rows = rows
        self._vigilance = vigilance
        self._endings = endings
        self._find = find
        self._touch = touch
        self._blocked: dict[tuple[str, str], Cell] = {}
        self._aside: dict[asyncio.Task[None], Cell] = {}
        self._suspects: deque[tuple[Cell, Entry, int]] = deque()
        self._on_trial: Entry | None = None
        self._acquitted: list[tuple[Cell, Entry]] = []
        # By the time at which they fall due: session, arrival and attempt.
        self._retries: list[tuple[int, tuple[str, str], int, int]] = []
        self._bytes = 0
        self._closed = False
        self.count = 0
        self.fresh = 0
        """Handlers running aside that were started with the open unit."""
        self.verdict: Verdict | None = None
        """What is to become of the task that the current record of the stream wakes."""
        self.watched: Vigilance | None = None

    @property
    def full(self) -> bool:
        """Too much waits here: read no further for now."""
        return self.count >= WAITING_MAX or self._bytes >= WAITING_BYTES_MAX

    # -- in -----------------------------------------------------------------------------------------------------

    def arrive(self, cell: Cell, entry: Entry) -> None:
        """A task that cannot be performed at once: behind what waits in its session, or aside."""
        self._follow(cell, sessions.step(cell.queue, Arrived(self._admit(cell, entry))))

    def retry(self, cell: Cell, entry: Entry, again: Again) -> None:
        """The first run of a task, in line, has asked for a retry: nothing waited in its session until now."""
        cell.queue = sessions.step((), Arrived(self._admit(cell, entry))).queue
        entry.changed = True
        self._follow(cell, self._asked(cell, again))

    def wake(self, wakeup: Wakeup) -> None:
        """The stream says that a retry has fallen due. Mostly :meth:`on_time` has woken it by then."""
        cell = self._find(wakeup.tenant, wakeup.session)
        self._follow(cell, sessions.step(cell.queue, Woken(wakeup.arrival, wakeup.attempt)))

    def due(self) -> float | None:
        """Unix time of the next retry. None also while somebody is on trial: the commit that ends it wakes the loop."""
        return self._retries[0][0] / 1000 if self._retries and not self._context.trials else None

    def on_time(self, now: float) -> None:
        """Wake the retries that are due. Those of a full line cannot wait for the stream, which is not read then."""
        until = time.monotonic() + WAKE_S
        now_ms = int(now * 1000) + 1
        while self._retries and self._retries[0][0] <= now_ms and not self._context.trials:
            _, name, arrival, attempt = heapq.heappop(self._retries)
            cell = self._blocked.get(name)
            if cell is not None:
                self._follow(cell, sessions.step(cell.queue, Woken(arrival, attempt)))
            if time.monotonic() >= until:
                break

    def _admit(self, cell: Cell, entry: Entry) -> int:
        cell.last_arrival += 1
        entry.arrival = cell.last_arrival
        self._keep(cell, entry)
        self._touch(cell)
        return entry.arrival

    def _keep(self, cell: Cell, entry: Entry) -> None:
        cell.entries[entry.arrival] = entry
        self._blocked[cell.name] = cell
        self.count += 1
        self._bytes += len(entry.value)

    def _asked(self, cell: Cell, again: Again) -> sessions.Step:
        asked = RetryAsked(int(time.time() * 1000), again.after_ms, self._context.max_attempts)
        return sessions.step(cell.queue, asked)

    # -- steps --------------------------------------------------------------------------------------------------

    def _follow(self, cell: Cell, step: sessions.Step) -> None:
        """Perform the effects of a step. A handler in line ends within it, so this goes on until nothing follows."""
        following: sessions.Step | None = step
        while following is not None:
            step, following = following, None
            cell.queue = step.queue
            for effect in step.effects:
                # Only the last effect of a step can be one that something follows.
                following = self._perform(cell, effect)
        if not cell.queue:
            self._blocked.pop(cell.name, None)

    def _perform(self, cell: Cell, effect: sessions.Effect) -> sessions.Step | None:
        entry = cell.entries[effect.waiting.arrival if isinstance(effect, Save) else effect.arrival]
        match effect:
            case Save():
                entry.changed = True
                self._touch(cell)
            case Remove(arrival):
                del cell.entries[arrival]
                cell.removed.append(entry)
                self.count -= 1
                self._bytes -= len(entry.value)
                self._acquit(cell, entry)
                self._touch(cell)
            case Wake(_, attempt, due_ms):
                self._acquit(cell, entry)
                heapq.heappush(self._retries, (due_ms, cell.name, entry.arrival, attempt))
                wakeup = Wakeup(cell.tenant, cell.session, entry.arrival, attempt)
                where = self._context.engine.unit.output(self._context.names.delay, cell.results_partition)
                where.append((WAKE_KEY, encode_wakeup(wakeup, due_ms)))
            case GiveUp():
                attempts = cell.queue[0].attempt
                failed = Failed("MaxAttempts", f"asked for a retry {attempts} times (MAX_ATTEMPTS)")
                self._endings.conclude(cell, entry, failed, attempts)
                return sessions.step(cell.queue, Ended())
            case Run(_, attempt):
                return self._run(cell, entry, attempt)
        return None

    # -- runs ---------------------------------------------------------------------------------------------------

    def run_inline(self, cell: Cell, entry: Entry, handler: Handler, attempt: int) -> Ending:
        """Run a handler here and now, watched: it cannot be cancelled."""
        context = self._context
        session: Session[Any] = Session(
            cell.tenant, cell.session, self._server, entry.task_id, attempt, cell.state or cell.current_state()
        )
        watchdog = context.watchdog
        watchdog.current = (self.watched or self._vigilance, cell, entry)
        ending = run_inline(handler, session, entry.payload, context.limit)
        watchdog.current = None
        if type(ending) is not Done:
            cell.spoil()
        return ending

    def _run(self, cell: Cell, entry: Entry, attempt: int) -> sessions.Step | None:
        """Start the head's handler; what follows, if it has ended already."""
        if entry.restored and self._vigilance.waiting_suspected(cell.row_key, entry.arrival):
            self._suspects.append((cell, entry, attempt))
            self._context.engine.submit(self._try_next)
            return None
        return self._run_now(cell, entry, attempt, self.verdict)

    def _try_next(self) -> None:
        """Run the next suspected task; one that is announced alone is committed before another one runs."""
        trials = self._context.trials
        while self._suspects and self._on_trial is None and not self._closed:
            if not self._context.engine.flow.quiet:
                trials.add(self)
                self._context.engine.hurry()
                asyncio.get_running_loop().call_later(RETRY_S, self._context.engine.submit, self._try_next)
                return
            trials.discard(self)
            cell, entry, attempt = self._suspects.popleft()
            said = self._vigilance.begin_waiting(cell.row_key, entry.arrival)
            entry.restored, entry.carried = False, True
            verdict = said if isinstance(said, tuple) else None
            if verdict is not None or (isinstance(said, Suspicion) and said.alone):
                self._on_trial = entry
                trials.add(self)
            following = self._run_now(cell, entry, attempt, verdict)
            if following is not None:
                self._follow(cell, following)
        self._context.engine.wake()

    def _run_now(self, cell: Cell, entry: Entry, attempt: int, verdict: Verdict | None) -> sessions.Step | None:
        handler = self._context.handlers.get(entry.kind)
        if attempt > 1:
            # An earlier run may have changed the payload in place.
            entry.payload = orjson.loads(entry.value)["payload"]
        if verdict is not None:
            return self._after(cell, entry, Failed(*verdict), attempt)
        if handler is None:
            return self._after(cell, entry, Failed("UnknownTask", unknown(entry.kind)), attempt)
        if handler.inline:
            return self._after(cell, entry, self.run_inline(cell, entry, handler, attempt), attempt)
        self._start_aside(cell, entry, handler, attempt)
        return None

    def _after(self, cell: Cell, entry: Entry, ending: Ending, attempt: int) -> sessions.Step:
        if isinstance(ending, Again):
            return self._asked(cell, ending)
        self._endings.conclude(cell, entry, ending, attempt)
        return sessions.step(cell.queue, Ended())

    def _start_aside(self, cell: Cell, entry: Entry, handler: Handler, attempt: int) -> None:
        context = self._context
        session: Session[Any] = Session(
            cell.tenant, cell.session, self._server, entry.task_id, attempt, orjson.loads(cell.good)
        )
        run = run_aside(
            handler, session, entry.payload, context.limit, timeout_s=context.task_timeout, pool=context.pool
        )
        task = asyncio.ensure_future(self._aside_run(cell, entry, run, attempt))
        self._aside[task] = cell
        task.add_done_callback(lambda ended: (self._aside.pop(ended, None), run.close()))
        self.fresh += 1

    async def _aside_run(self, cell: Cell, entry: Entry, run: Coroutine[Any, Any, Ending], attempt: int) -> None:
        try:
            ending = await run
        except asyncio.CancelledError:
            if self._closed or self._left(cell):
                raise
            ending = Failed("CancelledError", "the handler cancelled its own task")
        except BaseException as error:  # noqa: BLE001 - a run that has no ending blocks its session for ever.
            self._context.engine.fail(error)
            return
        self._context.engine.submit(lambda: self._ended(cell, entry, ending, attempt))

    def _ended(self, cell: Cell, entry: Entry, ending: Ending, attempt: int) -> None:
        if self._closed or self._left(cell):
            return
        self.fresh = max(0, self.fresh - 1)
        self._follow(cell, self._after(cell, entry, ending, attempt))

    # -- suspects -----------------------------------------------------------------------------------------------

    def _acquit(self, cell: Cell, entry: Entry) -> None:
        """A suspected task has ended, or lived to ask for a retry: once that is committed, the next may run."""
        if entry.carried:
            self._acquitted.append((cell, entry))
        if self._on_trial is entry:
            # Not before the commit: a host that dies of the next must not find this one still waiting.
            self._context.engine.flow.hurry(alone=True)

    def after_commit(self) -> None:
        """What had ended is committed."""
        if not self._acquitted:
            return
        for cell, entry in self._acquitted:
            self._vigilance.ended_waiting(cell.row_key, entry.arrival)
            if entry is self._on_trial:
                self._on_trial = None
                self._context.trials.discard(self)
        self._acquitted.clear()
        self._try_next()

    # -- rows ---------------------------------------------------------------------------------------------------

    def reopen(self, rows: Iterable[tuple[bytes, bytes]]) -> None:
        """Take up what waited when the place opened, of sessions that live here."""
        cells = self._take_up(rows)
        self._vigilance.keep_waiting([(cell.row_key, arrival) for cell in cells for arrival in cell.entries])
        self._resume_soon(cells)

    def take_up(self, rows: Iterable[tuple[bytes, bytes]]) -> None:
        """Take up what waits of sessions that are served from now on; rows in the order of their keys."""
        self._resume_soon(self._take_up(rows))

    def _take_up(self, rows: Iterable[tuple[bytes, bytes]]) -> list[Cell]:
        found: dict[tuple[str, str], Cell] = {}
        for key, row in rows:
            tenant, session, waits = waiting_table.decode(key, row)
            cell, entry = self._find(tenant, session), read_again(waits)
            found[cell.name] = cell
            entry.arrival = cell.last_arrival = waits.waiting.arrival
            entry.saved = entry.restored = True
            cell.queue = (*cell.queue, waits.waiting)
            self._keep(cell, entry)
            if waits.waiting.phase is Phase.RETRYING and waits.waiting.due_ms is not None:
                heapq.heappush(self._retries, (waits.waiting.due_ms, cell.name, entry.arrival, waits.waiting.attempt))
        return list(found.values())

    def _resume_soon(self, cells: list[Cell]) -> None:
        """What was running runs again once the loop goes on. Retries wake by time, and may have by then."""
        lost = [cell for cell in cells if cell.queue[0].phase is not Phase.RETRYING]
        self._context.engine.submit(lambda: self._resume(lost))

    def _resume(self, cells: list[Cell]) -> None:
        if self._closed:
            return
        for cell in (cell for cell in cells if not self._left(cell)):
            self._follow(cell, sessions.step(cell.queue, Reopened()))

    def forget(self, names: Set[tuple[str, str]]) -> None:
        """Let go of what waits of sessions that are no longer served here; its rows stay."""
        for cell in [cell for cell in self._blocked.values() if cell.name in names]:
            del self._blocked[cell.name]
            self.count -= len(cell.entries)
            self._bytes -= sum(len(entry.value) for entry in cell.entries.values())
            if any(entry is self._on_trial for entry in cell.entries.values()):
                self._on_trial = None
        self._retries = [entry for entry in self._retries if entry[1] not in names]
        heapq.heapify(self._retries)
        self._suspects = deque(entry for entry in self._suspects if entry[0].name not in names)
        if self._on_trial is None and not self._suspects:
            self._context.trials.discard(self)
        for task, cell in list(self._aside.items()):
            if cell.name in names:
                task.cancel()

    def _left(self, cell: Cell) -> bool:
        """Has this session's tenant left since, so that nothing may come of what still runs of it?"""
        return self._blocked.get(cell.name) is not cell

    def save(self, cell: Cell) -> None:
        """Bring the waiting rows of a session in step with its queue."""
        for entry in cell.removed:
            if entry.saved:
                self._rows.delete(waiting_table.key_of(cell.row_key, entry.arrival))
        cell.removed.clear()
        for waiting in cell.queue:
            entry = cell.entries[waiting.arrival]
            if not entry.changed:
                continue
            if self._vigilance.active and waiting.phase is Phase.RUNNING and not entry.saved:
                self._vigilance.carry_over(cell.row_key, entry.arrival)
                entry.carried = True
            row = WaitingRow(waiting, entry.partition, entry.offset, entry.value)
            self._rows.put(waiting_table.key_of(cell.row_key, entry.arrival), waiting_table.encode(row))
            entry.changed, entry.saved = False, True

    @property
    def not_begun(self) -> list[tuple[bytes, int]]:
        """Suspected tasks that were to run here, by session and arrival."""
        return [(cell.row_key, entry.arrival) for cell, entry, _ in self._suspects]

    def close(self) -> None:
        """Cancel what runs; nothing may reach a unit any more."""
        self._closed = True
        self._context.trials.discard(self)
        for task in list(self._aside):
            task.cancel()
