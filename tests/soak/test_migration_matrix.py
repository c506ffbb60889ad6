"""Who dies when, while a tenant moves: the hosts of source, target and router, and any two of them, at every point."""

import pytest

from tests.support.cluster import Workers
from tests.support.moves import Mover
from tests.support.roles import DEATHS, POINTS, Stage

pytestmark = [pytest.mark.broker, pytest.mark.soak, pytest.mark.timeout(900)]


@pytest.mark.settings(rehome_after=600)
@pytest.mark.parametrize("point", POINTS)
def test_everybody_dies_at_a_point(workers: Workers, point: str) -> None:
    """The migration succeeds, with one final event, a clean account, and no row anywhere but at the new home."""
    with Mover(workers.config, workers.namespace) as mover, Stage(workers, mover) as stage:
        for number, dead in enumerate(DEATHS):
            print(stage.play(point, dead, offline=number % 2 == 1), flush=True)
        stage.account()
