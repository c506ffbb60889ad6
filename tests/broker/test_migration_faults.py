"""Workers that die in the middle of a migration: it ends by itself, with one final event and a clean account."""

import random

import pytest

from tests.support.cluster import Workers
from tests.support.moves import Mover
from tests.support.roles import DEATHS, POINTS, Stage

pytestmark = [pytest.mark.broker, pytest.mark.timeout(400)]

SEED = 5


@pytest.mark.settings(rehome_after=600)
def test_some_die_in_a_migration(workers: Workers) -> None:
    """Three cases of the matrix in `tests/soak/test_migration_matrix.py`, chosen by a seed."""
    chosen = random.Random(SEED)
    points = sorted(chosen.sample(sorted(POINTS), 3))
    deaths = [chosen.choice([dead for dead in DEATHS if len(dead) == size]) for size in (1, 2, 2)]
    print(f"seed {SEED}")
    with Mover(workers.config, workers.namespace) as mover, Stage(workers, mover) as stage:
        for point, dead in zip(points, deaths, strict=True):
            print(stage.play(point, dead))
        stage.account()
