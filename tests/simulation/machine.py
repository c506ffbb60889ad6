"""A world whose chances are drawn by Hypothesis, which shrinks what it finds."""

from collections.abc import Callable
from typing import Any

from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, rule, run_state_machine_as_test

from tests.property.mutation import Choose
from tests.simulation.world import World


def by_hypothesis(make: Callable[[Choose], World]) -> None:
    """Run histories of the worlds that ``make`` makes; each is settled, and so checked, in the end."""

    class Histories(RuleBasedStateMachine):
        @initialize(data=st.data())
        def begin(self, data: st.DataObject) -> None:
            self.data = data
            self.world = make(self.draw)

        def draw(self, options: Any) -> Any:
            return self.data.draw(st.sampled_from(list(options)))

        @rule()
        def something_happens(self) -> None:
            self.world.happen()

        def teardown(self) -> None:
            if hasattr(self, "world"):
                self.world.settle()

    run_state_machine_as_test(
        Histories,
        settings=settings(max_examples=15, stateful_step_count=40, suppress_health_check=list(HealthCheck)),
    )
