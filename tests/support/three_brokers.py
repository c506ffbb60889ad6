"""A Kafka cluster of three real brokers, three processes, every topic on all of them."""

import shutil
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path
from types import TracebackType
from typing import Final, Self

from app.engine.embedded_kafka import EmbeddedKafka
from app.engine.embedded_kafka.distribution import Distribution, Java
from app.engine.embedded_kafka.storage import Ports, Storage, _free_port, kafka_uuid

_NODES: Final = (1, 2, 3)
_START_S: Final = 90

_REPLICATED: Final[Mapping[str, str]] = {
    "default.replication.factor": "3",
    "min.insync.replicas": "2",
    "offsets.topic.replication.factor": "3",
    "transaction.state.log.replication.factor": "3",
    "transaction.state.log.min.isr": "2",
    # With two others to take its partitions, a broker that stops in good order gives them up first.
    "controlled.shutdown.enable": "true",
    "controller.quorum.election.timeout.ms": "500",
    "controller.quorum.fetch.timeout.ms": "1000",
    "replica.lag.time.max.ms": "3000",
}


class ThreeBrokers:
    """The cluster; a context manager. ``kill``, ``stop`` and ``start`` take the number of a broker, 1 to 3."""

    def __init__(self, directory: Path) -> None:
        self._cluster = kafka_uuid()
        self._ports = _ports()
        voters = ",".join(f"{node}@127.0.0.1:{self._ports[node].controller}" for node in _NODES)
        self._brokers = {node: self._broker(directory / f"broker-{node}", node, voters) for node in _NODES}
        self._stack = ExitStack()

    def __enter__(self) -> Self:
        for broker in self._brokers.values():
            self._stack.callback(broker.stop)
        # None serves before there is a majority.
        try:
            with ThreadPoolExecutor(len(_NODES)) as pool:
                list(pool.map(lambda broker: broker.start(_START_S), self._brokers.values()))
        except BaseException:
            self._stack.close()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        with ThreadPoolExecutor(len(_NODES)) as pool:
            list(pool.map(EmbeddedKafka.kill, self._brokers.values()))
        self._stack.close()

    @property
    def bootstrap(self) -> str:
        return ",".join(f"127.0.0.1:{self._ports[node].client}" for node in _NODES)

    def kill(self, node: int) -> None:
        """End a broker with SIGKILL."""
        self._brokers[node].kill()

    def start(self, node: int) -> None:
        self._brokers[node].start(_START_S)

    def _broker(self, directory: Path, node: int, voters: str) -> EmbeddedKafka:
        ports = self._ports[node]
        own = {"node.id": str(node), "controller.quorum.voters": voters}
        kafka = EmbeddedKafka(directory, port=ports.client, config={**_REPLICATED, **own})
        self._format(kafka._storage, node)
        # The others must know its ports before it has chosen them.
        kafka._storage.choose_ports = lambda wanted: ports  # type: ignore[method-assign]
        return kafka

    def _format(self, storage: Storage, node: int) -> None:
        """As StorageTool would, with the cluster's id and the broker's own."""
        java = Java.find()
        assert java is not None, "three brokers need Java"
        storage.data.mkdir(parents=True)
        shutil.copyfile(Distribution.fetch(java).checkpoint, storage.data / "bootstrap.checkpoint")
        (storage.data / "meta.properties").write_text(
            f"version=1\nnode.id={node}\ncluster.id={self._cluster}\ndirectory.id={kafka_uuid()}\n"
        )


def _ports() -> dict[int, Ports]:
    taken: tuple[int, ...] = ()
    for _ in range(3 * len(_NODES)):
        taken += (_free_port(taken),)
    return {node: Ports(*taken[3 * place : 3 * place + 3]) for place, node in enumerate(_NODES)}
