"""A member of the worker group that only says who it is: for tests of those who look for workers."""

import asyncio
import threading
from collections.abc import Sequence
from types import TracebackType
from typing import Any, Final, Self

from aiokafka.client import AIOKafkaClient, ConnectionGroup, CoordinationType
from aiokafka.coordinator.protocol import ConsumerProtocolMemberAssignment, ConsumerProtocolMemberMetadata
from aiokafka.errors import MemberIdRequired
from aiokafka.protocol.group import HeartbeatRequest, JoinGroupRequest, LeaveGroupRequest, SyncGroupRequest

from app.protocol.group_data import GroupPlan, MemberData
from app.settings import Settings, require_bootstrap
from app.topics import Names

# aiokafka's annotations are partly missing and partly wrong.
_UNTYPED_CLIENT: Final[Any] = AIOKafkaClient
_UNTYPED_JOIN: Final[Any] = JoinGroupRequest
_UNTYPED_SYNC: Final[Any] = SyncGroupRequest


class Member:
    """In the group between entering and leaving the context; the only one, so it leads."""

    def __init__(self, settings: Settings, *, name: str, url: str, hosts: Sequence[str]) -> None:
        self._bootstrap = require_bootstrap(settings)
        self._group = Names(settings.namespace).group
        self._topic = Names(settings.namespace).tasks
        self._data = MemberData(name=name, url=url, incarnation=7)
        self._plan = GroupPlan(
            host=dict.fromkeys(hosts, name),
            standbys={},
            warmups={},
            workers={name: (url, 7)},
            departed=frozenset(),
            superseded=frozenset(),
        )
        self._joined = threading.Event()
        self._leave = threading.Event()
        self._failure: BaseException | None = None
        self._thread = threading.Thread(target=self._run)

    def __enter__(self) -> Self:
        self._thread.start()
        assert self._joined.wait(30)
        if self._failure is not None:
            raise self._failure
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._leave.set()
        self._thread.join()

    def _run(self) -> None:
        try:
            asyncio.run(self._stay())
        except BaseException as error:
            self._failure = error
            raise
        finally:
            self._joined.set()

    async def _stay(self) -> None:
        client: Any = _UNTYPED_CLIENT(bootstrap_servers=self._bootstrap)
        await client.bootstrap()
        try:
            node = await client.coordinator_lookup(CoordinationType.GROUP, self._group)
            await client.ready(node, group=ConnectionGroup.COORDINATION)
            await self._take_part(client, node)
        finally:
            await client.close()

    async def _take_part(self, client: Any, node: int) -> None:
        async def call(request: Any) -> Any:
            return await client.send(node, request, group=ConnectionGroup.COORDINATION)

        metadata = ConsumerProtocolMemberMetadata(0, [self._topic], self._data.encode()).encode()
        assignment = ConsumerProtocolMemberAssignment(0, [(self._topic, [0])], self._plan.encode()).encode()
        member, generation = "", -1
        while generation < 0:
            joined = await call(
                _UNTYPED_JOIN(self._group, 6000, 6000, member, None, "consumer", [("holdfast", metadata)])
            )
            assert joined.error_code in (0, MemberIdRequired.errno), joined
            member, generation = joined.member_id, joined.generation_id
        await call(_UNTYPED_SYNC(self._group, generation, member, None, [(member, assignment)]))
        self._joined.set()
        while not self._leave.is_set():
            await call(HeartbeatRequest(self._group, generation, member))
            await asyncio.to_thread(self._leave.wait, 0.5)
        await call(LeaveGroupRequest(self._group, member))
