"""A request that names a session and reaches any worker: where it goes, and who may answer it.

    a worker ──first guess──▶ server ──whose?──▶ perform
                                │ ▲      │ it comes from elsewhere: wait until it is here
                                │ └──────┘
                                └──it lives elsewhere, and no more than ``HOPS_MAX`` hops──▶ the server it lives at

The worker that takes a request computes where it belongs from the session's key and what the request itself says: the
primary server that the sender believes in. Whoever receives it computes the same again, under the markers of the
server's own stream, and only then performs. So a wrong or an old guess costs a hop, never a wrong answer.
Source: US 8,090,829; design 3.1.
"""

from dataclasses import dataclass
from typing import TypeAlias, assert_never

from app.protocol.affinity import Comes, Own, Stranger, Whose
from app.protocol.placement import home_of, route

HOPS_MAX = 3


@dataclass(frozen=True, slots=True)
class Perform:
    """The session lives here."""


@dataclass(frozen=True, slots=True)
class Wait:
    """The session is on its way here: ask again when something of its router has arrived, or give up in time."""


@dataclass(frozen=True, slots=True)
class Forward:
    """Send the request to the worker that hosts this server; it has then made so many hops."""

    server: int
    hops: int


@dataclass(frozen=True, slots=True)
class Refuse:
    """The request has been sent to and fro: views are changing. The sender may try again."""


Decision: TypeAlias = Perform | Wait | Forward | Refuse


def first_guess(tenant: str, session: str, primary: int | None, servers: int, up: frozenset[int]) -> int:
    """Where a worker sends a request that it takes from outside, under the last view that it has heard of.

    Args:
        primary: the server that the request names, if it does and there is such a server.
        up: may be old: whoever receives the request knows better.
    """
    named = primary is not None and 0 <= primary < servers
    return route(tenant, session, home_of(tenant.encode(), primary if named else None, servers), up)


def received(whose: Whose, hops: int) -> Decision:
    """What a server does with a request that has made ``hops`` hops."""
    match whose:
        case Own():
            return Perform()
        case Comes():
            return Wait()
        case Stranger(to):
            return Forward(to, hops + 1) if hops < HOPS_MAX else Refuse()
        case _:
            assert_never(whose)
