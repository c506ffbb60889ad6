"""The public records: models for those who read and write them, and a fast parser for the hot path.

The models are for clients, the command line and tests. A router reads every task with :func:`parse_task`,
which checks the same rules in plain Python. JSON, UTF-8, one object per record; unknown fields are ignored.
"""

import re
from typing import Annotated, Any, Final, Literal, NamedTuple, Self

import orjson
from pydantic import (
    AfterValidator,
    AwareDatetime,
    BaseModel,
    ConfigDict,
    Field,
    StrictBool,
    StrictInt,
    StrictStr,
    model_validator,
)

from app.errors import RecordError

NAME_MAX_CHARS = 200
ID_MAX_CHARS = 1_000
TYPE_MAX_CHARS = 200

# Control characters, and halves of surrogate pairs, which have no UTF-8.
_UNFIT = re.compile("[\x00-\x1f\x7f-\x9f\ud800-\udfff]")
_NAME_RULE = f"is no name: 1 to {NAME_MAX_CHARS} characters without control characters"
_KINDS: Final = {
    str: "a string",
    int: "a whole number",
    float: "a number",
    bool: "true or false",
    list: "a list",
    dict: "an object",
    type(None): "null",
}


def valid_name(name: str) -> bool:
    """Tell whether a text can name a tenant or a session: 1 to 200 characters, none a control character."""
    # What is printable holds no character of the pattern; most names are, and the test is fast.
    return 0 < len(name) <= NAME_MAX_CHARS and (name.isprintable() or _UNFIT.search(name) is None)


def valid_type(kind: object) -> bool:
    """Tell whether a value can be the type of a task: a text of at most 200 characters."""
    return type(kind) is str and len(kind) <= TYPE_MAX_CHARS


def valid_id(task_id: object) -> bool:
    """Tell whether a value can be the id of a task: nothing, or a text of 1 to 1,000 characters."""
    return task_id is None or (type(task_id) is str and 0 < len(task_id) <= ID_MAX_CHARS)


class ParsedTask(NamedTuple):
    """A task as a router or server needs it. ``id`` is ``None`` when the producer gave none."""

    id: str | None
    tenant: str
    session: str
    type: str
    payload: dict[str, Any]
    server: int | None


def parse_task(key: bytes | None, value: bytes | None) -> ParsedTask:
    """Read a record of ``tasks``.

    Raises:
        RecordError: the record is no task; the reason says in one line why.
    """
    if not value:
        raise RecordError("the value is null" if value is None else "the value is empty")
    try:
        record = orjson.loads(value)
    except orjson.JSONDecodeError as error:
        raise RecordError(_why_no_json(value, error)) from None
    if type(record) is not dict:
        raise RecordError(f"the value is {_KINDS[type(record)]}, not an object")
    tenant, session = _name(record, "tenant"), _name(record, "session")
    kind = _field(record, "type", str)
    payload = _field(record, "payload", dict)
    if key != tenant.encode():
        raise RecordError(_why_other_key(key))
    task_id, server = record.get("id"), record.get("server")
    if not valid_type(kind):
        raise RecordError(_too_long("type", TYPE_MAX_CHARS))
    if not valid_id(task_id):
        raise RecordError(_why_no_id(task_id))
    if server is not None and type(server) is not int:
        raise RecordError(_wrong_kind("server", server, int))
    return ParsedTask(task_id, tenant, session, kind, payload, server)


def _field(record: dict[str, Any], name: str, kind: type) -> Any:
    value = record.get(name)
    if type(value) is kind:
        return value
    raise RecordError(_wrong_kind(name, value, kind) if name in record else f"field {name!r} is missing")


def _name(record: dict[str, Any], name: str) -> str:
    value: str = _field(record, name, str)
    if not valid_name(value):
        raise RecordError(f"field {name!r} {_NAME_RULE}")
    return value


def _wrong_kind(name: str, value: object, kind: type) -> str:
    return f"field {name!r} is {_KINDS[type(value)]}, not {_KINDS[kind]}"


def _why_no_id(value: object) -> str:
    if type(value) is not str:
        return _wrong_kind("id", value, str)
    return _too_long("id", ID_MAX_CHARS) if value else "field 'id' is empty"


def _too_long(name: str, most: int) -> str:
    return f"field {name!r} is longer than {most} characters"


def _why_no_json(value: bytes, error: orjson.JSONDecodeError) -> str:
    try:
        value.decode()
    except UnicodeDecodeError as wrong:
        return f"the value is not UTF-8: byte {wrong.start}"
    return f"the value is not JSON: {' '.join(error.msg.split())} at character {error.pos}"


def _why_other_key(key: bytes | None) -> str:
    if key is None:
        return "the record has no key: the key must be the tenant"
    return "the key is not the tenant: both must be the same, byte by byte"


def _check_name(name: str) -> str:
    if not valid_name(name):
        raise ValueError(_NAME_RULE)
    return name


Name = Annotated[StrictStr, AfterValidator(_check_name)]


class _Record(BaseModel):
    model_config = ConfigDict(frozen=True, extra="ignore")


class Task(_Record):
    """What a producer asks for, key tenant. Without an id it is known by its origin, ``partition/offset``."""

    id: Annotated[StrictStr, Field(min_length=1, max_length=ID_MAX_CHARS)] | None = None
    tenant: Name
    session: Name
    type: Annotated[StrictStr, Field(max_length=TYPE_MAX_CHARS)]
    payload: dict[str, Any]
    server: StrictInt | None = None


class TaskError(_Record):
    """Why a task failed: the class of the error and its text."""

    type: str
    message: str


class Source(_Record):
    """Where a task stands in ``tasks``."""

    partition: int
    offset: int


class Result(_Record):
    """What became of a task. ``sequence`` counts the results of its session, from 1, without a gap."""

    task: str
    tenant: str
    session: str
    type: str
    status: Literal["done", "failed"]
    result: Any = None
    error: TaskError | None = None
    server: int
    worker: str
    sequence: int
    attempts: int
    source: Source


class Event(_Record):
    """What happened. Fields of one kind of event are in ``model_extra``, such as ``from`` of a migration.

    ``id`` is the id of the command that led to it, ``final`` says that this is the command's one outcome.
    """

    model_config = ConfigDict(frozen=True, extra="allow")

    event: str
    at: AwareDatetime
    id: str | None = None
    final: bool = False


_ABOUT = {"forget-worker": "worker"}
_TENANT_COMMANDS = frozenset({"migrate", "abort-migration", "undo-migration"})


class Command(_Record):
    """What an operator orders. Times are seconds; without an id it is ``commands/partition/offset``."""

    command: Literal[
        "migrate",
        "abort-migration",
        "undo-migration",
        "fail-server",
        "restore-server",
        "drain-server",
        "forget-worker",
    ]
    id: Annotated[StrictStr, Field(min_length=1, max_length=ID_MAX_CHARS)] | None = None
    tenant: Name | None = None
    to: StrictInt | None = None
    server: StrictInt | None = None
    worker: StrictStr | None = None
    timeout: Annotated[float, Field(gt=0, strict=True, allow_inf_nan=False)] | None = None
    max_pause: Annotated[float, Field(gt=0, strict=True, allow_inf_nan=False)] | None = None
    dry_run: StrictBool = False
    offline: StrictBool = False
    from_backups: StrictBool = False

    @model_validator(mode="after")
    def _names_what_it_is_about(self) -> Self:
        needed = "tenant" if self.command in _TENANT_COMMANDS else _ABOUT.get(self.command, "server")
        if getattr(self, needed) is None:
            raise ValueError(f"{self.command} needs the field {needed!r}")
        if self.command == "migrate" and self.to is None:
            raise ValueError("migrate needs the field 'to'")
        return self
