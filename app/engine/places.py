"""Places: what a worker can host, what it holds of each, and the way from an assignment to serving.

The decisions are :mod:`app.protocol.ownership`'s and :mod:`app.protocol.unit`'s; this module performs their effects:
fencing, reading offsets, restoring, claiming, opening.
"""

import asyncio
import logging
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Protocol

from app.engine.asking import Asking
from app.engine.fetch import Batch
from app.engine.membership import Assignment
from app.engine.offsets import Committed, Partition
from app.engine.producer import Answer
from app.engine.table import Rows
from app.errors import HoldfastError, LocalProtocolError
from app.protocol import ownership, suspects, unit
from app.protocol.ownership import Absent, Assigned, Claiming, Effect, Holding, Restoring, Role, Running

if TYPE_CHECKING:
    from app.engine.engine import Engine
    from app.engine.options import EngineOptions

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class PlaceKind:
    """A kind of place: ``count`` places, each with the same partition of all ``topics`` and ``tables``.

    ``topics`` are full names; a unit that only changes rows commits the offset of the first. ``tables`` maps table
    names to changelog topics.
    """

    name: str
    count: int
    topics: tuple[str, ...]
    tables: Mapping[str, str]

    def place(self, number: int) -> str:
        return f"{self.name}-{number}"


class Resident(Protocol):
    """An agent's part for one place that this worker serves. Made when the place opens, gone when it closes."""

    def perform(self, batch: Batch, until: float) -> None:
        """Handle the records from ``batch.start`` on, into the engine's open unit, and move ``batch.start``.

        It stops early, after one record at least, once ``until`` (monotonic clock, seconds) has passed.
        """

    def before_seal(self) -> None:
        """The unit is about to be sealed: write what is dirty into rows and outputs."""

    def busy(self) -> bool:
        """Is something about to end that the running unit had better wait for?"""

    def after_commit(self, offsets: Mapping[Partition, int]) -> None:
        """A unit was committed, with these offsets."""

    def due(self) -> float | None:
        """Unix time at which :meth:`on_time` wants to be called, or None."""

    def on_time(self, now: float) -> None:
        """``now`` is Unix time."""

    def hold(self, topic: str) -> int | None:
        """Commit this offset of ``topic`` instead of the position, or None."""

    def pausing(self) -> Sequence[Partition]:
        """Partitions to read no further for now, because too much waits."""

    def close(self) -> None:
        """Stop at once; nothing may reach a unit any more."""


@dataclass(slots=True)
class Place:
    """One place on this worker. ``rows`` is by table name; ``positions`` by topic, valid while running."""

    kind: PlaceKind
    number: int
    name: str
    holding: Holding = field(default_factory=Absent)
    rows: dict[str, Rows] = field(default_factory=dict)
    committed: dict[Partition, Committed] = field(default_factory=dict)
    owner_died: bool = False
    ends: dict[Partition, int] = field(default_factory=dict)
    suspicions: dict[bytes, bytes] = field(default_factory=dict)
    resident: Resident | None = None
    replayed: int = 0

    @property
    def partitions(self) -> list[Partition]:
        return [(topic, self.number) for topic in self.kind.topics]

    @property
    def running(self) -> bool:
        return isinstance(self.holding, Running)

    @property
    def served(self) -> Resident:
        """The resident of a place that is open."""
        assert self.resident is not None
        return self.resident


def _events(word: Assignment, worker: str, names: Iterable[str]) -> dict[str, Assigned]:
    """The group's word for every place."""
    hosted, followed = word.plan.hosted_by(worker), word.plan.followed_by(worker)
    return {
        name: Assigned(
            word.generation,
            Role.HOST if name in hosted else Role.STANDBY if name in followed else Role.NONE,
            word.previous,
        )
        for name in names
    }


class Places:
    """All places of the cluster as this worker holds them."""

    def __init__(self, engine: "Engine", options: "EngineOptions") -> None:
        self._engine = engine
        self._options = options
        self._tasks: set[asyncio.Task[None]] = set()
        self._claiming: list[Place] = []
        self._asking = Asking(options.kafka, options.group)
        self.all = {
            kind.place(number): Place(kind, number, kind.place(number))
            for kind in options.kinds
            for number in range(kind.count)
        }

    def running(self) -> list[Place]:
        return [place for place in self.all.values() if place.running]

    def open(self) -> list[Place]:
        """The places that have a resident now."""
        return [place for place in self.all.values() if place.resident is not None]

    def complete(self) -> frozenset[str]:
        """The places whose rows are complete here: those that are open, and those that are being claimed."""
        kept = (place for place in self.all.values() if place.resident or isinstance(place.holding, Claiming))
        return frozenset(place.name for place in kept)

    @property
    def restoring(self) -> bool:
        return any(isinstance(place.holding, Restoring | Claiming) for place in self.all.values())

    # -- events ---------------------------------------------------------------------------------------------------

    def assigned(self, word: Assignment, worker: str) -> None:
        self._steps((self.all[name], event) for name, event in _events(word, worker, self.all).items())

    def leaving(self, word: Assignment, worker: str) -> None:
        """As :meth:`assigned`, for a worker that is about to leave: it takes nothing that others would take from it."""
        for name, event in _events(word, worker, self.all).items():
            place = self.all[name]
            if event.role is Role.HOST and not ownership.stays(place.holding, event):
                event = Assigned(event.generation, Role.NONE, event.previous)
            self._steps([(place, event)])

    def all_stay(self, word: Assignment, worker: str) -> bool:
        """Does every place that is open go on being served?"""
        events = _events(word, worker, self.all)
        return all(ownership.stays(place.holding, events[place.name]) for place in self.open())

    def join_begun(self) -> None:
        self._steps((place, ownership.JoinBegun()) for place in self.all.values())

    def given_up(self) -> None:
        self._steps((place, ownership.GivenUp()) for place in self.all.values())

    def unit_aborted(self) -> None:
        self._steps((place, ownership.UnitAborted()) for place in self.all.values())

    def _steps(self, events: Iterable[tuple[Place, ownership.Event]]) -> None:
        """Step every place, then perform what takes time for all of them together."""
        restores: list[Place] = []
        for place, event in list(events):
            decided = ownership.step(place.holding, event)
            place.holding = decided.holding
            for effect in decided.effects:
                if effect is Effect.RESTORE:
                    restores.append(place)
                else:
                    self._perform(place, effect)
        if restores:
            self._spawn(self._restore(restores))

    def _perform(self, place: Place, effect: Effect) -> None:
        match effect:
            case Effect.CLOSE:
                self._close(place)
            case Effect.TAIL:
                place.committed = {}
                self._engine.changelog.follow(place.name, self._rows(place))
            case Effect.DROP:
                self._drop(place)
            case Effect.CLAIM:
                if not self._claiming:
                    asyncio.get_running_loop().call_soon(self._start_claims)
                self._claiming.append(place)
            case Effect.OPEN:
                self._engine.open(place)
            case Effect.RESTORE:
                raise LocalProtocolError("restores are performed for all places together")

    def _start_claims(self) -> None:
        """One transaction claims all places that became complete at about the same time."""
        claims, self._claiming = self._claiming, []
        self._spawn(self._claim(claims, self._engine.generation))

    def _close(self, place: Place) -> None:
        if place.resident is not None:
            place.resident.close()
            place.resident = None
            self._engine.flow.leave(place)
        for rows in place.rows.values():
            rows.discard()
        place.committed = {}
        place.owner_died = False

    def _drop(self, place: Place) -> None:
        stores = [rows.store for rows in place.rows.values()]
        place.rows = {}

        def close() -> None:
            for store in stores:
                store.close()

        self._engine.changelog.leave(place.name, close)

    def _rows(self, place: Place) -> list[Rows]:
        for table, topic in place.kind.tables.items():
            if table not in place.rows:
                place.rows[table] = Rows(self._options.stores.open(table, place.number), topic, place.number)
        return list(place.rows.values())

    # -- what takes time ------------------------------------------------------------------------------------------

    def _spawn(self, work: Any) -> None:
        task = asyncio.ensure_future(work)
        self._tasks.add(task)
        task.add_done_callback(self._ended)

    def _ended(self, task: asyncio.Task[None]) -> None:
        self._tasks.discard(task)
        if not task.cancelled() and (error := task.exception()) is not None:
            self._engine.fail(error)

    async def _restore(self, places: list[Place]) -> None:
        """Fence, read stable offsets, take the high watermarks, read the changelogs: in this order."""
        started = time.monotonic()
        generation = self._engine.generation
        partitions = [partition for place in places for partition in place.partitions]
        tags = await self._asking.offsets(lambda reader: reader.tags(partitions))
        await self._fence(tags.values())
        # What those have announced that are fenced now, read while the rest is asked for.
        announced = asyncio.ensure_future(self._asking.aside(self._engine.announcements.read))
        committed = await self._committed(partitions)
        changelogs = [(rows.topic, rows.partition) for place in places for rows in self._rows(place)]
        ends = await self._asking.offsets(lambda reader: reader.high_watermarks(changelogs))
        dead = [place for place in places if any(self._died(tags[where]) for where in place.partitions)]
        stream_ends = await self._asking.offsets(
            lambda reader: reader.high_watermarks(where for place in dead for where in place.partitions)
        )
        suspicions = await announced
        if generation != self._engine.generation:
            return
        for place in places:
            place.committed = {partition: committed[partition] for partition in place.partitions}
            self._check_offsets(place, ends)
            place.owner_died = place in dead
            place.ends = {where: stream_ends[where] for where in place.partitions if where in stream_ends}
            place.suspicions = suspects.about(place.number, suspicions) if place.kind.name == "server" else {}
            rows = self._rows(place)
            targets = {(entry.topic, entry.partition): ends[entry.topic, entry.partition] for entry in rows}
            self._engine.changelog.restore(place.name, rows, targets, self._restored(place, generation, started))

    @staticmethod
    def _check_offsets(place: Place, ends: Mapping[Partition, int]) -> None:
        """Rows without a committed offset: the broker has forgotten the group."""
        if place.committed[place.partitions[0]].fresh and any(
            ends[rows.topic, rows.partition] for rows in place.rows.values()
        ):
            raise HoldfastError(
                f"{place.name} has state, but the group has no offsets of ours for it: the broker forgets those of an "
                "empty group after offsets.retention.minutes. Restore them with kafka-consumer-groups --reset-offsets "
                "to where the work had come (the sources of the last results), or start a new namespace"
            )

    def _restored(self, place: Place, generation: int, started: float) -> Callable[[int], None]:
        def done(replayed: int) -> None:
            self._engine.post(lambda: finish(replayed))

        def finish(replayed: int) -> None:
            place.replayed = replayed
            self._engine.flow.tally.restored(replayed, time.monotonic() - started)
            log.info("%s: %d rows replayed in %.2f s", place.name, replayed, time.monotonic() - started)
            self._steps([(place, ownership.RestoreEnded(generation))])

        return done

    async def _fence(self, tags: Iterable[unit.Tag | None]) -> None:
        plan = self._engine.plan
        names = unit.to_fence(tags, plan.departed, plan.workers)
        if not names:
            return
        started = time.monotonic()
        await asyncio.gather(*(self._engine.fence(self._options.transactional_id(name)) for name in names))
        log.info("fenced %s in %.2f s", ", ".join(sorted(names)), time.monotonic() - started)

    async def _committed(self, partitions: Sequence[Partition]) -> dict[Partition, Committed]:
        """Stable offsets; where the group has none yet, the first offset that the topic has.

        Raises HoldfastError where the topic no longer has what is to be read next: that is not for us to pass over.
        """
        found: dict[Partition, Committed] = await self._asking.offsets(lambda reader: reader.committed(partitions))
        starts: dict[Partition, int] = await self._asking.offsets(lambda reader: reader.starts(partitions))
        for partition, entry in found.items():
            start = starts[partition]
            if entry.offset is None:
                found[partition] = Committed(start, None, fresh=True)
            elif entry.offset < start:
                raise HoldfastError(
                    f"{partition[0]}/{partition[1]}: the records from {entry.offset} to {start} were deleted unread: "
                    "raise the topic's retention.ms, and reset the group's offset there to go on without them"
                )
        return found

    async def _claim(self, places: list[Place], generation: int) -> None:
        """Commit the committed offsets again under the new generation, in our name.

        Only what is still being claimed in this very step: the broker asks whether we are a member of the generation,
        not whether the place is ours in it.
        """
        places = [place for place in places if place.holding == Claiming(generation)]
        unknown = [partition for place in places if not place.committed for partition in place.partitions]
        committed = await self._committed(unknown)
        places = [place for place in places if place.holding == Claiming(generation)]
        if generation != self._engine.generation or not places:
            return
        for place in places:
            if not place.committed:
                place.committed = {partition: committed[partition] for partition in place.partitions}
                # It may have been opened and closed again before a unit was committed: the log says whether.
                place.owner_died = any(self._died(entry.tag) for entry in place.committed.values())
        # What was served here before comes first: it is what others wait for.
        for inherited in (False, True):
            some = [place for place in places if place.owner_died is inherited]
            await self._claim_some(some, generation, inherited=inherited)

    def _died(self, tag: unit.Tag | None) -> bool:
        """Did the owner named by ``tag`` die with work in progress, or has it itself only inherited such work?"""
        workers = self._engine.plan.workers
        return unit.died(tag, workers, ((name, entry[1]) for name, entry in workers.items()))

    async def _claim_some(self, places: list[Place], generation: int, *, inherited: bool) -> None:
        offsets = {where: entry.offset or 0 for place in places for where, entry in place.committed.items()}
        if offsets:
            answer = await self._engine.flow.commit_offsets(offsets, inherited=inherited)
            self._engine.post(lambda: self._claimed(places, generation, answer))

    def _claimed(self, places: list[Place], generation: int, answer: Answer) -> None:
        accepted = answer is Answer.COMMITTED
        wanted = [place for place in places if place.holding == Claiming(generation)]
        self._steps((place, ownership.ClaimEnded(generation, accepted)) for place in wanted)
        if wanted and not accepted:
            self._engine.lost()

    def close(self) -> None:
        for task in list(self._tasks):
            task.cancel()
        for place in self.all.values():
            self._close(place)
        self._asking.close()
