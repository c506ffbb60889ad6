"""The reference job: route by keyed state and count per tenant, exactly once; every output record is checked.

Four input partitions with preloaded records of about 95 bytes of JSON, 1,000 tenants. For each record: the tenant's
placement from keyed state, its sequence + 1 in state with a changelog, the same bytes with the sequence in front to
one of 8 partitions by placement, the session as key. All engines write the same bytes.

``cold``: records a second from the start of the process to the last committed record. ``warm``: after the first half.
"""

import random
import statistics
import zlib
from collections.abc import Iterator, Sequence
from typing import Any, Final

from confluent_kafka import Consumer, TopicPartition

from tests.benchmarks.bench import Bench, Process, cpu_seconds
from tests.benchmarks.kafka import Config, Topics, preload, rate, thinned, watch
from tests.benchmarks.measurement import Goal, Measurement, Sample, compared, of
from tests.benchmarks.peers.engines import OURS, REFERENCE, Absent, Engine, variables, wanted
from tests.benchmarks.reference_worker import INPUTS, OUTPUTS
from tests.benchmarks.rounds import rounds

NAME: Final = "reference"
ABOUT: Final = "the reference job, one worker, exactly once"
TENANTS: Final = 1_000
MEANT: Final = 2_000_000
PARSED: Final = ("streams-memory", "streams-cached")


def measure(bench: Bench) -> Iterator[Sample]:
    counts = {engine.records(bench.options.records) for engine in wanted(REFERENCE, bench.options.engines)}
    inputs = {count: _inputs(bench, count) for count in sorted(counts)}

    def run(engine: Engine) -> Sample:
        count = engine.records(bench.options.records)
        return _run(bench, engine, count, inputs[count])

    yield from rounds(bench, wanted(REFERENCE, bench.options.engines), run)
    for name in inputs.values():
        Topics(bench.config, {name: INPUTS}).delete()


def judge(samples: Sequence[Sample]) -> list[Measurement]:
    found = []
    # A start weighs more in a shorter run, on both sides.
    enough = min((run["records"] for run in of(samples, "run", engine=OURS)), default=0) >= MEANT
    for engine in REFERENCE[1:]:
        absent = of(samples, "absent", engine=engine.key)
        for kind, limit in _goals(engine).items():
            goal = limit if enough or engine.most is not None else None
            name = f"reference job, {kind}"
            if absent:
                found.append(Measurement(name, "records/s", peer=engine.name, goal=goal, absent=absent[-1]["why"]))
            elif of(samples, "run", engine=engine.key):
                theirs = kind if engine.most is None else "steady"
                pairs = _pairs(samples, engine.key, kind, theirs)
                note = f"{engine.name} without its start, on fewer records" if engine.most is not None else ""
                found.append(compared(name, "records/s", pairs, engine.name, goal=goal, note=note))
    return found


def _goals(engine: Engine) -> dict[str, Goal | None]:
    if engine.key in PARSED:
        return {"cold": Goal("≥", 2.0, of_ratio=True), "warm": Goal("≥", 1.4, of_ratio=True)}
    if engine.key == "loop":
        return {"cold": Goal("≥", 0.7, of_ratio=True), "warm": Goal("≥", 0.7, of_ratio=True)}
    if engine.key == "quix":
        return {"cold": Goal("≥", 15.0, of_ratio=True)}
    return {"cold": None} if engine.most is not None else {"cold": None, "warm": None}


def _pairs(samples: Sequence[Sample], key: str, ours: str, theirs: str) -> Iterator[tuple[float, float]]:
    for peer in of(samples, "run", engine=key):
        for own in of(samples, "run", engine=OURS, round=peer["round"]):
            yield own[f"{ours}_per_s"], peer[f"{theirs}_per_s"]


def plot(samples: Sequence[Sample], pyplot: Any) -> Any:
    keys = [engine.key for engine in REFERENCE if of(samples, "run", engine=engine.key)]
    figure, (bars, course) = pyplot.subplots(1, 2, figsize=(12, 4.5))
    for offset, kind in ((-0.2, "cold"), (0.2, "warm")):
        for index, key in enumerate(keys):
            runs = [run[f"{kind}_per_s"] / 1000 for run in of(samples, "run", engine=key)]
            colour = "tab:blue" if kind == "cold" else "tab:orange"
            label = kind if not index else None
            bars.bar(index + offset, statistics.median(runs), 0.38, color=colour, label=label)
            bars.plot([index + offset] * len(runs), runs, "k.", markersize=4)
    bars.set_xticks(range(len(keys)), keys, rotation=20)
    bars.set_ylabel("thousand records a second")
    bars.set_title("Reference job: median and single runs")
    bars.legend()
    for key in keys:
        last = of(samples, "run", engine=key)[-1]
        points = last.get("curve", [])
        course.plot([point[0] for point in points], [point[1] * last["records"] / 1e6 for point in points], label=key)
    course.set_xlabel("seconds since the start of the process")
    course.set_ylabel("million records committed")
    course.set_title("Last runs")
    course.legend()
    return figure


def _inputs(bench: Bench, count: int) -> str:
    bench.say(f"{NAME}: {count:,} records are written")
    topic = f"{bench.name('in')}-{count}"
    Topics(bench.config, {topic: INPUTS}).create()
    preload(bench.config, topic, INPUTS, _records(count))
    return topic


def _records(count: int) -> Iterator[tuple[int, bytes, bytes]]:
    rng = random.Random(7)
    tenants = [b"t%04d" % number for number in range(TENANTS)]
    partitions = {tenant: zlib.crc32(tenant[::-1]) % INPUTS for tenant in tenants}
    for number, tenant in enumerate(rng.choices(tenants, k=count)):
        value = b'{"tenant":"%b","session":"%032x","op":"decode","n":%d}' % (tenant, rng.getrandbits(128), number)
        yield partitions[tenant], tenant, value


def _run(bench: Bench, engine: Engine, count: int, source: str) -> Sample:
    run = bench.name(f"reference-{engine.key}")
    out, changelog = f"{run}.out", f"{run}.changelog"
    compacted = {changelog: INPUTS}
    if engine.key == OURS:
        compacted = {f"{run}.sequences-changelog": INPUTS, f"{run}.suspects": 1}
    made = Topics(bench.config, {out: OUTPUTS, **compacted})
    made.create(compacted=compacted)
    names = {"IN": source, "OUT": out, "CHANGELOG": changelog}
    environment = variables(engine, bench.bootstrap, run, bench.scratch / run, names)
    topics = Topics(bench.config, {out: OUTPUTS})
    with Process(engine.prepare(bench.tools), environment, bench.scratch / f"{run}.log") as process:
        try:
            curve = watch(topics, count, lambda: process.running)
        except TimeoutError as error:
            raise Absent(f"{error}; it said: {process.tail(3)}"[:400]) from None
        cpu = cpu_seconds(process.pid)
    _check(bench.config, out, count)
    made.delete(also=run)
    ended = curve[-1][0]
    return {
        "records": count,
        "cold_per_s": count / (ended - process.begun),
        "warm_per_s": rate(curve, count, 0.5),
        "steady_per_s": rate(curve, count, 0.1),
        "first_s": curve[1][0] - process.begun,
        "seconds": ended - process.begun,
        "cpu_s": cpu,
        "curve": thinned(curve, process.begun),
    }


def _check(config: Config, topic: str, count: int) -> None:
    """Every record once, at the right partition, the sequences of each tenant whole and in order."""
    options = {**config, "group.id": "check", "isolation.level": "read_committed", "enable.partition.eof": True}
    consumer = Consumer({**options, "enable.auto.commit": False, "queued.max.messages.kbytes": 262_144})
    consumer.assign([TopicPartition(topic, number, 0) for number in range(OUTPUTS)])
    sequences: dict[bytes, int] = {}
    places: dict[bytes, int] = {}
    seen = bytearray(count)
    open_ends = OUTPUTS
    while open_ends:
        for message in consumer.consume(10_000, 1.0):
            if message.error() is not None:
                open_ends -= 1
                continue
            prefix, _, value = (message.value() or b"").partition(b"|")
            # The form of the input is our own, so its fields are where they were written.
            tenant, session, number = value[11:16], value[29:61], int(value[81:-1])
            place = places.get(tenant)
            if place is None:
                place = places[tenant] = zlib.crc32(tenant) % OUTPUTS
            expected = sequences.get(tenant, 0) + 1
            assert message.partition() == place, f"{tenant!r} in partition {message.partition()}"
            assert message.key() == session
            assert int(prefix) == expected, f"{tenant!r}: {prefix!r} after {expected - 1}"
            sequences[tenant] = expected
            assert not seen[number], f"record {number} twice"
            seen[number] = 1
    consumer.close()
    assert sum(seen) == count, f"{count - sum(seen)} records lost"
