"""The reference job as an agent on the shipped engine: ``python -m tests.benchmarks.reference_worker``.

Per record of the topic in ``PEER_IN``: the tenant's placement from its row (first seen: CRC-32), its sequence + 1
in the same row, the same bytes to ``PEER_OUT`` at the partition of the placement, with the session as key and the
sequence as prefix.
Membership, assignor, standbys, changelog, unit of work and Faust above them are those of every worker.
"""

import asyncio
import os
import tempfile
import time
import zlib
from collections.abc import Mapping, Sequence
from pathlib import Path

import faust
from faust.types import StreamT

from app.engine.connection import membership_client
from app.engine.driver import Delivery, EngineConsumer, create_app
from app.engine.engine import Engine
from app.engine.fetch import Batch
from app.engine.offsets import Partition
from app.engine.options import EngineOptions
from app.engine.places import Place, PlaceKind
from app.engine.stores.memory import MemoryStores
from app.settings import kafka_config, load

INPUTS, OUTPUTS = 4, 8


class Sequencer:
    """One input partition; see :class:`app.engine.places.Resident`."""

    def __init__(self, engine: Engine, place: Place, topic: str) -> None:
        self._engine = engine
        self._topic = topic
        self._rows = place.rows["sequences"]
        self._tenants: dict[bytes, list[int]] = {}
        self._dirty: set[bytes] = set()

    def perform(self, batch: Batch, until: float) -> None:
        unit = self._engine.unit
        outputs = [unit.output(self._topic, number).append for number in range(OUTPUTS)]
        find, touch = self._tenants.get, self._dirty.add
        for record in batch.records[batch.start :]:
            tenant, value = record.key(), record.value()
            assert tenant is not None
            assert value is not None
            known = find(tenant)
            if known is None:
                known = self._load(tenant)
            known[1] += 1
            touch(tenant)
            outputs[known[0]]((value[29:61], b"%d|%b" % (known[1], value)))
        batch.start = len(batch.records)

    def _load(self, tenant: bytes) -> list[int]:
        row = self._rows.get(tenant)
        found = [zlib.crc32(tenant) % OUTPUTS, 0] if row is None else [int(part) for part in row.split(b"|")]
        self._tenants[tenant] = found
        return found

    def before_seal(self) -> None:
        for tenant in self._dirty:
            self._rows.put(tenant, b"%d|%d" % tuple(self._tenants[tenant]))
        self._dirty.clear()

    def busy(self) -> bool:
        return False

    def after_commit(self, offsets: Mapping[Partition, int]) -> None:
        """Nothing waits for a commit."""

    def due(self) -> float | None:
        return None

    def on_time(self, now: float) -> None:
        """No timers."""

    def hold(self, topic: str) -> int | None:
        return None

    def pausing(self) -> Sequence[Partition]:
        return ()

    def close(self) -> None:
        self._tenants.clear()


def attach(app: faust.App, topic: str) -> None:
    async def sequence(stream: StreamT[Delivery]) -> None:
        async for delivery in stream:
            delivery.perform()

    app.agent(app.topic(topic, key_serializer="raw", value_serializer="raw"), name="sequencer")(sequence)


async def serve(directory: str) -> None:
    settings, _ = load(None, {})
    namespace = settings.namespace
    topic, target = os.environ["PEER_IN"], os.environ["PEER_OUT"]
    engine = Engine(
        EngineOptions(
            name="w1",
            url="http://127.0.0.1:1",
            bind="127.0.0.1",
            host="127.0.0.1",
            incarnation=int(time.time() * 1000),
            group=f"{namespace}.workers",
            transactional_id=lambda name: f"{namespace}.{name}",
            kinds=[PlaceKind("router", INPUTS, (topic,), {"sequences": f"{namespace}.sequences-changelog"})],
            stores=MemoryStores(),
            standby_replicas=settings.standby_replicas,
            commit_interval=settings.commit_interval,
            max_record_bytes=settings.max_record_bytes,
            suspects=f"{namespace}.suspects",
            truncated=frozenset(),
            kafka=kafka_config(settings),
            membership_client=membership_client(settings, "w1"),
        )
    )
    engine.residents = {"router": lambda place: Sequencer(engine, place, target)}
    app = create_app(f"{namespace}.workers", "w1", directory)
    attach(app, topic)
    await app.start()
    consumer = app.consumer
    assert isinstance(consumer, EngineConsumer)
    engine.flow.deliver = consumer.deliver
    await consumer.serve({topic: INPUTS})
    await engine.run()


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as scratch:
        (Path(scratch) / "faust").mkdir()
        asyncio.run(serve(str(Path(scratch) / "faust")))
