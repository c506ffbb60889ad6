"""Data outside the sessions that moves with a tenant: the shell around the movers of :mod:`app.movers`.

The source exports when everything else has been shipped; a row says how far it has come. The target keeps what arrives
as rows, installs it when the source is complete, and only then looks whether all is there: what a mover does takes
time, and the stream must not wait for it. What runs when a host dies runs again at the next one.
"""

import asyncio
import logging
import time
from collections.abc import Callable, Iterator
from typing import Any

import orjson

from agents.cells import ServerContext
from agents.tenants import Tenants
from app import movers
from app.engine.crashpoints import passing
from app.engine.places import Place
from app.movers import TABLE_OF, Mover, Share
from app.protocol.chunks import Item
from app.protocol.control import KEYS, Complete, Progress, Refused, decode_control
from app.protocol.shipping import Failed
from tables import handoffs

log = logging.getLogger(__name__)

REASON_CHARS = 300
TOLD_S = 1.0
"""How often the router is told that the target has not stopped."""


class Parts:
    """What the movers do for one server."""

    def __init__(self, context: ServerContext, place: Place, tenants: Tenants) -> None:
        self._context = context
        self._server = place.number
        self._tenants = tenants
        self._rows = place.rows[handoffs.NAME]
        self._running: dict[bytes, asyncio.Future[Any]] = {}
        self._failed: set[bytes] = set()

    # -- the source -----------------------------------------------------------------------------------------------

    def export(self, tenant: str, epoch: int, live: int) -> list[Item] | None:
        """The next parts to ship; an empty list: none are left; None: wait, for a mover or for the end of it all."""
        key = handoffs.export_key(tenant, epoch)
        row = self._rows.get(key)
        state: dict[str, str | None] = {} if row is None else orjson.loads(row)
        left = [mover for name, mover in self._context.movers.items() if state.get(name, "") is not None]
        if not left:
            return []
        mover = left[0]
        share = Share(tenant, self._server, live)
        done, page = self._answer(key, lambda: mover.export, share, state.get(mover.name, ""))
        if not done:
            return None
        if isinstance(page, BaseException):
            self._tenants.feed(tenant, Failed(_reason(mover, page)))
            return None
        large = next((name for name, data in page.parts if len(data) > self._context.limit), None)
        if large is not None:
            self._failed.add(key)
            self._tenants.feed(
                tenant, Failed(f"mover {mover.name}: the part {large!r} is larger than MAX_RECORD_BYTES")
            )
            return None
        passing("move-exports")
        self._rows.put(key, orjson.dumps({**state, mover.name: page.cursor or None}))
        if not page.parts:
            self._wake()
            return None
        return [Item(TABLE_OF + mover.name, name, data) for name, data in page.parts]

    def _answer(self, key: bytes, method: Callable[[], Callable[..., Any]], *arguments: Any) -> tuple[bool, Any]:
        """What a method has answered, or raised; (False, None) while it runs. One that has raised is not run again."""
        if key in self._failed:
            return False, None
        running = self._running.get(key)
        if running is None:
            running = self._running[key] = movers.start(self._context.pool, method(), *arguments)
            running.add_done_callback(lambda _: self._wake())
        if not running.done():
            return False, None
        del self._running[key]
        error = running.exception()
        if error is not None:
            self._failed.add(key)
            return True, error
        return True, running.result()

    def _wake(self) -> None:
        self._tenants.stirred()
        self._context.engine.wake()

    # -- the target -----------------------------------------------------------------------------------------------

    def install(self, chore: bytes) -> Iterator[None]:
        """Install what has come with a source that is complete; then look whether all is there."""
        said = decode_control(KEYS[Complete], self._tenants.chore(chore))
        assert isinstance(said, Complete)
        share = Share(said.tenant, self._server, said.epoch)
        prefix = handoffs.parts_of(said.tenant, said.epoch)
        problem: str | None = None
        told = time.monotonic()
        for installed, (key, data) in enumerate(list(self._rows.scan(prefix)), 1):
            name, _, part = key[len(prefix) :].decode().partition("\0")
            mover = self._context.movers.get(name)
            if mover is None:
                problem = f"no mover {name!r} is registered here (HANDLERS)"
                break
            running = movers.start(self._context.pool, mover.install, share, part, data)
            running.add_done_callback(lambda _: self._wake())
            while not running.done():
                yield
            error = running.exception()
            if error is not None:
                problem = _reason(mover, error)
                break
            passing("move-installs")
            if time.monotonic() >= told + TOLD_S:
                told = time.monotonic()
                progress = Progress(said.tenant, said.epoch, self._server, installed, 0)
                self._tenants.write(self._context.names.commands, said.router, progress)
        # The rows are kept until the sum over them has been compared; the sweep of a failure finds them as well.
        if problem is None:
            self._tenants.feed(said.tenant, said)
        else:
            refused = Refused(said.tenant, said.epoch, self._server, problem)
            self._tenants.write(self._context.names.commands, said.router, refused)
        for key, _ in list(self._rows.scan(prefix)):
            self._rows.delete(key)
        self._tenants.done(chore)

    # -- cleaning up ----------------------------------------------------------------------------------------------

    def sweep(self, tenant: str, epoch: int, *, moved: bool) -> Iterator[None]:
        """Remove what movers have of an epoch that is over: at the source, which has ``moved`` it, or at the target."""
        share = Share(tenant, self._server, epoch)
        for mover in self._context.movers.values():
            running = movers.start(self._context.pool, mover.delete if moved else mover.discard, share)
            running.add_done_callback(lambda _: self._wake())
            while not running.done():
                yield
            passing("move-deletes")
            error = running.exception()
            if error is not None:
                log.warning("%s stays behind at server-%d: %s", tenant, self._server, _reason(mover, error))

    def close(self) -> None:
        """What runs is left to itself: it is run again."""
        for running in self._running.values():
            running.cancel()


def _reason(mover: Mover, error: BaseException) -> str:
    text = " ".join(f"mover {mover.name}: {type(error).__name__}: {error}".split())
    return text[:REASON_CHARS].encode(errors="replace").decode()
