"""The target's part: every state with every event; what is dropped, and what is refused."""

from dataclasses import replace
from itertools import product
from typing import get_args

import pytest

from app.errors import LocalProtocolError
from app.protocol.chunks import Chunk, Digest
from app.protocol.control import Abort, Commit, Complete, Installed, Placed, Received, Refused
from app.protocol.shipping import Sweep
from app.protocol.staging import (
    Acknowledge,
    Answer,
    Event,
    GoLive,
    Part,
    Staged,
    Staging,
    State,
    Step,
    Taken,
    step,
    wanted,
)

PAST = 4
FIRST = Taken(Chunk("acme", 7, 0, 1, 1, ()), 2, 10, 400)
SECOND = Taken(Chunk("acme", 7, 0, 1, 2, ()), 1, 5, 300)
COMPLETE = Complete("acme", 7, 0, 1, (0,), 2, 3, f"{15:032x}")
EMPTY = Complete("acme", 7, 0, 1, (0,), 0, 0, f"{0:032x}")

HALF = Part(0, 1, Digest(2, 10), 400)
WHOLE = Part(0, 2, Digest(3, 15), 700)
STAGING = Staging(7, 1, (HALF,))
FULL = Staging(7, 1, (WHOLE,))
STAGED = Staged(7, 1, (replace(WHOLE, complete=True),))
INSTALLED = Answer(1, Installed("acme", 7, 2, 3, 700, ((0, 3, f"{15:032x}"),)))


def same(state: State | None, *events: Event) -> list[tuple[State | None, Event, Step]]:
    return [(state, event, Step(state)) for event in events]


def acknowledged(total: int) -> Acknowledge:
    return Acknowledge(0, Received("acme", 7, 2, total))


def old(event: Taken | Complete, epoch: int) -> Event:
    if isinstance(event, Taken):
        return replace(event, chunk=replace(event.chunk, epoch=epoch))
    return replace(event, epoch=epoch)


NONE_YET = Installed("acme", 7, 2, 0, 0, ((0, 0, f"{0:032x}"),))

CASES: list[tuple[State | None, Event, Step]] = [
    (None, FIRST, Step(STAGING, (acknowledged(400),))),
    (None, EMPTY, Step(Staged(7, 1, (Part(0, complete=True),)), (Answer(1, NONE_YET),))),
    *same(None, old(FIRST, 4), old(COMPLETE, 4), Abort("acme", 7), Placed("acme", 7, 3), Commit("acme", 4, 2)),
    (STAGING, SECOND, Step(FULL, (acknowledged(700),))),
    *same(STAGING, FIRST, old(SECOND, 6), old(COMPLETE, 6), Abort("acme", 6), Placed("acme", 6, 3)),
    (FULL, COMPLETE, Step(STAGED, (INSTALLED,))),
    *same(FULL, Commit("acme", 4, 2)),
    (STAGING, Abort("acme", 7), Step(None, (Sweep(7),))),
    (STAGING, Abort("acme", 9), Step(None, (Sweep(7),))),
    (STAGING, Placed("acme", 8, 3), Step(None, (Sweep(7),))),
    (STAGING, old(FIRST, 8), Step(Staging(8, 1, (HALF,)), (Sweep(7), Acknowledge(0, Received("acme", 8, 2, 400))))),
    (STAGED, Commit("acme", 7, 2), Step(None, (GoLive(7),))),
    *same(STAGED, FIRST, SECOND, COMPLETE, old(COMPLETE, 6), Abort("acme", 6)),
    (STAGED, Abort("acme", 7), Step(None, (Sweep(7),))),
    (STAGED, Placed("acme", 7, 3), Step(None, (Sweep(7),))),
    (STAGED, old(FIRST, 8), Step(Staging(8, 1, (HALF,)), (Sweep(7), Acknowledge(0, Received("acme", 8, 2, 400))))),
]


@pytest.mark.parametrize(("state", "event", "expected"), CASES, ids=lambda value: type(value).__name__)
def test_step(state: State | None, event: Event, expected: Step) -> None:
    assert step(state, event, tenant="acme", server=2, past=PAST) == expected


def test_the_table_has_every_pair() -> None:
    covered = {(type(state), type(event)) for state, event, _ in CASES}
    assert covered == set(product((type(None), Staging, Staged), get_args(Event)))


@pytest.mark.parametrize("state", [None, STAGING, FULL, replace(STAGED, epoch=8)])
def test_what_is_not_installed_cannot_be_committed(state: State | None) -> None:
    with pytest.raises(LocalProtocolError, match="has not installed"):
        step(state, Commit("acme", 7, 2), tenant="acme", server=2, past=PAST)


@pytest.mark.parametrize(
    ("state", "event", "reason"),
    [
        (STAGING, replace(SECOND, chunk=replace(SECOND.chunk, number=3)), "chunk 2 of server 0 is missing"),
        (FULL, replace(COMPLETE, rows=4), "sent 4 rows"),
        (FULL, replace(COMPLETE, checksum=f"{16:032x}"), "checksum"),
        (FULL, replace(COMPLETE, chunks=3), "in 3 chunks"),
        (None, COMPLETE, "0 rows in 0 chunks"),
    ],
)
def test_what_does_not_agree_is_refused_once(state: State | None, event: Event, reason: str) -> None:
    decided = step(state, event, tenant="acme", server=2, past=PAST)
    (answer,) = decided.effects
    assert isinstance(answer, Answer)
    assert isinstance(answer.record, Refused)
    assert reason in answer.record.reason
    assert isinstance(decided.state, Staging)
    assert decided.state.refused
    assert not wanted(decided.state, 7, 0, 99, PAST)
    again = step(decided.state, COMPLETE, tenant="acme", server=2, past=PAST)
    assert again == Step(decided.state)


def test_two_sources_are_awaited() -> None:
    one = replace(COMPLETE, sources=(0, 3))
    decided = step(FULL, one, tenant="acme", server=2, past=PAST)
    assert decided == Step(replace(FULL, parts=(replace(WHOLE, complete=True),)))
    other = replace(EMPTY, source=3, sources=(0, 3))
    decided = step(decided.state, other, tenant="acme", server=2, past=PAST)
    assert isinstance(decided.state, Staged)
    (answer,) = decided.effects
    assert isinstance(answer, Answer)
    assert isinstance(answer.record, Installed)
    assert [(source, rows) for source, rows, _ in answer.record.parts] == [(0, 3), (3, 0)]


@pytest.mark.parametrize(
    ("state", "epoch", "number", "is_wanted"),
    [
        (None, 4, 1, False),
        (None, 5, 1, True),
        (STAGING, 6, 2, False),
        (STAGING, 7, 1, False),
        (STAGING, 7, 2, True),
        (STAGING, 8, 1, True),
        (STAGED, 7, 3, False),
        (STAGED, 8, 1, True),
    ],
)
def test_which_chunks_are_wanted(state: State | None, epoch: int, number: int, is_wanted: bool) -> None:
    assert wanted(state, epoch, 0, number, PAST) is is_wanted
