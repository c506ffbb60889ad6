"""What a worker tells of tenants that move."""

from dataclasses import replace
from types import SimpleNamespace
from typing import Any, cast

import pytest

from agents.router import Router
from app.engine.engine import Engine
from app.protocol.moves import Copying, Cutting, Move, Outcome, Past, Placement, Releasing, State
from app.protocol.parking import Lot
from app.worker.tenants import migrations, parked, parked_s

MOVE = Move("c", 0, 1, (0,), 10_000, None, 2_000, offline=False, ordered_ms=1_000)
PLACE = Placement(1, 1, 1, (Past(1, 0, 1, 5_000, "c"),))
LOT = Lot(parked=3, released=1)
CUT = Cutting(PLACE, MOVE, LOT, cut_ms=4_000, progress_ms=4_000)
FREED = Releasing(PLACE, MOVE, LOT, Outcome(None, 0, 0, 2_000, ()))


def engine(**states: State) -> Engine:
    router = cast("Any", object.__new__(Router))
    copied = {b"a": {0: (30, 900), 2: (12, 100)}}
    router.gates = SimpleNamespace(moving={name.encode(): state for name, state in states.items()}, copied=copied)
    places = SimpleNamespace(running=lambda: [SimpleNamespace(resident=router)])
    return cast("Engine", SimpleNamespace(places=places))


@pytest.mark.parametrize(
    ("states", "tasks", "seconds"),
    [
        ({}, 0, 0.0),
        ({"a": Copying(PLACE, MOVE, (), 1_000)}, 0, 0.0),
        ({"a": CUT}, 2, 6.0),
        ({"a": replace(CUT, lot=Lot())}, 0, 0.0),
        ({"a": FREED}, 2, 7.0),
        ({"a": CUT, "b": FREED}, 4, 7.0),
        ({"a": replace(FREED, lot=Lot(parked=3, released=3))}, 0, 0.0),
    ],
)
def test_parked_tasks_and_since_when(states: dict[str, State], tasks: int, seconds: float) -> None:
    assert parked(engine(**states)) == tasks
    assert parked_s(engine(**states), 10.0) == seconds


def test_how_much_has_left_the_sources() -> None:
    found = migrations(engine(b=CUT, a=Copying(PLACE, MOVE, (), 1_000)))
    assert [(one["tenant"], one["state"], one["rows"], one["bytes"]) for one in found] == [
        ("a", "copying", 42, 1_000),
        ("b", "cutting", 0, 0),
    ]


def test_without_an_engine_nothing_is_parked() -> None:
    assert parked_s(None, 10.0) == 0.0
