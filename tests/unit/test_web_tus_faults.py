"""tus over two workers' web servers when something breaks: lines, holders of locks, disks, object stores."""

import errno
import http.client
import os
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from app.protocol.conveyance import Conveying, Done, Failed, Floating, Lock
from app.storage import Shelf
from app.storage.objects import ObjectStorage
from tests.support.cluster import wait_for
from tests.support.s3 import BUCKET, Faults, s3
from tests.support.transfers import Site, SlowBody, ask, create, in_background, name_of, pairs, patch

DATA = os.urandom(300_000)


def void(_: object) -> None:
    """Take a value that nobody wants."""


def test_a_line_that_breaks_keeps_what_came(site: Site, w1: str, w2: str) -> None:
    path = create(w1, len(DATA))
    body = SlowBody(w1, path, 0, len(DATA))
    body.send(DATA[:200_000])
    wait_for(lambda: sum(p.stat().st_size for p in site.directory.rglob("*-0")) > 0, 10, "bytes arrive")
    body.close()
    wait_for(lambda: isinstance(site.bench.state(name_of(path)), Floating), 10, "the lock is given back")
    assert ask(w2, "HEAD", path).headers["Upload-Offset"] == "200000"
    assert patch(w2, path, 200_000, DATA[200_000:]).status == 204
    assert site.objects() == [DATA]


@pytest.mark.parametrize("other", ["w1", "w2"])
def test_a_head_makes_a_stale_holder_let_go(site: Site, w1: str, other: str) -> None:
    path = create(w1, len(DATA))
    body = SlowBody(w1, path, 0, len(DATA))
    body.send(DATA[:200_000])
    wait_for(lambda: site.bench.state(name_of(path)).conveyance.offset == 200_000, 10, "progress while bytes flow")  # type: ignore[union-attr]
    reply = ask(site.urls[other], "HEAD", path)
    assert (reply.status, reply.headers["Upload-Offset"]) == (200, "200000")
    assert body.ended() == 0
    body.close()
    assert patch(site.urls[other], path, 200_000, DATA[200_000:]).status == 204
    assert site.objects() == [DATA]


def test_a_holder_that_does_not_answer_is_fenced(site: Site, w1: str, w2: str) -> None:
    path = create(w1, len(DATA))
    body = SlowBody(w1, path, 0, len(DATA))
    body.send(DATA[:200_000])
    wait_for(lambda: site.bench.state(name_of(path)).conveyance.offset == 200_000, 10, "progress while bytes flow")  # type: ignore[union-attr]
    held = site.bench.state(name_of(path))
    # Nobody can ask the holder any more.
    del site.urls["w1"]
    assert ask(w2, "HEAD", path).headers["Upload-Offset"] == "200000"
    taken = site.bench.state(name_of(path))
    assert isinstance(taken, Conveying)
    assert taken.instance == held.instance + 1
    # It goes on writing, to where nobody reads, until it hears that it was fenced.
    body.send(b"late")
    assert body.ended() == 423
    assert patch(w2, path, 200_000, DATA[200_000:]).status == 204
    assert site.objects() == [DATA]
    body.close()


def test_what_a_dead_holder_could_not_say_is_found(site: Site, w1: str, w2: str) -> None:
    path = create(w1, len(DATA))
    name = name_of(path)
    site.bench.run(lambda: None)
    state = site.bench.state(name)
    assert isinstance(state, Floating)
    # A worker locks it, writes, and dies without a word.
    site.bench.run(lambda: void(site.bench.owner.step(name, Lock(state.instance + 1, "w9"))))
    writer = site.storage.writer(Shelf("", name, state.instance).prefix(state.instance + 1))
    writer.write([DATA[:1000]])
    assert ask(w2, "HEAD", path).headers["Upload-Offset"] == "1000"
    assert patch(w1, path, 1000, DATA[1000:]).status == 204
    assert site.objects() == [DATA]
    writer.close()


def test_the_owner_moves(site: Site, w1: str) -> None:
    path = create(w1, 10)
    assert patch(w1, path, 0, b"hello").status == 204
    site.bench.reopen()
    assert patch(w1, path, 5, b"world").status == 204
    assert site.objects() == [b"helloworld"]
    assert len(site.bench.events(name_of(path))) == 1


def test_a_full_disk(site: Site, w1: str, w2: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """507 and the true offset; with room again the upload goes on there."""
    path, room, write = create(w1, len(DATA)), [100_000], os.writev

    def filling(file: int, chunks: list[bytes]) -> int:
        data = b"".join(chunks)[: room[0]]
        if not data:
            raise OSError(errno.ENOSPC, "No space left on device")
        room[0] -= len(data)
        return write(file, [data])

    def no_room(file: int, data: bytes) -> int:
        return filling(file, [data])

    with monkeypatch.context() as full:
        full.setattr(os, "writev", filling)
        full.setattr(os, "write", no_room)
        reply = patch(w1, path, 0, DATA)
        assert (reply.status, reply.json()["error"]) == (507, "full")
        offset = int(ask(w2, "HEAD", path).headers["Upload-Offset"])
        assert 0 <= offset <= 100_000
        assert patch(w2, path, offset, DATA[offset:]).status == 507
        assert isinstance(site.bench.state(name_of(path)), Floating)
    offset = int(ask(w2, "HEAD", path).headers["Upload-Offset"])
    assert patch(w2, path, offset, DATA[offset:]).status == 204
    assert site.objects() == [DATA]


def test_bytes_that_could_not_be_made_durable_never_count(
    site: Site, w1: str, w2: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The kernel tells only once that it could not write; then it calls the same bytes clean."""
    path = create(w1, len(DATA))
    assert patch(w1, path, 0, DATA[:1000]).status == 204
    sync, failures = os.fdatasync, [1]

    def failing(file: int) -> None:
        if failures:
            failures.pop()
            raise OSError(errno.EIO, "Input/output error")
        sync(file)

    monkeypatch.setattr(os, "fdatasync", failing)
    assert patch(w1, path, 1000, DATA[1000:2000]).status == 503
    assert not failures
    assert ask(w2, "HEAD", path).headers["Upload-Offset"] == "1000"
    assert patch(w2, path, 1000, DATA[1000:]).status == 204
    assert site.objects() == [DATA]


@pytest.mark.settings(lease=0.5)
def test_a_storage_that_is_slower_than_the_lease(site: Site, w1: str, w2: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The lock is kept while a thread waits for the disk: the first answer is the last one."""
    sync = os.fdatasync

    def slow(file: int) -> None:
        # Longer than the lease, however often the owner looks.
        for _ in range(8):
            time.sleep(site.settings.lease / 4)
            site.bench.tick()
        sync(file)

    path = create(w1, len(DATA))
    instance = site.bench.state(name_of(path)).instance
    monkeypatch.setattr(os, "fdatasync", slow)
    assert patch(w1, path, 0, DATA).status == 204
    state = site.bench.state(name_of(path))
    assert isinstance(state, Done)
    assert state.instance == instance + 1, "nobody else had the lock"
    assert site.objects() == [DATA]


def test_a_storage_that_fails(site: Site, w1: str, w2: str) -> None:
    path = create(w1, 10)
    assert patch(w1, path, 0, b"hello").status == 204
    wait_for(lambda: isinstance(site.bench.state(name_of(path)), Floating), 10, "the lock is given back")
    parts = site.directory / "parts"
    parts.rename(site.directory / "aside")
    parts.touch()
    reply = patch(w2, path, 5, b"world")
    assert reply.status == 503, "NAK, never a wrong ACK"
    parts.unlink()
    (site.directory / "aside").rename(parts)
    offset = int(ask(w1, "HEAD", path).headers["Upload-Offset"])
    assert patch(w1, path, offset, b"helloworld"[offset:]).status == 204
    assert site.objects() == [b"helloworld"]


def test_rebalancing(site: Site, w1: str, w2: str) -> None:
    path = create(w1, len(DATA))
    body = SlowBody(w1, path, 0, len(DATA))
    body.send(DATA[:100_000])
    wait_for(lambda: site.bench.state(name_of(path)).conveyance.offset == 100_000, 10, "progress while bytes flow")  # type: ignore[union-attr]
    moved = ask(w1, "POST", "/api/transfers/rebalance").json()
    assert moved == {"worker": "w1", "pushes": 1, "pulls": 0}
    assert body.ended() == 0
    body.close()
    assert isinstance(site.bench.state(name_of(path)), Floating)
    assert patch(w2, path, 100_000, DATA[100_000:]).status == 204
    assert site.objects() == [DATA]


def test_two_workers_want_one_connection(site: Site, w1: str, w2: str) -> None:
    path = create(w1, 10)

    def push(url: str) -> int:
        try:
            return patch(url, path, 0, b"helloworld").status
        except (OSError, http.client.HTTPException):
            return 0  # the other one has asked for it

    pushing = [in_background(lambda url=url: push(url)) for url in (w1, w2) * 3]  # type: ignore[misc]
    statuses = [push.result(30) for push in pushing]
    assert statuses.count(204) <= 1, "an answer may be lost, but nobody is told twice that it was the one"
    assert set(statuses) <= {0, 204, 403, 409, 423}
    offset = int(ask(w1, "HEAD", path).headers["Upload-Offset"])
    if offset < 10:
        # Whoever had it was asked to let go in the middle.
        assert patch(w1, path, offset, b"helloworld"[offset:]).status == 204
    assert site.objects() == [b"helloworld"]
    assert len(site.bench.events(name_of(path))) == 1


def test_failed_uploads_say_so(site: Site, w1: str) -> None:
    path = create(w1, 5, Upload_Metadata=pairs(checksum="sha256:" + "0" * 64))
    for _ in range(site.settings.max_attempts):
        assert patch(w1, path, 0, b"hello").status == 460
    assert isinstance(site.bench.state(name_of(path)), Failed)
    assert ask(w1, "HEAD", path).status == 410


# -- object stores ------------------------------------------------------------------------------------------------


@pytest.fixture
def objects(tmp_path: Path) -> Iterator[Site]:
    made = Site(tmp_path / "unused", storage=f"memory://{os.urandom(8).hex()}")
    yield made
    made.close()


def test_an_object_store_that_fails_now_and_then(objects: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    """NAK with the offset to go on from, never a wrong ACK."""
    assert isinstance(objects.storage, ObjectStorage)
    put, calls = objects.storage.put, 0

    def failing(name: str, data: bytes) -> None:
        nonlocal calls
        calls += 1
        if calls % 3 == 0:
            raise OSError("SlowDown: Please reduce your request rate")
        put(name, data)

    monkeypatch.setattr(objects.storage, "put", failing)
    urls, path, refused_, turn = list(objects.urls.values()), "", 0, 0
    path = create(urls[0], len(DATA))
    while (offset := int(ask(urls[turn % 2], "HEAD", path).headers["Upload-Offset"])) < len(DATA):
        reply = patch(urls[turn % 2], path, offset, DATA[offset : offset + 50_000])
        turn += 1
        if reply.status == 204:
            assert int(reply.headers["Upload-Offset"]) == min(len(DATA), offset + 50_000)
        else:
            assert reply.status == 503
            refused_ += 1
    assert refused_ >= 2
    wait_for(lambda: isinstance(objects.bench.state(name_of(path)), Done), 20, "the whole")
    assert ask(urls[0], "GET", path).body == DATA
    assert len(objects.bench.events(name_of(path))) == 1


@pytest.fixture
def buckets(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[tuple[Site, Faults]]:
    faults = Faults()
    with s3(monkeypatch, faults):
        made = Site(tmp_path / "unused", storage=f"s3://{BUCKET}/{os.urandom(8).hex()}", lease=1)
        yield made, faults
        made.close()


def test_an_s3_that_refuses_and_is_slow(buckets: tuple[Site, Faults]) -> None:
    """Refused: 503 and the offset as it was. Slower than the lease: one answer, and the lock is kept."""
    site, faults = buckets
    w1, w2 = site.urls.values()
    path = create(w1, len(DATA))
    assert patch(w1, path, 0, DATA[:1000]).status == 204
    faults.refuse = "PUT"
    reply = patch(w1, path, 1000, DATA[1000:2000])
    assert (reply.status, reply.json()["error"]) == (503, "unavailable")
    faults.refuse = ""
    assert ask(w2, "HEAD", path).headers["Upload-Offset"] == "1000"
    before = site.bench.state(name_of(path)).instance
    faults.slow_s = 1.5
    assert patch(w2, path, 1000, DATA[1000:2000]).status == 204
    assert faults.delayed
    assert site.bench.state(name_of(path)).instance <= before + 1, "the lock was taken once at most"
    faults.slow_s = 0
    faults.refuse = "GET"
    assert patch(w2, path, 2000, DATA[2000:]).status == 204, "the bytes are safe, whenever the whole is made"
    faults.refuse = ""

    def whole() -> bool:
        site.bench.tick(60)
        return isinstance(site.bench.state(name_of(path)), Done)

    wait_for(whole, 60, "the whole")
    assert ask(w1, "GET", path).body == DATA
    assert len(site.bench.events(name_of(path))) == 1
