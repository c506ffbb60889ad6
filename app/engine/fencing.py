"""Fencing a worker that is gone: its transactional id is initialised in its name.

The broker aborts the transaction that it left open and refuses its later requests. A transactional producer of
librdkafka does the same, but asks again only after half a second when that transaction is still being ended, which is
just what it is after a death. So the two requests are sent by themselves, over the connections of the membership.
"""

import asyncio
import logging
from typing import Any, Final

from aiokafka import errors as kafka_errors
from aiokafka.client import ConnectionGroup, CoordinationType
from aiokafka.protocol.transaction import InitProducerIdRequest

from app.engine.denied import denied
from app.engine.producer import TRANSACTION_TIMEOUT_MS

log = logging.getLogger(__name__)

ENDING_S: Final = 0.01
"""Between two questions whether the transaction has ended."""

RETRY_S: Final = 0.1

_ENDING: Final = (kafka_errors.ConcurrentTransactions,)
_FENCED: Final = (kafka_errors.InvalidProducerEpoch, kafka_errors.ProducerFenced)
_FOR_GOOD: Final = (
    kafka_errors.TransactionalIdAuthorizationFailed,
    kafka_errors.ClusterAuthorizationFailedError,
    kafka_errors.InvalidTransactionTimeout,
)


async def fence(client: Any, transactional_id: str) -> None:
    """Return when nothing that the id has begun is open any more, and nothing that it sends is taken.

    Args:
        client: aiokafka's client, bootstrapped.
        transactional_id: of a worker that is not in the group.

    Raises:
        ConfigurationError: the broker refuses for good, such as for want of a right.
    """
    coordinator = None
    while True:
        try:
            if coordinator is None:
                coordinator = await client.coordinator_lookup(CoordinationType.TRANSACTION, transactional_id)
            request = InitProducerIdRequest(transactional_id, TRANSACTION_TIMEOUT_MS)
            answer = await client.send(coordinator, request, group=ConnectionGroup.COORDINATION)
            if not answer.error_code:
                return
            raise kafka_errors.for_code(answer.error_code)()
        except _ENDING:
            await asyncio.sleep(ENDING_S)
        except _FENCED:
            # Somebody else has fenced the same id at the same time, which is as good.
            return
        except _FOR_GOOD as error:
            raise denied(f"use the transactional id {transactional_id}", str(error)) from error
        except (kafka_errors.KafkaError, AssertionError) as error:
            log.debug("fencing %s: %r", transactional_id, error)
            coordinator = None
            await asyncio.sleep(RETRY_S)
