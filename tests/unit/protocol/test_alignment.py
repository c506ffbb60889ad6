"""The server's part of a view: every state with every event, what comes next, and what breaks the order."""

from dataclasses import replace
from itertools import product
from typing import get_args

import pytest

from app.errors import LocalProtocolError
from app.protocol.affinity import Aligned, Change, Early, Line, Moved, Part, Receiving, Sending, State, initial
from app.protocol.alignment import (
    Conclude,
    Concluded,
    Event,
    Freeze,
    GoLive,
    Hand,
    Resume,
    Sent,
    Shipped,
    ShipSessions,
    ShipWaiting,
    Step,
    Taken,
    Task,
    ahead,
    step,
    wanted,
)
from app.protocol.chunks import Digest, HandOff
from app.protocol.markers import HandedOff, Marker
from app.protocol.moves import Announce

ALL = frozenset(range(4))
BEFORE = Change(4, ALL, ALL)
MANAGERS = ((1, "w3"),)
# View 5 fails server 1; this is server 2, then server 1.
CHANGE = Change(5, ALL, ALL - {1}, MANAGERS)
BACK = Change(6, ALL - {1}, ALL, MANAGERS)
MARKER = Marker(0, 5, (1,), (1,), (), MANAGERS)
OLD = Marker(0, 4, (), (), (), ())
PART = HandOff(5, 0, 1, 1, ())
TAKEN = Taken(PART, 2, 10)
DIGEST = Digest(2, 10)
DONE = HandedOff(5, 0, 1, 1, 2, DIGEST.text)
NOTHING = HandedOff(5, 0, 1, 0, 0, Digest().text)
SHIPPED = Shipped((Sent(2, 2, 10),), "k", end=False)
END = Shipped((), "", end=True)

ALIGNED = Aligned(BEFORE, (Moved(3, 2, DIGEST),))
EARLY = Early(BEFORE, (Part(1, 1, DIGEST),))
RECEIVING = Receiving(CHANGE, (Part(1, 1, DIGEST),))
COMPLETE = Part(1, 1, DIGEST, complete=True)
SENDING = Sending(CHANGE)
SENT = Sending(CHANGE, (Line(2, 1, DIGEST),), waiting=True, sent=True)


def wrong(reason: str) -> Announce:
    return Announce("hand-off-wrong", None, False, {"view": 5, "server": 2, "source": 1, "reason": reason})


def same(state: State, *events: Event) -> list[tuple[State, Event, Step]]:
    return [(state, event, Step(state)) for event in events]


CASES: list[tuple[State, Event, Step]] = [
    (ALIGNED, MARKER, Step(Receiving(CHANGE, (Part(1),)))),
    (ALIGNED, TAKEN, Step(EARLY)),
    (ALIGNED, NOTHING, Step(Early(BEFORE, (Part(1, complete=True),)))),
    *same(ALIGNED, OLD, SHIPPED, Concluded(), replace(NOTHING, view=4), Taken(replace(PART, view=4), 2, 10)),
    (EARLY, MARKER, Step(RECEIVING)),
    (Early(BEFORE, (COMPLETE,)), MARKER, Step(Receiving(CHANGE, (COMPLETE,)), (GoLive(1),))),
    (
        EARLY,
        Taken(replace(PART, number=2), 1, 5),
        Step(Early(BEFORE, (Part(1, 2, Digest(3, 15)),))),
    ),
    (EARLY, DONE, Step(Early(BEFORE, (COMPLETE,)))),
    *same(EARLY, OLD, TAKEN, SHIPPED, Concluded()),
    *same(RECEIVING, MARKER, OLD, TAKEN, SHIPPED, Concluded(), replace(DONE, view=4)),
    (RECEIVING, DONE, Step(Receiving(CHANGE, (COMPLETE,)), (GoLive(1),))),
    *same(Receiving(CHANGE, (COMPLETE,)), DONE, NOTHING, Taken(replace(PART, number=2), 1, 1)),
    (
        RECEIVING,
        Taken(replace(PART, number=3), 1, 5),
        Step(Receiving(CHANGE, (replace(RECEIVING.parts[0], wrong=True),)), (wrong("chunk 2 is missing"),)),
    ),
    (
        RECEIVING,
        NOTHING,
        Step(
            Receiving(CHANGE, (replace(RECEIVING.parts[0], wrong=True),)),
            (
                wrong(
                    f"0 rows in 0 chunks with checksum {Digest().text} have left, "
                    f"2 rows in 1 chunks with checksum {DIGEST.text} have arrived"
                ),
            ),
        ),
    ),
    *same(Receiving(CHANGE, (replace(COMPLETE, complete=False, wrong=True),)), DONE, TAKEN),
    (
        Receiving(CHANGE, (COMPLETE,)),
        Concluded(),
        Step(Aligned(CHANGE, (Moved(1, 2, DIGEST),))),
    ),
    (SENDING, SHIPPED, Step(replace(SENDING, lines=(Line(2, 1, DIGEST),), cursor="k"))),
    (SENDING, END, Step(replace(SENDING, waiting=True))),
    (replace(SENDING, waiting=True), END, Step(replace(SENDING, waiting=True, sent=True))),
    *same(SENDING, MARKER, OLD, Concluded(), replace(DONE, view=4), Taken(replace(PART, view=4), 2, 10)),
]


@pytest.mark.parametrize(("state", "event", "expected"), CASES, ids=lambda value: type(value).__name__)
def test_step(state: State, event: Event, expected: Step) -> None:
    assert step(state, event, router=0, server=1 if isinstance(state, Sending) else 2) == expected


def test_the_table_has_every_pair() -> None:
    covered = {(type(state), type(event)) for state, event, _ in CASES}
    assert covered == set(product(get_args(State), get_args(Event)))


def test_the_failed_server_sends_to_everybody_who_is_up() -> None:
    assert step(ALIGNED, MARKER, router=0, server=1) == Step(Sending(CHANGE), (Freeze(),))
    decided = step(SENT, Concluded(), router=0, server=1)
    assert decided.state == Aligned(CHANGE, (Moved(1, 2, DIGEST),))
    assert decided.effects == (Hand(0, NOTHING), Hand(2, DONE), Hand(3, NOTHING))


def test_everybody_who_was_up_sends_to_those_that_return() -> None:
    marker = Marker(0, 6, (), (), (1,), MANAGERS)
    aligned = Aligned(replace(CHANGE, managers=()))
    for server in (0, 2, 3):
        decided = step(aligned, marker, router=0, server=server)
        assert decided == Step(Sending(BACK), (Freeze(),))
        ended = step(Sending(BACK, sent=True), Concluded(), router=0, server=server)
        assert ended.effects == (Hand(1, replace(NOTHING, view=6, source=server)),)
    assert step(aligned, marker, router=0, server=1).state == Receiving(BACK, (Part(0), Part(2), Part(3)))


def test_a_server_that_is_down_before_and_after_has_no_part() -> None:
    known = Aligned(Change(4, ALL - {3}, ALL - {3}))
    marker = replace(MARKER, down=(1, 3))
    assert step(known, marker, router=0, server=3) == Step(Aligned(Change(5, ALL - {3}, ALL - {1, 3}, MANAGERS)))
    with pytest.raises(LocalProtocolError, match="no target"):
        step(Early(known.change, (Part(1),)), marker, router=0, server=3)


@pytest.mark.parametrize(
    ("state", "event"),
    [
        (ALIGNED, replace(MARKER, epoch=6)),
        (ALIGNED, replace(MARKER, down=(1, 2))),
        (ALIGNED, replace(MARKER, failed=(7,))),
        (ALIGNED, replace(MARKER, restored=(3,))),
        (RECEIVING, replace(MARKER, epoch=6)),
        (SENDING, replace(MARKER, epoch=6)),
        (ALIGNED, replace(DONE, view=6)),
        (ALIGNED, Taken(replace(PART, view=6), 1, 1)),
        (RECEIVING, replace(DONE, view=6)),
        (SENDING, DONE),
        (Early(BEFORE, (Part(3),)), MARKER),
    ],
)
def test_what_breaks_the_order_of_views_is_an_error(state: State, event: Event) -> None:
    with pytest.raises(LocalProtocolError):
        step(state, event, router=0, server=2)


@pytest.mark.parametrize(
    ("state", "held", "task"),
    [
        (ALIGNED, {}, None),
        (EARLY, {}, None),
        (SENDING, {}, ShipSessions("")),
        (replace(SENDING, cursor="k"), {}, ShipSessions("k")),
        (replace(SENDING, waiting=True, cursor="k"), {}, ShipWaiting("k")),
        (SENT, {}, Conclude()),
        (RECEIVING, {1: 3}, None),
        (RECEIVING, {}, None),
        (Receiving(CHANGE, (COMPLETE,)), {1: 3}, Resume(1)),
        (Receiving(CHANGE, (COMPLETE,)), {}, Conclude()),
        (Receiving(BACK, (Part(0, complete=True), Part(2), Part(3, complete=True))), {0: 1, 2: 1}, Resume(0)),
        (Receiving(BACK, (Part(0, complete=True), Part(2))), {2: 1}, None),
    ],
)
def test_what_comes_next(state: State, held: dict[int, int], task: Task | None) -> None:
    assert ahead(state, held) == task


@pytest.mark.parametrize(
    ("state", "part", "expected"),
    [
        (ALIGNED, PART, True),
        (ALIGNED, replace(PART, view=4), False),
        (EARLY, PART, False),
        (EARLY, replace(PART, number=2), True),
        (EARLY, replace(PART, number=3), True),
        (RECEIVING, PART, False),
        (RECEIVING, replace(PART, number=2), True),
        (Receiving(CHANGE, (COMPLETE,)), replace(PART, number=2), False),
        (Receiving(CHANGE, (replace(COMPLETE, complete=False, wrong=True),)), replace(PART, number=2), False),
        (SENDING, replace(PART, view=4), False),
    ],
)
def test_which_hand_offs_are_wanted(state: State, part: HandOff, *, expected: bool) -> None:
    assert wanted(state, part) is expected


def test_a_hand_off_that_nobody_may_have_sent_yet_is_an_error() -> None:
    with pytest.raises(LocalProtocolError):
        wanted(ALIGNED, replace(PART, view=6))
    with pytest.raises(LocalProtocolError):
        wanted(SENDING, PART)


def test_at_first_everybody_is_up() -> None:
    assert initial(4) == Change(0, ALL, ALL)
