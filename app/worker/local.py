"""What a worker keeps on its own disk, and how it reaches the broker besides librdkafka."""

import logging
import time
from pathlib import Path
from typing import Any

from aiokafka.helpers import create_ssl_context

from app import topics
from app.engine.stores import StoreFactory
from app.engine.stores.memory import MemoryStores
from app.errors import ConfigurationError
from app.settings import Settings, require_bootstrap

log = logging.getLogger(__name__)

CLUSTER_FILE = "cluster"


def worker_directory(settings: Settings, name: str) -> Path:
    """The directory of a worker's local state, made if needed.

    It carries the id of the Kafka cluster: what another cluster's worker left there is set aside, never used.
    """
    directory = settings.state_dir / "workers" / name
    cluster = topics.cluster_id(topics.connect(settings), settings)
    try:
        marker = directory / CLUSTER_FILE
        if marker.exists() and (found := marker.read_text().strip()) != cluster:
            aside = directory.with_name(f"{name}.of-{found}.{int(time.time())}")
            directory.rename(aside)
            log.warning("the state in %s belongs to Kafka cluster %s: it is set aside as %s", directory, found, aside)
        (directory / "faust").mkdir(parents=True, exist_ok=True)
        marker.write_text(cluster)
    except OSError as error:
        raise ConfigurationError(
            f"cannot use the state directory {settings.state_dir} ({error.strerror or error}): "
            "make it writable, or set HOLDFAST_STATE_DIR"
        ) from error
    return directory


def open_stores(settings: Settings, directory: Path) -> StoreFactory:
    """The row store that the settings ask for."""
    if settings.store == "memory":
        return MemoryStores()
    from app.engine.stores.rocksdb import RocksStores  # only who uses it pays for loading it

    return RocksStores(directory / "rows")


def membership_client(settings: Settings, name: str) -> dict[str, Any]:
    """Keyword arguments of aiokafka's client, for the group membership."""
    options: dict[str, Any] = {
        "bootstrap_servers": require_bootstrap(settings).split(","),
        "client_id": name,
        "request_timeout_ms": 20_000,
        "security_protocol": settings.security_protocol,
    }
    if settings.security_protocol.endswith("SSL"):
        options["ssl_context"] = create_ssl_context(
            cafile=settings.ssl_ca_location,
            certfile=settings.ssl_certificate_location,
            keyfile=settings.ssl_key_location,
            password=settings.ssl_key_password.get_secret_value() or None,
        )
    if settings.security_protocol.startswith("SASL"):
        options |= {
            "sasl_mechanism": settings.sasl_mechanism,
            "sasl_plain_username": settings.sasl_username,
            "sasl_plain_password": settings.sasl_password.get_secret_value(),
        }
    return options
