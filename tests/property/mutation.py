"""Shows that a machine bites: a core with one rule changed must make it fail.

The machines' moves are functions that choose from lists. Hypothesis chooses for the tests proper, because it shrinks
what it finds; here a seeded generator does, because it is quick: thousands of histories a second, always the same.
"""

import random
from collections.abc import Callable
from typing import Any

Choose = Callable[[Any], Any]
"""Picks one of a sequence."""

HISTORIES = 5_000


def killed_after(walk: Callable[[Choose], object], histories: int = HISTORIES) -> int | None:
    """How many histories it takes until ``walk`` fails; None if it finds nothing."""
    for seed in range(histories):
        try:
            walk(random.Random(seed).choice)
        except Exception:  # noqa: BLE001 - a changed rule may break anything.
            return seed + 1
    return None
