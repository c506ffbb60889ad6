"""Calls into librdkafka that may never return, with a deadline of our own.

A transactional call can outlast its timeout for ever when the broker goes away in the middle of it
(confluentinc/librdkafka#5456). Its thread and its producer are then left behind, and nothing waits for them.
"""

import threading
from collections.abc import Callable
from concurrent.futures import Future
from queue import SimpleQueue
from typing import TypeVar

Value = TypeVar("Value")


class Bounded:
    """Runs calls one after the other in a helper thread; a call that is not back in time is left behind with it."""

    def __init__(self, name: str) -> None:
        self._name = name
        self._calls: SimpleQueue[tuple[Callable[[], object], Future[object]] | None] | None = None

    def run(self, call: Callable[[], Value], deadline_s: float) -> Value:
        """Return what ``call`` returns.

        Raises:
            TimeoutError: it has not returned in time, and may still be running.
        """
        if self._calls is None:
            self._calls = SimpleQueue()
            threading.Thread(target=self._serve, args=(self._calls,), name=self._name, daemon=True).start()
        answer: Future[Value] = Future()
        self._calls.put((call, answer))  # type: ignore[arg-type]  # the queue carries calls of any kind
        try:
            return answer.result(deadline_s)
        except TimeoutError:
            if not answer.done():
                self.stop()
            raise

    def stop(self) -> None:
        """Let the helper thread end after what it is doing."""
        if self._calls is not None:
            self._calls.put(None)
            self._calls = None

    @staticmethod
    def _serve(calls: "SimpleQueue[tuple[Callable[[], object], Future[object]] | None]") -> None:
        while (item := calls.get()) is not None:
            call, answer = item
            try:
                answer.set_result(call())
            except BaseException as error:  # noqa: BLE001 - it is the caller's.
                answer.set_exception(error)
