"""Is a worker alive? What restarts it asks this, so it must not say no of one that a restart does not help."""

import time

from app.engine.engine import Engine
from app.engine.janitor import LAG_S

STUCK_S = 5.0
"""A worker with something to do is unhealthy when nothing has moved for so long beyond the task timeout."""

FRESH_S = 5 * LAG_S
"""An older measurement of lags says nothing: the broker does not answer, which a restart would not mend."""


def healthy(engine: Engine | None, task_timeout: float) -> tuple[bool, str]:
    """Does anything move, if there is something to do? If not, why not in one line."""
    if engine is None:
        return True, ""
    now = time.monotonic()
    if now - engine.janitor.measured_at > FRESH_S:
        return True, ""
    mine = [engine.places.all[name] for name in engine.plan.hosted_by(engine.options.name)]
    lag = sum(engine.janitor.lags.get(place.partitions[0], 0) for place in mine)
    moved = engine.flow.progress
    if not all(place.running for place in mine):
        moved = max(moved, engine.changelog.progress)
    if lag and now - moved > task_timeout + STUCK_S:
        return False, f"{lag} records behind, and nothing has moved for {now - moved:.0f} s"
    return True, ""
