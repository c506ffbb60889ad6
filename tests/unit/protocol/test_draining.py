"""Emptying a server: every case of a look, and a server that empties in the end whatever is refused."""

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from app.protocol.draining import (
    AT_ONCE,
    ROUNDS,
    STILL_MS,
    TRIES,
    Draining,
    Effect,
    Finish,
    List,
    Look,
    Migrate,
    Ordered,
    step,
    target_of,
)

NEW = Draining("d", 0)
NOW = 1_000_000


def look(*here: str, moving: tuple[str, ...] = (), listed: bool = False, at: int = NOW) -> Look:
    return Look(at, here, frozenset(moving), listed)


def ordered(tenant: str = "a", tries: int = 1, seen_ms: int = NOW) -> Draining:
    return replace(NEW, ordered=(Ordered(tenant, tries, seen_ms),))


@pytest.mark.parametrize(
    ("state", "seen", "effects"),
    [
        (NEW, look("a"), (Migrate("a", "d/a/1"),)),
        (NEW, look(), (List(),)),
        (NEW, look(listed=True), (Finish(0, ()),)),
        (replace(NEW, rounds=ROUNDS), look(), (Finish(0, ()),)),
        (ordered(), look("a"), ()),
        (ordered(seen_ms=NOW - STILL_MS), look("a", moving=("a",)), ()),
        (ordered(seen_ms=NOW - STILL_MS), look("a"), (Migrate("a", "d/a/2"),)),
        (ordered(tries=TRIES, seen_ms=NOW - STILL_MS), look("a"), (List(),)),
        (ordered(tries=TRIES, seen_ms=NOW - STILL_MS), look("a", listed=True), (Finish(0, ("a",)),)),
        (ordered(), look(listed=True), (Finish(1, ()),)),
        (ordered(), look("b"), (Migrate("b", "d/b/1"),)),
    ],
)
def test_a_look(state: Draining, seen: Look, effects: tuple[Effect, ...]) -> None:
    assert step(state, seen).effects == effects


def test_no_more_than_a_few_are_under_way() -> None:
    decided = step(NEW, look(*(f"t{number}" for number in range(AT_ONCE + 5))))
    assert len(decided.effects) == AT_ONCE
    assert step(decided.state or NEW, look(*(f"t{number}" for number in range(AT_ONCE + 5)))).effects == ()


@given(st.sets(st.integers(0, 40)), st.sets(st.integers(0, 40)), st.randoms(use_true_random=False))
def test_it_ends_whatever_leaves_and_whatever_does_not(numbers: set[int], stubborn: set[int], rng: object) -> None:
    here = [f"t{number}" for number in sorted(numbers)]
    stays = {f"t{number}" for number in numbers & stubborn}
    state: Draining | None = NEW
    now, listed, finish = NOW, False, None
    for _ in range(10_000):
        assert state is not None
        decided = step(state, Look(now, here, frozenset(), listed))
        state = decided.state
        assert state is None or len(state.ordered) <= AT_ONCE
        for effect in decided.effects:
            match effect:
                case Migrate(tenant):
                    if tenant not in stays and rng.random() < 0.7:  # type: ignore[attr-defined]
                        here.remove(tenant)
                case List():
                    listed = True
                case Finish():
                    finish = effect
        if finish is not None:
            break
        now += 1_000
    assert finish is not None
    assert finish.moved + len(finish.failed) == len(numbers)
    assert stays <= set(finish.failed)


def test_a_tenant_goes_to_the_next_of_its_order() -> None:
    assert target_of("acme", 0, 1) is None
    for server in range(5):
        assert target_of("acme", server, 5) not in (None, server)
