"""Events and dead letters, counted."""

from collections import Counter

import orjson

from app.engine.tally import Tally
from app.topics import Names
from app.worker.happenings import ERRORS_MAX, OTHER, Happenings

NAMES = Names("ns")


def tell(tally: Tally, event: object) -> None:
    tally.committed(Counter(), [{"topic": NAMES.events, "key": b"k", "value": orjson.dumps(event)}])


def made() -> tuple[Happenings, Tally]:
    found, tally = Happenings(), Tally()
    found.follow(tally, NAMES)
    return found, tally


def test_the_end_of_a_migration_gives_its_figures() -> None:
    found, tally = made()
    fields = {"rows": 10, "bytes": 900, "parked": 4, "redelayed": 1, "pause_ms": 250}
    tell(tally, {"event": "migration-succeeded", **fields})
    tell(tally, {"event": "migration-failed", "reason": "aborted", "pause_ms": None})
    assert dict(found.migrations) == {"succeeded": 1, "failed": 1}
    assert dict(found.moved) == {"rows": 10, "bytes": 900, "parked": 4, "redelayed": 1}
    assert found.pauses.sum == 0.25
    assert found.events["migration-failed"] == 1


def test_transfers_are_counted_with_their_bytes() -> None:
    found, tally = made()
    tell(tally, {"event": "transfer-completed", "size": 1_000})
    tell(tally, {"event": "transfer-failed", "size": 5})
    assert dict(found.transfers) == {"completed": 1, "failed": 1, "acknowledged": 0}
    assert found.transfer_bytes == 1_000


def test_an_event_that_cannot_be_read_is_passed_over() -> None:
    found, tally = made()
    tally.committed(Counter(), [{"topic": NAMES.events, "key": b"k", "value": value} for value in (b"{", None)])
    assert not found.events


def test_dead_letters_have_only_so_many_names() -> None:
    found, tally = made()
    for number in range(ERRORS_MAX + 5):
        record = {"topic": NAMES.dead_letters, "value": b"", "key": None}
        tally.committed(Counter(), [{**record, "headers": [("error", b"Error%d" % number)]}])
    tally.committed(
        Counter(), [{"topic": NAMES.dead_letters, "value": b"", "key": None, "headers": [("error", b"Error1")]}]
    )
    assert found.dead_letters[OTHER] == 5
    assert found.dead_letters["Error1"] == 2
    assert len(found.dead_letters) == ERRORS_MAX + 1
