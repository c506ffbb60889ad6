"""Ownership against a group, a broker and workers that freeze, stall, die and miss rebalances.

I1, I2: nothing is lost or doubled; I4: one owner; I6: every host comes to serve.
"""

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule, run_state_machine_as_test

from app.protocol.ownership import Role
from tests.property.ownership_world import Worker, World

NAMES = ("w1", "w2", "w3")
names = st.sampled_from(NAMES)
counts = st.integers(1, 3)


class OwnershipMachine(RuleBasedStateMachine):
    def __init__(self) -> None:
        super().__init__()
        self.world = World(NAMES)

    def worker(self, name: str) -> Worker:
        return self.world.workers[name]

    @rule(host=names, others=st.dictionaries(names, st.sampled_from([Role.STANDBY, Role.NONE])))
    def rebalance(self, host: str, others: dict[str, Role]) -> None:
        self.join({**others, host: Role.HOST}, frozenset())

    @rule(host=names, others=st.dictionaries(names, st.just(Role.STANDBY)), unheard=st.frozensets(names))
    def rebalance_that_some_do_not_hear_of(
        self, host: str, others: dict[str, Role], unheard: frozenset[str]
    ) -> None:
        self.join({**others, host: Role.HOST}, unheard)

    def join(self, roles: dict[str, Role], unheard: frozenset[str]) -> None:
        present = {name: role for name, role in roles.items() if not self.worker(name).frozen}
        for name in present:
            self.world.start(self.worker(name))
        self.world.rebalance(present, unheard)

    @rule(name=names)
    def rejoin_unchanged(self, name: str) -> None:
        self.world.rejoin_unchanged(self.worker(name))

    @rule(name=names)
    def hear(self, name: str) -> None:
        self.world.hear(self.worker(name))

    @rule(name=names, far=st.booleans())
    def restore(self, name: str, far: bool) -> None:
        self.world.read_for_restore(self.worker(name))
        if far:
            self.world.end_restore(self.worker(name))

    @rule(name=names)
    def end_restore(self, name: str) -> None:
        self.world.end_restore(self.worker(name))

    @rule(name=names)
    def claim(self, name: str) -> None:
        self.world.claim(self.worker(name))

    @rule(name=names, index=st.integers(0, 3))
    def answer(self, name: str, index: int) -> None:
        self.world.answer(self.worker(name), index)

    @rule(name=names)
    def everything_ends(self, name: str) -> None:
        worker, world = self.worker(name), self.world
        world.hear(worker)
        world.read_for_restore(worker)
        world.end_restore(worker)
        for _ in range(2):
            world.answer(worker, 0)
            world.claim(worker)
        world.answer(worker, 0)

    @rule(name=names)
    def answer_never_comes(self, name: str) -> None:
        if self.worker(name).answers:
            self.worker(name).answers.pop()

    @rule(name=names, count=counts)
    def follow(self, name: str, count: int) -> None:
        self.world.follow(self.worker(name), count)

    @rule(name=names, count=counts)
    def begin_unit(self, name: str, count: int) -> None:
        self.world.begin_unit(self.worker(name), count)

    @rule(name=names, count=counts)
    def whole_unit(self, name: str, count: int) -> None:
        self.world.begin_unit(self.worker(name), count)
        self.world.end_transaction(name, commits=True)
        self.world.learn(self.worker(name))

    @rule(name=names, commits=st.booleans())
    def end_transaction(self, name: str, commits: bool) -> None:
        self.world.end_transaction(name, commits=commits)

    @rule(name=names, fenced=st.booleans())
    def learn(self, name: str, fenced: bool) -> None:
        self.world.learn(self.worker(name), fenced=fenced)

    @rule(name=names, frozen=st.booleans())
    def freeze_or_return(self, name: str, frozen: bool) -> None:
        self.worker(name).frozen = frozen

    @rule(name=names, stalled=st.booleans())
    def stall_or_go_on(self, name: str, stalled: bool) -> None:
        self.worker(name).stalled = stalled

    @rule(name=names)
    def kill(self, name: str) -> None:
        self.world.kill(name)

    @invariant()
    def holds(self) -> None:
        self.world.check()

    def teardown(self) -> None:
        self.world.settle()


def test_ownership() -> None:
    run_state_machine_as_test(  # type: ignore[no-untyped-call]
        OwnershipMachine, settings=settings(max_examples=150, stateful_step_count=60, deadline=None)
    )
