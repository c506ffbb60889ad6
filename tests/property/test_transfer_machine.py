"""A connection under a remote, two workers, its owner and a storage, all of which break.

Never two writers whose bytes count, never an answer for bytes that are not durable, the whole under its name once and
only when whole (or not at all), always an end.
"""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule, run_state_machine_as_test

from app.protocol import transfer
from app.protocol.conveyance import (
    Ack,
    Announce,
    Begin,
    Cancel,
    Completing,
    Compose,
    Composed,
    Confirm,
    Conveying,
    Discard,
    Done,
    Durable,
    Event,
    Failed,
    Floating,
    Found,
    Granted,
    Idle,
    Lock,
    Message,
    Nak,
    Progress,
    Reason,
    Release,
    Remove,
    Reply,
    Segment,
    Segments,
    Spoiled,
    State,
    Terms,
    Tick,
    due_ms,
)
from tables import transfers as table
from tests.property.mutation import Choose

SIZE = 6
TERMS = Terms(lease_ms=10, expires_ms=60, size_max=8, attempts_max=2)


@dataclass
class Stored:
    """A segment: the bytes written, each named by its place in the message, and how many of them are durable."""

    bytes: list[int] = field(default_factory=list)
    durable: int = 0


@dataclass
class Holding:
    """What a worker believes: its instance, and where its own segment begins."""

    instance: int
    start: int
    name: str


class World:
    """``row`` is what the owner has committed; the storage survives everybody."""

    def __init__(self) -> None:
        self.now = 100
        self.row = table.encode(Idle())
        self.storage: dict[str, Stored] = {}
        self.workers: dict[str, Holding | None] = {"a": None, "b": None}
        self.sent: list[Event] = []
        self.messages = 0
        self.objects: dict[int, list[int]] = {}
        self.announced: list[tuple[Announce, int]] = []
        self.compose_asked = False
        self.promised: dict[tuple[int, int], int] = {}

    @property
    def state(self) -> State:
        return table.decode(self.row)

    def feed(self, event: Event) -> Reply:
        """The owner steps and commits; replies and effects follow."""
        before = self.state
        self.sent.append(event)
        decided = transfer.step(before, event, TERMS)
        self.row = table.encode(decided.state)
        assert self.state == decided.state, "a row that does not come back"
        for effect in decided.effects:
            match effect:
                case Discard(segments):
                    for segment in segments:
                        self.storage.pop(segment.name, None)
                case Remove(message):
                    self.objects.pop(message.number, None)
                case Compose():
                    self.compose_asked = True
                case Announce():
                    self.announced.append((effect, _number(before)))
        self._check_reply(before, decided.state, decided.reply, event)
        return decided.reply

    def _check_reply(self, before: State, after: State, reply: Reply, event: Event) -> None:
        match reply:
            case Granted(instance, offset):
                assert instance == after.instance
                if before.instance != instance and isinstance(event, Lock):
                    free = not isinstance(before, Conveying | Completing) or before.held is None
                    over = not free and before.held.until_ms <= event.now_ms  # type: ignore[union-attr]
                    own = not free and before.held.worker == event.worker  # type: ignore[union-attr]
                    assert free or over or own or event.seen == before.instance, "a lock taken from a live holder"
                assert offset == self._listed(after), "a grant that begins elsewhere"
            case Durable(offset):
                if isinstance(event, Progress | Release | Begin | Found):
                    self._check_durable(after, offset)
            case Ack(size, _):
                assert isinstance(after, Done)
                assert self.objects.get(after.message.number) == list(range(size)), "an ACK without the whole"
            case Nak():
                if not isinstance(event, Spoiled | Tick | Confirm):
                    assert after == before, "refused, and yet changed"

    def _listed(self, state: State) -> int:
        return sum(s.length for s in state.conveyance.segments) if isinstance(state, Conveying | Completing) else 0

    def _check_durable(self, state: State, offset: int) -> None:
        if isinstance(state, Floating | Conveying | Completing):
            content = self.content(state.conveyance.segments)
            assert content is not None, "an ACK for bytes that are not durable"
            assert content == list(range(offset)), "an ACK for bytes of two writers"
            key = (state.conveyance.message.number, state.conveyance.spoiled)
            assert offset >= self.promised.get(key, 0), "what was durable is so no more"
            self.promised[key] = offset

    def content(self, segments: Segments) -> list[int] | None:
        """The bytes that the row lists; None if one of them is not durable."""
        found: list[int] = []
        for segment in segments:
            stored = self.storage.get(segment.name, Stored())
            if stored.durable < segment.length:
                return None
            found += stored.bytes[: segment.length]
        return found

    # -- what may happen ------------------------------------------------------------------------------------------

    def begin(self, size: int | None) -> None:
        self.messages += isinstance(self.state, Idle | Done | Failed)
        self.feed(Begin(self.now, Message(f"m{self.messages}", size)))

    def lock(self, worker: str, *, seen: bool) -> None:
        state = self.state
        reply = self.feed(Lock(self.now, worker, f"r{len(self.sent)}", state.instance if seen else None))
        if isinstance(reply, Granted):
            self.workers[worker] = Holding(reply.instance, reply.offset, f"{reply.instance}-0")

    def start(self, worker: str, count: int) -> None:
        """As a worker does it: lock, look what is there, write, make it durable, say so."""
        self.lock(worker, seen=False)
        self.survey(worker)
        self.go_on(worker, count)

    def go_on(self, worker: str, count: int) -> None:
        self.write(worker, count)
        self.sync(worker)
        self.progress(worker, size=False, release=False)

    def survey(self, worker: str) -> None:
        """A new holder takes over what its predecessor had made durable beyond what it had said."""
        holding, state = self.workers[worker], self.state
        if holding is None or not isinstance(state, Conveying) or state.instance != holding.instance:
            return
        if holding.name in self.storage:
            return
        before = f"{holding.instance - 1}-0"
        segments = state.conveyance.segments
        stored = self.storage.get(before)
        listed = bool(segments) and segments[-1].name == before
        if stored is not None and (listed or stored.bytes[:1] == [holding.start]):
            # Whoever looks makes durable what it finds.
            stored.durable = len(stored.bytes)
            segments = (*(segments[:-1] if listed else segments), Segment(before, stored.durable))
        if isinstance(reply := self.feed(Found(self.now, holding.instance, segments)), Durable):
            holding.start = reply.offset

    def write(self, worker: str, count: int) -> None:
        """Bytes come from the remote, which goes on where it was told to; a fenced worker still writes."""
        holding = self.workers[worker]
        for _ in range(count if holding is not None else 0):
            assert holding is not None
            stored = self.storage.setdefault(holding.name, Stored())
            if holding.start + len(stored.bytes) < SIZE:
                stored.bytes.append(holding.start + len(stored.bytes))

    def sync(self, worker: str) -> None:
        holding = self.workers[worker]
        if holding is not None and holding.name in self.storage:
            stored = self.storage[holding.name]
            stored.durable = len(stored.bytes)

    def own(self, holding: Holding) -> Segments:
        durable = self.storage.get(holding.name, Stored()).durable
        return (Segment(holding.name, durable),) if durable else ()

    def progress(self, worker: str, *, size: bool, release: bool) -> None:
        holding = self.workers[worker]
        if holding is None:
            return
        kind = Release if release else Progress
        reply = self.feed(kind(self.now, holding.instance, self.own(holding), SIZE if size else None))
        if release or (isinstance(reply, Nak) and reply.reason is not Reason.MISMATCH):
            self.workers[worker] = None

    def compose(self, worker: str) -> None:
        """Whoever holds a complete conveyance makes the whole and says so; at once, or as the owner was asked to."""
        state = self.state
        if isinstance(state, Completing) and state.held is None and self.compose_asked:
            self.lock(worker, seen=False)
            self.compose_asked = False
        holding, state = self.workers[worker], self.state
        if holding is None or not isinstance(state, Completing) or state.instance != holding.instance:
            return
        content = self.content(state.conveyance.segments)
        assert content is not None
        self.objects[state.conveyance.message.number] = content
        self.feed(Composed(self.now, holding.instance))

    def fare_well(self, worker: str) -> None:
        """Nothing goes wrong for a while."""
        self.begin(SIZE)
        self.lock(worker, seen=False)
        self.go_on(worker, SIZE)
        self.compose(worker)

    def spoil(self, worker: str) -> None:
        holding = self.workers[worker]
        if holding is not None:
            self.feed(Spoiled(self.now, holding.instance, Reason.CHECKSUM))

    def crash(self, worker: str) -> None:
        """The worker is gone, and what it had not made durable with it."""
        holding = self.workers[worker]
        if holding is not None and (stored := self.storage.get(holding.name)) is not None:
            del stored.bytes[stored.durable :]
        self.workers[worker] = None

    def repeat(self, index: int) -> None:
        """An old word of a holder comes once more, late."""
        words = [e for e in self.sent if isinstance(e, Progress | Release | Found | Composed | Spoiled)]
        if words:
            self.feed(words[index % len(words)])

    def pass_time(self, milliseconds: int) -> None:
        self.now += milliseconds
        due = due_ms(self.state)
        if due is not None and due <= self.now:
            self.feed(Tick(self.now))

    def confirm(self, offset: int, *, verified: bool) -> None:
        self.feed(Confirm(self.now, offset, verified))

    # -- what must always hold ------------------------------------------------------------------------------------

    def check(self) -> None:
        assert len(set(self.announced)) == len(self.announced), "told twice"
        assert all(content == list(range(len(content))) for content in self.objects.values())
        state = self.state
        if isinstance(state, Floating | Conveying | Completing):
            assert self.content(state.conveyance.segments) is not None, "the row lists what is not durable"
            assert state.conveyance.offset <= SIZE
            assert state.conveyance.whole == isinstance(state, Completing)
            assert due_ms(state) is not None, "it waits for ever"
        if isinstance(state, Done):
            assert len(self.objects[state.message.number]) == state.message.size
            assert state.message.partial or (Announce.COMPLETED, state.message.number) in self.announced

    def settle(self) -> None:
        """Nobody comes any more: the owner's clock alone brings it to an end."""
        for _ in range(80):
            self.pass_time(5)
            self.check()
        assert isinstance(self.state, Idle | Done), "no end"


def _number(state: State) -> int:
    match state:
        case Idle():
            return 0
        case Done() | Failed():
            return state.message.number
        case Floating() | Conveying() | Completing():
            return state.conveyance.message.number


Move = Callable[[World, Choose], Any]
AB = ["a", "b"]
TF = [True, False]

MOVES: list[Move] = [
    lambda world, choose: world.begin(choose([SIZE, SIZE, SIZE, None, 0])),
    lambda world, choose: world.lock(choose(AB), seen=choose(TF)),
    lambda world, choose: world.start(choose(AB), choose([0, 2, 3])),
    lambda world, choose: world.survey(choose(AB)),
    lambda world, choose: world.write(choose(AB), choose([1, 2, 3, 5, 6])),
    lambda world, choose: world.write(choose(AB), choose([1, 2, 3, 5, 6])),
    lambda world, choose: world.sync(choose(AB)),
    lambda world, choose: world.go_on(choose(AB), choose([1, 2])),
    lambda world, choose: world.progress(choose(AB), size=False, release=False),
    lambda world, choose: world.progress(choose(AB), size=choose(TF), release=choose(TF)),
    lambda world, choose: world.compose(choose(AB)),
    lambda world, choose: world.fare_well(choose(AB)),
    lambda world, choose: world.crash(choose(AB)),
    lambda world, choose: world.repeat(choose([-1, -2, -3, 0, 1])),
    lambda world, choose: world.repeat(choose([-1, -2, -3, 0, 1])),
    lambda world, choose: world.pass_time(choose([1, 3, 9, 9, 10, 40])),
    lambda world, choose: world.spoil(choose(AB)),
    lambda world, choose: choose([0, 0, 0, 1]) and world.feed(Cancel(world.now)),
    lambda world, choose: world.confirm(choose([2, SIZE, SIZE + 1]), verified=choose(TF)),
]


class TransferMachine(RuleBasedStateMachine):
    def __init__(self) -> None:
        super().__init__()
        self.world = World()

    @rule(data=st.data(), number=st.integers(0, len(MOVES) - 1))
    def something_happens(self, data: st.DataObject, number: int) -> None:
        MOVES[number](self.world, lambda options: data.draw(st.sampled_from(options)))

    @invariant()
    def holds(self) -> None:
        self.world.check()

    def teardown(self) -> None:
        self.world.settle()


def test_transfers() -> None:
    run_state_machine_as_test(TransferMachine, settings=settings(max_examples=60, stateful_step_count=40))


def walk(choose: Choose) -> None:
    """One history, by chance; the same checks as the machine's."""
    world = World()
    for _ in range(50):
        choose(MOVES)(world, choose)
        world.check()
    world.settle()


def test_histories_reach_every_ending() -> None:
    import random

    endings: set[str] = set()
    for seed in range(200):
        world = World()
        choose = random.Random(seed).choice
        for _ in range(50):
            choose(MOVES)(world, choose)
            endings.add(type(world.state).__name__)
    assert endings == {"Idle", "Floating", "Conveying", "Completing", "Done", "Failed"}
