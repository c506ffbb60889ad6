"""The view that one router sends under: the shell around :mod:`app.protocol.adoption`.

Views come by ``commands`` and are adopted in one unit with all that follows: migrations are told first, then a marker
goes into every server's stream behind all that was routed before it.
"""

import time
from collections.abc import Callable
from typing import TYPE_CHECKING

from agents.announcing import announce
from app.engine.crashpoints import passing
from app.engine.places import Place
from app.protocol import adoption, control
from app.protocol.adoption import Adopted, Mark, TellMoves
from app.protocol.markers import View, ViewClosed
from app.protocol.moves import Announce
from app.protocol.placement import Routes
from tables import views

if TYPE_CHECKING:
    from agents.router import RouterContext


class Adopting:
    """The adopted view of one router.

    Args:
        tell: told of servers that fail or return, before the router sends under the new view.
        unsettle: forgets whatever the router remembers of settled tenants.
    """

    def __init__(
        self,
        context: "RouterContext",
        place: Place,
        *,
        tell: Callable[[frozenset[int]], None],
        unsettle: Callable[[], None],
    ) -> None:
        self._context = context
        self._number = place.number
        self._rows = place.rows[views.NAME]
        self._tell = tell
        self._unsettle = unsettle
        self._routes = Routes()
        row = self._rows.get(views.ADOPTED)
        self.adopted = Adopted() if row is None else views.decode_adopted(row)
        self.up = self.adopted.up(context.servers)
        """The servers that are up; one set for each view, so that it is found again fast."""

    def route(self, tenant: str, session: str, home: int) -> int:
        """The server of a session's next task."""
        return self._routes.route(tenant, session, home, self.up)

    def take(self, said: View | ViewClosed) -> None:
        """A word of the steward."""
        decided = adoption.step(self.adopted, said, router=self._number)
        if decided.adopted == self.adopted:
            return
        self._rows.put(views.ADOPTED, views.encode_adopted(decided.adopted))
        for effect in decided.effects:
            match effect:
                case TellMoves(changed):
                    self._tell(changed)
                case Mark(marker):
                    self.up = decided.adopted.up(self._context.servers)
                    self._unsettle()
                    key, value = control.encode(marker)
                    for server in range(self._context.servers):
                        where = self._context.engine.unit.output(self._context.names.work, server)
                        where.append((key, value))
                    passing("view-marks")
                case Announce():
                    subject = b"router-%d" % self._number
                    announce(self._context.engine, self._context.names, subject, effect, int(time.time() * 1000))
        self.adopted = decided.adopted
        self._context.engine.hurry()
