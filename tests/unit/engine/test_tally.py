"""What an engine counts."""

from collections import Counter

from app.engine.tally import Histogram, Tally


def test_a_histogram_counts_by_upper_bound() -> None:
    histogram = Histogram((1, 2))
    for value in (0.5, 1, 1.5, 2, 9):
        histogram.observe(value)
    assert histogram.counts == [2, 2, 1]
    assert histogram.sum == 14


def test_a_unit_is_counted_by_topic_and_looked_at_where_somebody_wants_to() -> None:
    seen: list[object] = []
    tally = Tally()
    tally.looks = {"events": lambda record: seen.append(record["value"])}
    tally.committed(
        Counter({"work": 3, "events": 2, "delay": 1}),
        [{"topic": "events", "value": b"first", "key": b"k"}, {"topic": "events", "value": b"second", "key": None}],
    )
    assert dict(tally.written) == {"work": 3, "events": 2, "delay": 1}
    assert seen == [b"first", b"second"]
    assert tally.unit_records.sum == 6


def test_a_clock_that_is_behind_makes_no_record_younger_than_new() -> None:
    tally = Tally()
    tally.aged("tasks", -3.0)
    assert tally.ages["tasks"].sum == 0


def test_reading_and_restoring_add_up() -> None:
    tally = Tally()
    tally.delivered("tasks", 3, 0.25)
    tally.delivered("tasks", 2, 0.25)
    tally.restored(7, 1.5)
    tally.restored(1, 0.5)
    assert (tally.read["tasks"], tally.busy_s["tasks"]) == (5, 0.5)
    assert (tally.restored_places, tally.restored_rows, tally.restoring_s) == (2, 8, 2.0)
