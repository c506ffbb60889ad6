"""Transfers on a worker: what its owners share, and what its web server asks them."""

from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import Executor, Future
from typing import Any

from agents.transfers import Owner, TransferContext
from app.engine.engine import Engine
from app.engine.places import Place, PlaceKind
from app.errors import ConfigurationError
from app.movers import Mover
from app.protocol.conveyance import State, Terms
from app.protocol.murmur2 import partition_of
from app.protocol.placement import home_of
from app.settings import Settings
from app.storage import Storage, open_storage, tenant_files
from app.storage.layout import at_server
from app.storage.servers import SERVER, ServerStorages, url_of
from app.storage.tenant_files import TenantFiles
from app.topics import Names
from app.worker.tenants import placed
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


def storage_of(settings: Settings) -> Storage:
    """Where the settings have transfers stored.

    Raises:
        ConfigurationError: nobody knows the protocol, or it is not set up.
    """
    common, each = open_storage(settings.storage), settings.server_storage
    if not each:
        return common
    return ServerStorages(
        common, [open_storage(each.replace(SERVER, str(number))) for number in range(settings.servers)]
    )


def files_of_tenants(storage: Storage, registered: Mapping[str, Mover]) -> dict[str, Mover]:
    """The movers that take part in migrations: where servers have storages of their own, that of files as well.

    Raises:
        ConfigurationError: another one has its name.
    """
    if not isinstance(storage, ServerStorages):
        return dict(registered)
    if tenant_files.NAME in registered:
        raise ConfigurationError(
            f"rename the mover {tenant_files.NAME!r}: that of HOLDFAST_SERVER_STORAGE has the name"
        )
    made = {**registered, tenant_files.NAME: TenantFiles(storage)}
    return {name: made[name] for name in sorted(made)}


def owners(
    engine: Engine, settings: Settings, names: Names, worker: str, storage: Storage, pool: Executor
) -> Callable[[Place], Owner]:
    """What makes the owner of a place that opens."""

    def place_of(tenant: str) -> str:
        home, epoch = placed(engine, tenant)
        return at_server(home_of(tenant.encode(), home, settings.servers), epoch)

    context = TransferContext(
        engine,
        names,
        worker,
        terms_of(settings),
        storage,
        lambda name: url_of(name, settings.storage, settings.server_storage),
        pool,
        settings.max_record_bytes,
        place_of if settings.server_storage else lambda tenant: "",
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
        engine.submit(lambda: owner.call(connection, fields, future))
        return future

    def _place(self, connection: str) -> Place | None:
        engine = self._engine()
        if engine is None:
            return None
        place = engine.places.all[f"{KIND}-{partition_of(connection.encode(), self._routers)}"]
        # During a join it is asked when that has ended.
        return place if place.resident is not None else None

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
