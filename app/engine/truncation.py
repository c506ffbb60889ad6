"""Deleting records that are done with.

Not by librdkafka's administrator: its calls that ask the leaders of partitions end the process by an assertion
(``eonce->refcnt > 0``) when a broker goes away at the wrong moment.
"""

import asyncio
from collections.abc import Mapping
from typing import Any, Final

from aiokafka import errors as kafka_errors
from aiokafka.admin import AIOKafkaAdminClient, RecordsToDelete
from aiokafka.structs import TopicPartition

from app.engine.offsets import Partition

TIMEOUT_S: Final = 10.0

NOT_DELETED: Final = (kafka_errors.KafkaError, OSError, TimeoutError)
"""What :func:`delete_before` raises; nothing is lost by trying again later."""


def delete_before(client: Mapping[str, Any], offsets: Mapping[Partition, int]) -> None:
    """Delete all records before these offsets. Blocking, for a thread without an event loop.

    Args:
        client: keyword arguments of aiokafka's client.

    Raises:
        KafkaError, OSError, TimeoutError: some may not be deleted.
    """
    asyncio.run(asyncio.wait_for(_delete(client, offsets), TIMEOUT_S))


async def _delete(client: Mapping[str, Any], offsets: Mapping[Partition, int]) -> None:
    admin: Any = AIOKafkaAdminClient(**client)
    before: Any = RecordsToDelete
    try:
        await admin.start()
        await admin.delete_records(
            {TopicPartition(*where): before(before_offset=offset) for where, offset in offsets.items()},
            timeout_ms=round(TIMEOUT_S * 1000),
        )
    finally:
        await admin.close()
