"""Control records: wake-ups that come back, and records of strangers."""

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from app.errors import PeerProtocolError
from app.protocol.control import MARK, WAKE_KEY, DueWakeup, Wakeup, decode_control, decode_due, encode_wakeup

WAKEUP = Wakeup("acme", "cart-7", 12, 2)

names = st.text(min_size=1, max_size=20)
wakeups = st.builds(Wakeup, names, names, st.integers(1, 10**12 - 1), st.integers(1, 100))


@given(wakeups)
def test_a_wake_up_comes_back_from_a_servers_stream(wakeup: Wakeup) -> None:
    assert decode_control(WAKE_KEY, encode_wakeup(wakeup)) == wakeup


@given(wakeups, st.integers(0, 2**53))
def test_a_wake_up_comes_back_from_the_delay_topic(wakeup: Wakeup, due_ms: int) -> None:
    assert decode_due(WAKE_KEY, encode_wakeup(wakeup, due_ms)) == DueWakeup(wakeup, due_ms)


def test_the_bytes_of_a_wake_up() -> None:
    assert WAKE_KEY == b"!wake"
    assert encode_wakeup(WAKEUP) == b'{"v":1,"tenant":"acme","session":"cart-7","arrival":12,"attempt":2}'
    assert encode_wakeup(WAKEUP, 1_764_000_000_000) == (
        b'{"v":1,"tenant":"acme","session":"cart-7","arrival":12,"attempt":2,"due":1764000000000}'
    )


def test_a_later_release_may_say_more() -> None:
    value = b'{"v":1,"tenant":"acme","session":"cart-7","arrival":12,"attempt":2,"why":"retry"}'
    assert decode_control(WAKE_KEY, value) == WAKEUP


@given(st.integers(0, 99), st.integers(0, 2**62))
def test_no_tasks_key_looks_like_a_control_records(partition: int, offset: int) -> None:
    assert WAKE_KEY[0] == MARK
    assert (b"%d:%d" % (partition, offset))[0] != MARK


@pytest.mark.parametrize("key", [b"", b"!", b"!marker", b"3:17", b"x" * 10_000, None])
def test_an_unknown_kind_is_refused(key: bytes | None) -> None:
    for decode in (decode_control, decode_due):
        with pytest.raises(PeerProtocolError) as caught:
            decode(key, encode_wakeup(WAKEUP, 5))
        assert len(str(caught.value)) < 200


FIELDS: dict[str, Any] = {"v": 1, "tenant": "a", "session": "b", "arrival": 1, "attempt": 1, "due": 5}


@pytest.mark.parametrize(
    "value",
    [
        None,
        b"",
        b"\xff",
        b"null",
        b"7",
        b"[]",
        b"{}",
        b'{"v":1',
        *(
            json.dumps({**FIELDS, **wrong}).encode()
            for wrong in (
                {"v": 2},
                {"v": 0},
                {"v": "1"},
                {"tenant": 7},
                {"session": None},
                {"arrival": "1"},
                {"attempt": None},
            )
        ),
        *(
            json.dumps({name: field for name, field in FIELDS.items() if name != missing}).encode()
            for missing in ("v", "tenant", "session", "arrival", "attempt")
        ),
    ],
)
def test_what_no_worker_of_this_version_wrote_is_refused(value: bytes | None) -> None:
    for decode in (decode_control, decode_due):
        with pytest.raises(PeerProtocolError):
            decode(WAKE_KEY, value)


@pytest.mark.parametrize("due", [None, "5", [5]])
def test_a_wake_up_without_a_time_is_none_of_the_delay_topic(due: Any) -> None:
    with pytest.raises(PeerProtocolError):
        decode_due(WAKE_KEY, encode_wakeup(WAKEUP))
    with pytest.raises(PeerProtocolError):
        decode_due(WAKE_KEY, json.dumps({**FIELDS, "due": due}).encode())
