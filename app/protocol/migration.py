"""The router's part of a migration: the gate of one tenant, and the only place that decides how its move ends.

    Settled ──Order──▶ Copying ──Ready of all sources──▶ Cutting ──Installed──▶ Releasing, to the target
       ▲                  │ offline: at once ───────────▶   │                      │
       │                  └──Refused, deadline, abort, view─┴──▶ Releasing, to     │ every parked task has left
       │                                                        the source        ▼
       └───────────────────────────────────────────────────────────◀──────────────┘

    Settled, Copying      tasks pass
    Cutting               tasks are parked in ``delay``
    Releasing             tasks queue behind those that are parked

The state is the tenant's row in ``placements`` and the whole truth: whoever hosts the router next goes on from it,
timers included. The epoch grows with every attempt, so that whatever is late or comes twice is told by its number.
Everything goes out in the order of the effects, through the same streams as tasks: nothing overtakes.
Source: US 9,229,793, claim 1; design 3.2.
"""

from dataclasses import dataclass, replace
from typing import TypeAlias, assert_never

from app.protocol.control import (
    TO_SERVER,
    Abort,
    Commit,
    Cut,
    Installed,
    Measure,
    Measured,
    Placed,
    Prepare,
    Progress,
    Ready,
    Refused,
)
from app.protocol.moves import (
    Announce,
    Copying,
    Cutting,
    Forward,
    Moment,
    Move,
    Order,
    Outcome,
    Past,
    Placement,
    Releasing,
    Settled,
    State,
    announce_end,
    announce_phase,
    announce_start,
    plan,
    reject,
    rejection,
)
from app.protocol.parking import Keep, Leaving, Lot, Park, delay_again, deliver, keep, may_keep, park

# -- events -----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class AbortOrdered:
    """An operator wants the migration to end where it began."""

    id: str


@dataclass(frozen=True, slots=True)
class Arrived:
    """A task of the tenant, of so many bytes; ``position``: where ``delay`` is read next."""

    size: int
    position: int


@dataclass(frozen=True, slots=True)
class Due:
    """Parked tasks of ``epoch`` fall due that were to at ``due_ms``."""

    epoch: int
    due_ms: int


@dataclass(frozen=True, slots=True)
class Delivered:
    """Parked tasks ``first`` to ``last`` of ``epoch`` were read from ``delay``, which was read up to ``position``."""

    epoch: int
    first: int
    last: int
    position: int


@dataclass(frozen=True, slots=True)
class ViewAdopted:
    """The router adopts a view in which these servers failed or returned; its markers follow in the same unit."""

    changed: frozenset[int]


@dataclass(frozen=True, slots=True)
class Tick:
    """Time has passed: look at the deadlines."""


Gated: TypeAlias = (
    Order | AbortOrdered | Arrived | Ready | Progress | Installed | Refused | Due | Delivered | ViewAdopted | Tick
)
Event: TypeAlias = Gated | Measured

# -- effects ----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Tell:
    """Write this record into the server's stream."""

    server: int
    record: TO_SERVER


@dataclass(frozen=True, slots=True)
class DelayAgain:
    """Write into ``delay`` that parked tasks of ``epoch`` fall due at ``due_ms``."""

    epoch: int
    due_ms: int


Effect: TypeAlias = Tell | Announce | Forward | Park | Keep | Leaving | DelayAgain


@dataclass(frozen=True, slots=True)
class Step:
    """The new row, and what the shell does for it, in this order."""

    state: State
    effects: tuple[Effect, ...] = ()


def step(state: State, event: Event, moment: Moment) -> Step:
    """Decide what follows for one tenant. What is late, or comes twice, changes nothing."""
    if isinstance(event, Measured):
        sizes = (event.sessions, event.waiting, event.bytes)
        return Step(state, (plan(event.id, state.home, event.target, moment, sizes=sizes),))
    match state:
        case Settled():
            return _settled(state, event, moment)
        case Copying():
            return _copying(state, event, moment)
        case Cutting():
            return _cutting(state, event, moment)
        case Releasing():
            return _releasing(state, event, moment)
        case _:
            assert_never(state)


def deadline_ms(state: State) -> int | None:
    """When :class:`Tick` is wanted next, in Unix time."""
    match state:
        case Copying(_, move, _, progress_ms):
            return progress_ms + move.timeout_ms
        case Cutting(_, move, _, cut_ms, progress_ms):
            still = progress_ms + move.timeout_ms
            return still if move.max_pause_ms is None else min(still, cut_ms + move.max_pause_ms)
        case Settled() | Releasing():
            return None
        case _:
            assert_never(state)


# -- settled ----------------------------------------------------------------------------------------------------------


def _settled(state: Settled, event: Gated, moment: Moment) -> Step:
    match event:
        case Arrived():
            return Step(state, (Forward(),))
        case Order():
            return _ordered(state, event, moment)
        case AbortOrdered(id):
            return Step(state, (reject(id, "no-migration", moment),))
        case Ready() | Progress() | Installed() | Refused() | Due() | Delivered() | ViewAdopted() | Tick():
            return Step(state)
        case _:
            assert_never(event)


def _ordered(state: Settled, order: Order, moment: Moment) -> Step:
    placement = state.placement
    to = placement.before if order.undo else order.to
    if to is None:
        return Step(state, (reject(order.id, "nothing-to-undo", moment),))
    refused = rejection(placement, order, to, moment)
    if order.dry_run and refused != "unknown-server":
        if refused is not None or placement.home not in moment.up:
            blocked = () if refused is None else (refused,)
            return Step(state, (plan(order.id, placement.home, to, moment, blocked=blocked),))
        return Step(state, (Tell(placement.home, Measure(moment.tenant, order.id, moment.router, to)),))
    if refused is not None:
        return Step(state, (reject(order.id, refused, moment),))
    sources = (placement.home,) if placement.home in moment.up else tuple(sorted(moment.up))
    move = Move(
        id=order.id,
        origin=placement.home,
        to=to,
        sources=sources,
        timeout_ms=order.timeout_ms,
        max_pause_ms=order.max_pause_ms,
        delay_ms=order.delay_ms,
        offline=order.offline,
        ordered_ms=moment.now_ms,
    )
    tried = replace(placement, tried=placement.tried + 1)
    prepare = Prepare(moment.tenant, tried.tried, placement.epoch, moment.router, sources, to)
    effects: tuple[Effect, ...] = (*(Tell(source, prepare) for source in sources), announce_start(move, tried, moment))
    copying = Copying(tried, move, (), moment.now_ms)
    if not order.offline:
        return Step(copying, effects)
    cut = _cut(copying, moment)
    return Step(cut.state, (*effects, *cut.effects))


# -- copying ----------------------------------------------------------------------------------------------------------


def _copying(state: Copying, event: Gated, moment: Moment) -> Step:
    move, epoch = state.move, state.placement.tried
    match event:
        case Arrived():
            return Step(state, (Forward(),))
        case Ready(_, named, server) if named == epoch and server in move.sources:
            ready = tuple(sorted({*state.ready, server}))
            if set(ready) >= set(move.sources):
                return _cut(state, moment)
            return Step(replace(state, ready=ready, progress_ms=moment.now_ms))
        case Progress(_, named) if named == epoch:
            return Step(replace(state, progress_ms=moment.now_ms))
        case Ready() | Progress() | Installed() | Due() | Delivered():
            return Step(state)
        case Order(id):
            return Step(state, _busy(id, move, moment))
        case AbortOrdered() | Refused() | ViewAdopted() | Tick():
            return _may_fail(state, Lot(), 0, event, moment)
        case _:
            assert_never(event)


def _cut(state: Copying, moment: Moment) -> Step:
    """The gate closes here: tasks of the tenant that come later in this unit are parked already."""
    cut = Cut(moment.tenant, state.placement.tried)
    told = tuple(Tell(source, cut) for source in state.move.sources)
    cutting = Cutting(state.placement, state.move, Lot(), moment.now_ms, moment.now_ms)
    return Step(cutting, (*told, announce_phase("cutting", state.placement, moment)))


# -- cutting ----------------------------------------------------------------------------------------------------------


def _cutting(state: Cutting, event: Gated, moment: Moment) -> Step:
    move, epoch = state.move, state.placement.tried
    match event:
        case Arrived(_, position):
            lot, parked = park(state.lot, moment.now_ms, move.delay_ms, position)
            return Step(replace(state, lot=lot), (parked,))
        case Due(named, due_ms):
            if named != epoch:
                return Step(state)
            lot, later = delay_again(state.lot, due_ms, moment.now_ms, move.delay_ms)
            return Step(replace(state, lot=lot), () if later is None else (DelayAgain(epoch, later),))
        case Progress(_, named) if named == epoch:
            return Step(replace(state, progress_ms=moment.now_ms))
        case Installed(_, named, server) if named == epoch and server == move.to:
            return _commit(state, event, moment)
        case Ready() | Progress() | Installed() | Delivered():
            return Step(state)
        case Order(id):
            return Step(state, _busy(id, move, moment))
        case AbortOrdered() | Refused() | ViewAdopted() | Tick():
            return _may_fail(state, state.lot, moment.now_ms - state.cut_ms, event, moment)
        case _:
            assert_never(event)


def _commit(state: Cutting, said: Installed, moment: Moment) -> Step:
    move, tenant = state.move, moment.tenant
    epoch = state.placement.tried
    involved = sorted({*move.sources, move.to})
    told: list[Effect] = [Tell(server, Commit(tenant, epoch, move.to)) for server in involved]
    others = (server for server in range(moment.servers) if server not in involved)
    told += [Tell(server, Placed(tenant, epoch, move.to)) for server in others]
    outcome = Outcome(None, said.rows, said.bytes, moment.now_ms - state.cut_ms, said.parts)
    past = Past(epoch, move.origin, move.to, moment.now_ms, move.id)
    placement = replace(state.placement, home=move.to, epoch=epoch).with_past(past)
    return _release(placement, move, state.lot, outcome, tuple(told), moment)


# -- failure ----------------------------------------------------------------------------------------------------------


def _may_fail(
    state: Copying | Cutting,
    lot: Lot,
    pause_ms: int,
    event: AbortOrdered | Refused | ViewAdopted | Tick,
    moment: Moment,
) -> Step:
    reason, answer = _failure(state, event, moment)
    if reason is None:
        return Step(state, answer)
    move, epoch = state.move, state.placement.tried
    told = tuple(Tell(server, Abort(moment.tenant, epoch)) for server in sorted({*move.sources, move.to}))
    placement = state.placement.with_past(Past(epoch, move.origin, move.to, moment.now_ms, move.id, reason))
    outcome = Outcome(reason, 0, 0, pause_ms, ())
    return _release(placement, move, lot, outcome, (*told, *answer), moment)


def _failure(
    state: Copying | Cutting, event: AbortOrdered | Refused | ViewAdopted | Tick, moment: Moment
) -> tuple[str | None, tuple[Effect, ...]]:
    """Why the migration fails, None if it does not, and what else is said."""
    match event:
        case AbortOrdered(id):
            fields = {"tenant": moment.tenant, "epoch": state.placement.tried}
            return "aborted", (Announce("migration-aborted", id, True, fields),)
        case Refused(_, epoch, server, reason):
            return (f"server {server}: {reason}" if epoch == state.placement.tried else None), ()
        case ViewAdopted(changed):
            return ("view-change" if state.move.exposed(changed) else None), ()
        case Tick():
            return _over_time(state, moment), ()
        case _:
            assert_never(event)


def _over_time(state: Copying | Cutting, moment: Moment) -> str | None:
    if moment.now_ms >= state.progress_ms + state.move.timeout_ms:
        return "timeout"
    pause = state.move.max_pause_ms
    if isinstance(state, Cutting) and pause is not None and moment.now_ms >= state.cut_ms + pause:
        return "max-pause"
    return None


def _busy(command: str, move: Move, moment: Moment) -> tuple[Effect, ...]:
    """A second order. The same one again is answered by its one end."""
    return () if command == move.id else (reject(command, "migration-under-way", moment),)


# -- releasing --------------------------------------------------------------------------------------------------------


def _release(
    placement: Placement, move: Move, lot: Lot, outcome: Outcome, told: tuple[Effect, ...], moment: Moment
) -> Step:
    """The end is decided and told; parked tasks follow."""
    told = (*told, announce_phase("releasing", placement, moment))
    return _settle(Releasing(placement, move, replace(lot, dues=()), outcome), told, moment)


def _settle(state: Releasing, told: tuple[Effect, ...], moment: Moment) -> Step:
    if not state.lot.empty:
        return Step(state, told)
    return Step(Settled(state.placement), (*told, announce_end(state, moment)))


def _releasing(state: Releasing, event: Gated, moment: Moment) -> Step:
    match event:
        case Arrived(size, position):
            if may_keep(state.lot, size):
                lot, kept = keep(state.lot, size)
                return Step(replace(state, lot=lot), (kept,))
            lot, parked = park(state.lot, moment.now_ms, state.move.delay_ms, position)
            return Step(replace(state, lot=replace(lot, dues=())), (replace(parked, new_due=False),))
        case Delivered(epoch, first, last, position):
            if epoch != state.placement.tried:
                return Step(state)
            lot, leaving = deliver(state.lot, first, last, position)
            return _settle(replace(state, lot=lot), leaving, moment)
        case Order(id):
            return Step(state, _busy(id, state.move, moment))
        case AbortOrdered(id):
            return Step(state, (reject(id, "too-late", moment),))
        case Ready() | Progress() | Installed() | Refused() | Due() | ViewAdopted() | Tick():
            return Step(state)
        case _:
            assert_never(event)
