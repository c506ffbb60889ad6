"""Uploads: one large one and many beside the official server, many that float, and how soon another worker goes on.

Ours answers when the bytes are on the disk, the whole is composed and its checksum is known; the peer when it has
written. Both get the bytes from curl or from one program, on the same disk.
"""

import asyncio
import os
import subprocess
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Final

import aiohttp

from tests.benchmarks.bench import Bench, resident_bytes
from tests.benchmarks.measurement import Goal, Measurement, Sample, compared, figure, of
from tests.benchmarks.peers import tus
from tests.benchmarks.peers.engines import Absent
from tests.support.cluster import Worker, Workers, wait_for
from tests.support.transfers import OCTETS, ask, connect, create, patch

NAME: Final = "transfers"
ABOUT: Final = "uploads, beside the official tus server"
MB: Final = 1 << 20
SIZE: Final = 5 * MB
MEANT_MB: Final = 1_024
MEANT_UPLOADS: Final = 200
MEANT_FLOATING: Final = 10_000
GOAL_SPEED: Final = Goal("≥", 0.6, of_ratio=True)
_HEADERS: Final = {"Tus-Resumable": "1.0.0"}


def measure(bench: Bench) -> Iterator[Sample]:
    options = bench.options
    payload = bench.scratch / "payload"
    _fill(payload, options.upload_mb)
    try:
        script: Path | None = tus.prepare(bench.tools)
    except Absent as error:
        script = None
        yield {"series": "absent", "why": str(error)}
    with bench.workers("transfers", max_upload_bytes=2 * options.upload_mb * MB) as workers:
        workers.topics()
        first, second = workers.start_ready("w1", "w2")
        for number in range(options.pairs):
            ours: dict[str, float] = {}
            theirs: dict[str, float] = {}
            for mine in (True, False) if number % 2 == 0 else (False, True):
                bench.say(f"round {number + 1} of {options.pairs}: {'Holdfast' if mine else tus.NAME}")
                if mine:
                    ours = _all(f"{first.url}/files/", first.pid, payload, options.uploads)
                elif script is not None:
                    with tus.serving(script, bench.scratch / "peer") as (url, pid):
                        theirs = _all(url + "/files", pid, payload, options.uploads)
            size = {"mb": options.upload_mb, "uploads": options.uploads}
            yield {"series": "round", **size, "ours": ours, "theirs": theirs}
        bench.say(f"{options.floating} floating connections")
        yield {"series": "floating", **_floating(workers, options.floating)}
        bench.say(f"{options.idle} open sockets")
        yield {"series": "idle", "sockets": options.idle, "mb": _idle(second, options.idle)}
        for number in range(options.resumes):
            bench.say(f"kill {number + 1} of {options.resumes}")
            yield {"series": "resume", "took_s": _resume(workers, first, second)}
            first = workers.start_ready("w1")[0]
    payload.unlink()


def _all(url: str, pid: int, payload: Path, uploads: int) -> dict[str, float]:
    """Megabytes (10^6) a second of one large upload and of many at once, and the most memory meanwhile, in MB."""
    os.sync()
    one = _one(url, payload)
    os.sync()
    return {"one": one, **asyncio.run(_many(url, pid, uploads))}


def _one(url: str, payload: Path) -> float:
    """One PATCH by curl, from creation to the answer."""
    size = payload.stat().st_size
    begun = time.perf_counter()
    line = connect(url)
    line.request("POST", "/" + url.split("/", 3)[3], headers={**_HEADERS, "Upload-Length": str(size)})
    path = (line.getresponse().getheader("Location") or "").rpartition("/files/")[2]
    line.close()
    where = f"{url.rstrip('/')}/{path}"
    command = ["curl", "-sf", "-X", "PATCH", "-T", str(payload), "-H", "Expect:", "-H", f"Content-Type: {OCTETS}"]
    subprocess.run([*command, "-H", "Tus-Resumable: 1.0.0", "-H", "Upload-Offset: 0", where], check=True)
    rate = size / 1e6 / (time.perf_counter() - begun)
    subprocess.run(["curl", "-sf", "-X", "DELETE", "-H", "Tus-Resumable: 1.0.0", where], check=True)
    return rate


def _fill(path: Path, megabytes: int) -> None:
    block = os.urandom(MB)
    with path.open("wb") as file:
        for _ in range(megabytes):
            file.write(block)


async def _many(url: str, pid: int, count: int) -> dict[str, float]:
    """Uploads at once: bytes of all by the time of all."""
    data = os.urandom(SIZE)
    most = [resident_bytes(pid)]

    async def one(session: aiohttp.ClientSession) -> None:
        async with session.post(url, headers={**_HEADERS, "Upload-Length": str(SIZE)}) as reply:
            assert reply.status == 201
            path = reply.headers["Location"].rpartition("/files/")[2]
        headers = {**_HEADERS, "Upload-Offset": "0", "Content-Type": OCTETS}
        async with session.patch(f"{url.rstrip('/')}/{path}", data=data, headers=headers) as reply:
            assert reply.status == 204, await reply.text()

    async def watch() -> None:
        while True:
            most.append(resident_bytes(pid))
            await asyncio.sleep(0.05)

    watching = asyncio.ensure_future(watch())
    async with aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=0)) as session:
        begun = time.perf_counter()
        await asyncio.gather(*(one(session) for _ in range(count)))
        took = time.perf_counter() - begun
    watching.cancel()
    return {"many": count * SIZE / 1e6 / took, "rss_mb": max(most) / MB, "rss_before_mb": most[0] / MB}


def _rss(worker: Worker) -> float:
    return resident_bytes(worker.pid) / MB


def _floating(workers: Workers, count: int) -> dict[str, Any]:
    """Connections that nobody services: what they cost the workers, in MB, all owners and standbys together."""
    urls = [worker.url for worker in workers.running]
    before = sum(map(_rss, workers.running))

    async def begin(session: aiohttp.ClientSession, number: int) -> None:
        # Each remote has its own address, as it would behind a load balancer.
        headers = {**_HEADERS, "Upload-Length": "1000000", "X-Forwarded-For": f"10.0.{number // 250}.{number % 250}"}
        async with session.post(f"{urls[number % len(urls)]}/files/", headers=headers) as reply:
            assert reply.status == 201

    async def all_of_them() -> float:
        async with aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=100)) as session:
            begun = time.perf_counter()
            await asyncio.gather(*(begin(session, number) for number in range(count)))
            return time.perf_counter() - begun

    took = asyncio.run(all_of_them())
    return {"connections": count, "mb": sum(map(_rss, workers.running)) - before, "created_per_s": count / took}


def _idle(worker: Worker, count: int) -> float:
    """Open connections that say nothing, after one request each."""
    before = _rss(worker)
    lines = [connect(worker.url) for _ in range(count)]
    for line in lines:
        line.request("OPTIONS", "/files/")
        line.getresponse().read()
    used = _rss(worker) - before
    for line in lines:
        line.close()
    return used


def _resume(workers: Workers, victim: Worker, other: Worker) -> float:
    """From the kill of the worker that serves an upload to the next confirmed bytes at another one."""
    data = os.urandom(4 * MB)
    path = create(victim.url, len(data))
    assert patch(victim.url, path, 0, data[: 2 * MB]).status == 204
    victim.kill9()
    begun = time.perf_counter()

    def go_on() -> bool:
        offset = ask(other.url, "HEAD", path).headers.get("Upload-Offset")
        return offset is not None and patch(other.url, path, int(offset), data[int(offset) :]).status == 204

    wait_for(go_on, 60, "another worker goes on")
    return time.perf_counter() - begun


def judge(samples: Sequence[Sample]) -> list[Measurement]:
    rounds = of(samples, "round")
    found = []
    full = all(one["mb"] >= MEANT_MB and one["uploads"] >= MEANT_UPLOADS for one in rounds)
    for key, title in (("one", "one large upload"), ("many", "many uploads of 5 MB at once")):
        pairs = [(one["ours"][key], one["theirs"][key]) for one in rounds if one["theirs"]]
        if pairs:
            found.append(compared(title, "MB/s", pairs, tus.NAME, goal=GOAL_SPEED if full else None))
        else:
            found.append(figure(title, "MB/s", [one["ours"][key] for one in rounds], note=f"{tus.NAME} is absent"))
    found.append(_least("resident memory meanwhile", "MB", [one["ours"]["rss_mb"] for one in rounds], 300, full=full))
    found.append(
        _least("goes on at another worker after kill -9", "s", [r["took_s"] for r in of(samples, "resume")], 3)
    )
    for floating in of(samples, "floating"):
        full = floating["connections"] >= MEANT_FLOATING
        found.append(_least(f"{floating['connections']} floating connections", "MB", [floating["mb"]], 50, full=full))
        found.append(figure("connections begun", "/s", [floating["created_per_s"]]))
    sockets = of(samples, "idle")
    return found + [_least(f"{idle['sockets']} open sockets", "MB", [idle["mb"]], 50) for idle in sockets]


def _least(name: str, unit: str, runs: list[float], limit: float, *, full: bool = True) -> Measurement:
    return figure(name, unit, runs, statistic=max, goal=Goal("≤", limit) if full else None)


def plot(_samples: Sequence[Sample], _pyplot: Any) -> None:
    """There is nothing to draw."""
