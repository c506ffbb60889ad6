"""Shows that a state machine bites: a core with one rule changed must make it fail."""

from collections.abc import Callable

from hypothesis import HealthCheck, Phase, Verbosity, settings
from hypothesis.stateful import RuleBasedStateMachine, run_state_machine_as_test

QUICK = settings(
    max_examples=3000,
    stateful_step_count=40,
    derandomize=True,
    database=None,
    deadline=None,
    phases=[Phase.generate],
    suppress_health_check=list(HealthCheck),
    verbosity=Verbosity.quiet,
)


def survives(machine: type[RuleBasedStateMachine], quick: settings = QUICK) -> bool:
    """Run the machine, always with the same choices; tell whether it finds nothing."""
    run: Callable[..., None] = run_state_machine_as_test
    try:
        run(machine, settings=quick)
    except Exception:
        return False
    return True
