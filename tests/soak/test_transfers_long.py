"""Uploads and a download of 256 MB through everything that may happen to them."""

import hashlib
import json
import os
import random
from collections.abc import Callable
from pathlib import Path
from typing import Final

import pytest

from tests.support.cluster import Workers, wait_for
from tests.support.transfers import ask, create, in_background, patch
from tests.support.uploads import MB, Upload, download, events, freeze_holder, make_file, miss_storage, row_host

pytestmark = [pytest.mark.soak, pytest.mark.broker, pytest.mark.settings(lease=5, progress_interval=0.5)]

SIZE: Final = 256 * MB
CHUNK: Final = 8 * MB


def urls_of(workers: Workers) -> Callable[[], list[str]]:
    return lambda: [worker.url for worker in workers.running if worker.url]


def hurt(workers: Workers, upload: Upload, fault: str, beyond: int) -> None:
    """One fault, while the upload goes on to ``beyond``."""
    serving = next(worker for worker in workers.running if worker.url == upload.url)
    if fault == "storage":
        miss_storage(workers, upload, beyond)
        return
    if fault == "freeze":
        freeze_holder(workers, upload, beyond)
        return
    upload.allow(beyond)
    victim = serving if fault == "serving" else row_host(workers, upload.path)
    victim.kill9()
    upload.wait_until(beyond)
    workers.start_ready(victim.name)


@pytest.mark.parametrize("seed", [1, 2, 3])
def test_an_upload(workers: Workers, tmp_path: Path, seed: int) -> None:
    """Killed five times, frozen once, the storage failing twice, the host of the row killed once."""
    chance = random.Random(seed)
    workers.start_ready("w1", "w2")
    wanted = make_file(tmp_path / "big", SIZE, seed)
    upload = Upload(tmp_path / "big", urls_of(workers), chunk=CHUNK, size=SIZE)
    upload.allow(2 * CHUNK)
    pushing = in_background(lambda: upload.run(600))
    faults = ["serving"] * 5 + ["owner", "freeze", "storage", "storage"]
    chance.shuffle(faults)
    for number, fault in enumerate(faults):
        upload.wait_until((2 + 2 * number) * CHUNK)
        hurt(workers, upload, fault, (4 + 2 * number) * CHUNK)
    upload.allow(SIZE)
    pushing.result(600)
    assert upload.breaks >= 7
    url = workers.running[0].url
    digest, _ = download([url], upload.path, SIZE, lambda offset: None, 120)
    assert digest == wanted
    assert upload.sent - SIZE <= upload.breaks * CHUNK
    mine = [e["event"] for e in events(workers.config, workers.namespace)]
    assert mine == ["transfer-completed"]
    print(f"seed {seed}: {upload.breaks} breaks, longest gap {upload.gap_s:.1f} s, {upload.sent - SIZE} bytes again")


def test_a_download(workers: Workers, tmp_path: Path) -> None:
    """Two kills and a rebalance; one acknowledgement."""
    pair = workers.start_ready("w1", "w2", "w3")
    wanted = make_file(tmp_path / "big", SIZE)
    path = create(pair[0].url, SIZE)
    with (tmp_path / "big").open("rb") as source:
        assert patch(pair[0].url, path, 0, source, Content_Length=str(SIZE)).status == 204
    steps: list[tuple[int, Callable[[], object]]] = [
        (SIZE // 4, pair[0].kill9),
        (SIZE // 2, lambda: ask(pair[1].url, "POST", "/api/transfers/rebalance")),
        (3 * SIZE // 4, pair[1].kill9),
    ]

    def during(offset: int) -> None:
        if steps and offset > steps[0][0]:
            steps.pop(0)[1]()

    digest, _ = download([worker.url for worker in pair], path, SIZE, during, 120)
    assert digest == wanted
    body = json.dumps({"offset": SIZE, "checksum": f"sha256:{wanted}"}).encode()
    for _ in range(3):
        assert ask(pair[2].url, "POST", f"{path}/ack", body).status == 200
    told = [e["event"] for e in events(workers.config, workers.namespace)]
    assert told == ["transfer-completed", "transfer-acknowledged"]


def test_many_small_ones(workers: Workers, tmp_path: Path) -> None:
    """Hundreds of uploads while workers come and go: each whole, once."""
    workers.start_ready("w1", "w2")
    files = {number: os.urandom(64_000) for number in range(300)}
    paths = {number: create(workers.running[0].url, len(data)) for number, data in files.items()}

    def push(number: int) -> None:
        data = files[number]

        def go_on() -> bool:
            urls = urls_of(workers)()
            url = urls[number % len(urls)]
            try:
                offset = ask(url, "HEAD", paths[number]).headers.get("Upload-Offset")
                if offset is None:
                    return False
                stop = min(len(data), int(offset) + 16_000)
                return int(offset) == len(data) or (
                    patch(url, paths[number], int(offset), data[int(offset) : stop]).status == 204 and stop == len(data)
                )
            except OSError:
                return False

        wait_for(go_on, 240, f"upload {number}")

    pushing = [in_background(lambda n=number: push(n)) for number in files]  # type: ignore[misc]
    for name in ("w1", "w2", "w1"):
        victim = next(worker for worker in workers.running if worker.name == name)
        victim.kill9()
        workers.start_ready(name)
    for push_ in pushing:
        push_.result(300)
    url = workers.running[0].url
    for number, data in files.items():
        found = wait_for(lambda n=number: (r := ask(url, "GET", paths[n])).status == 200 and r, 60, "whole")  # type: ignore[misc]
        assert found
        assert hashlib.sha256(found.body).digest() == hashlib.sha256(data).digest()
    told = [e["connection"] for e in events(workers.config, workers.namespace)]
    assert sorted(told) == sorted(path.rpartition("/")[2] for path in paths.values())
