"""How long the embedded broker takes to start, as `up` and `demo` start it."""

import statistics
import tempfile
import time
from pathlib import Path
from typing import Any

from app.engine.embedded_kafka import EmbeddedKafka


def start_times(runs: int) -> dict[str, Any]:
    """Start a broker in a new directory, then again in the same one: seconds until it answers."""
    first, again = [], []
    # The first start on a machine writes the archive of classes that all later ones use.
    for run in range(runs + 1):
        with tempfile.TemporaryDirectory(prefix="holdfast-bench-") as directory:
            kafka = EmbeddedKafka(Path(directory))
            seconds = _start(kafka)
            kafka.stop()
            if run:
                first.append(seconds)
                again.append(_start(kafka))
                kafka.stop()
    return {
        "new_s": round(statistics.median(first), 2),
        "again_s": round(statistics.median(again), 2),
        "runs": runs,
    }


def _start(kafka: EmbeddedKafka) -> float:
    begun = time.perf_counter()
    kafka.start()
    return time.perf_counter() - begun
