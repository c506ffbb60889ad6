"""How long the embedded broker takes to start, as `up` and `demo` start it."""

import time
from collections.abc import Iterator, Sequence
from typing import Any, Final

from app.engine.embedded_kafka import EmbeddedKafka
from tests.benchmarks.bench import Bench
from tests.benchmarks.measurement import Measurement, Sample, figure, of

NAME: Final = "broker"
ABOUT: Final = "starts of the embedded broker"


def measure(bench: Bench) -> Iterator[Sample]:
    """Start a broker in a new directory, then again in the same one: seconds until it answers."""
    # The first start on a machine writes the archive of classes that all later ones use.
    for number in range(bench.options.starts + 1):
        bench.say(f"start {number} of {bench.options.starts}")
        kafka = EmbeddedKafka(bench.scratch / f"broker-{number}")
        new_s, again_s = _start(kafka), _start(kafka)
        if number:
            yield {"series": "start", "new_s": new_s, "again_s": again_s}


def _start(kafka: EmbeddedKafka) -> float:
    begun = time.perf_counter()
    kafka.start()
    took = time.perf_counter() - begun
    kafka.stop()
    return took


def judge(samples: Sequence[Sample]) -> list[Measurement]:
    starts = of(samples, "start")
    return [
        figure("embedded broker, new directory", "s", (start["new_s"] for start in starts)),
        figure("embedded broker, started again", "s", (start["again_s"] for start in starts)),
    ]


def plot(samples: Sequence[Sample], pyplot: Any) -> Any:
    return None
