"""A manager of exchanges outside a worker: real rows and units; the engine around it only takes notes."""

import json
from types import SimpleNamespace
from typing import Any, cast

from agents.exchanges import ExchangeContext, Manager
from app.engine.engine import Engine
from app.engine.fetch import Batch
from app.engine.offsets import Committed
from app.engine.places import Place, PlaceKind
from app.engine.stores.memory import MemoryStore
from app.engine.table import Rows
from app.engine.unit_of_work import Unit
from app.settings import INTERNAL_SLACK_BYTES
from app.topics import Names
from tables import exchanges as table
from tests.unit.agents.workbench import Message

NAMES = Names("ns")
LIMIT = 4_000
FAR = 10**12

Record = dict[str, Any]


class ManagerBench:
    """One manager with its rows; taken over it finds what was committed."""

    def __init__(self, **changes: Any) -> None:
        self.engine = SimpleNamespace(
            unit=Unit(60.0),
            options=SimpleNamespace(name="w1", incarnation=1, max_record_bytes=LIMIT + INTERNAL_SLACK_BYTES),
        )
        given: dict[str, Any] = {"lease": 10.0, "timeout": 1_000.0, "retention": 1_000.0, "crashes_max": 2, **changes}
        self.context = ExchangeContext(
            engine=cast("Engine", self.engine), names=NAMES, managers=1, worker="w1", limit=LIMIT, **given
        )
        kind = PlaceKind("exchange", 1, (NAMES.requests, NAMES.responses), {})
        self.place = Place(kind, 0, "exchange-0")
        self.offsets = {NAMES.requests: 0, NAMES.responses: 0}
        self.rows: dict[str, Rows] = {}
        for name in (table.NAME, table.MESSAGES):
            self.rows[name] = self.place.rows[name] = Rows(MemoryStore(), NAMES.changelog(name), 0)
        self.open()

    def open(self) -> None:
        """Serve the place; what was not committed has not happened."""
        for rows in self.rows.values():
            rows.discard()
        self.engine.unit = Unit(60.0)
        self.place.committed = {(name, 0): Committed(offset, None) for name, offset in self.offsets.items()}
        self.manager = Manager(self.context, self.place)

    def take_over(self) -> None:
        """Another worker serves the place from now on."""
        self.engine.options.incarnation += 1
        self.open()

    def feed(self, topic: str, key: str | None, record: object) -> int:
        """Perform one record; return its offset."""
        value = record if isinstance(record, bytes | None) else json.dumps({"v": 1, **cast("Record", record)}).encode()
        offset = self.offsets[topic]
        self.offsets[topic] += 1
        message = Message(offset, value, None if key is None else key.encode())
        batch = Batch(topic, 0, cast("Any", [message]), offset + 1)
        self.manager.perform(batch, FAR)
        assert batch.start == 1
        return offset

    def request(self, key: str | None, record: object) -> int:
        return self.feed(NAMES.requests, key, record)

    def response(self, key: str | None, record: object) -> int:
        return self.feed(NAMES.responses, key, record)

    def commit(self) -> dict[str, list[Record]]:
        """Commit the unit; return what was written, by topic without its namespace."""
        self.manager.before_seal()
        for rows in self.rows.values():
            if rows.dirty:
                rows.store.apply(rows.seal().items(), None)
                rows.settled()
        written: dict[str, list[Record]] = {}
        for (topic, _), records in self.engine.unit.records.items():
            for key, value in records:
                self._note(written, topic, {"key": key, "value": value})
        for record in self.engine.unit.others:
            self._note(written, record["topic"], record)
        self.engine.unit = Unit(60.0)
        self.manager.after_commit({})
        return written

    @staticmethod
    def _note(written: dict[str, list[Record]], topic: str, record: Record) -> None:
        if topic == NAMES.dead_letters:
            found = {"headers": dict(record["headers"]), "value": record["value"]}
        else:
            found = json.loads(record["value"])
            found.pop("v", None)
        key = record["key"]
        found["key"] = key if key is None else key.decode()
        written.setdefault(topic.removeprefix("ns."), []).append(found)

    # -- short forms ------------------------------------------------------------------------------------------------

    def open_client(self, exchange: str = "sim", **fields: Any) -> int:
        return self.request(exchange, {"type": "open", "client": "laptop", **fields})

    def open_server(self, name: str = "hpc-1") -> int:
        return self.response(name, {"type": "open", "server": name})

    def submit(self, incarnation: int, op: int, number: int, body: Any = 1, exchange: str = "sim", **more: Any) -> None:
        fields = {"type": "submit", "incarnation": incarnation, "op": op, "number": number, "body": body}
        self.request(exchange, {**fields, **more})

    def respond(self, assignment: int, op: int, number: int, body: Any = 2, server: str = "hpc-1", **more: Any) -> None:
        fields = {"type": "respond", "server": server, "assignment": assignment, "op": op, "number": number}
        self.response("sim", {**fields, "body": body, **more})

    def row(self, exchange: str = "sim") -> Record:
        found = self.rows[table.NAME].peek(exchange.encode())
        assert found is not None
        return table.fields_of(found)

    def messages(self) -> dict[str, Any]:
        return {
            key.decode().partition("\0")[2]: table.decode_message(row)
            for key, row in self.rows[table.MESSAGES].store.scan(b"")
        }
