"""What a worker keeps on its own disk."""

import logging
import time
from pathlib import Path

from confluent_kafka import KafkaException, TopicCollection

from app import topics
from app.client.kafka import explain
from app.engine.stores import StoreFactory
from app.engine.stores.memory import MemoryStores
from app.errors import ConfigurationError
from app.settings import Settings

log = logging.getLogger(__name__)

CLUSTER_FILE = "cluster"


def worker_directory(settings: Settings, name: str) -> Path:
    """The directory of a worker's local state, made if needed.

    It carries the ids of the Kafka cluster and of the topic of sessions: what belongs to another cluster, or to a
    namespace that was deleted and made anew, is set aside, never used.
    """
    directory = settings.state_dir / "workers" / name
    cluster = identity(settings)
    try:
        marker = directory / CLUSTER_FILE
        if marker.exists() and marker.read_text().strip() != cluster:
            aside = directory.with_name(f"{name}.aside.{int(time.time())}")
            directory.rename(aside)
            log.warning(
                "the state in %s belongs to another Kafka cluster or namespace: set aside as %s", directory, aside
            )
        (directory / "faust").mkdir(parents=True, exist_ok=True)
        marker.write_text(cluster)
    except OSError as error:
        raise ConfigurationError(
            f"cannot use the state directory {settings.state_dir} ({error.strerror or error}): "
            "make it writable, or set HOLDFAST_STATE_DIR"
        ) from error
    return directory


def identity(settings: Settings) -> str:
    """What tells this namespace on this cluster from every other one: the ids of the cluster and of a changelog."""
    admin = topics.connect(settings)
    changelog = topics.Names(settings.namespace).changelog("sessions")
    try:
        described = admin.describe_topics(TopicCollection([changelog]), request_timeout=topics.REQUEST_TIMEOUT_S)
        topic_id = described[changelog].result().topic_id
        cluster_id = admin.list_topics(changelog, timeout=topics.REQUEST_TIMEOUT_S).cluster_id
    except KafkaException as error:
        raise explain(error, settings, f"describe the topic {changelog}") from error
    return f"{cluster_id} {settings.namespace} {topic_id}"


def open_stores(settings: Settings, directory: Path) -> StoreFactory:
    """The row store that the settings ask for."""
    if settings.store == "memory":
        return MemoryStores()
    from app.engine.stores.rocksdb import RocksStores  # only who uses it pays for loading it

    return RocksStores(directory / "rows")
