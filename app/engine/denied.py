"""Rights that this worker lacks: no retry mends that, so it ends with a line that names them."""

from typing import Final

from confluent_kafka import KafkaError

from app.errors import ConfigurationError

DENIED: Final = frozenset(
    {
        KafkaError.TOPIC_AUTHORIZATION_FAILED,
        KafkaError.GROUP_AUTHORIZATION_FAILED,
        KafkaError.TRANSACTIONAL_ID_AUTHORIZATION_FAILED,
        KafkaError.CLUSTER_AUTHORIZATION_FAILED,
    }
)


def denied(doing: str, reason: str) -> ConfigurationError:
    """Return what to tell the operator.

    Args:
        doing: what the worker must be able to do, with the name of the resource.
        reason: what the broker said.
    """
    return ConfigurationError(
        f"the brokers do not let this worker {doing} ({reason}): `holdfast topics rights worker` lists its rights"
    )
