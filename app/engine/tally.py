"""What an engine counts: by batch, by unit of work and by restore, never by record.

What comes out is counted when its unit is committed, because what is not committed has not happened. The engine's
thread writes, any thread may read: a reader sees one number a moment before the other, never a wrong one.
"""

from bisect import bisect_left
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from typing import Any

COMMIT_S = (0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0, 2.0, 5.0, 10.0)
AGE_S = (0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0, 2.0, 5.0, 10.0, 30.0, 60.0, 300.0, 3600.0)
UNIT_RECORDS = (1, 10, 100, 1_000, 5_000, 10_000, 25_000, 50_000, 100_000)

Look = Callable[[Mapping[str, Any]], None]
"""Takes a record that was committed: ``key``, ``value`` and, if there are any, ``headers``."""


class Histogram:
    """Observations by upper bound; ``counts`` has one entry more, for what lies above all bounds."""

    __slots__ = ("bounds", "counts", "sum")

    def __init__(self, bounds: Sequence[float]) -> None:
        self.bounds = tuple(bounds)
        self.counts = [0] * (len(bounds) + 1)
        self.sum = 0.0

    def observe(self, value: float) -> None:
        self.counts[bisect_left(self.bounds, value)] += 1
        self.sum += value


class Tally:
    """The counts of one engine since its start."""

    def __init__(self) -> None:
        self.read: Counter[str] = Counter()
        """Records handed to agents, by topic; again those of a unit that was aborted."""
        self.busy_s: dict[str, float] = {}
        """Seconds that agents took for them, by topic."""
        self.ages: dict[str, Histogram] = {}
        """How old the first record of a batch was when its turn came, seconds, by topic."""
        self.written: Counter[str] = Counter()
        """Committed records, by topic."""
        self.failed_tasks = 0
        """Committed results that say `failed`."""
        self.units: Counter[str] = Counter()
        """Sealed units, by what became of them."""
        self.commit_s = Histogram(COMMIT_S)
        """Seconds from a unit's seal to the answer that it is committed."""
        self.unit_records = Histogram(UNIT_RECORDS)
        """Records that a committed unit wrote."""
        self.generations = 0
        """Assignments by the group."""
        self.restored_rows = 0
        self.restored_places = 0
        self.restoring_s = 0.0
        """Seconds from the assignment of each restored place to its last row, summed."""
        self.looks: dict[str, Look] = {}
        """Who looks at the committed records of a topic, one by one: only for topics of which little is written."""

    def delivered(self, topic: str, records: int, seconds: float) -> None:
        """An agent has taken so many records of a batch."""
        self.read[topic] += records
        self.busy_s[topic] = self.busy_s.get(topic, 0.0) + seconds

    def aged(self, topic: str, seconds: float) -> None:
        """The first record of a batch was so old when its turn came."""
        found = self.ages.get(topic)
        if found is None:
            found = self.ages[topic] = Histogram(AGE_S)
        found.observe(max(0.0, seconds))

    def committed(self, written: Counter[str], looked: Sequence[Mapping[str, Any]]) -> None:
        """A unit is in the log: how many records it wrote by topic, and those of topics that are looked at."""
        self.written.update(written)
        self.unit_records.observe(written.total())
        for record in looked:
            look = self.looks.get(record["topic"])
            if look is not None:
                look(record)

    def restored(self, rows: int, seconds: float) -> None:
        """A place has its rows."""
        self.restored_places += 1
        self.restored_rows += rows
        self.restoring_s += seconds
