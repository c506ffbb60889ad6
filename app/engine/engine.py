"""The engine of a worker: one loop that hands batches to agents, seals units of work and follows the group.

Everything that changes what the worker owns, and everything that fills a unit, happens in this loop, one thing at a
time: answers of the commit thread, assignments of the group, records, timers. Threads around it only wait for the
network. So an agent never sees its place open or close in the middle of a batch.
"""

import asyncio
import logging
import math
import time
from collections import deque
from collections.abc import Callable, Mapping
from concurrent.futures import Future

from app.engine import interpreter
from app.engine.announcements import Announcements
from app.engine.changelog import Changelog
from app.engine.crashpoints import passing
from app.engine.flow import Flow
from app.engine.janitor import Janitor
from app.engine.membership import Assignment, Callbacks, Membership
from app.engine.offsets import Partition
from app.engine.options import EngineOptions
from app.engine.places import Place, Places, Resident
from app.engine.producer import Answer
from app.engine.unit_of_work import Committer, Submission, Unit
from app.errors import FencedError
from app.protocol.group_data import NO_PLAN, MemberData

log = logging.getLogger(__name__)

JOIN_GRACE_S = 1.5
"""How long a join waits for the running unit; then it is given up, so that a slow handler holds up nobody else."""

STOP_S = 4.0
"""How long a stop waits for the unit that is being committed."""

HOUSEKEEPING_S = 0.5

CLAIMS_S = 0.1
"""So long the first unit of a generation lets claims of other places go before it."""

PATIENCE_S = 2.0
"""So long a worker with warm rows lets a rebalance come to its end before it asks for the next one."""


class Engine:
    """One worker's engine; make it in the event loop that it is to run in.

    ``residents`` must be set before :meth:`run`: by kind of place, what makes the agent's part when a place opens.
    ``farewell``: topic, partition, key and value of what a worker writes before it leaves the group in good order.
    """

    def __init__(self, options: EngineOptions) -> None:
        self.options = options
        self.plan = NO_PLAN
        self.generation = -1
        self.halted = True
        self.residents: dict[str, Callable[[Place], Resident]] = {}
        self.farewell: tuple[str, int, bytes, bytes] | None = None
        self._loop = asyncio.get_running_loop()
        self._wake = asyncio.Event()
        self._events, self._work = deque[Callable[[], None]](), deque[Callable[[], None]]()
        self._hosted: frozenset[str] = frozenset()
        self._failure: BaseException | None = None
        self.failing = False  # The worker ends because of an error: what it was doing may be the cause.
        self._stop, self._stop_at = False, 0.0
        self._said: bool | None = None
        self._join = 0
        self._housekeeping = 0.0
        self._rejoin_by = math.inf
        self.announcements = Announcements(options.kafka, options.suspects)
        self.changelog = Changelog(
            options.kafka,
            f"{options.group}-changelog",
            failed=self._fail_from_thread,
            max_record_bytes=options.max_record_bytes,
        )
        self._committer = Committer(
            options.kafka,
            client=options.membership_client,
            transactional_id=options.transactional_id(options.name),
            group=options.group,
            failed=self._fail_from_thread,
        )
        self.places = Places(self, options)
        self.flow = Flow(
            options,
            places=self.places,
            committer=self._committer,
            post=self.post,
            not_committed=self._not_committed,
            committed=self._committed,
            lost_range=self.lost,
            failed=self._fail_from_thread,
        )
        self.janitor = Janitor(
            options.kafka,
            options.membership_client,
            options.group,
            streams=[place.partitions[0] for place in self.places.all.values()],
            truncated=options.truncated,
        )
        self._membership = self._make_membership()

    def _make_membership(self) -> Membership:
        options = self.options
        return Membership(
            group=options.group,
            name=options.name,
            incarnation=options.incarnation,
            bind=options.bind,
            host=options.host,
            places={place.name: place.partitions for place in self.places.all.values()},
            standby_replicas=options.standby_replicas,
            client=options.membership_client,
            transactional_id=options.transactional_id,
            callbacks=Callbacks(
                before_join=self._before_join,
                describe=self._describe,
                assigned=lambda word: self.post(lambda: self._assigned(word)),
                failed=self._fail_from_thread,
            ),
        )

    # -- for agents and places, in the loop's thread --------------------------------------------------------------

    @property
    def unit(self) -> Unit:
        """The open unit of work."""
        return self.flow.unit

    def hurry(self) -> None:
        """Seal the unit at once, before anything else is added to it."""
        self.flow.hurry()

    def wake(self) -> None:
        """Something happened that the loop should look at: a handler ended, a timer moved."""
        self._wake.set()

    def post(self, event: Callable[[], None]) -> None:
        """Run ``event`` in the loop, between two things. From any thread."""
        self._events.append(event)
        self._loop.call_soon_threadsafe(self._wake.set)

    def submit(self, work: Callable[[], None]) -> None:
        """As :meth:`post`, for what writes to the unit: it waits until a join that is under way has ended."""
        self._work.append(work)
        self._loop.call_soon_threadsafe(self._wake.set)

    def fail(self, error: BaseException) -> None:
        """End the worker: nothing that is not committed has happened."""
        if self._failure is None:
            self._failure = error
        self._wake.set()

    def _fail_from_thread(self, error: BaseException) -> None:
        self.post(lambda: self.fail(error))

    def open(self, place: Place) -> None:
        """Serve ``place`` from its committed offsets."""
        place.resident = self.residents[place.kind.name](place)
        self.flow.fetch()
        if place.owner_died:
            # The next owner need not hear of that death again once the unit is committed that begins with it.
            self.flow.begin_with(place)
        log.debug("%s is open", place.name)

    def lost(self) -> None:
        """A commit was refused, or records are gone: this worker owns nothing any more until it has joined again."""
        self._part()
        self._hosted = frozenset()
        if not self._committer.joining(self._join):
            log.info("joining the group again")
            self._membership.rejoin()

    async def fence(self, transactional_id: str) -> None:
        """End what a worker that is gone left open, and refuse what it may still send."""
        await asyncio.wrap_future(self._membership.fence(transactional_id))

    # -- the loop -------------------------------------------------------------------------------------------------

    async def run(self) -> None:
        """Serve until :meth:`stop`; raises what ended the worker otherwise."""
        interpreter.tune()
        started = self._committer.start()
        self.announcements.prepare()
        while not started.done() and not self._stop:
            await asyncio.wait({asyncio.wrap_future(started)}, timeout=HOUSEKEEPING_S)
        for thread in (self.changelog, self.flow.fetcher, self.janitor, self._membership):
            thread.start()
        try:
            while not (self._stop and self._finish()):
                await self._turn()
        except BaseException:
            self.failing = True
            raise
        finally:
            await self._close()

    def stop(self) -> None:
        """Finish the unit of work, leave the group, end :meth:`run`."""
        log.info("stopping")
        self._stop = True
        self._stop_at = time.monotonic() + STOP_S
        self._wake.set()

    def _finish(self) -> bool:
        """Commit what was begun, give every place up and take leave with it; True when that is done, or takes too long.

        Who leaves without that word counts as dead. While a join is under way nothing can be written: it is awaited.
        """
        if self.flow.in_flight is None and not self.halted:
            self.halted = True
            self._said = False
            if self.farewell is not None:
                topic, partition, key, value = self.farewell
                self.flow.unit.output(topic, partition).append((key, value))
            self.flow.seal(released=True)
        if self.generation < 0 or time.monotonic() > self._stop_at:
            return True
        return self.flow.in_flight is None and bool(self._said)

    async def _turn(self) -> None:
        while self._events:
            self._events.popleft()()
        if self._failure is not None:
            raise self._failure
        while self._work and not self.halted:
            self._work.popleft()()
        if not (self.halted or self._stop):
            self.flow.check_pauses()
            await self.flow.work(self._interrupted)
            self._on_time()
            if self.flow.due:
                self.flow.seal()
        await self._rest()

    def _interrupted(self) -> bool:
        return bool(self._events or self._work) or self._stop or self.halted

    def _on_time(self) -> None:
        now = time.time()
        for place in self.places.open():
            due = place.served.due()
            if due is not None and due <= now:
                place.served.on_time(now)

    async def _rest(self) -> None:
        """Wait for something to do, at most until the next deadline."""
        now = time.monotonic()
        if now >= self._housekeeping:
            self._housekeeping = now + HOUSEKEEPING_S
            self._rejoin_if_warm()
        go_on = bool(self._work or self.flow.may_work) and not self.halted
        if self._stop:
            go_on = self.flow.in_flight is None and bool(self._said or not self.halted)
        if self._events or go_on:
            await asyncio.sleep(0)
            return
        try:
            async with asyncio.timeout(max(0.0, self._until(now) - now)):
                await self._wake.wait()
        except TimeoutError:
            return
        self._wake.clear()

    def _until(self, now: float) -> float:
        """The next time at which something is due, on the monotonic clock."""
        until = self._housekeeping
        if self.halted:
            return until
        until = min(until, self.flow.due_at)
        wall = time.time()
        for place in self.places.open():
            due = place.served.due()
            if due is not None:
                until = min(until, now + max(0.0, due - wall))
        return until

    # -- answers of the commit thread -----------------------------------------------------------------------------

    def _committed(self, offsets: Mapping[Partition, int]) -> None:
        if self._said is not None:
            self._said = True
        self.janitor.committed(offsets)

    def _not_committed(self, submission: Submission) -> None:
        assert submission.answer is not None
        if submission.answer is Answer.ABORTED and not self.halted:
            log.info("unit %d aborted: its records are read again", submission.unit.tag.unit)
            self.flow.forget()
            self.places.unit_aborted()
            self.flow.fetch()
        else:
            self.lost()

    # -- the group ------------------------------------------------------------------------------------------------

    def _describe(self) -> MemberData:
        """What the group is told at a join; called in the membership thread, when nothing is owned any more."""
        options = self.options
        return MemberData(
            name=options.name,
            url=options.url,
            incarnation=options.incarnation,
            hosts=self._hosted,
            warm=self._hosted | self.changelog.warm(),
            knows=frozenset(self.plan.workers),
        )

    async def _before_join(self, join: int) -> None:
        """End the running unit; called in the membership thread. After it no transaction is open."""
        passing("in-rebalance")
        done: Future[None] = Future()
        self.post(lambda: self._give_up(join, done))
        try:
            async with asyncio.timeout(JOIN_GRACE_S):
                await asyncio.wrap_future(done)
        except TimeoutError:
            log.info(
                "the unit does not end in time (a handler runs, or the broker is slow): given up for the rebalance"
            )
        await asyncio.get_running_loop().run_in_executor(None, self._committer.block, join)

    def _give_up(self, join: int, done: "Future[None]") -> None:
        """Seal what there is, wait for its answer, then go no further: an event of the loop, as often as needed.

        It may come late, behind a handler that blocked the loop; but never behind the assignment that answers a later
        join, and what that one gave is not given up.
        """
        if self._join >= join:
            pass
        elif self.flow.in_flight is not None:
            self._loop.call_later(0.001, self.post, lambda: self._give_up(join, done))
            return
        elif not self.halted:
            self.halted = True
            if self.flow.touched:
                self.flow.seal()
            self._give_up(join, done)
            return
        else:
            self._hosted = self.places.complete() or self._hosted
            self.places.join_begun()
        if not done.done():
            done.set_result(None)

    def _part(self) -> None:
        """Own nothing: what is not committed has not happened."""
        self.halted = True
        self._hosted = self.places.complete() or self._hosted
        self.flow.forget()
        self.places.given_up()

    def _assigned(self, word: Assignment) -> None:
        name = self.options.name
        if word.member_id in word.plan.superseded:
            theirs = word.plan.workers.get(name, ("", 0))[1]
            raise FencedError(f"worker {name}", ours=self.options.incarnation, theirs=theirs)
        if self.flow.in_flight is not None or (self.flow.touched and not self.places.all_stay(word, name)):
            # A unit has all places' work in it: it cannot be kept for some of them.
            self._part()
        self.janitor.forget()
        self.generation = word.generation
        self.flow.tally.generations += 1
        self._join = word.join
        self.flow.begin(word.generation, word.member_id)
        self.plan = word.plan
        self._hosted = word.plan.hosted_by(name) & self._hosted
        self._rejoin_by = time.monotonic() + PATIENCE_S if name in word.plan.warmups.values() else math.inf
        self._committer.allow(word.generation, word.join)
        self.halted = False
        (self.places.leaving if self._stop else self.places.assigned)(word, name)
        self.flow.begin_with_claims = time.monotonic() + CLAIMS_S if self.places.restoring else 0.0

    def _rejoin_if_warm(self) -> None:
        """A place is to come here once its rows are warm here: say so by joining again, when this rebalance is over."""
        mine = {place for place, name in self.plan.warmups.items() if name == self.options.name}
        calm = not (self.places.restoring or self.flow.may_work) or time.monotonic() > self._rejoin_by
        if self._rejoin_by < math.inf and calm and mine <= self.changelog.warm():
            self._rejoin_by = math.inf
            self._membership.rejoin()

    # -- the end --------------------------------------------------------------------------------------------------

    async def _close(self) -> None:
        """Leave the group at once, then let go of everything."""
        self.halted = True
        await self._loop.run_in_executor(None, self._membership.leave)
        self.places.close()
        while self._work:  # Whoever waits for it is told that the place is closed.
            self._work.popleft()()
        await self._loop.run_in_executor(None, self._stop_threads)
        self.options.stores.close()

    def _stop_threads(self) -> None:
        for thread in (self.janitor, self.flow.fetcher, self.changelog, self._committer, self.announcements):
            thread.stop()
