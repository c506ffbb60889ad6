"""Changelogs: restoring rows to a high watermark, and following them as a standby. One thread, one bulk reader.

A restore is complete when the reader has passed the high watermark that was taken after the previous owner had been
fenced; reading only to the last stable offset would end below an open transaction and miss committed rows above it.
The reader sees committed records only.
"""

import logging
import threading
import time
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, cast

from confluent_kafka import Consumer, KafkaError, KafkaException, Message, TopicPartition

from app.engine.crashpoints import passing
from app.engine.denied import DENIED, denied
from app.engine.fetch import in_batches
from app.engine.offsets import Partition
from app.engine.table import Rows

log = logging.getLogger(__name__)

WARM_ROWS = 1_000
"""A standby that is at most so many records behind is warm."""

READ_RECORDS = 10_000
WAIT_S = 0.02

ASK_S = 60.0
"""How often the broker is asked whether a silent changelog really ends where its rows do."""

ASK_TIMEOUT_S = 1.0


_Rows = list[tuple[bytes, bytes | None]]


@dataclass(slots=True)
class _Followed:
    rows: Rows
    place: str
    position: int
    end: int | None = None
    """The high watermark as far as known, for the lag."""
    ask_next: float = 0.0


@dataclass(slots=True)
class _Restore:
    targets: dict[Partition, int]
    done: Callable[[int], None]
    replayed: int = 0


class Changelog(threading.Thread):
    """The changelog thread.

    Args:
        config: librdkafka options common to all clients.
        group: any name within the namespace; offsets are never committed with it.
        failed: takes the error that ended the thread.
    """

    def __init__(
        self,
        config: Mapping[str, Any],
        group: str,
        *,
        failed: Callable[[BaseException], None],
        max_record_bytes: int,
    ) -> None:
        super().__init__(name="changelog", daemon=True)
        self._consumer = Consumer(
            {
                **config,
                "group.id": group,
                "enable.auto.commit": False,
                "enable.auto.offset.store": False,
                "auto.offset.reset": "error",
                "isolation.level": "read_committed",
                "enable.partition.eof": True,
                "check.crcs": False,
                "fetch.wait.max.ms": 20,
                "fetch.queue.backoff.ms": 10,
                "queued.min.messages": 50_000,
                "fetch.message.max.bytes": max(1_048_576, max_record_bytes),
            }
        )
        self.progress = time.monotonic()
        """When records were last read, on the monotonic clock."""
        self._failed = failed
        self._lock = threading.Condition()
        self._commands: deque[Callable[[], None]] = deque()
        self._stopping = False
        self._followed: dict[Partition, _Followed] = {}
        self._restores: dict[str, _Restore] = {}
        self._lost: dict[Partition, None] = {}
        self._ask_next = 0.0

    # -- from the engine's thread ---------------------------------------------------------------------------------

    def follow(self, place: str, rows: Sequence[Rows]) -> None:
        """Tail the changelogs of ``place`` from the positions of its rows."""
        self._command(lambda: self._follow(place, rows))

    def restore(
        self, place: str, rows: Sequence[Rows], targets: Mapping[Partition, int], done: Callable[[int], None]
    ) -> None:
        """Read on to ``targets``, stop following, call ``done`` in this thread with the number of records read."""
        self._command(lambda: self._restore(place, rows, targets, done))

    def leave(self, place: str, then: Callable[[], None] = lambda: None) -> None:
        """Stop following ``place``; ``then`` runs in this thread when no row of it will be touched any more."""
        self._command(lambda: self._leave(place, then))

    def lags(self) -> dict[str, int | None]:
        """Records that each followed place is behind; None while its end is unknown."""
        lags: dict[str, int | None] = {}
        for followed in list(self._followed.values()):
            lag = None if followed.end is None else max(0, followed.end - followed.position)
            before = lags.get(followed.place, 0)
            lags[followed.place] = None if lag is None or before is None else before + lag
        return lags

    def warm(self) -> frozenset[str]:
        return frozenset(place for place, lag in self.lags().items() if lag is not None and lag <= WARM_ROWS)

    def stop(self) -> None:
        with self._lock:
            self._stopping = True
            self._lock.notify()
        self.join(5)

    def _command(self, command: Callable[[], None]) -> None:
        with self._lock:
            self._commands.append(command)
            self._lock.notify()

    # -- the thread -----------------------------------------------------------------------------------------------

    def run(self) -> None:
        try:
            while self._turn():
                pass
        except BaseException as error:  # noqa: BLE001 - the worker ends with it.
            self._failed(error)
        finally:
            self._consumer.close()

    def _turn(self) -> bool:
        with self._lock:
            while not self._stopping and not self._commands and not self._followed:
                self._lock.wait()
            if self._stopping:
                return False
            commands = list(self._commands)
            self._commands.clear()
        for command in commands:
            command()
        if self._followed:
            self._read()
            self._begin_lost_anew()
            self._finish()
            self._confirm_one()
        return True

    def _follow(self, place: str, rows: Sequence[Rows]) -> None:
        self._restores.pop(place, None)
        fresh = []
        for entry in rows:
            where = (entry.topic, entry.partition)
            if where not in self._followed:
                self._followed[where] = _Followed(entry, place, entry.store.position)
                fresh.append(TopicPartition(*where, entry.store.position))
        if fresh:
            self._consumer.incremental_assign(fresh)

    def _restore(
        self, place: str, rows: Sequence[Rows], targets: Mapping[Partition, int], done: Callable[[int], None]
    ) -> None:
        self._follow(place, rows)
        for where, target in targets.items():
            self._followed[where].end = target
            if self._followed[where].position > target:
                self._lost[where] = None
        self._restores[place] = _Restore(dict(targets), done)
        passing("in-restore")

    def _leave(self, place: str, then: Callable[[], None]) -> None:
        self._restores.pop(place, None)
        gone = [where for where, followed in self._followed.items() if followed.place == place]
        if gone:
            self._consumer.incremental_unassign([TopicPartition(*where) for where in gone])
        for where in gone:
            del self._followed[where]
            self._lost.pop(where, None)
        then()

    def _read(self) -> None:
        messages = self._consumer.consume(1, WAIT_S)
        if messages:
            messages += self._consumer.consume(READ_RECORDS - 1, 0)
        others: list[Message] = []
        if any(map(Message.error, messages)):
            others = [message for message in messages if message.error() is not None]
            messages = [message for message in messages if message.error() is None]
        if messages:
            self.progress = time.monotonic()
        for batch in in_batches(messages):
            rows = list(zip(map(Message.key, batch.records), map(Message.value, batch.records), strict=True))  # type: ignore[arg-type]
            self._apply((batch.topic, batch.partition), cast("_Rows", rows), batch.next_offset)
        for message in others:
            self._event(cast("Partition", (message.topic(), message.partition())), message)

    def _event(self, where: Partition, message: Any) -> None:
        """Note what is no record."""
        error = message.error()
        if error.code() == KafkaError._PARTITION_EOF:
            self._ended(where, message.offset())
        elif error.code() == KafkaError._AUTO_OFFSET_RESET:
            if where in self._followed:
                self._lost[where] = None
        elif error.code() in DENIED:
            raise denied(f"read {where[0]}", error.str())
        elif error.fatal():
            raise KafkaException(error)
        else:
            log.debug("reading %s/%d: %s", *where, error.str())

    def _ended(self, where: Partition, end: int) -> None:
        """There is no record left: the rows are complete up to ``end``."""
        self._apply(where, [], end)
        followed = self._followed.get(where)
        if followed is not None:
            if followed.place not in self._restores:
                followed.end = max(end, followed.position)
            followed.rows.store.confirm()

    def _begin_lost_anew(self) -> None:
        """A log that no longer has our position (it was made anew, or compacted away) is read from its start.

        It happens when all that was read before is applied; and again in the next turn while the broker is away.
        """
        for where in list(self._lost):
            try:
                first, _ = self._consumer.get_watermark_offsets(TopicPartition(*where), ASK_TIMEOUT_S)
            except KafkaException as error:
                log.debug("asking for the start of %s/%d: %s", *where, error)
                return
            del self._lost[where]
            followed = self._followed[where]
            followed.rows.store.clear()
            followed.position = first
            self._consumer.incremental_unassign([TopicPartition(*where)])
            self._consumer.incremental_assign([TopicPartition(*where, first)])

    def _confirm_one(self) -> None:
        """Confirm the rows of a changelog in which nothing happens, one a turn: its end was announced only once."""
        now = time.monotonic()
        if now < self._ask_next:
            return
        for where, followed in self._followed.items():
            if now >= followed.ask_next and where not in self._lost and followed.rows.store.unconfirmed:
                followed.ask_next = now + ASK_S
                try:
                    _, end = self._consumer.get_watermark_offsets(TopicPartition(*where), ASK_TIMEOUT_S)
                except KafkaException as error:
                    log.debug("asking for the end of %s/%d: %s", *where, error)
                    self._ask_next = now + ASK_S
                    return
                if followed.position == end:
                    followed.rows.store.confirm()
                return

    def _apply(self, where: Partition, rows: _Rows, position: int) -> None:
        followed = self._followed.get(where)
        if followed is None or position < followed.position:
            return
        if rows or position != followed.rows.store.position:
            followed.rows.store.apply(rows, position)
        followed.position = position
        restore = self._restores.get(followed.place)
        if restore is not None:
            restore.replayed += len(rows)
        elif followed.end is not None and rows:
            followed.end = max(followed.end, self._end(where))

    def _end(self, where: Partition) -> int:
        """The high watermark as the last fetch saw it, without asking the broker."""
        _, high = self._consumer.get_watermark_offsets(TopicPartition(*where), cached=True)
        return int(high)

    def _finish(self) -> None:
        for place, restore in list(self._restores.items()):
            if all(
                where not in self._lost and self._followed[where].position >= target
                for where, target in restore.targets.items()
            ):
                for where in restore.targets:
                    self._followed[where].rows.store.confirm()
                self._leave(place, lambda: None)
                restore.done(restore.replayed)
