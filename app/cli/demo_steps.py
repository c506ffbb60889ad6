"""The steps of the demo that change something: a tenant moves, a move fails, a worker is killed, a server is down."""

import time
from collections import Counter
from typing import Final

from app.cli.demo_stage import STEP_S, Stage
from app.cli.demo_story import Step
from app.cli.demo_traffic import Takeover
from app.cli.demo_work import KILL_AFTER, REQUESTS, UPLOAD_BYTES, Exchange, Upload
from app.client.commands import Commands
from app.errors import HoldfastError
from app.records import Event

REPLACE_AFTER_S: Final = 2.0
"""The others have taken over by then; the replacement joins a cluster that works."""

TOO_SHORT_S: Final = 0.001
_UPLOADED: Final = 0.25


def steps(servers: int = 8, tenants: int = 40) -> tuple[Step, ...]:
    """All steps of the demo in their order; what they are about in detail is said when they begin."""
    return (
        Step("start", "Start", f"A Kafka, {servers} servers (places where sessions live), three workers (processes)."),
        Step(
            "traffic", "Traffic", f"Carts, counters and echoes of {tenants} tenants, four sessions each, until the end."
        ),
        Step("move", "Move a tenant while it is served", "", "a tenant moves"),
        Step("return", "A move that fails and returns", "", "a move fails"),
        Step(
            "exchange",
            "Kill the client of an exchange",
            f"A program on one computer sends {REQUESTS} requests to a program on another. "
            f"It is killed after {KILL_AFTER} answers and started again.",
        ),
        Step("upload", "Upload a file through a worker that dies", ""),
        Step("kill", "Kill a worker with kill -9", "", "a worker is killed"),
        Step("fail", "Take a server out of service", "", "a server is declared down"),
        Step("restore", "Take it back", "", "and up again"),
        Step(
            "account", "Compare every task with what came of it", "Read from Kafka: all tasks, results, dead letters."
        ),
    )


def order(stage: Stage, command: str, *, tenant: str | None = None, **fields: object) -> Event:
    """Give an operator's command and return its final event."""

    def call() -> Event:
        with Commands(stage.cluster.settings) as commands:
            return commands.end(commands.order(command, tenant=tenant, **fields), STEP_S)

    return stage.ask(call, command)


def _expect(event: Event, name: str) -> dict[str, object]:
    found = event.model_dump()
    if event.event != name:
        raise HoldfastError(f"{event.event} ({found.get('reason')}), where {name} was due")
    return found


def _parked(done: dict[str, object]) -> str:
    count = int(str(done["parked"]))
    were = "was" if count == 1 else "were"
    return f"{count} {were} parked and released in order" if count else "none came meanwhile"


def _homes(stage: Stage) -> dict[str, int]:
    """The home server of each tenant that has been heard of."""
    return {stage.traffic.tenant_of(session): server for session, server in stage.watch.homes.copy().items()}


def move(stage: Stage) -> None:
    """Move a tenant, live."""
    homes, servers = _homes(stage), stage.cluster.settings.servers
    tenant = sorted(homes)[len(homes) // 5]
    to = (homes[tenant] + 1 + (servers - 2) // 3) % servers
    with stage.step(
        "move", f"{tenant} goes from server {homes[tenant]} to server {to}, sessions and all; nobody else notices."
    ) as step:
        done = _expect(order(stage, "migrate", tenant=tenant, to=to), "migration-succeeded")
        stage.pause_ms = int(str(done["pause_ms"]))
        step.outcome = (
            f"{done['rows']} rows moved and compared by checksum; its tasks waited {stage.pause_ms} ms, {_parked(done)}"
        )


def fail_to_move(stage: Stage) -> None:
    """Move another tenant under a limit that cannot be kept."""
    homes, servers = _homes(stage), stage.cluster.settings.servers
    tenant = sorted(homes)[len(homes) // 2]
    to = (homes[tenant] + 1 + (servers - 2) // 2) % servers
    with stage.step(
        "return", f"{tenant} is to go to server {to}, but may not wait for more than {TOO_SHORT_S * 1000:g} ms."
    ) as step:
        event = order(stage, "migrate", tenant=tenant, to=to, max_pause=TOO_SHORT_S)
        done = _expect(event, "migration-failed")
        step.outcome = (
            f"refused ({done['reason']}); {_parked(done)}, at server {homes[tenant]}, where {tenant} still is"
        )


def kill(stage: Stage, exchange: Exchange) -> None:
    """Kill the worker that serves most, while an upload goes through it and an exchange is under way."""
    name = Counter(stage.watch.host.copy().values()).most_common(1)[0][0]
    with stage.step("exchange") as step:
        stage.wait(lambda: exchange.resumed_at is not None or exchange.done, "the second client of the exchange")
        _upload(stage, name)
        stage.wait(lambda: exchange.done, "the end of the exchange")
        step.outcome = (
            f"went on at answer {(exchange.resumed_at or 0) + 1} from its restart data, also when {name} died; "
            f"{REQUESTS} answers, each once: their sum is {exchange.result()}"
        )


def _upload(stage: Stage, name: str) -> None:
    urls = {worker.name: worker.url for worker in stage.cluster.workers}
    others = [url for worker, url in urls.items() if worker != name]
    upload = Upload(stage.cluster.settings, [urls[name], *others], stage.directory)
    try:
        with stage.step(
            "upload", f"{UPLOAD_BYTES >> 20} MiB over HTTP through {name}, which does not live to see the end of it."
        ) as step:
            stage.wait(lambda: upload.share >= _UPLOADED or upload.done, "a quarter of the upload")
            share = upload.share
            _kill(stage, name)
            stage.wait(lambda: upload.done, "the end of the upload")
            step.outcome = (
                f"{share:.0%} were there when {name} died; another worker took the rest; "
                f"read back with the same checksum, {upload.result()[:12]}"
            )
    finally:
        upload.stop()


def _kill(stage: Stage, name: str) -> None:
    servers = stage.watch.hosted_by(name)
    about = f"{name} serves {len(servers)} servers: {', '.join(map(str, sorted(servers)))}. The others take them over."
    with stage.step("kill", about) as step:
        pid = stage.cluster.kill(name)
        takeover = stage.watch.expect_takeover(servers)
        stage.show.event(f"kill -9 of {name}", worker=name, pid=pid)
        replace_at = time.monotonic() + REPLACE_AFTER_S
        stage.wait(lambda: takeover.over, f"results of the servers of {name} by others")
        step.outcome = _told(takeover)
        stage.takeover_ms = round(min(takeover.seconds.values()) * 1000)
    stage.wait(lambda: time.monotonic() >= replace_at, "the time of the replacement")
    stage.cluster.start_worker(name, timeout=None)


def _told(takeover: Takeover) -> str:
    first, last = min(takeover.seconds.values()), max(takeover.seconds.values())
    # The event may come here later than the first result of whoever has taken over.
    told = takeover.noticed_s is not None and takeover.noticed_s <= first
    noticed = f"noticed after {takeover.noticed_s:.2f} s; " if told else ""
    return f"{noticed}its sessions went on after {first:.2f} s, all of its servers after {last:.2f} s"


def fail(stage: Stage) -> None:
    """Declare a server down, and up again."""
    watch = stage.watch
    counts = Counter(watch.places.copy().values())
    server = counts.most_common(1)[0][0]
    moved = {session for session, place in watch.places.copy().items() if place == server}
    with stage.step(
        "fail", f"Server {server} is declared down. Its {len(moved)} sessions go to others, each by its own key."
    ) as step:
        _expect(order(stage, "fail-server", server=server), "server-closed")
        stage.wait(lambda: all(watch.places[session] != server for session in moved), "results from elsewhere")
        now = sorted({watch.places[session] for session in moved})
        step.outcome = f"its sessions went on with their state, spread over the servers {', '.join(map(str, now))}"
    stage.calm()
    with stage.step("restore", f"Server {server} is up again: its sessions come home.") as step:
        _expect(order(stage, "restore-server", server=server), "server-restored")
        stage.wait(lambda: all(watch.places[session] == server for session in moved), "results from home")
        step.outcome = f"all {len(moved)} sessions are at server {server} again, with what was done meanwhile"
