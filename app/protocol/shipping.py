"""The source's part of a migration: copy a tenant's rows while it is served, then ship the rest at the cut.

    (none) ──Prepared──▶ Copying ──CutReached──▶ Frozen ──Committed──▶ (none), the old rows go
                            │                       │
                            └───────Aborted─────────┴──▶ (none), the tenant is served as before

*Copying* scans the tenant's sessions once, by name. One that changes behind the scan is *marked*: its mark is a row, so
that nothing is forgotten when the host dies, and it holds the hash of the version that was shipped, so that shipping
the new one keeps the checksum right (L10). Marked sessions are shipped after the scan, in rounds; when few are left, or
no fewer than the round before, the source is ready. *Frozen* performs nothing of the tenant: what is still marked goes,
then the waiting tasks, then Complete with count and checksum.

Chunks go between batches, and no more than a window of bytes is in flight until the target says that it has taken
them (L9). Nothing here holds rows: :func:`ahead` names the next page, the caller ships it and tells what it had.
"""

from dataclasses import dataclass, replace
from typing import TypeAlias, assert_never

from app.errors import LocalProtocolError
from app.protocol.chunks import EMPTY, SESSION, Digest, fingerprint
from app.protocol.control import Abort, Commit, Complete, Control, Cut, Prepare, Progress, Ready, Received, Refused

WINDOW = 4 * 2**20
"""Bytes of one migration that may be in flight."""

WINDOW_SERVED = 256 * 1024
"""The same while the tenant is served, which is in no hurry: what a busy target finds at once delays its own tasks."""

FEW = 200
"""So few marked sessions are left for the cut, where the tenant stands still while they are shipped."""


@dataclass(frozen=True, slots=True)
class Shipment:
    """What has left so far.

    ``live`` is the epoch under which the rows lie here, ``epoch`` the one under which the target stages them.
    ``cursor`` is the name of the last row of the running scan: of sessions until ``scanned``, then of waiting tasks.
    ``sent`` and ``taken`` count bytes. ``begun`` is the number of marks that the last round began with, ``left`` how
    many of those are still to go. ``reported`` is what the router was last told.
    """

    epoch: int
    live: int
    router: int
    sources: tuple[int, ...]
    target: int
    digest: Digest = EMPTY
    cursor: str = ""
    scanned: bool = False
    chunks: int = 0
    sent: int = 0
    taken: int = 0
    begun: int = -1
    left: int = 0
    reported: int = 0


@dataclass(frozen=True, slots=True)
class Copying:
    """The tenant is served, its rows are copied; ``ready``: the router was told that the cut may come."""

    shipment: Shipment
    ready: bool = False


@dataclass(frozen=True, slots=True)
class Frozen:
    """The cut was reached: nothing of the tenant is performed here. ``complete``: everything was sent."""

    shipment: Shipment
    waiting: bool = False
    complete: bool = False


Shipping: TypeAlias = Copying | Frozen


@dataclass(frozen=True, slots=True)
class Shipped:
    """A page was shipped.

    ``rows`` and ``total`` are what :func:`app.protocol.chunks.replaced` or :func:`remarked` says, over the page.
    ``bytes`` is the size of its chunk, 0 where the page was empty and no chunk was sent. A page of a scan reached
    ``cursor``, and ``end`` if there is nothing behind it. A page of marked sessions took ``unmarked`` of ``marked``.
    """

    rows: int
    total: int
    bytes: int
    cursor: str = ""
    end: bool = False
    marked: int = 0
    unmarked: int = 0


@dataclass(frozen=True, slots=True)
class Concluded:
    """The answer to :class:`Conclude`: the caller had nothing else to do first."""


@dataclass(frozen=True, slots=True)
class Failed:
    """A mover has raised: the migration cannot go on."""

    reason: str


@dataclass(frozen=True, slots=True)
class Tick:
    """A second has passed; ``busy``: the worker moves on with what comes first, other copies or a long stream."""

    busy: bool = False


Event: TypeAlias = Prepare | Cut | Commit | Abort | Received | Shipped | Concluded | Failed | Tick


@dataclass(frozen=True, slots=True)
class Tell:
    """Send this record to the router of the migration."""

    record: Control


@dataclass(frozen=True, slots=True)
class Finish:
    """Send Complete to the target."""

    record: Complete


@dataclass(frozen=True, slots=True)
class Freeze:
    """Perform nothing more of the tenant: write its sessions' rows, drop what runs, forget its timers."""


@dataclass(frozen=True, slots=True)
class Thaw:
    """Serve the tenant again, from its rows under ``epoch``: what waited is taken up, timers are set."""

    epoch: int


@dataclass(frozen=True, slots=True)
class Sweep:
    """Delete the tenant's sessions and waiting tasks of ``epoch`` in the background; nothing reads them any more."""

    epoch: int


@dataclass(frozen=True, slots=True)
class Unmark:
    """Delete the marks of ``epoch`` in the background."""

    epoch: int


Effect: TypeAlias = Tell | Finish | Freeze | Thaw | Sweep | Unmark


@dataclass(frozen=True, slots=True)
class Step:
    """The new state, None when nothing is left of the migration here, and what the shell does for it."""

    state: Shipping | None
    effects: tuple[Effect, ...] = ()


# -- what is to be shipped next ---------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class ShipSessions:
    """The next page of sessions behind ``after``, less those that are marked."""

    after: str


@dataclass(frozen=True, slots=True)
class ShipMarked:
    """A page of marked sessions, in any order; their marks go."""


@dataclass(frozen=True, slots=True)
class ShipWaiting:
    """The next page of waiting tasks behind ``after``."""

    after: str


@dataclass(frozen=True, slots=True)
class Conclude:
    """Nothing is left to ship: feed :class:`Concluded`, while copying only once the stream is nearly read.

    The tenant stands still from the router's cut until this server has read its stream up to there.
    """


Task: TypeAlias = ShipSessions | ShipMarked | ShipWaiting | Conclude


def ahead(state: Shipping, marked: int) -> Task | None:
    """What the source does next, given how many sessions are marked; None: wait for a record."""
    shipment = state.shipment
    if shipment.sent - shipment.taken >= (WINDOW if isinstance(state, Frozen) else WINDOW_SERVED):
        return None
    if not shipment.scanned:
        return ShipSessions(shipment.cursor)
    match state:
        case Copying(_, ready):
            if shipment.left or (marked > FEW and (ready or _shrinking(shipment, marked))):
                return ShipMarked()
            return None if ready or shipment.sent > shipment.taken else Conclude()
        case Frozen(_, waiting, complete):
            if complete:
                return None
            if marked:
                return ShipMarked()
            return Conclude() if waiting else ShipWaiting(shipment.cursor)
        case _:
            assert_never(state)


def _shrinking(shipment: Shipment, marked: int) -> bool:
    """Does another round pay: are there at most three quarters of what the last one began with?"""
    return shipment.begun < 0 or 4 * marked <= 3 * shipment.begun


def mark(state: Shipping, session: str, before: bytes | None) -> str | None:
    """The mark of a session that changes and is not marked yet: the hash of the version that was shipped, or nothing.

    ``before`` is its row before the change, None if there was none. One that the scan has still to come to needs no
    mark, and the answer is None: it is shipped as it is then. A session that is new does: the scan may not find it.
    """
    shipment = state.shipment
    if before is None:
        return ""
    if not shipment.scanned and session > shipment.cursor:
        return None
    return f"{fingerprint(SESSION, session, before):032x}"


def remarked(session: str, found: str, now: bytes | None) -> tuple[int, int]:
    """What a marked session adds to the digest when it is shipped as ``now`` (None: it is gone)."""
    rows, total = (-1, -int(found, 16)) if found else (0, 0)
    return (rows, total) if now is None else (rows + 1, total + fingerprint(SESSION, session, now))


# -- steps ------------------------------------------------------------------------------------------------------------


def step(state: Shipping | None, event: Event, *, tenant: str, server: int) -> Step:
    """Decide what follows at source ``server``. A record of an epoch that is over changes nothing.

    Raises:
        LocalProtocolError: the router broke the order of its own records.
    """
    match state:
        case None:
            if isinstance(event, Prepare):
                shipment = Shipment(event.epoch, event.live, event.router, event.sources, event.target)
                return Step(Copying(shipment))
            return Step(None)
        case Copying():
            return _copying(state, event, tenant, server)
        case Frozen():
            return _frozen(state, event, tenant, server)
        case _:
            assert_never(state)


def _copying(state: Copying, event: Event, tenant: str, server: int) -> Step:
    shipment = state.shipment
    match event:
        case Cut(_, epoch) if epoch == shipment.epoch:
            return Step(Frozen(shipment), (Freeze(),))
        case Commit(_, epoch, _) if epoch == shipment.epoch:
            raise LocalProtocolError(f"{tenant}: epoch {epoch} was committed before its cut")
        case Abort(_, epoch) if epoch == shipment.epoch:
            return Step(None, (Unmark(epoch),))
        case Concluded():
            return Step(replace(state, ready=True), (Tell(Ready(tenant, shipment.epoch, server)),))
        case Shipped():
            return Step(replace(state, shipment=_after(shipment, event)))
        case _:
            return _either(state, event, tenant, server)


def _frozen(state: Frozen, event: Event, tenant: str, server: int) -> Step:
    shipment = state.shipment
    match event:
        case Cut():
            return Step(state)
        case Commit(_, epoch, _) if epoch == shipment.epoch:
            return Step(None, (Sweep(shipment.live),))
        case Abort(_, epoch) if epoch == shipment.epoch:
            return Step(None, (Unmark(epoch), Thaw(shipment.live)))
        case Concluded():
            done = Complete(
                tenant,
                shipment.epoch,
                server,
                shipment.router,
                shipment.sources,
                shipment.chunks,
                shipment.digest.rows,
                shipment.digest.text,
            )
            return Step(replace(state, complete=True), (Finish(done),))
        case Shipped():
            return Step(replace(state, shipment=_after(shipment, event), waiting=shipment.scanned and event.end))
        case _:
            return _either(state, event, tenant, server)


def _either(state: Shipping, event: Event, tenant: str, server: int) -> Step:
    """What Copying and Frozen answer alike."""
    shipment = state.shipment
    match event:
        case Received(_, epoch, _, taken) if epoch == shipment.epoch and taken > shipment.taken:
            return Step(replace(state, shipment=replace(shipment, taken=taken)))
        case Failed(reason):
            return Step(state, (Tell(Refused(tenant, shipment.epoch, server, reason)),))
        case Tick(busy):
            if not busy and shipment.sent == shipment.reported:
                return Step(state)
            told = Progress(tenant, shipment.epoch, server, shipment.digest.rows, shipment.sent)
            return Step(replace(state, shipment=replace(shipment, reported=shipment.sent)), (Tell(told),))
        case Prepare(_, epoch) if epoch > shipment.epoch:
            raise LocalProtocolError(f"{tenant}: epoch {epoch} begins while {shipment.epoch} goes on")
        case _:
            return Step(state)


def _after(shipment: Shipment, page: Shipped) -> Shipment:
    """The shipment with one page more. The end of the first scan begins the rounds of marked sessions."""
    ended = page.end and not shipment.scanned
    fresh = page.unmarked > 0 and shipment.left == 0
    return replace(
        shipment,
        digest=shipment.digest.add(page.rows, page.total),
        cursor="" if ended else page.cursor or shipment.cursor,
        scanned=shipment.scanned or page.end,
        chunks=shipment.chunks + (page.bytes > 0),
        sent=shipment.sent + page.bytes,
        begun=page.marked if fresh else shipment.begun,
        left=max(0, (page.marked if fresh else shipment.left) - page.unmarked),
    )
