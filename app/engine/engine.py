"""The engine of a worker: one loop that hands batches to agents and seals units of work.

Everything that changes what the worker owns, and everything that fills a unit, happens in this loop, one thing at a
time: answers of the commit thread, assignments of the group, records, timers. Threads around it only wait for the
network. So an agent never sees its place open or close in the middle of a batch.
"""

import asyncio
import logging
import time
from collections import deque
from collections.abc import Awaitable, Callable, Mapping, Sequence
from typing import Any

from app.engine.announcements import Announcements
from app.engine.changelog import Changelog
from app.engine.crashpoints import passing
from app.engine.fetch import Batch, Chunk, Fetcher
from app.engine.janitor import Janitor
from app.engine.membership import Assignment, Callbacks, Membership
from app.engine.offsets import Partition, group_metadata
from app.engine.places import Place, PlaceKind, Places, Resident
from app.engine.producer import Answer, Sealed
from app.engine.stores import StoreFactory
from app.engine.unit_of_work import Committer, Submission, Unit
from app.engine.table import Rows
from app.errors import FencedError, HoldfastError, LocalProtocolError
from app.protocol.group_data import GroupPlan, MemberData
from app.protocol.unit import Tag, died

log = logging.getLogger(__name__)

JOIN_GRACE_S = 1.5
"""How long a join waits for the running unit; then the unit is given up, so that a slow handler holds up nobody else."""

HOUSEKEEPING_S = 0.5

NO_PLAN = GroupPlan({}, {}, {}, {}, frozenset(), frozenset())


class Engine:
    """One worker's engine.

    Args:
        name: the worker's name; its transactional id follows from it.
        url: where the worker's HTTP server answers, told to the group.
        incarnation: its start, milliseconds since the epoch.
        kinds: the places of the cluster.
        deliver: hands a batch to its agent and returns when the agent is done with it.
        residents: by kind, makes the agent's part for a place that opens.
        config: librdkafka options common to all clients.
        membership_client: keyword arguments of aiokafka's client.
    """

    def __init__(
        self,
        *,
        name: str,
        url: str,
        incarnation: int,
        group: str,
        transactional_id: Callable[[str], str],
        kinds: Sequence[PlaceKind],
        stores: StoreFactory,
        standby_replicas: int,
        commit_interval: float,
        max_record_bytes: int,
        config: Mapping[str, Any],
        membership_client: Mapping[str, Any],
        announcements: Announcements,
        janitor: Janitor,
    ) -> None:
        self.name = name
        self.url = url
        self.incarnation = incarnation
        self.group = group
        self.announcements = announcements
        self.janitor = janitor
        self.kinds = kinds
        self.halted = True
        self.plan = NO_PLAN
        self.generation = -1
        self.residents: dict[str, Callable[[Place], Resident]] = {}
        self.deliver: Callable[[Batch, Resident, float], Awaitable[None]] = _in_line
        self.unit = Unit(commit_interval)
        self.committed_units = 0
        self.progress = time.monotonic()
        self._commit_interval = commit_interval
        self._loop = asyncio.get_running_loop()
        self._wake = asyncio.Event()
        self._events: deque[Callable[[], None]] = deque()
        self._backlog: deque[Chunk] = deque()
        self._positions: dict[Partition, int] = {}
        self._epoch = 0
        self._hosted: frozenset[str] = frozenset()
        self._in_flight: Submission | None = None
        self._unit_number = 0
        self._member_id = ""
        self._failure: BaseException | None = None
        self._stop = False
        self._hurried = False
        self._paused: frozenset[Partition] = frozenset()
        self._housekeeping = 0.0
        self._rejoin_when_warm = False
        self.committer = Committer(
            config,
            transactional_id=transactional_id(name),
            group=group,
            max_record_bytes=max_record_bytes,
            failed=self._fail_from_thread,
        )
        self.changelog = Changelog(
            config, f"{group}-changelog", failed=self._fail_from_thread, max_record_bytes=max_record_bytes
        )
        self.fetcher = Fetcher(
            config,
            group,
            deliver=lambda chunk: self.post(lambda: self._arrived(chunk)),
            lost_range=lambda where: self.post(lambda: self._lost_range(where)),
            failed=self._fail_from_thread,
            max_record_bytes=max_record_bytes,
        )
        self.places = Places(self, kinds, stores, config, transactional_id)
        self._place_of = {
            partition: place for place in self.places.all.values() for partition in place.partitions
        }
        self.membership = Membership(
            group=group,
            places={place.name: place.partitions for place in self.places.all.values()},
            standby_replicas=standby_replicas,
            client=membership_client,
            callbacks=Callbacks(
                before_join=self._before_join,
                describe=self._describe,
                assigned=lambda word: self.post(lambda: self._assigned(word)),
                failed=self._fail_from_thread,
            ),
        )

    # -- for agents and places, in the loop's thread --------------------------------------------------------------

    def wake(self) -> None:
        """Something happened that the loop should look at: a handler ended, a timer moved."""
        self._wake.set()

    def hurry(self) -> None:
        """Seal the unit at once, before anything else is added to it."""
        self.unit.deadline = 0.0
        self._hurried = True

    def post(self, event: Callable[[], None]) -> None:
        """Run ``event`` in the loop, between two things. From any thread."""
        self._events.append(event)
        self._loop.call_soon_threadsafe(self._wake.set)

    def fail(self, error: BaseException) -> None:
        """End the worker: nothing that is not committed has happened."""
        if self._failure is None:
            self._failure = error
        self._wake.set()

    def _fail_from_thread(self, error: BaseException) -> None:
        self.post(lambda: self.fail(error))

    def died(self, tag: Tag | None) -> bool:
        """Did the owner named by ``tag`` die with work in progress?"""
        workers = self.plan.workers
        return died(tag, workers, ((name, incarnation) for name, (_, incarnation) in workers.items()))

    def open(self, place: Place) -> None:
        """Serve ``place`` from its committed offsets."""
        place.resident = self.residents[place.kind.name](place)
        self._assign_fetch()
        log.debug("%s is open", place.name)

    def lost(self, answer: Answer) -> None:
        """A commit was refused or fenced: this worker owns nothing any more until it has joined again."""
        if not self.halted:
            log.info("commit %s: joining the group again", answer.value)
        self._part()
        self._hosted = frozenset()
        self.membership.rejoin()

    async def commit_offsets(self, offsets: Mapping[Partition, int]) -> Answer:
        """Commit offsets in a unit of their own, behind the ones that are under way."""
        done: asyncio.Future[Answer] = self._loop.create_future()

        def answered(submission: Submission) -> None:
            assert submission.answer is not None
            self._loop.call_soon_threadsafe(done.set_result, submission.answer)

        self.committer.submit(Submission(self._sealed({}, (), offsets), self.generation, answered=answered))
        return await done

    # -- the loop -------------------------------------------------------------------------------------------------

    async def run(self) -> None:
        """Serve until :meth:`stop`; raises what ended the worker otherwise."""
        await asyncio.wrap_future(self.committer.start())
        self.changelog.start()
        self.fetcher.start()
        self.membership.start()
        try:
            while not (self._stop and self._idle()):
                await self._turn()
                if self._failure is not None:
                    raise self._failure
        finally:
            await self._close()

    def stop(self) -> None:
        """Finish the unit of work, leave the group, end :meth:`run`."""
        self._stop = True
        self._wake.set()

    def _idle(self) -> bool:
        """Ready to end: what was begun is committed (or cannot be, and was given up)."""
        if self._in_flight is None and not self.halted:
            self.halted = True
            self._backlog.clear()
            self.fetcher.assign({})
            self._seal(released=True)
        return self._in_flight is None

    async def _turn(self) -> None:
        while self._events:
            self._events.popleft()()
        if not self.halted:
            if self._paused != self._pausing():
                self._assign_fetch()
            await self._work()
            self._on_time()
            if self._due_to_seal():
                self._seal()
        await self._rest()

    async def _work(self) -> None:
        """Hand over what is fetched, one slice at a time, while the unit may grow."""
        while self._may_work():
            batch = self._backlog[0].batches[-1]
            place = self._place_of[batch.topic, batch.partition]
            assert place.resident is not None
            where = (batch.topic, batch.partition)
            if batch.start == 0 and batch.records[0].offset() < self._positions[where]:
                raise LocalProtocolError(f"{where} was fetched again from {batch.records[0].offset()}")
            before = batch.start
            now = time.monotonic()
            await self.deliver(batch, place.resident, max(self.unit.deadline, now + self._commit_interval / 2))
            if batch.start == before:
                return  # the resident waits for a commit
            done = batch.start >= len(batch.records)
            position = batch.next_offset if done else batch.records[batch.start].offset()
            self._positions[where] = self.unit.offsets[where] = position
            self.unit.weight += batch.start - before
            self.progress = time.monotonic()
            if done:
                self._drop_batch()
            if self.progress >= self.unit.deadline:
                return

    def _may_work(self) -> bool:
        return bool(self._backlog) and not (
            self._events or self.unit.full or self.halted or self._stop or self._hurried
        )

    def _drop_batch(self) -> None:
        chunk = self._backlog[0]
        chunk.batches.pop()
        if not chunk.batches:
            self._backlog.popleft()
            self.fetcher.taken(chunk)

    def _on_time(self) -> None:
        now = time.time()
        for place in self.places.running():
            if place.resident is not None:
                due = place.resident.due()
                if due is not None and due <= now:
                    place.resident.on_time(now)

    def _touched(self) -> bool:
        return not self.unit.empty or any(
            rows.dirty for place in self.places.running() for rows in place.rows.values()
        )

    def _busy(self) -> bool:
        return any(place.resident is not None and place.resident.busy() for place in self.places.running())

    def _due_to_seal(self) -> bool:
        """Idle input, a deadline, or a full unit; and only one unit is on its way at a time."""
        if self._in_flight is not None or not self._touched():
            return False
        return self.unit.full or time.monotonic() >= self.unit.deadline or not (self._backlog or self._busy())

    def _seal(self, *, released: bool = False) -> None:
        """Close the unit and send it to the commit thread."""
        places = self.places.running()
        if not places:
            return
        for place in places:
            if place.resident is not None:
                place.resident.before_seal()
        unit, self.unit = self.unit, Unit(self._commit_interval)
        self._hurried = False
        dirty: list[tuple[Rows, Mapping[bytes, bytes | None]]] = []
        for place in places:
            touched = [rows for rows in place.rows.values() if rows.dirty]
            if touched or released:
                main = place.partitions[0]
                unit.offsets.setdefault(main, self._positions[main])
            for rows in touched:
                changes = rows.seal()
                dirty.append((rows, changes))
                unit.output(rows.topic, rows.partition).extend(
                    [{"key": key, "value": row} for key, row in changes.items()]
                )
            if released:
                for where in place.partitions:
                    unit.offsets.setdefault(where, self._positions[where])
        self._hold(places, unit.offsets)
        sealed = self._sealed(unit.records, unit.others, unit.offsets, released=released)
        self._in_flight = Submission(sealed, self.generation, dirty, answered=self._answered_in_thread)
        self.committer.submit(self._in_flight)

    @staticmethod
    def _hold(places: Sequence[Place], offsets: dict[Partition, int]) -> None:
        for place in places:
            for topic, number in place.partitions:
                if place.resident is not None and (topic, number) in offsets:
                    held = place.resident.hold(topic)
                    if held is not None:
                        offsets[topic, number] = held

    def _sealed(
        self,
        records: Mapping[Partition, list[dict[str, Any]]],
        others: Sequence[dict[str, Any]],
        offsets: Mapping[Partition, int],
        *,
        released: bool = False,
    ) -> Sealed:
        self._unit_number += 1
        return Sealed(
            tag=Tag(self.name, self.incarnation, self._unit_number, released),
            group_metadata=group_metadata(self.group, self.generation, self._member_id),
            records=records,
            others=others,
            offsets=offsets,
        )

    async def _rest(self) -> None:
        """Wait for something to do, at most until the next deadline."""
        now = time.monotonic()
        if now >= self._housekeeping:
            self._housekeeping = now + HOUSEKEEPING_S
            self._keep_house()
        if self._events or self._may_work():
            await asyncio.sleep(0)
            return
        until = self._housekeeping
        if not self.halted and self._in_flight is None and self._touched():
            until = min(until, self.unit.deadline)
        wall = time.time()
        for place in self.places.running():
            due = place.resident.due() if place.resident is not None else None
            if due is not None:
                until = min(until, now + max(0.0, due - wall))
        try:
            async with asyncio.timeout(max(0.0, until - now)):
                await self._wake.wait()
        except TimeoutError:
            return
        self._wake.clear()

    def _keep_house(self) -> None:
        if self._rejoin_when_warm and self._warmed_up():
            self._rejoin_when_warm = False
            self.membership.rejoin()

    def _warmed_up(self) -> bool:
        mine = {place for place, name in self.plan.warmups.items() if name == self.name}
        return bool(mine) and mine <= self.changelog.warm()

    # -- records --------------------------------------------------------------------------------------------------

    def _arrived(self, chunk: Chunk) -> None:
        if chunk.epoch == self._epoch:
            self._backlog.append(chunk)

    def _lost_range(self, where: Partition) -> None:
        """Retention removed records that nobody had read: say so loudly, and go on with what is there."""
        if where in self._positions:
            log.error(
                "%s/%d: the records from offset %d on were deleted by the topic's retention before they were read; "
                "raise the topic's retention.ms, or add workers",
                *where,
                self._positions[where],
            )
            self.fail(HoldfastError(f"{where[0]}/{where[1]}: unread records were deleted; reset the group's offset to go on"))

    def _assign_fetch(self) -> None:
        """Fetch all partitions of the places that are open, from where this worker is in each."""
        positions: dict[Partition, int] = {}
        for place in self.places.running():
            if place.resident is None:
                continue
            for where, entry in place.committed.items():
                positions[where] = self._positions.get(where, entry.offset or 0)
        self._positions = positions
        self._backlog.clear()
        self._paused = self._pausing()
        self._epoch = self.fetcher.assign({w: o for w, o in positions.items() if w not in self._paused})

    def _pausing(self) -> frozenset[Partition]:
        """Partitions whose places take no more for now; everything else goes on."""
        return frozenset(
            where
            for place in self.places.running()
            if place.resident is not None
            for where in place.resident.pausing()
        )

    # -- answers --------------------------------------------------------------------------------------------------

    def _answered_in_thread(self, submission: Submission) -> None:
        self.post(lambda: self._answered(submission))

    def _answered(self, submission: Submission) -> None:
        if submission is not self._in_flight:
            return  # given up when a new generation began; the commit thread refused it, or had committed it before
        self._in_flight = None
        if submission.answer is Answer.COMMITTED:
            self.committed_units += 1
            self.janitor.committed(submission.unit.offsets)
            for rows, _ in submission.rows:
                rows.settled()
            for place in self.places.running():
                if place.resident is not None:
                    place.resident.after_commit(submission.unit.offsets)
            return
        assert submission.answer is not None
        if submission.answer is Answer.ABORTED and not self.halted:
            log.info("unit %d aborted: its records are read again", submission.unit.tag.unit)
            self._forget_unit()
            self.places.unit_aborted()
            self._assign_fetch()
        else:
            self.lost(submission.answer)

    def _forget_unit(self) -> None:
        self.unit = Unit(self._commit_interval)
        self._positions = {}
        self._backlog.clear()

    # -- the group ------------------------------------------------------------------------------------------------

    def _describe(self) -> MemberData:
        """What the group is told at a join; called in the membership thread, when nothing is owned any more."""
        return MemberData(
            name=self.name,
            url=self.url,
            incarnation=self.incarnation,
            hosts=frozenset(self._hosted),
            warm=frozenset(self._hosted) | self.changelog.warm(),
            knows=frozenset(self.plan.workers),
        )

    async def _before_join(self) -> None:
        """End the running unit; called in the membership thread. After it no transaction is open."""
        passing("in-rebalance")
        done = asyncio.run_coroutine_threadsafe(self._release(), self._loop)
        try:
            await asyncio.wait_for(asyncio.shield(asyncio.wrap_future(done)), JOIN_GRACE_S)
        except TimeoutError:
            log.info("a handler is still running: its unit is given up for the rebalance")
        await asyncio.get_running_loop().run_in_executor(None, self.committer.block)

    async def _release(self) -> None:
        """Seal what there is, wait for its answer, then part from everything."""
        released: asyncio.Future[None] = self._loop.create_future()
        generation = self.generation

        def go_on() -> None:
            if self.generation != generation:
                released.set_result(None)  # too late: the next generation has begun without us
            elif self._in_flight is not None:
                self._loop.call_later(0.001, lambda: self.post(go_on))
            elif not self.halted:
                self.halted = True
                self._seal(released=True)
                go_on()
            else:
                self._part()
                released.set_result(None)

        self.post(go_on)
        await released

    def _part(self) -> None:
        """Own nothing: what is not committed has not happened."""
        self.halted = True
        running = frozenset(place.name for place in self.places.running())
        if running:
            self._hosted = running
        self._forget_unit()
        self.janitor.forget()
        self.places.join_begun()
        self._epoch = self.fetcher.assign({})

    def _assigned(self, word: Assignment) -> None:
        if word.member_id in word.plan.superseded:
            theirs = word.plan.workers.get(self.name, ("", 0))[1]
            raise FencedError(f"worker {self.name}", ours=self.incarnation, theirs=theirs)
        self._part()
        self._in_flight = None
        self.generation, self._member_id = word.generation, word.member_id
        self.plan = word.plan
        self._hosted = word.plan.hosted_by(self.name) & self._hosted
        self._rejoin_when_warm = any(name == self.name for name in word.plan.warmups.values())
        self.committer.allow(word.generation)
        self.halted = False
        self.places.assigned(word, self.name)

    async def _close(self) -> None:
        """Leave the group at once, then let go of everything."""
        self.halted = True
        await asyncio.get_running_loop().run_in_executor(None, self.membership.leave)
        self.places.close()
        await asyncio.get_running_loop().run_in_executor(None, self._stop_threads)

    def _stop_threads(self) -> None:
        self.fetcher.stop()
        self.changelog.stop()
        self.committer.stop()


async def _in_line(batch: Batch, resident: Resident, until: float) -> None:
    resident.perform(batch, until)
