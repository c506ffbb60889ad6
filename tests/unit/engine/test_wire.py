"""Batches as they go to the broker."""

from typing import Any

from aiokafka.record.default_records import DefaultRecordBatch

from app.engine.wire import BATCH_BYTES, SEQUENCE_MODULUS, Identity, encode

IDENTITY = Identity(producer_id=7, epoch=3)


def record(value: bytes | None, **more: Any) -> dict[str, Any]:
    return {"key": b"k", "value": value, **more}


def test_a_batch_says_who_writes_and_from_which_number_on() -> None:
    headers = [("origin", b"0:7")]
    [encoded] = encode([record(b"1"), record(None, headers=headers), {"key": None, "value": b"3"}], IDENTITY, 40, 1_000)
    batch = DefaultRecordBatch(encoded)
    assert batch.validate_crc()
    assert batch.is_transactional
    assert (batch.producer_id, batch.producer_epoch, batch.base_sequence) == (7, 3, 40)
    assert [(found.key, found.value, found.headers, found.timestamp) for found in batch] == [
        (b"k", b"1", [], 1_000),
        (b"k", None, headers, 1_000),
        (None, b"3", [], 1_000),
    ]


def test_what_does_not_fit_goes_on_with_the_next_number() -> None:
    values = [b"%04d" % number + bytes(300_000) for number in range(8)]
    batches = [DefaultRecordBatch(encoded) for encoded in encode(map(record, values), IDENTITY, 0, 0)]
    assert len(batches) > 2
    found: list[bytes | None] = []
    for batch in batches:
        assert batch.base_sequence == len(found)
        found += [entry.value for entry in batch]
    assert found == values


def test_a_record_larger_than_a_batch_has_one_of_its_own() -> None:
    large = bytes(2 * BATCH_BYTES)
    batches = [DefaultRecordBatch(encoded) for encoded in encode(map(record, (b"1", large, b"2")), IDENTITY, 0, 0)]
    assert [[entry.value for entry in batch] for batch in batches] == [[b"1"], [large], [b"2"]]


def test_numbers_begin_anew_where_they_end() -> None:
    values = (bytes(BATCH_BYTES), b"1")
    batches = encode(map(record, values), IDENTITY, SEQUENCE_MODULUS - 1, 0)
    assert [DefaultRecordBatch(encoded).base_sequence for encoded in batches] == [SEQUENCE_MODULUS - 1, 0]


def test_nothing_is_no_batch() -> None:
    assert encode((), IDENTITY, 0, 0) == []
