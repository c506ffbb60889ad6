"""The source's part: every state with every event, and what it ships next."""

from dataclasses import replace
from itertools import product
from typing import get_args

import pytest

from app.errors import LocalProtocolError
from app.protocol.chunks import SESSION, Digest, fingerprint
from app.protocol.control import Abort, Commit, Complete, Cut, Prepare, Progress, Ready, Received, Refused
from app.protocol.shipping import (
    FEW,
    WINDOW,
    WINDOW_SERVED,
    Conclude,
    Concluded,
    Copying,
    Event,
    Failed,
    Finish,
    Freeze,
    Frozen,
    ShipMarked,
    Shipment,
    Shipped,
    Shipping,
    ShipSessions,
    ShipWaiting,
    Step,
    Sweep,
    Task,
    Tell,
    Thaw,
    Tick,
    Unmark,
    ahead,
    mark,
    remarked,
    step,
)

PREPARE = Prepare("acme", 7, 4, 1, (0,), 2)
SHIPMENT = Shipment(7, 4, 1, (0,), 2, Digest(3, 5), "m", scanned=True, chunks=2, sent=800, taken=300, reported=100)
COPYING, FROZEN = Copying(SHIPMENT), Frozen(SHIPMENT, waiting=True)

PAGE = Shipped(2, 10, 400, cursor="q", end=True)
CUT, COMMIT, ABORT = Cut("acme", 7), Commit("acme", 7, 2), Abort("acme", 7)
TAKEN = Received("acme", 7, 2, 800)


def same(state: Shipping | None, *events: Event) -> list[tuple[Shipping | None, Event, Step]]:
    return [(state, event, Step(state)) for event in events]


def both(state: Copying | Frozen) -> list[tuple[Shipping | None, Event, Step]]:
    """What Copying and Frozen answer alike."""
    told = replace(state, shipment=replace(SHIPMENT, reported=800))
    progress = Tell(Progress("acme", 7, 0, 3, 800))
    return [
        (state, TAKEN, Step(replace(state, shipment=replace(SHIPMENT, taken=800)))),
        *same(state, replace(TAKEN, epoch=6), replace(TAKEN, bytes=200), PREPARE, replace(PREPARE, epoch=6)),
        *same(state, replace(COMMIT, epoch=6), replace(ABORT, epoch=6)),
        (state, Failed("disk full"), Step(state, (Tell(Refused("acme", 7, 0, "disk full")),))),
        (state, Tick(), Step(told, (progress,))),
        *same(told, Tick()),
        (told, Tick(busy=True), Step(told, (progress,))),
    ]


CASES: list[tuple[Shipping | None, Event, Step]] = [
    (None, PREPARE, Step(Copying(Shipment(7, 4, 1, (0,), 2)))),
    *same(None, CUT, COMMIT, ABORT, TAKEN, PAGE, Concluded(), Failed("x"), Tick()),
    *both(COPYING),
    (COPYING, CUT, Step(FROZEN_NEW := Frozen(SHIPMENT), (Freeze(),))),
    *same(COPYING, replace(CUT, epoch=6)),
    (COPYING, ABORT, Step(None, (Unmark(7),))),
    (COPYING, Concluded(), Step(replace(COPYING, ready=True), (Tell(Ready("acme", 7, 0)),))),
    (
        COPYING,
        PAGE,
        Step(Copying(replace(SHIPMENT, digest=Digest(5, 15), cursor="q", chunks=3, sent=1_200))),
    ),
    *both(FROZEN),
    *same(FROZEN, CUT),
    (FROZEN, COMMIT, Step(None, (Sweep(4),))),
    (FROZEN, ABORT, Step(None, (Unmark(7), Thaw(4)))),
    (
        FROZEN,
        Concluded(),
        Step(
            Frozen(SHIPMENT, waiting=True, complete=True),
            (Finish(Complete("acme", 7, 0, 1, (0,), 2, 3, f"{5:032x}")),),
        ),
    ),
    (
        FROZEN_NEW,
        PAGE,
        Step(Frozen(replace(SHIPMENT, digest=Digest(5, 15), cursor="q", chunks=3, sent=1_200), waiting=True)),
    ),
]


@pytest.mark.parametrize(("state", "event", "expected"), CASES, ids=lambda value: type(value).__name__)
def test_step(state: Shipping | None, event: Event, expected: Step) -> None:
    assert step(state, event, tenant="acme", server=0) == expected


def test_the_table_has_every_pair() -> None:
    covered = {(type(state), type(event)) for state, event, _ in CASES} | {(Copying, Commit)}
    assert covered == set(product((type(None), Copying, Frozen), get_args(Event)))


@pytest.mark.parametrize(
    ("state", "event"),
    [(COPYING, COMMIT), (COPYING, replace(PREPARE, epoch=8)), (FROZEN, replace(PREPARE, epoch=8))],
)
def test_a_router_that_breaks_its_own_order_is_not_followed(state: Shipping, event: Event) -> None:
    with pytest.raises(LocalProtocolError):
        step(state, event, tenant="acme", server=0)


NEW = Shipment(7, 4, 1, (0,), 2)
SCANNED = replace(NEW, scanned=True)


@pytest.mark.parametrize(
    ("state", "marked", "task"),
    [
        (Copying(NEW), 9, ShipSessions("")),
        (Copying(replace(NEW, cursor="m")), 0, ShipSessions("m")),
        (Copying(SCANNED), FEW + 1, ShipMarked()),
        (Copying(SCANNED), FEW, Conclude()),
        (Copying(replace(SCANNED, sent=9)), FEW, None),
        (Copying(replace(SCANNED, begun=4_000, left=1)), 4_000, ShipMarked()),
        (Copying(replace(SCANNED, begun=4_000)), 3_000, ShipMarked()),
        (Copying(replace(SCANNED, begun=4_000)), 3_001, Conclude()),
        (Copying(replace(SCANNED, begun=4_000), ready=True), 3_001, ShipMarked()),
        (Copying(SCANNED, ready=True), FEW, None),
        (Frozen(NEW), 5, ShipSessions("")),
        (Frozen(SCANNED), 1, ShipMarked()),
        (Frozen(SCANNED), 0, ShipWaiting("")),
        (Frozen(replace(SCANNED, cursor="m\0" + "0" * 12)), 0, ShipWaiting("m\0" + "0" * 12)),
        (Frozen(SCANNED, waiting=True), 0, Conclude()),
        (Frozen(SCANNED, waiting=True, complete=True), 0, None),
        (Copying(replace(NEW, sent=WINDOW_SERVED)), 9, None),
        (Copying(replace(NEW, sent=WINDOW_SERVED, taken=1)), 9, ShipSessions("")),
        (Frozen(replace(SCANNED, sent=WINDOW_SERVED), waiting=True), 9, ShipMarked()),
        (Frozen(replace(SCANNED, sent=WINDOW), waiting=True), 0, None),
    ],
)
def test_what_is_shipped_next(state: Shipping, marked: int, task: Task | None) -> None:
    assert ahead(state, marked) == task


def test_the_end_of_the_scan_begins_the_next_one_at_its_start() -> None:
    copying = step(Copying(NEW), PAGE, tenant="acme", server=0).state
    assert copying is not None
    assert (copying.shipment.scanned, copying.shipment.cursor) == (True, "")


def test_rounds_of_marked_sessions() -> None:
    state: Shipping | None = Copying(SCANNED)
    seen = []
    for marked, unmarked in ((500, 300), (250, 250), (260, 60)):
        page = Shipped(0, 0, 100, marked=marked, unmarked=unmarked)
        state = step(state, page, tenant="acme", server=0).state
        assert state is not None
        seen.append((state.shipment.begun, state.shipment.left))
    assert seen == [(500, 200), (500, 0), (260, 200)]


@pytest.mark.parametrize(
    ("shipment", "session", "before", "shipped"),
    [
        (replace(NEW, cursor="m"), "m", b"{}", True),
        (replace(NEW, cursor="m"), "a", b"{}", True),
        (replace(NEW, cursor="m"), "a", None, False),
        (replace(NEW, cursor="m"), "n", None, False),
        (SCANNED, "z", b"{}", True),
        (SCANNED, "z", None, False),
    ],
)
def test_a_mark_remembers_the_version_that_was_shipped(
    shipment: Shipment, session: str, before: bytes | None, shipped: bool
) -> None:
    expected = f"{fingerprint(SESSION, session, b'{}'):032x}" if shipped else ""
    assert mark(Copying(shipment), session, before) == expected
    assert mark(Frozen(shipment), session, before) == expected


@pytest.mark.parametrize(("cursor", "session"), [("m", "n"), ("", "a")])
def test_what_the_scan_has_still_to_come_to_needs_no_mark(cursor: str, session: str) -> None:
    assert mark(Copying(replace(NEW, cursor=cursor)), session, b"{}") is None


def test_what_a_marked_session_adds() -> None:
    old, new = fingerprint(SESSION, "a", b"1"), fingerprint(SESSION, "a", b"2")
    assert remarked("a", f"{old:032x}", b"2") == (0, new - old)
    assert remarked("a", f"{old:032x}", None) == (-1, -old)
    assert remarked("a", "", b"2") == (1, new)
    assert remarked("a", "", None) == (0, 0)
