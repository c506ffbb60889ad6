"""Failure detection between workers: every state meets every event, and nobody is declared dead without proof."""

from itertools import product
from typing import get_args

import pytest
from hypothesis import given
from hypothesis import strategies as st

from app.protocol.liveness import (
    SILENCE_S,
    STALL_S,
    Alive,
    Beat,
    Broken,
    Closed,
    Dead,
    Departed,
    Event,
    Left,
    Peer,
    Refused,
    Step,
    Tick,
    Unknown,
    evictor,
    step,
)

SOON = Tick(10.5, 10.25)
LATE = Tick(10.0 + SILENCE_S, 9.9 + SILENCE_S)
STALLED = Tick(20.0, 20.0 - STALL_S)

CASES: list[tuple[Peer, Event, Step]] = [
    (Unknown(), Beat(10.0), Step(Alive(10.0))),
    (Unknown(), Closed(), Step(Unknown())),
    (Unknown(), Refused(), Step(Unknown())),
    (Unknown(), Left(), Step(Departed())),
    (Unknown(), LATE, Step(Unknown())),
    (Alive(10.0), Beat(11.0), Step(Alive(11.0))),
    (Alive(10.0), Closed(), Step(Broken(10.0))),
    (Alive(10.0), Refused(), Step(Dead(), declare_dead=True)),
    (Alive(10.0), Left(), Step(Departed())),
    (Alive(10.0), SOON, Step(Alive(10.0))),
    (Alive(10.0), LATE, Step(Dead(), declare_dead=True)),
    (Alive(10.0), STALLED, Step(Alive(20.0))),
    (Broken(10.0), Beat(11.0), Step(Alive(11.0))),
    (Broken(10.0), Closed(), Step(Broken(10.0))),
    (Broken(10.0), Refused(), Step(Dead(), declare_dead=True)),
    (Broken(10.0), Left(), Step(Departed())),
    (Broken(10.0), SOON, Step(Broken(10.0))),
    (Broken(10.0), LATE, Step(Dead(), declare_dead=True)),
    (Broken(10.0), STALLED, Step(Broken(20.0))),
    *(
        (peer, event, Step(peer))
        for peer in (Dead(), Departed())
        for event in (Beat(1), Closed(), Refused(), Left(), LATE)
    ),
]


@pytest.mark.parametrize(("peer", "event", "expected"), CASES)
def test_step(peer: Peer, event: Event, expected: Step) -> None:
    assert step(peer, event) == expected


def test_the_table_has_every_pair() -> None:
    covered = {(type(peer), type(event)) for peer, event, _ in CASES}
    assert covered == set(product(get_args(Peer), get_args(Event)))


@given(
    st.lists(
        st.one_of(
            st.just("beat"),
            st.just("closed"),
            st.just("tick"),
            st.floats(0.01, SILENCE_S - 0.01).map(lambda s: ("wait", s)),
        )
    )
)
def test_a_worker_that_beats_in_time_is_never_declared_dead(events: list[object]) -> None:
    """Closed connections and late beats alone are no proof: only silence or a refused connection is."""
    peer: Peer = Alive(0.0)
    now = last_beat = last_tick = 0.0
    for event in events:
        if isinstance(event, tuple):
            now = min(now + event[1], last_beat + SILENCE_S - 0.01)
            continue
        if event == "beat":
            last_beat = now
            happened: Event = Beat(now)
        elif event == "closed":
            happened = Closed()
        else:
            happened = Tick(now, last_tick)
            last_tick = now
        decided = step(peer, happened)
        assert not decided.declare_dead
        peer = decided.peer


def test_the_leader_evicts_or_else_the_first_by_name() -> None:
    members = {"w1", "w2", "w3"}
    assert evictor("w2", members, set()) == "w2"
    assert evictor("w2", members, {"w3"}) == "w2"
    assert evictor("w2", members, {"w2"}) == "w1"
    assert evictor("w2", members, {"w1", "w2"}) == "w3"
    assert evictor("w2", members, members) is None
    assert evictor("gone", members, set()) == "w1"
