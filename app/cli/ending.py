"""Ending a command that has started things: a signal interrupts what it does, and never its tidying up."""

import signal
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Final

_SIGNALS: Final = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


class Ending:
    """Signals of one command, in its main thread.

    Attributes:
        asked: whether a signal came while they are only noted.
    """

    def __init__(self) -> None:
        self.asked = False
        self._noting = False
        self._begun = False

    def note(self) -> None:
        """From now on the first signal is only noted in ``asked``: raised, it could tear a step apart."""
        self._noting = True

    def begin(self) -> None:
        """From now on things are tidied up: signals change nothing any more."""
        self._begun = True

    def handle(self, _number: int, _frame: FrameType | None) -> None:
        """The handler of the signals: the first one that is not noted is a KeyboardInterrupt."""
        if self._noting and not self.asked:
            self.asked = True
        elif not self._begun:
            self._begun = True
            raise KeyboardInterrupt


@contextmanager
def interruptible() -> Iterator[Ending]:
    """Have the first signal raise KeyboardInterrupt, and no further one disturb what ends because of it."""
    ending = Ending()
    before = {number: signal.signal(number, ending.handle) for number in _SIGNALS}
    try:
        yield ending
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
