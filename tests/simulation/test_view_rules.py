"""Each rule of views is needed: without it the simulation finds a history in which a promise breaks."""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest

from app.protocol import adoption, affinity, alignment, closing, homes, migration, views
from app.protocol.affinity import OWN, Aligned, Comes, Early, Receiving, Sending
from app.protocol.alignment import GoLive
from app.protocol.control import Placed
from app.protocol.holding import Held
from app.protocol.markers import Closed, HandedOff, Marker
from app.protocol.moves import Order, Settled
from tables import handoffs
from tests.property.mutation import Choose, killed_after
from tests.simulation.test_views import history, moving, play, repeating, small, views_only, waiting
from tests.simulation.view_router import ViewRouter
from tests.simulation.view_server import ViewServer
from tests.simulation.view_world import ViewScript, ViewWorld

Break = Callable[[pytest.MonkeyPatch], None]


def _steps(patch: pytest.MonkeyPatch, module: Any, change: Callable[..., Any]) -> None:
    """Ask ``change`` before the core; None leaves the decision to it."""
    real = module.step
    patch.setattr(module, "step", lambda *args, **kwargs: change(real, *args, **kwargs) or real(*args, **kwargs))


def _without(patch: pytest.MonkeyPatch, module: Any, kind: type) -> None:
    def change(real: Any, *args: Any, **kwargs: Any) -> Any:
        decided = real(*args, **kwargs)
        return replace(decided, effects=tuple(e for e in decided.effects if not isinstance(e, kind)))

    _steps(patch, module, change)


# -- the router -------------------------------------------------------------------------------------------------------


def skips_one_routers_marker(patch: pytest.MonkeyPatch) -> None:
    def change(real: Any, adopted: Any, event: Any, *, router: int) -> Any:
        decided = real(adopted, event, router=router)
        if router == 0:
            return None
        return replace(decided, effects=tuple(e for e in decided.effects if not isinstance(e, adoption.Mark)))

    _steps(patch, adoption, change)


def remembers_settled_tenants(patch: pytest.MonkeyPatch) -> None:
    """What was settled under the view before still goes there (L1)."""
    real = ViewRouter.adopt

    def adopt(self: ViewRouter, said: Any) -> None:
        before = dict(self.settled)
        real(self, said)
        self.settled |= before

    patch.setattr(ViewRouter, "adopt", adopt)


def goes_on_moving(patch: pytest.MonkeyPatch) -> None:
    """A view does not abort the migrations that it touches."""
    _without(patch, adoption, adoption.TellMoves)


def moves_while_a_view_is_open(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(ViewRouter, "closed", property(lambda self: True))


def adopts_in_memory(patch: pytest.MonkeyPatch) -> None:
    """The adopted view is no row: a new host begins with an older one."""
    real = ViewRouter.open

    def opened(self: ViewRouter) -> None:
        real(self)
        self.adopted = adoption.Adopted()

    patch.setattr(ViewRouter, "open", opened)


def does_not_say_where_tenants_live(patch: pytest.MonkeyPatch) -> None:
    """Servers that were no part of a move do not hear of it (L5)."""

    def change(real: Any, state: Any, event: Any, moment: Any) -> Any:
        decided = real(state, event, moment)
        kept = tuple(e for e in decided.effects if not isinstance(getattr(e, "record", None), Placed))
        return migration.Step(decided.state, kept)

    _steps(patch, migration, change)


# -- the steward ------------------------------------------------------------------------------------------------------


def does_not_wait_for_everybody(patch: pytest.MonkeyPatch) -> None:
    """The next view is published when the first server has closed this one (L3)."""

    def change(real: Any, state: Any, event: Any, moment: Any) -> Any:
        if isinstance(state, views.Changing) and isinstance(event, Closed) and event.epoch == state.known.epoch:
            return real(replace(state, missing=frozenset({event.server})), event, moment)
        return None

    _steps(patch, views, change)


def fails_the_last_server(patch: pytest.MonkeyPatch) -> None:
    """The count of servers is one too many where it is compared, and nowhere else."""

    def change(real: Any, state: Any, event: Any, moment: Any) -> Any:
        decided = real(state, event, replace(moment, servers=moment.servers + 1))
        if isinstance(decided.state, views.Changing):
            missing = decided.state.missing - {moment.servers}
            return replace(decided, state=replace(decided.state, missing=missing))
        return decided

    _steps(patch, views, change)


def ends_an_order_twice(patch: pytest.MonkeyPatch) -> None:
    def change(real: Any, state: Any, event: Any, moment: Any) -> Any:
        decided = real(state, event, moment)
        if isinstance(state, views.Changing) and isinstance(decided.state, views.Calm):
            ends = [views._done(order, state.known) for order in state.doing]
            return replace(decided, effects=(*decided.effects, *ends))
        return None

    _steps(patch, views, change)


def forgets_what_waits(patch: pytest.MonkeyPatch) -> None:
    def change(real: Any, state: Any, event: Any, moment: Any) -> Any:
        decided = real(state, event, moment)
        if isinstance(decided.state, views.Changing):
            return replace(decided, state=replace(decided.state, queue=()))
        return None

    _steps(patch, views, change)


def never_brings_back(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(homes, "returning", lambda *args: frozenset())


# -- the server: markers ----------------------------------------------------------------------------------------------


def uses_a_newer_view_than_the_streams(patch: pytest.MonkeyPatch) -> None:
    """The first router's marker counts for all (L2)."""
    real = ViewServer.obey

    def obey(self: ViewServer, said: Any) -> None:
        if isinstance(said, Marker):
            for router, state in enumerate(self.aligned):
                if state.change.epoch < said.epoch:
                    real(self, replace(said, router=router))
        else:
            real(self, said)

    patch.setattr(ViewServer, "obey", obey)


def ignores_an_older_marker(patch: pytest.MonkeyPatch) -> None:
    """A marker is ignored if another router's has told the same view already."""
    real = ViewServer.obey

    def obey(self: ViewServer, said: Any) -> None:
        if isinstance(said, Marker) and said.epoch <= max(state.change.epoch for state in self.aligned):
            return
        real(self, said)

    patch.setattr(ViewServer, "obey", obey)


def aligns_in_memory(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(handoffs, "view_key", lambda router: b"elsewhere")


# -- the server: what leaves ------------------------------------------------------------------------------------------


def does_not_freeze(patch: pytest.MonkeyPatch) -> None:
    _without(patch, alignment, alignment.Freeze)


def ships_after_close(patch: pytest.MonkeyPatch) -> None:
    """HandedOff goes out at the marker, rows follow."""

    def change(real: Any, state: Any, event: Any, **where: Any) -> Any:
        decided = real(state, event, **where)
        if isinstance(event, Marker) and isinstance(decided.state, Sending):
            done = real(replace(decided.state, sent=True), alignment.Concluded(), **where)
            return alignment.Step(decided.state, (*decided.effects, *done.effects))
        return None

    _steps(patch, alignment, change)


def leaves_what_waits_behind(patch: pytest.MonkeyPatch) -> None:
    real = alignment.ahead

    def ahead(state: Any, held: Any) -> Any:
        if isinstance(state, Sending) and state.waiting and not state.sent:
            return alignment.Conclude()
        return real(state, held)

    patch.setattr(alignment, "ahead", ahead)
    step = alignment.step

    def stepped(state: Any, event: Any, **where: Any) -> Any:
        if isinstance(event, alignment.Concluded) and isinstance(state, Sending):
            state = replace(state, sent=True)
        return step(state, event, **where)

    patch.setattr(alignment, "step", stepped)


def keeps_what_it_ships(patch: pytest.MonkeyPatch) -> None:
    """Rows are sent and stay."""
    real = ViewServer.leaving_page

    def leaving_page(self: ViewServer, router: int, table: str, after: str) -> Any:
        rows = self.rows["sessions" if table == "s" else "waiting"]
        before = dict(rows.scan())
        page = real(self, router, table, after)
        for key, row in before.items():
            rows.put(key, row)
        return page

    patch.setattr(ViewServer, "leaving_page", leaving_page)


def ships_what_is_no_session(patch: pytest.MonkeyPatch) -> None:
    """Rows of a migration that were staged here leave like those that are live (L4)."""

    def leaves(self: ViewServer, router: int, key: bytes) -> int | None:
        tenant, _, session = key.decode().split("\0")[:3]
        if self.world.router_of(tenant) != router:
            return None
        whose = self.whose(tenant, session)
        return whose.to if isinstance(whose, affinity.Stranger) else None

    patch.setattr(ViewServer, "leaves", leaves)


def ships_what_stays(patch: pytest.MonkeyPatch) -> None:
    """When servers return, everything goes to them."""
    real = ViewServer.leaves

    def leaves(self: ViewServer, router: int, key: bytes) -> int | None:
        state = self.aligned[router]
        found = real(self, router, key)
        if found is None and state.change.restored and self.world.router_of(key.split(b"\0")[0].decode()) == router:
            return min(state.change.restored)
        return found

    patch.setattr(ViewServer, "leaves", leaves)


# -- the server: what comes -------------------------------------------------------------------------------------------


def runs_adopted_tasks_before_complete(patch: pytest.MonkeyPatch) -> None:
    real = affinity.whose

    def whose(*args: Any, **kwargs: Any) -> Any:
        found = real(*args, **kwargs)
        return OWN if isinstance(found, Comes) else found

    patch.setattr(affinity, "whose", whose)


def accepts_an_older_complete(patch: pytest.MonkeyPatch) -> None:
    real = alignment.step

    def stepped(state: Any, event: Any, **where: Any) -> Any:
        if isinstance(event, HandedOff) and isinstance(state, Receiving) and event.view < state.change.epoch:
            event = replace(event, view=state.change.epoch)
        return real(state, event, **where)

    patch.setattr(alignment, "step", stepped)


def is_live_when_complete(patch: pytest.MonkeyPatch) -> None:
    """Sessions live when everything of them has arrived, whatever the server's own stream says (L4)."""

    def change(real: Any, state: Any, event: Any, **where: Any) -> Any:
        decided = real(state, event, **where)
        if isinstance(event, HandedOff) and isinstance(decided.state, Early):
            return replace(decided, effects=(*decided.effects, GoLive(event.source)))
        return None

    _steps(patch, alignment, change)
    real = ViewServer.lives

    def lives(self: ViewServer, tenant: str, session: str) -> bool:
        return real(self, tenant, session) or isinstance(self.aligned[self.world.router_of(tenant)], Early)

    patch.setattr(ViewServer, "lives", lives)


def takes_a_hand_off_twice(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(alignment, "wanted", lambda state, part: True)


def does_not_count(patch: pytest.MonkeyPatch) -> None:
    """A row is lost on its way, and nobody compares (L10)."""
    real = alignment.step

    def stepped(state: Any, event: Any, **where: Any) -> Any:
        if isinstance(event, HandedOff) and isinstance(state, Early | Receiving):
            part = affinity.part_of(state.parts, event.source)
            event = replace(event, chunks=part.chunk, rows=part.digest.rows, checksum=part.digest.text)
        return real(state, event, **where)

    patch.setattr(alignment, "step", stepped)
    put = ViewServer.put

    def loses(self: ViewServer, part: Any) -> Any:
        items = part.items[1:] if part.number == 1 else part.items
        return replace(put(self, replace(part, items=items)), part=part)

    patch.setattr(ViewServer, "put", loses)


def loses_a_row(patch: pytest.MonkeyPatch) -> None:
    """The same, and somebody compares: nothing wrong is served, and the view stays open."""
    put = ViewServer.put

    def loses(self: ViewServer, part: Any) -> Any:
        items = part.items[1:] if part.number == 1 else part.items
        return replace(put(self, replace(part, items=items)), part=part)

    patch.setattr(ViewServer, "put", loses)


def does_not_set_timers(patch: pytest.MonkeyPatch) -> None:
    _without(patch, alignment, GoLive)


def holds_in_memory(patch: pytest.MonkeyPatch) -> None:
    """Held tasks are no rows: a new host has forgotten them (L6)."""
    real = ViewServer.open

    def opened(self: ViewServer) -> None:
        for key, _ in list(self.rows[handoffs.NAME].scan(handoffs.HELD)):
            self.rows[handoffs.NAME].delete(key)
        real(self)

    patch.setattr(ViewServer, "open", opened)


def pauses_hand_offs(patch: pytest.MonkeyPatch) -> None:
    """While too much is held nothing is read: what would end it is not read either (L6, I6)."""
    real = ViewServer.reads
    patch.setattr(ViewServer, "reads", lambda self, topic: not self.held.full and real(self, topic))


def overtakes_what_is_held(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(Held, "waits", lambda self, name: False)


def resumes_the_last_first(patch: pytest.MonkeyPatch) -> None:
    real = ViewServer.resume

    def resume(self: ViewServer, router: int, source: int) -> None:
        rows = self.rows[handoffs.NAME]
        found = list(rows.scan(handoffs.held_of(router, source)))
        for (key, _), (_, row) in zip(found, reversed(found), strict=True):
            rows.put(key, row)
        real(self, router, source)

    patch.setattr(ViewServer, "resume", resume)


def holds_its_own_sessions(patch: pytest.MonkeyPatch) -> None:
    """Everything waits until the view is closed: strangers pay (I5)."""
    real = affinity.whose

    def whose(state: Any, *args: Any, **kwargs: Any) -> Any:
        found = real(state, *args, **kwargs)
        return Comes(min(state.change.sources)) if isinstance(state, Receiving) and found == OWN else found

    patch.setattr(affinity, "whose", whose)


def closes_while_tasks_are_held(patch: pytest.MonkeyPatch) -> None:
    real = alignment.ahead
    patch.setattr(alignment, "ahead", lambda state, held: real(state, {}))


def reports_before_all_routers(patch: pytest.MonkeyPatch) -> None:
    """The first router's part counts for all (L3)."""
    real = closing.closed

    def closed(states: Any) -> int:
        done = [state.change.epoch for state in states if isinstance(state, Aligned)]
        return max(done, default=real(states))

    patch.setattr(closing, "closed", closed)


def does_not_report(patch: pytest.MonkeyPatch) -> None:
    real = closing.notices

    def notices(*args: Any) -> Any:
        return tuple(said for said in real(*args) if not isinstance(said, closing.Report))

    patch.setattr(closing, "notices", notices)


def moves_a_tenant_whose_home_is_down(patch: pytest.MonkeyPatch) -> None:
    """A migration from a home that is down copies what is there: nothing."""

    def change(real: Any, state: Any, event: Any, moment: Any) -> Any:
        if isinstance(state, Settled) and isinstance(event, Order):
            return real(state, event, replace(moment, up=frozenset(range(moment.servers))))
        return None

    _steps(patch, migration, change)


BREAKS: list[Break] = [
    skips_one_routers_marker,
    remembers_settled_tenants,
    goes_on_moving,
    moves_while_a_view_is_open,
    adopts_in_memory,
    does_not_say_where_tenants_live,
    does_not_wait_for_everybody,
    fails_the_last_server,
    ends_an_order_twice,
    forgets_what_waits,
    never_brings_back,
    uses_a_newer_view_than_the_streams,
    ignores_an_older_marker,
    aligns_in_memory,
    does_not_freeze,
    ships_after_close,
    leaves_what_waits_behind,
    keeps_what_it_ships,
    ships_what_is_no_session,
    ships_what_stays,
    runs_adopted_tasks_before_complete,
    accepts_an_older_complete,
    is_live_when_complete,
    takes_a_hand_off_twice,
    does_not_count,
    loses_a_row,
    does_not_set_timers,
    holds_in_memory,
    pauses_hand_offs,
    overtakes_what_is_held,
    resumes_the_last_first,
    holds_its_own_sessions,
    closes_while_tasks_are_held,
    reports_before_all_routers,
    does_not_report,
    moves_a_tenant_whose_home_is_down,
]


RARE: dict[Break, Callable[[Choose], ViewScript]] = {
    accepts_an_older_complete: repeating,
    is_live_when_complete: waiting,
    ships_what_is_no_session: moving,
    holds_in_memory: views_only,
}
"""What few histories show needs those that are made of it."""


@pytest.mark.parametrize("rule", BREAKS, ids=lambda rule: rule.__name__)
def test_without_the_rule_a_history_breaks(rule: Break, monkeypatch: pytest.MonkeyPatch) -> None:
    small(monkeypatch)
    rule(monkeypatch)
    script = RARE.get(rule)

    def walk(choose: Choose) -> ViewWorld:
        return history(choose) if script is None else play(choose, script(choose))

    assert killed_after(walk, histories=3_000) is not None


@pytest.mark.parametrize("script", dict.fromkeys(RARE.values()), ids=lambda script: script.__name__)
def test_with_the_rule_it_does_not(script: Callable[[Choose], ViewScript], monkeypatch: pytest.MonkeyPatch) -> None:
    small(monkeypatch)
    assert killed_after(lambda choose: play(choose, script(choose)), histories=25) is None
