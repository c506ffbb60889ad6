"""How fast a server works beside its stream: on copies of tenants that leave, and on rows that nobody reads any more.

A slice of some rows, then a rest. A row that is copied costs its server little, and others as much again each: the
target, the changelogs, their standbys, the broker. So the rest bounds rows in a second, and not only the share of the
server's own time; and all that copy at once from one worker share one pace.

A tenant whose sessions change faster than the pace would never come to its cut with few of them left. Its rounds of
changed sessions go at a quicker pace, as soon as a round shows it.
"""

from dataclasses import dataclass

from app.protocol.shipping import Shipment

REST_MAX_S = 0.2
"""No rest is longer, whatever a slice has taken on a machine that is short of time."""


@dataclass(frozen=True, slots=True)
class Pace:
    """At most ``rows`` rows in a slice, ``period_s`` from one slice to the next, and a rest ``rest`` times as long."""

    rows: int
    period_s: float
    rest: float

    def rest_s(self, spent_s: float, sharing: int = 1) -> float:
        """How long to rest after a slice that took ``spent_s``, when so many ``sharing`` copies are under way."""
        return min(max(self.period_s * sharing - spent_s, self.rest * spent_s * sharing, 0.0), REST_MAX_S)


CALM = Pace(rows=160, period_s=0.02, rest=9.0)
"""The pace of a copy: 8,000 rows a second, and a tenth of the server's time."""

QUICK = Pace(rows=400, period_s=0.01, rest=4.0)
"""That of sessions that change quickly: five times as many rows, and a fifth of the time."""

SORTING = Pace(rows=0, period_s=0.0, rest=4.0)
"""That of sorting keys, which is nobody else's work."""

SWEEP = Pace(rows=160, period_s=0.02, rest=9.0)
"""That of deleting rows."""


def quick(before: bool, shipment: Shipment, marked: int) -> bool:
    """Does a copy go at the quick pace? ``before``: it did; ``marked``: so many changed sessions are to be shipped.

    It changes when a round of changed sessions begins: if that has more than a quarter of what was shipped in the one
    before it, or in the copy itself.
    """
    if before or not shipment.scanned:
        return before
    if shipment.left:
        return False
    shipped = shipment.digest.rows if shipment.begun < 0 else shipment.begun
    return 4 * marked > shipped
