"""Python's interpreter, as a worker needs it."""

import gc
import sys

SWITCH_S = 0.001
"""A thread that computes lets others in as often. A transaction is ten turns of a thread that sends and waits; with the
usual 5 ms it would stand behind handlers for most of the time that it takes."""

COLLECT_AFTER = (50_000, 20, 50)
"""How many new objects start a collection of cyclic garbage, and how many of those a larger one.

A record makes a dozen objects, none of which is part of a cycle. At Python's own limits a third of a busy worker's
time went into looking at them.
"""


def tune() -> None:
    """Once, when everything is loaded: what is there stays, and no collection looks at it again."""
    sys.setswitchinterval(SWITCH_S)
    gc.freeze()
    gc.set_threshold(*COLLECT_AFTER)
