"""The keys of a store in their order, so that a long walk over them costs little at a time."""

from collections.abc import Iterable, Iterator
from heapq import merge
from typing import Protocol

SLICE = 2_000
"""So many keys are sorted at once: less than a millisecond."""

RUN = 16_000
"""Sorted slices are put together up to here, while that takes no longer."""


class Keys(Protocol):
    """Keys in their order, as of one moment. Ask :meth:`ready` until it says so, then iterate."""

    def ready(self) -> bool:
        """Prepare a little more; True when the keys can be had."""

    def __iter__(self) -> Iterator[bytes]: ...


class SortedSlices:
    """Keys that lie in no order: slices are sorted one by one, and merged while they are read.

    Args:
        keys: all of them, a copy of the caller's own.
        prefix: only keys that begin with it.
        after: only keys behind it.
    """

    def __init__(self, keys: list[bytes], prefix: bytes, after: bytes) -> None:
        self._keys = keys
        self._prefix = prefix
        self._after = after
        self._next = 0
        self._runs: list[list[bytes]] = []

    def ready(self) -> bool:
        if self._next < len(self._keys):
            found = self._keys[self._next : self._next + SLICE]
            self._next += SLICE
            run = [key for key in found if key.startswith(self._prefix) and key > self._after]
            if run and self._runs and len(self._runs[-1]) < RUN:
                self._runs[-1] += run
                self._runs[-1].sort()
            elif run:
                run.sort()
                self._runs.append(run)
        if self._next < len(self._keys):
            return False
        self._keys = []
        return True

    def __iter__(self) -> Iterator[bytes]:
        while not self.ready():
            pass
        return merge(*self._runs)


class Merged:
    """The keys of a store and those that are not in it yet, each once."""

    def __init__(self, stored: Keys, others: Iterable[bytes]) -> None:
        self._stored = stored
        self._others = sorted(others)

    def ready(self) -> bool:
        return self._stored.ready()

    def __iter__(self) -> Iterator[bytes]:
        return self._both() if self._others else iter(self._stored)

    def _both(self) -> Iterator[bytes]:
        last: bytes | None = None
        for key in merge(self._stored, self._others):
            if key != last:
                yield key
            last = key


class InOrder:
    """Keys that come in their order anyway."""

    def __init__(self, keys: Iterator[bytes]) -> None:
        self._keys = keys

    def ready(self) -> bool:
        return True

    def __iter__(self) -> Iterator[bytes]:
        return self._keys
