"""Celery on Redis: requests that it answers at once, as a program of its own. It keeps nothing on disk.

``python celery_job.py throughput OUTSTANDING SECONDS`` or ``… latency RATE SECONDS`` prints one line of JSON; the
worker beside it is ``python -m celery -A celery_job worker``. ``CELERY_REDIS`` names the broker. Answers are taken from
the channels on which Celery's Redis backend publishes each result, which is the quickest way to learn of one.
"""

import json
import os
import sys
import threading
import time

import redis
from celery import Celery

URL = os.environ["CELERY_REDIS"]
CHANNEL = "celery-task-meta-"
LIMIT_S = 60.0

app = Celery("echo", broker=URL, backend=URL)
app.conf.update(result_expires=600, worker_prefetch_multiplier=64, broker_connection_retry_on_startup=True)


@app.task(name="echo")  # type: ignore[untyped-decorator]
def echo(body: object) -> object:
    return body


class Client:
    """Sends tasks and learns of their results."""

    def __init__(self) -> None:
        self.sent: dict[str, float] = {}
        self.took: list[tuple[float, float]] = []
        self.room = threading.Semaphore(0)
        self._channel = redis.Redis.from_url(URL).pubsub()
        self._channel.psubscribe(f"{CHANNEL}*")
        self._numbers = 0
        threading.Thread(target=self._listen, daemon=True).start()

    def send(self) -> None:
        self._numbers += 1
        name = f"{os.getpid()}-{self._numbers}"
        self.sent[name] = time.monotonic()
        echo.apply_async(({"n": self._numbers},), task_id=name)

    def _listen(self) -> None:
        for message in self._channel.listen():
            if message["type"] == "pmessage":
                now = time.monotonic()
                begun = self.sent.pop(message["channel"].decode().removeprefix(CHANNEL), None)
                if begun is not None:
                    self.took.append((now, now - begun))
                    self.room.release()

    def wait(self, count: int) -> None:
        deadline = time.monotonic() + LIMIT_S
        while len(self.took) < count and time.monotonic() < deadline:
            time.sleep(0.01)


def throughput(outstanding: int, seconds: float) -> dict[str, float]:
    client = Client()
    for _ in range(outstanding):
        client.room.release()
    begun = time.monotonic()
    while time.monotonic() < begun + seconds:
        if client.room.acquire(timeout=1.0):
            client.send()
    warm, end = begun + seconds / 4, begun + seconds
    return {"requests_per_s": sum(warm <= at < end for at, _ in client.took) / (end - warm)}


def latency(rate: int, seconds: float) -> dict[str, float]:
    client = Client()
    begun, total = time.monotonic(), round(rate * seconds)
    for number in range(total):
        while (left := begun + number / rate - time.monotonic()) > 0:
            time.sleep(left)
        client.send()
    client.wait(total)
    took = sorted(one for _, one in client.took[total // 4 :])
    return {"p50_s": took[len(took) // 2], "p99_s": took[int(len(took) * 0.99)], "answered": len(client.took)}


if __name__ == "__main__":
    _, mode, amount, seconds = sys.argv
    measure = throughput if mode == "throughput" else latency
    print(json.dumps(measure(int(amount), float(seconds))))
