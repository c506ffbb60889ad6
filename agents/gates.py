"""The gates of one router: tenants that move, what becomes of their tasks meanwhile, and their release.

The decisions are :mod:`app.protocol.migration`'s. A tenant that is settled is none of this module's business: its tasks
pass the router's fast path. One that moves is here, by the bytes of its key, from the order to the last parked task.
"""

import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, NamedTuple

import orjson

from agents.adopting import Adopting
from agents.announcing import Announcer
from app.engine.crashpoints import passing
from app.engine.fetch import Record
from app.engine.places import Place
from app.errors import LocalProtocolError
from app.protocol import migration, moves, parking
from app.protocol.control import PARKED_HEADER, Control, ParkedDue, Progress, decode_parked, encode, encode_parked
from app.protocol.moves import Cutting, Moment, Placement, Releasing, Settled, State
from app.protocol.parking import WakeUps
from app.protocol.placement import home_of
from tables import outcomes, parked, placements

if TYPE_CHECKING:
    from agents.router import RouterContext

RELEASED_AT_ONCE = 5_000
"""So many tasks are released at most before the router looks at something else."""

POLL_S = 0.002
"""How often a release looks whether more parked tasks have come."""


class Task(NamedTuple):
    """A task as it goes on: its origin as the key of `work` and `delay`, and its bytes."""

    origin: bytes
    value: bytes


@dataclass(slots=True)
class Counts:
    """What has become of migrations on this worker since its start; ``pauses_ms`` are those of the last ones."""

    started: int = 0
    succeeded: int = 0
    failed: int = 0
    parked: int = 0
    released: int = 0
    redelayed: int = 0
    rows: int = 0
    bytes: int = 0
    pauses_ms: list[int] = field(default_factory=list)


PAUSES_KEPT = 1_000


@dataclass(slots=True)
class _Run:
    """Consecutive parked tasks of one tenant, as they are read."""

    epoch: int
    next: int
    tasks: list[Task] = field(default_factory=list)


class Gates:
    """The tenants of one router that move.

    Args:
        views: the view that the router sends under.
        unsettle: takes a tenant from the fast path.
    """

    def __init__(
        self,
        context: "RouterContext",
        place: Place,
        wakeups: WakeUps,
        views: Adopting,
        unsettle: Callable[[bytes], object],
    ) -> None:
        self._context = context
        self._number = place.number
        self._wakeups = wakeups
        self._views = views
        self._unsettle = unsettle
        self._placements = place.rows[placements.NAME]
        self._parked = place.rows[parked.NAME]
        self.announcer = Announcer(context.engine, context.names, place.rows[outcomes.NAME])
        self.moving: dict[bytes, State] = {}
        self.copied: dict[bytes, dict[int, tuple[int, int]]] = {}
        """Rows and bytes that each source of a move has sent, as it told this host last."""
        self._changed: set[bytes] = set()
        self._delivered: list[Task] = []
        self._reader = context.reader(place.number)
        self._reader_at: int | None = None
        self._poll_at = 0.0
        for key, row in self._placements.scan():
            state = placements.decode(row)
            if not isinstance(state, Settled):
                self.moving[key] = state
        self._follow()

    # -- states ---------------------------------------------------------------------------------------------------

    def state(self, key: bytes) -> State:
        known = self.moving.get(key)
        if known is not None:
            return known
        row = self._placements.get(key)
        if row is not None:
            return placements.decode(row)
        return Settled(Placement(home_of(key, None, self._context.servers)))

    def _moment(self, key: bytes, now_ms: int) -> Moment:
        context = self._context
        views = self._views
        return Moment(key.decode(), self._number, context.servers, views.up, views.adopted.closed, now_ms)

    def feed(self, key: bytes, event: migration.Event, task: Task | None = None, *, now_ms: int | None = None) -> None:
        """Step the tenant's state, keep it, perform what follows. ``task`` is the one that arrived, or None."""
        before = self.state(key)
        moment = self._moment(key, int(time.time() * 1000) if now_ms is None else now_ms)
        decided = migration.step(before, event, moment)
        after = decided.state
        if isinstance(after, Settled):
            if after is not before:
                self._placements.put(key, placements.encode(after))
            self.copied.pop(key, None)
            if self.moving.pop(key, None) is not None:
                self._changed.discard(key)
        elif after is not before:
            self.moving[key] = after
            self._changed.add(key)
            if (
                isinstance(event, Progress)
                and event.epoch == after.placement.tried
                and event.server in after.move.sources
            ):
                told = {event.server: (event.rows, event.bytes)}
                self.copied[key] = {**self.copied.get(key, {}), **told}
        if after is not before:
            # Before anything else: whatever comes next of this tenant must not pass by its gate.
            self._unsettle(key)
        for effect in decided.effects:
            self._perform(key, after, effect, task, moment)
        if type(after) is not type(before):
            self._turned(before, after)

    def _note(self, key: bytes, sources: tuple[int, ...], said: Progress) -> None:
        # The target tells of itself, too: what it does is no part of the copy.
        if said.server in sources:
            self.copied[key] = {**self.copied.get(key, {}), said.server: (said.rows, said.bytes)}

    def _turned(self, before: State, after: State) -> None:
        """A phase has begun: what matters to somebody who waits goes out at once."""
        counts = self._context.counts
        if isinstance(before, Settled):
            counts.started += 1
            passing("move-ordered")
        if isinstance(after, Cutting):
            passing("move-closes")
        if isinstance(before, Cutting):
            counts.redelayed += before.lot.redelayed
            passing("move-decided")
        if isinstance(after, Settled):
            passing("move-settled")
        self._follow()
        self._poll_at = 0.0
        self._context.engine.hurry()

    def view_adopted(self, changed: frozenset[int]) -> None:
        """The router is about to send under a new view, in which these servers have failed or returned."""
        for key in list(self.moving):
            self.feed(key, migration.ViewAdopted(changed))

    # -- tasks ----------------------------------------------------------------------------------------------------

    def arrived(self, key: bytes, origin: bytes, value: bytes) -> None:
        """A task of a tenant that moves."""
        event = migration.Arrived(len(key) + len(value), self._wakeups.position)
        self.feed(key, event, Task(origin, value))

    def _perform(self, key: bytes, state: State, effect: migration.Effect, task: Task | None, moment: Moment) -> None:
        match effect:
            case migration.Tell(server, record):
                self._write(self._context.names.work, server, record)
            case moves.Announce():
                self._count(effect)
                self.announcer.say(key, effect, moment.now_ms)
            case moves.Forward():
                assert task is not None
                self._forward(key, state, [task])
            case parking.Park(number, due_ms, new_due):
                assert task is not None
                self._park(key, state.placement.tried, number, due_ms, task)
                if new_due:
                    self._due(moment.tenant, state.placement.tried, due_ms)
            case parking.Keep(number):
                assert task is not None
                where, _, offset = task.origin.partition(b":")
                kept = parked.Kept(int(where), int(offset), task.value)
                self._parked.put(parked.key_of(key, number), parked.encode(kept))
            case parking.Release(first, last):
                # What was released before stands at the front, if the run overlaps it.
                found = self._delivered[len(self._delivered) - (last - first + 1) :]
                self._forward(key, state, found)
            case parking.ReleaseKept(first, last):
                self._forward(key, state, [self._take_kept(key, number) for number in range(first, last + 1)])
            case migration.DelayAgain(epoch, due_ms):
                self._due(moment.tenant, epoch, due_ms)

    def _forward(self, key: bytes, state: State, tasks: list[Task]) -> None:
        """Send tasks to their servers, by the route of this moment."""
        context = self._context
        unit = context.engine.unit
        unit.weight += len(tasks)
        unit.size += sum(len(task.value) for task in tasks)
        home = state.home
        if home in self._views.up:
            unit.output(context.names.work, home).extend(tasks)
            return
        tenant = key.decode()
        for origin, value in tasks:
            server = self._views.route(tenant, orjson.loads(value)["session"], home)
            unit.output(context.names.work, server).append((origin, value))

    def _park(self, key: bytes, epoch: int, number: int, due_ms: int, task: Task) -> None:
        self._context.counts.parked += 1
        self._context.engine.unit.send(
            self._context.names.delay,
            task.value,
            task.origin,
            partition=self._number,
            headers=[(PARKED_HEADER, encode_parked(key, epoch, number, due_ms))],
        )

    def _take_kept(self, key: bytes, number: int) -> Task:
        name = parked.key_of(key, number)
        row = self._parked.get(name)
        if row is None:
            raise LocalProtocolError(f"the kept task {number} of {key.decode()} is gone")
        kept = parked.decode(row)
        self._parked.delete(name)
        return Task(b"%d:%d" % (kept.partition, kept.offset), kept.task)

    def _due(self, tenant: str, epoch: int, due_ms: int) -> None:
        self._write(self._context.names.delay, self._number, ParkedDue(tenant, epoch, due_ms))

    def _write(self, topic: str, partition: int, record: Control) -> None:
        key, value = encode(record)
        self._context.engine.unit.output(topic, partition).append((key, value))

    def _count(self, announced: moves.Announce) -> None:
        counts = self._context.counts
        if announced.event not in ("migration-succeeded", "migration-failed"):
            return
        fields = announced.fields
        if announced.event == "migration-succeeded":
            counts.succeeded += 1
            counts.rows += fields["rows"]
            counts.bytes += fields["bytes"]
        else:
            counts.failed += 1
        counts.pauses_ms.append(fields["pause_ms"])
        del counts.pauses_ms[:-PAUSES_KEPT]

    # -- release --------------------------------------------------------------------------------------------------

    def _follow(self) -> None:
        """Point the second reader at what will be released, or away when there is nothing."""
        releasing = [
            state.lot.position
            for state in self.moving.values()
            if isinstance(state, Releasing) and state.lot.position is not None
        ]
        if not self.moving:
            if self._reader_at is not None:
                self._reader.leave()
            self._reader_at = None
        elif self._reader_at is None or (releasing and min(releasing) < self._reader_at):
            floor = self.floor if not releasing else min(releasing)
            self._reader_at = self._wakeups.position if floor is None else floor
            self._reader.follow(self._reader_at)

    def _release(self, now: float) -> None:
        """Read on in `delay`, and release what stands there of tenants whose move has ended."""
        runs = {
            key: _Run(state.placement.tried, state.lot.released + 1)
            for key, state in self.moving.items()
            if isinstance(state, Releasing)
        }
        self._poll_at = now + POLL_S
        if not runs or self._reader_at is None or self._context.engine.unit.full:
            return
        records = self._reader.take(RELEASED_AT_ONCE)
        if records:
            self._poll_at = 0.0
            self._hand_out(records, runs)
        for key, run in runs.items():
            self._deliver(key, run, self._reader_at)

    def _hand_out(self, records: list[Record], runs: dict[bytes, _Run]) -> None:
        for record in records:
            headers = record.headers()
            if not headers or headers[0][0] != PARKED_HEADER:
                continue
            key, epoch, number = decode_parked(headers[0][1])
            run = runs.get(key)
            if run is None or run.epoch != epoch or number < run.next:
                continue
            if number > run.next:
                # What is kept as rows stands between, and leaves with what stands before it.
                self._deliver(key, run, record.offset())
                if number != run.next:
                    raise LocalProtocolError(f"{key.decode()}: parked task {number} came, {run.next} is next")
            origin, value = record.key(), record.value()
            assert origin is not None
            assert value is not None
            run.tasks.append(Task(origin, value))
            run.next += 1
        self._reader_at = records[-1].offset() + 1

    def _deliver(self, key: bytes, run: _Run, position: int) -> None:
        before = self.moving.get(key)
        if not isinstance(before, Releasing) or (not run.tasks and before.lot.position == position):
            return
        last = run.next - 1
        first = last - len(run.tasks) + 1
        self._delivered = run.tasks
        self.feed(key, migration.Delivered(run.epoch, first, last, position))
        self._delivered, run.tasks = [], []
        passing("move-releases")
        after = self.moving.get(key)
        run.next = (after.lot.released if isinstance(after, Releasing) else before.lot.parked) + 1
        self._context.counts.released += run.next - 1 - before.lot.released

    # -- time -----------------------------------------------------------------------------------------------------

    def due(self) -> float | None:
        """Unix time at which :meth:`on_time` is wanted."""
        times = [self.announcer.due]
        for state in self.moving.values():
            if isinstance(state, Releasing):
                times.append(self._poll_at)
            else:
                at = migration.deadline_ms(state)
                if at is not None:
                    times.append(at / 1000)
        return min(times)

    def on_time(self, now: float) -> None:
        """Deadlines, releases, old outcomes."""
        now_ms = round(now * 1000)
        for key, state in list(self.moving.items()):
            at = migration.deadline_ms(state)
            if at is not None and at <= now_ms:
                self.feed(key, migration.Tick(), now_ms=now_ms)
        if self._poll_at <= now:
            self._release(now)
        if self.announcer.due <= now:
            self.announcer.sweep(now)

    def fall_due(self) -> None:
        """Parked tasks whose delay has passed, as the wake-ups' clock says."""
        for due in self._wakeups.take_due():
            self.feed(due.tenant.encode(), migration.Due(due.epoch, due.due))

    def before_seal(self) -> None:
        """Write the rows of all tenants whose state has changed, once each."""
        for key in self._changed:
            self._placements.put(key, placements.encode(self.moving[key]))
        self._changed.clear()

    @property
    def floor(self) -> int | None:
        """The lowest offset of `delay` that a release still needs."""
        positions = [
            state.lot.position
            for state in self.moving.values()
            if isinstance(state, Cutting | Releasing) and state.lot.position is not None
        ]
        return min(positions, default=None)

    def close(self) -> None:
        """Read no more for this router."""
        self._reader.close()

    # -- what can be told -----------------------------------------------------------------------------------------

    def parked(self) -> int:
        """Tasks that are parked now."""
        lots = (state.lot for state in self.moving.values() if isinstance(state, Cutting | Releasing))
        return sum(lot.parked - lot.released for lot in lots)
