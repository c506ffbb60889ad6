"""Each rule of the migration cores is needed: without it the simulation finds a history in which a promise breaks."""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest

from app.protocol import control, migration, moves, parking, shipping, staging, tenancy
from app.protocol.control import Abort, Cut, Installed, Placed, Progress, Ready
from app.protocol.moves import Copying, Cutting, Forward, Releasing, Settled
from app.protocol.shipping import Frozen
from tables import placements
from tests.property.mutation import Choose, killed_after
from tests.simulation.sim_router import Router
from tests.simulation.sim_server import Server
from tests.simulation.test_migrations import history, play, restless, small
from tests.simulation.world import World

Break = Callable[[pytest.MonkeyPatch], None]


def _steps(patch: pytest.MonkeyPatch, module: Any, change: Callable[..., Any]) -> None:
    """Ask ``change`` before the core; None leaves the decision to it."""
    real = module.step
    patch.setattr(module, "step", lambda *args, **kwargs: change(real, *args, **kwargs) or real(*args, **kwargs))


def _record(effect: Any, kind: type) -> bool:
    return isinstance(getattr(effect, "record", None), kind)


# -- the router -------------------------------------------------------------------------------------------------------


def forwards_while_parked(patch: pytest.MonkeyPatch) -> None:
    def change(real: Any, state: Any, event: Any, moment: Any) -> Any:
        if isinstance(state, Cutting) and isinstance(event, migration.Arrived):
            return migration.Step(state, (Forward(),))
        return None

    _steps(patch, migration, change)


def forwards_while_it_releases(patch: pytest.MonkeyPatch) -> None:
    def change(real: Any, state: Any, event: Any, moment: Any) -> Any:
        if isinstance(state, Releasing) and isinstance(event, migration.Arrived):
            return migration.Step(state, (Forward(),))
        return None

    _steps(patch, migration, change)


def releases_before_it_commits(patch: pytest.MonkeyPatch) -> None:
    def change(real: Any, state: Any, event: Any, moment: Any) -> Any:
        if isinstance(state, Cutting) and isinstance(event, Progress | Ready):
            parts = ((0, 0, ""),)
            return real(state, Installed(moment.tenant, state.placement.tried, state.move.to, 0, 0, parts), moment)
        return None

    _steps(patch, migration, change)


def commits_behind_what_it_releases(patch: pytest.MonkeyPatch) -> None:
    def change(real: Any, state: Any, event: Any, moment: Any) -> Any:
        decided = real(state, event, moment)
        if isinstance(event, migration.Delivered) and isinstance(state, Releasing):
            told = state.outcome.parts and [
                migration.Tell(server, control.Commit(moment.tenant, state.placement.tried, state.move.to))
                for server in {*state.move.sources, state.move.to}
            ]
            return migration.Step(decided.state, (*decided.effects, *(told or ())))
        kept = tuple(
            effect
            for effect in decided.effects
            if not (
                isinstance(decided.state, Releasing) and isinstance(getattr(effect, "record", None), control.Commit)
            )
        )
        return migration.Step(decided.state, kept)

    _steps(patch, migration, change)


def takes_an_old_answer(patch: pytest.MonkeyPatch) -> None:
    def change(real: Any, state: Any, event: Any, moment: Any) -> Any:
        if isinstance(state, Copying | Cutting) and isinstance(event, Ready | Installed):
            return real(state, replace(event, epoch=state.placement.tried), moment)
        return None

    _steps(patch, migration, change)


def uses_an_epoch_twice(patch: pytest.MonkeyPatch) -> None:
    def change(real: Any, state: Any, event: Any, moment: Any) -> Any:
        decided = real(state, event, moment)
        place = decided.state.placement
        if isinstance(decided.state, Settled) and place.tried > place.epoch:
            place = replace(place, tried=place.epoch)
            return migration.Step(replace(decided.state, placement=place), decided.effects)
        return decided

    _steps(patch, migration, change)


def does_not_cut(patch: pytest.MonkeyPatch) -> None:
    def change(real: Any, state: Any, event: Any, moment: Any) -> Any:
        decided = real(state, event, moment)
        kept = tuple(e for e in decided.effects if not _record(e, Cut))
        return migration.Step(decided.state, kept)

    _steps(patch, migration, change)


def closes_the_gate_too_late(patch: pytest.MonkeyPatch) -> None:
    """The marker goes out before the gate is closed: what comes next in the unit goes behind it."""

    def change(real: Any, state: Any, event: Any, moment: Any) -> Any:
        first = isinstance(state, Cutting) and isinstance(event, migration.Arrived) and state.lot.parked == 0
        return migration.Step(state, (Forward(),)) if first and moment.now_ms == state.cut_ms else None

    _steps(patch, migration, change)


def tells_the_target_alone_of_an_abort(patch: pytest.MonkeyPatch) -> None:
    def change(real: Any, state: Any, event: Any, moment: Any) -> Any:
        decided = real(state, event, moment)
        kept = tuple(e for e in decided.effects if not (_record(e, Abort) and e.server != state.move.to))
        return migration.Step(decided.state, kept)

    _steps(patch, migration, change)


def tells_the_source_alone_of_an_abort(patch: pytest.MonkeyPatch) -> None:
    def change(real: Any, state: Any, event: Any, moment: Any) -> Any:
        decided = real(state, event, moment)
        kept = tuple(e for e in decided.effects if not (_record(e, Abort) and e.server == state.move.to))
        return migration.Step(decided.state, kept)

    _steps(patch, migration, change)


def keeps_the_move_from_third_servers(patch: pytest.MonkeyPatch) -> None:
    def change(real: Any, state: Any, event: Any, moment: Any) -> Any:
        decided = real(state, event, moment)
        kept = tuple(e for e in decided.effects if not _record(e, Placed))
        return migration.Step(decided.state, kept)

    _steps(patch, migration, change)


def aborts_what_is_committed(patch: pytest.MonkeyPatch) -> None:
    def change(real: Any, state: Any, event: Any, moment: Any) -> Any:
        if isinstance(state, Releasing) and isinstance(event, migration.AbortOrdered) and not state.outcome.reason:
            place = replace(state.placement, home=state.move.origin)
            told = tuple(
                migration.Tell(server, Abort(moment.tenant, place.tried))
                for server in (state.move.origin, state.move.to)
            )
            return migration.Step(replace(state, placement=place), (*told, moves.reject(event.id, "too-late", moment)))
        return None

    _steps(patch, migration, change)


def has_no_deadline(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(migration, "deadline_ms", lambda state: None)


def ends_twice(patch: pytest.MonkeyPatch) -> None:
    def change(real: Any, state: Any, event: Any, moment: Any) -> Any:
        if isinstance(state, Copying | Cutting) and isinstance(event, migration.AbortOrdered):
            decided = real(state, event, moment)
            return migration.Step(decided.state, (*decided.effects, moves.reject(state.move.id, "aborted", moment)))
        return None

    _steps(patch, migration, change)


def keeps_the_lot_in_memory(patch: pytest.MonkeyPatch) -> None:
    real = Router.feed

    def feed(self: Router, tenant: str, event: Any, task: Any = None) -> None:
        rows = self.rows["placements"]
        before = rows.get(tenant.encode())
        real(self, tenant, event, task)
        if isinstance(event, migration.Arrived) and before is not None:
            rows.put(tenant.encode(), before)

    patch.setattr(Router, "feed", feed)


# -- the parking lot --------------------------------------------------------------------------------------------------


def releases_what_is_kept_first(patch: pytest.MonkeyPatch) -> None:
    real = parking.deliver

    def deliver(lot: Any, first: int, last: int, position: int) -> Any:
        lot, leaving = real(lot, first, last, position)
        return lot, tuple(sorted(leaving, key=lambda leave: isinstance(leave, parking.Release)))

    patch.setattr(migration, "deliver", deliver)


def takes_what_comes(patch: pytest.MonkeyPatch) -> None:
    """Not by number: whatever was read leaves."""

    def deliver(lot: Any, first: int, last: int, position: int) -> Any:
        leaving = (parking.Release(first, last),) if first <= last else ()
        lot = replace(lot, released=max(last, lot.released), position=max(lot.position or 0, position - 2))
        return lot, leaving

    patch.setattr(migration, "deliver", deliver)


def delays_the_place_too(patch: pytest.MonkeyPatch) -> None:
    """What falls due is parked again at the end."""
    real = Router.perform

    def perform(self: Router, tenant: str, state: Any, effect: Any, task: Any) -> None:
        real(self, tenant, state, effect, task)
        if isinstance(effect, migration.DelayAgain):
            log = self.log.partition(("delay", self.number))
            for record in log:
                if record is None or record.header is None:
                    continue
                owner, epoch, number = control.decode_parked(record.header)
                if (owner.decode(), epoch, number) == (tenant, state.placement.tried, state.lot.released + 1):
                    lot = replace(state.lot, parked=state.lot.parked + 1, released=state.lot.released + 1)
                    now = replace(state, lot=lot)
                    header = control.encode_parked(owner, epoch, lot.parked, effect.due_ms)
                    self.send("delay", self.number, record.key, record.value, header)
                    self.moving[tenant] = now
                    self.rows["placements"].put(owner, placements.encode(now))

    patch.setattr(Router, "perform", perform)


def truncates_what_is_parked(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(Router, "needs", lambda self: self.log.committed.get(("delay", self.number), 0))


def forgets_where_it_parked(patch: pytest.MonkeyPatch) -> None:
    """The lower bound of the lot is where `delay` ends for its reader when the release begins."""
    real = parking.deliver

    def deliver(lot: Any, first: int, last: int, position: int) -> Any:
        lot, leaving = real(lot, first, last, position)
        return replace(lot, position=position + 1), leaving

    patch.setattr(migration, "deliver", deliver)


# -- the source -------------------------------------------------------------------------------------------------------


def keeps_marks_in_memory(patch: pytest.MonkeyPatch) -> None:
    """A new host has forgotten what changed (L10)."""

    def mark(self: Server, tenant: str, session: str, row_key: bytes) -> None:
        return

    patch.setattr(Server, "mark", mark)


def forgets_the_version_it_shipped(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(shipping, "mark", lambda state, session, before: "")


def believes_it_shipped_what_it_has_not(patch: pytest.MonkeyPatch) -> None:
    real = shipping.mark

    def mark(state: Any, session: str, before: Any) -> str | None:
        return real(replace(state, shipment=replace(state.shipment, scanned=True)), session, before)

    patch.setattr(shipping, "mark", mark)


def marks_only_what_is_new(patch: pytest.MonkeyPatch) -> None:
    """What changes behind the scan is taken for something that it has still to come to."""
    patch.setattr(shipping, "mark", lambda state, session, before: "" if before is None else None)


def leaves_what_waits_behind(patch: pytest.MonkeyPatch) -> None:
    real = shipping.ahead

    def ahead(state: Any, marked: int) -> Any:
        task = real(state, marked)
        return shipping.Conclude() if isinstance(task, shipping.ShipWaiting) else task

    patch.setattr(shipping, "ahead", ahead)


def concludes_before_the_marks(patch: pytest.MonkeyPatch) -> None:
    real = shipping.ahead

    def ahead(state: Any, marked: int) -> Any:
        return real(state, 0) if isinstance(state, Frozen) else real(state, marked)

    patch.setattr(shipping, "ahead", ahead)


def does_not_freeze(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(Server, "freeze", lambda self, tenant: None)


def does_not_thaw(patch: pytest.MonkeyPatch) -> None:
    _drop(patch, shipping.Thaw)


def does_not_set_timers(patch: pytest.MonkeyPatch) -> None:
    _drop(patch, staging.GoLive)


def does_not_sweep(patch: pytest.MonkeyPatch) -> None:
    _drop(patch, shipping.Sweep)


def keeps_its_marks(patch: pytest.MonkeyPatch) -> None:
    _drop(patch, shipping.Unmark)


def _drop(patch: pytest.MonkeyPatch, kind: type) -> None:
    def change(real: Any, *args: Any, **kwargs: Any) -> Any:
        decided = real(*args, **kwargs)
        return replace(decided, effects=tuple(e for e in decided.effects if not isinstance(e, kind)))

    _steps(patch, tenancy, change)


def sweeps_what_it_serves(patch: pytest.MonkeyPatch) -> None:
    def change(real: Any, known: Any, event: Any, **kwargs: Any) -> Any:
        decided = real(known, event, **kwargs)
        if isinstance(event, Abort) and known.frozen and not decided.tenancy.frozen:
            return replace(decided, effects=(*decided.effects, shipping.Sweep(known.shipping.shipment.live)))
        return decided

    _steps(patch, tenancy, change)


def ignores_the_window(patch: pytest.MonkeyPatch) -> None:
    real = shipping.ahead
    patch.setattr(
        shipping,
        "ahead",
        lambda state, marked: real(replace(state, shipment=replace(state.shipment, taken=state.shipment.sent)), marked),
    )


# -- the target -------------------------------------------------------------------------------------------------------


def has_no_tombstone(patch: pytest.MonkeyPatch) -> None:
    def change(real: Any, known: Any, event: Any, **kwargs: Any) -> Any:
        decided = real(known, event, **kwargs)
        return replace(decided, tenancy=replace(decided.tenancy, dead=0))

    _steps(patch, tenancy, change)


def is_live_when_installed(patch: pytest.MonkeyPatch) -> None:
    def change(real: Any, known: Any, event: Any, *, tenant: str, server: int, view: int = 0) -> Any:
        decided = real(known, event, tenant=tenant, server=server, view=view)
        state = decided.tenancy.staging
        if isinstance(event, control.Complete) and isinstance(state, staging.Staged):
            return replace(
                decided,
                tenancy=replace(decided.tenancy, staging=None, home=server, epoch=state.epoch),
                effects=(*decided.effects, staging.GoLive(state.epoch)),
            )
        return decided

    _steps(patch, tenancy, change)


def takes_a_chunk_twice(patch: pytest.MonkeyPatch) -> None:
    """Every chunk is put into the rows, whatever was said of its epoch or came before."""
    patch.setattr(tenancy, "wanted", lambda known, chunk: True)


def installs_twice(patch: pytest.MonkeyPatch) -> None:
    """A target does not look at what is live: rows that come again are put over those that have changed since."""
    real = staging.wanted
    patch.setattr(
        tenancy,
        "wanted",
        lambda known, chunk: real(known.staging, chunk.epoch, chunk.source, chunk.number, known.dead),
    )
    step = staging.step

    def stepped(state: Any, event: Any, *, tenant: str, server: int, past: int) -> Any:
        again = isinstance(event, staging.Taken | control.Complete)
        return step(state, event, tenant=tenant, server=server, past=0 if again else past)

    patch.setattr(staging, "step", stepped)


def installs_without_looking(patch: pytest.MonkeyPatch) -> None:
    """A row is lost on its way, and nobody compares."""
    real = staging.step

    def stepped(state: Any, event: Any, **kwargs: Any) -> Any:
        if isinstance(event, control.Complete) and isinstance(state, staging.Staging):
            part = next((p for p in state.parts if p.source == event.source), None)
            if part is not None:
                event = replace(event, chunks=part.chunk, rows=part.digest.rows, checksum=part.digest.text)
        return real(state, event, **kwargs)

    patch.setattr(staging, "step", stepped)
    stage = Server.stage

    def loses(self: Server, chunk: Any, size: int) -> Any:
        items = chunk.items[1:] if chunk.number == 1 and len(chunk.items) > 1 else chunk.items
        return replace(stage(self, replace(chunk, items=items), size), chunk=chunk)

    patch.setattr(Server, "stage", loses)


BREAKS: list[Break] = [
    forwards_while_parked,
    forwards_while_it_releases,
    releases_before_it_commits,
    commits_behind_what_it_releases,
    takes_an_old_answer,
    uses_an_epoch_twice,
    does_not_cut,
    closes_the_gate_too_late,
    tells_the_target_alone_of_an_abort,
    tells_the_source_alone_of_an_abort,
    keeps_the_move_from_third_servers,
    aborts_what_is_committed,
    has_no_deadline,
    ends_twice,
    keeps_the_lot_in_memory,
    releases_what_is_kept_first,
    takes_what_comes,
    delays_the_place_too,
    truncates_what_is_parked,
    forgets_where_it_parked,
    keeps_marks_in_memory,
    forgets_the_version_it_shipped,
    believes_it_shipped_what_it_has_not,
    marks_only_what_is_new,
    leaves_what_waits_behind,
    concludes_before_the_marks,
    does_not_freeze,
    does_not_thaw,
    does_not_set_timers,
    does_not_sweep,
    keeps_its_marks,
    sweeps_what_it_serves,
    ignores_the_window,
    has_no_tombstone,
    is_live_when_installed,
    takes_a_chunk_twice,
    installs_twice,
    installs_without_looking,
]


@pytest.mark.parametrize("rule", BREAKS, ids=lambda rule: rule.__name__)
def test_without_the_rule_a_history_breaks(rule: Break, monkeypatch: pytest.MonkeyPatch) -> None:
    small(monkeypatch)
    rule(monkeypatch)
    # What comes out of date is rare in a world where most things happen once.
    late = rule in (takes_an_old_answer, aborts_what_is_committed, installs_twice)
    assert killed_after(_late if late else history) is not None


def _late(choose: Choose) -> World:
    return play(choose, restless(choose))
