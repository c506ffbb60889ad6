"""The steward in random histories of a cluster: by Hypothesis, and with one rule changed at a time."""

import random
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest

from app.protocol import homes, views
from app.protocol.markers import Closed
from app.protocol.moves import Announce
from tests.property.mutation import Choose, killed_after
from tests.property.steward_world import Steward
from tests.simulation.machine import by_hypothesis

Break = Callable[[pytest.MonkeyPatch], None]


def walk(choose: Choose) -> Steward:
    world = Steward(choose)
    try:
        for _ in range(60):
            world.happen()
        world.settle()
    except Exception as error:
        error.add_note("\n".join(world.told))
        raise
    return world


def test_histories() -> None:
    assert killed_after(walk, histories=400) is None


@pytest.mark.soak
def test_many_histories() -> None:
    assert killed_after(walk, histories=100_000) is None


def test_the_histories_reach_what_they_are_about() -> None:
    told = [line for seed in range(200) for line in walk(random.Random(seed).choice).told]
    views_told = [line for line in told if line.startswith("View(")]
    assert any("failed=(0, " in line for line in views_told)
    assert any("restored=(0, " in line for line in views_told)


def test_by_hypothesis() -> None:
    by_hypothesis(Steward, histories=30)


# -- one rule changed -------------------------------------------------------------------------------------------------


def _see(patch: pytest.MonkeyPatch, change: Callable[[homes.Homes, homes.Seen], homes.Homes]) -> None:
    real = homes.see
    patch.setattr(homes, "see", lambda known, seen, down, now: real(change(known, seen), seen, down, now))


def takes_a_leave_for_a_death(patch: pytest.MonkeyPatch) -> None:
    _see(patch, lambda known, seen: replace(known, leaving={}))


def takes_a_death_for_a_leave(patch: pytest.MonkeyPatch) -> None:
    _see(patch, lambda known, seen: replace(known, leaving=dict(known.workers)))


def believes_an_old_word(patch: pytest.MonkeyPatch) -> None:
    """Whoever said once that it leaves has left in good order whenever it is gone."""
    real = homes.leave
    told: set[str] = set()

    def leave(known: homes.Homes, said: Any) -> homes.Homes:
        told.add(said.worker)
        return real(known, said)

    patch.setattr(homes, "leave", leave)
    _see(
        patch,
        lambda known, seen: replace(
            known, leaving={name: known.workers.get(name, 0) for name in told} if told else known.leaving
        ),
    )


def keeps_homes_over_joins(patch: pytest.MonkeyPatch) -> None:
    """A server stays at home where it was first."""
    real = homes.see

    def see(known: homes.Homes, seen: homes.Seen, down: frozenset[int], now_ms: int) -> Any:
        now, died = real(known, seen, down, now_ms)
        gone = {name: now_ms for name in died if name in known.homes}
        kept = tuple(was or new for was, new in zip(known.homes, now.homes, strict=True))
        return replace(now, homes=kept, lost={**now.lost, **gone}), died

    patch.setattr(homes, "see", see)


def does_not_wait(patch: pytest.MonkeyPatch) -> None:
    real = homes.orphans
    patch.setattr(homes, "orphans", lambda known, down, now, after: real(known, down, now, 0))


def has_no_survivor(patch: pytest.MonkeyPatch) -> None:
    """The count of servers is one too many where it is compared, and nowhere else."""
    real = views.step

    def step(state: Any, event: Any, moment: Any) -> Any:
        if getattr(event, "server", 0) == moment.servers:
            return real(state, event, moment)
        decided = real(state, event, replace(moment, servers=moment.servers + 1))
        if isinstance(decided.state, views.Changing):
            missing = decided.state.missing - {moment.servers}
            return replace(decided, state=replace(decided.state, missing=missing))
        return decided

    patch.setattr(views, "step", step)


def brings_back_what_an_operator_failed(patch: pytest.MonkeyPatch) -> None:
    real = homes.returning
    patch.setattr(homes, "returning", lambda known, down, sticky, now: real(known, down, frozenset(), now))


def forgets_nobody(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(homes, "overdue", lambda known, now, after: frozenset())


def ends_what_is_under_way_twice(patch: pytest.MonkeyPatch) -> None:
    real = views.step

    def step(state: Any, event: Any, moment: Any) -> Any:
        decided = real(state, event, moment)
        if isinstance(state, views.Changing) and isinstance(event, views.FailOrdered):
            again = event.id in [order.id for order in state.doing]
            ends = (Announce("command-rejected", event.id, True, {}),) if again else ()
            return replace(decided, effects=(*decided.effects, *ends))
        return decided

    patch.setattr(views, "step", step)


def follows_too_soon(patch: pytest.MonkeyPatch) -> None:
    real = views.step

    def step(state: Any, event: Any, moment: Any) -> Any:
        if isinstance(state, views.Changing) and isinstance(event, Closed) and len(state.missing) < 3:
            state = replace(state, missing=state.missing & {event.server})
        return real(state, event, moment)

    patch.setattr(views, "step", step)


def counts_old_reports(patch: pytest.MonkeyPatch) -> None:
    real = views.step

    def step(state: Any, event: Any, moment: Any) -> Any:
        if isinstance(event, Closed):
            event = replace(event, epoch=state.known.epoch)
        return real(state, event, moment)

    patch.setattr(views, "step", step)


def does_both_at_once(patch: pytest.MonkeyPatch) -> None:
    real = views._publish

    def publish(known: Any, failed: Any, restored: Any, *rest: Any) -> Any:
        moment = rest[-1]
        back = homes.returning(known.homes, known.down, known.sticky, moment.now_ms)
        return real(known, failed, restored | (back & known.down), *rest)

    patch.setattr(views, "_publish", publish)


BREAKS: list[Break] = [
    takes_a_leave_for_a_death,
    takes_a_death_for_a_leave,
    believes_an_old_word,
    keeps_homes_over_joins,
    does_not_wait,
    has_no_survivor,
    brings_back_what_an_operator_failed,
    forgets_nobody,
    ends_what_is_under_way_twice,
    follows_too_soon,
    counts_old_reports,
    does_both_at_once,
]


@pytest.mark.parametrize("rule", BREAKS, ids=lambda rule: rule.__name__)
def test_without_the_rule_a_history_breaks(rule: Break, monkeypatch: pytest.MonkeyPatch) -> None:
    rule(monkeypatch)
    assert killed_after(walk, histories=2_000) is not None
