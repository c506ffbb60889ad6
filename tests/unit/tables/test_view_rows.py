"""The bytes of the rows about views: golden for what was released, and what another version wrote is refused."""

import json
from pathlib import Path

import orjson
import pytest

from app.protocol.adoption import Adopted
from app.protocol.affinity import Aligned, Change, Early, Line, Moved, Part, Receiving, Sending, State, initial
from app.protocol.chunks import Digest
from app.protocol.homes import Homes
from app.protocol.views import Calm, Changing, Known, Order, first
from app.protocol.views import State as Steward
from tables import handoffs, views

GOLDEN: dict[str, list[str]] = json.loads((Path(__file__).parents[2] / "golden/views.json").read_text("utf-8"))

DIGEST = Digest(4, 2**127 + 1)
FAIL = Change(7, frozenset({0, 1, 2}), frozenset({0, 2}), ((1, "w☃"),))

STATES: list[State] = [
    Aligned(initial(2)),
    Aligned(FAIL, (Moved(1, 2, DIGEST),)),
    Early(FAIL, (Part(0, 3, DIGEST), Part(2, 1, DIGEST, complete=True))),
    Receiving(FAIL, (Part(1, 3, DIGEST, wrong=True),)),
    Sending(FAIL, (Line(0, 2, DIGEST), Line(2, 1)), cursor="acme\0003\0cart-7"),
    Sending(FAIL, (Line(0, 2, DIGEST),), waiting=True, cursor="", sent=True),
]
ADOPTED = [Adopted(), Adopted(7, frozenset({3, 1}), closed=False)]
HOMES = Homes(
    hosts=("w1", "w2"),
    homes=("w1", "w3"),
    workers={"w1": 1_764_000_000_000, "w2": 5},
    leaving={"w2": 5},
    lost={"w3": 1_764_000_000_001},
    back={"w1": 7},
    flaps={"w3": (2, 1_764_000_000_002)},
)
KNOWN = Known(7, frozenset({1}), frozenset({1}), HOMES)
STEWARDS: list[Steward] = [
    first(2),
    Calm(KNOWN),
    Changing(KNOWN, frozenset({0, 1}), 1_764_000_060_000, (Order("c1", "fail", 1),), (Order("☃", "restore", 1),)),
]


@pytest.mark.parametrize(("row", "state"), list(zip(GOLDEN["handoffs"], STATES, strict=True)))
def test_the_rows_of_a_server_are_written_and_read_as_released(row: str, state: State) -> None:
    assert handoffs.encode_view(state) == row.encode()
    assert handoffs.decode_view(row.encode()) == state


@pytest.mark.parametrize(("row", "adopted"), list(zip(GOLDEN["adopted"], ADOPTED, strict=True)))
def test_the_row_of_a_router_is_written_and_read_as_released(row: str, adopted: Adopted) -> None:
    assert views.encode_adopted(adopted) == row.encode()
    assert views.decode_adopted(row.encode()) == adopted


@pytest.mark.parametrize(("row", "state"), list(zip(GOLDEN["steward"], STEWARDS, strict=True)))
def test_the_row_of_the_steward_is_written_and_read_as_released(row: str, state: Steward) -> None:
    assert views.encode(state) == row.encode()
    assert views.decode(row.encode()) == state


def test_a_row_says_which_version_wrote_it() -> None:
    assert {orjson.loads(row)["v"] for rows in GOLDEN.values() for row in rows} == {1}
    assert (handoffs.VERSION, views.VERSION) == (1, 1)


@pytest.mark.parametrize("row", [b"", b"{", b"{}", b'{"v":2,"view":1,"down":[],"closed":true}', b'{"view":1}'])
def test_rows_of_another_version_are_refused(row: bytes) -> None:
    for decode in (handoffs.decode_view, views.decode_adopted, views.decode):
        with pytest.raises(ValueError, match=r"."):
            decode(row)


def test_a_state_that_nobody_knows_is_refused() -> None:
    row = orjson.dumps({**orjson.loads(handoffs.encode_view(STATES[0])), "is": "lost"})
    with pytest.raises(ValueError, match="lost"):
        handoffs.decode_view(row)


def test_the_keys() -> None:
    assert handoffs.view_key(12) == b"view\x0012"
    assert handoffs.held_key(1, 12, 3) == b"held\x001\x0012\x00000000000003"
    assert handoffs.held_key(1, 12, 3).startswith(handoffs.held_of(1, 12))
    assert not handoffs.held_key(1, 12, 3).startswith(handoffs.held_of(1, 1))
    assert handoffs.held(handoffs.held_key(1, 12, 3)) == (1, 12, 3)
