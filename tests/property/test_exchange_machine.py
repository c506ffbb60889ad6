"""Client, manager, backup manager and server sessions under crashes, duplicates and reordering.

Every request is answered once as stored, in order; both sides restart from what they were told is stored.
"""

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule, run_state_machine_as_test

from tests.property.exchange_world import MOVES, World
from tests.property.mutation import Choose


class ExchangeMachine(RuleBasedStateMachine):
    def __init__(self) -> None:
        super().__init__()
        self.world = World()
        begin(self.world)

    @rule(data=st.data(), number=st.integers(0, len(MOVES) - 1))
    def something_happens(self, data: st.DataObject, number: int) -> None:
        MOVES[number](self.world, lambda options: data.draw(st.sampled_from(options)))

    @invariant()
    def holds(self) -> None:
        self.world.check_unit()

    def teardown(self) -> None:
        self.world.settle()


def begin(world: World) -> None:
    """Everybody is there."""
    world.open_server("a")
    world.open_client()
    world.take(0)
    world.commit()


def test_exchange() -> None:
    run_state_machine_as_test(ExchangeMachine, settings=settings(max_examples=100, stateful_step_count=60))


def walk(choose: Choose) -> None:
    """One history, by chance; the same checks as the machine's."""
    world = World()
    begin(world)
    for _ in range(120):
        choose(MOVES)(world, choose)
        world.check_unit()
    world.settle()
