"""A thousand exchanges at once, all parties killed -9 at random and in pairs until everything is answered."""

import random
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.cluster import Workers
from tests.support.storm import Programs, audit, begin, finish, storm

pytestmark = [pytest.mark.soak, pytest.mark.broker, pytest.mark.settings(lease=2, max_crashes=100)]

EXCHANGES, REQUESTS = 1_000, 50
KILLS_MAX = 200
END_S = 600.0


@pytest.fixture
def programs(workers: Workers, tmp_path: Path) -> Iterator[Programs]:
    made = Programs(workers, tmp_path / "programs")
    yield made
    made.close()


@pytest.mark.parametrize("seed", [1, 2, 3])
def test_a_thousand_exchanges_with_all_parties_killed_at_random(
    workers: Workers, programs: Programs, seed: int
) -> None:
    names = [f"storm-{number}" for number in range(EXCHANGES)]
    begin(workers, programs, names, REQUESTS, "0.001")
    killed = storm(workers, programs, random.Random(seed), kills=KILLS_MAX, between=2_000)
    finish(programs, names, END_S)
    audit(workers, names, REQUESTS)
    print(f"{EXCHANGES} exchanges of {REQUESTS} requests, seed {seed}; killed: {dict(killed)}")
    assert killed.total() >= 5, "there was work to be disturbed"
