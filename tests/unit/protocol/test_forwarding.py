"""Requests: the first guess, what the receiver makes of it, and that a wrong guess costs hops only."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from app.protocol.affinity import OWN, Aligned, Change, Comes, Stranger, whose
from app.protocol.backup_order import backup_order
from app.protocol.forwarding import HOPS_MAX, Decision, Forward, Perform, Refuse, Wait, first_guess, received
from app.protocol.placement import Routes, home_of, route, session_key

SERVERS = 6
ALL = frozenset(range(SERVERS))
names = st.text(st.characters(exclude_categories=["Cc", "Cs"]), min_size=1, max_size=10)
views = st.sets(st.integers(0, SERVERS - 1), min_size=1).map(frozenset)
homes = st.integers(0, SERVERS - 1)


@pytest.mark.parametrize(
    ("found", "hops", "decision"),
    [
        (OWN, 0, Perform()),
        (OWN, HOPS_MAX, Perform()),
        (Comes(1), 2, Wait()),
        (Stranger(4), 0, Forward(4, 1)),
        (Stranger(4), HOPS_MAX - 1, Forward(4, HOPS_MAX)),
        (Stranger(4), HOPS_MAX, Refuse()),
    ],
)
def test_what_the_receiver_does(found: object, hops: int, decision: Decision) -> None:
    assert received(found, hops) == decision  # type: ignore[arg-type]


@given(names, names, homes, views)
def test_a_primary_that_is_up_gets_the_request(tenant: str, session: str, primary: int, up: frozenset[int]) -> None:
    order = backup_order(session_key(tenant, session), SERVERS)
    expected = primary if primary in up else next(server for server in order if server in up)
    assert first_guess(tenant, session, primary, SERVERS, up) == expected


@pytest.mark.parametrize("primary", [None, -1, SERVERS])
def test_without_a_primary_the_home_is_computed(primary: int | None) -> None:
    assert first_guess("acme", "cart-7", primary, SERVERS, ALL) == home_of(b"acme", None, SERVERS)


@given(names, names, homes, st.none() | homes, views, views)
def test_an_old_view_and_a_wrong_primary_cost_one_hop(
    tenant: str, session: str, home: int, primary: int | None, old: frozenset[int], up: frozenset[int]
) -> None:
    """Every server knows where the tenant lives and has the same view: the second one is right."""
    server, hops = first_guess(tenant, session, primary, SERVERS, old), 0
    state = Aligned(Change(3, up, up))
    decision = received(whose(state, tenant, session, home, server=server, routes=Routes()), hops)
    if isinstance(decision, Forward):
        server = decision.server
        decision = received(whose(state, tenant, session, home, server=server, routes=Routes()), decision.hops)
    assert decision == Perform()
    assert server == route(tenant, session, home, up)
