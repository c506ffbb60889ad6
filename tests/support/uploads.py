"""Uploads and downloads through faults: what is sent, what comes, and who is hurt meanwhile."""

import hashlib
import json
import random
import threading
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, Final

import requests
from confluent_kafka import Consumer, TopicPartition
from tusclient.client import TusClient
from tusclient.exceptions import TusCommunicationError

from app.topics import Names
from tests.support.cluster import Worker, Workers, wait_for

MB: Final = 1 << 20


def make_file(path: Path, size: int, seed: int = 7) -> str:
    """A file of chance from a seed; returns its SHA-256."""
    chance, digest = random.Random(seed), hashlib.sha256()
    with path.open("wb") as file:
        left = size
        while left:
            data = chance.randbytes(min(left, MB))
            digest.update(data)
            file.write(data)
            left -= len(data)
    return digest.hexdigest()


class Counting:
    """A file that counts what is read of it."""

    def __init__(self, path: Path) -> None:
        self._file = path.open("rb")
        self.read_bytes = 0

    def read(self, size: int = -1) -> bytes:
        data = self._file.read(size)
        self.read_bytes += len(data)
        return data

    def __getattr__(self, name: str) -> Any:
        return getattr(self._file, name)


class Upload:
    """An upload by tuspy, chunk after chunk, that goes to another worker whenever something breaks."""

    def __init__(self, path: Path, urls: Callable[[], Sequence[str]], *, chunk: int, size: int) -> None:
        self._source = Counting(path)
        self._urls = urls
        self._chunk = chunk
        self._size = size
        self.path = ""
        self.offset = 0
        self.breaks = 0
        self.gap_s = 0.0
        self.url = ""
        """Where it goes on now."""
        self._gate = threading.Condition()
        self._allowed = size

    @property
    def sent(self) -> int:
        """Bytes that were read to be sent."""
        return self._source.read_bytes

    def allow(self, offset: int) -> None:
        """Go on up to here, and stay there until more is allowed."""
        with self._gate:
            self._allowed = offset
            self._gate.notify()

    def wait_until(self, offset: int, timeout: float = 60) -> None:
        """Wait until so much is confirmed."""
        with self._gate:
            reached = self._gate.wait_for(lambda: self.offset >= offset, timeout)
        assert reached, f"at {self.offset}, not at {offset}, after {timeout:g} s"

    def wait_for_a_break(self, breaks: int, timeout: float = 60) -> None:
        """Wait until something has broken more than so often."""
        with self._gate:
            assert self._gate.wait_for(lambda: self.breaks > breaks, timeout), "nothing broke"

    def _moved(self, offset: int) -> None:
        with self._gate:
            self.offset = offset
            self._gate.notify_all()
            self._gate.wait_for(lambda: self.offset < self._allowed or self.offset >= self._size)

    def run(self, timeout: float) -> None:
        """Push all of it; fails when the time is over."""
        try:
            self._run(timeout)
        finally:
            self._source.close()

    def _run(self, timeout: float) -> None:
        deadline, turn = time.monotonic() + timeout, 0
        broken: float | None = None
        while self.offset < self._size:
            assert time.monotonic() < deadline, f"at {self.offset} of {self._size} after {timeout:g} s"
            urls = self._urls()
            self.url = url = urls[turn % len(urls)]
            try:
                uploader = self._uploader(url)
                self._moved(uploader.offset)
                while self.offset < self._size:
                    uploader.upload_chunk()
                    self._moved(uploader.offset)
                    if broken is not None:
                        self.gap_s, broken = max(self.gap_s, time.monotonic() - broken), None
            except (TusCommunicationError, requests.RequestException, OSError):
                if broken is None:
                    broken = time.monotonic()
                    with self._gate:
                        self.breaks += 1
                        self._gate.notify_all()
                turn += 1
                time.sleep(0.05)

    def _uploader(self, url: str) -> Any:
        client = TusClient(f"{url}/files/")
        given = {"file_stream": self._source, "chunk_size": self._chunk}
        if not self.path:
            made = client.uploader(**given)
            made.set_url(made.create_url())
            self.path = "/files/" + str(made.url).rpartition("/")[2]
            return made
        # It asks for the offset itself.
        return client.uploader(**given, url=url + self.path)


def download(
    urls: Sequence[str], path: str, size: int, during: Callable[[int], None], timeout: float
) -> tuple[str, int]:
    """Pull with ranges, from worker to worker; SHA-256 and number of breaks. ``during`` is told the offset."""
    digest, offset, breaks, turn = hashlib.sha256(), 0, 0, 0
    deadline = time.monotonic() + timeout
    while offset < size:
        assert time.monotonic() < deadline, f"at {offset} of {size} after {timeout:g} s"
        try:
            url = urls[turn % len(urls)]
            with requests.get(url + path, headers={"Range": f"bytes={offset}-"}, stream=True, timeout=5) as reply:
                reply.raise_for_status()
                for data in reply.iter_content(256 << 10):
                    digest.update(data)
                    offset += len(data)
                    during(offset)
        except requests.RequestException:
            breaks += 1
            turn += 1
            time.sleep(0.05)
    return digest.hexdigest(), breaks


def events(config: dict[str, str | int], namespace: str) -> list[dict[str, Any]]:
    """All committed events of a namespace that tell of transfers, in order."""
    found = [json.loads(value) for _, value in records(config, Names(namespace).events)]
    return [event for event in found if event["event"].startswith("transfer-")]


def records(config: dict[str, str | int], topic: str) -> list[tuple[str, bytes]]:
    """Keys and values of all committed records of a topic with one partition."""
    consumer = Consumer(
        {**config, "group.id": "unused", "isolation.level": "read_committed", "enable.partition.eof": True}
    )
    found: list[tuple[str, bytes]] = []
    try:
        consumer.assign([TopicPartition(topic, 0, 0)])
        while (message := consumer.poll(10)) is not None and message.error() is None:
            found.append(((message.key() or b"").decode(), message.value() or b""))
    finally:
        with suppress(Exception):
            consumer.close()
    return found


def held_by(workers: Workers, path: str) -> str | None:
    """Who services an upload, asked without disturbing it."""
    name = path.rpartition("/")[2]
    for worker in workers.running:
        status, found = worker.get(f"/api/transfers/{name}")
        if status == 200:
            return str(found["worker"]) if found["worker"] else None
    return None


def row_host(workers: Workers, path: str) -> Worker:
    """The worker that hosts the row of an upload."""

    def found() -> Worker | None:
        for worker in workers.running:
            status, told = worker.get("/api/transfers?local=1")
            if status == 200 and any(row["connection"] == path.rpartition("/")[2] for row in told["transfers"]):
                return worker
        return None

    host = wait_for(found, 60, "somebody has the row")
    assert host is not None
    return host


def miss_storage(workers: Workers, upload: Upload, beyond: int) -> None:
    """Let the place of segments be gone until the upload has missed it; it is allowed to go on to ``beyond``."""
    # Who has the lock has a file open. The next one who writes finds no place.
    wait_for(lambda: held_by(workers, upload.path) is None, 30, "the lock is given back")
    files, breaks = workers.directory / "state" / "files", upload.breaks
    (files / "parts").rename(files / "aside")
    (files / "parts").touch()
    upload.allow(beyond)
    upload.wait_for_a_break(breaks)
    (files / "parts").unlink()
    (files / "aside").rename(files / "parts")


def freeze_holder(workers: Workers, upload: Upload, beyond: int) -> None:
    """Freeze the worker that serves the upload until another one has fenced it; what it then still does is late."""
    frozen = next(worker for worker in workers.running if worker.url == upload.url)
    other = next(worker for worker in workers.running if worker is not frozen)
    frozen.sigstop()
    upload.allow(beyond)
    wait_for(lambda: _asked(other, upload.path) == 200, 60, "another worker takes the upload over")
    frozen.sigcont()


def _asked(worker: Worker, path: str) -> int:
    try:
        return requests.head(worker.url + path, headers={"Tus-Resumable": "1.0.0"}, timeout=30).status_code
    except requests.RequestException:
        return 0
