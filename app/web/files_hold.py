"""Locks that this worker holds: taking one, over from another worker if need be, and letting it go."""

import asyncio
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import Any, Final, TypeVar
from urllib.parse import quote
from weakref import WeakValueDictionary

import aiohttp

from app.errors import HoldfastError, StorageError
from app.protocol.conveyance import (
    Completing,
    Conveying,
    Floating,
    Granted,
    Nak,
    Reason,
    Segments,
    State,
)
from app.storage import Storage, Writer
from app.storage.conclude import shelf_of
from app.storage.survey import survey
from app.web.files_owner import Answer, Desk, Owners
from tables.transfers import pairs_of

LET_GO_S: Final = 1.5
"""How long another worker may take to save what came and let go; then it is fenced."""

KEEP_S: Final = 1.0
"""How long a lock is kept behind a request, in case the next piece comes here as well."""

_T = TypeVar("_T")


class RefusedError(Exception):
    """The connection cannot be serviced; ``nak`` and ``state`` are the owner's words."""

    def __init__(self, nak: Nak, state: State) -> None:
        super().__init__(nak, state)
        self.nak = nak
        self.state = state


class Hold:
    """A connection that this worker services. One request at a time uses it: it claims it, and frees it at its end."""

    def __init__(self, connection: str, state: Conveying, writer: Writer) -> None:
        self.connection = connection
        self.state: State = state
        self.instance = state.instance
        self.start = state.conveyance.offset
        self.writer = writer
        self.used = time.monotonic()
        self.own: Segments = ()
        self.busy = False
        self._stopped = False
        self._interrupt: Callable[[], None] | None = None
        self._ended = asyncio.Event()

    @property
    def offset(self) -> int:
        """What was taken so far."""
        return self.start + self.writer.length

    def claim(self) -> None:
        """From here on it is one request's."""
        assert not self.busy, "two requests write under one lock"
        self.busy, self._stopped, self._interrupt = True, False, None
        self._ended = asyncio.Event()

    def watch(self, interrupt: Callable[[], None]) -> None:
        """The request says how it is to be ended; if it is to end already, it is."""
        self._interrupt = interrupt
        if self._stopped:
            interrupt()

    async def stop(self) -> None:
        """End the request that uses it, and wait until it has."""
        self._stopped = True
        if self._interrupt is not None:
            self._interrupt()
        await self._ended.wait()

    def free(self) -> None:
        """The request has ended."""
        self.busy = False
        self._interrupt = None
        self.used = time.monotonic()
        self._ended.set()


class Holds:
    """All locks of this worker. Lives in the web server's loop; everything that waits for a disk is in ``pool``."""

    def __init__(
        self, desk: Desk, owners: Owners, storage: Storage, peers: Callable[[], aiohttp.ClientSession]
    ) -> None:
        self.desk = desk
        self.owners = owners
        self.storage = storage
        self.pool = ThreadPoolExecutor(8, thread_name_prefix="storage")
        self.live = 0
        self._peers = peers
        self._held: dict[str, Hold] = {}
        self._doors: WeakValueDictionary[str, asyncio.Lock] = WeakValueDictionary()

    async def threaded(self, call: Callable[..., _T], *arguments: Any, **more: Any) -> _T:
        """Run what may wait in a thread."""
        return await asyncio.get_running_loop().run_in_executor(self.pool, partial(call, *arguments, **more))

    def held(self, connection: str) -> Hold | None:
        """The lock of a connection, if it is held here."""
        return self._held.get(connection)

    # -- taking ---------------------------------------------------------------------------------------------------

    async def take(self, connection: str) -> Hold:
        """Return the lock, claimed, whoever had it; a request that runs under it is ended first.

        Raises:
            RefusedError: the connection is not to be serviced.
            StorageError: the storage does not answer.
            UnavailableError: its owner does not answer.
        """
        door = self._doors.setdefault(connection, asyncio.Lock())
        async with door:
            hold = self._held.get(connection)
            if hold is not None and hold.busy:
                await self.let_go(connection)
                hold = None
            if hold is None:
                hold = await self._lock(connection)
                self._held[connection] = hold
            hold.claim()
            return hold

    async def _lock(self, connection: str) -> Hold:
        answer = await self.owners.call(connection, "lock", worker=self.desk.name)
        if isinstance(answer.reply, Nak) and answer.reply.reason is Reason.LOCKED:
            state = answer.state
            if not isinstance(state, Conveying):
                raise RefusedError(answer.reply, state)
            await self._ask_to_let_go(connection, answer.reply.holder, state.instance)
            answer = await self.owners.call(connection, "lock", worker=self.desk.name, seen=state.instance)
        if not isinstance(answer.reply, Granted):
            assert isinstance(answer.reply, Nak)
            raise RefusedError(answer.reply, answer.state)
        state = answer.state
        if not isinstance(state, Conveying):
            # All bytes are there: making the whole of them is the owner's.
            await self.owners.call(connection, "release", instance=answer.reply.instance, segments=[])
            raise RefusedError(Nak(Reason.LOCKED, answer.reply.offset), state)
        return await self._opened(connection, state)

    async def _opened(self, connection: str, state: Conveying) -> Hold:
        """Compare row and storage, then get ready to write."""
        try:
            found = await self.threaded(survey, self.storage, connection, state.conveyance, state.instance)
        except StorageError:
            await self.owners.call(connection, "release", instance=state.instance, segments=[])
            raise
        if found is not None:
            told = await self.owners.call(connection, "found", instance=state.instance, segments=pairs_of(found))
            if isinstance(told.reply, Nak) or not isinstance(told.state, Conveying):
                raise await self._not_conveying(connection, state.instance, told)
            state = told.state
        writer = self.storage.writer(shelf_of(connection, state.conveyance).prefix(state.instance))
        return Hold(connection, state, writer)

    async def _not_conveying(self, connection: str, instance: int, told: Answer) -> RefusedError:
        if isinstance(told.state, Completing) and told.state.instance == instance:
            # Everything had come before the last holder died: the owner makes the whole.
            told = await self.owners.call(connection, "release", instance=instance, segments=[])
        reply = told.reply if isinstance(told.reply, Nak) else Nak(Reason.LOCKED)
        return RefusedError(reply, told.state)

    async def _ask_to_let_go(self, connection: str, holder: str, instance: int) -> None:
        """Let the holder save what came; one that does not answer in time is fenced."""
        url = self.desk.workers().get(holder)
        if url is None or holder == self.desk.name:
            return
        target = f"{url}/files/{quote(connection, safe='')}/release?instance={instance}"
        try:
            async with asyncio.timeout(LET_GO_S), self._peers().post(target) as reply:
                await reply.read()
        except (aiohttp.ClientError, TimeoutError, OSError):
            return

    # -- letting go -----------------------------------------------------------------------------------------------

    async def let_go(self, connection: str, instance: int | None = None) -> bool:
        """Save what came and release the lock; False: it is not held here."""
        found = False
        while (hold := self._held.get(connection)) is not None and instance in (None, hold.instance):
            found = True
            if hold.busy:
                await hold.stop()
            else:
                await self.release(hold)
        return found

    async def release(self, hold: Hold, *, save: bool = True) -> Answer | None:
        """Give the lock back with all that is durable; None: the owner does not answer, the lease will end."""
        if self._held.get(hold.connection) is hold:
            del self._held[hold.connection]
        try:
            if save:
                try:
                    hold.own = await self.threaded(hold.writer.sync, final=True)
                except StorageError:
                    save = False
            told = {"instance": hold.instance, "segments": pairs_of(hold.own), "clean": save}
            return await self.owners.call(hold.connection, "release", **told)
        except HoldfastError:
            return None
        finally:
            await self.threaded(hold.writer.close)

    async def drop(self, hold: Hold) -> None:
        """Forget a lock that is ours no more."""
        if self._held.get(hold.connection) is hold:
            del self._held[hold.connection]
        await self.threaded(hold.writer.close)

    async def let_all_go(self) -> int:
        """Release every lock."""
        answers = await asyncio.gather(*(self.let_go(connection) for connection in list(self._held)))
        return sum(answers)

    async def sweep(self) -> None:
        """Release locks under which nothing has come for a while; runs until it is cancelled."""
        while True:
            await asyncio.sleep(KEEP_S / 2)
            before = time.monotonic() - KEEP_S
            old = [hold for hold in self._held.values() if not hold.busy and hold.used < before]
            await asyncio.gather(*(self._sweep_one(hold.connection, before) for hold in old))

    async def _sweep_one(self, connection: str, before: float) -> None:
        async with self._doors.setdefault(connection, asyncio.Lock()):
            hold = self._held.get(connection)
            if hold is not None and not hold.busy and hold.used < before:
                await self.release(hold)


def offset_of(state: State) -> int:
    """How far a push has come."""
    return state.conveyance.offset if isinstance(state, Floating | Conveying | Completing) else 0
