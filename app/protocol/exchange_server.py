"""The server's side of one exchange: which request is performed next, and whose result still counts.

    Away ──given──▶ Held ──withdrawn──▶ Away
                    │  ▲
                    └──┘ given again: by the same assignment it goes on in place, by a new one it starts from the row

The requests of an exchange are performed one by one, in order; each result takes effect with the restart data that it
was made with. A request that is being performed when its assignment ends is not interrupted, but nobody is told of its
result, and nothing else of this exchange is begun before it has ended.
"""

from dataclasses import dataclass, replace
from typing import TypeAlias, assert_never


@dataclass(frozen=True, slots=True)
class Away:
    """Somebody else's. ``busy``: a request of an earlier assignment is still being performed here."""

    busy: bool = False


@dataclass(frozen=True, slots=True)
class Held:
    """Ours. ``done``: the last request performed; ``there``: later ones that have come; ``op``: operations so far.

    ``running`` is the request that is being performed, 0 if there is none; ``stale``: it belongs to an earlier
    assignment.
    """

    assignment: int
    op: int
    done: int
    there: frozenset[int] = frozenset()
    running: int = 0
    stale: bool = False
    careful: bool = False

    def after(self, op: int, done: int, there: frozenset[int], running: int) -> "Held":
        """How it stands when a request comes, begins or ends. Field by field: every request takes three of them."""
        return Held(self.assignment, op, done, there, running, self.stale, self.careful)


Side: TypeAlias = Away | Held


@dataclass(frozen=True, slots=True)
class Given:
    """The manager gives the exchange, as it stands in its row; the requests follow one by one."""

    assignment: int
    op: int
    answered: int
    careful: bool = False


@dataclass(frozen=True, slots=True)
class RequestCame:
    """A request of the queue."""

    assignment: int
    number: int


@dataclass(frozen=True, slots=True)
class Withdrawn:
    """The manager takes the exchange away, or it is over."""

    assignment: int


@dataclass(frozen=True, slots=True)
class Free:
    """There is time to perform something."""


@dataclass(frozen=True, slots=True)
class Performed:
    """What was being performed has a result."""


@dataclass(frozen=True, slots=True)
class Paused:
    """What is being performed has new restart data."""


Event: TypeAlias = Given | RequestCame | Withdrawn | Free | Performed | Paused


@dataclass(frozen=True, slots=True)
class Restart:
    """Go on from the restart data that came with it; requests of an earlier assignment are forgotten."""


@dataclass(frozen=True, slots=True)
class Keep:
    """Keep the request's body: it will be performed."""

    number: int


@dataclass(frozen=True, slots=True)
class Perform:
    """Perform this request now; first say so with operation ``announce``, if that is not 0."""

    number: int
    announce: int


@dataclass(frozen=True, slots=True)
class Respond:
    """Send the result and the restart data as operation ``op``."""

    op: int
    number: int


@dataclass(frozen=True, slots=True)
class Save:
    """Send the restart data as operation ``op``."""

    op: int
    number: int


@dataclass(frozen=True, slots=True)
class Discard:
    """The result counts no more: somebody else performs this request, or nobody needs it."""


Effect: TypeAlias = Restart | Keep | Perform | Respond | Save | Discard


@dataclass(frozen=True, slots=True)
class Step:
    """The new state, and what the shell does for it, in this order."""

    side: Side
    effects: tuple[Effect, ...] = ()


def step(side: Side, event: Event) -> Step:
    """Decide what follows. What belongs to another assignment changes nothing."""
    match side:
        case Away(busy):
            return _away(side, event, busy=busy)
        case Held():
            return _held(side, event)
        case _:
            assert_never(side)


def _away(side: Away, event: Event, *, busy: bool) -> Step:
    match event:
        case Given():
            return _given(event, running=1 if busy else 0)
        case Performed():
            return Step(Away(), (Discard(),))
        case Paused():
            return Step(side, (Discard(),))
        case RequestCame() | Withdrawn() | Free():
            return Step(side)
        case _:
            assert_never(event)


def _given(event: Given, *, running: int) -> Step:
    held = Held(
        event.assignment,
        event.op,
        event.answered,
        running=running,
        stale=running > 0,
        careful=event.careful,
    )
    return Step(held, (Restart(),))


def _held(side: Held, event: Event) -> Step:
    match event:
        case Given(assignment):
            return _given(event, running=side.running) if assignment > side.assignment else Step(side)
        case RequestCame(assignment, number):
            if assignment != side.assignment or number <= max(side.done, 0 if side.stale else side.running):
                return Step(side)
            return Step(side.after(side.op, side.done, side.there | {number}, side.running), (Keep(number),))
        case Withdrawn(assignment):
            return Step(Away(side.running > 0)) if assignment == side.assignment else Step(side)
        case Free():
            return _begin(side)
        case Performed():
            return _performed(side)
        case Paused():
            if side.stale or not side.running:
                return Step(side, (Discard(),))
            return Step(replace(side, op=side.op + 1), (Save(side.op + 1, side.running),))
        case _:
            assert_never(event)


def _begin(side: Held) -> Step:
    number = side.done + 1
    if side.running or number not in side.there:
        return Step(side)
    op = side.op + side.careful
    begun = side.after(op, side.done, side.there - {number}, number)
    return Step(begun, (Perform(number, op if side.careful else 0),))


def _performed(side: Held) -> Step:
    if side.stale or not side.running:
        return Step(replace(side, running=0, stale=False), (Discard(),))
    op = side.op + 1
    done = Held(side.assignment, op, side.running, side.there)
    return Step(done, (Respond(op, side.running),))
