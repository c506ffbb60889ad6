"""Control records: wake-ups that come back, and records of strangers."""

import json
from dataclasses import fields
from pathlib import Path
from typing import Any, get_args

import pytest
from hypothesis import given
from hypothesis import strategies as st

from app.errors import PeerProtocolError
from app.protocol import control
from app.protocol.control import (
    KEYS,
    MARK,
    WAKE_KEY,
    Control,
    DueWakeup,
    Installed,
    ParkedDue,
    Wakeup,
    decode_control,
    decode_due,
    decode_parked,
    encode,
    encode_parked,
    encode_wakeup,
    is_order,
)

GOLDEN: dict[str, dict[str, Any]] = json.loads(
    (Path(__file__).parents[2] / "golden/control.json").read_text(encoding="utf-8")
)

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


# -- every record -----------------------------------------------------------------------------------------------------

RECORDS = st.one_of([st.from_type(kind) for kind in KEYS])


def golden(name: str) -> Any:
    return getattr(control, name)(**{field: _tuples(value) for field, value in GOLDEN[name]["fields"].items()})


def _tuples(value: Any) -> Any:
    return tuple(_tuples(entry) for entry in value) if type(value) is list else value


def test_every_record_has_golden_bytes() -> None:
    assert set(GOLDEN) == {kind.__name__ for kind in KEYS} == {kind.__name__ for kind in get_args(Control)}
    assert len(set(KEYS.values())) == len(KEYS)


@pytest.mark.parametrize("name", GOLDEN)
def test_records_are_written_and_read_as_released(name: str) -> None:
    key, value = GOLDEN[name]["key"].encode(), GOLDEN[name]["value"].encode()
    assert encode(golden(name)) == (key, value)
    assert decode_control(key, value) == golden(name)


@given(RECORDS)
def test_records_come_back(record: Control) -> None:
    assert decode_control(*encode(record)) == record


@pytest.mark.parametrize("name", GOLDEN)
def test_a_field_that_is_missing_or_of_another_kind_is_refused(name: str) -> None:
    key, value = encode(golden(name))
    for field in fields(golden(name)):
        others: list[Any] = [None, 1.5, [[]], {}, True]
        for wrong in others:
            said = {**json.loads(value), field.name: wrong}
            with pytest.raises(PeerProtocolError, match=field.name):
                decode_control(key, json.dumps(said).encode())


def test_lists_within_lists_are_looked_at() -> None:
    record = Installed("acme", 7, 2, 5, 900, ((0, 5, "ab"),))
    key, value = encode(record)
    strange: list[Any] = [[[0, 5]], [[0, 5, 6]], [[0, 5, "ab", 1]], [0]]
    for wrong in strange:
        with pytest.raises(PeerProtocolError, match="parts"):
            decode_control(key, json.dumps({**json.loads(value), "parts": wrong}).encode())


def test_a_due_time_of_parked_tasks_is_no_wake_up() -> None:
    with pytest.raises(PeerProtocolError):
        decode_due(*encode(ParkedDue("acme", 1, 5)))


@pytest.mark.parametrize(
    ("value", "order"),
    [
        (b'{"command":"migrate","tenant":"!ready","to":1}', True),
        (b'{"command":"migrate","v":1}', True),
        (b'{"tenant":"a"}', True),
        (b"", True),
        (None, True),
        (b"{", True),
        (b"[1]", True),
        (b"\xff", True),
        (b'{"v":1,"tenant":"a","epoch":1,"server":0}', False),
    ],
)
def test_orders_and_answers_are_told_apart_by_the_value(value: bytes | None, order: bool) -> None:
    assert is_order(value) is order


@pytest.mark.parametrize("tenant", [b"acme", b"a:b", b":", "\u2603".encode()])
def test_the_header_of_a_parked_task(tenant: bytes) -> None:
    assert encode_parked(b"acme", 7, 12, 3_200) == b"7:12:3200:acme"
    assert decode_parked(encode_parked(tenant, 7, 12, 3_200)) == (tenant, 7, 12)


@pytest.mark.parametrize("header", [b"", b"7", b"7:1:2", b"x:1:2:acme", b"7:x:2:acme"])
def test_a_strangers_header_is_refused(header: bytes) -> None:
    with pytest.raises(PeerProtocolError):
        decode_parked(header)
