"""Records: what is a task, in the fast parser and in the model alike, and the other public records."""

from typing import Any

import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from app.errors import RecordError
from app.records import Command, Event, ParsedTask, Result, Task, parse_task, valid_name

GOOD: dict[str, Any] = {"tenant": "acme", "session": "cart-7", "type": "cart.add", "payload": {"count": 2}}


def changed(**fields: object) -> bytes:
    return orjson.dumps({**GOOD, **fields})


def without(name: str) -> bytes:
    return orjson.dumps({field: value for field, value in GOOD.items() if field != name})


def test_a_task_with_and_without_its_optional_fields() -> None:
    assert parse_task(b"acme", orjson.dumps(GOOD)) == ParsedTask(None, "acme", "cart-7", "cart.add", {"count": 2}, None)
    whole = changed(id="t-1", server=3, colour="unknown fields are ignored")
    assert parse_task(b"acme", whole) == ParsedTask("t-1", "acme", "cart-7", "cart.add", {"count": 2}, 3)
    assert parse_task(b"acme", changed(id=None, server=None))[0::5] == (None, None)


def test_an_id_and_a_type_may_be_as_long_as_the_limit() -> None:
    task = parse_task(b"acme", changed(id="x" * 1_000, type="y" * 200))
    assert (task.id, task.type) == ("x" * 1_000, "y" * 200)


def test_names_may_be_any_text() -> None:
    task = parse_task("Ätna 🌋".encode(), changed(tenant="Ätna 🌋", session="\u2028 \u00ad"))
    assert (task.tenant, task.session) == ("Ätna 🌋", "\u2028 \u00ad")


BAD = [
    (b"acme", None, "the value is null"),
    (b"acme", b"", "the value is empty"),
    (b"acme", b" ", "the value is not JSON"),
    (b"acme", b"{}}", "the value is not JSON"),
    (b"acme", b'{"tenant": NaN}', "the value is not JSON"),
    (b"acme", b"\xef\xbb\xbf{}", "the value is not JSON"),
    (b"acme", b"[" * 100_000, "the value is not JSON"),
    (b"acme", b'{"tenant": "\xff"}', "the value is not UTF-8: byte 12"),
    (b"acme", b"[1]", "the value is a list, not an object"),
    (b"acme", b"null", "the value is null, not an object"),
    (b"acme", b"7", "the value is a whole number, not an object"),
    (b"acme", b'"x"', "the value is a string, not an object"),
    (b"acme", without("tenant"), "field 'tenant' is missing"),
    (b"acme", without("session"), "field 'session' is missing"),
    (b"acme", without("type"), "field 'type' is missing"),
    (b"acme", without("payload"), "field 'payload' is missing"),
    (b"acme", changed(tenant=7), "field 'tenant' is a whole number, not a string"),
    (b"acme", changed(session=None), "field 'session' is null, not a string"),
    (b"acme", changed(type=True), "field 'type' is true or false, not a string"),
    (b"acme", changed(payload=[]), "field 'payload' is a list, not an object"),
    (b"acme", changed(payload=None), "field 'payload' is null, not an object"),
    (b"acme", changed(id=7), "field 'id' is a whole number, not a string"),
    (b"acme", changed(id=False), "field 'id' is true or false, not a string"),
    (b"acme", changed(id=""), "field 'id' is empty"),
    (b"acme", changed(id="x" * 1_001), "field 'id' is longer than 1000 characters"),
    (b"acme", changed(type="x" * 201), "field 'type' is longer than 200 characters"),
    (b"acme", changed(server="3"), "field 'server' is a string, not a whole number"),
    (b"acme", changed(server=True), "field 'server' is true or false, not a whole number"),
    (b"acme", changed(server=3.0), "field 'server' is a number, not a whole number"),
    (b"", changed(tenant=""), "field 'tenant' is no name"),
    (b"acme", changed(session="x" * 201), "field 'session' is no name"),
    (b"acme", changed(session="a\x00b"), "field 'session' is no name"),
    (b"acme", changed(session="a\x85"), "field 'session' is no name"),
    (b"a\x7f", changed(tenant="a\x7f"), "field 'tenant' is no name"),
    (None, changed(), "the record has no key"),
    (b"", changed(), "the key is not the tenant"),
    (b"acm", changed(), "the key is not the tenant"),
    (b'"acme"', changed(), "the key is not the tenant"),
    ("e\u0301".encode(), changed(tenant="\u00e9"), "the key is not the tenant"),
]


@pytest.mark.parametrize(("key", "value", "reason"), BAD, ids=[f"{n}-{case[2]}" for n, case in enumerate(BAD)])
def test_what_is_no_task_says_why_in_one_line(key: bytes | None, value: bytes | None, reason: str) -> None:
    with pytest.raises(RecordError) as caught:
        parse_task(key, value)
    assert caught.value.reason.startswith(reason)
    assert "\n" not in caught.value.reason


def test_half_a_surrogate_pair_is_no_task() -> None:
    value = orjson.dumps(GOOD).replace(b"cart-7", rb"\ud800")
    with pytest.raises(RecordError):
        parse_task(b"acme", value)
    assert not valid_name("\ud800")


@given(st.binary())
def test_any_bytes_are_a_task_or_a_record_error(value: bytes) -> None:
    with pytest.raises(RecordError):
        parse_task(b"acme", value)


json_values = st.sampled_from(
    [
        None,
        True,
        False,
        0,
        -1,
        2**40,
        1.0,
        0.5,
        "",
        "a",
        "\x00",
        "é",
        "x" * 200,
        "x" * 201,
        "x" * 1_000,
        "x" * 1_001,
        [],
        [1],
        {},
        {"n": 1},
    ]
)


@given(st.fixed_dictionaries({}, optional=dict.fromkeys([*GOOD, "id", "server"], json_values)), st.booleans())
def test_parser_and_model_agree(fields: dict[str, Any], fill: bool) -> None:
    record = {**GOOD, **fields} if fill else fields
    tenant = record.get("tenant")
    key = tenant.encode() if isinstance(tenant, str) else b""
    try:
        model: Task | None = Task.model_validate(record)
    except ValidationError:
        model = None
    try:
        parsed: ParsedTask | None = parse_task(key, orjson.dumps(record))
    except RecordError:
        parsed = None
    assert (parsed is None) == (model is None)
    if parsed is not None and model is not None:
        assert parsed._asdict() == model.model_dump()


def test_a_result_has_the_fields_of_the_record() -> None:
    record = {
        "task": "t-1",
        "tenant": "acme",
        "session": "cart-7",
        "type": "cart.add",
        "status": "failed",
        "result": None,
        "error": {"type": "KeyError", "message": "'count'"},
        "server": 3,
        "worker": "w1",
        "sequence": 17,
        "attempts": 1,
        "source": {"partition": 0, "offset": 9},
    }
    result = Result.model_validate({**record, "later": 1})
    assert result.model_dump() == record
    assert result.error is not None
    assert result.source.offset == 9


def test_an_event_keeps_the_fields_of_its_kind() -> None:
    event = Event.model_validate_json(
        '{"event": "migration-succeeded", "at": "2026-01-02T03:04:05Z", "id": "m", "final": true, "from": 1}'
    )
    assert event.final
    assert event.model_extra == {"from": 1}
    assert event.model_dump(mode="json")["at"] == "2026-01-02T03:04:05Z"


@pytest.mark.parametrize(
    "record",
    [
        {"command": "migrate", "tenant": "acme", "to": 3, "dry_run": True, "timeout": 5},
        {"command": "abort-migration", "id": "c", "tenant": "acme"},
        {"command": "drain-server", "server": 0},
    ],
)
def test_commands(record: dict[str, Any]) -> None:
    assert Command.model_validate(record).model_dump(exclude_unset=True) == record


@pytest.mark.parametrize(
    "record",
    [
        {"command": "explode"},
        {"command": "migrate", "tenant": "acme"},
        {"command": "migrate", "to": 3},
        {"command": "migrate", "tenant": "acme", "to": "3"},
        {"command": "migrate", "tenant": "acme", "to": True},
        {"command": "migrate", "tenant": "", "to": 3},
        {"command": "migrate", "tenant": "acme", "to": 3, "timeout": 0},
        {"command": "migrate", "tenant": "acme", "to": 3, "offline": "yes"},
        {"command": "fail-server", "tenant": "acme"},
        {"command": "fail-server", "server": 1, "id": "x" * 1_001},
        {"command": "migrate", "tenant": "x" * 201, "to": 3},
    ],
)
def test_bad_commands_are_refused(record: dict[str, Any]) -> None:
    with pytest.raises(ValidationError):
        Command.model_validate(record)
