"""Tasks that come by HTTP: into ``tasks``, and their results back."""

import asyncio
import threading
from collections.abc import Callable
from typing import Final, Protocol

from app.client.tasks import Client, Sent
from app.records import Result, Task
from app.settings import Settings

_KEPT: Final = 20_000


class Gateway(Protocol):
    """Publishes tasks; :class:`KafkaGateway` is the real one."""

    async def publish(self, task: Task) -> Sent:
        """Return once the brokers have the task; ValueError: too large."""

    async def perform(self, task: Task, wait_s: float) -> tuple[Sent, Result | None]:
        """Publish and wait for the result; None: it has not come within ``wait_s`` seconds."""

    def close(self) -> None:
        """Let go of connections."""


class KafkaGateway:
    """Connects at the first task. Results are read only once somebody has waited for one."""

    def __init__(self, settings: Settings) -> None:
        self._sender = _Once(lambda: Client(settings=settings, read_results=False))
        # A result is asked for right after its task was confirmed; none has to be kept for long.
        self._waiter = _Once(lambda: Client(settings=settings, keep_results=_KEPT))

    async def publish(self, task: Task) -> Sent:
        """Return once the brokers have the task; ValueError: too large."""
        client = await asyncio.to_thread(self._sender.get)
        return await _send(client, task)

    async def perform(self, task: Task, wait_s: float) -> tuple[Sent, Result | None]:
        """Publish and wait for the result; None: it has not come within ``wait_s`` seconds."""
        client = await asyncio.to_thread(self._waiter.get)
        # With an id of its own the result is expected before the task is sent, and cannot be missed.
        early = client.expect(task.id) if task.id is not None else None
        sent = await _send(client, task)
        future = early or client.expect(sent.id)
        try:
            async with asyncio.timeout(wait_s):
                while True:
                    result = await asyncio.wrap_future(future)
                    # Tasks may share an id; the place is this one's alone.
                    if (result.source.partition, result.source.offset) == (sent.partition, sent.offset):
                        return sent, result
                    future = client.expect(sent.id)
        except TimeoutError:
            return sent, None
        finally:
            future.cancel()

    def close(self) -> None:
        """Let go of connections."""
        self._sender.close()
        self._waiter.close()


class _Once:
    """A client that is made when it is first needed; a failed attempt is made again."""

    def __init__(self, make: Callable[[], Client]) -> None:
        self._make = make
        self._lock = threading.Lock()
        self._client: Client | None = None

    def get(self) -> Client:
        with self._lock:
            if self._client is None:
                self._client = self._make()
            return self._client

    def close(self) -> None:
        with self._lock:
            client, self._client = self._client, None
        if client is not None:
            client.close()


async def _send(client: Client, task: Task) -> Sent:
    # A full queue is waited for, which must not hold up other requests.
    future = await asyncio.to_thread(
        client.send_nowait, task.tenant, task.session, task.type, task.payload, server=task.server, id=task.id
    )
    return await asyncio.wrap_future(future)
