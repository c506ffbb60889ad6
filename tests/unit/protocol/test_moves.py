"""The states of a tenant as rows keep them, and what is announced."""

from dataclasses import replace

import pytest

from app.protocol.moves import (
    Moment,
    Move,
    Order,
    Outcome,
    Past,
    Placement,
    Releasing,
    announce_end,
    plan,
    reject,
    rejection,
)
from app.protocol.parking import Lot

NOW = Moment("acme", router=1, servers=3, up=frozenset({0, 1, 2}), closed=True, now_ms=10)
MOVE = Move("c1", 0, 2, (0,), 60_000, None, 2_000, offline=False, ordered_ms=0)
ORDER = Order("c1", 2, 60_000, 2_000)


@pytest.mark.parametrize(
    ("changed", "sources", "exposed"),
    [
        ({0}, (0,), True),
        ({2}, (0,), True),
        ({1}, (0,), False),
        (set(), (0,), False),
        # Gathered from backups: any change moves sessions between the sources.
        ({9}, (1, 2), True),
        ({9}, (0, 1, 2), True),
    ],
)
def test_which_views_touch_a_move(changed: set[int], sources: tuple[int, ...], exposed: bool) -> None:
    assert replace(MOVE, sources=sources).exposed(frozenset(changed)) is exposed


def test_the_last_move_that_succeeded_is_the_one_to_undo() -> None:
    history = (Past(1, 5, 6, 0, "a"), Past(2, 6, 7, 0, "b", "timeout"))
    assert Placement(6, 1, 2, history).before == 5
    assert Placement(6).before is None


@pytest.mark.parametrize(
    ("to", "home", "up", "from_backups", "reason"),
    [
        (2, 0, {0, 1, 2}, False, None),
        (3, 0, {0, 1, 2}, False, "unknown-server"),
        (0, 0, {0, 1, 2}, False, "same-server"),
        (2, 0, {0, 1}, False, "server-down"),
        (2, 0, {1, 2}, False, "server-down"),
        (2, 0, {1, 2}, True, None),
    ],
)
def test_rejection(to: int, home: int, up: set[int], from_backups: bool, reason: str | None) -> None:
    order = replace(ORDER, from_backups=from_backups)
    assert rejection(Placement(home), order, to, replace(NOW, up=frozenset(up))) == reason


def test_the_answers_to_commands_are_final_and_carry_their_id() -> None:
    end = Releasing(Placement(2, 7, 7), MOVE, Lot(4, 4, 6), Outcome(None, 5, 900, 300, ((0, 5, "ab"),)))
    failed = replace(end, outcome=Outcome("timeout", 0, 0, 300, ()))
    answers = [
        reject("c1", "same-server", NOW),
        plan("c1", 0, 2, NOW),
        announce_end(end, NOW),
        announce_end(failed, NOW),
    ]
    assert [(answer.event, answer.id, answer.final) for answer in answers] == [
        ("command-rejected", "c1", True),
        ("migration-plan", "c1", True),
        ("migration-succeeded", "c1", True),
        ("migration-failed", "c1", True),
    ]
    contract = {"tenant", "from", "to", "epoch", "parked", "redelayed", "rows", "bytes", "pause_ms", "reason"}
    assert contract <= answers[2].fields.keys()
    assert contract <= answers[3].fields.keys()
    assert (answers[2].fields["parked"], answers[2].fields["redelayed"]) == (4, 6)
