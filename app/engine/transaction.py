"""Transactions as the worker needs them: everything of a unit at once, with as few requests as there can be.

    partitions, group ──┬──▶ offsets ───────────────────────────────────────────┬──▶ end
                        └──▶ records of all partitions, a request per broker ──┘

The first two leave together, over one connection, whose requests the coordinator answers one after the other. It is
busy for a moment with each of them; while it is, leaders cannot ask it whether records belong to a transaction, which
they do for all, and refuse them for a while: so the records wait for both answers.

A broker asks for offsets as well as for records, and drops a question when another one about the same transaction comes
before it has left (KIP-890, AddPartitionsToTxnManager): whoever waits for the first is told to come again. So the
offsets go first. They are the smaller request, and come again while the records are being written.

Until the end is asked for nothing can have been committed, whatever went wrong; from then on only the coordinator
knows. In both cases the identity is given up: a new one ends what is open and fences every late request, so that no
state of a failed transaction has to be understood. Requests are repeated as they are while their answer is missing:
batches carry sequence numbers, and the other requests change nothing when they come twice (KIP-98).

The requests go over aiokafka's connections, in a thread of their own.
"""

import asyncio
import logging
import threading
import time
from collections import defaultdict
from collections.abc import Awaitable, Coroutine, Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from itertools import chain, repeat
from typing import Any, Final, TypeVar

from aiokafka import errors as kafka_errors
from aiokafka.client import AIOKafkaClient, ConnectionGroup, CoordinationType
from aiokafka.protocol.transaction import AddOffsetsToTxnRequest, AddPartitionsToTxnRequest, EndTxnRequest
from aiokafka.structs import TopicPartition

from app.engine.crashpoints import passing
from app.engine.fencing import error_of, initialise
from app.engine.offsets import Partition
from app.engine.wire import SEQUENCE_MODULUS, Batches, Identity, Member, ProduceRequest, TxnOffsetCommitRequest
from app.protocol.murmur2 import partition_of

log = logging.getLogger(__name__)

REQUEST_BYTES: Final = 16 * 2**20
"""A request for a broker carries no more, unless a single batch does."""

ACKNOWLEDGE_MS: Final = 5_000
"""How long a leader waits for its followers before it answers that they are not in time."""

RETRY_S: Final = (0.005, 0.01, 0.02, 0.05, 0.1)
"""Between attempts of a request that may succeed later; the last one stays."""

BUSY_S: Final = (0.002, 0.002, *RETRY_S)
"""The same where the broker that was asked is the right one, and only has to be asked again."""

ENDING_S: Final = 0.002
"""Between two questions whether the markers of the transaction before have been written."""

CLOSE_S: Final = 1.0

_BUSY: Final = frozenset({19})
"""Not enough replicas; also what a leader says when it could not ask whether the records belong to the transaction."""

_WRITTEN: Final = frozenset({0, 46})
"""Codes for a batch that is in the log: no error, and a sequence number that the broker has seen before."""

Value = TypeVar("Value")


class NotWrittenError(Exception):
    """The transaction failed before its end was asked for; ``cause`` is the broker's or the connection's word."""

    def __init__(self, cause: Exception) -> None:
        super().__init__(cause)
        self.cause = cause


class Transactions:
    """Writes transactions one after the other, under one transactional id. Blocking; for one thread.

    Args:
        client: keyword arguments of aiokafka's client.
        transactional_id: stable for the worker's name, so that a successor can fence it.
    """

    def __init__(self, client: Mapping[str, Any], transactional_id: str) -> None:
        self._options = dict(client)
        self._id = transactional_id
        self._client: Any = None
        self._identity: Identity | None = None
        self._sequences: dict[Partition, int] = {}
        self._coordinators: dict[Any, int] = {}
        self._topics: frozenset[str] = frozenset()
        self._loop: asyncio.AbstractEventLoop | None = None
        self._silent = False

    # -- from the caller's thread ---------------------------------------------------------------------------------

    def initialise(self, timeout_s: float) -> None:
        """Take a new identity: what an earlier one left open is ended, and what it still sends is refused.

        Raises:
            KafkaError, OSError, TimeoutError: the broker does not answer; try again.
            HoldfastError: it refuses for good.
        """
        self._identity = None
        self._run(self._initialise(), timeout_s)

    @property
    def ready(self) -> bool:
        """Is there an identity that nothing is known against?"""
        return self._identity is not None

    def write(
        self,
        records: Mapping[Partition, Batches],
        others: Sequence[Mapping[str, Any]],
        offsets: Mapping[Partition, int],
        *,
        metadata: str,
        member: Member,
        timeout_s: float,
    ) -> None:
        """Write everything in one transaction and commit it. After an exception the identity is gone.

        Args:
            records: by topic and partition; written once.
            others: records that name their topic, and their partition or a key for the partitioner.
            offsets: the next offset of each partition.
            metadata: what goes with every offset.

        Raises:
            NotWrittenError: nothing is in the log, once a new identity is taken.
            KafkaError, OSError, TimeoutError: whether it was committed is not known.
        """
        identity, self._identity = self._identity, None
        assert identity is not None
        self._run(self._write(identity, records, others, offsets, metadata, member), timeout_s)
        self._identity = identity

    def close(self) -> None:
        """End connections and thread."""
        if self._loop is None:
            return
        with suppress(TimeoutError):
            self._run(self._close(), 2 * CLOSE_S)
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._loop = None

    def _run(self, work: Coroutine[Any, Any, Value], timeout_s: float) -> Value:
        if self._loop is None:
            loop = self._loop = asyncio.new_event_loop()
            threading.Thread(target=_serve, args=(loop,), name="transactions", daemon=True).start()
        try:
            return asyncio.run_coroutine_threadsafe(_within(work, timeout_s), self._loop).result()
        except TimeoutError:
            self._silent = True
            raise

    # -- in the thread of the connections -------------------------------------------------------------------------

    async def _initialise(self) -> None:
        if self._silent:
            # Connections that nobody answers may be ones that nobody hears: begin with the bootstrap servers again.
            await self._close()
            self._silent = False
        if self._client is None:
            client: Any = AIOKafkaClient(**self._options)  # type: ignore[no-untyped-call]
            try:
                await client.bootstrap()
            except BaseException:
                await client.close()
                raise
            self._client = client
        self._coordinators.clear()
        self._topics = frozenset()
        self._sequences.clear()
        identity = await initialise(self._client, self._id)
        self._identity = identity

    async def _close(self) -> None:
        client, self._client = self._client, None
        if client is not None:
            with suppress(Exception):
                await _within(client.close(), CLOSE_S)

    async def _write(
        self,
        identity: Identity,
        records: Mapping[Partition, Batches],
        others: Sequence[Mapping[str, Any]],
        offsets: Mapping[Partition, int],
        metadata: str,
        member: Member,
    ) -> None:
        try:
            batches = await self._batches(identity, records, others)
            passing("before-changelog")
            async with asyncio.TaskGroup() as together:
                if batches:
                    together.create_task(self._register(identity, batches))
                if offsets:
                    together.create_task(self._register_group(identity, member.group))
            async with asyncio.TaskGroup() as together:
                together.create_task(self._commit_offsets(identity, offsets, metadata, member))
                together.create_task(self._produce(batches))
        except (ExceptionGroup, kafka_errors.KafkaError, OSError) as error:
            cause = _first(error)
            if not isinstance(cause, kafka_errors.KafkaError | OSError):
                raise cause from error
            raise NotWrittenError(cause) from error
        passing("before-commit")
        request = EndTxnRequest(self._id, identity.producer_id, identity.epoch, True)
        await self._ask(request, CoordinationType.TRANSACTION, self._id, lambda answer: [answer.error_code])

    async def _batches(
        self, identity: Identity, records: Mapping[Partition, Batches], others: Sequence[Mapping[str, Any]]
    ) -> dict[Partition, list[bytearray]]:
        """All records as batches, in order, by partition; what names no partition comes behind what does."""
        await self._know({topic for topic, _ in records} | {record["topic"] for record in others})
        now_ms = time.time_ns() // 1_000_000
        placed = dict(records)
        for record in others:
            where = self._place(record)
            made = placed.get(where)
            if made is None:
                made = placed[where] = Batches()
            made.append(record["key"], record["value"], record.get("headers") or [], now_ms)
        batches = {}
        for where, made in placed.items():
            sequence = self._sequences.get(where, 0)
            found = made.build(identity, sequence)
            if found:
                batches[where] = found
                self._sequences[where] = (sequence + made.count) % SEQUENCE_MODULUS
        return batches

    def _place(self, record: Mapping[str, Any]) -> Partition:
        topic = record["topic"]
        partition = record.get("partition")
        if partition is None:
            count = len(self._client.cluster.partitions_for_topic(topic))
            key = record["key"]
            partition = partition_of(key, count) if key is not None else time.monotonic_ns() % count
        return topic, partition

    async def _know(self, topics: set[str]) -> None:
        """Have the metadata of these topics."""
        if not topics <= self._topics:
            self._topics |= topics
            await self._client.set_topics(self._topics)
        pauses = _pauses()
        while any(self._client.cluster.partitions_for_topic(topic) is None for topic in topics):
            denied = topics & self._client.cluster.unauthorized_topics
            if denied:
                raise kafka_errors.TopicAuthorizationFailedError(*denied)
            await asyncio.sleep(next(pauses))
            await self._client.force_metadata_update()

    async def _register(self, identity: Identity, partitions: Iterable[Partition]) -> None:
        by_topic = _by_topic((where, None) for where in partitions)
        topics = [(topic, sorted(number for number, _ in entries)) for topic, entries in by_topic.items()]
        request = AddPartitionsToTxnRequest(self._id, identity.producer_id, identity.epoch, topics)
        await self._ask(
            request,
            CoordinationType.TRANSACTION,
            self._id,
            lambda answer: [code for _, entries in answer.errors for _, code in entries],
        )

    async def _register_group(self, identity: Identity, group: str) -> None:
        request = AddOffsetsToTxnRequest(self._id, identity.producer_id, identity.epoch, group)
        await self._ask(request, CoordinationType.TRANSACTION, self._id, lambda answer: [answer.error_code])

    async def _commit_offsets(
        self, identity: Identity, offsets: Mapping[Partition, int], metadata: str, member: Member
    ) -> None:
        if not offsets:
            return
        await self._ask(
            TxnOffsetCommitRequest(self._id, identity, member, _by_topic(offsets.items()), metadata),
            CoordinationType.GROUP,
            member.group,
            lambda answer: [code for _, entries, _ in answer.errors for _, code, _ in entries],
        )

    async def _produce(self, batches: Mapping[Partition, Sequence[bytearray]]) -> None:
        """Send all batches, those of a partition in order: one request per broker, and again until all are there."""
        passing("before-records")
        left = {where: list(reversed(some)) for where, some in batches.items()}
        pauses, busy = _pauses(), _pauses(BUSY_S)
        while left:
            requests = self._requests(left)
            answers = await asyncio.gather(*(self._send(node, parts) for node, parts in requests.items()))
            codes = set()
            for where, code in (entry for answer in answers for entry in answer):
                if code in _WRITTEN:
                    left[where].pop()
                    if not left[where]:
                        del left[where]
                else:
                    _check(code)
                    codes.add(code)
            if codes and codes <= _BUSY:
                await asyncio.sleep(next(busy))
            elif codes or not requests:
                await asyncio.sleep(next(pauses))
                await self._client.force_metadata_update()

    def _requests(self, left: Mapping[Partition, Sequence[bytearray]]) -> dict[int, dict[Partition, bytearray]]:
        """The next batch of each partition, by the broker that leads it."""
        found: dict[int, dict[Partition, bytearray]] = {}
        sizes: dict[int, int] = defaultdict(int)
        for where, some in left.items():
            leader = self._client.cluster.leader_for_partition(TopicPartition(*where))
            if leader is None or leader < 0 or (sizes[leader] and sizes[leader] + len(some[-1]) > REQUEST_BYTES):
                continue
            sizes[leader] += len(some[-1])
            found.setdefault(leader, {})[where] = some[-1]
        return found

    async def _send(self, node: int, parts: Mapping[Partition, bytearray]) -> list[tuple[Partition, int]]:
        """The code of each partition; an answer that does not come is one that may be asked for again."""
        request = ProduceRequest(self._id, ACKNOWLEDGE_MS, _by_topic(parts.items()))
        try:
            answer = await self._client.send(node, request)
        except kafka_errors.KafkaError as error:
            log.debug("records for node %d: %r", node, error)
            return [(where, kafka_errors.RequestTimedOutError.errno) for where in parts]
        return [((topic, entry[0]), entry[1]) for topic, entries in answer.topics for entry in entries]

    async def _ask(self, request: Any, kind: Any, key: str, codes: Any) -> None:
        """Send a request to a coordinator, and again until it has done what is asked.

        Raises:
            KafkaError: it refuses for good.
        """
        pauses, busy = _pauses(), _pauses(BUSY_S)
        while True:
            try:
                node = self._coordinators.get(kind)
                if node is None:
                    node = self._coordinators[kind] = await self._client.coordinator_lookup(kind, key)
                answer = await self._client.send(node, request, group=ConnectionGroup.COORDINATION)
                for code in codes(answer):
                    if code:
                        raise error_of(code)
                return
            except kafka_errors.ConcurrentTransactions:
                await asyncio.sleep(ENDING_S)
            except kafka_errors.GroupLoadInProgressError:
                await asyncio.sleep(next(busy))
            except (kafka_errors.KafkaError, AssertionError) as error:
                if not _retriable(error):
                    raise
                log.debug("%s: %r", type(request).__name__, error)
                self._coordinators.pop(kind, None)
                await asyncio.sleep(next(pauses))


def _serve(loop: asyncio.AbstractEventLoop) -> None:
    loop.run_forever()
    loop.close()


async def _within(work: Awaitable[Value], timeout_s: float) -> Value:
    async with asyncio.timeout(timeout_s):
        return await work


def _pauses(seconds: Sequence[float] = RETRY_S) -> Iterator[float]:
    return chain(seconds, repeat(seconds[-1]))


def _by_topic(entries: Iterable[tuple[Partition, Value]]) -> dict[str, list[tuple[int, Value]]]:
    """What belongs to partitions as Kafka's requests have it: by topic, each with the partition's number."""
    found: dict[str, list[tuple[int, Value]]] = defaultdict(list)
    for (topic, partition), entry in entries:
        found[topic].append((partition, entry))
    return found


def _check(code: int) -> None:
    """Raise what cannot be mended by sending it again."""
    error = error_of(code)
    if not _retriable(error):
        raise error


def _retriable(error: Exception) -> bool:
    """Connections that break, leaders and coordinators that move; aiokafka marks them, lost nodes excepted."""
    return isinstance(error, AssertionError | kafka_errors.StaleMetadata) or bool(getattr(error, "retriable", False))


def _first(error: Exception) -> Exception:
    """One of what went wrong at once: each alone would have ended the transaction."""
    return _first(error.exceptions[0]) if isinstance(error, ExceptionGroup) else error
