"""What members of the group tell each other: bytes that come back, and bytes of strangers."""

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from app.protocol.group_data import VERSION, GroupPlan, MemberData

MEMBER = MemberData(
    "w1",
    "http://127.0.0.1:6066",
    1_764_000_000_000,
    hosts=frozenset({"server-1", "router-0"}),
    warm=frozenset({"server-0"}),
    knows=frozenset({"w1", "w2"}),
    beat="127.0.0.1:7001",
)
PLAN = GroupPlan(
    host={"server-0": "w1", "server-1": "w2"},
    standbys={"server-0": ("w2", "w3"), "server-1": ()},
    warmups={"server-1": "w3"},
    workers={"w1": ("http://a", 1), "w2": ("http://b", 2), "w3": ("", 3)},
    departed=frozenset({"w4"}),
    superseded=frozenset({"w1-old-id"}),
    leader="w2",
    beats={"w1": "a:1"},
    members={"w1": "id-1"},
)

names = st.text(max_size=12)
places = st.sampled_from([f"server-{number}" for number in range(4)])
members = st.builds(
    MemberData,
    names,
    names,
    st.integers(0, 2**53),
    st.frozensets(places),
    st.frozensets(places),
    st.frozensets(names),
    names,
)
plans = st.builds(
    GroupPlan,
    st.dictionaries(places, names),
    st.dictionaries(places, st.lists(names, max_size=3).map(tuple)),
    st.dictionaries(places, names),
    st.dictionaries(names, st.tuples(names, st.integers(0, 2**53))),
    st.frozensets(names),
    st.frozensets(names),
    names,
    st.dictionaries(names, names),
    st.dictionaries(names, names),
)


@given(members)
def test_a_member_comes_back(member: MemberData) -> None:
    assert MemberData.decode(member.encode()) == member


@given(plans)
def test_a_plan_comes_back(plan: GroupPlan) -> None:
    assert GroupPlan.decode(plan.encode()) == plan


def test_the_bytes_of_a_member_are_what_clients_read() -> None:
    assert MEMBER.encode() == (
        b'{"beat":"127.0.0.1:7001","hosts":["router-0","server-1"],"incarnation":1764000000000,"join":0,"knows":["w1","w2"],"name":"w1",'
        b'"url":"http://127.0.0.1:6066","v":1,"warm":["server-0"]}'
    )


def test_the_bytes_of_a_plan() -> None:
    assert PLAN.encode() == (
        b'{"beats":{"w1":"a:1"},"departed":["w4"],"host":{"server-0":"w1","server-1":"w2"},'
        b'"leader":"w2","members":{"w1":"id-1"},"standbys":{"server-0":["w2","w3"],"server-1":[]},"superseded":["w1-old-id"],"v":1,'
        b'"warmups":{"server-1":"w3"},"workers":{"w1":["http://a",1],"w2":["http://b",2],"w3":["",3]}}'
    )


def test_the_bytes_do_not_depend_on_the_order_in_which_a_plan_was_made() -> None:
    turned = GroupPlan(
        dict(reversed(PLAN.host.items())),
        dict(reversed(PLAN.standbys.items())),
        PLAN.warmups,
        dict(reversed(PLAN.workers.items())),
        PLAN.departed,
        PLAN.superseded,
        PLAN.leader,
        PLAN.beats,
        PLAN.members,
    )
    assert turned.encode() == PLAN.encode()


def test_a_member_of_a_release_that_says_less_or_more() -> None:
    data = json.dumps({"v": VERSION, "name": "w1", "url": "u", "incarnation": 3, "later": [1]}).encode()
    assert MemberData.decode(data) == MemberData("w1", "u", 3)


FOREIGN = [
    b"",
    b"\xff\xfe",
    b"null",
    b"[]",
    b'"w1"',
    b"{}",
    b'{"v":1}',
    b'{"v":"1","name":"w1","url":"u","incarnation":1}',
    b'{"v":0,"name":"w1","url":"u","incarnation":1}',
    b'{"v":2,"name":"w1","url":"u","incarnation":1}',
]


@pytest.mark.parametrize(
    "data",
    [
        *FOREIGN,
        b'{"v":1,"name":"w1","url":"u"}',
        b'{"v":1,"name":"w1","url":"u","incarnation":null}',
        b'{"v":1,"name":"w1","url":"u","incarnation":"soon"}',
        b'{"v":1,"name":"w1","url":"u","incarnation":1,"hosts":3}',
        b'{"v":1,"name":"w1","url":"u","incarnation":1,"warm":[["server-1"]]}',
    ],
)
def test_what_is_no_member_is_refused(data: bytes) -> None:
    with pytest.raises(ValueError, match=r"."):
        MemberData.decode(data)


@pytest.mark.parametrize(
    "data",
    [
        *FOREIGN,
        PLAN.encode().replace(b'"v":1', b'"v":2'),
        PLAN.encode().replace(b'"host":{"server-0":"w1","server-1":"w2"}', b'"host":7'),
        PLAN.encode().replace(b'["http://b",2]', b"[]"),
        PLAN.encode().replace(b'"standbys":{"server-0":["w2","w3"],"server-1":[]}', b'"standbys":[]'),
    ],
)
def test_what_is_no_plan_is_refused(data: bytes) -> None:
    with pytest.raises(ValueError, match=r"."):
        GroupPlan.decode(data)


def test_who_hosts_and_who_follows() -> None:
    assert PLAN.hosted_by("w1") == {"server-0"}
    assert PLAN.hosted_by("w3") == set()
    assert PLAN.followed_by("w2") == {"server-0"}
    assert PLAN.followed_by("w3") == {"server-0", "server-1"}
    assert PLAN.followed_by("w1") == set()
