"""Fencing: a transactional id is initialised, by a worker for itself, or in the name of one that is gone.

The broker ends the transaction that was left open under it and refuses what its earlier owner still sends. It may need
a moment for that, and is asked again every few milliseconds; librdkafka would ask again after half a second.
"""

import asyncio
import logging
from typing import Any, Final

from aiokafka import errors as kafka_errors
from aiokafka.client import ConnectionGroup, CoordinationType
from aiokafka.protocol.transaction import InitProducerIdRequest

from app.engine.denied import denied
from app.engine.wire import Identity

log = logging.getLogger(__name__)

TRANSACTION_TIMEOUT_MS: Final = 10_000
"""A transaction that is open for longer is ended by the broker."""

ENDING_S: Final = 0.01
"""Between two questions whether the transaction has ended."""

RETRY_S: Final = 0.1

_ENDING: Final = (kafka_errors.ConcurrentTransactions,)
_PRODUCER_FENCED: Final = 90
_FOR_GOOD: Final = (
    kafka_errors.TransactionalIdAuthorizationFailed,
    kafka_errors.ClusterAuthorizationFailedError,
    kafka_errors.InvalidTransactionTimeout,
)


def error_of(code: int) -> Exception:
    """The error that a code of the broker stands for, with those that aiokafka does not know."""
    if code == _PRODUCER_FENCED:
        return kafka_errors.ProducerFenced()
    error: Exception = kafka_errors.for_code(code)()
    return kafka_errors.UnknownError(f"error code {code}") if type(error) is kafka_errors.UnknownError else error


async def initialise(
    client: Any, transactional_id: str, *, group: ConnectionGroup = ConnectionGroup.COORDINATION
) -> Identity:
    """Return when nothing that the id has begun is open any more, and nothing that was sent under it before is taken.

    Args:
        client: aiokafka's client, bootstrapped.
        transactional_id: of this worker, or of one that is not in the group.
        group: of connections; what goes over one is answered in turn.

    Raises:
        ConfigurationError: the broker refuses for good, such as for want of a right.
    """
    coordinator = None
    while True:
        try:
            if coordinator is None:
                coordinator = await client.coordinator_lookup(CoordinationType.TRANSACTION, transactional_id)
            request = InitProducerIdRequest(transactional_id, TRANSACTION_TIMEOUT_MS)
            answer = await client.send(coordinator, request, group=group)
            if not answer.error_code:
                return Identity(answer.producer_id, answer.producer_epoch)
            raise error_of(answer.error_code)
        except _ENDING:
            await asyncio.sleep(ENDING_S)
        except _FOR_GOOD as error:
            raise denied(f"use the transactional id {transactional_id}", str(error)) from error
        except (kafka_errors.KafkaError, AssertionError) as error:
            log.debug("initialising %s: %r", transactional_id, error)
            coordinator = None
            await asyncio.sleep(RETRY_S)
