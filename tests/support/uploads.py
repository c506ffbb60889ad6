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
        self.path: str | None = None
        self.offset = 0
        self.breaks = 0
        self.gap_s = 0.0
        self.done = threading.Event()

    @property
    def sent(self) -> int:
        """Bytes that were read to be sent."""
        return self._source.read_bytes

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
            url = urls[turn % len(urls)]
            try:
                uploader = self._uploader(url)
                self.offset = uploader.offset
                while self.offset < self._size:
                    uploader.upload_chunk()
                    self.offset = uploader.offset
                    if broken is not None:
                        self.gap_s, broken = max(self.gap_s, time.monotonic() - broken), None
            except (TusCommunicationError, requests.RequestException, OSError):
                if broken is None:
                    self.breaks += 1
                    broken = time.monotonic()
                turn += 1
                time.sleep(0.05)
        self.done.set()

    def _uploader(self, url: str) -> Any:
        client = TusClient(f"{url}/files/")
        given = {"file_stream": self._source, "chunk_size": self._chunk}
        if self.path is None:
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
    """All committed events of a namespace, in order."""
    topic = Names(namespace).events
    consumer = Consumer(
        {**config, "group.id": "unused", "isolation.level": "read_committed", "enable.partition.eof": True}
    )
    found: list[dict[str, Any]] = []
    try:
        consumer.assign([TopicPartition(topic, 0, 0)])
        while (message := consumer.poll(10)) is not None and message.error() is None:
            found.append(json.loads(message.value() or b""))
    finally:
        with suppress(Exception):
            consumer.close()
    return found
