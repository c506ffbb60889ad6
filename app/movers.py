"""Data of a tenant that lies outside its sessions: what moves it when its tenant moves.

    from app.movers import Mover, Page, Share, register

    class Notes:
        name = "notes"

        def export(self, share: Share, cursor: str) -> Page: ...
        def install(self, share: Share, name: str, data: bytes) -> None: ...
        def discard(self, share: Share) -> None: ...
        def delete(self, share: Share) -> None: ...

    register(Notes())

Movers are registered by the modules of ``HANDLERS``, the same ones at every worker. With one that is registered every
migration is *offline*: the tenant's tasks are kept back while its data is copied, because nobody would tell what
changes meanwhile. Each method is a plain function, which runs in the thread pool, or ``async``. Any of them may run
more than once for the same data, and must leave the same behind. One that raises ends the migration where it began.

What is exported goes through Kafka, in parts smaller than a record: for large files export where they are, not what
they hold.
"""

import asyncio
import inspect
from collections.abc import Callable, Sequence
from concurrent.futures import Executor
from typing import Any, Final, NamedTuple, Protocol

from app.errors import ConfigurationError

TABLE_OF: Final = "m:"
"""Begins the name under which a mover's parts travel."""


class Share(NamedTuple):
    """A tenant's data at one server under one epoch. Parts are installed under an epoch to come, beside what lives."""

    tenant: str
    server: int
    epoch: int


class Page(NamedTuple):
    """Some parts, by name, and where to go on; an empty ``cursor``: that was all."""

    parts: Sequence[tuple[str, bytes]]
    cursor: str


class Mover(Protocol):
    """What moves one kind of data."""

    @property
    def name(self) -> str:
        """Its own, the same at every worker."""

    def export(self, share: Share, cursor: str) -> Any:
        """Return the next :class:`Page` at the source, which stands still; ``cursor`` is empty at first."""

    def install(self, share: Share, name: str, data: bytes) -> Any:
        """Put a part in its place at the target; nobody uses it before the tenant is at home there."""

    def discard(self, share: Share) -> Any:
        """Remove what was installed at the target, because the migration has failed."""

    def delete(self, share: Share) -> Any:
        """Remove the data at the source, because the tenant has moved."""


_registered: dict[str, Mover] = {}


def register(mover: Mover) -> None:
    """Have it take part in every migration.

    Raises ConfigurationError when another class has registered the name.
    """
    before = _registered.get(mover.name)
    if before is not None and type(before).__qualname__ != type(mover).__qualname__:
        raise ConfigurationError(f"two movers named {mover.name!r}: rename one")
    _registered[mover.name] = mover


def registered() -> dict[str, Mover]:
    """All of them, by name, in the order in which they take part."""
    return {name: _registered[name] for name in sorted(_registered)}


def start(pool: Executor, function: Callable[..., Any], *arguments: Any) -> "asyncio.Future[Any]":
    """Run a mover's method beside the loop."""
    if inspect.iscoroutinefunction(function):
        running: asyncio.Future[Any] = asyncio.ensure_future(function(*arguments))
        return running
    return asyncio.get_running_loop().run_in_executor(pool, function, *arguments)
