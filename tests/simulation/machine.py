"""A world whose chances are drawn by Hypothesis, which shrinks what it finds."""

from collections.abc import Callable
from typing import Any, Protocol

from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, rule, run_state_machine_as_test

from tests.property.mutation import Choose


class World(Protocol):
    """Something may happen in it, and in the end it is settled, and so checked."""

    def happen(self) -> None: ...

    def settle(self) -> None: ...


def by_hypothesis(make: Callable[[Choose], World], *, histories: int = 15) -> None:
    """Run histories of the worlds that ``make`` makes; each is settled in the end."""

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
        settings=settings(max_examples=histories, stateful_step_count=40, suppress_health_check=list(HealthCheck)),
    )
