"""Records about views: how the steward, routers, servers and workers speak to each other about who is up.

| topic | from | to | records |
|---|---|---|---|
| ``commands[r]`` | steward | every router | View, ViewClosed |
| ``work[s]`` | routers | every server | Marker |
| ``handoffs[s]`` | servers | server s | hand-offs (:class:`app.protocol.chunks.HandOff`), HandedOff |
| ``commands[0]`` | servers, workers | steward | Closed, Leaving |
| ``commands[0]`` | steward | itself | Look |

A view is a numbered statement of which servers are up; its number is its epoch. In view 0 all are. A view fails a set
of servers or restores a set, never both (rule L3). :mod:`app.protocol.control` writes and reads these records.
"""

from dataclasses import dataclass
from typing import TypeAlias

Manager: TypeAlias = tuple[int, str]
"""A server that fails, and the worker that manages its stream from then on."""


@dataclass(frozen=True, slots=True)
class View:
    """The view ``epoch``: all servers are up but those in ``down``; ``failed`` or ``restored`` is what changed."""

    epoch: int
    down: tuple[int, ...]
    failed: tuple[int, ...]
    restored: tuple[int, ...]
    managers: tuple[Manager, ...]


@dataclass(frozen=True, slots=True)
class ViewClosed:
    """Every server has closed the view: tenants may move again."""

    epoch: int


@dataclass(frozen=True, slots=True)
class Marker:
    """What stands before it the router has sent under the view before ``epoch``, what follows under ``epoch``."""

    router: int
    epoch: int
    down: tuple[int, ...]
    failed: tuple[int, ...]
    restored: tuple[int, ...]
    managers: tuple[Manager, ...]


@dataclass(frozen=True, slots=True)
class HandedOff:
    """Of one router's sessions, all that view ``view`` moves from ``source`` to this server were sent.

    So many ``chunks``, so many ``rows`` in them, and the ``checksum`` over these.
    """

    view: int
    router: int
    source: int
    chunks: int
    rows: int
    checksum: str


@dataclass(frozen=True, slots=True)
class Closed:
    """Nothing of the view is left to do at this server."""

    server: int
    epoch: int


@dataclass(frozen=True, slots=True)
class Leaving:
    """The worker is about to leave the group in good order. ``incarnation``: its start, milliseconds (Unix time)."""

    worker: str
    incarnation: int


@dataclass(frozen=True, slots=True)
class Look:
    """Written once the steward knows a plan of the group: where it reads this, it has read what leavers wrote before.

    ``token`` names the steward that wrote it; another one's says nothing.
    """

    token: str
