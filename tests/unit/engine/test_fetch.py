"""What was fetched, sorted by partition."""

from confluent_kafka import Message

from app.engine.fetch import in_batches


def message(topic: str, partition: int, offset: int, value: bytes = b"") -> Message:
    return Message(topic=topic, partition=partition, offset=offset, key=b"k", value=value)


def test_records_of_a_partition_stay_in_their_order_however_the_runs_are_cut() -> None:
    fetched = [
        message("tasks", 0, 5, b"a"),
        message("tasks", 0, 6, b"bb"),
        message("work", 0, 1, b"ccc"),
        message("tasks", 1, 0, b"d"),
        message("tasks", 0, 9, b"ee"),
    ]
    found = {
        (batch.topic, batch.partition): ([record.offset() for record in batch.records], batch.next_offset, batch.size)
        for batch in in_batches(fetched)
    }
    assert found == {("tasks", 0): ([5, 6, 9], 10, 5), ("work", 0): ([1], 2, 3), ("tasks", 1): ([0], 1, 1)}


def test_nothing_fetched_is_no_batch() -> None:
    assert in_batches([]) == []
