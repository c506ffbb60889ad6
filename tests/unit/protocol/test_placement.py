"""Placement: keys of sessions, homes, and the route under a view."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from app.errors import LocalProtocolError
from app.protocol.backup_order import backup_order
from app.protocol.placement import VIEWS_MAX, Routes, home_of, route, session_key

SERVERS = 8
names = st.text(st.characters(exclude_categories=("Cc", "Cs")), min_size=1, max_size=20)
views = st.frozensets(st.integers(0, SERVERS - 1), min_size=1)
homes = st.integers(0, SERVERS - 1)


def test_a_session_key_is_tenant_zero_byte_session() -> None:
    assert session_key("acme", "cart-7") == b"acme\x00cart-7"
    assert session_key("é", "カ") == b"\xc3\xa9\x00\xe3\x82\xab"


@pytest.mark.parametrize(("tenant", "session"), [("", "s"), ("t", ""), ("t\x00", "s"), ("t", "\x00s")])
def test_names_that_would_make_a_key_ambiguous_are_refused(tenant: str, session: str) -> None:
    with pytest.raises(LocalProtocolError):
        session_key(tenant, session)


@given(names, names, names, names)
def test_two_sessions_never_share_a_key(a: str, b: str, c: str, d: str) -> None:
    assert (session_key(a, b) == session_key(c, d)) == ((a, b) == (c, d))


@given(names)
def test_a_tenant_that_never_moved_is_at_home_on_the_first_server_of_its_order(tenant: str) -> None:
    assert home_of(tenant.encode(), None, SERVERS) == backup_order(tenant.encode(), SERVERS)[0]


@given(names, homes)
def test_a_tenant_that_moved_is_at_home_where_it_was_placed(tenant: str, placed: int) -> None:
    assert home_of(tenant.encode(), placed, SERVERS) == placed


@given(names, names, homes, views)
def test_the_route_is_the_home_or_the_first_up_of_the_sessions_order(
    tenant: str, session: str, home: int, up: frozenset[int]
) -> None:
    order = backup_order(session_key(tenant, session), SERVERS)
    expected = home if home in up else next(server for server in order if server in up)
    assert route(tenant, session, home, up) == expected


@given(names, names, homes, views, homes)
def test_a_server_that_fails_moves_only_the_sessions_it_has(
    tenant: str, session: str, home: int, up: frozenset[int], failed: int
) -> None:
    left = up - {failed}
    before = route(tenant, session, home, up)
    if left and before != failed:
        assert route(tenant, session, home, left) == before


def test_no_server_up_is_our_own_error() -> None:
    with pytest.raises(LocalProtocolError):
        route("acme", "s", 3, frozenset())


# -- with a memory ----------------------------------------------------------------------------------------------------


@given(st.lists(st.tuples(names, names, homes, views), max_size=30), st.integers(1, 3))
def test_a_memory_of_any_size_changes_no_answer(
    asked: list[tuple[str, str, int, frozenset[int]]], capacity: int
) -> None:
    routes = Routes(capacity)
    for tenant, session, home, up in asked + asked:
        assert routes.route(tenant, session, home, up) == route(tenant, session, home, up)


def test_the_memory_is_bounded() -> None:
    routes = Routes(capacity=10)
    for view in range(2, 8):
        up = frozenset(range(1, view))
        for session in range(25):
            routes.route("acme", str(session), 0, up)
    assert len(routes._by_view) == VIEWS_MAX
    assert all(len(known) <= 10 for known in routes._by_view.values())


def test_a_session_whose_home_is_up_is_not_remembered() -> None:
    routes = Routes()
    assert routes.route("acme", "s", 3, frozenset({3, 4})) == 3
    assert routes._by_view == {}
