"""A canary that runs: sends numbered tasks, reads their results, keeps its ledger; one thread."""

import fcntl
import json
import os
import time
import uuid
from collections import deque
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from types import TracebackType
from typing import IO, Any, Final, Self

import orjson
from confluent_kafka import KafkaError, Message, Producer, TopicPartition

from app.canary import ASK, TYPE
from app.cli.tenants import spread
from app.client.kafka import make_consumer, options, partitions_of, translate, watermarks
from app.errors import ConfigurationError, HoldfastError, UnavailableError
from app.observe.canary import Answer, Lane, Takeover, Tally, decode, encode
from app.settings import Settings
from app.topics import Names
from app.worker.local import identity

OPEN_S: Final = 60.0
"""How long the sessions may take to tell where they stand."""

PATIENCE_S: Final = 60.0
"""How long the last results are waited for."""

_SAVE_EVERY_S: Final = 1.0
_LOOK_EVERY_S: Final = 0.05
_ASK_AGAIN_S: Final = 20.0
_RECENT: Final = 2_000
_BATCH: Final = 500


class Canary:
    """Numbered tasks for sessions of tenants at every server. A context manager.

    Args:
        settings: where the cluster is.
        prefix: of the names of the tenants, one for each server, which is its home.
        sessions: of each tenant.
        rate: tasks a second, in all.
        late_s: a result that takes longer is late.
        ledger: a file that tells the next run where this one stopped; None keeps none.
        on_takeover: told when another worker answers than before.
        on_latency: told how long a task took, in seconds.

    Attributes:
        tally: what was found so far.
        lanes: the sessions, by tenant and session.
        recent_s: how long the last tasks took.
        overdue: tasks that are late and have no result yet.

    Raises:
        BrokerUnreachableError: no broker answers.
        ConfigurationError: the topics do not exist, or another canary has the ledger.
    """

    def __init__(
        self,
        settings: Settings,
        prefix: str,
        *,
        sessions: int = 1,
        rate: float,
        late_s: float = 1.0,
        ledger: Path | None = None,
        on_takeover: Callable[[Takeover], None] = lambda takeover: None,
        on_latency: Callable[[float], None] = lambda seconds: None,
    ) -> None:
        self.tally = Tally()
        self.recent_s: deque[float] = deque(maxlen=_RECENT)
        self.overdue = 0
        self._settings = settings
        self._run = uuid.uuid4().hex[:12]
        self._names = Names(settings.namespace)
        self._rate = rate
        self._ledger = ledger
        self._on_takeover = on_takeover
        self._on_latency = on_latency
        self._lock = _take(ledger) if ledger is not None else None
        try:
            self._consumer = make_consumer(settings, wait_ms=20)
            bounds = watermarks(self._consumer, self._names.results, settings)
            self._identity = identity(settings)
            self._producer = Producer(
                options(settings, enable_idempotence=True, partitioner="murmur2_random", linger_ms=0)
            )
            saved, offsets = decode(self._read(), self._identity)
            # Results that were deleted meanwhile cannot tell what is missing: what is not known is not compared.
            if any(offsets.get(part, high) < low for part, (low, high) in enumerate(bounds)):
                saved = {name: entry.without_results() for name, entry in saved.items()}
            self._offsets = {part: offsets.get(part, high) for part, (_, high) in enumerate(bounds)}
            self._consumer.assign([TopicPartition(self._names.results, *place) for place in self._offsets.items()])
        except BaseException:
            self._close_ledger()
            raise
        tenants = spread(f"{prefix}-", partitions_of(self._consumer, self._names.work, settings), 1)
        forget = settings.session_ttl > 0
        self.lanes = {
            (tenant, session): Lane(
                tenant,
                session,
                self._run,
                self.tally,
                late_s=late_s,
                may_forget=forget,
                saved=saved.get((tenant, session)),
            )
            for session in (f"{prefix}-{number}" for number in range(sessions))
            for tenant in tenants
        }
        self._keys = {tenant.encode() for tenant in tenants}
        self._turns = deque(self.lanes.values())
        self._sent_at: dict[tuple[str, str, int], float] = {}
        self._again: list[Lane] = []
        self._looked = self._saved = self._due = 0.0

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._producer.flush(1.0)
        self._save()
        self._consumer.close()
        self._close_ledger()

    # -- what its owner calls -----------------------------------------------------------------------------------------

    def open(self, timeout: float = OPEN_S) -> None:
        """Ask every session where it stands.

        Raises:
            UnavailableError: not all have answered in time.
            HoldfastError: the workers do not know the question.
        """
        deadline, again = time.monotonic() + timeout, 0.0
        while not all(lane.open for lane in self.lanes.values()):
            now = time.monotonic()
            if now > deadline:
                silent = sum(not lane.open for lane in self.lanes.values())
                raise UnavailableError(
                    f"{silent} of {len(self.lanes)} sessions do not answer: see `holdfast status` for who serves them",
                    retry_after_s=10,
                )
            if now > again:
                again = now + _ASK_AGAIN_S
                for lane in self.lanes.values():
                    if not lane.open:
                        self._send(lane, ASK)
            self._look(_LOOK_EVERY_S)
        self._due = time.monotonic()

    def go(self, seconds: float) -> None:
        """Send and read for so long."""
        until = time.monotonic() + seconds
        while (now := time.monotonic()) < until:
            # What was not sent in time, because this process stood still, is not sent all at once.
            self._due = max(self._due, now - 1.0)
            while self._due <= now:
                self._send_next(now)
                self._due += 1 / self._rate
            self._look(max(0.0, min(until, self._due) - time.monotonic()))

    def finish(self, timeout: float = PATIENCE_S) -> int:
        """Send no more, wait for what is under way; return how many tasks have no result."""
        deadline = time.monotonic() + timeout
        while time.monotonic() < deadline and any(lane.waiting or lane.unconfirmed for lane in self.lanes.values()):
            self._look(_LOOK_EVERY_S)
        for lane in self.lanes.values():
            lane.finish()
        return sum(lane.waiting for lane in self.lanes.values())

    def reset_pauses(self) -> None:
        """Measure the pauses of the sessions anew."""
        for lane in self.lanes.values():
            lane.reset()

    # -- sending ------------------------------------------------------------------------------------------------------

    def _send_next(self, now: float) -> None:
        lane = self._turns[0]
        self._turns.rotate(-1)
        if lane.reserve():
            # What the next number begins is known before any of them can be in Kafka.
            self._save()
        number = lane.send(now)
        self._sent_at[lane.tenant, lane.session, number] = now
        self._send(lane, number)

    def _send(self, lane: Lane, number: int) -> None:
        task = {
            "id": f"{self._run} {number}",
            "tenant": lane.tenant,
            "session": lane.session,
            "type": TYPE,
            "payload": {"number": number, "run": self._run},
        }
        try:
            self._producer.produce(
                self._names.tasks,
                orjson.dumps(task),
                lane.tenant.encode(),
                on_delivery=partial(self._delivered, lane, number),
            )
        except BufferError:
            lane.refuse(number)

    def _delivered(self, lane: Lane, number: int, error: KafkaError | None, _message: Message) -> None:
        if number == ASK:
            return
        if error is None:
            lane.confirm(number)
        else:
            lane.refuse(number)

    # -- reading ------------------------------------------------------------------------------------------------------

    def _look(self, timeout: float) -> None:
        self._producer.poll(0)
        first = self._consumer.poll(timeout)
        if first is not None:
            for message in (first, *self._consumer.consume(_BATCH, 0)):
                self._take(message)
        now = time.monotonic()
        if now - self._looked > _LOOK_EVERY_S:
            self._looked = now
            for lane in self.lanes.values():
                lane.tick(now)
            self.overdue = sum(lane.overdue(now) for lane in self.lanes.values())
        if now - self._saved > _SAVE_EVERY_S:
            self._save()

    def _take(self, message: Message) -> None:
        error = message.error()
        if error is not None:
            if error.fatal():
                raise translate(error, self._settings, f"read {self._names.results}")
            return
        self._offsets[message.partition() or 0] = (message.offset() or 0) + 1
        # Everybody's results pass by here.
        if message.key() not in self._keys:
            return
        result = orjson.loads(message.value() or b"{}")
        lane = self.lanes.get((result["tenant"], result["session"]))
        run, _, number = result["task"].rpartition(" ")
        if lane is None or result["type"] != TYPE or not number.isdecimal():
            return
        self._judge(lane, run, int(number), result)

    def _judge(self, lane: Lane, run: str, number: int, result: Mapping[str, Any]) -> None:
        now = time.monotonic()
        told = result["result"] if result["status"] == "done" else None
        previous = None if told is None else (int(told["previous"]), str(told["run"]))
        answer = Answer(
            number=number,
            run=run,
            previous=None if previous is None else previous[0],
            previous_run="" if previous is None else previous[1],
            worker=result["worker"],
            server=result["server"],
            at=now,
        )
        if number != ASK:
            lane.take(answer)
            sent_at = self._sent_at.pop((lane.tenant, lane.session, number), None)
            if sent_at is not None and run == self._run:
                self.recent_s.append(now - sent_at)
                self._on_latency(now - sent_at)
        elif run == self._run and not lane.open:
            if previous is None:
                why = (result["error"] or {}).get("message", "")
                raise HoldfastError(f"the workers cannot answer a canary ({why}): do all run this release?")
            lane.asked(answer)
        while lane.takeovers:
            self._on_takeover(lane.takeovers.pop(0))

    # -- the ledger ---------------------------------------------------------------------------------------------------

    def _read(self) -> Any:
        try:
            return None if self._ledger is None else json.loads(self._ledger.read_bytes() or b"null")
        except (FileNotFoundError, ValueError):
            return None

    def _save(self) -> None:
        self._saved = time.monotonic()
        if self._ledger is None:
            return
        text = json.dumps(encode(self.lanes, self._offsets, self._identity))
        fresh = self._ledger.with_suffix(".new")
        try:
            fresh.write_text(text, encoding="utf-8")
            fresh.replace(self._ledger)
        except OSError as error:
            raise ConfigurationError(
                f"the ledger {self._ledger} cannot be written ({error.strerror or error}): mend that, or set "
                "HOLDFAST_STATE_DIR to another directory"
            ) from error

    def _close_ledger(self) -> None:
        if self._lock is not None:
            self._lock.close()


def _take(ledger: Path) -> IO[str]:
    """Make the ledger's directory, and take the ledger; closing the file lets go of it."""
    try:
        ledger.parent.mkdir(parents=True, exist_ok=True)
        file = ledger.with_suffix(".lock").open("a+")
    except OSError as error:
        raise ConfigurationError(
            f"the ledger {ledger} cannot be used ({error.strerror or error}): mend that, or set HOLDFAST_STATE_DIR"
        ) from error
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        file.close()
        raise ConfigurationError(
            f"another canary has the ledger {ledger}: stop it, or give this one another --tenant"
        ) from None
    file.truncate(0)
    file.write(f"{os.getpid()}\n")
    file.flush()
    return file
