"""The steward: the shell around :mod:`app.protocol.views`, hosted with router 0.

Deaths are told by plans of the group alone: who is gone without a word of leaving has died. That word stands in
``commands[0]``, so no plan is believed before everything that was written there when the plan came has been read: the
steward writes a record of its own behind it, and looks at the plan when it reads that record.
"""

import time
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import orjson

from agents.announcing import Announcer
from app.engine.crashpoints import passing
from app.engine.table import Rows
from app.protocol import control, views
from app.protocol.markers import Closed, Leaving, Look, View
from app.protocol.moves import Announce
from app.protocol.views import Calm, Moment, Publish
from tables import views as table

if TYPE_CHECKING:
    from agents.router import RouterContext

VIEW_KEY = b"view"
"""The one key of ``views``: the last view."""


class Steward:
    """The steward, as the worker that hosts router 0 performs it."""

    def __init__(self, context: "RouterContext", rows: Rows, announcer: Announcer) -> None:
        self._context = context
        self._rows = rows
        self._announcer = announcer
        row = rows.get(table.STEWARD)
        self._state: views.State = views.first(context.servers) if row is None else table.decode(row)
        self._changed = False
        self._token = ""
        # The last generations of which it has asked to look at the plan, and has.
        self._asked = self._looked = -1

    # -- what comes -----------------------------------------------------------------------------------------------

    def take(self, said: Closed | Leaving | Look) -> None:
        """A control record of ``commands[0]``."""
        if not isinstance(said, Look):
            self.step(said)
        elif said.token == self._token and self._looked != self._asked == self._context.engine.generation:
            self._looked = self._asked
            self.step(self._context.seen())

    def step(self, event: views.Event) -> None:
        """Decide, and do what follows."""
        now_ms = int(time.time() * 1000)
        decided = views.step(self._state, event, self._moment(now_ms))
        if decided.state != self._state:
            self._state = decided.state
            self._changed = True
        for effect in decided.effects:
            match effect:
                case Publish(record):
                    self._publish(*control.encode(record), record if isinstance(record, View) else None)
                case Announce():
                    self._announcer.say(_subject(effect.fields), effect, now_ms)

    def _moment(self, now_ms: int) -> Moment:
        context = self._context
        return Moment(context.servers, context.rehome_after_ms, context.forget_after_ms, now_ms)

    def _publish(self, key: bytes, value: bytes, view: View | None) -> None:
        """To every router in one unit, and to ``views`` for everybody else."""
        context = self._context
        unit = context.engine.unit
        for router in range(context.routers):
            unit.output(context.names.commands, router).append((key, value))
        known = self._state.known
        told: dict[str, Any] = {"v": 1, "view": known.epoch, "down": sorted(known.down), "closed": view is None}
        if view is not None:
            told |= {"failed": view.failed, "restored": view.restored, "managers": view.managers}
        unit.output(context.names.views, 0).append((VIEW_KEY, orjson.dumps(told)))
        unit.weight += context.routers + 1
        passing("view-published")
        context.engine.hurry()

    # -- time -----------------------------------------------------------------------------------------------------

    @property
    def due(self) -> float | None:
        """Unix time at which :meth:`on_time` is wanted."""
        if self._asked != self._context.engine.generation:
            return 0.0
        if self._looked != self._asked:
            # Who seems to be gone may be back in a plan that was not looked at yet.
            return None
        at = views.due_ms(self._state, self._moment(0))
        return None if at is None else at / 1000

    def on_time(self, now: float) -> None:
        """Ask to look at a plan that is new; then whatever falls due by time."""
        generation = self._context.engine.generation
        if self._asked != generation:
            self._asked = generation
            self._token = f"{time.time_ns()}"
            key, value = control.encode(Look(self._token))
            where = self._context.engine.unit.output(self._context.names.commands, 0)
            where.append((key, value))
            return
        due = self.due
        if due is not None and due <= now:
            self.step(views.Tick())

    def before_seal(self) -> None:
        """Write the row, if it has changed."""
        if self._changed:
            self._changed = False
            self._rows.put(table.STEWARD, table.encode(self._state))

    # -- what can be told -----------------------------------------------------------------------------------------

    @property
    def known(self) -> views.Known:
        """The last view, and home workers."""
        return self._state.known

    def missing(self) -> Sequence[int]:
        """The servers that have not closed the view that is under way."""
        state = self._state
        return () if isinstance(state, Calm) else sorted(state.missing)


def _subject(fields: Mapping[str, Any]) -> bytes:
    """The key of an event."""
    if "server" in fields:
        return b"server-%d" % fields["server"]
    return str(fields["worker"]).encode() if "worker" in fields else b"views"
