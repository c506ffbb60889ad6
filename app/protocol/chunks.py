"""Rows on their way from one server to another: chunks of a hand-off, and the checksum over what they carry.

A chunk's value is JSON that a console consumer can read, and keeps every row's bytes as they are, because the checksum
is over bytes and a row may be as large as a record: the rows follow an index that has their lengths.

    {"v":1,"tenant":"acme","epoch":3,"source":0,"router":2,"chunk":1,"index":[["s","cart-7",9],...],"rows":[{...},...]}

A view moves sessions of many tenants at once. Its chunk, a :class:`HandOff`, has ``"view"`` in place of tenant and
epoch, and whole keys in place of names.

The checksum of a set of rows is the sum of a hash of each, modulo 2^128, so that it does not depend on the order in
which they came, and a row that changes costs one subtraction and one addition instead of a pass over all (rule L10).
"""

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from hashlib import blake2b
from typing import Any, NamedTuple

from app.errors import PeerProtocolError

VERSION = 1
KEY = b"!rows"
HAND_OFF_KEY = b"!hand-off"

SESSION = "s"
WAITING = "w"

_BYTES = 16
_MODULUS = 1 << 8 * _BYTES
_KEY_BYTES = 64
"""BLAKE2b takes no longer key; a longer name is hashed first."""
_BEGIN = b',"rows":['


class Item(NamedTuple):
    """One row: the table it belongs to, its name, and its bytes or None if gone.

    The name is the rest of the row's key behind tenant and epoch, in a hand-off the whole key.
    """

    table: str
    name: str
    row: bytes | None


@dataclass(frozen=True, slots=True)
class Chunk:
    """Some rows of a tenant, numbered from 1 for each source of an epoch."""

    tenant: str
    epoch: int
    source: int
    router: int
    number: int
    items: tuple[Item, ...]


@dataclass(frozen=True, slots=True)
class HandOff:
    """Some rows of one router's sessions that ``view`` moves from ``source`` to the server that reads this.

    Numbered from 1 for each view, router, source and target.
    """

    view: int
    router: int
    source: int
    number: int
    items: tuple[Item, ...]


@dataclass(frozen=True, slots=True)
class Digest:
    """How many rows, and the sum of their hashes. Adding and taking away a row leaves what was before."""

    rows: int = 0
    sum: int = 0

    def add(self, rows: int, total: int) -> "Digest":
        return Digest(self.rows + rows, (self.sum + total) % _MODULUS)

    @property
    def text(self) -> str:
        """The checksum as records and events carry it."""
        return f"{self.sum:032x}"


EMPTY = Digest()


def fingerprint(table: str, name: str, row: bytes) -> int:
    """The hash of one row: BLAKE2b-128 of table, name and bytes, as a number."""
    head = f"{table}\0{name}\0".encode()
    if len(head) > _KEY_BYTES:
        head = blake2b(head).digest()
    return int.from_bytes(blake2b(row, digest_size=_BYTES, key=head).digest(), "big")


def replaced(table: str, name: str, before: bytes | None, after: bytes | None) -> tuple[int, int]:
    """What :meth:`Digest.add` is to be given when a row takes the place of another."""
    rows, total = 0, 0
    if before is not None:
        rows, total = -1, -fingerprint(table, name, before)
    if after is not None:
        rows, total = rows + 1, total + fingerprint(table, name, after)
    return rows, total


def encode(chunk: Chunk) -> bytes:
    """The value of a chunk's record."""
    head: dict[str, str | int] = {
        "tenant": chunk.tenant,
        "epoch": chunk.epoch,
        "source": chunk.source,
        "router": chunk.router,
        "chunk": chunk.number,
    }
    return _encode(head, chunk.items)


def encode_hand_off(part: HandOff) -> bytes:
    """The value of a hand-off's record."""
    head: dict[str, str | int] = {"view": part.view, "router": part.router, "source": part.source, "chunk": part.number}
    return _encode(head, part.items)


def _encode(head: Mapping[str, str | int], items: Sequence[Item]) -> bytes:
    index = [[item.table, item.name, -1 if item.row is None else len(item.row)] for item in items]
    text = json.dumps({"v": VERSION, **head, "index": index}, separators=(",", ":"), ensure_ascii=False).encode()
    return b"%b%b%b]}" % (text[:-1], _BEGIN, b",".join(item.row for item in items if item.row is not None))


def decode(value: bytes | None) -> Chunk:
    """Read a chunk.

    Raises:
        PeerProtocolError: a later version wrote it, or somebody else.
    """
    head, items = _decode(value, {"tenant": str, "epoch": int, "source": int, "router": int, "chunk": int})
    return Chunk(head["tenant"], head["epoch"], head["source"], head["router"], head["chunk"], items)


def decode_hand_off(value: bytes | None) -> HandOff:
    """Read a hand-off; raises as :func:`decode`."""
    head, items = _decode(value, {"view": int, "router": int, "source": int, "chunk": int})
    return HandOff(head["view"], head["router"], head["source"], head["chunk"], items)


def _decode(value: bytes | None, fields: Mapping[str, type]) -> tuple[dict[str, Any], tuple[Item, ...]]:
    # A quotation mark inside a name is escaped, so this begins the list of rows wherever it first stands.
    text, found, body = (value or b"").partition(_BEGIN)
    try:
        head = json.loads(text + b"}")
        if not found or head["v"] != VERSION:
            raise PeerProtocolError("a chunk of another version: all workers must run one release")
        if any(type(head[name]) is not kind for name, kind in fields.items()):
            raise PeerProtocolError(f"not a chunk of rows: {value!r:.80}")
        return head, tuple(_items(head["index"], body))
    except (ValueError, KeyError, TypeError) as error:
        raise PeerProtocolError(f"not a chunk of rows: {value!r:.80}") from error


def _items(index: Sequence[Sequence[object]], body: bytes) -> Iterable[Item]:
    start = 0
    for table, name, length in index:
        if type(table) is not str or type(name) is not str or type(length) is not int:
            raise ValueError("an entry of the index")
        if length < 0:
            yield Item(table, name, None)
            continue
        row = body[start : start + length]
        if len(row) != length:
            raise ValueError("the rows are shorter than the index says")
        yield Item(table, name, row)
        start += length + 1
    # Behind the last comma's place stands the end of the list.
    if body[max(0, start - 1) :] != b"]}":
        raise ValueError("the rows are longer than the index says")


def room(items: Iterable[Item]) -> int:
    """What these rows take in a chunk, in bytes, give or take the escapes of names."""
    return sum(len(item.row or b"") + len(item.name) * 4 + 24 for item in items)
