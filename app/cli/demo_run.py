"""A run of the demo: a cluster, traffic, a worker killed with -9, and the account of every task."""

import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Final

from app import topics
from app.cli.demo_show import Show, Snapshot, WorkerLine
from app.cli.demo_traffic import Traffic, Watch
from app.cli.supervisor import Cluster
from app.cli.worker_process import Change
from app.observe.account import Account
from app.observe.reading import read_account
from app.settings import Settings, kafka_config
from app.topics import Names

WORKERS: Final = 3
RATE_PER_S: Final = 250.0
KILL_AT: Final = 0.4
"""When the worker is killed, as a share of the time of the traffic."""

REPLACE_AFTER_S: Final = 3.0
"""The others have taken over by then; the replacement joins a cluster that works."""

DRAIN_S: Final = 60.0
ACCOUNT_S: Final = 60.0
_TICK_S: Final = 0.1


@dataclass(frozen=True, slots=True)
class Outcome:
    """What the demo found. ``takeover_ms``: from the kill to the next result of a session that was there."""

    account: Account
    takeover_ms: int | None
    problems: tuple[str, ...]

    @property
    def ok(self) -> bool:
        """Whether all is right."""
        return self.account.ok and self.takeover_ms is not None and not self.problems

    def as_json(self) -> dict[str, Any]:
        """The last line of `--json`."""
        counts = ("sent", "performed", "failed", "lost", "doubled", "out_of_order", "gaps")
        return {
            "ok": self.ok,
            **{name: getattr(self.account, name) for name in counts},
            "pause_ms": None,
            "takeover_ms": self.takeover_ms,
        }


class Demo:
    """One run.

    Args:
        settings: with an empty ``bootstrap`` an embedded broker is started in the state directory.
        seconds: how long there is traffic.
        show: told what happens.
    """

    def __init__(self, settings: Settings, seconds: float, show: Show) -> None:
        self._seconds = seconds
        self._show = show
        self._cluster = Cluster(settings, WORKERS, on_change=self._changed)
        self._names = Names(settings.namespace)
        self._problems: list[str] = []
        self._ending = False
        self._foreign = bool(settings.bootstrap)

    def run(self) -> Outcome:
        """Run it.

        Raises:
            HoldfastError: the cluster could not be started, or the account not be read.
        """
        broker = self._cluster.settings.bootstrap or "an embedded broker"
        self._show.event(f"starting {WORKERS} workers on {broker}")
        with self._cluster:
            self._show.event(f"Kafka at {self._cluster.bootstrap}, workers are ready")
            with self._traffic() as (traffic, watch):
                takeover_s = self._kill(traffic, watch)
                self._until(self._seconds, traffic, watch, "traffic")
                traffic.stop()
                self._drain(traffic, watch)
            self._problems += traffic.refused[:1]
            account = self._read(traffic)
            self._ending = True
        if self._foreign:
            topics.delete(topics.connect(self._cluster.settings), self._cluster.settings)
        milliseconds = None if takeover_s is None else round(takeover_s * 1000)
        return Outcome(account, milliseconds, tuple(self._problems))

    @contextmanager
    def _traffic(self) -> Iterator[tuple[Traffic, Watch]]:
        config = kafka_config(self._cluster.settings)
        traffic = Traffic(config, self._names, RATE_PER_S)
        watch = Watch(config, self._names, self._cluster.settings.routers)
        self._begun = time.monotonic()
        watch.start()
        traffic.start()
        try:
            yield traffic, watch
        finally:
            traffic.stop()
            watch.stop()

    def _kill(self, traffic: Traffic, watch: Watch) -> float | None:
        """Kill the worker that hosts most servers, and replace it."""
        self._until(self._seconds * KILL_AT, traffic, watch, "traffic")
        servers: dict[str, int] = {}
        for host in watch.host.values():
            servers[host] = servers.get(host, 0) + 1
        if not servers:
            self._problems.append("no task was performed before the kill")
            return None
        name = max(servers, key=lambda host: servers[host])
        pid = self._cluster.kill(name)
        watch.expect_takeover(name, traffic.sent)
        self._show.event(f"kill -9 of {name}, which hosted {servers[name]} servers", worker=name, pid=pid)
        replace_at = time.monotonic() - self._begun + REPLACE_AFTER_S
        self._until(replace_at, traffic, watch, f"{name} is dead")
        self._cluster.start_worker(name, timeout=None)
        while watch.takeover_s is None and time.monotonic() - self._begun < self._seconds + DRAIN_S:
            self._tick(traffic, watch, f"{name} is dead")
        if watch.takeover_s is not None:
            self._show.event(f"its sessions went on after {watch.takeover_s:.2f} s")
        else:
            self._problems.append(f"the sessions of {name} did not go on")
        return watch.takeover_s

    def _drain(self, traffic: Traffic, watch: Watch) -> None:
        deadline = time.monotonic() + DRAIN_S
        while watch.results < traffic.acknowledged and time.monotonic() < deadline:
            self._tick(traffic, watch, "the last tasks")

    def _read(self, traffic: Traffic) -> Account:
        """Compare tasks and results, record by record."""

        def progress(seen: int, left: int) -> None:
            share = seen / max(1, seen + left)
            self._show.update(Snapshot("account", share, traffic.sent, traffic.acknowledged, 0))

        self._show.event("reading the account")
        account = read_account(
            kafka_config(self._cluster.settings),
            self._names.namespace,
            deadline=time.monotonic() + ACCOUNT_S,
            progress=progress,
        )
        if account.sent != traffic.acknowledged:
            self._problems.append(f"{traffic.acknowledged} tasks were confirmed, {account.sent} are in the topic")
        return account

    def _until(self, seconds: float, traffic: Traffic, watch: Watch, phase: str) -> None:
        while time.monotonic() - self._begun < seconds:
            self._tick(traffic, watch, phase)

    def _tick(self, traffic: Traffic, watch: Watch, phase: str) -> None:
        hosts: dict[str, list[int]] = {}
        for server, host in sorted(watch.host.items()):
            hosts.setdefault(host, []).append(server)
        lines = tuple(
            WorkerLine(
                worker.name,
                worker.pid,
                worker.state,
                tuple(hosts.get(worker.name, ())),
                watch.by_worker.get(worker.name, 0),
            )
            for worker in self._cluster.workers
        )
        done = (time.monotonic() - self._begun) / self._seconds
        self._show.update(Snapshot(phase, done, traffic.sent, watch.performed, watch.failed, lines))
        time.sleep(_TICK_S)

    def _changed(self, change: Change) -> None:
        if self._ending or (change.state == "started" and change.note):
            return
        self._show.event(
            f"{change.worker} (process {change.pid}) {change.state}",
            worker=change.worker,
            pid=change.pid,
            state=change.state,
            exit=change.exit,
        )
