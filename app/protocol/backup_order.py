"""The backup order of a key: all servers, best first, computed from the key alone.

The hash is fixed for ever and is named ``holdfast-rendezvous-1``: two releases, two platforms and two
languages must agree, because nobody asks anybody. ``docs/backup-order.md`` specifies it for any language.

* h = the first 8 bytes, big-endian, of SHA-256(key)
* score(s) = finalizer of SplitMix64 of (h + (s + 1) * 0x9E3779B97F4A7C15) modulo 2^64, that is the output
  number s of the SplitMix64 generator seeded with h
* order: descending score; the finalizer is a bijection and the factor is odd, so that no two servers tie

A score depends on the key and one server only. Therefore the order over fewer servers is the longer order
with the others left out, and a server that comes or goes moves only the keys that it wins or loses.

Source: rendezvous hashing (Thaler, Ravishankar 1998); SplitMix64 (Steele, Lea, Flood 2014).
"""

from collections.abc import Collection
from functools import lru_cache
from hashlib import sha256
from struct import Struct
from typing import NamedTuple

from app.errors import LocalProtocolError

_GAMMA = 0x9E3779B97F4A7C15
_FIRST = 0xBF58476D1CE4E5B9
_SECOND = 0x94D049BB133111EB
_MASK = 0xFFFFFFFFFFFFFFFF

_LANE = 128
"""Bits of one server's place in a number that has the scores of all: the product of two words of 64 bits fits in."""


def backup_order(key: bytes, servers: int) -> tuple[int, ...]:
    """Return the numbers 0 to ``servers - 1`` in the order in which they back ``key`` up, best first."""
    if not servers:
        return ()
    return tuple(sorted(range(servers), key=_scores(key, _lanes(range(servers))).__getitem__, reverse=True))


def first_up(key: bytes, servers: int, up: Collection[int]) -> int:
    """Return the first server of the backup order that is in ``up``.

    Raises:
        LocalProtocolError: none of the servers is up; a view never fails the last one.
    """
    return best_of(key, [server for server in up if 0 <= server < servers])


def best_of(key: bytes, candidates: Collection[int]) -> int:
    """Return the one of ``candidates`` that stands first in every backup order of ``key``.

    Raises:
        LocalProtocolError: there are no candidates.
    """
    if not candidates:
        raise LocalProtocolError("no server is up: a view must leave at least one")
    lanes = _lanes(candidates if isinstance(candidates, frozenset | range) else tuple(candidates))
    scores = _scores(key, lanes)
    return lanes.servers[scores.index(max(scores))]


def score(key: bytes, number: int) -> int:
    """Return the score of one number of 64 bits, for choices among numbers that are no servers' and lie far apart."""
    z = (int.from_bytes(sha256(key).digest()[:8], "big") + (number + 1) * _GAMMA) & _MASK
    z = ((z ^ (z >> 30)) * _FIRST) & _MASK
    z = ((z ^ (z >> 27)) * _SECOND) & _MASK
    return z ^ (z >> 31)


class _Lanes(NamedTuple):
    """For some servers: themselves, and in every one's place 1, its multiple of gamma, and a mask of 64 bits.

    ``words`` takes the low 64 bits of every place out of the bytes of a number, the lowest first.
    """

    servers: tuple[int, ...]
    ones: int
    steps: int
    low: int
    words: Struct


def _scores(key: bytes, lanes: _Lanes) -> tuple[int, ...]:
    """The scores of some servers, each step of the finalizer taken for all of them by one operation on a long integer.

    That is several times as fast as a loop over servers. Bits that a shift moves into a neighbour's place, and what
    a product has above 64 bits, are masked out.
    """
    _, ones, steps, low, words = lanes
    z = (steps + int.from_bytes(sha256(key).digest()[:8], "big") * ones) & low
    z = ((z ^ ((z >> 30) & low)) * _FIRST) & low
    z = ((z ^ ((z >> 27) & low)) * _SECOND) & low
    z ^= z >> 31
    return words.unpack(z.to_bytes(words.size, "little"))


@lru_cache(maxsize=64)
def _lanes(servers: Collection[int]) -> _Lanes:
    """Made once for each set of servers; a frozen set is found again without a look at its members."""
    numbers = tuple(servers)
    places = [_LANE * place for place in range(len(numbers))]
    ones = sum(1 << place for place in places)
    steps = sum((((server + 1) * _GAMMA) & _MASK) << at for server, at in zip(numbers, places, strict=True))
    return _Lanes(numbers, ones, steps, ones * _MASK, Struct("<" + "Q8x" * len(numbers)))
