"""A real Apache Kafka of one node as a child process: for ``up``, ``demo`` and the tests."""

from app.engine.embedded_kafka.broker import EmbeddedKafka

__all__ = ["EmbeddedKafka"]
