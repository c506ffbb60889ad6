"""The client's side of an exchange: what it may send, what the manager has, what has to be sent again.

    Opening ──restarted──▶ Live ──fenced, closed, refused──▶ Over
                           │  ▲
                           └──┘ restarted by a manager that has taken over: what it has not taken is sent again

The client numbers its requests and its operations. An operation is settled when the manager says that it has it; until
then it is kept, because the manager may have to be told again. Positions only grow, so news that come late or twice
change nothing.
"""

from dataclasses import dataclass, replace
from typing import TypeAlias, assert_never


@dataclass(frozen=True, slots=True)
class Opening:
    """The opening record is sent; ``incarnation`` is its offset, -1 until that is known."""

    incarnation: int = -1


@dataclass(frozen=True, slots=True)
class Live:
    """The exchange goes on. ``op`` is the last operation sent, ``settled`` the last one that the manager has."""

    incarnation: int
    window: int
    op: int = 0
    settled: int = 0
    resent: int = 0
    submitted: int = 0
    answered: int = 0
    acknowledged: int = 0

    def after(self, op: int, submitted: int, acknowledged: int) -> "Live":
        """How it stands when operation ``op`` is sent. Field by field: every request takes two of them."""
        return Live(
            self.incarnation, self.window, op, self.settled, self.resent, submitted, self.answered, acknowledged
        )


@dataclass(frozen=True, slots=True)
class Over:
    """Nothing more can be done here. ``reason``: ``fenced``, the exchange's outcome, or why the manager refused."""

    reason: str
    incarnation: int = -1
    current: int = -1


Side: TypeAlias = Opening | Live | Over


@dataclass(frozen=True, slots=True)
class OpenSent:
    """The opening record stands at this offset."""

    incarnation: int


@dataclass(frozen=True, slots=True)
class Restarted:
    """The manager's word: how everything stands. The queues follow one by one."""

    incarnation: int
    op: int
    window: int
    submitted: int
    answered: int
    acknowledged: int


@dataclass(frozen=True, slots=True)
class PositionsTold:
    """The manager has stored what it was told up to ``op``."""

    incarnation: int
    op: int
    answered: int


@dataclass(frozen=True, slots=True)
class SubmitWanted:
    """The program wants to submit a request."""


@dataclass(frozen=True, slots=True)
class AcknowledgeWanted:
    """The program is done with the responses up to ``number``."""

    number: int


@dataclass(frozen=True, slots=True)
class FinishWanted:
    """The program says that the exchange is over."""


@dataclass(frozen=True, slots=True)
class Refused:
    """The manager refused an operation."""

    incarnation: int
    reason: str
    expected: int


@dataclass(frozen=True, slots=True)
class Fenced:
    """A younger process, ``current``, has the exchange."""

    incarnation: int
    current: int


@dataclass(frozen=True, slots=True)
class ClosedTold:
    """The exchange is over."""

    incarnation: int
    outcome: str


Event: TypeAlias = (
    OpenSent
    | Restarted
    | PositionsTold
    | SubmitWanted
    | AcknowledgeWanted
    | FinishWanted
    | Refused
    | Fenced
    | ClosedTold
)


@dataclass(frozen=True, slots=True)
class Send:
    """Send this operation; ``number`` is that of the request or response that it is about (0 of none)."""

    op: int
    number: int


@dataclass(frozen=True, slots=True)
class Resend:
    """Send the operations from ``first`` to the last one again, in order."""

    first: int


@dataclass(frozen=True, slots=True)
class Settle:
    """The operations up to ``op`` are stored: whoever waits for them may go on."""

    op: int


@dataclass(frozen=True, slots=True)
class Full:
    """The window is closed: it opens when responses are acknowledged."""


@dataclass(frozen=True, slots=True)
class NotYet:
    """There is no such response to be acknowledged."""


@dataclass(frozen=True, slots=True)
class Stop:
    """Whoever waits learns that it is over."""


Effect: TypeAlias = Send | Resend | Settle | Full | NotYet | Stop


@dataclass(frozen=True, slots=True)
class Step:
    """The new state, and what the shell does for it, in this order."""

    side: Side
    effects: tuple[Effect, ...] = ()


def step(side: Side, event: Event) -> Step:
    """Decide what follows. News for another incarnation change nothing."""
    match side:
        case Live():
            return _live(side, event)
        case Opening():
            return _opening(side, event)
        case Over():
            return Step(side, (Stop(),) if isinstance(event, SubmitWanted | AcknowledgeWanted | FinishWanted) else ())
        case _:
            assert_never(side)


def _opening(side: Opening, event: Event) -> Step:
    match event:
        case OpenSent(incarnation):
            return Step(Opening(incarnation))
        case Restarted(incarnation) if incarnation == side.incarnation:
            live = Live(
                incarnation,
                event.window,
                event.op,
                event.op,
                0,
                event.submitted,
                event.answered,
                event.acknowledged,
            )
            return Step(live, (Settle(event.op),))
        case Refused(incarnation) | Fenced(incarnation) | ClosedTold(incarnation) if incarnation == side.incarnation:
            return _over(event)
        case _:
            return Step(side)


def _live(side: Live, event: Event) -> Step:
    match event:
        case SubmitWanted() | AcknowledgeWanted() | FinishWanted():
            return _wanted(side, event)
        case OpenSent():
            return Step(side)
        case _ if event.incarnation != side.incarnation:
            return Step(side)
        case PositionsTold(_, op, answered):
            return _told(side, op, answered)
        case Restarted(_, op, window, _, answered):
            decided = _told(replace(side, window=window, resent=0), op, answered)
            return Step(decided.side, (*decided.effects, Resend(op + 1))) if op < side.op else decided
        case Refused(_, "gap", expected):
            if expected <= side.resent or expected > side.op:
                return Step(side)
            return Step(replace(side, resent=expected), (Resend(expected),))
        case Refused() | Fenced() | ClosedTold():
            return _over(event)
        case _:
            assert_never(event)


def _wanted(side: Live, event: SubmitWanted | AcknowledgeWanted | FinishWanted) -> Step:
    op = side.op + 1
    match event:
        case SubmitWanted():
            if side.submitted - side.acknowledged >= side.window:
                return Step(side, (Full(),))
            number = side.submitted + 1
            return Step(side.after(op, number, side.acknowledged), (Send(op, number),))
        case AcknowledgeWanted(number):
            if number > side.answered:
                return Step(side, (NotYet(),))
            return Step(side.after(op, side.submitted, max(side.acknowledged, number)), (Send(op, number),))
        case FinishWanted():
            return Step(side.after(op, side.submitted, side.acknowledged), (Send(op, 0),))
        case _:
            assert_never(event)


def _told(side: Live, op: int, answered: int) -> Step:
    if op <= side.settled and answered <= side.answered:
        return Step(side)
    settled = max(side.settled, op)
    told = Live(
        side.incarnation,
        side.window,
        side.op,
        settled,
        side.resent,
        side.submitted,
        max(side.answered, answered),
        side.acknowledged,
    )
    return Step(told, (Settle(settled),) if settled > side.settled else ())


def _over(event: Refused | Fenced | ClosedTold) -> Step:
    match event:
        case Fenced(incarnation, current):
            return Step(Over("fenced", incarnation, current), (Stop(),))
        case ClosedTold(_, outcome):
            return Step(Over(outcome), (Stop(),))
        case Refused(_, reason):
            return Step(Over(reason), (Stop(),))
        case _:
            assert_never(event)
