"""The Faust transport driver: Faust's app, agents and tables above, the engine underneath.

Faust starts the agents and subscribes; from there on the engine decides what is read, when it is committed and who
owns what. A batch travels through Faust's conductor as one message whose value is a :class:`Delivery`, so Faust's cost
is paid per batch, not per record.
"""

import asyncio
from collections.abc import Iterable, Mapping
from typing import Any, ClassVar, NoReturn, cast

import faust
from faust.tables.manager import TableManager
from faust.transport import base
from faust.transport.consumer import Consumer
from faust.transport.producer import Producer
from faust.types import TP
from faust.types.tuples import ConsumerMessage
from mode import Service
from mode.utils.logging import get_logger

from app.engine.fetch import Batch
from app.engine.places import Resident
from app.errors import LocalProtocolError


class Delivery:
    """One batch on its way through an agent. The agent calls :meth:`perform` once."""

    __slots__ = ("_batch", "_resident", "_until", "done")

    def __init__(self, batch: Batch, resident: Resident, until: float) -> None:
        self._batch = batch
        self._resident = resident
        self._until = until
        self.done: asyncio.Future[None] = asyncio.get_running_loop().create_future()

    def perform(self) -> None:
        """Let the resident of the batch's place handle it; an error ends the worker, it never skips a record."""
        try:
            self._resident.perform(self._batch, self._until)
        except BaseException as error:  # noqa: BLE001 - the engine raises it again.
            self.done.set_exception(error)
        else:
            self.done.set_result(None)


class EngineConsumer(Consumer):
    """What Faust takes for its consumer: it only passes batches on."""

    logger = get_logger("faust.driver")

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.subscribed: asyncio.Event = asyncio.Event()
        self._partitions: dict[str, int] = {}

    async def deliver(self, batch: Batch, resident: Resident, until: float) -> None:
        """Hand one batch to the agent of its topic and wait until it has dealt with it."""
        delivery = Delivery(batch, resident, until)
        offset = batch.records[0].offset()
        tp = TP(batch.topic, batch.partition)
        message = ConsumerMessage(
            batch.topic, batch.partition, offset, 0.0, 0, [], None, cast("bytes", delivery), None, tp=tp
        )
        message.generation_id = self.app.consumer_generation_id  # else the stream passes it over
        await self.callback(message)
        await delivery.done

    async def serve(self, partitions: Mapping[str, int]) -> None:
        """Open the way from topics (with their partition counts) to agents, once they are subscribed."""
        await self.subscribed.wait()
        self._partitions = dict(partitions)
        await self.app.topics.on_partitions_assigned(self.assignment())
        self.app.flow_control.resume()

    async def subscribe(self, topics: Iterable[str]) -> None:
        self.subscribed.set()

    def assignment(self) -> set[TP]:
        return {TP(topic, number) for topic, count in self._partitions.items() for number in range(count)}

    def topic_partitions(self, topic: str) -> int | None:
        return self._partitions.get(topic)

    def ack(self, message: Any) -> bool:
        message.acked = True
        return True

    async def commit(self, *args: Any, **kwargs: Any) -> bool:
        """Units of work commit themselves."""
        return True

    async def wait_empty(self) -> None:
        """A stop waits for the unit of work, not for Faust's message count."""

    @Service.task
    async def _commit_handler(self) -> None:
        """No commits on Faust's clock."""

    @Service.task
    async def _commit_livelock_detector(self) -> None:
        """The engine's own progress is watched instead."""

    def close(self) -> None:
        """The engine closes its own connections."""

    # -- what Faust's own recovery, seeking and commits would use: the engine does all of that itself --------------

    def _not_here(self, *args: Any, **kwargs: Any) -> NoReturn:
        raise LocalProtocolError("the engine owns positions and offsets: Faust must not ask for them")

    async def _not_here_async(self, *args: Any, **kwargs: Any) -> NoReturn:
        self._not_here()

    _commit = _getmany = _seek = seek_to_committed = seek_wait = position = _not_here_async
    earliest_offsets = highwaters = create_topic = _not_here_async
    highwater = key_partition = _new_topicpartition = _to_message = _not_here


class EngineProducer(Producer):
    """What Faust takes for its producer. Agents write through the unit of work; nothing goes around it."""

    logger = get_logger("faust.driver")

    async def send(self, *args: Any, **kwargs: Any) -> NoReturn:
        raise LocalProtocolError("send through the engine's unit of work, so that it is part of the transaction")

    send_and_wait = create_topic = send

    def key_partition(self, topic: str, key: bytes) -> NoReturn:
        raise LocalProtocolError("the engine chooses partitions")


class Transport(base.Transport):
    """Registered as ``holdfast://``."""

    Consumer: ClassVar[type[EngineConsumer]] = EngineConsumer
    Producer: ClassVar[type[EngineProducer]] = EngineProducer
    driver_version = "holdfast"


class EngineTables(TableManager):
    """Tells Faust that its tables need no recovery: rows are restored before a place opens."""

    logger = get_logger("faust.driver")

    async def on_start(self) -> None:
        self._tables_registered.set()
        self._tables_finalized.set()

    async def on_stop(self) -> None:
        """Nothing of Faust's own was started."""

    def on_partitions_revoked(self, revoked: set[TP]) -> None:
        """Places are closed by the engine."""


def create_app(group: str, client_id: str, datadir: str) -> faust.App:
    """A Faust app on this driver, without Faust's own web server, recovery, commits and leader topics."""
    return faust.App(
        group,
        broker="holdfast://",
        broker_client_id=client_id,
        TableManager=EngineTables,
        datadir=datadir,
        topic_disable_leader=True,
        web_enabled=False,
        stream_wait_empty=False,
        broker_commit_livelock_soft_timeout=1e9,
    )
