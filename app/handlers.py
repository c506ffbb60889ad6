"""Handlers: what is done with a task, written by the users of Holdfast.

    from app.handlers import Retry, Session, handler

    @handler("cart.add")
    def add(session: Session, payload: dict) -> dict:
        session.state["items"] = session.state.get("items", 0) + payload["count"]
        return {"items": session.state["items"]}

A handler runs on the server that holds the session, one task of a session at a time, in order. What it changes counts
only if it returns; it may run more than once for a task, and only one run takes effect.
"""

import importlib
import inspect
import re
import sys
import typing
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Generic, TypeAlias, TypeVar

import orjson
from pydantic import BaseModel

from app.errors import ConfigurationError
from app.records import TYPE_MAX_CHARS, valid_name, valid_type

RETRY_S_MAX = 7 * 86_400
"""A retry falls due after a week at the latest."""

RESERVED = "holdfast."
"""Begins the types that workers perform themselves."""

_TOPIC = re.compile(r"[A-Za-z0-9._-]{1,249}")

State = TypeVar("State")
Model: TypeAlias = type[BaseModel]
Function = TypeVar("Function", bound=Callable[..., Any])


class Retry(Exception):  # noqa: N818  # the contract names it
    """Raise it to have the task run again after ``after`` seconds; later tasks of the session wait behind it.

    Raises ValueError, and so fails the task, for a time below 0 or beyond a week.
    """

    def __init__(self, after: float = 1.0) -> None:
        super().__init__(after)
        self.after = float(after)
        # Nothing compares with NaN, so it is refused as well.
        if not 0 <= self.after <= RETRY_S_MAX:
            raise ValueError(f"Retry: after must be 0 to {RETRY_S_MAX} seconds, it is {after!r}")


class UnknownTopic(Exception):  # noqa: N818  # its name is what the result's error says
    """``session.emit`` names a topic that does not exist or belongs to Holdfast itself."""


@dataclass(slots=True)
class Outbox:
    """What a run of a handler wants to send; it goes out only if the run takes effect.

    ``tasks`` are (tenant, the task in JSON), ``records`` are (topic, value, key).
    """

    tasks: list[tuple[bytes, bytes]] = field(default_factory=list)
    records: list[tuple[str, bytes | None, bytes | None]] = field(default_factory=list)


class Session(Generic[State]):
    """A session as its handler sees it while it performs one task.

    Attributes:
        tenant, id: the session's name.
        server: the number of the server that holds it.
        task_id: the task's id, to be used as an idempotency key for effects outside.
        attempt: 1 for the first run of this task, 2 after its first retry.
        state: a dict (empty at first), or a pydantic model where the handler's annotation says ``Session[Model]``.
    """

    __slots__ = ("attempt", "ended", "id", "outbox", "server", "state", "task_id", "tenant")

    def __init__(self, tenant: str, id: str, server: int, task_id: str, attempt: int, state: Any) -> None:  # noqa: A002
        self.tenant = tenant
        self.id = id
        self.server = server
        self.task_id = task_id
        self.attempt = attempt
        self.state: State = state
        self.outbox: Outbox | None = None
        self.ended = False

    def send(self, session_id: str, type: str, payload: dict[str, Any], tenant: str | None = None) -> None:  # noqa: A002
        """Send a task, by default to a session of the same tenant, in the transaction of this one.

        Raises ValueError for what is no name or type, TypeError for a payload that is no dict or no JSON.
        """
        to = self.tenant if tenant is None else tenant
        if not (valid_name(to) and valid_name(session_id)):
            raise ValueError("send: a tenant or session is 1 to 200 characters without control characters")
        if not type or not valid_type(type):
            raise ValueError(f"send: a type is a text of 1 to {TYPE_MAX_CHARS} characters")
        if payload.__class__ is not dict:
            raise TypeError(f"send: the payload must be a dict, it is {payload.__class__.__name__}")
        task = orjson.dumps({"tenant": to, "session": session_id, "type": type, "payload": payload})
        self._outbox().tasks.append((to.encode(), task))

    def emit(self, topic: str, value: Any, key: str | bytes | None = None) -> None:
        """Write a record to an existing topic of your own, in the transaction of this task.

        ``value`` is bytes, str, None, or anything that JSON can say. Raises ValueError for what cannot be the name
        of a topic, TypeError for another key or for a value that is no JSON.
        """
        if not _is_topic(topic):
            raise ValueError(f"emit: a topic's name is 1 to 249 of A-Z a-z 0-9 . _ -, this is {topic!r:.100}")
        if key is not None and not isinstance(key, str | bytes):
            raise TypeError(f"emit: the key must be str, bytes or None, it is {key.__class__.__name__}")
        if value is not None and not isinstance(value, bytes):
            value = value.encode() if isinstance(value, str) else orjson.dumps(value)
        self._outbox().records.append((topic, value, key.encode() if isinstance(key, str) else key))

    def end(self) -> None:
        """Delete the session when this task is done; the next task of its name starts a new one."""
        self.ended = True

    def _outbox(self) -> Outbox:
        if self.outbox is None:
            self.outbox = Outbox()
        return self.outbox


def _is_topic(name: object) -> bool:
    return isinstance(name, str) and _TOPIC.fullmatch(name) is not None


@dataclass(frozen=True, slots=True)
class Handler:
    """A registered function and how to call it."""

    type: str
    function: Callable[..., Any]
    blocking: bool
    asynchronous: bool
    state_model: "Model | None"
    payload_model: "Model | None"

    inline: bool = field(init=False)
    """Does it run in the worker's main thread?"""

    typed: bool = field(init=False)
    """Does it ask for models?"""

    def __post_init__(self) -> None:
        object.__setattr__(self, "inline", not (self.blocking or self.asynchronous))
        object.__setattr__(self, "typed", self.state_model is not None or self.payload_model is not None)


_registered: dict[str, Handler] = {}


def handler(type: str, *, blocking: bool = False) -> Callable[[Function], Function]:  # noqa: A002
    """Register a function for a task type; returns the function unchanged.

    ``def`` runs in the worker's main thread, which is the fastest; ``async def`` as an asyncio task;
    ``blocking=True`` in a thread pool. The last two let other sessions go on meanwhile.

    Raises ConfigurationError for a type that begins with :data:`RESERVED`.
    """
    if type.startswith(RESERVED):
        raise ConfigurationError(f"handler {type!r}: types that begin with {RESERVED!r} are Holdfast's own; rename it")

    def register(function: Function) -> Function:
        state_model, payload_model = _models(function)
        asynchronous = inspect.iscoroutinefunction(function)
        if asynchronous and blocking:
            raise ConfigurationError(f"handler {type!r} is async: leave blocking=True away")
        before = _registered.get(type)
        if before is not None and not _same_source(before.function, function):
            raise ConfigurationError(
                f"two handlers for {type!r}: {_place(before.function)} and {_place(function)}; rename one"
            )
        _registered[type] = Handler(type, function, blocking, asynchronous, state_model, payload_model)
        return function

    return register


def _models(function: Callable[..., Any]) -> tuple[Model | None, Model | None]:
    hints = typing.get_type_hints(function)
    hints.pop("return", None)
    parameters = [hints.get(name) for name in inspect.signature(function).parameters]
    if len(parameters) != 2:
        raise ConfigurationError(f"{_place(function)}: a handler takes a session and a payload")
    session, payload = parameters
    inner = typing.get_args(session)
    return _model(inner[0] if inner else None), _model(payload)


def _model(hint: Any) -> Model | None:
    return hint if isinstance(hint, type) and issubclass(hint, BaseModel) else None


def _same_source(one: Callable[..., Any], other: Callable[..., Any]) -> bool:
    """The same definition imported twice (a reload) replaces itself."""
    return (one.__module__, one.__qualname__) == (other.__module__, other.__qualname__)


def _place(function: Callable[..., Any]) -> str:
    return f"{function.__module__}.{function.__qualname__}"


def load(modules: Iterable[str]) -> dict[str, Handler]:
    """Import modules that register handlers, from the Python path, then from the working directory.

    Raises ConfigurationError, naming the module and the reason, when one cannot be imported.
    """
    here = str(Path.cwd())
    if here not in sys.path:
        sys.path.append(here)
    for name in modules:
        try:
            importlib.import_module(name)
        except ConfigurationError:
            raise
        except Exception as error:  # a user's module may fail in any way
            raise ConfigurationError(
                f"handlers module {name!r} cannot be imported ({type(error).__name__}: {error}); see HOLDFAST_HANDLERS"
            ) from error
    return dict(_registered)
