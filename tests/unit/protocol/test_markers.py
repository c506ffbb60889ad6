"""Records about views: every one has a key and a direction, and answers to the steward are no orders."""

from typing import get_args

import pytest

from app.protocol import markers
from app.protocol.control import KEYS, Control, decode_control, encode, is_order
from app.protocol.markers import Closed, HandedOff, Leaving, Look, Marker, View, ViewClosed

RECORDS = [
    View(7, (1,), (1,), (), ((1, "w2"),)),
    ViewClosed(7),
    Marker(0, 7, (1,), (1,), (), ((1, "w2"),)),
    HandedOff(7, 0, 1, 2, 3, "ab"),
    Closed(2, 7),
    Leaving("w1", 5),
    Look("w1/5/1"),
]


def test_every_record_about_views_is_a_control_record() -> None:
    ours = {kind for kind in vars(markers).values() if isinstance(kind, type) and kind.__module__ == markers.__name__}
    assert ours == {type(record) for record in RECORDS}
    assert ours <= KEYS.keys() & set(get_args(Control))


@pytest.mark.parametrize("record", RECORDS, ids=lambda record: type(record).__name__)
def test_it_comes_back_and_is_no_order(record: Control) -> None:
    key, value = encode(record)
    assert decode_control(key, value) == record
    assert key.startswith(b"!")
    assert not is_order(value)
