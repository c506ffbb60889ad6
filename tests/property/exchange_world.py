"""A client, a manager and its backup, and server sessions around one exchange, with every fault that can come between.

Processes die and linger, records come twice and out of order, units are lost with their host, and a manager takes the
living for dead. What is checked never looks at the core's own rules: only at what was promised to whom.
"""

from collections.abc import Callable
from copy import deepcopy
from dataclasses import dataclass, field
from typing import Any

from app.protocol import exchange, exchange_client, exchange_server
from app.protocol import exchange_model as model
from app.protocol.exchange_client import Live, Opening, Over
from app.protocol.exchange_model import Absent, Ended, Event, Exchange, Open
from app.protocol.exchange_server import Away, Held
from tables import exchanges as table
from tables.exchanges import ExchangeRow
from tests.property.mutation import Choose

WINDOW = 3
CRASHES_MAX = 10**6
SERVERS = ("a", "b")


def tag(*numbers: int) -> bytes:
    """Restart data that tell which operation they came with."""
    return b"[%b]" % b",".join(b"%d" % number for number in numbers)


def untag(restart: bytes) -> tuple[int, ...]:
    return () if restart == model.NOTHING else tuple(map(int, restart[1:-1].split(b",")))


@dataclass
class Sent:
    """A record on its way to the manager."""

    event: Event
    body: Any = None


@dataclass
class Kept:
    """What a committed unit leaves behind."""

    exchange: Exchange = field(default_factory=Absent)
    rows: dict[tuple[str, int], Any] = field(default_factory=dict)
    answers: dict[int, Any] = field(default_factory=dict)
    requests: dict[int, Any] = field(default_factory=dict)


@dataclass
class ClientProcess:
    """A process of the client; it may linger behind a younger one."""

    incarnation: int
    side: exchange_client.Side
    read: int
    sent: dict[int, Sent] = field(default_factory=dict)
    responses: dict[int, Any] = field(default_factory=dict)


@dataclass
class ServerProcess:
    """A process of a server session. ``running`` is the request that it performs, as it was begun."""

    name: str
    incarnation: int
    read: int
    side: exchange_server.Side = field(default_factory=Away)
    restart: bytes = model.NOTHING
    bodies: dict[int, Any] = field(default_factory=dict)
    running: tuple[int, Any] | None = None


class World:
    """``open`` is the manager's open unit, ``kept`` what survives it."""

    def __init__(self) -> None:
        self.count = 0
        self.pending: list[Sent] = []
        self.history: list[Sent] = []
        self.kept = Kept()
        self.unit = Kept()
        self.taken: list[Sent] = []
        self.out: list[tuple[str, tuple[Any, ...]]] = []
        self.replies: list[tuple[Any, ...]] = []
        self.assignments: list[tuple[Any, ...]] = []
        self.clients: list[ClientProcess] = []
        self.servers: list[ServerProcess] = []
        self.settled: tuple[int, ...] = ()
        self.runs = 0

    def number(self) -> int:
        self.count += 1
        return self.count

    def send(self, event: Event, body: Any = None) -> Sent:
        sent = Sent(event, body)
        self.pending.append(sent)
        self.history.append(sent)
        return sent

    # -- the manager ------------------------------------------------------------------------------------------------

    def take(self, index: int) -> None:
        if self.pending:
            sent = self.pending.pop(index % len(self.pending))
            self.taken.append(sent)
            self.feed(sent.event, sent.body)

    def repeat(self, index: int) -> None:
        """A record comes again, however old it is; an opening cannot: its offset is its number."""
        again = [sent for sent in self.history if not isinstance(sent.event, model.ClientOpened)]
        if again:
            self.pending.append(again[index % len(again)])

    def feed(self, event: Event, body: Any = None) -> None:
        before = self.unit.exchange
        decided = exchange.step(before, event)
        self.unit.exchange = decided.exchange
        for effect in decided.effects:
            self.perform(effect, body)
        after = self.unit.exchange
        if isinstance(before, Open) and isinstance(after, Open):
            assert untag(after.client_restart) >= untag(before.client_restart), "the client's restart data went back"
            assert untag(after.server_restart) >= untag(before.server_restart), "the server's restart data went back"

    def perform(self, effect: model.Effect, body: Any) -> None:
        match effect:
            case model.FindServer():
                self.find()
            case model.StoreRequest() | model.StoreResponse() | model.DropResponses() | model.DropQueues():
                self.change_rows(effect, body)
            case model.RestartServer() | model.Release():
                self.tell_server(effect)
            case model.FailRequest():
                raise AssertionError("a request was given up")
            case model.Note() | model.Forget() | model.StartPrograms():
                pass
            case _:
                self.tell_client(effect)

    def change_rows(self, effect: model.Effect, body: Any) -> None:
        unit, now = self.unit, self.unit.exchange
        match effect:
            case model.StoreRequest(number, send):
                assert isinstance(now, Open)
                assert number not in unit.requests, "a request was stored twice"
                unit.requests[number] = unit.rows["q", number] = body
                if send:
                    self.out.append(("assignments", ("request", (now.server, now.assignment), number, body)))
            case model.StoreResponse(number):
                assert isinstance(now, Open)
                assert number not in unit.answers, "a response was stored twice"
                assert body[0] == unit.rows.pop(("q", number)), "the response to another request"
                unit.answers[number] = unit.rows["r", number] = body
                self.out.append(("replies", ("response", now.incarnation, number, body)))
            case model.DropResponses(first, last):
                for number in range(first, last + 1):
                    del unit.rows["r", number]
            case model.DropQueues():
                unit.rows.clear()

    def tell_server(self, effect: model.RestartServer | model.Release) -> None:
        now = self.unit.exchange
        if isinstance(effect, model.Release):
            self.out.append(("assignments", ("release", (effect.server, effect.assignment))))
            return
        assert isinstance(now, Open)
        self.out.append(("assignments", ("restart", (now.server, now.assignment), now)))
        self.queues("assignments", (now.server, now.assignment), now)

    def tell_client(self, effect: model.Effect) -> None:
        now = self.unit.exchange
        match effect:
            case model.RefuseClient(incarnation, _, reason, expected):
                self.out.append(("replies", ("refused", incarnation, reason, expected)))
            case model.CloseClient(incarnation):
                self.out.append(("replies", ("closed", incarnation, "finished")))
            case _:
                assert isinstance(now, Open)
        match effect, now:
            case model.RestartClient(), Open():
                self.out.append(("replies", ("restart", now.incarnation, now)))
                self.queues("replies", now.incarnation, now)
            case model.TellPositions(), Open():
                self.out.append(("replies", ("positions", now.incarnation, now)))
            case model.FenceClient(incarnation), Open():
                self.out.append(("replies", ("fenced", incarnation, now.incarnation)))

    def queues(self, topic: str, to: Any, now: Open) -> None:
        for number in range(now.acknowledged + 1, now.submitted + 1):
            kind = "response" if number <= now.answered else "request"
            self.out.append((topic, (kind, to, number, self.unit.rows[(kind == "response" and "r") or "q", number])))

    def find(self) -> None:
        """The youngest process of each name is the one that is known; the first of them takes it."""
        youngest = {process.name: process.incarnation for process in self.servers}
        for name in SERVERS:
            if name in youngest:
                self.feed(model.ServerFound(name, youngest[name]))

    def lose(self, *, crashed: bool) -> None:
        """The manager takes a server session for dead, rightly or not."""
        now = self.unit.exchange
        if isinstance(now, Open) and now.server:
            self.feed(model.ServerLost(now.server, now.server_incarnation, crashed, CRASHES_MAX))

    def commit(self) -> None:
        if self.check_unit():
            self.kept = deepcopy(self.unit)
            for topic, record in self.out:
                (self.replies if topic == "replies" else self.assignments).append(record)
            self.out.clear()
            self.taken.clear()

    def check_unit(self) -> bool:
        now = self.unit.exchange
        if isinstance(now, Open):
            queued = {("r", n) for n in range(now.acknowledged + 1, now.answered + 1)}
            queued |= {("q", n) for n in range(now.answered + 1, now.submitted + 1)}
            assert set(self.unit.rows) == queued, "rows and positions differ"
            assert now.submitted - now.acknowledged <= WINDOW, "the window does not bound the queues"
            assert untag(now.client_restart) >= self.settled, "the client was told that later restart data are stored"
        return True

    def crash(self) -> None:
        """The host is lost with its open unit; the backup reads the rows and what was not committed."""
        self.unit = deepcopy(self.kept)
        now = self.unit.exchange
        if isinstance(now, Open | Ended):
            self.unit.exchange = table.decode(table.encode(ExchangeRow(now, 1, 2))).exchange
        self.pending = [*self.taken, *self.pending]
        self.taken.clear()
        self.out.clear()
        self.feed(model.ManagerStarted())

    # -- clients ----------------------------------------------------------------------------------------------------

    def open_client(self) -> None:
        incarnation = self.number()
        self.send(model.ClientOpened("laptop", incarnation, WINDOW))
        process = ClientProcess(incarnation, Opening(incarnation), len(self.replies))
        self.clients = [*self.clients[-1:], process]

    def client(self, index: int) -> ClientProcess | None:
        return self.clients[index % len(self.clients)] if self.clients else None

    def step_client(self, process: ClientProcess, event: exchange_client.Event) -> None:
        decided = exchange_client.step(process.side, event)
        process.side = decided.side
        for effect in decided.effects:
            match effect:
                case exchange_client.Resend(first):
                    self.pending += [process.sent[op] for op in sorted(process.sent) if op >= first]
                case exchange_client.Settle(op):
                    restarts = [(process.incarnation, known) for known in process.sent if known <= op]
                    self.settled = max([self.settled, *restarts])

    def operate(self, index: int, kind: str) -> None:
        process = self.client(index)
        if process is None or not isinstance(process.side, Live):
            return
        side = process.side
        oldest = side.acknowledged + 1
        if kind == "acknowledge" and oldest not in process.responses:
            return
        wanted = exchange_client.SubmitWanted() if kind == "submit" else exchange_client.AcknowledgeWanted(oldest)
        before = side.op
        self.step_client(process, wanted)
        assert isinstance(process.side, Live)
        op = process.side.op
        if op == before:
            return
        restart = tag(process.incarnation, op)
        if kind == "submit":
            number = process.side.submitted
            body = (process.incarnation, op)
            process.sent[op] = self.send(model.Submitted(process.incarnation, op, number, restart), body)
        else:
            assert process.responses.pop(oldest) == self.kept.answers[oldest], "another answer than the one stored"
            process.sent[op] = self.send(model.Acknowledged(process.incarnation, op, oldest, restart))

    def read_reply(self, index: int) -> None:
        process = self.client(index)
        if process is None or process.read >= len(self.replies):
            return
        kind, incarnation, *rest = self.replies[process.read]
        process.read += 1
        if incarnation != process.incarnation:
            return
        match kind:
            case "restart":
                now: Open = rest[0]
                told = exchange_client.Restarted(
                    incarnation, now.client_op, now.window, now.submitted, now.answered, now.acknowledged
                )
                fresh = isinstance(process.side, Opening)
                self.step_client(process, told)
                if fresh:
                    assert untag(now.client_restart) >= self.settled_before(incarnation), "older than what was stored"
            case "positions":
                now = rest[0]
                self.step_client(process, exchange_client.PositionsTold(incarnation, now.client_op, now.answered))
            case "response":
                number, body = rest
                self.step_client(process, exchange_client.PositionsTold(incarnation, 0, number))
                if isinstance(process.side, Live) and number > process.side.acknowledged:
                    process.responses[number] = body
            case "refused":
                assert rest[0] == "gap", f"refused: {rest[0]}"
                self.step_client(process, exchange_client.Refused(incarnation, *rest))
            case "fenced":
                self.step_client(process, exchange_client.Fenced(incarnation, *rest))

    def settled_before(self, incarnation: int) -> tuple[int, ...]:
        return self.settled if self.settled[:1] < (incarnation,) else ()

    # -- server sessions --------------------------------------------------------------------------------------------

    def open_server(self, name: str) -> None:
        process = ServerProcess(name, self.number(), len(self.assignments))
        others = [other for other in self.servers if other.name != name]
        older = [other for other in self.servers if other.name == name][-1:]
        self.servers = [*others, *older, process]
        now = self.unit.exchange
        if isinstance(now, Open) and now.server == name:
            self.feed(model.ServerLost(name, now.server_incarnation, True, CRASHES_MAX))
        elif isinstance(now, Open) and not now.server:
            self.find()

    def kill_server(self, index: int) -> None:
        """A process is gone, and what it was doing."""
        if self.servers:
            del self.servers[index % len(self.servers)]

    def server(self, index: int) -> ServerProcess | None:
        return self.servers[index % len(self.servers)] if self.servers else None

    def step_server(self, process: ServerProcess, event: exchange_server.Event) -> tuple[exchange_server.Effect, ...]:
        decided = exchange_server.step(process.side, event)
        process.side = decided.side
        return decided.effects

    def read_assignment(self, index: int) -> None:
        process = self.server(index)
        if process is None or process.read >= len(self.assignments):
            return
        kind, (name, assignment), *rest = self.assignments[process.read]
        process.read += 1
        if name != process.name or kind == "response":
            return
        event: exchange_server.Event
        match kind:
            case "restart":
                now: Open = rest[0]
                event = exchange_server.Given(assignment, now.server_op, now.answered, now.careful)
            case "request":
                event = exchange_server.RequestCame(assignment, rest[0])
            case _:
                event = exchange_server.Withdrawn(assignment)
        for effect in self.step_server(process, event):
            match effect:
                case exchange_server.Restart():
                    process.restart = rest[0].server_restart
                    process.bodies.clear()
                case exchange_server.Keep(number):
                    process.bodies[number] = rest[1]

    def begin(self, index: int) -> None:
        process = self.server(index)
        if process is None:
            return
        for effect in self.step_server(process, exchange_server.Free()):
            assert isinstance(effect, exchange_server.Perform)
            assert process.running is None, "two requests of an exchange at once"
            assert isinstance(process.side, Held)
            process.running = (effect.number, process.bodies[effect.number])
            if effect.announce:
                told = model.Begun(process.name, process.side.assignment, effect.announce, effect.number)
                self.send(told)

    def end(self, index: int, *, pause: bool = False) -> None:
        process = self.server(index)
        if process is None or process.running is None:
            return
        number, body = process.running
        event = exchange_server.Paused() if pause else exchange_server.Performed()
        for effect in self.step_server(process, event):
            if isinstance(effect, exchange_server.Discard):
                continue
            assert isinstance(process.side, Held)
            assert isinstance(effect, exchange_server.Respond | exchange_server.Save)
            assignment = process.side.assignment
            process.restart = tag(assignment, effect.op)
            if isinstance(effect, exchange_server.Respond):
                assert effect.number == number
                self.runs += 1
                told = model.Responded(process.name, assignment, effect.op, number, process.restart)
                self.send(told, (body, self.runs))
            else:
                self.send(model.Checkpointed(process.name, assignment, effect.op, number, process.restart))
        if not pause:
            process.running = None

    # -- the end ----------------------------------------------------------------------------------------------------

    def settle(self) -> None:
        """Without further faults every request that was stored is answered, and its answer received."""
        self.open_client()
        self.clients = self.clients[-1:]
        self.servers = [process for process in self.servers if process.incarnation == self.youngest(process.name)]
        if not self.servers:
            self.open_server("a")
        for _ in range(400):
            while self.pending:
                self.take(0)
            self.lose_the_dead()
            self.commit()
            for _ in range(len(self.replies)):
                self.read_reply(0)
            for index in range(len(self.servers)):
                for _ in range(len(self.assignments)):
                    self.read_assignment(index)
                self.begin(index)
                self.end(index)
            self.operate(0, "acknowledge")
            now = self.kept.exchange
            if isinstance(now, Open) and now.submitted == now.acknowledged and not self.pending:
                break
        else:
            raise AssertionError(f"it stands still: {self.kept.exchange}")
        assert set(self.kept.answers) == set(self.kept.requests) == set(range(1, len(self.kept.requests) + 1))
        side = self.clients[0].side
        assert not isinstance(side, Over)

    def youngest(self, name: str) -> int:
        return max(process.incarnation for process in self.servers if process.name == name)

    def lose_the_dead(self) -> None:
        now = self.unit.exchange
        alive = {process.incarnation for process in self.servers}
        if isinstance(now, Open) and now.server_incarnation not in {0, *alive}:
            self.lose(crashed=True)


Move = Callable[[World, Choose], Any]

INDEXES = [0, 0, 0, -1, 1, 2]

MOVES: list[Move] = [
    lambda world, choose: world.open_client(),
    lambda world, choose: world.open_server(choose(SERVERS)),
    lambda world, choose: world.kill_server(choose(INDEXES)),
    lambda world, choose: world.lose(crashed=choose([True, False])),
    lambda world, choose: world.crash(),
    lambda world, choose: world.repeat(choose(range(40))),
    *[lambda world, choose: world.operate(choose([-1, -1, 0]), "submit")] * 4,
    *[lambda world, choose: world.operate(choose([-1, -1, 0]), "acknowledge")] * 3,
    *[lambda world, choose: world.take(choose(INDEXES))] * 6,
    *[lambda world, choose: world.commit()] * 4,
    *[lambda world, choose: world.read_reply(choose([-1, -1, 0]))] * 8,
    *[lambda world, choose: world.read_assignment(choose(INDEXES))] * 8,
    *[lambda world, choose: world.begin(choose(INDEXES))] * 4,
    *[lambda world, choose: world.end(choose(INDEXES))] * 3,
    lambda world, choose: world.end(choose(INDEXES), pause=True),
]
