"""Where a session lives: a pure function of (placement, view, session), the same at every node.

    home(tenant)            = placement if the tenant was ever moved, else the first of its backup order
    route(tenant, session)  = home if it is up, else the first server that is up in the session's backup order

So the sessions of a failed server spread over all survivors, each by its own key, and nobody asks anybody.
"""

from collections.abc import Set as AbstractSet

from app.errors import LocalProtocolError
from app.protocol.backup_order import best_of, first_up

_SEPARATOR = b"\x00"


def session_key(tenant: str, session: str) -> bytes:
    """Return the key of a session: tenant, a zero byte, session, in UTF-8.

    Names hold no control characters, so that no two sessions share a key.

    Raises:
        LocalProtocolError: a name is empty or holds a zero byte; records with such names are refused.
    """
    key = tenant.encode() + _SEPARATOR + session.encode()
    if not tenant or not session or key.count(_SEPARATOR) != 1:
        raise LocalProtocolError("tenant and session must not be empty or hold a zero byte")
    return key


def home_of(tenant: bytes, placed: int | None, servers: int) -> int:
    """Return a tenant's server when nothing is wrong: ``placed``, where it was moved, if it ever was."""
    return first_up(tenant, servers, range(servers)) if placed is None else placed


def route(tenant: str, session: str, home: int, view_up: AbstractSet[int]) -> int:
    """Return the server a session's next task goes to under a view, given the servers that are up in it.

    Raises:
        LocalProtocolError: no server is up.
    """
    return home if home in view_up else best_of(session_key(tenant, session), view_up)


ROUTES_MAX = 50_000
"""Sessions whose server is remembered under one view."""

VIEWS_MAX = 2
"""Views under which servers are remembered: while one follows another, both are asked for."""


class Routes:
    """:func:`route` with a memory of sessions whose home is down; what is remembered changes no answer.

    Args:
        capacity: sessions per view. What is full begins anew: a bound on memory, not a policy.
    """

    __slots__ = ("_by_view", "_capacity")

    def __init__(self, capacity: int = ROUTES_MAX) -> None:
        self._capacity = capacity
        self._by_view: dict[AbstractSet[int], dict[tuple[str, str], int]] = {}

    def route(self, tenant: str, session: str, home: int, view_up: frozenset[int]) -> int:
        """As :func:`route`. With its home down, a session's server is the same wherever the home is."""
        if home in view_up:
            return home
        known = self._by_view.get(view_up)
        if known is None:
            if len(self._by_view) >= VIEWS_MAX:
                self._by_view.pop(next(iter(self._by_view)))
            known = self._by_view[view_up] = {}
        found = known.get((tenant, session))
        if found is None:
            if len(known) >= self._capacity:
                known.clear()
            found = known[tenant, session] = best_of(session_key(tenant, session), view_up)
        return found
