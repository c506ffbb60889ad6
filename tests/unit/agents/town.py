"""Routers and servers that speak to each other through a log in memory: the real shells, without workers and broker.

Every resident has an engine of its own; :meth:`Host.turn` hands it what stands in its topics, lets its timers run, and
commits. Closing a host and opening it again loses what was not committed.
"""

import json
import time
from collections import defaultdict
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from types import MappingProxyType, SimpleNamespace
from typing import Any, cast

from agents.cells import ServerContext
from agents.release import DelayReader
from agents.router import Router, RouterContext
from agents.server import Server
from app.engine.announcements import Announcements
from app.engine.engine import Engine
from app.engine.offsets import Committed, Partition
from app.engine.places import Place, PlaceKind, Resident
from app.engine.stores.memory import MemoryStore
from app.engine.table import Rows
from app.engine.unit_of_work import Unit
from app.engine.watchdog import Watchdog
from app.handlers import Handler
from app.movers import Mover
from app.protocol.homes import Seen
from app.protocol.murmur2 import partition_of
from tables import handoffs, outcomes, parked, placements, sessions, views, waiting
from tests.unit.agents.workbench import LIMIT, NAMES, Message, Workshop, batch

SOON_S = 0.3
"""A timer that falls due so soon is not waited for."""

ROUTER_TABLES = (placements.NAME, parked.NAME, outcomes.NAME, views.NAME)
SERVER_TABLES = (sessions.NAME, waiting.NAME, handoffs.NAME)


class Reader:
    """The second reader of `delay`."""

    def __init__(self, host: "Host") -> None:
        self._host = host
        self._records = host.town.log[NAMES.delay, host.number]
        self._at: int | None = None

    def follow(self, offset: int) -> None:
        assert offset >= self._host.committed[NAMES.delay], "what is to be released was deleted"
        self._at = offset

    def leave(self) -> None:
        self._at = None

    def take(self, most: int) -> list[Message]:
        if self._at is None:
            return []
        found = self._records[self._at : self._at + most]
        self._at += len(found)
        return found

    def close(self) -> None:
        self._at = None


class Town:
    """All places of a small cluster."""

    def __init__(
        self,
        handlers: dict[str, Handler],
        *,
        routers: int = 1,
        servers: int = 3,
        movers: Mapping[str, Mover] = MappingProxyType({}),
    ) -> None:
        self.log: dict[Partition, list[Message]] = defaultdict(list)
        self.skipped = 0.0
        """Seconds that the clock of all places is ahead, because nobody has waited for them."""
        self.hurries = True
        """Is what falls due soon not waited for?"""
        self.handlers = handlers
        self.movers = movers
        self.routers = routers
        self.servers = servers
        self.seen = Seen({"w1": 1, "w2": 1}, ("w1", *["w2"] * (servers - 1)), settled=True)
        self.pool = ThreadPoolExecutor(2)
        self.hosts = [Host(self, "router", number) for number in range(routers)]
        self.hosts += [Host(self, "server", number) for number in range(servers)]

    def router(self, number: int = 0) -> "Host":
        return self.hosts[number]

    def server(self, number: int) -> "Host":
        return self.hosts[self.routers + number]

    def put(self, topic: str, partition: int, key: bytes | None, value: bytes | None, headers: Any = None) -> None:
        records = self.log[topic, partition]
        records.append(Message(len(records), value, key, headers))

    def send(self, tenant: str, session: str, kind: str = "add", **payload: Any) -> None:
        task = {"tenant": tenant, "session": session, "type": kind, "payload": payload}
        key = tenant.encode()
        self.put(NAMES.tasks, partition_of(key, self.routers), key, json.dumps(task).encode())

    def order(self, command: str, tenant: str | None = None, **fields: Any) -> None:
        record = {"command": command, **({} if tenant is None else {"tenant": tenant}), **fields}
        key = None if tenant is None else tenant.encode()
        partition = 0 if key is None else partition_of(key, self.routers)
        self.put(NAMES.commands, partition, key, json.dumps(record).encode())

    def die(self, worker: str, heir: str) -> None:
        """A worker dies; another one hosts its servers from now on, and router 0 hears of it."""
        workers = {name: incarnation for name, incarnation in self.seen.workers.items() if name != worker}
        hosts = tuple(heir if host == worker else host for host in self.seen.hosts)
        for number, host in enumerate(self.seen.hosts):
            if host == worker:
                self.server(number).restart(died=True)
        self.seen = Seen(workers, hosts, settled=True)
        self.router().restart()

    def turn(self) -> bool:
        """One turn of every place; did anything happen?"""
        happened = [host.turn() for host in self.hosts]
        return any(happened)

    def quiet(self, turns: int = 400) -> None:
        """Turn until nothing happens any more."""
        still = 0
        for _ in range(turns):
            still = 0 if self.turn() else still + 1
            if still == 3:
                return
        raise AssertionError("it does not come to rest")

    def events(self) -> list[dict[str, Any]]:
        return [json.loads(record.value() or b"") for record in self.log[NAMES.events, 0]]

    def final(self, command: str) -> dict[str, Any]:
        (found,) = [event for event in self.events() if event["final"] and event["id"] == command]
        return found

    def results(self) -> list[dict[str, Any]]:
        return [
            json.loads(record.value() or b"")
            for (topic, _), records in sorted(self.log.items())
            if topic == NAMES.results
            for record in records
        ]


class Host:
    """One place and its resident."""

    def __init__(self, town: Town, kind: str, number: int) -> None:
        self.town = town
        self.number = number
        router = kind == "router"
        self.topics = (NAMES.tasks, NAMES.commands, NAMES.delay) if router else (NAMES.work, NAMES.handoffs)
        count = town.routers if router else town.servers
        self.place = Place(PlaceKind(kind, count, self.topics, {}), number, f"{kind}-{number}")
        for name in ROUTER_TABLES if router else SERVER_TABLES:
            self.place.rows[name] = Rows(MemoryStore(), NAMES.changelog(name), number)
        self.committed = dict.fromkeys(self.topics, 0)
        self.open()

    def open(self) -> None:
        """Begin with what is committed."""
        for rows in self.place.rows.values():
            rows.discard()
        self.engine = Workshop()
        self.engine.suspects.standing.update(self.place.suspicions)
        self.engine.janitor.lags = {}
        self.positions = dict(self.committed)
        self._seen = dict(self.positions)
        self.place.committed = {(topic, self.number): Committed(at, None) for topic, at in self.committed.items()}
        self.resident: Resident = Router(self._routing(), self.place) if len(self.topics) == 3 else self._server()

    def _routing(self) -> RouterContext:
        town = self.town
        return RouterContext(
            engine=cast("Engine", self.engine),
            names=NAMES,
            routers=town.routers,
            servers=town.servers,
            reader=lambda number: cast("DelayReader", Reader(self)),
            delay_ms=2_000,
            timeout_ms=60_000,
            seen=lambda: town.seen,
            rehome_after_ms=0,
            offline=bool(town.movers),
        )

    def _server(self) -> Server:
        town = self.town
        context = ServerContext(
            engine=cast("Engine", self.engine),
            names=NAMES,
            worker=b'"w1"',
            handlers=town.handlers,
            routers=town.routers,
            servers=town.servers,
            limit=LIMIT,
            task_timeout=10.0,
            max_attempts=5,
            max_crashes=3,
            session_ttl=0.0,
            pool=town.pool,
            watchdog=cast("Watchdog", SimpleNamespace(current=None)),
            announcements=cast("Announcements", self.engine.suspects),
            movers=town.movers,
        )
        return Server(context, self.place)

    def turn(self, *, commit: bool = True) -> bool:
        """Take in what has come, let timers run, and commit."""
        for topic in self.topics:
            self.take(topic)
        now = time.time() + self.town.skipped
        due = self.resident.due()
        if due is not None and due <= now + SOON_S * self.town.hurries:
            self.town.skipped += max(0.0, due - now)
            self.resident.on_time(max(now, due))
        return commit and self.commit()

    def take(self, topic: str, most: int = 10_000) -> None:
        records = self.town.log[topic, self.number][self.positions[topic] :][:most]
        if records:
            found = batch(topic, records)
            before = -1
            while before < found.start < len(records):
                before = found.start
                self.resident.perform(found, time.monotonic() + 60)
            done = found.start == len(records)
            self.positions[topic] = found.next_offset if done else records[found.start].offset()

    def commit(self) -> bool:
        """Everything of the open unit is in the log; was there anything?"""
        self.resident.before_seal()
        unit, self.engine.unit = self.engine.unit, Unit(60.0)
        happened = bool(unit.others) or any(unit.records.values()) or self.positions != self._seen
        self._seen = dict(self.positions)
        for rows in self.place.rows.values():
            if rows.dirty:
                happened = True
                rows.store.apply(rows.seal().items(), None)
                rows.settled()
        for (topic, partition), records in unit.records.items():
            for key, value in records:
                self.town.put(topic, partition, key, value)
        for record in unit.others:
            self.town.put(
                record["topic"], record.get("partition", 0), record["key"], record["value"], record.get("headers")
            )
        self.committed = dict(self.positions)
        for topic in self.topics:
            held = self.resident.hold(topic)
            if held is not None:
                self.committed[topic] = held
        self.resident.after_commit({(topic, self.number): at for topic, at in self.committed.items()})
        return happened

    def restart(self, *, died: bool = False) -> None:
        """The host dies; another one takes the place over, and is told of the death if it is to be vigilant."""
        # Who dies withdraws nothing.
        self.engine.failing = died
        self.resident.close()
        self.place.owner_died = died
        self.place.suspicions = dict(self.engine.suspects.standing)
        self.place.ends = {where: len(self.town.log[where]) for where in self.place.partitions} if died else {}
        self.open()

    def rows(self, table: str) -> dict[bytes, bytes]:
        return dict(self.place.rows[table].store.scan(b""))
