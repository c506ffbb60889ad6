"""Transfers on a real Kafka: uploads and downloads through kills, freezes and failing storage; devices over the topics.

I6 for transfers: what was announced ends whole, once, or with a reason.
"""

import base64
import hashlib
import json
import os
import subprocess
import sys
import time
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from confluent_kafka import Consumer, Producer, TopicPartition
from confluent_kafka.cimpl import NewTopic

from app.topics import Names, connect
from tests.support import node_tus
from tests.support.cluster import Worker, Workers, wait_for
from tests.support.s3 import BUCKET, s3
from tests.support.transfers import ask, create, in_background, name_of, pairs, patch
from tests.support.uploads import (
    MB,
    Upload,
    download,
    events,
    freeze_holder,
    held_by,
    make_file,
    miss_storage,
    records,
)

pytestmark = [pytest.mark.broker, pytest.mark.settings(lease=3, progress_interval=0.2, routers=2, servers=2)]

SIZE = 24 * MB
CHUNK = 2 * MB


@pytest.fixture
def pair(workers: Workers) -> list[Worker]:
    return workers.start_ready("w1", "w2")


def urls_of(workers: Workers) -> Callable[[], list[str]]:
    return lambda: [worker.url for worker in workers.running if worker.url]


def test_an_upload_survives_its_workers(workers: Workers, pair: list[Worker], tmp_path: Path) -> None:
    """Killed with -9 while it serves, frozen while it serves, the storage gone for a moment."""
    wanted = make_file(tmp_path / "big", SIZE)
    upload = Upload(tmp_path / "big", urls_of(workers), chunk=CHUNK, size=SIZE)
    upload.allow(2 * CHUNK)
    pushing = in_background(lambda: upload.run(100))
    upload.wait_until(2 * CHUNK)
    victim = next(worker for worker in pair if worker.url == upload.url)
    victim.kill9()
    upload.allow(4 * CHUNK)
    upload.wait_until(4 * CHUNK)
    assert upload.breaks == 1
    workers.start_ready(victim.name)
    miss_storage(workers, upload, 6 * CHUNK)
    upload.wait_until(6 * CHUNK)
    objects = workers.directory / "state" / "files" / "objects"
    assert not any(files for _, _, files in os.walk(objects)), "nothing is under its name before it is whole"
    freeze_holder(workers, upload, SIZE)
    pushing.result(100)
    # The frozen worker may have joined again in time to take the chunk that waited for it.
    assert upload.breaks in (2, 3)
    path = upload.path
    [status] = {ask(url, "HEAD", path).status for url in urls_of(workers)()}
    assert status == 200
    assert hashlib.sha256(ask(workers.running[-1].url, "GET", path).body).hexdigest() == wanted
    assert upload.sent - SIZE <= upload.breaks * CHUNK, "at most a chunk is sent again for each break"
    told = [e for e in events(workers.config, workers.namespace) if e["connection"] == path.rpartition("/")[2]]
    assert [event["event"] for event in told] == ["transfer-completed"]


def test_the_client_of_browsers_survives_a_worker(workers: Workers, pair: list[Worker], tmp_path: Path) -> None:
    """tus-js-client on Node, with nothing but a list of addresses: the worker that serves it is killed with -9."""
    script, size = node_tus.program(), SIZE // 3
    wanted = make_file(tmp_path / "big", size)
    served: list[str] = []

    def told(line: str) -> None:
        said = json.loads(line)
        served.append(said.get("worker", ""))
        if said.get("offset") == 2 * MB:
            next(worker for worker in pair if worker.url == said["worker"]).kill9()

    urls = urls_of(workers)()
    end = json.loads(node_tus.push(script, tmp_path / "big", MB, urls, told, 150))
    assert end["done"]
    assert end["breaks"] >= 1
    assert served[0] != served[-2], "another worker has gone on"
    [survivor] = workers.running
    assert hashlib.sha256(ask(survivor.url, "GET", end["path"]).body).hexdigest() == wanted
    assert [event["event"] for event in events(workers.config, workers.namespace)] == ["transfer-completed"]


def test_a_download_survives_its_workers(workers: Workers, pair: list[Worker], tmp_path: Path) -> None:
    wanted = make_file(tmp_path / "big", SIZE)
    path = create(pair[0].url, SIZE)
    assert patch(pair[0].url, path, 0, (tmp_path / "big").read_bytes()).status == 204
    todo = [
        lambda: ask(pair[0].url, "POST", "/api/transfers/rebalance"),
        pair[0].kill9,
    ]
    steps = iter([(SIZE // 4, todo[0]), (SIZE // 2, todo[1])])
    following = [next(steps)]

    def during(offset: int) -> None:
        if following and offset > following[0][0]:
            following[0][1]()
            following[:] = [step] if (step := next(steps, None)) else []

    found, breaks = download([worker.url for worker in pair], path, SIZE, during, 60)
    assert found == wanted
    assert breaks >= 1
    body = json.dumps({"offset": SIZE, "checksum": f"sha256:{wanted}"}).encode()
    for _ in range(2):
        assert ask(pair[1].url, "POST", f"{path}/ack", body).status == 200
    told = [e["event"] for e in events(workers.config, workers.namespace)]
    assert told == ["transfer-completed", "transfer-acknowledged"]


def test_the_host_of_the_rows_dies(workers: Workers, pair: list[Worker], tmp_path: Path) -> None:
    """Every connection goes on, whichever worker owned its row; small messages become records, each once."""
    orders = f"orders-{uuid.uuid4().hex[:8]}"
    admin = connect(workers.settings)
    admin.create_topics([NewTopic(orders, 1, 1)])[orders].result(30)
    published = wait_for(lambda: _announced(pair, orders), 60, "the topic is known")
    paths = [create(pair[0].url, 10) for _ in range(4)] + published
    for path in paths:
        assert patch(pair[1].url, path, 0, b"hello").status == 204
    pair[0].kill9()
    for path in paths:
        offset = wait_for(lambda p=path: ask(pair[1].url, "HEAD", p).headers.get("Upload-Offset"), 30, "an owner")  # type: ignore[misc]
        assert offset == "5"
        assert patch(pair[1].url, path, 5, b"world").status == 204
    told = events(workers.config, workers.namespace)
    assert [e["event"] for e in told] == ["transfer-completed"] * len(paths)
    assert sorted(e["connection"] for e in told if e["topic"] == orders) == sorted(map(name_of, published))
    assert sorted(records(workers.config, orders)) == sorted((name_of(path), b"helloworld") for path in published)


def _announced(pair: list[Worker], topic: str) -> list[str]:
    """Uploads that are to become records; none while not every owner knows the topic."""
    found = [
        ask(pair[0].url, "POST", "/files/", Upload_Length="10", Upload_Metadata=pairs(publish=topic)) for _ in range(4)
    ]
    return [reply.headers["Location"] for reply in found] if all(reply.status == 201 for reply in found) else []


def test_a_frozen_holder_is_fenced(workers: Workers, pair: list[Worker]) -> None:
    data = os.urandom(4 * MB)
    path = create(pair[0].url, len(data))
    assert patch(pair[0].url, path, 0, data[:MB]).status == 204
    assert ask(pair[0].url, "HEAD", path).status == 200
    pair[0].sigstop()
    offset = wait_for(lambda: ask(pair[1].url, "HEAD", path).headers.get("Upload-Offset"), 30, "it lets go")
    assert offset == str(MB)
    assert patch(pair[1].url, path, MB, data[MB:]).status == 204
    pair[0].sigcont()
    assert ask(pair[1].url, "GET", path).body == data
    workers.running[0].sigterm()
    assert ask(pair[1].url, "GET", path).body == data


def test_a_device_over_the_topics(workers: Workers, pair: list[Worker], broker: str) -> None:
    names = Names(workers.namespace)
    data = os.urandom(300_000)
    producer = Producer({"bootstrap.servers": broker, "partitioner": "murmur2_random"})
    consumer = Consumer({"bootstrap.servers": broker, "group.id": "unused", "isolation.level": "read_committed"})
    consumer.assign([TopicPartition(names.transfer_replies, number, 0) for number in range(2)])

    def say(**fields: Any) -> None:
        producer.produce(names.transfers, json.dumps(fields).encode(), b"dev-7")
        producer.flush(10)

    def hear(request: str, kind: str) -> dict[str, Any]:
        deadline = time.monotonic() + 30
        while time.monotonic() < deadline:
            message = consumer.poll(1)
            if message is not None and message.error() is None:
                reply: dict[str, Any] = json.loads(message.value() or b"")
                if (reply["request"], reply["reply"]) == (request, kind):
                    return reply
        raise AssertionError(f"no {kind} to {request}")

    try:
        say(op="begin", request="b", name="reading-1", size=len(data))
        assert hear("b", "durable")["offset"] == 0
        for number, start in enumerate(range(0, 200_000, 100_000)):
            say(
                op="data",
                request=f"d{number}",
                offset=start,
                data=base64.b64encode(data[start : start + 100_000]).decode(),
            )
        assert hear("d1", "durable")["offset"] == 200_000
        # The worker that serves the device dies; the device asks, and goes on.
        holder = held_by(workers, "/files/dev-7")
        next(worker for worker in pair if worker.name == holder).kill9()
        say(op="show", request="s")
        assert hear("s", "durable")["row"]["segments"]
        for _ in range(2):
            say(op="data", request="d2", offset=200_000, data=base64.b64encode(data[200_000:]).decode())
        assert hear("d2", "ack")["size"] == len(data)
    finally:
        consumer.close()
    [worker] = workers.running
    assert ask(worker.url, "GET", "/files/dev-7").body == data
    assert [e["event"] for e in events(workers.config, workers.namespace)] == ["transfer-completed"]


@pytest.fixture
def objects(monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    with s3(monkeypatch):
        yield f"s3://{BUCKET}/files"


def test_an_object_store(objects: str, broker: str, namespace: str, tmp_path: Path) -> None:
    """Nothing is seen under its name before it is whole, through a kill."""
    settings = {"lease": 3, "progress_interval": 0.2, "routers": 2, "servers": 2, "storage": objects}
    with Workers(broker, namespace, tmp_path / "workers", **settings) as workers:
        workers.topics()
        pair = workers.start_ready("w1", "w2")
        wanted = make_file(tmp_path / "big", SIZE)
        upload = Upload(tmp_path / "big", urls_of(workers), chunk=3 * CHUNK, size=SIZE)
        upload.allow(6 * CHUNK)
        pushing = in_background(lambda: upload.run(100))
        upload.wait_until(6 * CHUNK)
        assert upload.path is not None
        path = upload.path
        assert ask(next(worker for worker in pair if worker.url != upload.url).url, "GET", path).status == 409
        next(worker for worker in pair if worker.url == upload.url).kill9()
        upload.allow(SIZE)
        pushing.result(100)
        assert upload.breaks >= 1
        [survivor] = workers.running
        assert hashlib.sha256(ask(survivor.url, "GET", path).body).hexdigest() == wanted
        [event] = events(workers.config, workers.namespace)
        assert event["url"].startswith(objects)


def test_the_command_line(workers: Workers, pair: list[Worker], tmp_path: Path) -> None:
    (tmp_path / "report").write_bytes(os.urandom(2 * MB))
    environment = {**os.environ, "HOLDFAST_BOOTSTRAP": str(workers.settings.bootstrap)}

    def run(*arguments: str, code: int = 0) -> list[dict[str, Any]]:
        command = (sys.executable, "-m", "app", "transfer", *arguments, "--json", "--namespace", workers.namespace)
        done = subprocess.run(command, capture_output=True, text=True, env=environment, timeout=60, check=False)
        assert done.returncode == code, done.stderr
        return [json.loads(line) for line in done.stdout.splitlines()]

    report, copy = str(tmp_path / "report"), str(tmp_path / "copy")
    [done] = run("put", report, "report-7", "--tenant", "acme")
    assert (done["state"], done["tenant"]) == ("done", "acme")
    run("get", "report-7", copy)
    assert (tmp_path / "copy").read_bytes() == (tmp_path / "report").read_bytes()
    assert [row["connection"] for row in run("list")] == ["report-7"]
    assert run("show", "report-7")[0]["acknowledged"] is True
    assert run("rebalance", "w1")[0]["worker"] == "w1"
    run("rebalance", "nobody", code=1)
    run("resume", "nothing", report, code=1)
    run("cancel", "report-7")
    run("show", "nothing", code=1)
