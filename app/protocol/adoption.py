"""The router's part of a view: it adopts each in order, in one unit of work with everything that follows from it.

First the migrations that the view touches are aborted, then a marker goes into every server's stream, and from then on
the router sends under the new view (rules L1, L3). Markers go through the same lists of outputs as tasks: what the unit
has routed before stands before them, what it routes later behind them. What the router remembers of settled tenants is
forgotten in the same step. The adopted view is a row.
"""

from dataclasses import dataclass, replace
from typing import TypeAlias

from app.errors import LocalProtocolError
from app.protocol.markers import Marker, View, ViewClosed
from app.protocol.moves import Announce


@dataclass(frozen=True, slots=True)
class Adopted:
    """The view that the router sends under; ``closed``: every server has closed it, and tenants may move."""

    epoch: int = 0
    down: frozenset[int] = frozenset()
    closed: bool = True

    def up(self, servers: int) -> frozenset[int]:
        return frozenset(range(servers)) - self.down


@dataclass(frozen=True, slots=True)
class TellMoves:
    """Feed :class:`app.protocol.migration.ViewAdopted` with ``changed`` to every tenant that moves; do what follows."""

    changed: frozenset[int]


@dataclass(frozen=True, slots=True)
class Mark:
    """Write this record into every server's stream, also of those that are down, and forget all settled tenants."""

    record: Marker


Effect: TypeAlias = TellMoves | Mark | Announce


@dataclass(frozen=True, slots=True)
class Step:
    """The new row, and what the shell does for it, in this order and in one unit."""

    adopted: Adopted
    effects: tuple[Effect, ...] = ()


def step(adopted: Adopted, event: View | ViewClosed, *, router: int) -> Step:
    """Decide what follows. A view that comes again changes nothing.

    Raises:
        LocalProtocolError: a view is missing, or this one does not follow from the one before.
    """
    match event:
        case ViewClosed(epoch):
            return Step(replace(adopted, closed=True) if epoch == adopted.epoch else adopted)
        case View(epoch, down, failed, restored, managers):
            if epoch <= adopted.epoch:
                return Step(adopted)
            after = adopted.down - frozenset(restored) | frozenset(failed)
            if epoch > adopted.epoch + 1 or after != frozenset(down):
                raise LocalProtocolError(f"router {router}: {event} does not follow {adopted}")
            marker = Marker(router, epoch, down, failed, restored, managers)
            published = Announce("marker-published", None, False, {"view": epoch, "router": router})
            changed = frozenset((*failed, *restored))
            return Step(Adopted(epoch, after, closed=False), (TellMoves(changed), Mark(marker), published))
