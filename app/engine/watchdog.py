"""Ends the worker when a handler that runs in line does not return.

Such a handler cannot be cancelled: it holds the thread in which everything happens. So the process writes down which
task it was, outside any transaction, and ends itself; the task's next host fails it without running it again.
"""

import logging
import os
import threading
import time
from collections.abc import Callable
from typing import Any

log = logging.getLogger(__name__)

EXIT_CODE = 70
TICK_S = 0.25


class Watchdog(threading.Thread):
    """Watches one thing at a time: ``current`` is what runs now, or None.

    Time is counted in ticks, so that a process which was frozen or starved is not taken for a handler that hangs.

    Args:
        timeout: seconds that one handler may take.
        expired: writes down what was running; called in this thread, just before the process ends.
        name_of: names it in the log.
    """

    def __init__(self, timeout: float, expired: Callable[[Any], None], name_of: Callable[[Any], str] = str) -> None:
        super().__init__(name="watchdog", daemon=True)
        self.current: Any = None
        self._ticks = max(1, round(timeout / TICK_S))
        self._timeout = timeout
        self._expired = expired
        self._name_of = name_of
        self._stopping = threading.Event()

    def stop(self) -> None:
        self._stopping.set()

    def run(self) -> None:
        seen: Any = None
        count = 0
        while not self._stopping.is_set():
            time.sleep(TICK_S)
            current = self.current
            if current is None or current is not seen:
                seen, count = current, 0
                continue
            count += 1
            if count >= self._ticks:
                self._end(current)

    def _end(self, current: Any) -> None:
        log.critical(
            "%s did not return within %g s: this worker ends, the task fails",
            self._name_of(current),
            self._timeout,
        )
        try:
            self._expired(current)
        finally:
            os._exit(EXIT_CODE)
