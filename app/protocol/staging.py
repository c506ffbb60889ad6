"""The target's part of a migration: rows that come by ``handoffs`` are staged, and live only at Commit (rule L4).

    (none) ──first chunk──▶ Staging ──all sources complete and verified──▶ Staged ──Committed──▶ (none), live
                               │                                             │
                               └─────────Aborted, or a later epoch───────────┴──▶ (none), the rows go

Staged rows lie under the tenant's epoch-to-be, beside those that are live, so that Commit flips one number. The first
chunk creates the row that names the epoch in the unit that stages its rows: whatever is here is written down for
cleaning up. What comes for an epoch that is dead or past is dropped. The count and the checksum are kept over the rows
as they are put, old ones taken away, and compared with what the source had at the cut.
"""

from dataclasses import dataclass, replace
from typing import TypeAlias

from app.errors import LocalProtocolError
from app.protocol.chunks import EMPTY, Chunk, Digest
from app.protocol.control import Abort, Commit, Complete, Control, Installed, Placed, Received, Refused
from app.protocol.shipping import Sweep


@dataclass(frozen=True, slots=True)
class Part:
    """What came from one source: its last chunk, the digest of its rows here, and bytes. ``complete``: verified."""

    source: int
    chunk: int = 0
    digest: Digest = EMPTY
    bytes: int = 0
    complete: bool = False


@dataclass(frozen=True, slots=True)
class Staging:
    """Rows of ``epoch`` are coming. ``refused``: something is wrong with them, and the router was told."""

    epoch: int
    router: int
    parts: tuple[Part, ...] = ()
    refused: bool = False


@dataclass(frozen=True, slots=True)
class Staged:
    """All rows are here and verified, and the router knows."""

    epoch: int
    router: int
    parts: tuple[Part, ...]


State: TypeAlias = Staging | Staged


@dataclass(frozen=True, slots=True)
class Taken:
    """A chunk was put into the staged rows: what :func:`app.protocol.chunks.replaced` says, and its bytes."""

    chunk: Chunk
    rows: int
    total: int
    bytes: int


Event: TypeAlias = Taken | Complete | Commit | Abort | Placed


@dataclass(frozen=True, slots=True)
class Answer:
    """Send this record to the router of the migration."""

    router: int
    record: Control


@dataclass(frozen=True, slots=True)
class Acknowledge:
    """Send this record to the source, by ``handoffs``."""

    source: int
    record: Received


@dataclass(frozen=True, slots=True)
class GoLive:
    """Serve the tenant from its rows under ``epoch``: what waited is taken up, timers are set."""

    epoch: int


Effect: TypeAlias = Answer | Acknowledge | GoLive | Sweep


@dataclass(frozen=True, slots=True)
class Step:
    """The new state, None when nothing is staged, and what the shell does for it."""

    state: State | None
    effects: tuple[Effect, ...] = ()


def wanted(state: State | None, epoch: int, source: int, number: int, past: int) -> bool:
    """Is this chunk to be staged? ``past`` is the highest epoch that is dead or live here.

    A chunk that came before is passed over; so is one for an epoch below that of another that has begun.
    """
    if epoch <= past or (state is not None and epoch < state.epoch):
        return False
    if state is None or epoch > state.epoch:
        return True
    return isinstance(state, Staging) and not state.refused and number > _part(state.parts, source).chunk


def step(state: State | None, event: Event, *, tenant: str, server: int, past: int) -> Step:
    """Decide what follows at target ``server``. ``past`` as for :func:`wanted`.

    Raises:
        LocalProtocolError: a router commits what is not staged here.
    """
    match event:
        case Taken(chunk):
            if not wanted(state, chunk.epoch, chunk.source, chunk.number, past):
                return Step(state)
            return _taken(_begin(state, chunk.epoch, chunk.router), event, tenant, server)
        case Complete(_, epoch, _, router):
            if epoch <= past or (state is not None and epoch < state.epoch) or isinstance(state, Staged):
                return Step(state)
            return _complete(_begin(state, epoch, router), event, server)
        case Commit(_, epoch, _):
            return _commit(state, epoch, tenant, server, past)
        case Abort(_, epoch) | Placed(_, epoch, _):
            if state is None or state.epoch > epoch:
                return Step(state)
            return Step(None, (Sweep(state.epoch),))


def _begin(state: State | None, epoch: int, router: int) -> Step:
    """What is staged for an earlier epoch is dead, even if the word of it is still on its way."""
    if state is None:
        return Step(Staging(epoch, router))
    if state.epoch == epoch:
        return Step(state)
    return Step(Staging(epoch, router), (Sweep(state.epoch),))


def _taken(begun: Step, event: Taken, tenant: str, server: int) -> Step:
    staging, chunk = begun.state, event.chunk
    assert isinstance(staging, Staging)
    part = _part(staging.parts, chunk.source)
    if chunk.number != part.chunk + 1:
        missing = f"chunk {part.chunk + 1} of server {chunk.source} is missing"
        return _refuse(staging, begun.effects, tenant, server, missing)
    part = replace(
        part, chunk=chunk.number, digest=part.digest.add(event.rows, event.total), bytes=part.bytes + event.bytes
    )
    answer = Acknowledge(chunk.source, Received(tenant, chunk.epoch, server, part.bytes))
    return Step(replace(staging, parts=_with(staging.parts, part)), (*begun.effects, answer))


def _complete(begun: Step, said: Complete, server: int) -> Step:
    staging = begun.state
    assert isinstance(staging, Staging)
    if staging.refused:
        return begun
    part = _part(staging.parts, said.source)
    if (said.chunks, said.rows, said.checksum) != (part.chunk, part.digest.rows, part.digest.text):
        wrong = (
            f"server {said.source} sent {said.rows} rows in {said.chunks} chunks with checksum {said.checksum}, "
            f"{part.digest.rows} rows in {part.chunk} chunks with checksum {part.digest.text} have arrived"
        )
        return _refuse(staging, begun.effects, said.tenant, server, wrong)
    parts = _with(staging.parts, replace(part, complete=True))
    if not {part.source for part in parts if part.complete} >= set(said.sources):
        return Step(replace(staging, parts=parts), begun.effects)
    installed = Installed(
        said.tenant,
        said.epoch,
        server,
        sum(part.digest.rows for part in parts),
        sum(part.bytes for part in parts),
        tuple((part.source, part.digest.rows, part.digest.text) for part in parts),
    )
    return Step(Staged(staging.epoch, staging.router, parts), (*begun.effects, Answer(staging.router, installed)))


def _commit(state: State | None, epoch: int, tenant: str, server: int, past: int) -> Step:
    if epoch <= past:
        return Step(state)
    if isinstance(state, Staged) and state.epoch == epoch:
        return Step(None, (GoLive(epoch),))
    raise LocalProtocolError(f"{tenant}: epoch {epoch} was committed, server {server} has not installed it")


def _refuse(staging: Staging, before: tuple[Effect, ...], tenant: str, server: int, reason: str) -> Step:
    refused = Refused(tenant, staging.epoch, server, reason)
    return Step(replace(staging, refused=True), (*before, Answer(staging.router, refused)))


def _part(parts: tuple[Part, ...], source: int) -> Part:
    return next((part for part in parts if part.source == source), Part(source))


def _with(parts: tuple[Part, ...], new: Part) -> tuple[Part, ...]:
    return tuple(sorted((*(part for part in parts if part.source != new.source), new), key=lambda part: part.source))
