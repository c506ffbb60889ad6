"""The bytes of the four topics and of the rows: golden for what was released, refusals for everything else."""

import json
from pathlib import Path
from typing import Any

import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st

from app.errors import RecordError
from app.protocol import exchange_client as client
from app.protocol import exchange_model as model
from app.protocol import exchange_records as records
from app.protocol import exchange_server as server
from app.protocol.exchange_model import Ended, Open
from app.protocol.exchange_records import Look, Message, Order, Word
from tables import exchanges as table
from tables.exchanges import ExchangeRow, Mark

GOLDEN: dict[str, Any] = json.loads((Path(__file__).parents[2] / "golden/exchanges.json").read_text(encoding="utf-8"))
KEY = b"sim-42"
NOW = 1_764_000_000_000

OPEN = Open(
    "laptop-7", 57, 8, NOW + 3_600_000, 4, 3, 2, 1, b'{"step":3}', "hpc-1", 12, 2, 5, b'{"done":2}', True, False, 1
)
NEW = Open('☃ "quoted"', 0)
ENDED = Ended("cancelled", "not needed", OPEN)
MARK = Mark(NOW + 1_000, "w1 1795260887026")
REQUEST = b'"body":{"seed":1}}'
FAILURE = records.failure("ValueError", 'no "seed"')

REQUESTS: list[Message] = [
    Message(model.ClientOpened("laptop-7", 57)),
    Message(model.ClientOpened("laptop-7", 57, 16, NOW + 3_600_000)),
    Message(model.Submitted(57, 4, 3, b'{"step":3}'), REQUEST),
    Message(model.Acknowledged(57, 5, 1, b"null")),
    Message(model.Finished(57, 6)),
    Message(model.ClientAsked(57)),
    Message(Word("", 57)),
    Message(Word("", 57, bye=True)),
    Message(Look("5f1c")),
    Message(Order("restart", "r1", "", programs=True)),
    Message(Order("cancel", "c1", "not needed", programs=False)),
]
RESPONSES: list[Message] = [
    Message(Word("hpc-1", 57)),
    Message(Word("hpc-1", 12)),
    Message(Word("hpc-1", 12, bye=True)),
    Message(model.Begun("hpc-1", 2, 5, 3)),
    Message(model.Checkpointed("hpc-1", 2, 6, 3, b'{"half":3}')),
    Message(model.Responded("hpc-1", 2, 7, 3, b'{"done":3}'), b'"body":{"x":1}}'),
    Message(model.Responded("hpc-1", 2, 7, 3), records.failure("ValueError", "no")),
    Message(Look("5f1c", "hpc-1")),
]


@pytest.mark.parametrize(("golden", "meant"), [*zip(GOLDEN["requests"], REQUESTS, strict=True)], ids=str)
def test_released_requests_are_read(golden: list[str], meant: Message) -> None:
    assert records.read_request(KEY, golden[1].encode(), 57, NOW) == meant


@pytest.mark.parametrize(("golden", "meant"), [*zip(GOLDEN["responses"], RESPONSES, strict=True)], ids=str)
def test_released_responses_are_read(golden: list[str], meant: Message) -> None:
    assert records.read_response(KEY, golden[1].encode(), 57) == meant


def row(content: bytes) -> bytes:
    return table.encode_message(content)


WRITTEN = {
    "replies": {
        "restart": records.client_restart(OPEN, "manager"),
        "positions": records.positions(OPEN),
        "request": records.to_client("request", 57, 3, row(REQUEST)),
        "response": records.to_client("response", 57, 2, row(FAILURE)),
        "refused": records.say("refused", incarnation=57, op=5, reason="gap", expected=4),
        "fenced": records.say("fenced", incarnation=57, current=60, client="laptop-7"),
        "closed": records.closed(57, ENDED),
        "start": records.say("start", incarnation=57),
        "roll-call": records.say("roll-call", manager=3),
    },
    "assignments": {
        "restart": records.server_restart(OPEN, "assigned"),
        "request": records.to_server("request", "hpc-1", 2, 3, row(REQUEST)),
        "response": records.to_server("response", "hpc-1", 2, 2, row(FAILURE)),
        "release": records.server_head("release", "hpc-1") + b'"assignment":2,"reason":"superseded"}',
        "fenced": records.server_head("fenced", "hpc-1") + b'"incarnation":12,"current":14}',
        "start": records.server_head("start", "hpc-1") + b'"incarnation":12}',
    },
    "rows": {
        "open": table.encode(ExchangeRow(OPEN, NOW, NOW + 1_000)),
        "new": table.encode(ExchangeRow(NEW, NOW, NOW)),
        "ended": table.encode(ExchangeRow(ENDED, NOW, NOW + 2_000)),
        "request": row(REQUEST),
        "response": row(FAILURE),
        "mark": table.encode_mark(MARK),
    },
}


@pytest.mark.parametrize("topic", list(WRITTEN))
def test_records_and_rows_are_written_as_released(topic: str) -> None:
    assert {kind: value.decode() for kind, value in WRITTEN[topic].items()} == GOLDEN[topic]
    for value in WRITTEN[topic].values():
        assert orjson.loads(value)["v"] == records.VERSION


def test_released_rows_are_read() -> None:
    golden = {name: text.encode() for name, text in GOLDEN["rows"].items()}
    assert table.decode(golden["open"]) == ExchangeRow(OPEN, NOW, NOW + 1_000)
    assert table.decode(golden["new"]) == ExchangeRow(NEW, NOW, NOW)
    assert table.decode(golden["ended"]) == ExchangeRow(ENDED, NOW, NOW + 2_000)
    assert table.decode_message(golden["request"]) == {"body": {"seed": 1}}
    assert table.decode_message(golden["response"])["error"] == {"type": "ValueError", "message": 'no "seed"'}
    assert table.decode_mark(golden["mark"]) == MARK


def test_rows_of_another_version_are_refused() -> None:
    with pytest.raises(ValueError, match="another version"):
        table.decode(b'{"v":2}')
    with pytest.raises(ValueError, match="another version"):
        table.decode_message(b'{"v":2,"body":1}')


def test_a_head_is_how_a_record_for_a_server_session_begins() -> None:
    for kind, value in WRITTEN["assignments"].items():
        assert value.startswith(records.server_head(kind, "hpc-1"))
        assert not value.startswith(records.server_head(kind, "hpc-11"))


def test_released_replies_are_understood() -> None:
    told = {kind: records.read_reply(json.loads(text)) for kind, text in GOLDEN["replies"].items()}
    assert told == {
        "restart": client.Restarted(57, 4, 8, 3, 2, 1),
        "positions": client.PositionsTold(57, 4, 2),
        "refused": client.Refused(57, "gap", 4),
        "fenced": client.Fenced(57, 60),
        "closed": client.ClosedTold(57, "cancelled"),
        **dict.fromkeys(("request", "response", "start", "roll-call")),
    }


def test_released_assignments_are_understood() -> None:
    told = {kind: records.read_assignment(json.loads(text)) for kind, text in GOLDEN["assignments"].items()}
    assert told == {
        "restart": server.Given(2, 5, 2, careful=True),
        "request": server.RequestCame(2, 3),
        "release": server.Withdrawn(2),
        **dict.fromkeys(("response", "fenced", "start")),
    }


JSON = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**53), 2**53) | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner, max_size=3),
    max_leaves=8,
)


@given(JSON, JSON)
def test_bodies_and_restart_data_come_out_as_they_went_in(body: Any, restart: Any) -> None:
    submitted = {"v": 1, "type": "submit", "incarnation": 1, "op": 1, "number": 1, "restart": restart, "body": body}
    event, content = records.read_request(KEY, orjson.dumps(submitted), 0, NOW)
    assert isinstance(event, model.Submitted)
    assert event.restart is not None
    assert orjson.loads(event.restart) == restart
    sent = orjson.loads(records.to_server("request", "hpc-1", 1, 1, row(content)))
    assert sent["body"] == body
    stored = table.encode(ExchangeRow(Open("c", 1, client_restart=event.restart), 1, 2))
    assert table.decode(stored).exchange == Open("c", 1, client_restart=event.restart)


WRONG: list[tuple[bytes | None, object, str]] = [
    (KEY, None, "the value is null"),
    (KEY, b"", "the value is empty"),
    (KEY, b"\xff", "not UTF-8 and JSON"),
    (KEY, b"{", "not UTF-8 and JSON"),
    (KEY, b"[]", "not an object"),
    (None, {"type": "ask", "incarnation": 1}, "the key is no name"),
    (b"\xff", {"type": "ask", "incarnation": 1}, "not UTF-8"),
    (b"a\nb", {"type": "ask", "incarnation": 1}, "the key is no name"),
    (b"x" * 201, {"type": "ask", "incarnation": 1}, "the key is no name"),
    (KEY, {"v": 2, "type": "ask", "incarnation": 1}, "'v' is 2"),
    (KEY, {"type": "wish"}, "type 'wish'"),
    (KEY, {"type": 7}, "type 7"),
    (KEY, {"type": "ask"}, "'incarnation' is None"),
    (KEY, {"type": "ask", "incarnation": True}, "'incarnation' is True"),
    (KEY, {"type": "ask", "incarnation": -1}, "'incarnation' is -1"),
    (KEY, {"type": "submit", "incarnation": 1, "op": 0, "number": 1, "body": 1}, "'op' is 0"),
    (KEY, {"type": "submit", "incarnation": 1, "op": 1, "number": 1}, "'body' is missing"),
    (KEY, {"type": "open", "client": ""}, "'client' is no name"),
    (KEY, {"type": "open", "client": "c", "window": 0}, "'window' is 0"),
    (KEY, {"type": "open", "client": "c", "window": 1_001}, "'window' is 1001"),
    (KEY, {"type": "open", "client": "c", "deadline": 0}, "'deadline' is 0"),
    (KEY, {"type": "open", "client": "c", "deadline": "1"}, "'deadline' is '1'"),
    (KEY, {"type": "cancel", "id": ""}, "'id' is no name"),
    (KEY, {"type": "cancel", "reason": 1}, "'reason' is a string"),
    (KEY, {"type": "look"}, "'asker' is no name"),
]


@pytest.mark.parametrize(("key", "record", "reason"), WRONG, ids=str)
def test_a_record_that_breaks_a_rule_is_refused(key: bytes | None, record: object, reason: str) -> None:
    value = record if isinstance(record, bytes | None) else json.dumps({"v": 1, **dict(record)}).encode()  # type: ignore[call-overload]
    with pytest.raises(RecordError) as error:
        records.read_request(key, value, 1, NOW)
    assert reason in error.value.reason


@pytest.mark.parametrize(
    ("record", "reason"),
    [
        ({"type": "respond"}, "'server' is no name"),
        ({"type": "respond", "server": "s", "number": 1}, "'assignment' is None"),
        ({"type": "respond", "server": "s", "number": 1, "assignment": 1, "op": 1}, "'body' is missing"),
        ({"type": "respond", "server": "s", "number": 1, "assignment": 1, "op": 1, "error": "no"}, "'error' is not"),
        ({"type": "checkpoint", "server": "s", "number": 1, "assignment": 1, "op": 1}, "'restart' is missing"),
        ({"type": "wish", "server": "s"}, "type 'wish'"),
    ],
    ids=str,
)
def test_a_response_that_breaks_a_rule_is_refused(record: dict[str, Any], reason: str) -> None:
    with pytest.raises(RecordError) as error:
        records.read_response(KEY, json.dumps({"v": 1, **record}).encode(), 1)
    assert reason in error.value.reason
