"""Heartbeat channels between workers: every worker listens to every other one. Runs in the membership thread.

A worker writes to whoever connects: one line that says who it is, then a byte at every beat. It reads nothing, so
whoever reaches the port learns that the worker lives and can do no harm.
"""

import asyncio
import logging
import time
from collections.abc import Callable, Mapping
from typing import NamedTuple

from app.protocol import liveness
from app.protocol.liveness import BEAT_S, Beat, Closed, Dead, Left, Peer, Refused, Tick, Unknown

log = logging.getLogger(__name__)

BEAT = b"."
REJOIN = b"R"
"""Somebody was removed from the group: join again now, rather than after the next heartbeat to the broker."""
BYE = b"B"

RECONNECT_S = 0.05
CONNECT_S = 1.0
HELLO_BYTES = 512
CLOSE_TURNS = 100


class Watched(NamedTuple):
    """A worker to listen to: ``host:port`` of its channel, its incarnation, and its member id in the group."""

    address: str
    incarnation: int
    member_id: str


class Beats:
    """The channels of one worker.

    Args:
        name, incarnation: of this worker.
        host: the address to listen on.
        dead: called with the name of a worker that is declared dead.
        rejoin: called when another worker says that the group changes.
    """

    def __init__(
        self,
        name: str,
        incarnation: int,
        host: str,
        *,
        dead: Callable[[str], None],
        rejoin: Callable[[], None],
    ) -> None:
        self._hello = b"%b %d\n" % (name.encode(), incarnation)
        self._name = name
        self._host = host
        self._declare_dead = dead
        self._rejoin = rejoin
        self._server: asyncio.Server | None = None
        self._listeners: set[asyncio.StreamWriter] = set()
        self._peers: dict[str, Peer] = {}
        self._tasks: dict[str, asyncio.Task[None]] = {}
        self._watched: dict[str, Watched] = {}
        self._beating: asyncio.Task[None] | None = None

    @property
    def dead(self) -> frozenset[str]:
        return frozenset(name for name, peer in self._peers.items() if isinstance(peer, Dead))

    async def start(self) -> int:
        """Listen, and begin to beat; the port."""
        self._server = await asyncio.start_server(self._accept, self._host, 0)
        self._beating = asyncio.ensure_future(self._beat())
        port: int = self._server.sockets[0].getsockname()[1]
        return port

    def watch(self, workers: Mapping[str, Watched]) -> None:
        """Listen to exactly these workers, by name. One that was declared dead and has joined again is a new one."""
        wanted = {name: worker for name, worker in workers.items() if name != self._name and worker.address}
        for name in list(self._watched):
            if wanted.get(name) != self._watched[name]:
                self._tasks.pop(name).cancel()
                del self._watched[name], self._peers[name]
        for name, worker in wanted.items():
            if name not in self._watched:
                self._watched[name] = worker
                self._peers[name] = Unknown()
                hello = b"%b %d\n" % (name.encode(), worker.incarnation)
                self._tasks[name] = asyncio.ensure_future(self._listen(name, worker.address, hello))

    def tell_rejoin(self) -> None:
        """Tell every worker that listens here to join the group again."""
        self._write(REJOIN)

    async def stop(self) -> None:
        """Say good-bye, so that nobody takes the end for a death."""
        self._write(BYE)
        if self._server is not None:
            self._server.close()
        for writer in list(self._listeners):
            writer.close()
        tasks = [*self._tasks.values(), *((self._beating,) if self._beating else ())]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        # Closing a writer ends its reader; their tasks want one more turn of the loop to see it.
        for _ in range(CLOSE_TURNS):
            if not self._listeners:
                break
            await asyncio.sleep(0)

    # -- what others hear -----------------------------------------------------------------------------------------

    async def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(self._hello)
        self._listeners.add(writer)
        try:
            while await reader.read(64):
                pass  # Nothing that is said here is listened to.
        except OSError:
            pass
        finally:
            self._listeners.discard(writer)
            writer.close()

    def _write(self, byte: bytes) -> None:
        for writer in list(self._listeners):
            writer.write(byte)

    async def _beat(self) -> None:
        last = time.monotonic()
        while True:
            await asyncio.sleep(BEAT_S)
            self._write(BEAT)
            now = time.monotonic()
            for name in list(self._peers):
                self._step(name, Tick(now, last))
            last = now

    # -- what is heard --------------------------------------------------------------------------------------------

    async def _listen(self, name: str, address: str, hello: bytes) -> None:
        """Hold one channel open, and report what comes over it."""
        host, _, port = address.rpartition(":")
        while not isinstance(self._peers[name], Dead):
            try:
                async with asyncio.timeout(CONNECT_S):
                    reader, writer = await asyncio.open_connection(host, int(port))
                    said = await reader.readline()
            except ConnectionRefusedError:
                self._step(name, Refused())
            except (OSError, TimeoutError):
                self._step(name, Closed())
            else:
                try:
                    if said == hello:
                        await self._hear(name, reader)
                    else:
                        # A successor under the same name, or a stranger on the same port: the one we knew is gone.
                        self._step(name, Refused() if said else Closed())
                finally:
                    writer.close()
            await asyncio.sleep(RECONNECT_S)

    async def _hear(self, name: str, reader: asyncio.StreamReader) -> None:
        self._step(name, Beat(time.monotonic()))
        try:
            while data := await reader.read(HELLO_BYTES):
                self._step(name, Beat(time.monotonic()))
                if REJOIN in data:
                    self._rejoin()
                if BYE in data:
                    self._step(name, Left())
                    # It has left the group before it said so.
                    self._rejoin()
                    return
        except OSError:
            pass
        self._step(name, Closed())

    def _step(self, name: str, event: liveness.Event) -> None:
        decided = liveness.step(self._peers[name], event)
        self._peers[name] = decided.peer
        if decided.declare_dead:
            log.info("worker %s is dead", name)
            self._declare_dead(name)
