"""What the words of a transfer say about themselves."""

from dataclasses import replace

import pytest

from app.protocol.conveyance import (
    Completing,
    Nak,
    Reason,
    Segment,
    State,
    due_ms,
    first_of,
    length_of,
    refusal,
    unfinished,
)
from tests.unit.protocol.test_transfer import COMPLETING, CONVEYING, DONE, FAILED, FLOATING, IDLE, LEFT

SEGMENTS = (Segment("a", 3), Segment("b", 0), Segment("c", 5))


@pytest.mark.parametrize(
    ("state", "due", "counts", "nak"),
    [
        (IDLE, None, False, Nak(Reason.UNKNOWN)),
        (FLOATING, 500, True, Nak(Reason.BUSY, 4)),
        (CONVEYING, 20, True, Nak(Reason.LOCKED, 4, "a")),
        (COMPLETING, 20, True, Nak(Reason.LOCKED, 10, "a")),
        (LEFT, 30, True, Nak(Reason.LOCKED, 10, "")),
        (DONE, None, False, Nak(Reason.COMPLETE, 10)),
        (replace(DONE, expires_ms=7), 7, False, Nak(Reason.COMPLETE, 10)),
        (FAILED, 900, False, Nak(Reason.EXPIRED)),
    ],
)
def test_every_state_says(state: State, due: int | None, counts: bool, nak: Nak) -> None:
    assert due_ms(state) == due
    assert unfinished(state) is counts
    assert refusal(state) == nak


def test_segments_are_measured() -> None:
    assert length_of(SEGMENTS) == 8
    assert first_of(SEGMENTS, 0) == ()
    assert first_of(SEGMENTS, 3) == SEGMENTS[:1]
    assert first_of(SEGMENTS, 8) == SEGMENTS
    assert isinstance(LEFT, Completing)
