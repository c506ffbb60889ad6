"""Chunks keep bytes, stay readable, and the checksum does not depend on the order."""

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from app.errors import PeerProtocolError
from app.protocol.chunks import (
    EMPTY,
    SESSION,
    WAITING,
    Chunk,
    Digest,
    HandOff,
    Item,
    decode,
    decode_hand_off,
    encode,
    encode_hand_off,
    fingerprint,
    replaced,
    room,
)

FINGERPRINT = "ae4e7e1a60db6b49d2866db94d13294b"
LONG_FINGERPRINT = "b74c8f899a183b33982692ee8f586c65"

NAMES = st.text(st.characters(codec="utf-8"), min_size=1, max_size=40)
ROWS = st.builds(lambda value: json.dumps({"s": value}, ensure_ascii=False).encode(), NAMES | st.integers())
ITEMS = st.builds(Item, st.sampled_from([SESSION, WAITING]), NAMES, st.none() | ROWS)
NUMBERS = st.integers(0, 99)
CHUNKS = st.builds(Chunk, NAMES, NUMBERS, NUMBERS, NUMBERS, NUMBERS, st.lists(ITEMS, max_size=5).map(tuple))

CHUNK = Chunk(
    "acme", 3, 0, 2, 1, (Item("s", "cart-7", b'{"v":1}'), Item("s", "gone", None), Item("w", "cart-7\x001", b"{ }"))
)
VALUE = (
    b'{"v":1,"tenant":"acme","epoch":3,"source":0,"router":2,"chunk":1,'
    b'"index":[["s","cart-7",7],["s","gone",-1],["w","cart-7\\u00001",3]],"rows":[{"v":1},{ }]}'
)


@given(CHUNKS)
def test_a_chunk_comes_back_with_every_byte(chunk: Chunk) -> None:
    assert decode(encode(chunk)) == chunk


def test_the_bytes_of_a_chunk() -> None:
    assert encode(CHUNK) == VALUE
    assert len(json.loads(VALUE)["rows"]) == 2


def test_names_that_look_like_the_frame() -> None:
    chunk = Chunk('","rows":[', 1, 0, 0, 1, (Item("s", ',"rows":[', b'{",\\"rows\\":[":1}'), Item("s", "]}", b"[]")))
    assert decode(encode(chunk)) == chunk


@pytest.mark.parametrize(
    "value",
    [
        None,
        b"",
        b"{}",
        b"null",
        VALUE.replace(b'"v":1,"t', b'"v":2,"t'),
        VALUE[:-3],
        VALUE[:-1],
        VALUE.replace(b"{ }", b"{  }"),
        VALUE.replace(b'"epoch":3,', b""),
        VALUE.replace(b"-1]", b'"x"]'),
        VALUE.replace(b'["s","gone",-1]', b"7"),
        b"\xff" + VALUE,
    ],
)
def test_what_is_no_chunk_is_refused(value: bytes | None) -> None:
    with pytest.raises(PeerProtocolError) as caught:
        decode(value)
    assert len(str(caught.value)) < 200


def test_the_hash_of_a_row_is_fixed() -> None:
    """A migration may begin under one release and end under the next."""
    assert f"{fingerprint('s', 'cart-7', b'{}'):032x}" == FINGERPRINT
    assert f"{fingerprint('s', 'x' * 200, b'{}'):032x}" == LONG_FINGERPRINT


@given(st.lists(st.tuples(NAMES, ROWS), unique_by=lambda row: row[0]), st.randoms())
def test_the_order_of_rows_does_not_matter(rows: list[tuple[str, bytes]], chance: object) -> None:
    forwards = backwards = EMPTY
    for name, row in rows:
        forwards = forwards.add(*replaced(SESSION, name, None, row))
    for name, row in reversed(rows):
        backwards = backwards.add(*replaced(SESSION, name, None, row))
    assert forwards == backwards
    assert forwards.rows == len(rows)


@given(NAMES, st.lists(st.none() | ROWS, min_size=1))
def test_replacing_leaves_the_last_version_alone(name: str, versions: list[bytes | None]) -> None:
    digest, before = EMPTY, None
    for row in versions:
        digest = digest.add(*replaced(WAITING, name, before, row))
        before = row
    assert digest == EMPTY.add(*replaced(WAITING, name, None, versions[-1]))
    assert len(digest.text) == 32


def test_table_name_and_bytes_all_count() -> None:
    hashes = {
        fingerprint(table, name, row)
        for table in (SESSION, WAITING)
        for name in ("a", "b", "x" * 100, "x" * 101)
        for row in (b"", b"1", b"2")
    }
    assert len(hashes) == 24


def test_the_room_that_rows_take_is_no_less_than_they_do() -> None:
    items = tuple(Item("s", "\u2603" * 50, b"{}" * size) for size in range(100))
    frame = len(encode(Chunk("a" * 200, 10**9, 999, 999, 10**9, ())))
    assert len(encode(Chunk("a" * 200, 10**9, 999, 999, 10**9, items))) <= frame + room(items)


def test_a_digest_is_a_value() -> None:
    assert Digest(1, 2) == Digest(1, 2)


# -- hand-offs --------------------------------------------------------------------------------------------------------

HAND_OFFS = st.builds(HandOff, NUMBERS, NUMBERS, NUMBERS, NUMBERS, st.lists(ITEMS, max_size=5).map(tuple))
HAND_OFF = HandOff(7, 2, 1, 3, (Item("s", "acme\x000\0cart-7", b'{"v":1}'), Item("w", "acme\x000\0cart-7\x001", b"{}")))
HAND_OFF_VALUE = (
    b'{"v":1,"view":7,"router":2,"source":1,"chunk":3,'
    b'"index":[["s","acme\\u00000\\u0000cart-7",7],["w","acme\\u00000\\u0000cart-7\\u00001",2]],"rows":[{"v":1},{}]}'
)


@given(HAND_OFFS)
def test_a_hand_off_comes_back_with_every_byte(part: HandOff) -> None:
    assert decode_hand_off(encode_hand_off(part)) == part


def test_the_bytes_of_a_hand_off() -> None:
    assert encode_hand_off(HAND_OFF) == HAND_OFF_VALUE


@pytest.mark.parametrize("value", [None, b"", VALUE, HAND_OFF_VALUE[:-1], HAND_OFF_VALUE.replace(b":7,", b':"7",', 1)])
def test_what_is_no_hand_off_is_refused(value: bytes | None) -> None:
    with pytest.raises(PeerProtocolError):
        decode_hand_off(value)


def test_a_hand_off_is_no_chunk() -> None:
    with pytest.raises(PeerProtocolError):
        decode(HAND_OFF_VALUE)
