"""How a worker reaches the broker besides librdkafka: what aiokafka's clients are given."""

from ssl import SSLContext
from typing import Any

from aiokafka.helpers import create_ssl_context

from app.errors import ConfigurationError
from app.settings import Settings, require_bootstrap


def membership_client(settings: Settings, name: str) -> dict[str, Any]:
    """Keyword arguments of aiokafka's client, for the group membership."""
    options: dict[str, Any] = {
        "bootstrap_servers": require_bootstrap(settings).split(","),
        "client_id": name,
        "request_timeout_ms": 20_000,
        "security_protocol": settings.security_protocol,
    }
    if settings.security_protocol.endswith("SSL"):
        options["ssl_context"] = _ssl_context(settings)
    if settings.security_protocol.startswith("SASL"):
        options |= {
            "sasl_mechanism": settings.sasl_mechanism,
            "sasl_plain_username": settings.sasl_username,
            "sasl_plain_password": settings.sasl_password.get_secret_value(),
        }
    return options


def _ssl_context(settings: Settings) -> SSLContext:
    try:
        return create_ssl_context(
            cafile=settings.ssl_ca_location or None,
            certfile=settings.ssl_certificate_location or None,
            keyfile=settings.ssl_key_location or None,
            password=settings.ssl_key_password.get_secret_value() or None,
        )
    except OSError as error:
        # What librdkafka reads without complaint may still be nothing for Python, such as a key in another format.
        raise ConfigurationError(
            f"the certificates of HOLDFAST_SSL_* cannot be used ({error.strerror or error}): give files in PEM"
        ) from error
