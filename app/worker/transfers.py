"""Transfers on a worker: what its owners share, and what its web server asks them."""

from collections.abc import Callable, Iterator
from concurrent.futures import Executor, Future
from typing import Any

from agents.transfers import Owner, TransferContext
from app.engine.engine import Engine
from app.engine.places import Place, PlaceKind
from app.protocol.conveyance import State, Terms
from app.protocol.murmur2 import partition_of
from app.settings import Settings
from app.storage import Storage
from app.topics import Names
from tables import transfers as table

KIND = "transfers"


def place_kind(settings: Settings, names: Names) -> PlaceKind:
    """The owners of connections: partition r of ``transfers`` and of its table."""
    return PlaceKind(KIND, settings.routers, (names.transfers,), {table.NAME: names.changelog(table.NAME)})


def terms_of(settings: Settings) -> Terms:
    """What the settings say to the core."""
    return Terms(
        lease_ms=round(settings.lease * 1000),
        expires_ms=round(settings.upload_expires * 1000),
        size_max=settings.max_upload_bytes,
        remote_max=settings.uploads_per_remote,
        total_max=max(1, settings.uploads_max // settings.routers),
        attempts_max=settings.max_attempts,
    )


def owners(
    engine: Engine, settings: Settings, names: Names, worker: str, storage: Storage, pool: Executor
) -> Callable[[Place], Owner]:
    """What makes the owner of a place that opens."""
    context = TransferContext(
        engine, names, worker, terms_of(settings), storage, settings.storage, pool, settings.max_record_bytes
    )
    return lambda place: Owner(context, place)


class Desk:
    """Where the web server asks the owners that live on this worker. Calls may come from any thread."""

    def __init__(self, name: str, routers: int, engine: Callable[[], Engine | None]) -> None:
        self.name = name
        self._routers = routers
        self._engine = engine

    def call(self, connection: str, fields: dict[str, Any]) -> "Future[dict[str, Any]] | None":
        """Ask the owner of a connection; None: it is not here. The answer comes with the commit that it is part of.

        The future's exception may be an UnavailableError: the place moves, ask again.
        """
        place = self._place(connection)
        owner = place.resident if place is not None else None
        engine = self._engine()
        if engine is None or not isinstance(owner, Owner):
            return None
        future: Future[dict[str, Any]] = Future()
        engine.post(lambda: owner.call(connection, fields, future))
        return future

    def _place(self, connection: str) -> Place | None:
        engine = self._engine()
        if engine is None:
            return None
        place = engine.places.all[f"{KIND}-{partition_of(connection.encode(), self._routers)}"]
        return place if place.running else None

    def workers(self) -> dict[str, str]:
        """The URLs of all workers of the group, by name, as this one knows them."""
        engine = self._engine()
        return {name: entry[0] for name, entry in engine.plan.workers.items()} if engine is not None else {}

    def rows(self) -> Iterator[tuple[str, State]]:
        """The committed rows of all owners on this worker."""
        engine = self._engine()
        for place in list(engine.places.running()) if engine is not None else ():
            if place.kind.name == KIND:
                for key, row in place.rows[table.NAME].store.scan(b""):
                    yield key.decode(), table.decode(row)
