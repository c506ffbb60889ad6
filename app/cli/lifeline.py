"""A child's side of ending with its parent, however the parent ends."""

import ctypes
import os
import signal
import sys
import threading
import time
from typing import Final

_PR_SET_PDEATHSIG: Final = 1
_LAST_GRACE_S: Final = 20.0


def follow_parent(lifeline: int) -> None:
    """End with the parent: at once on Linux; elsewhere in order, once the pipe that it holds is closed."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    threading.Thread(target=_watch, args=(lifeline,), name="lifeline", daemon=True).start()


def _watch(lifeline: int) -> None:
    # Nobody writes: reading returns when the other end is closed, also if that was before this process began.
    os.read(lifeline, 1)
    os.kill(os.getpid(), signal.SIGTERM)
    time.sleep(_LAST_GRACE_S)
    os._exit(1)
