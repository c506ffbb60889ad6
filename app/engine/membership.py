"""Membership of the worker group, in a thread of its own, so that no handler can starve its heartbeats.

The classic consumer group protocol (JoinGroup, SyncGroup, Heartbeat, LeaveGroup) over aiokafka's connections; the
assignor is ours, so that a place goes to the worker whose rows are warm. The thread decides nothing about places: it
asks the engine to end its unit before it joins, hands it the leader's plan afterwards, and joins again when the
broker, the engine or a lost coordinator says so.
"""

import asyncio
import logging
import threading
from collections.abc import Awaitable, Callable, Mapping, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, replace
from typing import Any

from aiokafka import errors as kafka_errors
from aiokafka.client import AIOKafkaClient, ConnectionGroup, CoordinationType
from aiokafka.coordinator.protocol import ConsumerProtocolMemberAssignment, ConsumerProtocolMemberMetadata
from aiokafka.protocol.group import HeartbeatRequest, JoinGroupRequest, LeaveGroupRequest, SyncGroupRequest

from app.engine.beats import Beats, Watched
from app.engine.denied import denied
from app.engine.fencing import initialise
from app.engine.leader import plan_shares
from app.engine.wire import Identity
from app.errors import HoldfastError
from app.protocol.group_data import GroupPlan, MemberData
from app.protocol.liveness import evictor

log = logging.getLogger(__name__)

PROTOCOL_TYPE = "consumer"
PROTOCOL_NAME = "holdfast"

HEARTBEAT_S = 0.3
"""Between two heartbeats; it bounds how late a member learns of a rebalance."""

SESSION_MS = 6_000
"""The shortest session that brokers accept by default."""

REBALANCE_MS = 10_000
"""How long the others wait for a member that does not come to a rebalance."""

RETRY_S = 0.1
AWAY_S = 0.5  # Between two attempts while no broker answers: nobody is served sooner by asking more often.

SILENCE_S = 5.0
"""So long it is tried to end what a dead worker left open, before anybody takes over from it."""

_REJOIN = (kafka_errors.RebalanceInProgressError,)
_UNREACHABLE = (kafka_errors.KafkaConnectionError, kafka_errors.NodeNotReadyError, kafka_errors.RequestTimedOutError)
_UNKNOWN = (kafka_errors.UnknownMemberIdError, kafka_errors.IllegalGenerationError)


@dataclass(frozen=True, slots=True)
class Assignment:
    """One generation of the group as this member sees it."""

    generation: int
    member_id: str
    join: int
    """The number of the join that it answers; :class:`Callbacks` counts them."""
    previous: int | None
    """The generation of this member's last assignment, if it has been the same member since."""
    plan: GroupPlan


class Callbacks:
    """What the engine gives: how to prepare a join (they are numbered), what to tell the group, where plans go."""

    def __init__(
        self,
        *,
        before_join: Callable[[int], Awaitable[None]],
        describe: Callable[[], MemberData],
        assigned: Callable[[Assignment], None],
        failed: Callable[[BaseException], None],
    ) -> None:
        self.before_join = before_join
        self.describe = describe
        self.assigned = assigned
        self.failed = failed


class Membership(threading.Thread):
    """The membership thread. All methods but :meth:`run` may be called from any thread.

    Args:
        group: the group's name.
        name, incarnation: of this worker.
        bind, host: where its heartbeat channel listens, and where other workers reach it.
        places: every place of the cluster and its partitions, as the leader hands them out.
        standby_replicas: how many workers follow each place besides its host.
        client: keyword arguments of aiokafka's client (addresses, security).
        transactional_id: of a worker, by its name.
    """

    def __init__(
        self,
        *,
        group: str,
        name: str,
        incarnation: int,
        bind: str,
        host: str,
        places: Mapping[str, Sequence[tuple[str, int]]],
        standby_replicas: int,
        client: Mapping[str, Any],
        transactional_id: Callable[[str], str],
        callbacks: Callbacks,
    ) -> None:
        super().__init__(name="membership", daemon=True)
        self._group = group
        self._name = name
        self._host = host
        self._places = places
        self._topics = sorted({topic for partitions in places.values() for topic, _ in partitions})
        self._standby_replicas = standby_replicas
        self._client_options = client
        self._transactional_id = transactional_id
        self._callbacks = callbacks
        self._loop = asyncio.new_event_loop()
        self._stopping = asyncio.Event()
        self._rejoin = asyncio.Event()
        self._member_id = ""
        self._generation = -1
        self._joins = 0
        self._asks = False
        self._answers = True
        self._pause_s = RETRY_S
        self._assigned_generation: int | None = None
        self._coordinator: int | None = None
        self._client: Any = None
        self._plan_now: GroupPlan | None = None
        self._beat_address = ""
        self._removals: set[asyncio.Task[None]] = set()
        self._beats = Beats(name, incarnation, bind, dead=self._dead, rejoin=self._rejoin.set)
        self._left: Future[None] = Future()

    # -- from other threads ---------------------------------------------------------------------------------------

    def rejoin(self) -> None:
        """Join again soon: rows are warm, or a commit was refused.

        The others are told. They would hear of it from the broker with their next heartbeats, and who has joined waits.
        """

        def ask() -> None:
            self._asks = True
            self._rejoin.set()

        self._loop.call_soon_threadsafe(ask)

    def fence(self, transactional_id: str) -> Future[Identity]:
        """See :func:`app.engine.fencing.initialise`."""
        return asyncio.run_coroutine_threadsafe(self._fence(transactional_id), self._loop)

    def leave(self, timeout: float = 3.0) -> None:
        """Leave the group and end the thread; the others are told at once."""
        if self.is_alive():
            self._loop.call_soon_threadsafe(self._stopping.set)
            self.join(timeout)

    # -- the thread -----------------------------------------------------------------------------------------------

    def run(self) -> None:
        asyncio.set_event_loop(self._loop)
        try:
            self._loop.run_until_complete(self._main())
        except BaseException as error:  # noqa: BLE001 - the worker ends with it.
            self._callbacks.failed(error)
        finally:
            self._loop.close()

    async def _main(self) -> None:
        self._beat_address = f"{self._host}:{await self._beats.start()}"
        stopped = asyncio.ensure_future(self._stopping.wait())
        member = asyncio.ensure_future(self._member())
        await asyncio.wait({stopped, member}, return_when=asyncio.FIRST_COMPLETED)
        try:
            if member.done():
                member.result()
        finally:
            stopped.cancel()
            while not member.done():  # Before Python 3.12 asyncio.wait_for may forget that it was cancelled.
                member.cancel()
                await asyncio.wait({member}, timeout=RETRY_S)
            await self._depart()
            await self._beats.stop()

    async def _member(self) -> None:
        while True:
            try:
                await self._connect()
                await self._join()
                await self._beat()
            except kafka_errors.KafkaError as error:
                self._note(error)
                if not isinstance(error, _REJOIN):
                    await asyncio.sleep(self._pause_s)

    def _say_whether_it_answers(self, answers: bool) -> None:
        """One line when the broker goes away, one when it is back: nobody needs more, and nobody should miss it."""
        if answers != self._answers:
            self._answers = answers
            self._pause_s = RETRY_S if answers else AWAY_S
            where = self._client_options["bootstrap_servers"]
            if answers:
                log.info("the broker answers again")
            else:
                log.warning("the broker does not answer (%s): waiting for it", ",".join(where))

    def _note(self, error: kafka_errors.KafkaError) -> None:
        """React to what the broker or the connection said; what is no known answer looks the coordinator up."""
        if isinstance(error, _UNKNOWN):
            self._forget_member()
        elif isinstance(error, kafka_errors.GroupAuthorizationFailedError):
            raise denied(f"join the group {self._group}", str(error)) from error
        elif isinstance(error, kafka_errors.InvalidSessionTimeoutError):
            raise error
        elif not isinstance(error, _REJOIN):
            log.debug("group coordinator: %r", error)
            self._coordinator = None
            if isinstance(error, _UNREACHABLE):
                self._say_whether_it_answers(False)
        self._rejoin.set()

    def _forget_member(self) -> None:
        """The group no longer knows this member: whatever it held may have been held by others since."""
        self._member_id = ""
        self._generation = -1
        self._assigned_generation = None

    async def _connect(self) -> None:
        if self._client is None:
            client: Any = AIOKafkaClient(**self._client_options)  # type: ignore[no-untyped-call]
            try:
                await client.bootstrap()
            except BaseException:
                await client.close()
                raise
            self._client = client
        while self._coordinator is None:
            try:
                node = await self._client.coordinator_lookup(CoordinationType.GROUP, self._group)
                if await self._client.ready(node, group=ConnectionGroup.COORDINATION):
                    self._coordinator = node
                    return
            except kafka_errors.GroupAuthorizationFailedError:
                raise
            except (kafka_errors.KafkaError, AssertionError) as error:
                log.debug("coordinator lookup: %r", error)
                await self._client.force_metadata_update()
            await asyncio.sleep(self._pause_s)

    async def _call(self, request: Any, *, group: ConnectionGroup = ConnectionGroup.COORDINATION) -> Any:
        """Send to the coordinator; raise the error that the response carries. Requests of one ``group`` are in line."""
        assert self._client is not None
        if self._coordinator is None:
            raise kafka_errors.GroupCoordinatorNotAvailableError
        response = await self._client.send(self._coordinator, request, group=group)
        code = response.error_code
        self._say_whether_it_answers(True)
        if code:
            if code == kafka_errors.MemberIdRequired.errno:
                self._member_id = response.member_id
            raise kafka_errors.for_code(code)()
        return response

    async def _join(self) -> None:
        self._joins += 1
        await self._callbacks.before_join(self._joins)
        self._rejoin.clear()
        if self._asks:
            self._asks = False
            self._beats.tell_rejoin()
        data = replace(self._callbacks.describe(), beat=self._beat_address, join=self._joins)
        metadata = ConsumerProtocolMemberMetadata(0, self._topics, data.encode()).encode()
        while True:
            request = JoinGroupRequest(
                self._group,
                SESSION_MS,
                REBALANCE_MS,
                self._member_id,
                None,  # type: ignore[arg-type]  # no static membership
                PROTOCOL_TYPE,
                [(PROTOCOL_NAME, metadata)],
            )
            try:
                joined = await self._call(request)
                break
            except kafka_errors.MemberIdRequired:
                continue
        self._member_id, self._generation = joined.member_id, joined.generation_id
        leads = joined.leader_id == joined.member_id
        shares = plan_shares(joined.members, self._places, self._standby_replicas, leader=self._name) if leads else []
        synced = await self._call(
            SyncGroupRequest(self._group, self._generation, self._member_id, None, shares)  # type: ignore[arg-type]
        )
        assignment = ConsumerProtocolMemberAssignment.decode(synced.member_assignment)
        word = Assignment(
            self._generation,
            self._member_id,
            self._joins,
            self._assigned_generation,
            GroupPlan.decode(assignment.user_data),
        )
        self._assigned_generation = self._generation
        # Whoever asked for a join until now asked because of the generation that has just ended.
        self._rejoin.clear()
        self._watch(word.plan)
        log.info("generation %d%s", self._generation, " (leader)" if leads else "")
        self._callbacks.assigned(word)

    async def _beat(self) -> None:
        while True:
            try:
                async with asyncio.timeout(HEARTBEAT_S):
                    await self._rejoin.wait()
                return
            except TimeoutError:
                try:
                    await self._call(HeartbeatRequest(self._group, self._generation, self._member_id))
                except _REJOIN:
                    # The others would hear of it from the broker, each at its own time; and nobody works meanwhile.
                    self._beats.tell_rejoin()
                    raise

    async def _depart(self) -> None:
        """Leave, over a connection of its own: not behind a join that waits for others."""
        if self._client is None:
            return
        try:
            if self._generation >= 0 and self._coordinator is not None:
                request = LeaveGroupRequest(self._group, self._member_id)
                await asyncio.wait_for(self._call(request, group=ConnectionGroup.DEFAULT), 2)
        except (kafka_errors.KafkaError, TimeoutError) as error:
            log.warning("could not leave the group at once (%r): the others notice after the session timeout", error)
        finally:
            await self._client.close()

    # -- failures -------------------------------------------------------------------------------------------------

    def _watch(self, plan: GroupPlan) -> None:
        self._plan_now = plan
        self._beats.watch(
            {
                name: Watched(plan.beats.get(name, ""), incarnation, plan.members.get(name, ""))
                for name, (_, incarnation) in plan.workers.items()
            }
        )

    def _dead(self, name: str) -> None:
        """A worker is declared dead: remove it from the group, if that is for this worker to do."""
        plan = self._plan_now
        if plan is None or evictor(plan.leader, plan.workers, self._beats.dead) != self._name:
            return
        for victim in self._beats.dead & plan.members.keys():
            for work in (self._evict(plan, victim), self._silence(victim)):
                task = asyncio.ensure_future(work)
                self._removals.add(task)
                task.add_done_callback(self._removals.discard)

    async def _silence(self, name: str) -> None:
        """End what a dead worker left open, without waiting for whoever takes its places over.

        Every stream that it was writing to is read no further until then, those of places that stay as well. Whoever
        takes over fences it again, and only that counts.
        """
        try:
            await asyncio.wait_for(self._fence(self._transactional_id(name)), SILENCE_S)
        except (HoldfastError, TimeoutError) as error:
            log.debug("ending what worker %s left open: %r", name, error)

    async def _fence(self, transactional_id: str) -> Identity:
        """Not over the connection on which a join may be waiting."""
        return await initialise(self._client, transactional_id, group=ConnectionGroup.DEFAULT)

    async def _evict(self, plan: GroupPlan, name: str) -> None:
        """Leave the group in the dead worker's name: any client may, and nobody waits for its session to end.

        The broker answers what comes over one connection in turn. A join of our own may be waiting there for the very
        worker that is dead, so this goes over another one.
        """
        while self._plan_now is plan:
            try:
                request = LeaveGroupRequest(self._group, plan.members[name])
                await self._call(request, group=ConnectionGroup.DEFAULT)
            except _UNKNOWN:
                pass  # Somebody else has removed it.
            except kafka_errors.KafkaError as error:
                log.debug("evicting %s: %r", name, error)
                await asyncio.sleep(RETRY_S)
                continue
            log.info("worker %s is removed from the group", name)
            self._beats.tell_rejoin()
            self._rejoin.set()
            return
