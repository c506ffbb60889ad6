"""The router's part of a migration: every state with every event, deadlines, and what is answered to commands."""

from dataclasses import replace
from itertools import product
from typing import get_args

import pytest

from app.protocol.control import (
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
from app.protocol.migration import (
    AbortOrdered,
    Arrived,
    DelayAgain,
    Delivered,
    Due,
    Event,
    Gated,
    Step,
    Tell,
    Tick,
    ViewAdopted,
    deadline_ms,
    step,
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
)
from app.protocol.parking import Keep, Lot, Park, Release, ReleaseKept

NOW = Moment("acme", router=1, servers=4, up=frozenset({0, 1, 2, 3}), closed=True, now_ms=10_000)
PLACE = Placement(0, 4, 6)
TRIED = replace(PLACE, tried=7)
MOVE = Move("c1", 0, 2, (0,), 60_000, None, 2_000, offline=False, ordered_ms=9_000)
ORDER = Order("c1", 2, 60_000, 2_000)
OTHER = Order("c2", 3, 60_000, 2_000)
LOT = Lot(parked=3, released=1, position=40)
DONE = Outcome(None, 5, 900, 300, ((0, 5, "ab"),))

SETTLED = Settled(PLACE)
COPYING = Copying(TRIED, MOVE, (), 9_000)
CUTTING = Cutting(TRIED, MOVE, replace(LOT, released=0, dues=((12_000, 3),)), 9_700, 9_700)
RELEASING = Releasing(replace(PLACE, home=2, epoch=7, tried=7), MOVE, LOT, DONE)

READY, OLD_READY = Ready("acme", 7, 0), Ready("acme", 6, 0)
PROGRESS = Progress("acme", 7, 0, 10, 1_000)
INSTALLED = Installed("acme", 7, 2, 5, 900, ((0, 5, "ab"),))
REFUSED = Refused("acme", 7, 2, "no")
MEASURED = Measured("acme", "c9", 0, 3, 12, 1, 4_000)
ARRIVED = Arrived(100, 40)
DUE = Due(7, 12_000)
DELIVERED = Delivered(7, 2, 3, 55)


def rejected(command: str, reason: str) -> Announce:
    return Announce("command-rejected", command, True, {"tenant": "acme", "reason": reason})


def phase(name: str) -> Announce:
    return Announce("migration-phase", None, False, {"tenant": "acme", "epoch": 7, "phase": name})


def failed(reason: str, parked: int = 0, pause_ms: int = 0) -> Announce:
    fields = {"tenant": "acme", "from": 0, "to": 2, "epoch": 7, "parked": parked, "redelayed": 0, "rows": 0, "bytes": 0}
    return Announce("migration-failed", "c1", True, {**fields, "pause_ms": pause_ms, "reason": reason})


def history(reason: str | None) -> tuple[Past, ...]:
    return (Past(7, 0, 2, 10_000, "c1", reason),)


STARTED = Announce("migration-started", "c1", False, {"tenant": "acme", "from": 0, "to": 2, "epoch": 7, "sources": [0]})
ABORTED = Announce("migration-aborted", "c3", True, {"tenant": "acme", "epoch": 7})
SUCCEEDED = Announce(
    "migration-succeeded",
    "c1",
    True,
    {
        "tenant": "acme",
        "from": 0,
        "to": 2,
        "epoch": 7,
        "parked": 3,
        "redelayed": 0,
        "rows": 5,
        "bytes": 900,
        "pause_ms": 300,
        "reason": None,
        "certificate": [{"source": 0, "target": 2, "rows": 5, "checksum": "ab"}],
    },
)
ABORTS = (Tell(0, Abort("acme", 7)), Tell(2, Abort("acme", 7)))


def same(state: State, *events: Event) -> list[tuple[State, Event, Step]]:
    return [(state, event, Step(state)) for event in events]


def fails(state: Copying | Cutting, event: Event, reason: str, *more: Announce) -> tuple[State, Event, Step]:
    """Copying parks nothing, so its failure is at once its end."""
    place = replace(TRIED, history=history(reason))
    if isinstance(state, Copying):
        return state, event, Step(Settled(place), (*ABORTS, *more, phase("releasing"), failed(reason)))
    outcome = Outcome(reason, 0, 0, 300, ())
    lot = replace(state.lot, dues=())
    return state, event, Step(Releasing(place, MOVE, lot, outcome), (*ABORTS, *more, phase("releasing")))


CASES: list[tuple[State, Event, Step]] = [
    (SETTLED, ARRIVED, Step(SETTLED, (Forward(),))),
    (
        SETTLED,
        ORDER,
        Step(
            Copying(TRIED, replace(MOVE, ordered_ms=10_000), (), 10_000),
            (Tell(0, Prepare("acme", 7, 4, 1, (0,), 2)), STARTED),
        ),
    ),
    (SETTLED, AbortOrdered("c3"), Step(SETTLED, (rejected("c3", "no-migration"),))),
    *same(SETTLED, READY, PROGRESS, INSTALLED, REFUSED, DUE, DELIVERED, ViewAdopted(frozenset({0})), Tick()),
    (COPYING, ARRIVED, Step(COPYING, (Forward(),))),
    (
        COPYING,
        READY,
        Step(Cutting(TRIED, MOVE, Lot(), 10_000, 10_000), (Tell(0, Cut("acme", 7)), phase("cutting"))),
    ),
    *same(COPYING, OLD_READY, Ready("acme", 7, 3), INSTALLED, DUE, DELIVERED, ORDER, replace(PROGRESS, epoch=6)),
    (COPYING, PROGRESS, Step(replace(COPYING, progress_ms=10_000))),
    (COPYING, OTHER, Step(COPYING, (rejected("c2", "migration-under-way"),))),
    fails(COPYING, AbortOrdered("c3"), "aborted", ABORTED),
    fails(COPYING, REFUSED, "server 2: no"),
    fails(COPYING, ViewAdopted(frozenset({0})), "view-change"),
    *same(COPYING, replace(REFUSED, epoch=6), ViewAdopted(frozenset({3})), Tick()),
    (
        CUTTING,
        ARRIVED,
        Step(
            replace(CUTTING, lot=replace(CUTTING.lot, parked=4, dues=((12_000, 4),))),
            (Park(4, 12_000, new_due=False),),
        ),
    ),
    (
        CUTTING,
        DUE,
        Step(
            replace(CUTTING, lot=replace(CUTTING.lot, redelayed=3, dues=((14_000, 3),))),
            (DelayAgain(7, 14_000),),
        ),
    ),
    (CUTTING, PROGRESS, Step(replace(CUTTING, progress_ms=10_000))),
    (
        CUTTING,
        INSTALLED,
        Step(
            Releasing(
                replace(TRIED, home=2, epoch=7, history=history(None)), MOVE, replace(CUTTING.lot, dues=()), DONE
            ),
            (
                Tell(0, Commit("acme", 7, 2)),
                Tell(2, Commit("acme", 7, 2)),
                Tell(1, Placed("acme", 7, 2)),
                Tell(3, Placed("acme", 7, 2)),
                phase("releasing"),
            ),
        ),
    ),
    *same(CUTTING, READY, replace(INSTALLED, epoch=6), replace(INSTALLED, server=3), replace(PROGRESS, epoch=6)),
    *same(CUTTING, DELIVERED, ORDER, Due(6, 12_000), Due(7, 11_000)),
    (CUTTING, OTHER, Step(CUTTING, (rejected("c2", "migration-under-way"),))),
    fails(CUTTING, AbortOrdered("c3"), "aborted", ABORTED),
    fails(CUTTING, REFUSED, "server 2: no"),
    fails(CUTTING, ViewAdopted(frozenset({2, 3})), "view-change"),
    *same(CUTTING, replace(REFUSED, epoch=6), ViewAdopted(frozenset({1})), Tick()),
    (
        RELEASING,
        ARRIVED,
        Step(replace(RELEASING, lot=replace(LOT, parked=4, kept=1, kept_from=4, kept_bytes=100)), (Keep(4),)),
    ),
    (
        RELEASING,
        DELIVERED,
        Step(Settled(RELEASING.placement), (Release(2, 3), SUCCEEDED)),
    ),
    (
        RELEASING,
        Delivered(7, 1, 2, 50),
        Step(replace(RELEASING, lot=replace(LOT, released=2, position=50)), (Release(2, 2),)),
    ),
    (RELEASING, OTHER, Step(RELEASING, (rejected("c2", "migration-under-way"),))),
    (RELEASING, AbortOrdered("c3"), Step(RELEASING, (rejected("c3", "too-late"),))),
    *same(RELEASING, ORDER, READY, PROGRESS, INSTALLED, REFUSED, DUE, replace(DELIVERED, epoch=6)),
    *same(RELEASING, ViewAdopted(frozenset({0, 2})), Tick()),
]


@pytest.mark.parametrize(("state", "event", "expected"), CASES, ids=lambda value: type(value).__name__)
def test_step(state: State, event: Event, expected: Step) -> None:
    assert step(state, event, NOW) == expected


def test_the_table_has_every_pair() -> None:
    covered = {(type(state), type(event)) for state, event, _ in CASES}
    assert covered == set(product(get_args(State), get_args(Gated)))


@pytest.mark.parametrize("state", [SETTLED, COPYING, CUTTING, RELEASING], ids=lambda state: type(state).__name__)
def test_a_plan_is_answered_in_every_state(state: State) -> None:
    fields = {"tenant": "acme", "from": state.home, "to": 3, "blocked": [], "sessions": 12, "waiting": 1}
    answer = Announce("migration-plan", "c9", True, {**fields, "bytes": 4_000})
    assert step(state, MEASURED, NOW) == Step(state, (answer,))


@pytest.mark.parametrize(
    ("order", "moment", "reason"),
    [
        (replace(ORDER, to=4), NOW, "unknown-server"),
        (replace(ORDER, to=-1), NOW, "unknown-server"),
        (replace(ORDER, to=0), NOW, "same-server"),
        (ORDER, replace(NOW, closed=False), "view-change-under-way"),
        (ORDER, replace(NOW, up=frozenset({0, 1})), "server-down"),
        (ORDER, replace(NOW, up=frozenset({1, 2})), "server-down"),
        (replace(ORDER, from_backups=True), replace(NOW, up=frozenset({0, 1})), "server-down"),
        (replace(ORDER, to=None, undo=True), NOW, "nothing-to-undo"),
    ],
)
def test_why_an_order_is_rejected(order: Order, moment: Moment, reason: str) -> None:
    assert step(SETTLED, order, moment) == Step(SETTLED, (rejected("c1", reason),))


def test_a_dry_run_asks_the_source_and_changes_nothing() -> None:
    decided = step(SETTLED, replace(ORDER, dry_run=True), NOW)
    assert decided == Step(SETTLED, (Tell(0, Measure("acme", "c1", 1, 2)),))


def test_a_dry_run_says_what_would_block() -> None:
    decided = step(SETTLED, replace(ORDER, dry_run=True), replace(NOW, up=frozenset({0, 1})))
    assert [(e.event, e.fields["blocked"]) for e in decided.effects if isinstance(e, Announce)] == [
        ("migration-plan", ["server-down"])
    ]
    unknown = step(SETTLED, replace(ORDER, to=9, dry_run=True), NOW)
    assert unknown.effects == (rejected("c1", "unknown-server"),)


def test_an_offline_move_parks_from_the_order_on() -> None:
    decided = step(SETTLED, replace(ORDER, offline=True), NOW)
    assert isinstance(decided.state, Cutting)
    assert [e.record for e in decided.effects if isinstance(e, Tell)] == [
        Prepare("acme", 7, 4, 1, (0,), 2),
        Cut("acme", 7),
    ]


def test_a_tenant_whose_home_is_down_is_gathered_from_every_server_that_is_up() -> None:
    moment = replace(NOW, up=frozenset({1, 2, 3}))
    state = step(SETTLED, replace(ORDER, from_backups=True), moment).state
    for server in (3, 1, 2):
        assert isinstance(state, Copying)
        state = step(state, replace(READY, server=server), moment).state
    assert isinstance(state, Cutting)
    # Any change of the view moves sessions between its sources.
    assert isinstance(step(state, ViewAdopted(frozenset({3})), moment).state, Settled)


def test_undo_goes_back_to_where_the_last_move_came_from() -> None:
    state = Settled(replace(PLACE, home=2, history=(Past(3, 1, 2, 0, "c0"), Past(4, 2, 3, 0, "c0", "aborted"))))
    decided = step(state, replace(ORDER, to=None, undo=True), NOW)
    assert isinstance(decided.state, Copying)
    assert decided.state.move.to == 1


@pytest.mark.parametrize(
    ("state", "due"),
    [
        (SETTLED, None),
        (COPYING, 69_000),
        (CUTTING, 69_700),
        (replace(CUTTING, move=replace(MOVE, max_pause_ms=500)), 10_200),
        (RELEASING, None),
    ],
)
def test_the_deadline_of_a_phase(state: State, due: int | None) -> None:
    assert deadline_ms(state) == due
    if due is None or isinstance(state, Settled | Releasing):
        return
    assert step(state, Tick(), replace(NOW, now_ms=due - 1)) == Step(state)
    late = step(state, Tick(), replace(NOW, now_ms=due)).state
    assert isinstance(late, Settled | Releasing)
    assert late.placement.history[-1].reason == ("max-pause" if due == 10_200 else "timeout")


def test_what_is_kept_leaves_behind_the_last_parked_task() -> None:
    kept = replace(RELEASING, lot=replace(LOT, parked=5, kept=2, kept_from=4, kept_bytes=9))
    decided = step(kept, DELIVERED, NOW)
    assert isinstance(decided.state, Settled)
    assert decided.effects[:2] == (Release(2, 3), ReleaseKept(4, 5))


def test_a_long_history_is_cut() -> None:
    place = PLACE
    for epoch in range(100):
        place = place.with_past(Past(epoch, 0, 1, 0, "c"))
    assert [past.epoch for past in place.history] == list(range(80, 100))
