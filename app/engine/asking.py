"""Questions to the broker from the engine's loop: asked in threads, and again while there is no answer."""

import asyncio
import logging
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from typing import Any, TypeVar

from confluent_kafka import KafkaException

from app.engine.offsets import OffsetReader

log = logging.getLogger(__name__)

RETRY_S = 0.2

Value = TypeVar("Value")


class Asking:
    """One question about offsets at a time, and one about something else beside it.

    Args:
        kafka: librdkafka options common to all clients.
        group: the worker group.
    """

    def __init__(self, kafka: Mapping[str, Any], group: str) -> None:
        self._kafka = kafka
        self._group = group
        self._reader: OffsetReader | None = None
        self._offsets = ThreadPoolExecutor(1, thread_name_prefix="offsets")
        self._aside = ThreadPoolExecutor(1, thread_name_prefix="aside")

    async def offsets(self, call: Callable[[OffsetReader], Value]) -> Value:
        """What ``call`` returns."""

        def ask() -> Value:
            if self._reader is None:
                self._reader = OffsetReader(self._kafka, self._group)
            return call(self._reader)

        return await _again(self._offsets, ask)

    async def aside(self, call: Callable[[], Value]) -> Value:
        """The same, beside a question about offsets."""
        return await _again(self._aside, call)

    def close(self) -> None:
        """Ask nothing more."""
        for thread in (self._offsets, self._aside):
            thread.shutdown(wait=False, cancel_futures=True)


async def _again(thread: ThreadPoolExecutor, call: Callable[[], Value]) -> Value:
    while True:
        try:
            return await asyncio.get_running_loop().run_in_executor(thread, call)
        except KafkaException as error:
            log.debug("asking the broker: %s", error)
            await asyncio.sleep(RETRY_S)
