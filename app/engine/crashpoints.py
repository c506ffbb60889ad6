"""Places in the engine and the agents where a test lets a worker die.

With ``HOLDFAST_CRASH_AT=before-commit:3`` a worker kills itself with SIGKILL when it passes that point for the third
time. Without the variable a passage costs one comparison with None.

With ``HOLDFAST_CRASH_AT=@FILE`` the test decides while the workers run: it writes the name of a point into the file.
Whoever comes there first takes the file away, by renaming it to ``FILE.PID``, and stops with SIGSTOP. Then the test
kills whom it likes, and lets the others go on.
"""

import os
import signal
from pathlib import Path
from typing import Literal

Point = Literal[
    "before-changelog",
    "before-records",
    "before-commit",
    "after-commit",
    "in-restore",
    "in-rebalance",
    "move-ordered",
    "move-copies",
    "move-stages",
    "move-closes",
    "move-cut",
    "move-complete",
    "move-installed",
    "move-decided",
    "move-lives",
    "move-releases",
    "move-settled",
    "move-sweeps",
    "move-exports",
    "move-installs",
    "move-deletes",
    "view-published",
    "view-marks",
    "view-freezes",
    "view-ships",
    "view-handed",
    "view-takes",
    "view-opens",
    "view-resumes",
    "view-closed",
]


def _wanted() -> tuple[str, int] | None:
    text = os.environ.get("HOLDFAST_CRASH_AT", "")  # noqa: TID251  # a hook of the tests, not a setting
    if not text:
        return None
    point, _, count = text.partition(":")
    return point, int(count or 1)


_target = _wanted()
_orders = Path(_target[0][1:]) if _target is not None and _target[0].startswith("@") else None
_passed = 0


def passing(point: Point) -> None:
    """Die here if a test asked for it."""
    global _passed
    if _orders is not None and _taken(_orders, point):
        os.kill(os.getpid(), signal.SIGSTOP)
    if _target is None or _target[0] != point:
        return
    _passed += 1
    if _passed == _target[1]:
        os.kill(os.getpid(), signal.SIGKILL)


def _taken(orders: Path, point: Point) -> bool:
    """Is this the point that the file names, and this process the first one there?"""
    try:
        if orders.read_text() != point:
            return False
        orders.rename(f"{orders}.{os.getpid()}")
    except FileNotFoundError:
        return False
    return True
