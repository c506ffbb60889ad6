"""Places in the engine and the agents where a test lets a worker die.

With ``HOLDFAST_CRASH_AT=before-commit:3`` a worker kills itself with SIGKILL when it passes that point for the third
time. Without the variable a passage costs one comparison with None.
"""

import os
import signal
from typing import Literal

Point = Literal[
    "before-changelog",
    "before-offsets",
    "before-commit",
    "after-commit",
    "in-restore",
    "in-rebalance",
    "move-copies",
    "move-cut",
    "move-stages",
    "move-installed",
    "move-decided",
    "move-releases",
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
_passed = 0


def passing(point: Point) -> None:
    """Die here if a test asked for it."""
    global _passed
    if _target is None or _target[0] != point:
        return
    _passed += 1
    if _passed == _target[1]:
        os.kill(os.getpid(), signal.SIGKILL)
