"""A run of the demo: a cluster, traffic, everything that may happen to it, and the account of every task."""

import platform
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from importlib.metadata import version
from typing import Final

from app import topics
from app.cli import demo_steps
from app.cli.demo_show import Show, Snapshot
from app.cli.demo_stage import Stage
from app.cli.demo_story import Story
from app.cli.demo_traffic import Traffic, Watch, tenants_of
from app.cli.demo_work import Exchange
from app.cli.ending import Ending
from app.cli.supervisor import Cluster
from app.cli.worker_process import Change
from app.errors import HoldfastError
from app.observe.account import Account
from app.observe.reading import read_account
from app.settings import Settings, kafka_config
from app.topics import Names
from app.web.proxy import Proxy
from app.web.server import ServerThread

WORKERS: Final = 3
RATE_PER_S: Final = 300.0
DRAIN_S: Final = 30.0
SWIFT_MS: Final = 120.0
WARM_S: Final = 8.0
"""What is cold is slow at first: it is given so long to answer within :data:`SWIFT_MS`."""

ACCOUNT_S: Final = 60.0


class Demo:
    """One run.

    Args:
        settings: with an empty ``bootstrap`` an embedded broker is started in the state directory.
        seconds: how long there is traffic at least.
        show: told what happens.
        ending: told when the tidying up begins.
    """

    def __init__(self, settings: Settings, seconds: float, show: Show, ending: Ending) -> None:
        self._settings = settings
        self._seconds = seconds
        self._show = show
        self._ending = ending
        self._cluster = Cluster(settings, WORKERS, on_change=self._changed)
        self._names = Names(settings.namespace)
        self._quiet = False
        steps = demo_steps.steps(settings.servers, tenants_of(settings.servers) * settings.servers)
        self._stage = Stage(self._cluster, settings.state_dir, show, steps, seconds)

    def run(self, opened: Callable[[str], None]) -> Story:
        """Run it; ``opened`` is called with the console's address once all are ready.

        Raises:
            HoldfastError: the cluster could not be started, or the account not be read.
        """
        with ExitStack() as stack:
            if self._settings.bootstrap:
                stack.callback(self._delete)
            console = self._start(stack)
            opened(console)
            with self._traffic():
                self._play()
            return self._story(self._accounted())

    def _start(self, stack: ExitStack) -> str:
        """Start everything; return the address of the console."""
        step, begun = self._stage.steps[0], time.monotonic()
        self._stage.enter(step)
        self._show.update(Snapshot(step.key, 0.0, 0, 0, 0, (), self._stage.steps))
        stack.enter_context(self._cluster)
        console = stack.enter_context(self._front())
        # It is called first of all, and what follows it is the end of all processes.
        stack.callback(self._ends)
        step.outcome = f"ready after {time.monotonic() - begun:.1f} s; Kafka at {self._cluster.bootstrap}"
        step.state = "done"
        self._show.step(1, step)
        return console

    def _play(self) -> None:
        stage, watch, traffic = self._stage, self._stage.watch, self._stage.traffic
        with stage.step("traffic") as step:
            stage.wait(lambda: len(watch.host) == stage.cluster.settings.servers, "results of every server")
            warm_until = stage.now_s + WARM_S
            stage.wait(lambda: stage.median_ms() < SWIFT_MS or stage.now_s > warm_until, "a swift answer")
            stage.calm()
            step.outcome = f"{watch.results:,} tasks answered, each after about {stage.median_ms():.0f} ms"
        if not stage.problems:
            self._happen()
        while stage.now_s < self._seconds:
            stage.tick()
        traffic.stop()
        deadline = time.monotonic() + DRAIN_S
        while watch.results < traffic.acknowledged and time.monotonic() < deadline:
            stage.tick()
        stage.problems += traffic.refused[:1]

    def _happen(self) -> None:
        stage = self._stage
        # Its programs take their time to start: they do so while tenants move.
        exchange = Exchange(stage.cluster.settings)
        try:
            demo_steps.move(stage)
            stage.calm()
            demo_steps.fail_to_move(stage)
            stage.calm()
            demo_steps.kill(stage, exchange)
        finally:
            exchange.stop()
        stage.calm()
        demo_steps.fail(stage)

    @contextmanager
    def _front(self) -> Iterator[str]:
        front = ServerThread(Proxy(self._cluster.urls).application(), self._settings.host, 0, name="front")
        url = front.start()
        try:
            yield url
        finally:
            front.stop()

    @contextmanager
    def _traffic(self) -> Iterator[None]:
        config = kafka_config(self._cluster.settings)
        traffic = Traffic(config, self._names, RATE_PER_S, self._cluster.settings.servers)
        watch = Watch(config, self._names, self._cluster.settings.routers, traffic)
        self._stage.begin(traffic, watch)
        traffic.start()
        watch.start()
        try:
            yield
        finally:
            traffic.stop()
            watch.stop()

    def _accounted(self) -> Account:
        with self._stage.step("account") as step:
            account = self._read()
            if not account.ok:
                raise HoldfastError(str(account).partition("\n")[0])
            step.outcome = f"each of the {account.sent:,} tasks took effect once, in the order of its session"
        return account

    def _read(self) -> Account:
        """Compare tasks and results, record by record."""
        traffic = self._stage.traffic

        def progress(seen: int, left: int) -> None:
            share = seen / max(1, seen + left)
            counts = (traffic.sent, self._stage.watch.performed, self._stage.watch.failed)
            self._show.update(Snapshot("account", share, *counts, (), self._stage.steps))

        account = read_account(
            kafka_config(self._cluster.settings),
            self._names.namespace,
            deadline=time.monotonic() + ACCOUNT_S,
            progress=progress,
        )
        if account.sent != traffic.acknowledged:
            self._stage.problems.append(f"{traffic.acknowledged} tasks were confirmed, {account.sent} are in the topic")
        return account

    def _story(self, account: Account) -> Story:
        stage, watch = self._stage, self._stage.watch
        return Story(
            account=account,
            steps=stage.steps,
            tasks=watch.tasks,
            homes=watch.homes,
            servers=self._cluster.settings.servers,
            seconds=max(stage.now_s if not watch.tasks else max(task.at_s for task in watch.tasks), 1.0),
            problems=tuple(stage.problems),
            takeover_ms=stage.takeover_ms,
            pause_ms=stage.pause_ms,
            facts=self._facts(),
        )

    def _facts(self) -> dict[str, str]:
        kafka = "of its own, one node" if self._cluster.kafka else self._cluster.bootstrap
        return {
            "Command": f"holdfast demo --seconds {self._seconds:g}",
            "When": time.strftime("%Y-%m-%d %H:%M %Z"),
            "Holdfast": version("holdfast"),
            "Kafka": kafka,
            "Machine": f"{platform.system()} {platform.machine()}, Python {platform.python_version()}",
            "Traffic": f"{RATE_PER_S:g} tasks a second, {WORKERS} workers, {self._cluster.settings.servers} servers",
        }

    def _ends(self) -> None:
        self._quiet = True
        self._ending.begin()

    def _delete(self) -> None:
        """Leave nothing on a broker that others use."""
        try:
            topics.delete(topics.connect(self._settings), self._settings)
        except HoldfastError as error:
            self._show.event(f"topics of {self._settings.namespace} may be left: {error}")

    def _changed(self, change: Change) -> None:
        if self._quiet or (change.state == "started" and change.note):
            return
        self._show.event(
            f"{change.worker} (process {change.pid}) {change.state}",
            worker=change.worker,
            pid=change.pid,
            state=change.state,
            exit=change.exit,
        )
