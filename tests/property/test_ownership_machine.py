"""Ownership against a group, a broker and workers that freeze, stall, die and miss rebalances.

I1, I2: nothing is lost or doubled; I4: one owner; I6: every host comes to serve.
"""

from collections.abc import Callable
from typing import Any

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule, run_state_machine_as_test

from app.protocol.ownership import Role, Running
from tests.property.ownership_world import Worker, World

NAMES = ("w1", "w2", "w3")
names = st.sampled_from(NAMES)
counts = st.integers(1, 2)

Able = Callable[[Worker], Any]


def hears(worker: Worker) -> bool:
    return worker.awake and bool(worker.inbox)


def reads(worker: Worker) -> bool:
    return worker.awake and worker.restore is not None and worker.restore.target is None


def restores(worker: Worker) -> bool:
    return worker.awake and worker.restore is not None and worker.restore.target is not None


def claims(worker: Worker) -> bool:
    return not worker.frozen and bool(worker.claims)


def is_answered(worker: Worker) -> bool:
    return worker.awake and bool(worker.answers)


def works(worker: Worker) -> bool:
    return worker.awake and isinstance(worker.holding, Running) and worker.unit is None


def learns(worker: Worker) -> bool:
    return worker.awake and worker.unit is not None and worker.unit.committed is not None


def able(what: Able) -> Callable[[Any], Any]:
    """The rule is for a worker of which ``what`` holds; it is drawn as ``data``."""
    return precondition(lambda self: any(map(what, self.world.workers.values())))


class OwnershipMachine(RuleBasedStateMachine):
    def __init__(self) -> None:
        super().__init__()
        self.world = World(NAMES)

    def one(self, data: st.DataObject, what: Able) -> Worker:
        return data.draw(st.sampled_from([worker for worker in self.world.workers.values() if what(worker)]))

    # -- the group ------------------------------------------------------------------------------------------------

    @rule(host=names, others=st.dictionaries(names, st.sampled_from([Role.STANDBY, Role.NONE])))
    def rebalance(self, host: str, others: dict[str, Role]) -> None:
        self.join({**others, host: Role.HOST}, frozenset())

    @rule(host=names)
    def everybody_joins(self, host: str) -> None:
        self.join({name: Role.HOST if name == host else Role.STANDBY for name in NAMES}, frozenset())

    @rule(host=names, unheard=st.frozensets(names, min_size=1))
    def rebalance_that_some_do_not_hear_of(self, host: str, unheard: frozenset[str]) -> None:
        self.join({name: Role.HOST if name == host else Role.STANDBY for name in NAMES}, unheard)

    def join(self, roles: dict[str, Role], unheard: frozenset[str]) -> None:
        workers = self.world.workers
        present = {n: role for n, role in roles.items() if not (workers[n].frozen or workers[n].dead)}
        self.world.rebalance(present, unheard)

    @rule(name=names)
    def rejoin_unchanged(self, name: str) -> None:
        self.world.rejoin_unchanged(self.world.workers[name])

    @able(hears)
    @rule(data=st.data())
    def hear(self, data: st.DataObject) -> None:
        self.world.hear(self.one(data, hears))

    # -- what takes time ------------------------------------------------------------------------------------------

    @able(reads)
    @rule(data=st.data())
    def read_for_restore(self, data: st.DataObject) -> None:
        self.world.read_for_restore(self.one(data, reads))

    @able(restores)
    @rule(data=st.data())
    def end_restore(self, data: st.DataObject) -> None:
        self.world.end_restore(self.one(data, restores))

    @able(claims)
    @rule(data=st.data())
    def claim(self, data: st.DataObject) -> None:
        self.world.claim(self.one(data, claims))

    @able(is_answered)
    @rule(data=st.data(), index=st.integers(0, 3))
    def answer(self, data: st.DataObject, index: int) -> None:
        self.world.answer(self.one(data, is_answered), index)

    @able(is_answered)
    @rule(data=st.data())
    def answer_never_comes(self, data: st.DataObject) -> None:
        self.world.never_answer(self.one(data, is_answered))

    @rule(count=counts, some=st.sets(names, min_size=1))
    def quiet_time(self, count: int, some: set[str]) -> None:
        """Nothing disturbs some workers for a while; whoever of them serves works."""
        quiet = [self.world.workers[name] for name in sorted(some)]
        for worker in quiet:
            self.world.quiet(worker)
        for worker in quiet:
            if works(worker):
                self.world.work(worker, count)

    @able(works)
    @rule(data=st.data(), fenced=st.booleans())
    def unit_fails(self, data: st.DataObject, fenced: bool) -> None:
        worker = self.one(data, works)
        self.world.begin_unit(worker, 1)
        self.world.end_transaction(worker.name, commits=False)
        self.world.learn(worker, fenced=fenced)

    @able(lambda worker: worker.following)
    @rule(data=st.data(), count=counts)
    def follow(self, data: st.DataObject, count: int) -> None:
        self.world.follow(self.one(data, lambda worker: worker.following), count)

    # -- units ----------------------------------------------------------------------------------------------------

    @able(works)
    @rule(data=st.data(), count=counts)
    def begin_unit(self, data: st.DataObject, count: int) -> None:
        self.world.begin_unit(self.one(data, works), count)

    @precondition(lambda self: self.world.open)
    @rule(data=st.data(), commits=st.booleans())
    def end_transaction(self, data: st.DataObject, commits: bool) -> None:
        self.world.end_transaction(data.draw(st.sampled_from(sorted(self.world.open))), commits=commits)

    @able(learns)
    @rule(data=st.data(), fenced=st.booleans())
    def learn(self, data: st.DataObject, fenced: bool) -> None:
        self.world.learn(self.one(data, learns), fenced=fenced)

    # -- trouble --------------------------------------------------------------------------------------------------

    @rule(name=names, how=st.sampled_from(["freezes", "stalls", "dies"]))
    def trouble(self, name: str, how: str) -> None:
        worker = self.world.workers[name]
        if how == "freezes":
            worker.frozen = True
        elif how == "stalls":
            worker.stalled = True
        else:
            self.world.kill(name)

    @able(lambda worker: not worker.awake)
    @rule(data=st.data())
    def return_to_life(self, data: st.DataObject) -> None:
        worker = self.one(data, lambda worker: not worker.awake)
        worker.frozen = worker.stalled = False
        if worker.dead:
            self.world.start(worker)

    @invariant()
    def holds(self) -> None:
        self.world.check()

    def teardown(self) -> None:
        self.world.settle()


def test_ownership() -> None:
    run_state_machine_as_test(  # type: ignore[no-untyped-call]
        OwnershipMachine, settings=settings(max_examples=100, stateful_step_count=60, deadline=None)
    )
