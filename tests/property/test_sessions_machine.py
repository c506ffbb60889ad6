"""A session under arrivals, endings, retries, wake-ups of every kind, lost units and new hosts.

I3: tasks end in the order of their arrival, each once; I6: none waits for ever.
"""

import copy
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule, run_state_machine_as_test

from app.protocol import sessions
from app.protocol.sessions import (
    Arrived,
    Ended,
    Event,
    GiveUp,
    Phase,
    Queue,
    Remove,
    Reopened,
    RetryAsked,
    Run,
    Save,
    Wake,
    Woken,
)
from tables import waiting as table
from tests.property.mutation import Choose

ATTEMPTS_MAX = 3
SESSION = b"acme\x000\x00cart"


@dataclass
class Log:
    """What a committed unit leaves behind: rows, results, wake-ups that are on their way, what was read."""

    rows: dict[bytes, bytes] = field(default_factory=dict)
    results: list[int] = field(default_factory=list)
    wakes: list[Wake] = field(default_factory=list)
    retries: dict[int, int] = field(default_factory=dict)
    arrived: int = 0


class World:
    """One session on its server. ``log`` is the open unit's view, ``committed`` what survives the host."""

    def __init__(self) -> None:
        self.now = 0
        self.queue: Queue = ()
        self.running: Run | None = None
        self.log = Log()
        self.committed = Log()

    def feed(self, event: Event) -> None:
        decided = sessions.step(self.queue, event)
        self.queue = decided.queue
        for effect in decided.effects:
            match effect:
                case Save(waiting):
                    row = table.WaitingRow(waiting, 0, waiting.arrival, b'{"id":"t"}')
                    self.log.rows[table.key_of(SESSION, waiting.arrival)] = table.encode(row)
                case Remove(arrival):
                    del self.log.rows[table.key_of(SESSION, arrival)]
                    self.running = None
                case Wake():
                    self.log.wakes.append(effect)
                    self.running = None
                case GiveUp(arrival):
                    assert self.log.retries.get(arrival, 0) == ATTEMPTS_MAX - 1, "gave up too early"
                    self.log.results.append(arrival)
                    self.feed(Ended())
                case Run(arrival, attempt):
                    assert self.running is None, "two tasks of a session at once"
                    assert attempt == self.log.retries.get(arrival, 0) + 1 <= ATTEMPTS_MAX, "attempts miscounted"
                    due = max((wake.due_ms for wake in self.log.wakes if wake.arrival == arrival), default=0)
                    assert self.now >= due, "a retry before its time"
                    self.running = effect

    # -- what may happen ------------------------------------------------------------------------------------------

    def arrive(self) -> None:
        self.log.arrived += 1
        self.feed(Arrived(self.log.arrived))

    def end(self) -> None:
        if self.running is not None:
            self.log.results.append(self.running.arrival)
            self.feed(Ended())

    def retry(self, after: int) -> None:
        if self.running is None:
            return
        asked, before = self.running, len(self.log.wakes)
        self.feed(RetryAsked(self.now, after, ATTEMPTS_MAX))
        if len(self.log.wakes) > before:
            self.log.retries[asked.arrival] = asked.attempt

    def wake(self, index: int) -> None:
        """A wake-up comes back when it is due or later; it stays in the list, and so comes again."""
        due = [wake for wake in self.log.wakes if wake.due_ms <= self.now]
        if due:
            wake = due[index % len(due)]
            self.feed(Woken(wake.arrival, wake.attempt))

    def stray_wake(self, arrival: int, attempt: int) -> None:
        """A wake-up of another time: never that of a retry which is still to fall due."""
        if not any((w.arrival, w.attempt) == (arrival, attempt) and w.due_ms > self.now for w in self.log.wakes):
            self.feed(Woken(arrival, attempt))

    def commit(self) -> None:
        self.committed = copy.deepcopy(self.log)

    def reload(self) -> None:
        """The unit is lost, or the host: whoever goes on reads the rows."""
        self.log = copy.deepcopy(self.committed)
        self.running = None
        self.queue = self.stored()
        self.feed(Reopened())

    def stored(self) -> Queue:
        found = [table.decode(key, row) for key, row in sorted(self.log.rows.items())]
        assert all((tenant, session) == ("acme", "cart") for tenant, session, _ in found)
        return tuple(row.waiting for _, _, row in found)

    # -- what must always hold ------------------------------------------------------------------------------------

    def check(self) -> None:
        waiting = [entry.arrival for entry in self.queue]
        assert self.log.results + waiting == list(range(1, self.log.arrived + 1)), "lost, doubled or overtaken"
        assert self.stored() == self.queue, "rows and queue differ"
        assert all(entry.phase is Phase.QUEUED for entry in self.queue[1:])
        head = self.queue[0] if self.queue else None
        running = head is not None and head.phase is Phase.RUNNING
        assert running == (self.running is not None), "a head that nobody runs"
        if head is not None and not running:
            wanted = (head.arrival, head.attempt, head.due_ms)
            assert wanted in [(w.arrival, w.attempt, w.due_ms) for w in self.log.wakes], "nobody will wake the head"

    def settle(self) -> None:
        """Every wake-up comes, in some order; every run ends."""
        self.now = 10**9
        for _ in range(2 * len(self.queue) + 2):
            for index in range(len(self.log.wakes)):
                self.wake(index)
            self.end()
            self.check()
        assert not self.queue, "a task is stuck"


Move = Callable[[World, Choose], Any]

MOVES: list[Move] = [
    lambda world, choose: world.arrive(),
    lambda world, choose: world.arrive(),
    lambda world, choose: world.end(),
    lambda world, choose: world.retry(choose([0, 1, 5])),
    lambda world, choose: world.retry(choose([0, 1, 5])),
    lambda world, choose: world.wake(choose([0, -1, 1, 2])),
    lambda world, choose: world.wake(choose([0, -1, 1, 2])),
    lambda world, choose: world.stray_wake(max(0, world.log.arrived - choose([0, 1, 2])), choose([0, 1, 2, 3])),
    lambda world, choose: setattr(world, "now", world.now + choose([1, 5])),
    lambda world, choose: world.commit(),
    lambda world, choose: world.reload(),
]


class SessionsMachine(RuleBasedStateMachine):
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


def test_sessions() -> None:
    run_state_machine_as_test(SessionsMachine, settings=settings(max_examples=100, stateful_step_count=40))


def walk(choose: Choose) -> None:
    """One history, by chance; the same checks as the machine's."""
    world = World()
    for _ in range(30):
        choose(MOVES)(world, choose)
        world.check()
    world.settle()
