"""The flow of records through the open unit: from fetched batches to a sealed unit, and back after its answer."""

import asyncio
import logging
import math
import time
from collections import deque
from collections.abc import Awaitable, Callable, Mapping, Sequence
from typing import Any, cast

from confluent_kafka import TIMESTAMP_NOT_AVAILABLE, Message

from app.engine.fetch import Batch, Chunk, Fetcher
from app.engine.offsets import Partition
from app.engine.options import EngineOptions
from app.engine.places import Place, Places, Resident
from app.engine.producer import Answer, Sealed
from app.engine.table import Rows
from app.engine.tally import Tally
from app.engine.unit_of_work import Committer, Submission, Unit
from app.engine.wire import Batches, Member
from app.errors import LocalProtocolError
from app.protocol.unit import Tag

log = logging.getLogger(__name__)

SETTLE_S = 0.003
"""So long after a commit an idle unit is not sealed yet, for two reasons.

The coordinator writes the markers of a transaction after it has answered, and makes whoever begins the next one earlier
come again. And what a unit made readable is mostly read within that time, if it is for this worker: a task goes from
its router to its server in two units that follow each other.
"""

SETTLE_MAX_S = 0.02
SLOW_S = 0.01
SLOW_COMMITS = 3
"""Where so many commits in a row took longer than :data:`SLOW_S` each, it is longer by twice what is beyond that.

They are those of a broker or a machine that has too much to do. Many small transactions would be more of it, and
each of them slower still; fewer ones take more records along. A single slow commit was a pause that is over.
"""

PACK_RECORDS = 256
"""After a batch of so many records its outputs are encoded at once, while they are in the processor's caches."""

Deliver = Callable[[Batch, Resident, float], Awaitable[None]]
"""Hands a batch to its agent, with the time to stop at, and returns when the agent has dealt with it."""


async def deliver_in_line(batch: Batch, resident: Resident, until: float) -> None:
    """Without an agent between."""
    resident.perform(batch, until)


class Flow:
    """The open unit, what is fetched for it, and the sealed unit that is on its way. The engine's loop owns it.

    Args:
        post: runs a callable in the engine's loop, from any thread.
        not_committed: told in the loop what became of a unit that did not commit.
        committed: told in the loop which offsets a unit has committed.
        lost_range: told in the loop that a partition no longer has its next record.
    """

    def __init__(
        self,
        options: EngineOptions,
        *,
        places: Places,
        committer: Committer,
        post: Callable[[Callable[[], None]], None],
        not_committed: Callable[[Submission], None],
        committed: Callable[[Mapping[Partition, int]], None],
        lost_range: Callable[[], None],
        failed: Callable[[BaseException], None],
    ) -> None:
        self.generation = -1
        self.member_id = ""
        self.deliver: Deliver = deliver_in_line
        self.progress = time.monotonic()
        self.tally = Tally()
        self.sealing: Callable[[Unit], None] | None = None
        """Sees the outputs of a unit before they are closed."""
        self.settled: Callable[[bool], None] | None = None
        """Is told whether the unit that was sealed last is committed."""
        self.begin_with_claims = 0.0
        """No unit is sealed until then (monotonic clock): it would hold up claims that follow soon."""
        self.unit = Unit(options.commit_interval)
        self.in_flight: Submission | None = None
        self._options = options
        self._places = places
        self._place_of = {partition: place for place in places.all.values() for partition in place.partitions}
        self._committer = committer
        self._post = post
        self._not_committed = not_committed
        self._committed = committed
        self._on_lost_range = lost_range
        self._backlog: deque[Chunk] = deque()
        self._positions: dict[Partition, int] = {}
        self._paused: frozenset[Partition] = frozenset()
        self._fetched_since: dict[Partition, int] = {}
        self._unit_number = 0
        self._hurried = self._alone = False
        self._settled_at = 0.0
        self._took = deque([0.0] * SLOW_COMMITS, SLOW_COMMITS)
        self.fetcher = Fetcher(
            options.kafka,
            options.group,
            (topic for kind in options.kinds for topic in kind.topics),
            deliver=lambda chunk: post(lambda: self._arrived(chunk)),
            lost_range=lambda where, epoch: post(lambda: self._lost_range(where, epoch)),
            failed=failed,
            max_record_bytes=options.max_record_bytes,
        )

    # -- in ---------------------------------------------------------------------------------------------------

    @property
    def may_work(self) -> bool:
        """Is there something to hand over, and room for it in the unit?"""
        if self._alone and self.in_flight is not None:
            return False
        return bool(self._backlog) and not (self.unit.full or self._hurried)

    async def work(self, interrupted: Callable[[], bool]) -> None:
        """Hand over what is fetched, one slice at a time, until the unit is due or something else is."""
        while self.may_work and not interrupted():
            batch = self._backlog[0].batches[-1]
            where = (batch.topic, batch.partition)
            resident = self._place_of[where].resident
            assert resident is not None
            if batch.start == 0 and batch.records[0].offset() < self._positions[where]:
                raise LocalProtocolError(f"{where} was fetched again from {batch.records[0].offset()}")
            before = batch.start
            now = time.monotonic()
            if before == 0:
                self._age(batch)
            await self.deliver(batch, resident, max(self.unit.deadline, now + self._options.commit_interval / 2))
            if batch.start == before:
                return  # the resident waits for a commit
            done = batch.start >= len(batch.records)
            position = batch.next_offset if done else batch.records[batch.start].offset()
            self._positions[where] = self.unit.offsets[where] = position
            self.unit.weight += batch.start - before
            self.unit.size += batch.size * (batch.start - before) // len(batch.records)
            self.progress = time.monotonic()
            self.tally.delivered(batch.topic, batch.start - before, self.progress - now)
            if batch.start - before >= PACK_RECORDS and self.sealing is None:
                self.unit.pack(PACK_RECORDS // 8, leave=self.tally.looks)
            if done:
                self._drop_batch()
            if self.progress >= self.unit.deadline:
                return

    def _age(self, batch: Batch) -> None:
        """One look at the clock of the first record stands for the batch."""
        kind, written_ms = cast("Message", batch.records[0]).timestamp()
        if kind != TIMESTAMP_NOT_AVAILABLE:
            self.tally.aged(batch.topic, time.time() - written_ms / 1000)

    def _drop_batch(self) -> None:
        chunk = self._backlog[0]
        chunk.batches.pop()
        if not chunk.batches:
            self._backlog.popleft()
            self.fetcher.taken()

    def _arrived(self, chunk: Chunk) -> None:
        self._backlog.append(chunk)
        self._sift()

    def _sift(self) -> None:
        """Drop from the backlog what was fetched of partitions that have been taken away since."""
        since, left = self._fetched_since, deque[Chunk]()
        for chunk in self._backlog:
            chunk.batches = [
                batch for batch in chunk.batches if since.get((batch.topic, batch.partition), math.inf) <= chunk.epoch
            ]
            if chunk.batches:
                left.append(chunk)
            else:
                self.fetcher.taken()
        self._backlog = left

    def _lost_range(self, where: Partition, epoch: int) -> None:
        """The topic no longer has what comes next here: a successor truncated it behind its work, or retention did."""
        if self._fetched_since.get(where, math.inf) <= epoch:
            self._on_lost_range()

    def fetch(self) -> None:
        """Fetch all partitions of the places that are open, from where this worker is in each.

        Those that are fetched already are left alone.
        """
        self._paused = self._pausing()
        wanted: dict[Partition, int] = {}
        for place in self._places.open():
            for where, entry in place.committed.items():
                offset = self._positions.setdefault(where, entry.offset or 0)
                if where not in self._paused:
                    wanted[where] = offset
        gone = self._fetched_since.keys() - wanted.keys()
        fresh = {where: offset for where, offset in wanted.items() if where not in self._fetched_since}
        if not (gone or fresh):
            return
        epoch = self.fetcher.change(gone, fresh)
        self._fetched_since = {where: self._fetched_since.get(where, epoch) for where in wanted}
        self._sift()

    def check_pauses(self) -> None:
        """Stop fetching for places that take no more for now, and start again when they do."""
        if self._paused != self._pausing():
            self.fetch()

    def _pausing(self) -> frozenset[Partition]:
        return frozenset(where for place in self._places.open() for where in place.served.pausing())

    # -- out --------------------------------------------------------------------------------------------------

    def hurry(self, *, alone: bool = False) -> None:
        """Seal the unit at once, before anything else is added to it; ``alone``: and wait until it is committed."""
        self.unit.deadline = 0.0
        self._hurried = self.touched
        self._alone = self._alone or alone

    @property
    def quiet(self) -> bool:
        """Is everything that was begun committed?"""
        return self.in_flight is None and not self.touched

    @property
    def touched(self) -> bool:
        """Is there anything to commit?"""
        return not self.unit.empty or any(rows.dirty for place in self._places.open() for rows in place.rows.values())

    @property
    def due(self) -> bool:
        """Is the open unit to be sealed?"""
        return time.monotonic() >= self.due_at

    @property
    def due_at(self) -> float:
        """When the open unit is to be sealed, on the monotonic clock; infinity while there is nothing to seal.

        At its deadline, at once when it is full, and as soon as the last commit has settled when nothing is left to
        be done; only one unit is on its way at a time.
        """
        if self.in_flight is not None or not self.touched:
            return math.inf
        if self.unit.full:
            return 0.0
        if self._backlog or any(place.served.busy() for place in self._places.open()):
            return max(self.unit.deadline, self.begin_with_claims)
        return max(min(self.unit.deadline, self._settled_at), self.begin_with_claims)

    def seal(self, *, released: bool = False) -> None:
        """Close the unit and send it to the commit thread; ``released``: with it every place is given up."""
        assert self.in_flight is None
        places = self._places.open()
        if not places and self.unit.empty:
            return
        for place in places:
            place.served.before_seal()
        if self.sealing is not None:
            self.sealing(self.unit)
        unit, self.unit, self._hurried = self.unit, Unit(self._options.commit_interval), False
        rows = [found for place in places for found in self._seal_rows(place, unit)]
        if released:
            sealed_rows = {id(found) for found, _ in rows}
            rows += [(own, {}) for place in places for own in place.rows.values() if id(own) not in sealed_rows]
        for place in places:
            if released:
                for where in place.partitions:
                    unit.offsets.setdefault(where, self._positions[where])
            for where in place.partitions:
                held = place.served.hold(where[0]) if where in unit.offsets else None
                if held is not None:
                    unit.offsets[where] = held
        looked = unit.of(self.tally.looks.keys())
        unit.pack()
        sealed = self._sealed(unit.packed, unit.others, unit.offsets, released=released)
        self.in_flight = Submission(
            sealed,
            self.generation,
            rows,
            checkpoint=released,
            failed=unit.failed,
            looked=looked,
            answered=self._answered_in_thread,
        )
        self._committer.submit(self.in_flight)

    def _seal_rows(self, place: Place, unit: Unit) -> list[tuple[Rows, Mapping[bytes, bytes | None]]]:
        """Changed rows become changelog records; the unit commits an offset of the place, so that it is fenced."""
        sealed = [(rows, rows.seal()) for rows in place.rows.values() if rows.dirty]
        for rows, changes in sealed:
            unit.packing((rows.topic, rows.partition)).add(changes.items(), time.time_ns() // 1_000_000)
        if sealed:
            unit.offsets.setdefault(place.partitions[0], self._positions[place.partitions[0]])
        return sealed

    def _sealed(
        self,
        records: Mapping[Partition, Batches],
        others: Sequence[dict[str, Any]],
        offsets: Mapping[Partition, int],
        *,
        released: bool = False,
        inherited: bool = False,
    ) -> Sealed:
        self._unit_number += 1
        options = self._options
        return Sealed(
            tag=Tag(options.name, options.incarnation, self._unit_number, released, inherited),
            member=Member(options.group, self.generation, self.member_id),
            records=records,
            others=others,
            offsets=offsets,
        )

    def begin_with(self, place: Place) -> None:
        """The open unit, whatever else it does, commits the offsets of a place that has just been opened."""
        for where in place.partitions:
            self.unit.offsets.setdefault(where, self._positions[where])

    async def commit_offsets(self, offsets: Mapping[Partition, int], *, inherited: bool) -> Answer:
        """Commit offsets in a unit of their own, behind the one that is under way.

        ``inherited``: they are those of places whose former owner died.
        """
        self.begin_with_claims = 0.0
        loop = asyncio.get_running_loop()
        done: asyncio.Future[Answer] = loop.create_future()

        def answer(found: Answer) -> None:
            # Whoever asked may be gone: a worker that stops waits for no claims.
            if not done.done():
                done.set_result(found)

        def answered(submission: Submission) -> None:
            assert submission.answer is not None
            loop.call_soon_threadsafe(answer, submission.answer)

        self._committer.submit(
            Submission(self._sealed({}, (), offsets, inherited=inherited), self.generation, answered=answered)
        )
        return await done

    # -- back -------------------------------------------------------------------------------------------------

    def _answered_in_thread(self, submission: Submission) -> None:
        self._post(lambda: self._answered(submission))

    def _answered(self, submission: Submission) -> None:
        if submission is not self.in_flight:
            return  # given up when a new generation began: the commit thread had refused it
        self.in_flight = None
        self._alone = False
        self._count(submission)
        if submission.answer is not Answer.COMMITTED:
            self._not_committed(submission)
            return
        now = time.monotonic()
        self._took.append(now - submission.at)
        self._settled_at = now + min(SETTLE_S + 2 * max(0.0, min(self._took) - SLOW_S), SETTLE_MAX_S)
        for rows, _ in submission.rows:
            rows.settled()
        for place in self._places.open():
            place.served.after_commit(submission.unit.offsets)
        self._committed(submission.unit.offsets)

    def _count(self, submission: Submission) -> None:
        assert submission.answer is not None
        tally = self.tally
        committed = submission.answer is Answer.COMMITTED
        tally.units[submission.answer.value] += 1
        if committed:
            tally.commit_s.observe(time.monotonic() - submission.at)
            tally.failed_tasks += submission.failed
            tally.committed(submission.written, submission.looked)
        if self.settled is not None:
            self.settled(committed)

    def forget(self) -> None:
        """Nothing that is not committed has happened."""
        self.unit = Unit(self._options.commit_interval)
        self._hurried = self._alone = False

    def leave(self, place: Place) -> None:
        """A place is closed, whatever was fetched for it: where it goes on is for the log to say."""
        for where in place.partitions:
            self._positions.pop(where, None)
        self.fetch()

    def begin(self, generation: int, member_id: str) -> None:
        """A new generation: a unit that is still on its way was sealed under an older one, and is refused."""
        self.in_flight = None
        self.generation = generation
        self.member_id = member_id
