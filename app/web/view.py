"""What the web side needs to know about a worker and its cluster; a worker fits in without an import."""

from typing import Any, Protocol

from app.protocol.forwarding import Decision
from app.web.exchanges import ExchangeView


class Location(Protocol):
    """Where a session lives now. ``worker`` and ``url`` are None while nobody hosts its server."""

    @property
    def server(self) -> int:
        """Its number."""

    @property
    def worker(self) -> str | None:
        """The name of its host."""

    @property
    def url(self) -> str | None:
        """The address of its host."""

    @property
    def backup_order(self) -> list[int]:
        """All servers, best first."""


class ClusterView(ExchangeView, Protocol):
    """A worker as the web side sees it. Every call is quick and may come from any thread."""

    @property
    def name(self) -> str:
        """The worker's name."""

    def ready(self) -> tuple[bool, str]:
        """Restored and serving? And why not."""

    def healthy(self) -> tuple[bool, str]:
        """False when there is something to do and nothing moves. And why not."""

    def status(self) -> dict[str, Any]:
        """The cluster as this worker sees it: the object of ``/api/status``."""

    def others(self) -> list[str]:
        """The addresses of the other workers."""

    def tenants(self) -> list[dict[str, Any]]:
        """Tenants that this worker knows of by what it hosts: ``tenant``, ``home``, ``state``, ``epoch``."""

    def locate_tenant(self, tenant: str) -> Location:
        """Compute which worker decides about a tenant; ``server`` is the tenant's home."""

    def read_tenant(self, tenant: str) -> dict[str, Any]:
        """Read a tenant's row on its router's host: where it lives, what moves, what was moved.

        Raises:
            UnavailableError: the router is not here, or is still being restored.
        """

    def servers(self) -> list[dict[str, Any]]:
        """The servers as this worker sees them; what only a server's host knows is None elsewhere."""

    def knows(self, server: int) -> bool:
        """Is there a server of this number?"""

    def host_of(self, server: int) -> tuple[str | None, str | None]:
        """Name and address of the worker that hosts a server; None while nobody does."""

    def locate(self, tenant: str, session: str, primary: int | None = None) -> Location:
        """Compute where a session lives; it need not exist. ``primary``: its home, as somebody believes."""

    def receive(self, tenant: str, session: str, server: int, hops: int) -> Decision:
        """What a server that is hosted here does with a request that has made so many hops.

        Raises:
            UnavailableError: the server is not here, or is still being restored.
        """

    def read_session(self, tenant: str, session: str, server: int) -> dict[str, Any] | None:
        """Read a session's rows at a server that is hosted here; None: no such session.

        ``state``, ``sequence``, ``waiting``, ``backup_order``, and ``home`` and ``why`` it lives where it does.

        Raises:
            UnavailableError: the server is not here, or is still being restored.
        """
