"""Assignment: the rules of the plan, golden plans, and properties over any group."""

import json
from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from app.errors import LocalProtocolError
from app.protocol.assignment import Member, Plan, assign, settled

GOLDEN = Path(__file__).parents[2] / "golden/assignment.json"
SERVERS = tuple(f"server-{n}" for n in range(8))
ROUTERS = tuple(f"router-{n}" for n in range(4))
PLACES = ROUTERS + SERVERS


def member(name: str, *, warm: Any = (), hosts: Any = (), incarnation: int = 1, member_id: str = "") -> Member:
    return Member(name, member_id or f"{name}-id", incarnation, f"http://{name}", frozenset(warm), frozenset(hosts))


def warm_group(*names: str) -> list[Member]:
    return [member(name, warm=PLACES) for name in names]


def loads(plan: Plan, kind: str) -> Counter[str]:
    return Counter(worker for place, worker in plan.host.items() if place.startswith(kind))


def test_the_first_worker_gets_everything_though_nothing_is_warm() -> None:
    plan = assign([member("w1")], PLACES, 1)
    assert set(plan.host) == set(PLACES)
    assert set(plan.host.values()) == {"w1"}
    assert set(plan.standbys.values()) == {()}
    assert settled(plan)


def test_a_newcomer_warms_up_before_it_hosts() -> None:
    old = member("w1", warm=PLACES, hosts=PLACES)
    plan = assign([old, member("w2")], PLACES, 1)
    assert set(plan.host.values()) == {"w1"}
    assert set(plan.warmups.values()) == {"w2"}
    assert len(plan.warmups) == len(PLACES) // 2
    assert not settled(plan)
    later = assign([old, member("w2", warm=plan.warmups)], PLACES, 1)
    assert {place for place, worker in later.host.items() if worker == "w2"} == set(plan.warmups)
    assert settled(later)


def test_a_place_whose_host_died_goes_to_a_warm_standby_rather_than_to_a_cold_ideal_host() -> None:
    ideal = assign(warm_group("w1", "w2", "w3"), PLACES, 0).host
    cold = ideal["server-0"]
    warm = next(name for name in ("w1", "w2", "w3") if name != cold)
    members = [member(name, warm=["server-0"] if name == warm else ()) for name in ("w1", "w2", "w3")]
    plan = assign(members, PLACES, 1)
    assert plan.host["server-0"] == warm
    assert plan.warmups == {"server-0": cold}


def test_a_place_stays_with_its_host_while_the_ideal_one_is_cold_though_others_are_warm() -> None:
    names = ("w1", "w2", "w3", "w4")
    ideal = assign(warm_group(*names), PLACES, 0).host["server-3"]
    for host in set(names) - {ideal}:
        members = [
            member(name, warm=() if name == ideal else PLACES, hosts=["server-3"] if name == host else ())
            for name in names
        ]
        plan = assign(members, PLACES, 2)
        assert plan.host["server-3"] == host
        assert plan.warmups["server-3"] == ideal
        assert set(plan.standbys["server-3"]) == set(names) - {ideal, host}


def test_what_a_member_hosts_is_warm_though_it_does_not_say_so() -> None:
    plan = assign([member("w1", hosts=PLACES), member("w2")], PLACES, 0)
    assert set(plan.host.values()) == {"w1"}


@pytest.mark.parametrize(
    ("one", "other", "older"),
    [((1, "b"), (2, "a"), "b"), ((2, "a"), (1, "b"), "b"), ((1, "a"), (1, "b"), "a")],
)
def test_of_two_workers_with_one_name_the_younger_counts(
    one: tuple[int, str], other: tuple[int, str], older: str
) -> None:
    members = [
        member("w1", incarnation=incarnation, member_id=member_id, warm=PLACES if member_id == older else ())
        for incarnation, member_id in (one, other)
    ]
    plan = assign([*members, member("w2", warm=PLACES)], PLACES, 1)
    assert plan.superseded == {older}
    # The older one's rows are not the younger one's.
    assert set(plan.host.values()) == {"w2"}


def test_of_three_workers_with_one_name_two_are_superseded() -> None:
    plan = assign([member("w1", incarnation=n, member_id=f"m{n}") for n in (2, 3, 1)], PLACES, 1)
    assert plan.superseded == {"m1", "m2"}


def test_an_empty_group_is_our_own_error() -> None:
    with pytest.raises(LocalProtocolError):
        assign([], PLACES, 1)


@pytest.mark.parametrize("case", json.loads(GOLDEN.read_text(encoding="utf-8")), ids=lambda case: case["name"])
def test_golden_plans(case: dict[str, Any]) -> None:
    """Workers of two releases in one group must make the same plan."""
    members = [
        Member(
            m["name"],
            m["member_id"],
            m["incarnation"],
            m["url"],
            frozenset(m["warm"]),
            frozenset(m["hosts"]),
        )
        for m in case["members"]
    ]
    plan = assign(members, case["places"], case["standby_replicas"])
    assert plan.host == case["host"]
    assert {place: list(names) for place, names in plan.standbys.items()} == case["standbys"]
    assert plan.warmups == case["warmups"]
    assert sorted(plan.superseded) == case["superseded"]


names = st.sampled_from([f"w{n}" for n in range(6)])
some_places = st.frozensets(st.sampled_from(PLACES))
members_of = st.lists(
    st.builds(
        Member,
        name=names,
        member_id=st.uuids().map(str),
        incarnation=st.integers(0, 3),
        url=st.just("http://w"),
        warm=some_places,
        hosts=some_places,
    ),
    min_size=1,
    max_size=8,
)
replicas = st.integers(0, 3)


@given(members_of, replicas)
def test_every_place_has_one_host_and_standbys_beside_it(members: list[Member], k: int) -> None:
    plan = assign(members, PLACES, k)
    workers = {m.name for m in members}
    assert set(plan.host) == set(plan.standbys) == set(PLACES)
    for place, host in plan.host.items():
        beside = [*plan.standbys[place], *([plan.warmups[place]] if place in plan.warmups else [])]
        assert host not in beside
        assert len(set(beside)) == len(beside)
        assert {host, *beside} <= workers
        assert len(plan.standbys[place]) == min(k, len(workers) - 1 - (place in plan.warmups))


@given(members_of, replicas, st.randoms())
def test_the_order_of_the_input_does_not_matter(members: list[Member], k: int, random: Any) -> None:
    shuffled, places = list(members), list(PLACES)
    random.shuffle(shuffled)
    random.shuffle(places)
    assert assign(shuffled, places, k) == assign(members, PLACES, k)


@given(members_of)
def test_only_the_youngest_of_a_name_is_not_superseded(members: list[Member]) -> None:
    plan = assign(members, PLACES, 1)
    left = [m for m in members if m.member_id not in plan.superseded]
    assert len(left) == len({m.name for m in members})
    assert assign(left, PLACES, 1) == replace(plan, superseded=frozenset())


@given(members_of)
def test_nobody_cold_hosts_what_somebody_has_warm(members: list[Member]) -> None:
    plan = assign(members, PLACES, 1)
    workers = {m.name: m.warm | m.hosts for m in members if m.member_id not in plan.superseded}
    for place, host in plan.host.items():
        assert place in workers[host] or not any(place in warm for warm in workers.values())


@given(st.sets(names, min_size=1))
def test_when_all_are_warm_the_load_is_bounded_and_nothing_waits(group: set[str]) -> None:
    plan = assign(warm_group(*group), PLACES, 1)
    assert settled(plan)
    assert max(loads(plan, "server").values()) <= -(-len(SERVERS) // len(group))
    assert max(loads(plan, "router").values()) <= -(-len(ROUTERS) // len(group))


@given(st.sets(names, min_size=2), st.data())
def test_a_member_that_leaves_moves_its_own_places_and_others_only_by_the_load_bound(
    group: set[str], data: st.DataObject
) -> None:
    gone = data.draw(st.sampled_from(sorted(group)))
    before = assign(warm_group(*group), PLACES, len(group))
    after = assign(warm_group(*(group - {gone})), PLACES, len(group))
    for place in PLACES:
        old, new = before.host[place], after.host[place]
        if old in (gone, new):
            continue
        kind = place.split("-")[0]
        total = sum(p.startswith(kind) for p in PLACES)
        # With every worker a standby, both plans show the place's order.
        order = _order(place, group)
        if order.index(new) < order.index(old):
            assert loads(before, kind)[new] == -(-total // len(group)), "it was full before"
        else:
            assert loads(after, kind)[old] == -(-total // (len(group) - 1)), "it is full now"


def _order(place: str, group: set[str]) -> list[str]:
    """The place's own order: with one place of its kind nobody is ever full."""
    only = assign(warm_group(*group), [place], len(group))
    return [only.host[place], *only.standbys[place]]


@given(members_of)
def test_warming_up_what_is_asked_for_settles_the_plan(members: list[Member]) -> None:
    plan = assign(members, PLACES, 1)
    left = [m for m in members if m.member_id not in plan.superseded]
    warmed = [
        replace(
            m,
            warm=m.warm | {place for place, name in plan.warmups.items() if name == m.name},
            hosts=frozenset(place for place, name in plan.host.items() if name == m.name),
        )
        for m in left
    ]
    assert settled(assign(warmed, PLACES, 1))
