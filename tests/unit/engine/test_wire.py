"""Batches as they go to the broker."""

from typing import Any

from aiokafka.protocol.produce import ProduceRequest_v7
from aiokafka.record.default_records import DefaultRecordBatch

from app.engine.wire import BATCH_BYTES, SEQUENCE_MODULUS, Batches, Identity, ProduceRequest

IDENTITY = Identity(producer_id=7, epoch=3)


def packed(*values: bytes) -> Batches:
    batches = Batches()
    batches.add(((b"k", value) for value in values), 0)
    assert batches.count == len(values)
    return batches


def test_a_batch_says_who_writes_and_from_which_number_on() -> None:
    headers = [("origin", b"0:7")]
    batches = Batches()
    batches.add([(b"k", b"1")], 1_000)
    batches.append(b"k", None, headers, 1_001)
    batches.add([(None, b"3")], 1_002)
    [encoded] = batches.build(IDENTITY, 40)
    batch = DefaultRecordBatch(encoded)
    assert batch.validate_crc()
    assert batch.is_transactional
    assert (batch.producer_id, batch.producer_epoch, batch.base_sequence) == (7, 3, 40)
    assert [(found.key, found.value, found.headers, found.timestamp) for found in batch] == [
        (b"k", b"1", [], 1_000),
        (b"k", None, headers, 1_001),
        (None, b"3", [], 1_002),
    ]


def test_what_does_not_fit_goes_on_with_the_next_number() -> None:
    values = [b"%04d" % number + bytes(300_000) for number in range(8)]
    one_by_one = Batches()
    for value in values:
        one_by_one.append(b"k", value, [], 0)
    for made in (packed(*values), one_by_one):
        batches = [DefaultRecordBatch(encoded) for encoded in made.build(IDENTITY, 0)]
        assert len(batches) > 2
        found: list[bytes | None] = []
        for batch in batches:
            assert batch.base_sequence == len(found)
            found += [entry.value for entry in batch]
        assert found == values
        assert made.count == len(values)


def test_a_record_larger_than_a_batch_has_one_of_its_own() -> None:
    large = bytes(2 * BATCH_BYTES)
    batches = [DefaultRecordBatch(encoded) for encoded in packed(b"1", large, b"2").build(IDENTITY, 0)]
    assert [[entry.value for entry in batch] for batch in batches] == [[b"1"], [large], [b"2"]]


def test_numbers_begin_anew_where_they_end() -> None:
    batches = packed(bytes(BATCH_BYTES), b"1").build(IDENTITY, SEQUENCE_MODULUS - 1)
    assert [DefaultRecordBatch(encoded).base_sequence for encoded in batches] == [SEQUENCE_MODULUS - 1, 0]


def test_nothing_is_no_batch() -> None:
    assert Batches().build(IDENTITY, 0) == []


def test_a_request_is_encoded_as_aiokafka_would() -> None:
    batches = {"work": [(0, bytearray(b"abc")), (7, bytearray(b"d"))], "höme": [(3, bytearray(b""))]}
    fields: Any = ("id", -1, 5_000, list(batches.items()))
    request = ProduceRequest("id", 5_000, batches).prepare({0: (0, 9)})
    assert request.API_VERSION == 7
    assert request.encode() == ProduceRequest_v7(*fields).encode()
