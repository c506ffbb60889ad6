"""What a task leaves behind when it ends: its result, what it sent, and a dead letter if it failed."""

from typing import Any

import orjson

from agents.cells import Cell, Entry, ServerContext
from agents.performing import Done, Failed
from app.engine.unit_of_work import Unit
from app.engine.wire import Pair
from app.errors import LocalProtocolError, RecordError
from app.handlers import Outbox
from app.protocol.murmur2 import partition_of
from app.records import parse_task

BATCH_BYTES = 512
"""What a record takes in a batch besides its key and value: a topic's limit is on the batch."""


class Endings:
    """Writes the ends of one server's tasks into the open unit of work."""

    def __init__(self, context: ServerContext, server: int) -> None:
        self._context = context
        self._server = server
        self._kinds = {kind: orjson.dumps(kind) for kind in context.handlers}
        self._place = b',"server":%d,"worker":%b,"sequence":' % (server, context.worker)
        self._unit: Unit | None = None
        self._results: list[list[Pair]] = []

    def conclude(self, cell: Cell, entry: Entry, ending: Done | Failed, attempts: int) -> None:
        """The task has ended: count it, keep its state, write its result, and whatever it sent or failed with."""
        cell.sequence += 1
        record = b""
        if type(ending) is Done:
            session = ending.session
            record = self._result(cell, entry, attempts, b'"done"', ending.result, b"null")
            refused = None
            if session.outbox is not None or len(record) > self._context.limit:
                refused = self._refused(ending, record)
            if refused is not None:
                ending = refused
            else:
                if session.outbox is not None:
                    self._send(session.outbox)
                cell.keep(ending.state, session)
        if type(ending) is Failed:
            cell.spoil()
            cell.ended = False
            self._context.engine.unit.failed += 1
            error = orjson.dumps({"type": ending.type, "message": ending.message})
            record = self._result(cell, entry, attempts, b'"failed"', b"null", error)
            self.dead_letter(entry, cell.tenant_key, ending)
        unit = self._context.engine.unit
        if unit is not self._unit:
            self._open(unit)
        self._results[cell.results_partition].append((cell.tenant_key, record))
        unit.weight += 1
        unit.size += len(record)

    def _open(self, unit: Unit) -> None:
        """Results go to these lists until the unit is sealed."""
        context = self._context
        self._unit = unit
        self._results = [unit.output(context.names.results, number) for number in range(context.routers)]

    def _result(self, cell: Cell, entry: Entry, attempts: int, status: bytes, result: bytes, error: bytes) -> bytes:
        """A record of ``results``, assembled from parts that are JSON already."""
        kind = self._kinds.get(entry.kind) or orjson.dumps(entry.kind)
        return (
            b'{"task":%b%b%b,"status":%b,"result":%b,"error":%b%b%d,"attempts":%d,"source":{"partition":%d,"offset":%d}}'
        ) % (
            orjson.dumps(entry.task_id),
            cell.label,
            kind,
            status,
            result,
            error,
            self._place,
            cell.sequence,
            attempts,
            entry.partition,
            entry.offset,
        )

    def _refused(self, done: Done, record: bytes) -> Failed | None:
        """Why what the handler left behind cannot be written, if it cannot: before anything of it is."""
        limit = self._context.limit
        if len(record) > limit:
            return Failed(
                "TooLarge", f"a result record of {len(record)} bytes; the limit is {limit} (MAX_RECORD_BYTES)"
            )
        outbox = done.session.outbox
        if outbox is None:
            return None
        for tenant, task in outbox.tasks:
            if len(task) + len(tenant) + BATCH_BYTES > limit:
                return Failed("TooLarge", f"a sent task of {len(task)} bytes; the limit is {limit} (MAX_RECORD_BYTES)")
        for topic, value, key in outbox.records:
            refused = self._not_emitted(topic, value, key)
            if refused is not None:
                return refused
        return None

    def _not_emitted(self, topic: str, value: bytes | None, key: bytes | None) -> Failed | None:
        takes = self._context.largest_record(topic)
        if takes is None:
            return Failed("UnknownTopic", f"no topic {topic!r} to emit to: create it first, outside the namespace")
        if takes.keyed and key is None:
            return Failed("NoKey", f"{topic} is compacted: emit to it with a key")
        limit = self._context.limit
        largest = limit if takes.max_bytes is None else min(limit, takes.max_bytes - BATCH_BYTES)
        size = len(value or b"") + len(key or b"")
        if size > largest:
            return Failed("TooLarge", f"an emitted record of {size} bytes; {topic} takes {largest}")
        return None

    def _send(self, outbox: Outbox) -> None:
        context = self._context
        for tenant, task in outbox.tasks:
            where = context.engine.unit.output(context.names.tasks, partition_of(tenant, context.routers))
            where.append((tenant, task))
        for topic, value, key in outbox.records:
            context.engine.unit.send(topic, value, key)

    def dead_letter(self, entry: Entry, key: bytes | None, failed: Failed) -> None:
        """Keep the original bytes, and say why."""
        context = self._context
        context.engine.unit.send(
            context.names.dead_letters,
            entry.value,
            key,
            partition=0,
            headers=dead_letter_headers(
                failed.type, failed.message, context.names.tasks, entry.partition, entry.offset
            ),
        )

    def no_task(self, partition: int, offset: int, value: bytes) -> None:
        """The router passed it by its bytes; it is no task all the same: a dead letter, with the key it came with."""
        key = _key_in(value)
        try:
            parse_task(key, value)
            reason = "the record is no task"
        except RecordError as error:
            reason = error.reason
        self.dead_letter(Entry(partition, offset, value, "", "", {}), key, Failed("RecordError", reason))

    def out_of_place(self, cell: Cell, partition: int, offset: int, value: bytes) -> None:
        """L1's check: a router sent what was performed already, or a producer forged the origin of a copy."""
        if partition == cell.results_partition:
            raise LocalProtocolError(
                f"server {self._server}: task {partition}/{offset} of {cell.tenant}/{cell.session} came after "
                f"{partition}/{cell.origins[partition]}"
            )
        forged = Failed("RecordError", f"a copy names origin {partition}/{offset}, which was performed already")
        self.dead_letter(Entry(partition, offset, value, "", "", {}), cell.tenant_key, forged)


def _key_in(value: bytes) -> bytes | None:
    """The key that a record which is no task came with: the router saw it in the bytes, behind ``"tenant":``."""
    _, found, rest = value.partition(b'"tenant"')
    key, closed, _ = rest.lstrip(b" :").removeprefix(b'"').partition(b'"')
    return key if found and closed else None


def dead_letter_headers(error: str, message: str, topic: str, partition: int, offset: int) -> list[tuple[str, Any]]:
    """The headers of a dead letter: why, and where the record stood."""
    return [
        ("error", error.encode()),
        ("message", message.encode(errors="replace")),
        ("source-topic", topic.encode()),
        ("source-partition", b"%d" % partition),
        ("source-offset", b"%d" % offset),
    ]
