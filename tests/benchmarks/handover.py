"""How a tenant was handed over, step by step: as the records say that the places have exchanged, each with its time."""

import time
from collections.abc import Iterator
from typing import Any, Final

from confluent_kafka import Consumer, Message, TopicPartition

from app.errors import PeerProtocolError
from app.observe.reading import Config
from app.protocol import chunks
from app.protocol.control import Commit, Complete, Control, Cut, Installed, decode_control
from app.protocol.murmur2 import partition_of
from app.topics import Names

LIMIT_S: Final = 20.0
MARGIN_MS: Final = 1_000


def steps(config: Config, names: Names, routers: int, event: dict[str, Any], begun_ms: int) -> dict[str, Any]:
    """When each step was written, in Unix milliseconds, and ``late_rows``: how many rows were sent after the cut.

    ``event`` is the end of the migration, ``begun_ms`` a moment before its cut. What has been deleted
    since is missing.
    """
    tenant, epoch = event["tenant"], event["epoch"]
    streams = [
        TopicPartition(names.work, event["from"]),
        TopicPartition(names.work, event["to"]),
        TopicPartition(names.handoffs, event["to"]),
        TopicPartition(names.commands, partition_of(tenant.encode(), routers)),
    ]
    found: dict[str, Any] = {}
    late: list[tuple[int, int]] = []
    for at_ms, said in _read(config, streams, begun_ms - MARGIN_MS):
        if said.tenant != tenant or said.epoch != epoch:
            continue
        match said:
            case chunks.Chunk():
                late.append((at_ms, len(said.items)))
            case Cut():
                found["cut"] = at_ms
            case Complete():
                found["complete"] = at_ms
            case Installed():
                found["installed"] = at_ms
            case Commit():
                found["commit"] = at_ms
    if "cut" in found:
        found["late_rows"] = sum(rows for at_ms, rows in late if at_ms > found["cut"])
    return found


def _read(config: Config, streams: list[TopicPartition], since_ms: int) -> Iterator[tuple[int, Any]]:
    """What places have said to each other since a moment, stream by stream: its time, and the record."""
    consumer = Consumer(
        {
            **config,
            "group.id": "holdfast-bench",
            "isolation.level": "read_committed",
            "enable.auto.commit": False,
            "enable.partition.eof": True,
            "fetch.wait.max.ms": 10,
        }
    )
    try:
        starts = consumer.offsets_for_times(
            [TopicPartition(stream.topic, stream.partition, since_ms) for stream in streams], LIMIT_S
        )
        left = {(start.topic, start.partition) for start in starts if start.offset >= 0}
        consumer.assign([start for start in starts if start.offset >= 0])
        deadline = time.monotonic() + LIMIT_S
        while left and time.monotonic() < deadline:
            for message in consumer.consume(1_000, 0.1):
                if message.error() is not None:
                    left.discard((message.topic(), message.partition()))
                    continue
                said = _said(message)
                if said is not None:
                    yield message.timestamp()[1], said
    finally:
        consumer.close()


def _said(message: Message) -> Control | chunks.Chunk | None:
    key, value = message.key(), message.value()
    try:
        return chunks.decode(value) if key == chunks.KEY else decode_control(key, value)
    except (PeerProtocolError, ValueError):
        return None
