"""What a transaction sends: batches of records, and the requests that aiokafka does not have, or not fast enough.

A unit of work touches many partitions with few records each. librdkafka registers and sends each partition by a
request of its own; here one request registers all of them and one carries all that a broker leads.
Source: Kafka's protocol guide; KIP-98 (transactions), KIP-447 (offsets under the group's generation).
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from struct import Struct
from typing import Any, Final

from aiokafka.protocol.api import Request, RequestStruct, Response
from aiokafka.protocol.produce import ProduceRequest_v7
from aiokafka.protocol.types import CompactArray, CompactString, Int16, Int32, Int64, Schema, String, TaggedFields
from aiokafka.record.default_records import DefaultRecordBatchBuilder

BATCH_BYTES: Final = 1_000_000
"""A batch holds no more, unless a single record does: a topic's limit, 1 MiB where nobody set it, is one on batches."""

SEQUENCE_MODULUS: Final = 2**31

Headers = list[tuple[str, bytes]]

Pair = tuple[bytes | None, bytes | None]
"""Key and value of a record."""

_MAGIC: Final = 2
_NOT_COMPRESSED: Final = 0
_NO_HEADERS: Final[Headers] = []
_ALL_IN_SYNC: Final = -1
_ACKS_AND_TIMEOUT: Final = Struct(">hi")
_PARTITION_AND_LENGTH: Final = Struct(">ii")


@dataclass(frozen=True, slots=True)
class Identity:
    """Who writes: the producer id that the coordinator gave to a transactional id, and its epoch."""

    producer_id: int
    epoch: int


@dataclass(frozen=True, slots=True)
class Member:
    """Under which membership offsets are committed: the broker refuses those of an older generation."""

    group: str
    generation: int
    member_id: str


class Batches:
    """Records of one partition as batches, in order.

    They are encoded as they come, while the processor has them in its caches, and not as late as the transaction
    begins. Who writes them, and with which numbers, is said when they are built.
    """

    __slots__ = ("_builder", "_full", "_here", "_total")

    def __init__(self) -> None:
        self._full: list[tuple[Any, int]] = []
        self._total = 0
        self._builder = _builder()
        self._here = 0

    @property
    def count(self) -> int:
        """How many records there are."""
        return self._total + self._here

    def add(self, pairs: Iterable[Pair], now_ms: int) -> None:
        """Add records that are no more than keys and values; ``now_ms`` is their timestamp."""
        append, here = self._builder.append, self._here
        for key, value in pairs:
            if append(here, now_ms, key, value, _NO_HEADERS) is None:
                self._here = here
                append, here = self._begin(), 0
                append(here, now_ms, key, value, _NO_HEADERS)
            here += 1
        self._here = here

    def append(self, key: bytes | None, value: bytes | None, headers: Headers, now_ms: int) -> None:
        """Add one record that may have headers."""
        if self._builder.append(self._here, now_ms, key, value, headers) is None:
            self._begin()(0, now_ms, key, value, headers)
        self._here += 1

    def _begin(self) -> Any:
        """Begin another batch and return what appends to it."""
        self._full.append((self._builder, self._here))
        self._total += self._here
        self._builder, self._here = _builder(), 0
        return self._builder.append

    def build(self, identity: Identity, sequence: int) -> list[bytearray]:
        """The batches, once: the first record has the number ``sequence``, each of the others the next one."""
        batches = []
        for builder, count in [*self._full, (self._builder, self._here)]:
            if count:
                builder.set_producer_state(identity.producer_id, identity.epoch, sequence)
                batches.append(builder.build())
                sequence = (sequence + count) % SEQUENCE_MODULUS
        return batches


def _builder() -> Any:
    return DefaultRecordBatchBuilder(_MAGIC, _NOT_COMPRESSED, 1, -1, -1, -1, BATCH_BYTES)


class ProduceRequestV7(ProduceRequest_v7):
    """Version 7, encoded at once.

    aiokafka encodes a request from the inside out and copies its batches for each layer: that took as long as encoding
    the records.
    """

    def encode(self) -> bytes:
        fields: Any = self
        text = String("utf-8")
        parts = [text.encode(fields.transactional_id), _ACKS_AND_TIMEOUT.pack(fields.required_acks, fields.timeout)]
        parts.append(Int32.encode(len(fields.topics)))
        for topic, entries in fields.topics:
            parts += (text.encode(topic), Int32.encode(len(entries)))
            for partition, batch in entries:
                parts += (_PARTITION_AND_LENGTH.pack(partition, len(batch)), batch)
        return b"".join(parts)


class ProduceRequest(Request[ProduceRequestV7]):
    """Batches for partitions that one broker leads, acknowledged by all in-sync replicas.

    Every broker that takes offsets under a generation (KIP-447) knows its version.
    """

    API_KEY = 0

    def __init__(
        self, transactional_id: str, timeout_ms: int, batches: Mapping[str, Sequence[tuple[int, bytearray]]]
    ) -> None:
        self._fields = (transactional_id, _ALL_IN_SYNC, timeout_ms, list(batches.items()))

    def build(self, request_struct_class: type[ProduceRequestV7]) -> ProduceRequestV7:
        return request_struct_class(*self._fields)


class TxnOffsetCommitResponseV3(Response):
    """Version 3, the first one whose request names generation and member."""

    API_KEY = 28
    API_VERSION = 3
    SCHEMA = Schema(
        ("throttle_time_ms", Int32),
        (
            "errors",
            CompactArray(
                ("topic", CompactString("utf-8")),
                (
                    "partition_errors",
                    CompactArray(("partition", Int32), ("error_code", Int16), ("tags", TaggedFields)),
                ),
                ("tags", TaggedFields),
            ),
        ),
        ("tags", TaggedFields),
    )


class TxnOffsetCommitRequestV3(RequestStruct):
    """See :class:`TxnOffsetCommitRequest`."""

    API_KEY = 28
    API_VERSION = 3
    FLEXIBLE_VERSION = True
    RESPONSE_TYPE = TxnOffsetCommitResponseV3
    SCHEMA = Schema(
        ("transactional_id", CompactString("utf-8")),
        ("group_id", CompactString("utf-8")),
        ("producer_id", Int64),
        ("producer_epoch", Int16),
        ("generation_id", Int32),
        ("member_id", CompactString("utf-8")),
        ("group_instance_id", CompactString("utf-8")),
        (
            "topics",
            CompactArray(
                ("topic", CompactString("utf-8")),
                (
                    "partitions",
                    CompactArray(
                        ("partition", Int32),
                        ("offset", Int64),
                        ("leader_epoch", Int32),
                        ("metadata", CompactString("utf-8")),
                        ("tags", TaggedFields),
                    ),
                ),
                ("tags", TaggedFields),
            ),
        ),
        ("tags", TaggedFields),
    )


class TxnOffsetCommitRequest(Request[TxnOffsetCommitRequestV3]):
    """The offsets of a transaction, under a membership, each with the same metadata.

    The metadata ends with a zero byte, as those that librdkafka writes do: its readers take it for a string of C.
    """

    API_KEY = 28

    def __init__(
        self,
        transactional_id: str,
        identity: Identity,
        member: Member,
        offsets: Mapping[str, Sequence[tuple[int, int]]],
        metadata: str,
    ) -> None:
        self._fields = (transactional_id, identity, member, offsets, metadata)

    def build(self, request_struct_class: type[TxnOffsetCommitRequestV3]) -> TxnOffsetCommitRequestV3:
        transactional_id, identity, member, offsets, metadata = self._fields
        topics: list[Any] = [
            (topic, [(partition, offset, -1, f"{metadata}\0", {}) for partition, offset in entries], {})
            for topic, entries in offsets.items()
        ]
        return request_struct_class(
            transactional_id,
            member.group,
            identity.producer_id,
            identity.epoch,
            member.generation,
            member.member_id,
            None,
            topics,
            {},
        )
