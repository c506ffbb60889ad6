"""What a worker does beside its work, in a thread of its own: measures lags, and truncates streams behind the work.

Nothing depends on it: when the broker does not answer it tries again later.
"""

import logging
import math
import threading
import time
from collections.abc import Mapping
from typing import Any, NamedTuple

from confluent_kafka import KafkaError, KafkaException
from confluent_kafka.admin import AdminClient
from confluent_kafka.admin._config import ConfigResource

from app.engine.offsets import OffsetReader, Partition
from app.engine.tails import Tail, Tails
from app.engine.truncation import NOT_DELETED, delete_before

log = logging.getLogger(__name__)

LAG_S = 2.0
TRUNCATE_S = 15.0
LIMITS_S = 60.0
UNKNOWN_S = 1.0
ASK_S = 2.0
LIMITS_MAX = 10_000

_NO_TOPIC = {KafkaError.UNKNOWN_TOPIC_OR_PART, KafkaError.TOPIC_EXCEPTION}


class EmitLimit(NamedTuple):
    """What a topic takes: batches of so many bytes (None: it could not be asked), and whether only with keys."""

    max_bytes: int | None
    keyed: bool


UNTOLD = EmitLimit(None, keyed=False)


class Janitor(threading.Thread):
    """Measures and cleans.

    Args:
        config: librdkafka options common to all clients.
        client: keyword arguments of aiokafka's client.
        group: the worker group.
        streams: partitions whose lag is measured: the main topics of all places.
        truncated: topics of which nothing is needed any more below the committed offset.
    """

    def __init__(
        self,
        config: Mapping[str, Any],
        client: Mapping[str, Any],
        group: str,
        *,
        streams: list[Partition],
        truncated: frozenset[str],
    ) -> None:
        super().__init__(name="janitor", daemon=True)
        self._client = client
        self.lags: dict[Partition, int] = {}
        self.measured_at = -math.inf
        """When the lags were measured, on the monotonic clock."""
        self._config = dict(config)
        self._admin = AdminClient(self._config)
        # Not the administrator's call for it: that one ends the process when the coordinator is away (librdkafka#5040).
        self._offsets = OffsetReader(self._config, group)
        self._tails = Tails(self._config, group)
        self._reached: dict[Partition, int] = {}
        self._streams = streams
        self._truncated = truncated
        self._committed: dict[Partition, int] = {}
        self._settled: dict[Partition, int] = {}
        self._done: dict[Partition, int] = {}
        self._limits: dict[str, tuple[EmitLimit | None, float]] = {}
        self._stopping = threading.Event()
        self._clean_next = time.monotonic() + TRUNCATE_S

    def committed(self, offsets: Mapping[Partition, int]) -> None:
        """This worker has committed these offsets. From the engine's thread."""
        self._committed.update(offsets)

    def forget(self) -> None:
        """This worker owns nothing any more: it leaves the cleaning to the next owners."""
        self._committed = {}
        self._settled = {}

    def largest_record(self, topic: str) -> EmitLimit | None:
        """What a topic takes, or None where there is no such topic. Never raises.

        Only the first question, and one about a topic that did not exist a moment ago, waits for the broker, and not
        for long; everything else is asked for again in the janitor's own thread.
        """
        known = self._limits.get(topic)
        if known is None or (known[0] is None and known[1] < time.monotonic()):
            if len(self._limits) >= LIMITS_MAX:
                self._limits = {}
            known = self._ask(topic, UNTOLD)
        return known[0]

    def _ask(self, topic: str, last: EmitLimit) -> tuple[EmitLimit | None, float]:
        resource = ConfigResource(ConfigResource.Type.TOPIC, topic)
        limit: EmitLimit | None = last
        try:
            answer = self._admin.describe_configs([resource], request_timeout=ASK_S)[resource]
            found = answer.result(2 * ASK_S)
            limit = EmitLimit(int(found["max.message.bytes"].value), "compact" in found["cleanup.policy"].value)
        except KafkaException as error:
            if error.args[0].code() in _NO_TOPIC:
                limit = None
            else:
                log.debug("limits of %s: %s", topic, error)
        except Exception as error:  # noqa: BLE001 - without an answer the record limit holds.
            log.debug("limits of %s: %r", topic, error)
        wait = UNKNOWN_S if limit in (None, UNTOLD) else LIMITS_S
        known = self._limits[topic] = (limit, time.monotonic() + wait)
        return known

    def _refresh_limits(self) -> None:
        """Ask again about the topics that handlers emit to; where nobody answers, what was known holds."""
        now = time.monotonic()
        for topic, (limit, until) in list(self._limits.items()):
            if until < now:
                if limit is None:
                    self._limits.pop(topic, None)
                else:
                    self._ask(topic, limit)

    def stop(self) -> None:
        self._stopping.set()

    def run(self) -> None:
        while not self._stopping.wait(LAG_S):
            try:
                self._refresh_limits()
                self._measure()
                if time.monotonic() >= self._clean_next:
                    self._clean_next = time.monotonic() + TRUNCATE_S
                    self._truncate()
            except KafkaException as error:
                log.debug("housekeeping: %s", error)
                # As in OffsetReader: the client may go on using a leader epoch from before a broker's restart.
                self._admin = AdminClient(self._config)
            except NOT_DELETED as error:
                log.debug("truncating: %r", error)
        self._offsets.close()

    def _measure(self) -> None:
        ends = self._offsets.ends(self._streams)
        reached = self._offsets.latest(self._streams)
        lags: dict[Partition, int] = {}
        standing: list[Tail] = []
        for where, end in ends.items():
            offset = reached[where].offset or 0
            # The last record of a stream that is written in transactions is the marker of the last one.
            markers = 1 if where[0] in self._truncated else 0
            lags[where] = max(0, end - offset - markers)
            if lags[where] and self._reached.get(where) == offset:
                standing.append(Tail(where, offset, end))
            self._reached[where] = offset
        for where in self._tails.empty(standing):
            lags[where] = 0
        self.lags, self.measured_at = lags, time.monotonic()

    def _truncate(self) -> None:
        # What was committed when we were here last: should a broker lose what it has just acknowledged (a single one
        # that stops in the middle of a commit may), the records are still there.
        settled, self._settled = self._settled, dict(self._committed)
        behind = {
            where: offset
            for where, offset in settled.items()
            if where[0] in self._truncated and offset > self._done.get(where, 0)
        }
        if not behind:
            return
        delete_before(self._client, behind)
        self._done |= behind
