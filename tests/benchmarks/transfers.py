"""Uploads: one large one, many at once, many that float, and how soon another worker goes on."""

import asyncio
import json
import os
import shutil
import subprocess
import tempfile
import time
from pathlib import Path
from typing import Any, Final

import aiohttp
import psutil

from app.engine.embedded_kafka import EmbeddedKafka
from tests.support.broker import new_namespace
from tests.support.cluster import Worker, Workers, wait_for
from tests.support.transfers import OCTETS, ask, connect, create, patch

MB: Final = 1 << 20
_HEADERS: Final = {"Tus-Resumable": "1.0.0"}


def run(bootstrap: str, directory: Path, *, size: int = 1024 * MB, runs: int = 3) -> dict[str, Any]:
    """All figures; sizes in bytes, times in seconds, memory in MB."""
    payload = directory / "payload"
    _fill(payload, size)
    with Workers(bootstrap, new_namespace(), directory / "transfers") as workers:
        workers.topics()
        first, second = workers.start_ready("w1", "w2")
        results: dict[str, Any] = {"one_mb_per_s": [_one(first, payload, size) for _ in range(runs)]}
        results["peer_mb_per_s"] = _peer(directory, payload, size, runs)
        results["many"] = _many(first, 200, 5 * MB)
        results["floating"] = _floating(workers, 10_000)
        results["idle_mb"] = _idle(second, 1_000)
        results["resume_s"] = _resume(workers, first, second)
    payload.unlink()
    return results


def _fill(path: Path, size: int) -> None:
    block = os.urandom(MB)
    with path.open("wb") as file:
        for _ in range(0, size, MB):
            file.write(block)


def _curl(url: str, payload: Path) -> None:
    command = ["curl", "-sf", "-X", "PATCH", "-T", str(payload), "-H", "Expect:", "-H", f"Content-Type: {OCTETS}"]
    subprocess.run([*command, "-H", "Tus-Resumable: 1.0.0", "-H", "Upload-Offset: 0", url], check=True)


def _one(worker: Worker, payload: Path, size: int) -> int:
    """One PATCH by curl, from creation to the answer: durable, whole and announced."""
    os.sync()
    begun = time.perf_counter()
    path = create(worker.url, size)
    _curl(worker.url + path, payload)
    rate = round(size / 1e6 / (time.perf_counter() - begun))
    assert ask(worker.url, "DELETE", path).status == 204
    return rate


def _peer(directory: Path, payload: Path, size: int, runs: int) -> list[int] | None:
    """The official server on Node, where ``tus`` in ``HOLDFAST_PEERS`` has it; it does not wait for the disk."""
    modules = Path(os.environ.get("HOLDFAST_PEERS", "/nowhere")).absolute() / "tus/node_modules/@tus"
    if shutil.which("node") is None or not modules.exists():
        return None
    script = directory / "peer.mjs"
    script.write_text(
        f"const {{Server}} = await import('{modules}/server/dist/index.js');\n"
        f"const {{FileStore}} = await import('{modules}/file-store/dist/index.js');\n"
        "const server = new Server({path: '/files', datastore: new FileStore({directory: process.argv[2]})});\n"
        "const web = server.listen({host: '127.0.0.1', port: 0}, () => console.log(web.address().port));\n"
    )
    rates = []
    files = directory / "peer"
    for _ in range(runs):
        files.mkdir()
        os.sync()
        process = subprocess.Popen(["node", str(script), str(files)], stdout=subprocess.PIPE, text=True)
        try:
            assert process.stdout is not None
            url = f"http://127.0.0.1:{process.stdout.readline().strip()}"
            begun = time.perf_counter()
            line = connect(url)
            line.request("POST", "/files", headers={**_HEADERS, "Upload-Length": str(size)})
            path = (line.getresponse().getheader("Location") or "").rpartition("/files/")[2]
            line.close()
            _curl(f"{url}/files/{path}", payload)
            rates.append(round(size / 1e6 / (time.perf_counter() - begun)))
        finally:
            process.kill()
            process.wait()
            shutil.rmtree(files)
    return rates


def _rss(worker: Worker) -> float:
    return psutil.Process(worker.pid).memory_info().rss / MB


def _many(worker: Worker, count: int, size: int) -> dict[str, Any]:
    """Uploads at once: bytes of all by the time of all, and the most memory that the worker had."""
    data = os.urandom(size)
    most = [_rss(worker)]

    async def one(session: aiohttp.ClientSession) -> None:
        async with session.post(f"{worker.url}/files/", headers={**_HEADERS, "Upload-Length": str(size)}) as reply:
            assert reply.status == 201
            url = worker.url + reply.headers["Location"]
        headers = {**_HEADERS, "Upload-Offset": "0", "Content-Type": OCTETS}
        async with session.patch(url, data=data, headers=headers) as reply:
            assert reply.status == 204, await reply.text()

    async def watch() -> None:
        while True:
            most.append(_rss(worker))
            await asyncio.sleep(0.05)

    async def all_of_them() -> float:
        watching = asyncio.ensure_future(watch())
        async with aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=0)) as session:
            begun = time.perf_counter()
            await asyncio.gather(*(one(session) for _ in range(count)))
            took = time.perf_counter() - begun
        watching.cancel()
        return took

    os.sync()
    took = asyncio.run(all_of_them())
    return {"mb_per_s": round(count * size / 1e6 / took), "rss_mb": round(max(most)), "before_mb": round(most[0])}


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
    return {"mb": round(sum(map(_rss, workers.running)) - before, 1), "created_per_s": round(count / took)}


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
    return round(used, 1)


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
    return round(time.perf_counter() - begun, 2)


if __name__ == "__main__":
    with (
        tempfile.TemporaryDirectory(prefix="holdfast-bench-") as scratch,
        EmbeddedKafka(Path(scratch) / "kafka") as kafka,
    ):
        print(json.dumps(run(kafka.bootstrap, Path(scratch)), indent=2))
