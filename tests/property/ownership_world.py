"""A world for the ownership core: a broker, a group that hands out generations, and workers on one place.

The input is the numbers 0, 1, 2 …; a unit of work takes the next few, and the changelog is the list of numbers that
were committed. So a record that is lost, doubled or performed on stale rows shows in the changelog itself.
"""

from collections.abc import Iterable
from dataclasses import dataclass, field

from app.protocol import ownership
from app.protocol.ownership import (
    Absent,
    Assigned,
    ClaimEnded,
    Claiming,
    Effect,
    Event,
    GivenUp,
    Holding,
    JoinBegun,
    Paused,
    RestoreEnded,
    Restoring,
    Role,
    Running,
    UnitAborted,
)


@dataclass
class Unit:
    """Records whose offsets the broker has taken under a valid generation; the transaction is still open."""

    records: list[int]
    committed: bool | None = None


@dataclass
class Restore:
    """``target`` and ``offset`` are known once the former owners are fenced."""

    generation: int
    target: int | None = None
    offset: int = 0


@dataclass
class Worker:
    """One process.

    ``joining``: it goes no further and waits for the group's word. ``resident``: it keeps a place that it serves in
    memory, and ``offset`` is how far that has come. ``hung``: something under way in this generation will never be
    answered.
    """

    name: str
    holding: Holding = field(default_factory=Absent)
    generation: int = -1
    previous: int | None = None
    joining: bool = True
    dead: bool = False
    frozen: bool = False
    stalled: bool = False
    resident: bool = False
    hung: bool = False
    allowed: int | None = None
    rows: list[int] = field(default_factory=list)
    following: bool = False
    offset: int | None = None
    unit: Unit | None = None
    restore: Restore | None = None
    claims: list[int] = field(default_factory=list)
    answers: list[Event] = field(default_factory=list)
    inbox: list[tuple[Assigned, frozenset[str]]] = field(default_factory=list)
    present: frozenset[str] = frozenset()

    @property
    def awake(self) -> bool:
        return not (self.dead or self.frozen or self.stalled)


class World:
    """The broker, and what everybody may do to it. Every method is one atomic thing that may happen."""

    def __init__(self, names: Iterable[str]) -> None:
        self.generation = 0
        self.members: frozenset[str] = frozenset()
        self.roles: dict[str, Role] = {}
        self.log: list[int] = []
        self.offset = 0
        self.tag: str | None = None
        self.claimed: set[tuple[str, int]] = set()
        self.open: dict[str, Unit] = {}
        self.workers = {name: Worker(name) for name in names}

    # -- the core and its effects ---------------------------------------------------------------------------------

    def feed(self, worker: Worker, event: Event) -> None:
        decided = ownership.step(worker.holding, event)
        worker.holding = decided.holding
        for effect in decided.effects:
            self._perform(worker, effect)

    def _perform(self, worker: Worker, effect: Effect) -> None:
        match effect:
            case Effect.CLOSE:
                worker.resident, worker.offset = False, None
            case Effect.TAIL:
                worker.following, worker.restore = True, None
            case Effect.DROP:
                worker.following, worker.restore, worker.rows = False, None, []
            case Effect.RESTORE:
                worker.following, worker.restore = True, Restore(worker.generation)
            case Effect.CLAIM:
                worker.following = False
                worker.claims.append(worker.generation)
            case Effect.OPEN:
                assert worker.offset is not None, "opened without stable offsets"
                assert not worker.resident, "opened twice"
                worker.resident = True

    def _lost(self, worker: Worker) -> None:
        """A commit was refused or fenced."""
        self._give_up(worker)
        worker.joining = True

    # -- what takes time ------------------------------------------------------------------------------------------

    def read_for_restore(self, worker: Worker) -> None:
        """Fence who committed last and is gone, read stable offsets, take the high watermark."""
        restore = worker.restore
        if not worker.awake or restore is None or restore.target is not None:
            return
        if self.tag in self.open and self.tag not in worker.present:
            self.open.pop(self.tag).committed = False
        if self.open:
            return  # Stable offsets are waited for while a transaction is open.
        restore.target, restore.offset = len(self.log), self.offset

    def end_restore(self, worker: Worker) -> None:
        restore = worker.restore
        if not worker.awake or restore is None or restore.target is None:
            return
        worker.rows = self.log[: max(restore.target, len(worker.rows))]
        worker.offset, worker.restore, worker.following = restore.offset, None, False
        worker.answers.append(RestoreEnded(restore.generation))

    def follow(self, worker: Worker, count: int) -> None:
        """A standby, or a restore under way, reads some records of the changelog."""
        if worker.awake and worker.following:
            worker.rows = self.log[: len(worker.rows) + count]

    def claim(self, worker: Worker) -> None:
        """The commit thread's next claim reaches the broker."""
        if worker.frozen or worker.dead or not worker.claims or worker.unit is not None:
            return
        generation = worker.claims[0]
        accepted = worker.allowed == generation and self.valid(worker, generation)
        if accepted and self.open:
            return
        worker.claims.pop(0)
        if accepted:
            if worker.offset is None:
                worker.offset = self.offset
            self.offset, self.tag = worker.offset, worker.name
            self.claimed.add((worker.name, generation))
        worker.answers.append(ClaimEnded(generation, accepted))

    def valid(self, worker: Worker, generation: int) -> bool:
        return generation == self.generation and worker.name in self.members

    def never_answer(self, worker: Worker) -> None:
        if worker.answers:
            worker.answers.pop()
            worker.hung = True

    def answer(self, worker: Worker, index: int) -> None:
        """Some answer arrives, in any order."""
        if worker.awake and worker.answers:
            event = worker.answers.pop(index % len(worker.answers))
            refused = isinstance(event, ClaimEnded) and not event.accepted
            wanted = worker.holding == Claiming(worker.generation)
            self.feed(worker, event)
            if refused and wanted:
                self._lost(worker)

    # -- units ----------------------------------------------------------------------------------------------------

    def begin_unit(self, worker: Worker, count: int) -> None:
        if not worker.awake or not isinstance(worker.holding, Running) or worker.claims or worker.unit is not None:
            return
        generation = worker.holding.generation
        if worker.allowed != generation or not self.valid(worker, generation):
            self._lost(worker)
            return
        assert worker.offset is not None
        worker.unit = Unit(list(range(worker.offset, worker.offset + count)))
        self.open[worker.name] = worker.unit

    def end_transaction(self, name: str, *, commits: bool) -> None:
        """The broker ends a transaction; it may be that of a worker which is frozen or dead."""
        unit = self.open.pop(name, None)
        if unit is not None:
            unit.committed = commits
            if commits:
                self.log += unit.records
                self.offset, self.tag = unit.records[-1] + 1, name

    def learn(self, worker: Worker, *, fenced: bool = False) -> None:
        """The worker hears what became of its unit, or finds itself fenced."""
        unit = worker.unit
        if not worker.awake or unit is None or unit.committed is None:
            return
        worker.unit = None
        if unit.committed:
            self._apply(worker, unit)
        elif fenced or not isinstance(worker.holding, Running):
            self._lost(worker)
        else:
            self.feed(worker, UnitAborted())

    def _apply(self, worker: Worker, unit: Unit) -> None:
        assert worker.offset is not None
        worker.rows = worker.rows + unit.records
        worker.offset += len(unit.records)

    # -- the group ------------------------------------------------------------------------------------------------

    def prepare_join(self, worker: Worker) -> None:
        """End the unit and go no further; a stalled engine's commit thread is merely blocked."""
        self.end_transaction(worker.name, commits=True)
        worker.allowed = None
        if not worker.stalled:
            self._pause(worker)
            worker.joining = True

    def _pause(self, worker: Worker) -> None:
        if worker.unit is not None and worker.unit.committed:
            self._apply(worker, worker.unit)
            worker.unit = None
        self.feed(worker, GivenUp() if worker.unit is not None else JoinBegun())
        worker.unit = None

    def _give_up(self, worker: Worker) -> None:
        """The commit thread knows what became of the unit, and the rows show it; memory does not."""
        unit, worker.unit = worker.unit, None
        if unit is not None and unit.committed:
            worker.rows = worker.rows + unit.records
        elif unit is not None and worker.offset is not None:
            worker.offset += len(unit.records)
        self.feed(worker, GivenUp())

    def rebalance(self, joined: dict[str, Role], unheard: frozenset[str]) -> None:
        """A new generation of those who ``joined``; the word does not reach the ``unheard``, who join again later."""
        for name in joined:
            worker = self.workers[name]
            if name not in self.members:
                worker.previous = None
            self.prepare_join(worker)
        self.generation += 1
        self.members = frozenset(joined)
        self.roles = dict(joined)
        for name, role in joined.items():
            if name not in unheard:
                worker = self.workers[name]
                worker.inbox.append((Assigned(self.generation, role, worker.previous), self.members))
                worker.previous = self.generation

    def rejoin_unchanged(self, worker: Worker) -> None:
        """A member that joins again with nothing new to tell is given the same generation once more."""
        if worker.awake and worker.name in self.members and worker.previous == self.generation and not worker.inbox:
            self.prepare_join(worker)
            word = Assigned(self.generation, self.roles[worker.name], worker.previous)
            worker.inbox.append((word, self.members))

    def hear(self, worker: Worker) -> None:
        """The worker takes the group's word."""
        if not worker.awake or not worker.inbox:
            return
        word, present = worker.inbox.pop(0)
        if worker.unit is not None:
            # It was stalled, and its unit is still on its way for all that it knows.
            self._give_up(worker)
        else:
            self.feed(worker, JoinBegun())
        worker.joining = worker.hung = False
        worker.generation = worker.allowed = word.generation
        worker.present = present
        self.feed(worker, word)
        if worker.holding == Running(word.generation):
            before = word.generation - 1
            assert word.previous == before, "went on over a gap"
            assert (worker.name, before) in self.claimed, "went on with what it had not claimed"
            self.claimed.add((worker.name, word.generation))

    def hear_all(self, worker: Worker) -> None:
        while worker.awake and worker.inbox:
            self.hear(worker)

    def kill(self, name: str) -> None:
        """The process dies; a transaction that it had open stays open."""
        self.workers[name] = Worker(name, dead=True)

    def start(self, worker: Worker) -> None:
        """A new process of the name fences its predecessor before it joins."""
        worker.dead = False
        self.end_transaction(worker.name, commits=False)

    # -- what must always hold ------------------------------------------------------------------------------------

    def check(self) -> None:
        assert self.log == list(range(self.offset)), "a record was lost, doubled or reordered"
        serving = [worker for worker in self.workers.values() if self.serves(worker)]
        assert len(serving) <= 1, "two owners"
        for worker in self.workers.values():
            assert worker.resident == isinstance(worker.holding, Running | Paused), "served without owning it"
            newest = getattr(worker.holding, "generation", None) == self.generation
            if isinstance(worker.holding, Running | Claiming) and newest:
                assert self._seen(worker) == self.log, "a committed row is missing"
            if self.serves(worker):
                ahead = len(worker.unit.records) if worker.unit is not None and worker.unit.committed else 0
                assert (worker.offset or 0) + ahead == self.offset, "memory is not where the log is"
                assert (worker.name, self.generation) in self.claimed, "served without a claim"
            if worker.joining:
                assert not isinstance(worker.holding, Restoring | Claiming | Running), "kept through a join"

    def serves(self, worker: Worker) -> bool:
        return worker.holding == Running(self.generation) and worker.name in self.members

    @staticmethod
    def _seen(worker: Worker) -> list[int]:
        unlearned = worker.unit.records if worker.unit is not None and worker.unit.committed else []
        return worker.rows + unlearned

    # -- peace ----------------------------------------------------------------------------------------------------

    def settle(self) -> None:
        """Nothing disturbs any more: who lives joins, everything under way ends, the dead stay dead."""
        if all(worker.dead for worker in self.workers.values()):
            self.start(next(iter(self.workers.values())))
        alive = [worker for worker in self.workers.values() if not worker.dead]
        for worker in alive:
            worker.frozen = worker.stalled = False
            self.quiet(worker)
        for worker in alive:
            self.quiet(worker)
            heard = worker.generation == self.generation and not (worker.joining or worker.hung)
            if heard and worker.name in self.members and self.roles[worker.name] is Role.HOST:
                assert self.serves(worker), f"the host is stuck: {worker.holding}"
        host = alive[0]
        self.rebalance({worker.name: Role.HOST if worker is host else Role.STANDBY for worker in alive}, frozenset())
        for worker in alive:
            self.quiet(worker)
        assert self.serves(host), f"the host does not come to serve: {host.holding}"
        self.work(host, 2)
        self.check()

    def quiet(self, worker: Worker) -> None:
        """Everything that the worker waits for happens."""
        if worker.awake:
            self.end_transaction(worker.name, commits=True)
            self.learn(worker)
        self.hear_all(worker)
        self.read_for_restore(worker)
        self.end_restore(worker)
        for _ in range(len(worker.answers) + len(worker.claims) + 2):
            self.answer(worker, 0)
            self.claim(worker)

    def work(self, worker: Worker, count: int) -> None:
        """A whole unit."""
        self.begin_unit(worker, count)
        self.end_transaction(worker.name, commits=True)
        self.learn(worker)
