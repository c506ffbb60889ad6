"""The server's part of a view, for one router: where in its stream the old affinity ends and the new one begins.

A server knows of views only what it reads in its own stream (rule L2): for each router, the last Marker. What stands
before it was sent under the view before, what follows under the new one. So there is one state for each router, and
nothing here compares it with those of the others, but for the reports on all of them at the end.

    Aligned ──Marker, sessions leave──▶ Sending ──every row sent──▶ Aligned
       │ ├────Marker, sessions come───▶ Receiving ──all complete, nothing held──▶ Aligned
       │ └────Marker, neither─────────▶ Aligned
       └──a hand-off──▶ Early ──Marker──▶ Receiving

*Sending*: a failed server, or any that is up when servers return. At the marker the sessions that leave are frozen;
their rows are sent in pages and deleted in the unit that sends them, then what waits, then HandedOff to every target.
*Receiving*: tasks of sessions that come from a source are held (:mod:`app.protocol.holding`) until all of this source
has arrived and is counted; all other sessions go on without a stop. Rows are put where they belong as they arrive, but
:mod:`app.protocol.affinity` says that they are not the server's before its own Marker and their HandedOff (rule L4):
what came *Early* is staged.

Nothing of a view can be taken back, so that rows need no second place to be staged in. A hand-off that does not add up
stays closed, is announced, and is never served. The next view is not published before every server has closed this one
(rule L3); whatever breaks that order is an error. Source: US 7,793,140; US 2009/0100289; design 3.3.
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import TypeAlias, assert_never

from app.errors import LocalProtocolError
from app.protocol.affinity import Aligned, Change, Early, Line, Moved, Part, Receiving, Sending, State, part_of
from app.protocol.chunks import HandOff
from app.protocol.markers import HandedOff, Marker
from app.protocol.moves import Announce

# -- events -----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Taken:
    """A wanted hand-off was put into the rows: what :func:`app.protocol.chunks.replaced` says, over its items."""

    part: HandOff
    rows: int
    total: int


@dataclass(frozen=True, slots=True)
class Sent:
    """Rows of a page that left for one target, in one chunk."""

    target: int
    rows: int
    total: int


@dataclass(frozen=True, slots=True)
class Shipped:
    """A page was looked at, up to the row ``cursor``; ``end``: there is none behind it."""

    sent: tuple[Sent, ...]
    cursor: str
    end: bool


@dataclass(frozen=True, slots=True)
class Concluded:
    """The answer to :class:`Conclude`."""


Event: TypeAlias = Marker | Taken | HandedOff | Shipped | Concluded

# -- effects ----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Freeze:
    """Perform nothing more of the router's sessions that leave: write their rows, drop what runs, forget timers."""


@dataclass(frozen=True, slots=True)
class Hand:
    """Send this record to the target, by ``handoffs``."""

    target: int
    record: HandedOff


@dataclass(frozen=True, slots=True)
class GoLive:
    """The router's sessions that come from ``source`` are the server's: take up what waits, set timers."""

    source: int


Effect: TypeAlias = Freeze | Hand | GoLive | Announce


@dataclass(frozen=True, slots=True)
class Step:
    """The new state, and what the shell does for it, in this order."""

    state: State
    effects: tuple[Effect, ...] = ()


# -- what is to be done next ------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class ShipSessions:
    """Send and delete the next page of sessions behind ``after``: those of the router that do not live here."""

    after: str


@dataclass(frozen=True, slots=True)
class ShipWaiting:
    """The same with waiting tasks."""

    after: str


@dataclass(frozen=True, slots=True)
class Resume:
    """Perform some of the tasks that are held for sessions from ``source``, in order, before more of the stream."""

    source: int


@dataclass(frozen=True, slots=True)
class Conclude:
    """Nothing is left to do: feed :class:`Concluded`."""


Task: TypeAlias = ShipSessions | ShipWaiting | Resume | Conclude


def ahead(state: State, held: Mapping[int, int]) -> Task | None:
    """What the server does next for the router; ``held`` counts held tasks by source. None: wait for a record."""
    match state:
        case Aligned() | Early():
            return None
        case Sending(_, _, waiting, cursor, sent):
            if sent:
                return Conclude()
            return ShipWaiting(cursor) if waiting else ShipSessions(cursor)
        case Receiving(_, parts):
            live = next((part for part in parts if part.complete and held.get(part.source)), None)
            if live is not None:
                return Resume(live.source)
            return Conclude() if all(part.complete for part in parts) else None
        case _:
            assert_never(state)


def wanted(state: State, part: HandOff) -> bool:
    """Is this hand-off to be put into the rows, and :class:`Taken` to be fed? What came before is passed over.

    Raises:
        LocalProtocolError: it belongs to a view that nobody may have published yet.
    """
    if not _current(state, part.view):
        return False
    known = part_of(_parts(state), part.source)
    return not (known.complete or known.wrong) and part.number > known.chunk


# -- steps ------------------------------------------------------------------------------------------------------------


def step(state: State, event: Event, *, router: int, server: int) -> Step:
    """Decide what follows for the sessions of ``router`` at ``server``. What comes twice changes nothing.

    Raises:
        LocalProtocolError: somebody broke the order of views.
    """
    match event:
        case Marker():
            return _marker(state, event, server)
        case Taken(part):
            return _taken(state, event, server) if wanted(state, part) else Step(state)
        case HandedOff():
            return _handed_off(state, event, server) if _current(state, event.view) else Step(state)
        case Shipped():
            return Step(_shipped(state, event)) if isinstance(state, Sending) else Step(state)
        case Concluded():
            return _concluded(state, router, server)
        case _:
            assert_never(event)


def _marker(state: State, marker: Marker, server: int) -> Step:
    known = state.change
    if marker.epoch <= known.epoch:
        return Step(state)
    if marker.epoch > known.epoch + 1 or not isinstance(state, Aligned | Early):
        raise _disorder(server, marker.epoch, state)
    failed, restored = frozenset(marker.failed), frozenset(marker.restored)
    change = Change(marker.epoch, known.after, known.after - failed | restored, marker.managers)
    if (change.failed, change.restored) != (failed, restored) or change.after & {*marker.down}:
        raise LocalProtocolError(f"server {server}: {marker} does not follow the view with {sorted(known.after)} up")
    early = _parts(state)
    if server in change.targets:
        parts = tuple(part_of(early, source) for source in sorted(change.sources))
        if len(early) > sum(part.source in change.sources for part in early):
            raise LocalProtocolError(f"server {server}: hand-offs of view {change.epoch} came from no source of it")
        return Step(Receiving(change, parts), tuple(GoLive(part.source) for part in parts if part.complete))
    if early:
        raise LocalProtocolError(f"server {server}: hand-offs of view {change.epoch} came to no target of it")
    if server in change.sources:
        return Step(Sending(change), (Freeze(),))
    return Step(Aligned(change))


def _taken(state: State, event: Taken, server: int) -> Step:
    part = event.part
    known = part_of(_parts(state), part.source)
    if part.number != known.chunk + 1:
        return _wrong(state, known, part.view, server, f"chunk {known.chunk + 1} is missing")
    return Step(_with(state, replace(known, chunk=part.number, digest=known.digest.add(event.rows, event.total))))


def _handed_off(state: State, said: HandedOff, server: int) -> Step:
    part = part_of(_parts(state), said.source)
    if part.complete or part.wrong:
        return Step(state)
    if (said.chunks, said.rows, said.checksum) != (part.chunk, part.digest.rows, part.digest.text):
        wrong = (
            f"{said.rows} rows in {said.chunks} chunks with checksum {said.checksum} have left, "
            f"{part.digest.rows} rows in {part.chunk} chunks with checksum {part.digest.text} have arrived"
        )
        return _wrong(state, part, said.view, server, wrong)
    now = _with(state, replace(part, complete=True))
    return Step(now, (GoLive(part.source),) if isinstance(now, Receiving) else ())


def _wrong(state: State, part: Part, view: int, server: int, reason: str) -> Step:
    """What has arrived is not what has left. It is never served: the view stays open, and somebody has to look."""
    fields = {"view": view, "server": server, "source": part.source, "reason": reason}
    return Step(_with(state, replace(part, wrong=True)), (Announce("hand-off-wrong", None, False, fields),))


def _shipped(state: Sending, page: Shipped) -> Sending:
    lines = {line.target: line for line in state.lines}
    for sent in page.sent:
        line = lines.get(sent.target, Line(sent.target))
        lines[sent.target] = Line(sent.target, line.chunks + 1, line.digest.add(sent.rows, sent.total))
    return Sending(
        change=state.change,
        lines=tuple(lines[target] for target in sorted(lines)),
        waiting=state.waiting or page.end,
        cursor="" if page.end else page.cursor,
        sent=state.waiting and page.end,
    )


def _concluded(state: State, router: int, server: int) -> Step:
    change = state.change
    if isinstance(state, Sending) and state.sent:
        lines = {line.target: line for line in state.lines}
        moved = tuple(Moved(server, line.target, line.digest) for line in state.lines)
        told = tuple(
            Hand(
                target,
                HandedOff(change.epoch, router, server, line.chunks, line.digest.rows, line.digest.text),
            )
            for target in sorted(change.targets)
            for line in (lines.get(target, Line(target)),)
        )
        return Step(Aligned(change, moved), told)
    if isinstance(state, Receiving) and all(part.complete for part in state.parts):
        return Step(Aligned(change, tuple(Moved(p.source, server, p.digest) for p in state.parts if p.chunk)))
    return Step(state)


# -- parts ------------------------------------------------------------------------------------------------------------


def _current(state: State, view: int) -> bool:
    """Does a hand-off of ``view`` mean anything now?"""
    wanted = state.change.epoch + isinstance(state, Aligned | Early)
    if view > wanted or (view == wanted and isinstance(state, Sending)):
        raise LocalProtocolError(f"a hand-off of view {view} came while {state} goes on")
    return view == wanted


def _disorder(server: int, epoch: int, state: State) -> LocalProtocolError:
    return LocalProtocolError(f"server {server}: view {epoch} was published before {state} was closed")


def _parts(state: State) -> tuple[Part, ...]:
    return state.parts if isinstance(state, Early | Receiving) else ()


def _with(state: State, new: Part) -> State:
    parts = tuple(sorted((*(p for p in _parts(state) if p.source != new.source), new), key=lambda part: part.source))
    return replace(state, parts=parts) if isinstance(state, Receiving) else Early(state.change, parts)
