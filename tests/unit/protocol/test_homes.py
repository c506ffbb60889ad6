"""Home workers: deaths, leaves in good order, joins, restarts, and how long one that is back is not trusted."""

from dataclasses import replace

import pytest

from app.protocol.homes import (
    FLAP_MS,
    STEADY_MAX_MS,
    Homes,
    Seen,
    adopt,
    failed,
    forget,
    leave,
    next_ms,
    nobody,
    orphans,
    returning,
    see,
    steady_ms,
)
from app.protocol.markers import Leaving

NONE: frozenset[int] = frozenset()
TWO = Homes(("w1", "w2"), ("w1", "w2"), {"w1": 1, "w2": 1})


def plan(hosts: tuple[str, ...], *, settled: bool = True, **workers: int) -> Seen:
    return Seen(workers, hosts, settled)


def test_the_first_plan_gives_everybody_a_home() -> None:
    homes, died = see(nobody(2), plan(("w1", "w2"), w1=1, w2=1), NONE, 0)
    assert (homes, died) == (TWO, ())


def test_a_join_takes_the_home_along() -> None:
    homes, died = see(TWO, plan(("w3", "w2"), w1=1, w2=1, w3=1), NONE, 0)
    assert (homes.homes, homes.lost, died) == (("w3", "w2"), {}, ())


def test_a_leave_in_good_order_is_no_death() -> None:
    told = leave(TWO, Leaving("w1", 1))
    homes, died = see(told, plan(("w2", "w2"), w2=1), NONE, 0)
    assert (homes.homes, homes.lost, homes.leaving, died) == (("w2", "w2"), {}, {}, ())


def test_who_said_it_leaves_and_is_still_here_has_not_left() -> None:
    told, _ = see(leave(TWO, Leaving("w1", 1)), plan(("w2", "w2"), w1=1, w2=1), NONE, 0)
    assert see(told, plan(("w2", "w2"), w2=1), NONE, 0)[1] == ()


def test_the_word_of_an_earlier_incarnation_does_not_count() -> None:
    back, _ = see(leave(TWO, Leaving("w1", 1)), plan(("w1", "w2"), w1=2, w2=1), NONE, 0)
    assert leave(back, Leaving("w1", 1)) == back
    assert see(back, plan(("w2", "w2"), w2=1), NONE, 0)[1] == ("w1",)


def test_a_worker_that_leaves_before_any_plan_has_shown_it_has_not_died() -> None:
    told = leave(TWO, Leaving("w1", 2))
    assert see(told, plan(("w2", "w2"), w2=1), NONE, 0)[1] == ()


def test_a_restart_between_two_plans_is_no_death() -> None:
    homes, died = see(TWO, plan(("w1", "w2"), w1=2, w2=1), NONE, 0)
    assert (homes.lost, homes.back, died) == ({}, {}, ())


def test_a_death_leaves_the_home_where_it_was() -> None:
    homes, died = see(TWO, plan(("w2", "w2"), w2=1), NONE, 500)
    assert (homes.homes, homes.hosts, homes.lost, died) == (("w1", "w2"), ("w2", "w2"), {"w1": 500}, ("w1",))
    # The second death of the same server does not change whose it is.
    homes, _ = see(homes, plan(("w3", "w3"), w3=1), NONE, 600)
    assert (homes.homes, homes.lost) == (("w1", "w2"), {"w1": 500, "w2": 600})
    assert orphans(homes, NONE, 1_000, 400) == {0, 1}
    assert orphans(homes, NONE, 999, 400) == {0}
    assert orphans(homes, frozenset({0}), 1_000, 400) == {1}


def test_a_worker_that_hosts_no_server_is_nobodys_home() -> None:
    homes, died = see(replace(TWO, workers={"w1": 1, "w2": 1, "w3": 1}), plan(("w1", "w2"), w1=1, w2=1), NONE, 0)
    assert (homes.lost, died) == ({}, ("w3",))


def test_a_failed_servers_home_is_who_hosts_it_if_the_one_that_is_back_does_not_get_it() -> None:
    lost = replace(TWO, hosts=("w2", "w2"), workers={"w2": 1}, lost={"w1": 0})
    warming, _ = see(lost, plan(("w2", "w2"), settled=False, w1=2, w2=1), frozenset({0}), 100)
    assert (warming.homes, warming.back) == (("w1", "w2"), {"w1": 100})
    settled, _ = see(warming, plan(("w2", "w2"), w1=2, w2=1), frozenset({0}), 200)
    assert settled.homes == ("w2", "w2")
    assert returning(settled, frozenset({0}), NONE, 200) == {0}


def test_who_is_back_is_trusted_later_with_every_death() -> None:
    homes = replace(TWO, back={"w1": 10_000})
    waits = []
    for _ in range(11):
        homes = failed(homes, [0], 10_000)
        waits.append(steady_ms(homes, "w1") - 10_000)
    assert waits[:4] == [1_000, 2_000, 4_000, 8_000]
    assert waits[-1] == STEADY_MAX_MS
    later, _ = see(homes, plan(("w1", "w2"), w1=1, w2=1), NONE, 10_000 + FLAP_MS)
    assert later.flaps == {}
    assert steady_ms(homes, "w2") == 0


def test_returning_needs_the_home_worker_to_host() -> None:
    down = frozenset({0, 1})
    homes = replace(TWO, back={"w1": 0})
    assert returning(homes, down, NONE, 999) == {1}
    assert returning(homes, down, NONE, 1_000) == {0, 1}
    assert returning(homes, down, frozenset({0}), 1_000) == {1}
    assert returning(replace(homes, hosts=("w2", "w2")), down, NONE, 1_000) == {1}
    assert returning(replace(homes, workers={"w2": 1}), down, NONE, 1_000) == {1}
    assert returning(nobody(2), down, NONE, 1_000) == NONE


def test_forgetting_and_adopting() -> None:
    lost = replace(TWO, hosts=("w2", "w2"), workers={"w2": 1}, lost={"w1": 0})
    for homes in (forget(lost, ["w1"]), adopt(lost, [0])):
        assert (homes.homes, homes.lost) == (("w2", "w2"), {})
    assert forget(lost, []) is lost
    assert lost.of("w1") == (0,)


@pytest.mark.parametrize(("down", "sticky", "expected"), [(NONE, NONE, 130), ({0}, NONE, 700), ({0, 1}, {1}, 700)])
def test_when_time_alone_changes_something(down: frozenset[int], sticky: frozenset[int], expected: int) -> None:
    lost = replace(TWO, hosts=("w2", "w2"), workers={"w2": 1}, lost={"w1": 100})
    assert next_ms(lost, frozenset(down), frozenset(sticky), rehome_after_ms=30, forget_after_ms=600) == expected
    back = replace(TWO, back={"w1": 100})
    assert next_ms(back, frozenset({0}), NONE, rehome_after_ms=30, forget_after_ms=600) == 1_100
    assert next_ms(TWO, NONE, NONE, rehome_after_ms=30, forget_after_ms=600) is None
