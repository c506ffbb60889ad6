"""The steward: every state with every event, why orders are rejected, and how views follow each other."""

from dataclasses import replace
from itertools import product
from typing import Any, get_args

import pytest

from app.protocol.homes import Homes, Seen
from app.protocol.markers import Closed, Leaving, View, ViewClosed
from app.protocol.moves import Announce
from app.protocol.views import (
    ALARM_MS,
    Calm,
    Changing,
    Event,
    FailOrdered,
    ForgetOrdered,
    Known,
    Moment,
    Order,
    Publish,
    RestoreOrdered,
    State,
    Step,
    Tick,
    due_ms,
    first,
    step,
)

NOW = Moment(servers=4, rehome_after_ms=30_000, forget_after_ms=600_000, now_ms=100_000)
HOSTS = ("w1", "w1", "w2", "w2")
HOMES = Homes(HOSTS, HOSTS, {"w1": 1, "w2": 1})
KNOWN = Known(4, frozenset({3}), frozenset({3}), HOMES)
CALM = Calm(KNOWN)
FAILING = replace(KNOWN, epoch=5, down=frozenset({1, 3}), sticky=frozenset({1, 3}))
ALL = frozenset(range(4))
DOING = (Order("c1", "fail", 1),)
CHANGING = Changing(FAILING, ALL, 160_000, DOING)
LAST = replace(CHANGING, missing=frozenset({2}))
SEEN = Seen({"w1": 1, "w2": 1}, HOSTS, settled=True)
VIEW = View(5, (1, 3), (1,), (), ((1, "w1"),))


def rejected(command: str, reason: str, **fields: Any) -> Announce:
    return Announce("command-rejected", command, True, {**fields, "reason": reason})


def ended(name: str, command: str, view: int, server: int) -> Announce:
    return Announce(name, command, True, {"view": view, "server": server, "manager": HOSTS[server]})


FAILED = Announce("server-failed", "c1", False, {"view": 5, "server": 1, "manager": "w1"})

CASES: list[tuple[State, Event, Step]] = [
    (CALM, SEEN, Step(CALM)),
    (CALM, Leaving("w2", 1), Step(Calm(replace(KNOWN, homes=replace(HOMES, leaving={"w2": 1}))))),
    (CALM, FailOrdered("c1", 1), Step(CHANGING, (FAILED, Publish(VIEW)))),
    (
        CALM,
        RestoreOrdered("c2", 3),
        Step(
            Changing(Known(5, frozenset(), frozenset(), HOMES), ALL, 160_000, (Order("c2", "restore", 3),)),
            (Publish(View(5, (), (), (3,), ((3, "w2"),))),),
        ),
    ),
    (CALM, ForgetOrdered("c3", "w1"), Step(CALM, (rejected("c3", "worker-alive", worker="w1"),))),
    (CALM, Closed(2, 4), Step(CALM)),
    (CALM, Tick(), Step(CALM)),
    (CHANGING, SEEN, Step(CHANGING)),
    (CHANGING, Leaving("w2", 0), Step(CHANGING)),
    (CHANGING, FailOrdered("c1", 1), Step(CHANGING)),
    (CHANGING, FailOrdered("c4", 2), Step(replace(CHANGING, queue=(Order("c4", "fail", 2),)))),
    (CHANGING, RestoreOrdered("c5", 1), Step(replace(CHANGING, queue=(Order("c5", "restore", 1),)))),
    (CHANGING, ForgetOrdered("c3", "w9"), Step(CHANGING, (rejected("c3", "unknown-worker", worker="w9"),))),
    (CHANGING, Closed(2, 5), Step(replace(CHANGING, missing=ALL - {2}))),
    (CHANGING, Closed(2, 4), Step(CHANGING)),
    (CHANGING, Tick(), Step(CHANGING)),
    (LAST, Closed(2, 5), Step(Calm(FAILING), (Publish(ViewClosed(5)), ended("server-closed", "c1", 5, 1)))),
    (
        replace(LAST, queue=(Order("c5", "restore", 1), Order("c6", "fail", 2))),
        Closed(2, 5),
        Step(
            Changing(
                Known(6, frozenset({3}), frozenset({3}), HOMES),
                ALL,
                160_000,
                (Order("c5", "restore", 1),),
                (Order("c6", "fail", 2),),
            ),
            (
                Publish(ViewClosed(5)),
                ended("server-closed", "c1", 5, 1),
                Publish(View(6, (3,), (), (1,), ((1, "w1"),))),
            ),
        ),
    ),
]


@pytest.mark.parametrize(("state", "event", "expected"), CASES, ids=lambda value: type(value).__name__)
def test_step(state: State, event: Event, expected: Step) -> None:
    assert step(state, event, NOW) == expected


def test_the_table_has_every_pair() -> None:
    covered = {(type(state), type(event)) for state, event, _ in CASES}
    assert covered == set(product(get_args(State), get_args(Event)))


@pytest.mark.parametrize(
    ("state", "event", "reason"),
    [
        (CALM, FailOrdered("c", 4), "unknown-server"),
        (CALM, FailOrdered("c", -1), "unknown-server"),
        (CALM, RestoreOrdered("c", 4), "unknown-server"),
        (CALM, FailOrdered("c", 3), "server-down"),
        (CALM, RestoreOrdered("c", 1), "server-up"),
        (Calm(replace(KNOWN, down=ALL - {1}, sticky=ALL - {1})), FailOrdered("c", 1), "last-server"),
        (CHANGING, FailOrdered("c", 1), "server-down"),
        (replace(CHANGING, queue=(Order("a", "restore", 1),)), RestoreOrdered("c", 1), "server-up"),
        (replace(CHANGING, queue=(Order("a", "fail", 0),)), FailOrdered("c", 2), "last-server"),
    ],
)
def test_why_an_order_is_rejected(state: State, event: Any, reason: str) -> None:
    assert step(state, event, NOW) == Step(state, (rejected("c", reason, server=event.server),))


def test_orders_that_wait_are_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("app.protocol.views.ORDERS_MAX", 1)
    full = replace(CHANGING, queue=(Order("a", "fail", 0),))
    assert step(full, RestoreOrdered("c", 1), NOW).effects == (rejected("c", "too-many-orders", server=1),)


def test_orders_of_one_kind_make_one_view() -> None:
    queue = (Order("a", "fail", 0), Order("b", "fail", 2))
    known = replace(KNOWN, down=frozenset(), sticky=frozenset())
    decided = step(Changing(known, frozenset({0}), 160_000, (), queue), Closed(0, 4), NOW)
    assert decided.effects[-1] == Publish(View(5, (0, 2), (0, 2), (), ((0, "w1"), (2, "w2"))))


# -- deaths -----------------------------------------------------------------------------------------------------------

AFTER = Seen({"w2": 1}, ("w2",) * 4, settled=True)
UP = Calm(Known(4, frozenset(), frozenset(), HOMES))


def at(now_ms: int) -> Moment:
    return replace(NOW, now_ms=now_ms)


def test_a_death_fails_all_servers_of_the_worker_in_one_view_when_it_is_time() -> None:
    decided = step(UP, AFTER, NOW)
    assert decided.effects == (Announce("worker-lost", None, False, {"worker": "w1", "servers": [0, 1]}),)
    assert due_ms(decided.state, NOW) == 130_000
    assert step(decided.state, Tick(), at(129_999)) == Step(decided.state)
    failed = step(decided.state, Tick(), at(130_000))
    assert failed.effects[-1] == Publish(View(5, (0, 1), (0, 1), (), ((0, "w2"), (1, "w2"))))
    assert failed.state.known.sticky == frozenset()


def test_a_worker_that_is_back_in_time_changes_nothing() -> None:
    away = step(UP, AFTER, NOW).state
    back = step(away, Seen({"w1": 2, "w2": 1}, HOSTS, settled=True), at(110_000)).state
    assert step(back, Tick(), at(200_000)) == Step(back)


def test_without_a_delay_it_fails_at_once() -> None:
    decided = step(UP, AFTER, replace(NOW, rehome_after_ms=0))
    assert [e.event for e in decided.effects if isinstance(e, Announce)] == [
        "worker-lost",
        "server-failed",
        "server-failed",
    ]


def down_and_closed() -> State:
    state = step(UP, AFTER, replace(NOW, rehome_after_ms=0)).state
    for server in range(4):
        state = step(state, Closed(server, 5), NOW).state
    assert isinstance(state, Calm)
    return state


def test_its_servers_come_home_when_it_hosts_them_again_for_a_while() -> None:
    state = down_and_closed()
    # It is back and warms up: the server is hosted elsewhere.
    warming = step(state, Seen({"w1": 2, "w2": 1}, ("w2",) * 4, settled=False), at(110_000)).state
    assert step(warming, Tick(), at(150_000)).effects == ()
    home = step(warming, Seen({"w1": 2, "w2": 1}, HOSTS, settled=True), at(150_000))
    assert home.effects == (Publish(View(6, (), (), (0, 1), ((0, "w1"), (1, "w1")))),)


def test_a_worker_that_has_just_come_back_is_not_trusted_at_once() -> None:
    back = Seen({"w1": 2, "w2": 1}, HOSTS, settled=True)
    state = step(down_and_closed(), back, at(110_000)).state
    assert isinstance(state, Calm)
    assert due_ms(state, NOW) == 111_000
    assert isinstance(step(state, Tick(), at(111_000)).state, Changing)


def test_servers_of_a_worker_that_is_forgotten_come_home_where_they_are_hosted() -> None:
    state = down_and_closed()
    assert due_ms(state, NOW) == 700_000
    for decided in (step(state, Tick(), at(700_000)), step(state, ForgetOrdered("c", "w1"), at(110_000))):
        assert decided.effects[-1] == Publish(View(6, (), (), (0, 1), ((0, "w2"), (1, "w2"))))
        assert decided.state.known.homes.homes == ("w2",) * 4
    assert decided.effects[0] == Announce("worker-forgotten", "c", True, {"worker": "w1", "servers": [0, 1]})


def test_an_operators_word_stays_when_the_worker_is_back() -> None:
    state = step(down_and_closed(), FailOrdered("c", 1), NOW)
    assert state.effects == (Announce("server-closed", "c", True, {"view": 5, "server": 1, "manager": "w2"}),)
    home = step(state.state, Seen({"w1": 2, "w2": 1}, HOSTS, settled=True), at(110_000)).state
    view = step(home, Tick(), at(120_000)).effects[-1]
    assert view == Publish(View(6, (1,), (), (0,), ((0, "w1"),)))


def test_a_restored_server_stays_where_it_is_hosted() -> None:
    decided = step(down_and_closed(), RestoreOrdered("c", 0), NOW)
    assert decided.effects == (Publish(View(6, (1,), (), (0,), ((0, "w2"),))),)
    assert decided.state.known.homes.homes[:2] == ("w2", "w1")


def test_nobody_is_failed_when_nobody_is_left() -> None:
    known = replace(KNOWN, down=frozenset(), sticky=frozenset())
    decided = step(Calm(known), Seen({"w3": 1}, ("w3",) * 4, settled=True), replace(NOW, rehome_after_ms=0))
    assert {e.event for e in decided.effects if isinstance(e, Announce)} == {"worker-lost"}
    assert decided.state.known.homes.homes == ("w3",) * 4
    assert not decided.state.known.homes.lost


def test_an_order_goes_before_a_death_that_would_leave_nobody() -> None:
    # Server 3 is down, 2 is ordered down, and 0 and 1 have lost their worker: 0 and 1 stay.
    known = replace(KNOWN, homes=replace(HOMES, workers={"w2": 1}, lost={"w1": 0}, hosts=("w2",) * 4))
    decided = step(Changing(known, frozenset(), 160_000, (), (Order("c", "fail", 2),)), Tick(), NOW)
    assert decided.effects[-1] == Publish(View(5, (2, 3), (2,), (), ((2, "w2"),)))


def test_an_order_that_a_death_has_overtaken_is_rejected() -> None:
    known = replace(KNOWN, down=ALL - {2}, sticky=ALL - {2})
    decided = step(Changing(known, frozenset(), 160_000, (), (Order("c", "fail", 2),)), Tick(), NOW)
    assert decided.effects[-1] == rejected("c", "last-server", server=2)


def test_a_view_that_is_not_closed_is_announced_again_and_again() -> None:
    stuck = Announce("view-stuck", None, False, {"view": 5, "servers": [2]})
    assert due_ms(LAST, NOW) == 160_000
    decided = step(LAST, Tick(), at(160_000))
    assert decided == Step(replace(LAST, alarm_ms=160_000 + ALARM_MS), (stuck,))


def test_at_first_nothing_is_known() -> None:
    assert first(4).known.homes.hosts == ("",) * 4
    seen = step(first(4), SEEN, NOW)
    assert (seen.effects, seen.state.known.homes.homes) == ((), HOSTS)
