"""The steward: the one place that decides which servers are up, and when a view follows another.

    Calm ──a server fails or returns──▶ Changing ──every server has closed the view──▶ Calm

Views are numbered, and there is one change at a time (rule L3): what falls due meanwhile, orders of operators as well
as deaths and returns, waits its turn. A view fails a set of servers or restores a set, never both, and leaves at least
one up. What an operator fails stays down until an operator restores it. What fails because its home worker died comes
back by itself when the home worker hosts it again, or is forgotten (:mod:`app.protocol.homes`).

The steward is hosted with router 0. Its state is a row, and what it publishes goes to every router, and to ``views``
for everybody to see, in the unit that writes the row. Source: design 3.3.
"""

from dataclasses import dataclass, replace
from itertools import takewhile
from typing import Any, Literal, TypeAlias, assert_never

from app.protocol import homes as home_workers
from app.protocol.homes import Homes, Seen
from app.protocol.markers import Closed, Leaving, View, ViewClosed
from app.protocol.moves import Announce

ALARM_MS = 60_000
"""A view that some server has not closed for so long is announced, and again each time it has passed once more."""

ORDERS_MAX = 1_000
"""Orders that wait; more are rejected."""

Kind: TypeAlias = Literal["fail", "restore"]

# -- states -----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Order:
    """An operator's word that was accepted."""

    id: str
    kind: Kind
    server: int


@dataclass(frozen=True, slots=True)
class Known:
    """What every state has: the last view, which servers an operator has failed (``sticky``), home workers."""

    epoch: int
    down: frozenset[int]
    sticky: frozenset[int]
    homes: Homes


@dataclass(frozen=True, slots=True)
class Calm:
    """Every server has closed the last view."""

    known: Known


@dataclass(frozen=True, slots=True)
class Changing:
    """The last view is under way: ``missing`` have not closed it; it carries out ``doing``, then comes ``queue``."""

    known: Known
    missing: frozenset[int]
    alarm_ms: int
    doing: tuple[Order, ...] = ()
    queue: tuple[Order, ...] = ()


State: TypeAlias = Calm | Changing


def first(servers: int) -> Calm:
    """View 0, which needs no row: all servers are up."""
    return Calm(Known(0, frozenset(), frozenset(), home_workers.nobody(servers)))


@dataclass(frozen=True, slots=True)
class Moment:
    """What a decision depends on besides the row: settings, and the time. Milliseconds; ``now_ms`` is Unix time."""

    servers: int
    rehome_after_ms: int
    forget_after_ms: int
    now_ms: int


# -- events -----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class FailOrdered:
    """``fail-server``."""

    id: str
    server: int


@dataclass(frozen=True, slots=True)
class RestoreOrdered:
    """``restore-server``."""

    id: str
    server: int


@dataclass(frozen=True, slots=True)
class ForgetOrdered:
    """``forget-worker``: do not wait for it to come back."""

    id: str
    worker: str


@dataclass(frozen=True, slots=True)
class Tick:
    """Time has passed."""


Event: TypeAlias = Seen | Leaving | FailOrdered | RestoreOrdered | ForgetOrdered | Closed | Tick

# -- effects ----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Publish:
    """Send this record to every router; write it to ``views``."""

    record: View | ViewClosed


Effect: TypeAlias = Publish | Announce


@dataclass(frozen=True, slots=True)
class Step:
    """The new row, and what the shell does for it, in this order."""

    state: State
    effects: tuple[Effect, ...] = ()


# -- steps ------------------------------------------------------------------------------------------------------------


def step(state: State, event: Event, moment: Moment) -> Step:
    """Decide what follows. What is late, or comes twice, changes nothing."""
    state, said, order = _learn(state, event, moment)
    queue = () if order is None else (order,)
    forgotten = home_workers.overdue(state.known.homes, moment.now_ms, moment.forget_after_ms)
    state = _at_homes(state, home_workers.forget(state.known.homes, forgotten))
    match state:
        case Calm(known):
            return _next(known, queue, said, moment)
        case Changing(known, missing, alarm_ms, doing, before):
            queue = (*before, *queue)
            if not missing:
                ends = (_done(order, known) for order in doing)
                return _next(known, queue, (*said, Publish(ViewClosed(known.epoch)), *ends), moment)
            if moment.now_ms >= alarm_ms:
                stuck = Announce("view-stuck", None, False, {"view": known.epoch, "servers": sorted(missing)})
                said, alarm_ms = (*said, stuck), moment.now_ms + ALARM_MS
            return Step(replace(state, alarm_ms=alarm_ms, queue=queue), said)
        case _:
            assert_never(state)


def due_ms(state: State, moment: Moment) -> int | None:
    """When :class:`Tick` is wanted next, in Unix time; in the past means at once."""
    known = state.known
    by_time = home_workers.next_ms(
        known.homes,
        known.down,
        known.sticky,
        rehome_after_ms=moment.rehome_after_ms,
        forget_after_ms=moment.forget_after_ms,
    )
    # While a view is under way nothing can follow but the alarm.
    return state.alarm_ms if isinstance(state, Changing) else by_time


Learnt: TypeAlias = tuple[State, tuple[Effect, ...], Order | None]


def _learn(state: State, event: Event, moment: Moment) -> Learnt:
    """What an event says, and the order that it is, if it is accepted."""
    known = state.known
    match event:
        case Seen():
            homes, died = home_workers.see(known.homes, event, known.down, moment.now_ms)
            lost = tuple(
                Announce("worker-lost", None, False, {"worker": name, "servers": list(homes.of(name))}) for name in died
            )
            return _at_homes(state, homes), lost, None
        case Leaving():
            return _at_homes(state, home_workers.leave(known.homes, event)), (), None
        case FailOrdered(command, server):
            return _accept(state, Order(command, "fail", server), moment)
        case RestoreOrdered(command, server):
            return _accept(state, Order(command, "restore", server), moment)
        case ForgetOrdered(command, worker):
            return _forget(state, command, worker)
        case Closed(server, epoch):
            if isinstance(state, Changing) and epoch == known.epoch:
                return replace(state, missing=state.missing - {server}), (), None
            return state, (), None
        case Tick():
            return state, (), None
        case _:
            assert_never(event)


def _at_homes(state: State, homes: Homes) -> State:
    return replace(state, known=replace(state.known, homes=homes)) if homes != state.known.homes else state


def _forget(state: State, command: str, worker: str) -> Learnt:
    homes = state.known.homes
    if worker in homes.workers:
        return state, (_reject(command, "worker-alive", worker=worker),), None
    if worker not in homes.lost:
        return state, (_reject(command, "unknown-worker", worker=worker),), None
    said = Announce("worker-forgotten", command, True, {"worker": worker, "servers": list(homes.of(worker))})
    return _at_homes(state, home_workers.forget(homes, (worker,))), (said,), None


# -- orders -----------------------------------------------------------------------------------------------------------


def _accept(state: State, order: Order, moment: Moment) -> Learnt:
    """An accepted order waits for its turn. One that waits already is answered by its one end."""
    waiting = (*state.doing, *state.queue) if isinstance(state, Changing) else ()
    if any(order.id == known.id for known in waiting):
        return state, (), None
    reason = _refusal(state, order, moment)
    if reason is not None:
        return state, (_reject(order.id, reason, server=order.server),), None
    return state, (), order


def _refusal(state: State, order: Order, moment: Moment) -> str | None:
    """Why an order is not accepted, given what will be when those before it are carried out."""
    queue = state.queue if isinstance(state, Changing) else ()
    if not 0 <= order.server < moment.servers:
        return "unknown-server"
    if len(queue) >= ORDERS_MAX:
        return "too-many-orders"
    down, sticky = set(state.known.down), set(state.known.sticky)
    for before in queue:
        (down.add if before.kind == "fail" else down.discard)(before.server)
        (sticky.add if before.kind == "fail" else sticky.discard)(before.server)
    if order.kind == "restore":
        return None if order.server in down else "server-up"
    if order.server in sticky:
        return "server-down"
    return "last-server" if len(down | {order.server}) >= moment.servers else None


def _reject(command: str, reason: str, **fields: Any) -> Announce:
    return Announce("command-rejected", command, True, {**fields, "reason": reason})


def _done(order: Order, known: Known) -> Announce:
    """The one end of an order."""
    name = "server-closed" if order.kind == "fail" else "server-restored"
    manager = known.homes.hosts[order.server]
    return Announce(name, order.id, True, {"view": known.epoch, "server": order.server, "manager": manager})


# -- one view after another -------------------------------------------------------------------------------------------


def _next(known: Known, queue: tuple[Order, ...], said: tuple[Effect, ...], moment: Moment) -> Step:
    """Publish the view that is due, if one is: what operators have ordered goes before what follows by itself."""
    orphaned = home_workers.orphans(known.homes, known.down, moment.now_ms, moment.rehome_after_ms)
    if orphaned and len(known.down | orphaned) >= moment.servers:
        # Nobody is left whose home worker lives: the servers stay where they are.
        known = replace(known, homes=home_workers.adopt(known.homes, orphaned))
        orphaned = frozenset()
    back = home_workers.returning(known.homes, known.down, known.sticky, moment.now_ms)
    kind: Kind | None = queue[0].kind if queue else "fail" if orphaned else "restore" if back else None
    if kind is None:
        return Step(Calm(known), said)
    doing = tuple(takewhile(lambda order: order.kind == kind, queue))
    rest = queue[len(doing) :]
    if kind == "fail":
        return _fail(known, doing, orphaned, rest, said, moment)
    return _restore(known, doing, back, rest, said, moment)


def _fail(
    known: Known,
    doing: tuple[Order, ...],
    orphaned: frozenset[int],
    rest: tuple[Order, ...],
    said: tuple[Effect, ...],
    moment: Moment,
) -> Step:
    ordered = frozenset(order.server for order in doing)
    if len(known.down | ordered | orphaned) >= moment.servers:
        orphaned = frozenset()
    if len(known.down | ordered) >= moment.servers:
        # It was not the last one when the order came.
        refused = _reject(doing[-1].id, "last-server", server=doing[-1].server)
        return _next(known, (*doing[:-1], *rest), (*said, refused), moment)
    homes = home_workers.failed(known.homes, orphaned, moment.now_ms)
    known = replace(known, sticky=known.sticky | ordered, homes=homes)
    failed = (ordered | orphaned) - known.down
    return _publish(known, failed, frozenset(), doing, rest, said, moment)


def _restore(
    known: Known,
    doing: tuple[Order, ...],
    back: frozenset[int],
    rest: tuple[Order, ...],
    said: tuple[Effect, ...],
    moment: Moment,
) -> Step:
    ordered = frozenset(order.server for order in doing)
    # Whoever restores a server takes it as it is hosted now.
    known = replace(known, sticky=known.sticky - ordered, homes=home_workers.adopt(known.homes, ordered))
    return _publish(known, frozenset(), (ordered | back) & known.down, doing, rest, said, moment)


def _publish(
    known: Known,
    failed: frozenset[int],
    restored: frozenset[int],
    doing: tuple[Order, ...],
    rest: tuple[Order, ...],
    said: tuple[Effect, ...],
    moment: Moment,
) -> Step:
    if not failed and not restored:
        # Everything is as it was ordered already.
        return _next(known, rest, (*said, *(_done(order, known) for order in doing)), moment)
    known = replace(known, epoch=known.epoch + 1, down=known.down - restored | failed)
    managers = tuple((server, known.homes.hosts[server]) for server in sorted(failed | restored))
    view = View(known.epoch, tuple(sorted(known.down)), tuple(sorted(failed)), tuple(sorted(restored)), managers)
    ids = {order.server: order.id for order in doing}
    events = tuple(
        Announce("server-failed", ids.get(server), False, {"view": known.epoch, "server": server, "manager": manager})
        for server, manager in managers
        if server in failed
    )
    missing = frozenset(range(moment.servers))
    changing = Changing(known, missing, moment.now_ms + ALARM_MS, doing, rest)
    return Step(changing, (*said, *events, Publish(view)))
