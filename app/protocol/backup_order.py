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
from hashlib import sha256

from app.errors import LocalProtocolError

_GAMMA = 0x9E3779B97F4A7C15
_MASK = 0xFFFFFFFFFFFFFFFF


def backup_order(key: bytes, servers: int) -> tuple[int, ...]:
    """Return the numbers 0 to ``servers - 1`` in the order in which they back ``key`` up, best first."""
    seed = _seed(key)
    return tuple(sorted(range(servers), key=lambda server: -_score(seed, server)))


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
    seed = _seed(key)
    return max(candidates, key=lambda server: _score(seed, server))


def _seed(key: bytes) -> int:
    return int.from_bytes(sha256(key).digest()[:8], "big")


def _score(seed: int, server: int) -> int:
    z = (seed + (server + 1) * _GAMMA) & _MASK
    z = ((z ^ (z >> 30)) * 0xBF58476D1CE4E5B9) & _MASK
    z = ((z ^ (z >> 27)) * 0x94D049BB133111EB) & _MASK
    return z ^ (z >> 31)
