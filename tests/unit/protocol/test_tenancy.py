"""What a server knows of a tenant: how the parts of source and target, and what was learned, go together."""

from dataclasses import replace
from typing import get_args

import pytest

from app.errors import LocalProtocolError
from app.protocol.chunks import Chunk, Digest
from app.protocol.control import Abort, Commit, Complete, Cut, Placed, Prepare, Received
from app.protocol.shipping import (
    Concluded,
    Copying,
    Failed,
    Freeze,
    Frozen,
    Shipment,
    Shipped,
    Sweep,
    Thaw,
    Tick,
    Unmark,
)
from app.protocol.staging import Acknowledge, GoLive, Part, Staged, Staging, Taken
from app.protocol.tenancy import UNMOVED, Event, Step, Tenancy, step, wanted

SHIPMENT = Shipment(7, 4, 1, (0,), 2)
STAGED = Staged(7, 1, (Part(0, 1, Digest(2, 10), 400, complete=True),))
TAKEN = Taken(Chunk("acme", 7, 0, 1, 1, ()), 2, 10, 400)

HOME = Tenancy(0, 4, 0, 6)
COPYING = replace(HOME, shipping=Copying(SHIPMENT))
FROZEN = replace(HOME, shipping=Frozen(SHIPMENT))
TARGET = replace(HOME, staging=STAGED)

CASES: list[tuple[Tenancy, Event, Step]] = [
    (HOME, Prepare("acme", 7, 4, 1, (0,), 2), Step(COPYING)),
    (HOME, Prepare("acme", 6, 4, 1, (0,), 2), Step(HOME)),
    (COPYING, Cut("acme", 7), Step(FROZEN, (Freeze(),))),
    (FROZEN, Commit("acme", 7, 1), Step(Tenancy(1, 7, 3, 6), (Sweep(4),))),
    (FROZEN, Abort("acme", 7), Step(replace(HOME, dead=7), (Unmark(7), Thaw(4)))),
    (HOME, Abort("acme", 7), Step(replace(HOME, dead=7))),
    (HOME, Abort("acme", 5), Step(HOME)),
    (HOME, Placed("acme", 8, 1), Step(Tenancy(1, 8, 3, 6))),
    (HOME, Placed("acme", 4, 1), Step(HOME)),
    (TARGET, Placed("acme", 8, 1), Step(Tenancy(1, 8, 3, 6), (Sweep(7),))),
    (
        HOME,
        TAKEN,
        Step(
            replace(HOME, staging=Staging(7, 1, (Part(0, 1, Digest(2, 10), 400),))),
            (Acknowledge(0, Received("acme", 7, 2, 400)),),
        ),
    ),
    (replace(HOME, dead=7), TAKEN, Step(replace(HOME, dead=7))),
    (TARGET, Commit("acme", 7, 2), Step(Tenancy(2, 7, 3, 6), (GoLive(7),))),
    (Tenancy(2, 7), Commit("acme", 7, 2), Step(Tenancy(2, 7))),
    (TARGET, Abort("acme", 7), Step(replace(HOME, dead=7), (Sweep(7),))),
    (TARGET, Complete("acme", 6, 0, 1, (0,), 0, 0, ""), Step(TARGET)),
    # A source that was chosen as a target before, and has not heard that nothing came of it.
    (
        replace(FROZEN, staging=replace(STAGED, epoch=6)),
        Commit("acme", 7, 1),
        Step(Tenancy(1, 7, 3, 6), (Sweep(4), Sweep(6))),
    ),
    (COPYING, Received("acme", 7, 2, 9), Step(replace(HOME, shipping=Copying(replace(SHIPMENT, taken=9))))),
    (HOME, Shipped(0, 0, 0), Step(HOME)),
    (HOME, Concluded(), Step(HOME)),
    (HOME, Failed("x"), Step(HOME)),
    (HOME, Tick(), Step(HOME)),
]


@pytest.mark.parametrize(("tenancy", "event", "expected"), CASES, ids=lambda value: type(value).__name__)
def test_step(tenancy: Tenancy, event: Event, expected: Step) -> None:
    assert step(tenancy, event, tenant="acme", server=2, view=3) == expected


def test_the_table_has_every_event() -> None:
    assert {type(event) for _, event, _ in CASES} == set(get_args(Event))


def test_a_server_that_is_source_and_target_keeps_what_it_has_staged() -> None:
    """A tenant whose home is down is gathered from all servers, the new home among them."""
    both = replace(FROZEN, staging=STAGED)
    decided = step(both, Commit("acme", 7, 2), tenant="acme", server=2, view=3)
    assert decided == Step(Tenancy(2, 7, 3, 6), (Sweep(4), GoLive(7)))
    aborted = step(both, Abort("acme", 7), tenant="acme", server=2, view=3)
    assert aborted == Step(replace(HOME, dead=7), (Unmark(7), Thaw(4), Sweep(7)))


def test_a_commit_without_rows_is_an_error_of_the_routers() -> None:
    with pytest.raises(LocalProtocolError):
        step(HOME, Commit("acme", 7, 2), tenant="acme", server=2)


def test_what_it_says_about_itself() -> None:
    assert (UNMOVED.frozen, UNMOVED.copying, UNMOVED.past) == (False, False, 0)
    assert (COPYING.frozen, COPYING.copying, COPYING.past) == (False, True, 6)
    assert (FROZEN.frozen, FROZEN.copying) == (True, False)
    assert wanted(HOME, TAKEN.chunk)
    assert not wanted(replace(HOME, dead=7), TAKEN.chunk)
