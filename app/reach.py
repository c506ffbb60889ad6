"""Why a cluster cannot be used: nobody answers there, or somebody does and refuses this client.

Librdkafka treats a refused login like a broker that is down: it tries again until the call's time is over, and the
reason goes to a callback. So after such a call, one more connection is made whose callback is listened to.
"""

import time
from collections.abc import Iterator, Mapping
from typing import Any, Final

from confluent_kafka import KafkaError, KafkaException
from confluent_kafka.admin import AdminClient
from confluent_kafka.admin._metadata import ClusterMetadata, TopicMetadata

from app.errors import BrokerUnreachableError, ConfigurationError, HoldfastError
from app.settings import Settings, kafka_config, require_bootstrap

PROBE_S: Final = 6.0
"""How long the connection that asks why may take."""

NO_ANSWER: Final = frozenset(
    {
        KafkaError._TRANSPORT,
        KafkaError._ALL_BROKERS_DOWN,
        KafkaError._RESOLVE,
        KafkaError._TIMED_OUT,
        KafkaError._TIMED_OUT_QUEUE,
        KafkaError._MSG_TIMED_OUT,
        KafkaError.REQUEST_TIMED_OUT,
    }
)
"""Errors after which nothing is known about the cluster."""

_POLL_S: Final = 0.05
_AFTERWARDS_S: Final = 1.0
_LOGIN: Final = "check HOLDFAST_SASL_USERNAME, HOLDFAST_SASL_PASSWORD and HOLDFAST_SASL_MECHANISM"
_CIPHER: Final = "check HOLDFAST_SECURITY_PROTOCOL, HOLDFAST_SSL_CA_LOCATION and the client's certificate"
_CLOSED: Final = "it takes the connection and closes it: check HOLDFAST_SECURITY_PROTOCOL, or start it anew"


def unreachable(settings: Settings, detail: str) -> HoldfastError:
    """Return the error for a cluster that did not answer, after a look at why.

    Args:
        settings: of the client that got no answer.
        detail: what the library said, in one line.

    Returns:
        :exc:`ConfigurationError` when a broker answers and refuses the login or the encryption,
        :exc:`BrokerUnreachableError` otherwise.
    """
    bootstrap = require_bootstrap(settings)
    heard = _listen(settings)
    for error in heard:
        text = " ".join(error.str().split())
        if error.code() == KafkaError._AUTHENTICATION:
            return ConfigurationError(f"the brokers at {bootstrap} refuse the login ({text}): {_LOGIN}")
        # With TLS 1.3 a client learns after its handshake that its certificate was not taken.
        if error.code() == KafkaError._SSL or "SSL handshake failed" in text or "SSL alert" in text:
            return ConfigurationError(f"no secure connection to the brokers at {bootstrap} ({text}): {_CIPHER}")
    # Librdkafka says nothing about a connection that was closed without a word, as TLS listeners close plain ones.
    if {error.code() for error in heard} == {KafkaError._ALL_BROKERS_DOWN}:
        return BrokerUnreachableError(bootstrap, detail, advice=_CLOSED)
    return BrokerUnreachableError(bootstrap, detail)


def each_broker(settings: Settings, metadata: ClusterMetadata) -> Iterator[Settings]:
    """Yield settings for each broker alone; none if there is only one."""
    if len(metadata.brokers) > 1:
        for broker in metadata.brokers.values():
            host = f"[{broker.host}]" if ":" in str(broker.host) else broker.host
            yield settings.model_copy(update={"bootstrap": f"{host}:{broker.port}"})


def topics_at(settings: Settings) -> Mapping[str, TopicMetadata] | None:
    """The topics that the broker of the settings knows; None if it does not answer."""
    try:
        # A new client has no other broker to ask.
        client = AdminClient({**kafka_config(settings), "log_level": 0})
        return client.list_topics(timeout=PROBE_S).topics
    except KafkaException:
        return None


def _listen(settings: Settings) -> list[KafkaError]:
    """What is said while a new client tries to connect, until it has tried all brokers or one refuses it."""
    heard: list[KafkaError] = []
    options: dict[str, Any] = {**kafka_config(settings), "log_level": 0, "error_cb": heard.append}
    try:
        probe = AdminClient(options)
    except KafkaException:
        return []
    refusals = (KafkaError._AUTHENTICATION, KafkaError._SSL)
    deadline = time.monotonic() + PROBE_S
    tried_all = False
    while time.monotonic() < deadline and not any(error.code() in refusals for error in heard):
        probe.poll(_POLL_S)
        if not tried_all and any(error.code() == KafkaError._ALL_BROKERS_DOWN for error in heard):
            # The reason may come after it.
            tried_all, deadline = True, min(deadline, time.monotonic() + _AFTERWARDS_S)
    return heard
