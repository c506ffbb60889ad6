"""Bytes from a request's body into the storage: collected, written in a thread, made durable while more is coming."""

import asyncio
import hashlib
import time
from collections.abc import Coroutine
from contextlib import suppress
from typing import Any, Final, Protocol, TypeVar

from app.errors import HoldfastError, StorageError
from app.protocol.conveyance import Ack, Completing, Conveying, Nak, Reason
from app.storage.conclude import conclude
from app.web.files_hold import Hold, Holds, RefusedError
from tables.transfers import pairs_of

BATCH_BYTES: Final = 1 << 20
BATCH_MIN: Final = 64 << 10
TOTAL_BYTES: Final = 12 << 20
"""What all requests together collect before they write, more or less."""

AHEAD_BYTES: Final = 32 << 20
"""So many bytes that are written and not durable are made so without waiting for the next report: the disk works while
bytes come, and the last request to it is short."""

_LOOK_S: Final = 0.05

SILENCE_S: Final = 30.0
"""A remote that sends nothing for so long is gone."""


_T = TypeVar("_T")


class Body(Protocol):
    """A request's body; aiohttp's stream reader."""

    async def readany(self) -> bytes:
        """What has come; empty at the end."""

    def set_exception(self, exc: BaseException) -> None:
        """Let whoever reads fail."""


class InterruptedTransferError(Exception):
    """The connection goes to another worker, or is cancelled."""


class WrongChecksumError(Exception):
    """The bytes of a request are not those that its checksum says; none of them counts."""


class TooMuchError(Exception):
    """More bytes than the message has."""


class Reception:
    """The bytes of one request. Whatever happens, what came is saved, the lock is kept or given back.

    Args:
        holds: the locks of this worker.
        hold: the one of this connection, claimed; it is freed at the end.
        interval: seconds between two words about progress.
        checksum: algorithm and digest of these bytes, or None.
        size: of the message, if this request tells it.
    """

    def __init__(
        self,
        holds: Holds,
        hold: Hold,
        interval: float,
        *,
        checksum: tuple[str, bytes] | None = None,
        size: int | None = None,
    ) -> None:
        self._holds = holds
        self._hold = hold
        self._interval = interval
        self._digest = hashlib.new(checksum[0], usedforsecurity=False) if checksum is not None else None
        self._wanted = checksum[1] if checksum is not None else b""
        self._size = size
        self._told = self._limit()
        self._heard = time.monotonic()
        self._chunks: list[bytes] = []
        self._collected = 0
        self._writing: asyncio.Future[None] | None = None
        self._failure: StorageError | None = None

    def _limit(self) -> int | None:
        """Where the message ends, as far as that is known."""
        state = self._hold.state
        known = state.conveyance.message.size if isinstance(state, Conveying) else None
        return known if known is not None else self._size

    async def run(self, body: Body) -> int:
        """Take all of a body; return the offset that is durable and in the row.

        Raises:
            InterruptedTransferError: the lock had to be given back before the end; so did the rest.
            RefusedError: the lock was lost.
            StorageError, WrongChecksumError, TooMuchError: see there.
            ConnectionError, CancelledError and what else the body raises: the remote is gone.
        """
        hold = self._hold
        hold.watch(lambda: body.set_exception(InterruptedTransferError()))
        self._holds.live += 1
        keeping = asyncio.ensure_future(self._keep(body))
        try:
            if self._digest is not None:
                await self._holds.threaded(hold.writer.apart)
            await self._take(body)
            await self._end(keeping)
            return await self._finish()
        except WrongChecksumError:
            await self._end(keeping)
            raise
        except BaseException as error:
            await self._end(keeping)
            if not isinstance(error, RefusedError):
                await self._give_back(error)
            else:
                await self._holds.drop(hold)
            raise
        finally:
            self._holds.live -= 1
            hold.free()

    async def _take(self, body: Body) -> None:
        """Collect, and write what was collected in a thread while more is coming."""
        batch = max(BATCH_MIN, min(BATCH_BYTES, TOTAL_BYTES // max(1, self._holds.live)))
        at = self._hold.offset
        try:
            while data := await body.readany():
                self._heard = time.monotonic()
                at += len(data)
                self._check(at)
                self._chunks.append(data)
                self._collected += len(data)
                if self._collected >= batch:
                    await self._written()
                    self._start_writing()
        finally:
            # What came counts, also if no more comes.
            await self._flush()

    def _check(self, at: int) -> None:
        if self._told is not None and at > self._told:
            raise TooMuchError

    def _start_writing(self) -> None:
        """Hand over what was collected; one write at a time, in their order, none behind one that failed."""
        if self._chunks and self._failure is None:
            chunks, self._chunks, self._collected = self._chunks, [], 0
            self._writing = asyncio.ensure_future(self._holds.threaded(self._write, chunks))

    async def _written(self) -> None:
        """Wait for the write that is under way. Whoever waits may be cancelled; the write is not."""
        while self._writing is not None:
            writing = self._writing
            try:
                await asyncio.shield(writing)
            except StorageError as error:
                self._failure = error
            if self._writing is writing:
                self._writing = None
        if self._failure is not None:
            raise self._failure

    async def _flush(self) -> None:
        await self._written()
        self._start_writing()
        await self._written()

    def _write(self, chunks: list[bytes]) -> None:
        if self._digest is not None:
            for chunk in chunks:
                self._digest.update(chunk)
        self._hold.writer.write(chunks)

    # -- what the owner is told -----------------------------------------------------------------------------------

    async def _keep(self, body: Body) -> None:
        """While bytes flow: make durable what came and say so, which renews the lease as well."""
        while True:
            try:
                await self._wait()
                await self._meanwhile(self._flush())
                if self._digest is None:
                    syncing = self._holds.threaded(self._hold.writer.sync, final=False)
                    self._hold.own = await self._meanwhile(syncing)
                await self._tell()
            except (RefusedError, StorageError) as error:
                body.set_exception(error)
                return
            except HoldfastError:
                continue  # the next one may succeed; the lease says how long there is time for it
            if time.monotonic() - self._heard > SILENCE_S:
                body.set_exception(ConnectionResetError("nothing has come for too long"))

    async def _meanwhile(self, work: Coroutine[Any, Any, _T]) -> _T:
        """Wait for the storage, and keep the lock while it takes longer than a lease; a lost one is told in the end."""
        task = asyncio.ensure_future(work)
        lost: RefusedError | None = None
        try:
            while not (await asyncio.wait({task}, timeout=self._interval))[0]:
                try:
                    if lost is None:
                        await self._tell()
                except RefusedError as error:
                    # A thread may be writing: the file is not closed before it is done.
                    lost = error
                except HoldfastError:
                    continue
        finally:
            task.cancel()
        if lost is not None:
            raise lost
        return task.result()

    async def _wait(self) -> None:
        """Wait for the time of the next report; meanwhile let the disk begin with what is written."""
        due = time.monotonic() + self._interval
        synced = self._hold.writer.length
        while (left := due - time.monotonic()) > 0:
            await asyncio.sleep(min(left, _LOOK_S))
            if self._digest is None and self._hold.writer.length - synced > AHEAD_BYTES:
                synced = self._hold.writer.length
                self._hold.own = await self._holds.threaded(self._hold.writer.sync, final=False)

    async def _tell(self) -> None:
        hold = self._hold
        answer = await self._holds.owners.call(
            hold.connection, "progress", instance=hold.instance, segments=pairs_of(hold.own), size=self._size
        )
        if isinstance(answer.reply, Nak):
            raise RefusedError(answer.reply, answer.state)
        hold.state = answer.state

    async def _end(self, keeping: "asyncio.Future[None]") -> None:
        keeping.cancel()
        with suppress(asyncio.CancelledError):
            await keeping

    async def _finish(self) -> int:
        """All bytes of the request are here: make them durable, then say so, then make the whole if it is whole."""
        hold = self._hold
        if self._digest is not None and self._digest.digest() != self._wanted:
            await self._holds.threaded(hold.writer.take_back)
            raise WrongChecksumError
        hold.own = await self._meanwhile(self._holds.threaded(hold.writer.sync, final=True))
        await self._tell()
        state = hold.state
        if isinstance(state, Completing):
            await complete(self._holds, hold, state, self._interval)
        return hold.offset

    async def _give_back(self, error: BaseException) -> None:
        hold = self._hold
        if self._digest is not None:
            with suppress(StorageError):
                await self._holds.threaded(hold.writer.take_back)
        await self._holds.release(hold, save=self._digest is None and not isinstance(error, StorageError))


async def complete(holds: Holds, hold: Hold, state: Completing, interval: float) -> None:
    """Make the whole of a complete conveyance, renewing the lease meanwhile.

    Raises:
        RefusedError: it is not what the remote said it would be, or somebody else makes it.
    """

    async def renew() -> None:
        while True:
            await asyncio.sleep(interval)
            with suppress(HoldfastError):
                await holds.owners.call(hold.connection, "progress", instance=hold.instance, segments=[])

    renewing = asyncio.ensure_future(renew())
    try:
        await holds.threaded(hold.writer.close)
        done = await holds.threaded(conclude, holds.storage, hold.connection, state)
    except StorageError:
        # The bytes are safe; the owner has the whole made later.
        await holds.release(hold, save=False)
        return
    finally:
        renewing.cancel()
    fields: dict[str, Any] = {"instance": hold.instance}
    if done.spoiled is not None:
        answer = await holds.owners.call(hold.connection, "spoiled", reason=done.spoiled.value, **fields)
    else:
        content = None if done.content is None else done.content.decode("latin-1")
        answer = await holds.owners.call(hold.connection, "composed", checksum=done.checksum, content=content, **fields)
    await holds.drop(hold)
    if not isinstance(answer.reply, Ack):
        nak = answer.reply if isinstance(answer.reply, Nak) else Nak(Reason.FENCED)
        raise RefusedError(nak, answer.state)
