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

import sys
from collections.abc import Collection
from functools import lru_cache
from hashlib import sha256

from app.errors import LocalProtocolError

_GAMMA = 0x9E3779B97F4A7C15
_FIRST = 0xBF58476D1CE4E5B9
_SECOND = 0x94D049BB133111EB
_MASK = 0xFFFFFFFFFFFFFFFF

_LANE = 128
"""Bits of one server's place in a number that has the scores of all: the product of two words of 64 bits fits in."""


def backup_order(key: bytes, servers: int) -> tuple[int, ...]:
    """Return the numbers 0 to ``servers - 1`` in the order in which they back ``key`` up, best first."""
    return tuple(sorted(range(servers), key=_scores(key, servers).__getitem__, reverse=True))


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
    return max(candidates, key=_scores(key, max(candidates) + 1).__getitem__)


def score(key: bytes, number: int) -> int:
    """Return the score of one number of 64 bits, for choices among numbers that are no servers' and lie far apart."""
    z = (int.from_bytes(sha256(key).digest()[:8], "big") + (number + 1) * _GAMMA) & _MASK
    z = ((z ^ (z >> 30)) * _FIRST) & _MASK
    z = ((z ^ (z >> 27)) * _SECOND) & _MASK
    return z ^ (z >> 31)


def _scores(key: bytes, servers: int) -> list[int]:
    """The scores of all servers, each step of the finalizer taken for all of them by one operation on a long integer.

    That is several times as fast as a loop over servers. Bits that a shift moves into a neighbour's place, and what
    a product has above 64 bits, are masked out.
    """
    if not servers:
        return []
    ones, steps, low = _lanes(servers)
    z = (steps + int.from_bytes(sha256(key).digest()[:8], "big") * ones) & low
    z = ((z ^ ((z >> 30) & low)) * _FIRST) & low
    z = ((z ^ ((z >> 27) & low)) * _SECOND) & low
    z ^= z >> 31
    words = memoryview(z.to_bytes(servers * _LANE // 8, sys.byteorder)).cast("Q").tolist()
    return words[::2] if sys.byteorder == "little" else words[::-2]


@lru_cache(maxsize=16)
def _lanes(servers: int) -> tuple[int, int, int]:
    """For so many servers: 1, the multiple of gamma, and a mask of 64 bits, in every server's place."""
    ones = sum(1 << (_LANE * server) for server in range(servers))
    steps = sum((((server + 1) * _GAMMA) & _MASK) << (_LANE * server) for server in range(servers))
    return ones, steps, ones * _MASK
