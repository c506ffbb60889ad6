"""Whose a session is at one server, as the server's own stream has said: the states of :mod:`app.protocol.alignment`.

Each router has a state of its own at each server: the change of view that its last Marker there has told (rule L2), and
how far the sessions that this change moves have come. A session is the server's if ``route`` under that view says so
and, while sessions come, everything of the server that it comes from has arrived (rules L1, L4).
"""

from dataclasses import dataclass
from typing import TypeAlias

from app.protocol.chunks import EMPTY, Digest
from app.protocol.markers import Manager
from app.protocol.placement import Routes


@dataclass(frozen=True, slots=True)
class Change:
    """View ``epoch``: the servers that were up before it, and that are up under it."""

    epoch: int
    before: frozenset[int]
    after: frozenset[int]
    managers: tuple[Manager, ...] = ()

    @property
    def failed(self) -> frozenset[int]:
        return self.before - self.after

    @property
    def restored(self) -> frozenset[int]:
        return self.after - self.before

    @property
    def sources(self) -> frozenset[int]:
        """Whom sessions leave: those that fail, or, when others return, everybody who was up."""
        return self.failed or self.before

    @property
    def targets(self) -> frozenset[int]:
        """To whom sessions come: everybody who is up, or, when servers return, these."""
        return self.restored or self.after


def initial(servers: int) -> Change:
    """View 0: all servers are up."""
    everybody = frozenset(range(servers))
    return Change(0, everybody, everybody)


@dataclass(frozen=True, slots=True)
class Moved:
    """A line of a certificate: so many rows with this checksum have left the source, or arrived at the target."""

    source: int
    target: int
    digest: Digest


@dataclass(frozen=True, slots=True)
class Part:
    """What came from one source: its last chunk and the digest of its rows. It adds up (``complete``), or it does not
    (``wrong``)."""

    source: int
    chunk: int = 0
    digest: Digest = EMPTY
    complete: bool = False
    wrong: bool = False


@dataclass(frozen=True, slots=True)
class Line:
    """What has been sent to one target."""

    target: int
    chunks: int = 0
    digest: Digest = EMPTY


@dataclass(frozen=True, slots=True)
class Aligned:
    """The view is closed here as far as the router goes; ``moved`` is what it moved."""

    change: Change
    moved: tuple[Moved, ...] = ()


@dataclass(frozen=True, slots=True)
class Early:
    """Aligned with ``change``; hand-offs of the next view came before its marker."""

    change: Change
    parts: tuple[Part, ...]


@dataclass(frozen=True, slots=True)
class Receiving:
    """The marker was read, sessions come. ``parts`` has every source."""

    change: Change
    parts: tuple[Part, ...]


@dataclass(frozen=True, slots=True)
class Sending:
    """The marker was read, sessions leave. ``cursor`` is the key of the last row looked at: of sessions, then of
    waiting tasks (``waiting``); ``sent``: nothing is left to look at."""

    change: Change
    lines: tuple[Line, ...] = ()
    waiting: bool = False
    cursor: str = ""
    sent: bool = False


State: TypeAlias = Aligned | Early | Receiving | Sending


@dataclass(frozen=True, slots=True)
class Own:
    """It lives here: perform."""


@dataclass(frozen=True, slots=True)
class Comes:
    """It comes from ``source`` and is not here yet: hold its tasks."""

    source: int


@dataclass(frozen=True, slots=True)
class Stranger:
    """It does not live here, but at server ``to``."""

    to: int


Whose: TypeAlias = Own | Comes | Stranger
OWN = Own()


def whose(state: State, tenant: str, session: str, home: int, *, server: int, routes: Routes) -> Whose:
    """Whose is a session of the router's, where this server's stream has been read up to now?"""
    change = state.change
    to = routes.route(tenant, session, home, change.after)
    if to != server:
        return Stranger(to)
    if not isinstance(state, Receiving):
        return OWN
    source = routes.route(tenant, session, home, change.before)
    if source == server or part_of(state.parts, source).complete:
        return OWN
    return Comes(source)


def lives(whose: Whose, epoch: int, served: int | None) -> bool:
    """Are rows of a session under this epoch of its tenant those that are performed here?

    ``served``: the epoch of which rows are; None: of none, because the tenant stands still. Rows of other epochs are no
    sessions yet, or none any more; and those that have come are not the server's before all of their source have.
    """
    return epoch == served and isinstance(whose, Own)


def may_leave(change: Change, home: int) -> bool:
    """May sessions leave in this view whose tenant is at home there? Of one whose home was up and is, all stay."""
    return not (home in change.before and home in change.after)


def part_of(parts: tuple[Part, ...], source: int) -> Part:
    """What came from ``source``, if anything did."""
    return next((part for part in parts if part.source == source), Part(source))
