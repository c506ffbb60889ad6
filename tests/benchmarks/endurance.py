"""Full load for minutes: resident memory, disk and lag must not grow.

Two workers, a sender that keeps a bounded number of tasks ahead of them. Disk is what the workers are answerable for:
their state directories, `work`, `handoffs`, `delay` and the changelogs; `tasks` and `results` follow retention. In
the end the numbers of all sessions must add up to the tasks sent.
"""

import statistics
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Final

from confluent_kafka import ConsumerGroupTopicPartitions, Producer
from confluent_kafka.admin import AdminClient
from confluent_kafka.admin._config import AlterConfigOpType, ConfigEntry, ConfigResource
from confluent_kafka.admin._resource import ResourceType

from app.observe.reading import end_offsets, read
from app.protocol.murmur2 import partition_of
from app.topics import Names
from tables import sessions
from tests.benchmarks.bench import Bench, resident_bytes
from tests.benchmarks.kafka import Topics
from tests.benchmarks.measurement import Goal, Measurement, Sample, figure, of
from tests.benchmarks.traffic import KIND, TENANTS, populate, settle
from tests.support.cluster import Workers, wait_for

NAME: Final = "endurance"
ABOUT: Final = "full load for minutes: memory, disk and lag"
WORKERS: Final = ("w1", "w2")
AHEAD: Final = 60_000
CHUNK: Final = 20_000
SAMPLE_S: Final = 1.0
SESSIONS: Final = 20_000
MEANT: Final = 29.0
# Enough that nothing unread is ever deleted, little enough that half an hour fits onto a disk.
RETENTION: Final = {"retention.bytes": str(512 << 20), "segment.bytes": str(128 << 20)}
DRAIN_S: Final = 120.0


def measure(bench: Bench) -> Iterator[Sample]:
    with bench.workers("endurance") as workers:
        workers.topics()
        names = Names(workers.namespace)
        admin = AdminClient({**workers.config})
        _retain(admin, (names.tasks, names.results))
        workers.start_ready(*WORKERS)
        settle(workers, set(WORKERS))
        populate(workers, min(SESSIONS, bench.options.sessions))
        load = _Load(workers, admin, min(SESSIONS, bench.options.sessions))
        begun = time.monotonic()
        due = begun
        while (now := time.monotonic()) - begun < bench.options.minutes * 60:
            lag = load.top_up()
            if now >= due:
                due += SAMPLE_S
                yield {"series": "second", "run": workers.namespace, **_sample(bench, workers, now - begun, lag, load)}
        rate = (load.sent - load.made - load.lag()) / (time.monotonic() - begun)
        # Behind the last record of each stream stands the marker of its transaction.
        markers = 2 * workers.settings.servers
        wait_for(lambda: load.lag() <= markers, DRAIN_S, "nearly everything is performed")
        wait_for(lambda: _performed(workers) == load.sent, DRAIN_S, f"{load.sent} tasks are performed")
        yield {"series": "account", "sent": load.sent, "tasks_per_s": rate}


class _Load:
    """Keeps ``AHEAD`` tasks before the workers."""

    def __init__(self, workers: Workers, admin: AdminClient, count: int) -> None:
        names = Names(workers.namespace)
        self.sent = self.made = count
        self._admin = admin
        self._group = names.group
        self._topics = Topics(
            workers.config, {names.tasks: workers.settings.routers, names.work: workers.settings.servers}
        )
        self._tasks = names.tasks
        self._producer = Producer({**workers.config, "linger.ms": 5, "queue.buffering.max.messages": 200_000})
        self._batches = self._make(count, workers.settings.routers)

    def _make(self, count: int, routers: int) -> dict[int, list[dict[str, bytes]]]:
        """One chunk of tasks by partition, sent again and again."""
        found: dict[int, list[dict[str, bytes]]] = {part: [] for part in range(routers)}
        tenants = min(TENANTS, count)
        for number in range(CHUNK):
            session = number * 7_919 % count
            tenant = b"t%04d" % (session % tenants)
            value = b'{"tenant":"%b","session":"s%05d","type":"%b","payload":{}}' % (tenant, session, KIND.encode())
            found[partition_of(tenant, routers)].append({"key": tenant, "value": value})
        return found

    def lag(self) -> int:
        """Records of `tasks` and `work` that no unit has committed yet, and markers behind them."""
        asked = [ConsumerGroupTopicPartitions(self._group)]
        found = self._admin.list_consumer_group_offsets(asked)[self._group].result(10).topic_partitions
        committed = {(place.topic, place.partition): place.offset for place in found}
        ends = self._topics.ends()
        return sum(end - max(0, committed.get(place, 0)) for place, end in ends.items())

    def top_up(self) -> int:
        lag = self.lag()
        if lag < AHEAD:
            for part, batch in self._batches.items():
                assert self._producer.produce_batch(self._tasks, [dict(entry) for entry in batch], part) == len(batch)
            self.sent += CHUNK
            assert self._producer.flush(60) == 0
        else:
            time.sleep(0.02)
        return lag


def _retain(admin: AdminClient, topics: Sequence[str]) -> None:
    resources = [
        ConfigResource(
            ResourceType.TOPIC,
            topic,
            incremental_configs=[
                ConfigEntry(name, value, incremental_operation=AlterConfigOpType.SET)
                for name, value in RETENTION.items()
            ],
        )
        for topic in topics
    ]
    for future in admin.incremental_alter_configs(resources).values():
        future.result(20)


def _sample(bench: Bench, workers: Workers, at: float, lag: int, load: _Load) -> Sample:
    names = Names(workers.namespace)
    own = (names.work, names.handoffs, names.delay)
    log_bytes = 0
    if bench.broker_data is not None:
        for entry in bench.broker_data.glob(f"{names.prefix}*"):
            topic = entry.name.rpartition("-")[0]
            if topic in own or topic.endswith("-changelog"):
                log_bytes += _bytes(entry)
    return {
        "at_s": round(at, 1),
        "sent": load.sent,
        "lag": lag,
        "rss_bytes": sum(resident_bytes(worker.pid) for worker in workers.running),
        "log_bytes": log_bytes,
        "state_bytes": _bytes(workers.directory / "state"),
    }


def _bytes(directory: Path) -> int:
    """Blocks on the disk: index files of Kafka are long and empty."""
    total = 0
    for path in directory.rglob("*"):
        try:
            total += path.stat().st_blocks * 512
        except OSError:
            # Deleted between the listing and the look.
            continue
    return total


def _performed(workers: Workers) -> int:
    """Sum of the numbers of all sessions, as their changelog has them."""
    topic = Names(workers.namespace).changelog(sessions.NAME)
    deadline = time.monotonic() + DRAIN_S
    latest: dict[bytes, int] = {}
    for message in read(workers.config, end_offsets(workers.config, [topic], deadline=deadline), {}, deadline=deadline):
        value = message.value()
        if value is not None:
            latest[message.key() or b""] = sessions.decode(value).sequence
    return sum(latest.values())


def judge(samples: Sequence[Sample]) -> list[Measurement]:
    runs = {sample["run"]: None for sample in of(samples, "second")}
    if not runs:
        return []
    seconds = of(samples, "second", run=list(runs)[-1])
    length = seconds[-1]["at_s"] / 60
    note = f"{length:.1f} minutes"
    # In short runs caches are still being filled and nothing is compacted yet.
    flat = Goal("≤", 1.05) if length >= MEANT else None
    found = [
        figure("full load, tasks", "tasks/s", [run["tasks_per_s"] for run in of(samples, "account")], note=note),
    ]
    for name, title in (("rss_bytes", "RSS of all workers"), ("log_bytes", "disk of their topics")):
        middle, last = _third(seconds, name, 1), _third(seconds, name, 2)
        if middle:
            found.append(figure(f"{title}, last third to middle third", "x", [last / middle], goal=flat, note=note))
            found.append(figure(f"{title}, last third", "MiB", [last / 2**20], note=note))
    middle, last = _third(seconds, "lag", 1), _third(seconds, "lag", 2)
    # A sender that waits for the workers keeps the lag at its bound; growth beyond it would show here.
    lag = Goal("≤", 2.0 * AHEAD)
    before = f"{middle:,.0f} in the middle third"
    found.append(figure("lag in the last third", "records", [last], goal=lag, note=before))
    return found


def _third(seconds: Sequence[Sample], name: str, number: int) -> float:
    size = max(1, len(seconds) // 3)
    part = seconds[number * size : (number + 1) * size] or seconds[-1:]
    return statistics.fmean(sample[name] for sample in part)


def plot(samples: Sequence[Sample], pyplot: Any) -> Any:
    runs = {sample["run"]: None for sample in of(samples, "second")}
    if not runs:
        return None
    seconds = of(samples, "second", run=list(runs)[-1])
    minutes = [sample["at_s"] / 60 for sample in seconds]
    drawn, axes = pyplot.subplots(3, 1, figsize=(8, 7), sharex=True)
    for axis, name, unit, scale in (
        (axes[0], "rss_bytes", "RSS of all workers, MiB", 2**20),
        (axes[1], "log_bytes", "disk of their topics, MiB", 2**20),
        (axes[2], "lag", "lag, thousand records", 1_000),
    ):
        axis.plot(minutes, [sample[name] / scale for sample in seconds])
        axis.set_ylabel(unit)
        axis.set_ylim(bottom=0)
    axes[2].set_xlabel("minutes at full load")
    return drawn
