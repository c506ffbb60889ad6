"""How fast a server works beside its stream."""

from dataclasses import replace

import pytest

from app.protocol.chunks import Digest
from app.protocol.pacing import CALM, QUICK, REST_MAX_S, SORTING, SWEEP, Pace, quick
from app.protocol.shipping import Shipment

NEW = Shipment(epoch=1, live=0, router=0, sources=(0,), target=1, digest=Digest(1_000, 7))
SCANNED = replace(NEW, scanned=True)
PACE = Pace(rows=100, period_s=0.01, rest=4.0)


@pytest.mark.parametrize(
    ("spent_s", "sharing", "rest_s"),
    [
        (0.0, 1, 0.01),
        (0.001, 1, 0.009),
        (0.002, 1, 0.008),
        (0.004, 1, 0.016),
        (0.0, 3, 0.03),
        (0.004, 3, 0.048),
        (0.5, 1, REST_MAX_S),
        (0.0, 50, REST_MAX_S),
    ],
)
def test_a_rest_bounds_rows_and_time(spent_s: float, sharing: int, rest_s: float) -> None:
    assert PACE.rest_s(spent_s, sharing) == pytest.approx(rest_s)


def test_keys_are_sorted_without_regard_to_rows() -> None:
    assert SORTING.rest_s(0.0) == 0.0
    assert SORTING.rest_s(0.001) == pytest.approx(0.004)


@pytest.mark.parametrize("pace", [CALM, SWEEP, QUICK])
def test_what_nobody_waits_for_leaves_most_of_the_time_to_others(pace: Pace) -> None:
    assert pace.rest_s(0.01) >= 4 * 0.01
    assert pace.rows / pace.period_s <= 40_000


def test_the_quick_pace_is_quicker() -> None:
    assert QUICK.rows / QUICK.period_s > CALM.rows / CALM.period_s


@pytest.mark.parametrize(
    ("before", "shipment", "marked", "expected"),
    [
        (False, NEW, 1_000, False),
        (True, NEW, 0, True),
        # The first round is compared with the copy, the next ones with the round before.
        (False, SCANNED, 250, False),
        (False, SCANNED, 251, True),
        (False, replace(SCANNED, begun=400), 100, False),
        (False, replace(SCANNED, begun=400), 101, True),
        # Not within a round: it began with what it began with.
        (False, replace(SCANNED, begun=400, left=1), 400, False),
        # Once quick, it stays so.
        (True, replace(SCANNED, begun=400), 0, True),
        (True, replace(SCANNED, begun=400, left=1), 0, True),
    ],
)
def test_sessions_that_change_quickly_are_copied_quickly(
    before: bool, shipment: Shipment, marked: int, expected: bool
) -> None:
    assert quick(before, shipment, marked) is expected
