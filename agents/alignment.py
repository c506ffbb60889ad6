"""Views at one server: whose a session is, what leaves and what comes. The shell around :mod:`app.protocol.alignment`.

A session that lives here has its cell in the server's memory, so only a session that has none asks whose it is: views
cost a task nothing. Tasks of sessions that are on their way here are held as rows (:mod:`agents.held`); rows that
leave are sent by :mod:`agents.leaving`, a few at a time, between batches.
"""

import time
from collections.abc import Callable, Iterable, Iterator
from typing import Any, Protocol

import orjson

from agents.announcing import announce
from agents.cells import ServerContext
from agents.held import HeldTasks
from agents.leaving import Leaving
from agents.resuming import Performer, Resuming
from agents.tenants import Tenants
from app.engine.crashpoints import passing
from app.engine.places import Place
from app.protocol import affinity, alignment, chunks, closing, control
from app.protocol.affinity import Own, Sending, State, Stranger, Whose
from app.protocol.alignment import Conclude, Resume, ShipSessions, ShipWaiting
from app.protocol.chunks import SESSION, WAITING, HandOff
from app.protocol.control import Control
from app.protocol.markers import HandedOff, Marker
from app.protocol.moves import Announce
from app.protocol.murmur2 import partition_of
from app.protocol.placement import Routes
from tables import handoffs, sessions, waiting
from tables.parked import Kept

TURN_S = 0.01
"""So long the servers of a worker work for views before they look at their streams again."""

TURN_LEAST_S = 0.002
"""So long each of them does, however many there are: less would be spent on beginning."""

PAUSE_S = 0.02
"""How long it waits for room in the unit, or for somebody's trial."""

RESUMED_AT_ONCE = 500
ROUTERS_MAX = 50_000
"""Tenants whose router is remembered."""


class Memory(Performer, Protocol):
    """The sessions in a server's memory, as views see them."""

    def freeze(self, leaves: Callable[[str, str], bool]) -> None:
        """Write all rows of these sessions that are to be written, then forget them."""

    def take_up(self, keys: Iterable[bytes]) -> None:
        """Take up what waits under these keys."""


class Alignment:
    """How far each router's view has come at one server."""

    def __init__(self, context: ServerContext, place: Place, tenants: Tenants, memory: Memory) -> None:
        self._context = context
        self._server = place.number
        self._tenants = tenants
        self._memory = memory
        self._rows = place.rows[handoffs.NAME]
        self._tables = {SESSION: place.rows[sessions.NAME], WAITING: place.rows[waiting.NAME]}
        self._routes = Routes()
        self._routers: dict[str, int] = {}
        first = affinity.Aligned(affinity.initial(context.servers))
        rows = [self._rows.get(handoffs.view_key(router)) for router in range(context.routers)]
        self.states: tuple[State, ...] = tuple(first if row is None else handoffs.decode_view(row) for row in rows)
        """By router. Other threads may look: a state never changes, another one takes its place."""
        self._changed: set[int] = set()
        self.held = HeldTasks(self._rows)
        self.resuming = Resuming(context, place, self.held, memory)
        self._come: dict[int, set[bytes]] = {}
        self._leaving = Leaving(context, place, place_of=self._place_of, whose=self.whose)
        self._since: float | None = None
        self._told_full = False
        self._opening = any(state.change.epoch for state in self.states)
        self.due: float | None = 0.0 if self._opening else None
        """Unix time at which :meth:`on_time` is wanted."""
        if place.owner_died:
            # In the unit that begins with this stream, before anything that is read there.
            self._announce("stream-opened", server=self._server, worker=orjson.loads(context.worker))

    # -- whose a session is ---------------------------------------------------------------------------------------

    def router_of(self, tenant: str) -> int:
        """The router of a tenant."""
        known = self._routers.get(tenant)
        if known is None:
            if len(self._routers) >= ROUTERS_MAX:
                self._routers.clear()
            known = self._routers[tenant] = partition_of(tenant.encode(), self._context.routers)
        return known

    def whose(self, tenant: str, session: str) -> Whose:
        """Whose is a session, where the stream has been read up to now?"""
        state = self.states[self.router_of(tenant)]
        home = self._tenants.home(tenant)
        return affinity.whose(state, tenant, session, home, server=self._server, routes=self._routes)

    def owns(self, tenant: str, session: str) -> bool:
        """Does a session live here?"""
        return type(self.whose(tenant, session)) is Own

    def view_of(self, tenant: str) -> int:
        """The view of a tenant's router that this server has read last."""
        return self.states[self.router_of(tenant)].change.epoch

    def _place_of(self, tenant: str) -> tuple[int, int, int]:
        return self.router_of(tenant), self._tenants.home(tenant), self._tenants.known(tenant).epoch

    # -- tasks ----------------------------------------------------------------------------------------------------

    def admits(self, tenant: str, session: str, key: bytes, value: bytes) -> bool:
        """May a task be performed here and now? Otherwise it is held, or goes back to where it came from."""
        whose = self.whose(tenant, session)
        if isinstance(whose, Stranger):
            self._send_back(tenant, session, key, value, whose.to)
            return False
        if isinstance(whose, Own) and not self.held.waits((tenant, session)):
            return True
        self.hold(tenant, session, key, value)
        return False

    def hold(self, tenant: str, session: str, key: bytes, value: bytes) -> None:
        """Keep a task until its session has come and what is held before it is performed."""
        router = self.router_of(tenant)
        change = self.states[router].change
        source = self._routes.route(tenant, session, self._tenants.home(tenant), change.before)
        if not self.held.total:
            self._announce("stream-held", view=change.epoch, server=self._server, source=source)
        partition, _, offset = key.partition(b":")
        self.held.keep(router, source, (tenant, session), Kept(int(partition), int(offset), value))
        self._context.rehomed.held += 1
        if self.held.full and not self._told_full:
            self._told_full = True
            self._announce("stream-full", view=change.epoch, server=self._server)

    def _send_back(self, tenant: str, session: str, key: bytes, value: bytes, to: int) -> None:
        """No router sends a task where it does not belong; whatever did, the task goes its way again."""
        partition, _, offset = key.partition(b":")
        context = self._context
        context.rehomed.misplaced += 1
        headers = [("origin-partition", partition), ("origin-offset", offset)]
        where = self.router_of(tenant)
        context.engine.unit.send(context.names.tasks, value, tenant.encode(), partition=where, headers=headers)
        source = {"partition": int(partition), "offset": int(offset)}
        self._announce("task-misplaced", server=self._server, tenant=tenant, session=session, to=to, source=source)

    # -- what comes -----------------------------------------------------------------------------------------------

    def take(self, said: Marker | HandedOff) -> None:
        """A record about views, of the stream or of ``handoffs``."""
        self._feed(said.router, said)

    def take_rows(self, part: HandOff, size: int) -> None:
        """Rows of sessions that come here. They are not the server's before :meth:`whose` says so."""
        if not alignment.wanted(self.states[part.router], part):
            return
        rows = total = 0
        for item in part.items:
            table, key = self._tables[item.table], item.name.encode()
            more, sum_ = chunks.replaced(item.table, item.name, table.get(key), item.row)
            rows, total = rows + more, total + sum_
            assert item.row is not None
            table.put(key, item.row)
            if item.table == WAITING:
                self._come.setdefault(part.router, set()).add(key)
        unit = self._context.engine.unit
        unit.weight += len(part.items)
        unit.size += size
        self._context.rehomed.rows_in += len(part.items)
        passing("view-takes")
        self._feed(part.router, alignment.Taken(part, rows, total))

    # -- steps ----------------------------------------------------------------------------------------------------

    def _feed(self, router: int, event: alignment.Event) -> None:
        before = self.states
        decided = alignment.step(before[router], event, router=router, server=self._server)
        if decided.state is not before[router]:
            self.states = (*before[:router], decided.state, *before[router + 1 :])
            self._changed.add(router)
        if isinstance(event, Marker) and self._since is None:
            self._since = time.monotonic()
        for effect in decided.effects:
            self._perform(router, effect)
        for notice in closing.notices(before, self.states, self._server):
            self._notice(notice)
        self.due = 0.0

    def _perform(self, router: int, effect: alignment.Effect) -> None:
        match effect:
            case alignment.Freeze():
                self._leaving.forget(router)
                self._memory.freeze(lambda tenant, session: self._leaves(router, tenant, session))
                passing("view-freezes")
            case alignment.GoLive():
                self._go_live(router)
                passing("view-opens")
            case alignment.Hand(target, record):
                self._write(self._context.names.handoffs, target, record)
                self._context.engine.hurry()
                passing("view-handed")
            case Announce():
                self._say(effect)

    def _leaves(self, router: int, tenant: str, session: str) -> bool:
        return self.router_of(tenant) == router and not self.owns(tenant, session)

    def _go_live(self, router: int) -> None:
        """Take up what waits of sessions that have come and are the server's now."""
        come = self._come.get(router, set())
        live = sorted(key for key in come if self._lives(key))
        come.difference_update(live)
        if live:
            self._memory.take_up(live)

    def _lives(self, key: bytes) -> bool:
        tenant, epoch, session = waiting.names_of(key)
        return self.lives(tenant, epoch, session)

    def lives(self, tenant: str, epoch: int, session: str) -> bool:
        """Are rows of the session under this epoch those that are served here?"""
        served = self._tenants.known(tenant).epoch if self._tenants.serves(tenant) else None
        return affinity.lives(self.whose(tenant, session), epoch, served)

    def _notice(self, notice: closing.Notice) -> None:
        if isinstance(notice, Announce):
            self._say(notice)
            return
        self._write(self._context.names.commands, 0, notice.record)
        if self._since is not None:
            self._context.rehomed.seconds.observe(time.monotonic() - self._since)
        self._since = None
        self._told_full = False
        self._context.engine.hurry()
        passing("view-closed")

    def _write(self, topic: str, partition: int, record: Control) -> None:
        key, value = control.encode(record)
        self._context.engine.unit.output(topic, partition).append((key, value))

    def _announce(self, event: str, **fields: Any) -> None:
        self._say(Announce(event, None, False, fields))

    def _say(self, announced: Announce) -> None:
        context = self._context
        announce(context.engine, context.names, b"server-%d" % self._server, announced, int(time.time() * 1000))

    # -- in the background ----------------------------------------------------------------------------------------

    def waiting_at_open(self) -> Iterator[tuple[bytes, bytes]]:
        """What waits of sessions that live here; of those that have not come yet, the rows that have are noted."""
        for key, row in self._tables[WAITING].scan():
            tenant, epoch, session = waiting.names_of(key)
            if self.lives(tenant, epoch, session):
                yield key, row
            elif self._tenants.live(tenant, epoch):
                self._come.setdefault(self.router_of(tenant), set()).add(key)

    def on_time(self, now: float) -> None:
        """Do a little of what is to be done, and say when to come again."""
        if self._opening:
            self._opening = False
            report = closing.again(self.states, self._server)
            self._write(self._context.names.commands, 0, report.record)
        aligning = self._context.aligning
        until = time.monotonic() + min(TURN_S, max(TURN_LEAST_S, TURN_S / max(1, len(aligning))))
        unit = self._context.engine.unit
        worked = True
        while worked and not unit.full and time.monotonic() < until:
            worked = False
            for router in range(len(self.states)):
                task = alignment.ahead(self.states[router], self.held.counts(router))
                worked |= task is not None and self._one(router, task, until)
        ahead = any(alignment.ahead(state, self.held.counts(router)) for router, state in enumerate(self.states))
        self.due = None if not ahead else 0.0 if worked and not unit.full else now + PAUSE_S
        if ahead:
            aligning.add(self._server)
        else:
            aligning.discard(self._server)

    def _one(self, router: int, task: alignment.Task, until: float) -> bool:
        """A little of one task; False: it has to wait."""
        match task:
            case ShipSessions(after):
                self._ship(router, SESSION, after, until)
            case ShipWaiting(after):
                self._ship(router, WAITING, after, until)
            case Resume(source):
                # While somebody's task is performed alone, none may be begun beside it.
                if self._context.trials - {self.resuming}:
                    return False
                return self._resume(router, source, RESUMED_AT_ONCE) > 0
            case Conclude():
                self._feed(router, alignment.Concluded())
        return True

    def _ship(self, router: int, table: str, after: str, until: float) -> None:
        sending = {number: state for number, state in enumerate(self.states) if isinstance(state, Sending)}
        page = self._leaving.page(router, table, after, sending, until)
        if page is not None:
            self._feed(router, page)

    def _resume(self, router: int, source: int, most: int) -> int:
        """Perform tasks that are held for sessions from ``source``, which are here; 0: not before a commit."""
        count = self.resuming.some(router, source, most)
        self._context.engine.unit.weight += count
        passing("view-resumes")
        return count

    def keep_pace(self, records: int) -> None:
        """So many records of the stream are about to be performed, and may be held behind others: resume as many.

        Otherwise a stream that is busy enough would never come to the end of what it holds.
        """
        for router, state in enumerate(self.states):
            while records > 0:
                task = alignment.ahead(state, self.held.counts(router))
                count = self._resume(router, task.source, records) if isinstance(task, Resume) else 0
                if not count:
                    break
                records -= count

    def before_seal(self) -> None:
        """Write the rows of what has changed, once each."""
        self.resuming.before_seal()
        for router in self._changed:
            self._rows.put(handoffs.view_key(router), handoffs.encode_view(self.states[router]))
        self._changed.clear()

    def after_commit(self) -> None:
        """A unit was committed."""
        if self.resuming.waits:
            self.resuming.after_commit()
            self.due = 0.0
