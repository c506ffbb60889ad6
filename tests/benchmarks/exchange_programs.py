"""Client and server programs of exchanges, as in life: processes of their own that know the cluster by its settings.

``… serve NAME`` performs next to nothing; ``… throughput EXCHANGES SECONDS`` and ``… latency EXCHANGES RATE SECONDS``
print what they measured as a line of JSON.
"""

import json
import os
import queue
import sys
import threading
import time
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

from app.client import ClientSession, ServerSession
from app.client.exchanges import Response
from tests.benchmarks.measurement import percentile


def serve(name: str) -> None:
    """Perform next to nothing."""
    ServerSession(server=name, perform=lambda body, restart: (body, body)).run()


def opened(prefix: str, exchanges: int, **more: Any) -> list[ClientSession]:
    """Open exchanges, several at a time: each waits for its manager."""

    def make(number: int) -> ClientSession:
        return ClientSession(exchange=f"{prefix}-{number}", client="bench", timeout=60, **more)

    with ThreadPoolExecutor(32) as pool:
        return list(pool.map(make, range(exchanges)))


def drive_throughput(exchanges: int, seconds: float) -> dict[str, Any]:
    """As many requests as go, over so many exchanges, with windows of 8, everything acknowledged."""
    ready: queue.SimpleQueue[tuple[int, Future[Response]]] = queue.SimpleQueue()
    sessions = opened("load", exchanges)

    def expect(index: int) -> None:
        sessions[index].expect().add_done_callback(lambda done: ready.put((index, done)))

    sent = [0] * exchanges
    for index, session in enumerate(sessions):
        for _ in range(8):
            sent[index] += 1
            session.submit_nowait({"n": sent[index]}, restart=sent[index])
        expect(index)
    count, counted = 0, 0
    begun = started = time.monotonic()
    warm = started + seconds / 4
    while (now := time.monotonic()) < started + seconds:
        index, done = ready.get()
        response = done.result()
        assert response.body == {"n": response.number}
        session = sessions[index]
        session.acknowledge_nowait(response.number)
        sent[index] += 1
        session.submit_nowait({"n": sent[index]}, restart=sent[index])
        expect(index)
        count += 1
        if now < warm:
            counted, begun = count, now
    return {"requests_per_s": (count - counted) / (now - begun), "requests": count}


def drive_latency(exchanges: int, rate: float, seconds: float) -> dict[str, Any]:
    """From submission to response, at a rate that does not wait for responses."""
    sessions = opened("rate", exchanges, window=1_000)
    taken: list[float] = []
    accepted: list[float] = []
    lock = threading.Lock()

    waiting: list[dict[int, float]] = [{} for _ in sessions]
    expecting = [False] * exchanges

    def expect(index: int) -> None:
        def done(future: Future[Response]) -> None:
            number = future.result().number
            with lock:
                taken.append(time.monotonic() - waiting[index].pop(number))
                expecting[index] = more = bool(waiting[index])
            sessions[index].acknowledge_nowait(number)
            if more:
                expect(index)

        sessions[index].expect().add_done_callback(done)

    started = time.monotonic()
    total = round(rate * seconds)
    for number in range(total):
        due = started + number / rate
        while (left := due - time.monotonic()) > 0:
            time.sleep(left)
        index = number % exchanges
        with lock:
            waiting[index][number // exchanges + 1] = time.monotonic()
            begin, expecting[index] = not expecting[index], True
        at = time.monotonic()
        stored = sessions[index].submit_nowait({"n": number})
        stored.add_done_callback(lambda _, at=at: accepted.append(time.monotonic() - at))  # type: ignore[misc]
        if begin:
            expect(index)
    deadline = time.monotonic() + 30
    while len(taken) < total and time.monotonic() < deadline:
        time.sleep(0.05)
    warm = taken[len(taken) // 4 :]
    return {
        "stored_p50_s": percentile(0.5)(accepted[len(accepted) // 4 :]),
        "p50_s": percentile(0.5)(warm),
        "p99_s": percentile(0.99)(warm),
        "answered": len(taken),
        "sent": total,
    }


def main(arguments: list[str]) -> None:
    match arguments:
        case ["serve", name]:
            serve(name)
            return
        case ["throughput", exchanges, seconds]:
            found = drive_throughput(int(exchanges), float(seconds))
        case ["latency", exchanges, rate, seconds]:
            found = drive_latency(int(exchanges), float(rate), float(seconds))
        case _:
            sys.exit(__doc__)
    print(json.dumps(found))
    sys.stdout.flush()
    # Without closing hundreds of exchanges one by one.
    os._exit(0)


if __name__ == "__main__":
    main(sys.argv[1:])
