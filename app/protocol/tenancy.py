"""What one server knows of one tenant, and does in its migrations: the row that survives every change of host.

    home, epoch   where the tenant lives, and under which epoch its rows lie: as the server's own stream has said (L2)
    base          the view that the server had read when it learned that
    dead          the last epoch that was aborted here (rule L4): it and earlier ones are dropped
    shipping      its part as a source, :mod:`app.protocol.shipping`
    staging       its part as a target, :mod:`app.protocol.staging`

A tenant that was never moved has no row. Its epoch is 0 and its home computed.
"""

from dataclasses import dataclass, replace
from typing import TypeAlias, assert_never

from app.protocol import shipping, staging
from app.protocol.chunks import Chunk
from app.protocol.control import Abort, Commit, Complete, Cut, Placed, Prepare, Received
from app.protocol.shipping import Concluded, Failed, Shipped, Shipping, Tick
from app.protocol.staging import State as StagingState
from app.protocol.staging import Taken


@dataclass(frozen=True, slots=True)
class Tenancy:
    """See the module. ``home`` is None while the tenant was never moved."""

    home: int | None = None
    epoch: int = 0
    base: int = 0
    dead: int = 0
    shipping: Shipping | None = None
    staging: StagingState | None = None

    @property
    def past(self) -> int:
        """No record of this epoch or an earlier one means anything, but for the one that is being shipped from here."""
        return max(self.epoch, self.dead)

    @property
    def frozen(self) -> bool:
        """Is nothing of the tenant to be performed here, because its cut was read?"""
        return isinstance(self.shipping, shipping.Frozen)

    @property
    def copying(self) -> bool:
        """Are sessions that change to be marked?"""
        return isinstance(self.shipping, shipping.Copying)


UNMOVED = Tenancy()

Event: TypeAlias = (
    Prepare | Cut | Commit | Abort | Placed | Complete | Received | Taken | Shipped | Concluded | Failed | Tick
)
Effect: TypeAlias = shipping.Effect | staging.Effect


@dataclass(frozen=True, slots=True)
class Step:
    """The new row, and what the shell does for it."""

    tenancy: Tenancy
    effects: tuple[Effect, ...] = ()


def wanted(tenancy: Tenancy, chunk: Chunk) -> bool:
    """Is this chunk to be put into the staged rows, and :class:`Taken` to be fed?"""
    return staging.wanted(tenancy.staging, chunk.epoch, chunk.source, chunk.number, tenancy.past)


def step(tenancy: Tenancy, event: Event, *, tenant: str, server: int, view: int = 0) -> Step:
    """Decide what follows for ``tenant`` at ``server``; ``view`` is the last that the router has told here."""
    match event:
        case Prepare(_, epoch):
            if epoch <= tenancy.past:
                return Step(tenancy)
            return _ship(tenancy, event, tenant, server)
        case Cut() | Received() | Shipped() | Concluded() | Failed() | Tick():
            return _ship(tenancy, event, tenant, server)
        case Taken() | Complete():
            return _stage(tenancy, event, tenant, server)
        case Commit(_, epoch, home):
            return _committed(tenancy, event, epoch, home, tenant=tenant, server=server, view=view)
        case Abort(_, epoch):
            shipped = _ship(tenancy, event, tenant, server)
            staged = _stage(shipped.tenancy, event, tenant, server)
            dead = max(tenancy.dead, epoch)
            return Step(replace(staged.tenancy, dead=dead), (*shipped.effects, *staged.effects))
        case Placed(_, epoch, home):
            if epoch <= tenancy.epoch:
                return Step(tenancy)
            staged = _stage(tenancy, event, tenant, server)
            return Step(replace(staged.tenancy, home=home, epoch=epoch, base=view), staged.effects)
        case _:
            assert_never(event)


def _committed(tenancy: Tenancy, event: Commit, epoch: int, home: int, *, tenant: str, server: int, view: int) -> Step:
    if epoch <= tenancy.epoch:
        return Step(tenancy)
    shipped = _ship(tenancy, event, tenant, server)
    # A server that is only a source may hold what an earlier migration to it has left: that is dead.
    word = event if home == server else Placed(tenant, epoch, home)
    staged = _stage(shipped.tenancy, word, tenant, server)
    known = replace(staged.tenancy, home=home, epoch=epoch, base=view)
    return Step(known, (*shipped.effects, *staged.effects))


def _ship(tenancy: Tenancy, event: shipping.Event, tenant: str, server: int) -> Step:
    decided = shipping.step(tenancy.shipping, event, tenant=tenant, server=server)
    return Step(replace(tenancy, shipping=decided.state), decided.effects)


def _stage(tenancy: Tenancy, event: staging.Event, tenant: str, server: int) -> Step:
    decided = staging.step(tenancy.staging, event, tenant=tenant, server=server, past=tenancy.past)
    return Step(replace(tenancy, staging=decided.state), decided.effects)
