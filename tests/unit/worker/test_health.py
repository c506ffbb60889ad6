"""When a worker says that it should be started again."""

import time
from types import SimpleNamespace
from typing import Any, cast

import pytest

from app.engine.engine import Engine
from app.worker.health import FRESH_S, STUCK_S, healthy

TIMEOUT_S = 30.0
LONG_S = TIMEOUT_S + STUCK_S + 1
WORK = ("work", 1)


def engine(
    *, lag: int = 0, still: float = 0.0, measured: float = 0.0, restored: float | None = None, hosted: bool = True
) -> Engine:
    """An engine of one place; ``restored``: it is being restored, and so long ago a row was read for it."""
    now = time.monotonic()
    place = SimpleNamespace(partitions=[WORK], running=restored is None)
    made: Any = SimpleNamespace(
        options=SimpleNamespace(name="w1"),
        plan=SimpleNamespace(hosted_by=lambda name: frozenset({"server-1"} if hosted else ())),
        places=SimpleNamespace(all={"server-1": place}),
        janitor=SimpleNamespace(lags={WORK: lag}, measured_at=now - measured),
        flow=SimpleNamespace(progress=now - still),
        changelog=SimpleNamespace(progress=now - (restored or 0.0)),
    )
    return cast("Engine", made)


@pytest.mark.parametrize(
    ("given", "good"),
    [
        ({}, True),
        ({"still": LONG_S}, True),
        ({"lag": 7}, True),
        ({"lag": 7, "still": TIMEOUT_S}, True),
        ({"lag": 7, "still": LONG_S}, False),
        # The broker does not answer, so nobody knows; starting again would not help.
        ({"lag": 7, "still": LONG_S, "measured": FRESH_S + 1}, True),
        # Rows come in, however long it takes; and then they do not.
        ({"lag": 7, "still": LONG_S, "restored": 1.0}, True),
        ({"lag": 7, "still": LONG_S, "restored": LONG_S}, False),
        # What others serve is theirs.
        ({"lag": 7, "still": LONG_S, "hosted": False}, True),
    ],
)
def test_a_worker_is_unhealthy_only_if_it_has_work_and_nothing_moves(given: dict[str, Any], good: bool) -> None:
    said, why = healthy(engine(**given), TIMEOUT_S)
    assert said is good
    assert bool(why) is not good


def test_a_worker_that_has_not_begun_is_not_stuck() -> None:
    assert healthy(None, TIMEOUT_S) == (True, "")


def test_the_reason_says_how_much_and_how_long() -> None:
    _, why = healthy(engine(lag=7, still=100.4), TIMEOUT_S)
    assert why == "7 records behind, and nothing has moved for 100 s"
