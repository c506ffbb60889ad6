"""The bytes of every row: golden for what was released, and round trips for what may come."""

import json
from pathlib import Path
from typing import Any

import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st

from app.protocol.chunks import Digest
from app.protocol.moves import Copying, Cutting, Move, Outcome, Past, Placement, Releasing, Settled, State
from app.protocol.parking import Lot
from app.protocol.sessions import Phase, Waiting
from app.protocol.shipping import Copying as CopyingSource
from app.protocol.shipping import Frozen, Shipment
from app.protocol.staging import Part, Staged, Staging
from app.protocol.tenancy import UNMOVED, Tenancy
from tables import handoffs, outcomes, parked, placements, sessions, transfers, waiting
from tables.parked import Kept
from tables.sessions import SessionRow
from tables.waiting import WaitingRow

GOLDEN: dict[str, dict[str, list[dict[str, Any]]]] = json.loads(
    (Path(__file__).parents[2] / "golden/rows.json").read_text(encoding="utf-8")
)

Case = dict[str, Any]


def cases(table: str, *versions: int) -> list[Case]:
    return [case for version in versions or map(int, GOLDEN[table]) for case in GOLDEN[table][str(version)]]


def test_every_table_and_every_version_has_golden_rows() -> None:
    tables = {
        module.NAME: module.VERSION for module in (sessions, waiting, placements, parked, handoffs, outcomes, transfers)
    }
    assert {name: set(versions) for name, versions in GOLDEN.items()} == {
        name: {str(released) for released in range(1, version + 1)} for name, version in tables.items()
    }


# -- golden -------------------------------------------------------------------------------------------------------


def session_row(case: Case) -> SessionRow:
    return SessionRow(case["sequence"], dict(case["origins"]), case["state"].encode(), case["changed_at"])


def waiting_row(case: Case) -> WaitingRow:
    entry = Waiting(case["arrival"], Phase(case["phase"]), case["attempt"], case["due_ms"])
    return WaitingRow(entry, case["partition"], case["offset"], case["task"].encode())


@pytest.mark.parametrize("case", cases("sessions"))
def test_released_session_rows_are_read(case: Case) -> None:
    assert sessions.decode(case["row"].encode()) == session_row(case)
    assert sessions.key_of(case["tenant"], case["epoch"], case["session"]) == case["key"].encode()


@pytest.mark.parametrize("case", cases("sessions", sessions.VERSION))
def test_session_rows_are_written_as_released(case: Case) -> None:
    row = session_row(case)
    written = sessions.encode(row.sequence, row.origins, row.changed_at, row.state)
    assert written == case["row"].encode()
    orjson.loads(written)


@pytest.mark.parametrize("case", cases("waiting"))
def test_released_waiting_rows_are_read(case: Case) -> None:
    found = waiting.decode(case["key"].encode(), case["row"].encode())
    assert found == (case["tenant"], case["session"], waiting_row(case))


@pytest.mark.parametrize("case", cases("waiting", waiting.VERSION))
def test_waiting_rows_are_written_as_released(case: Case) -> None:
    written = waiting.encode(waiting_row(case))
    assert written == case["row"].encode()
    orjson.loads(written)
    key = sessions.key_of(case["tenant"], case["epoch"], case["session"])
    assert waiting.key_of(key, case["arrival"]) == case["key"].encode()


@pytest.mark.parametrize("case", cases("placements", 1))
def test_placements_of_the_first_release_are_read(case: Case) -> None:
    expected = Placement(case["home"], case["epoch"], case["epoch"])
    assert placements.decode(case["row"].encode()) == Settled(expected)


PLACE = Placement(3, 12, 14, (Past(13, 3, 1, 1_764_000_000_000, "c1", "timeout"), Past(12, 0, 3, 1, "☃")))
MOVE = Move("c2", 3, 5, (3,), 60_000, 500, 2_000, offline=True, ordered_ms=1_764_000_000_000)
LOT = Lot(9, 4, 18, 2, 8, 100, ((1_764_000_000_200, 5), (1_764_000_000_400, 4)), 77)
OUTCOME = Outcome(None, 5, 900, 300, ((3, 5, "ab"),))

PLACEMENTS: list[State] = [
    Settled(PLACE),
    Copying(PLACE, MOVE, (3,), 1_764_000_000_100),
    Cutting(PLACE, MOVE, LOT, 1_764_000_000_000, 1_764_000_000_100),
    Releasing(PLACE, MOVE, LOT, OUTCOME),
]

SHIPMENT = Shipment(14, 12, 1, (3,), 5, Digest(4, 2**127 + 1), "cart-7", True, 3, 900, 400, 50, 20, 100)
PARTS = (Part(2, 3, Digest(4, 2**127 + 1), 900, complete=True), Part(3))

TENANCIES: list[Tenancy] = [
    UNMOVED,
    Tenancy(3, 12, 2, 13),
    Tenancy(3, 12, 2, 13, CopyingSource(SHIPMENT, ready=True)),
    Tenancy(3, 12, 2, 13, Frozen(SHIPMENT, waiting=True, complete=False), Staging(14, 1, PARTS, refused=True)),
    Tenancy(3, 12, 2, 13, None, Staged(14, 1, PARTS)),
]


@pytest.mark.parametrize(("case", "state"), list(zip(cases("placements", 2), PLACEMENTS, strict=True)))
def test_placements_are_written_and_read_as_released(case: Case, state: State) -> None:
    assert placements.encode(state) == case["row"].encode()
    assert placements.decode(case["row"].encode()) == state
    assert placements.decode(case["row"].encode()).home == 3


@pytest.mark.parametrize(("case", "tenancy"), list(zip(cases("handoffs", 1), TENANCIES, strict=True)))
def test_tenants_rows_are_written_and_read_as_released(case: Case, tenancy: Tenancy) -> None:
    assert handoffs.encode(tenancy) == case["row"].encode()
    assert handoffs.decode(case["row"].encode()) == tenancy


@pytest.mark.parametrize("case", cases("parked"))
def test_kept_tasks_are_written_and_read_as_released(case: Case) -> None:
    kept = Kept(case["partition"], case["offset"], case["task"].encode())
    assert parked.encode(kept) == case["row"].encode()
    assert parked.decode(case["row"].encode()) == kept
    assert parked.key_of(case["tenant"].encode(), case["number"]) == case["key"].encode()
    orjson.loads(case["row"])


@pytest.mark.parametrize("case", cases("outcomes"))
def test_outcomes_are_written_and_read_as_released(case: Case) -> None:
    outcome = outcomes.Outcome(case["at_ms"], case["event"])
    assert outcomes.encode(outcome) == case["row"].encode()
    assert outcomes.decode(case["row"].encode()) == outcome


def test_an_outcome_stands_for_a_day() -> None:
    outcome = outcomes.Outcome(1_000, {})
    assert outcome.stands(1_000 + 86_400_000 - 1)
    assert not outcome.stands(1_000 + 86_400_000)


def test_the_keys_of_hand_offs() -> None:
    assert handoffs.tenant_key("☃") == b"tenant\0" + "☃".encode()
    assert handoffs.marks_of("acme", 14) + b"cart-7" == b"mark\0acme\x0014\0cart-7"
    assert handoffs.sweep_key("acme", 14) == b"sweep\0acme\x0014"
    assert handoffs.unmark_key("acme", 14) == b"unmark\0acme\x0014"
    assert handoffs.swept(handoffs.sweep_key("a:b ☃", 7)) == ("a:b ☃", 7)
    assert handoffs.swept(handoffs.unmark_key("acme", 14)) == ("acme", 14)


@pytest.mark.parametrize("case", cases("transfers"))
def test_released_transfer_rows_are_read_and_written(case: Case) -> None:
    assert transfers.encode(transfers.decode(case["row"].encode())) == case["row"].encode()


@pytest.mark.parametrize("row", [b'{"v":2,"state":"idle","instance":1}', b'{"v":1,"state":"asleep","instance":1}'])
def test_transfer_rows_of_another_kind_are_refused(row: bytes) -> None:
    with pytest.raises(ValueError, match="transfer"):
        transfers.decode(row)


# -- round trips --------------------------------------------------------------------------------------------------

names = st.text(st.characters(exclude_categories=["Cc", "Cs"]), min_size=1, max_size=20)
# Texts that look like the seams of a row.
seams = st.sampled_from([',"s":', ',"task":', ',"s":{}}', '{"v":2,"s":', "}", '"', "\\", '\\",\\"s\\":'])
texts = st.text(st.characters(exclude_categories=["Cs"]), max_size=10) | seams | names
values = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**63), 2**64 - 1) | st.floats(allow_nan=False) | texts,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(texts | st.sampled_from(["s", "task", "v"]), inner),
    max_leaves=8,
)
objects = st.dictionaries(texts | st.sampled_from(["s", "task", "v"]), values, max_size=4).map(orjson.dumps)
offsets = st.integers(0, 2**63 - 1)
partitions = st.integers(0, 10_000)
arrivals = st.integers(0, 10**12 - 1)


@given(offsets, st.dictionaries(partitions, offsets, max_size=4), st.integers(0, 2**40), objects)
def test_a_session_row_comes_back(sequence: int, origins: dict[int, int], changed_at: int, state: bytes) -> None:
    row = sessions.encode(sequence, origins, changed_at, state)
    assert sessions.decode(row) == SessionRow(sequence, origins, state, changed_at)
    # Readable with a console consumer.
    assert orjson.loads(row)["s"] == orjson.loads(state)


@given(
    names,
    names,
    st.integers(0, 10**6),
    st.builds(Waiting, arrivals, st.sampled_from(Phase), st.integers(0, 100), st.none() | st.integers(0, 2**53)),
    partitions,
    offsets,
    # A producer's JSON may have spaces at its ends; its bytes are kept.
    st.tuples(st.sampled_from([b"", b" ", b"\n"]), objects, st.sampled_from([b"", b"  "])).map(b"".join),
)
def test_a_waiting_row_comes_back(
    tenant: str, session: str, epoch: int, entry: Waiting, partition: int, offset: int, task: bytes
) -> None:
    key = waiting.key_of(sessions.key_of(tenant, epoch, session), entry.arrival)
    row = WaitingRow(entry, partition, offset, task)
    written = waiting.encode(row)
    assert waiting.decode(key, written) == (tenant, session, row)
    assert orjson.loads(written)["task"] == orjson.loads(task)


@given(st.integers(0, 10_000), st.integers(0, 2**53))
def test_a_placement_comes_back(home: int, epoch: int) -> None:
    state = Settled(Placement(home, epoch, epoch))
    assert placements.decode(placements.encode(state)) == state


@given(partitions, offsets, objects)
def test_a_kept_task_comes_back(partition: int, offset: int, task: bytes) -> None:
    assert parked.decode(parked.encode(Kept(partition, offset, task))) == Kept(partition, offset, task)


# -- keys ---------------------------------------------------------------------------------------------------------


@given(st.lists(st.tuples(names, st.integers(0, 12), names), unique=True, min_size=2))
def test_no_two_sessions_share_a_key(named: list[tuple[str, int, str]]) -> None:
    assert len({sessions.key_of(*name) for name in named}) == len(named)


@given(names, names, st.lists(arrivals, unique=True, min_size=2))
def test_what_waits_in_a_session_stands_in_order(tenant: str, session: str, some: list[int]) -> None:
    key = sessions.key_of(tenant, 0, session)
    assert sorted(waiting.key_of(key, arrival) for arrival in some) == [
        waiting.key_of(key, arrival) for arrival in sorted(some)
    ]


# -- other versions -----------------------------------------------------------------------------------------------

STRANGERS = [b"", b"{}", b"{", b"null", b'{"v":2}', b'{"x":1}', b'{"v":"1"}', b"\xff"]


@pytest.mark.parametrize(
    "row",
    [
        *STRANGERS,
        b'{"v":2,"n":1,"o":[],"at":0,"s":{}}',
        b'{"v":1,"n":1,"o":[],"at":0}',
        b'{"n":1,"o":[],"at":0,"s":{}}',
    ],
)
def test_a_session_row_of_another_version_is_refused(row: bytes) -> None:
    with pytest.raises(ValueError, match=r"."):
        sessions.decode(row)


@pytest.mark.parametrize(
    "row",
    [
        *STRANGERS,
        b'{"v":2,"p":0,"o":0,"phase":"queued","attempt":0,"due":null,"task":{}}',
        b'{"v":1,"p":0,"o":0,"phase":"asleep","attempt":0,"due":null,"task":{}}',
        b'{"p":0,"o":0,"phase":"queued","attempt":0,"due":null,"task":{}}',
    ],
)
def test_a_waiting_row_of_another_version_is_refused(row: bytes) -> None:
    with pytest.raises(ValueError, match=r"."):
        waiting.decode(b"acme\x000\x00cart\x00000000000001", row)


NO_PHASE = b'{"v":2,"home":1,"epoch":1,"tried":1,"past":[],"phase":"x"}'


@pytest.mark.parametrize("row", [b"", b"{}", b"{", b'{"v":3,"home":1,"epoch":1}', b'{"home":1,"epoch":1}', NO_PHASE])
def test_a_placement_of_another_version_is_refused(row: bytes) -> None:
    with pytest.raises(ValueError, match=r"."):
        placements.decode(row)


@pytest.mark.parametrize("row", [b"", b"{}", b"{", b'{"v":2,"epoch":1}', b'{"epoch":1}'])
def test_a_tenants_row_of_another_version_is_refused(row: bytes) -> None:
    with pytest.raises(ValueError, match=r"."):
        handoffs.decode(row)


@pytest.mark.parametrize("row", [b"", b"{}", b"{", b'{"v":2,"at":1,"event":{}}'])
def test_an_outcome_of_another_version_is_refused(row: bytes) -> None:
    with pytest.raises(ValueError, match=r"."):
        outcomes.decode(row)


@pytest.mark.parametrize("row", [*STRANGERS, b'{"v":2,"p":0,"o":0,"task":{}}', b'{"v":1,"p":0,"o":0}'])
def test_a_kept_task_of_another_version_is_refused(row: bytes) -> None:
    with pytest.raises(ValueError, match=r"."):
        parked.decode(row)
