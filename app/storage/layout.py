"""Where everything lies below the storage's URL.

::

    objects/{tenant}/{connection}/{message}                       the whole
    parts/{tenant}/{connection}/{message}/{instance}-{number}     segments

and, where servers have storages of their own (:mod:`app.storage.servers`), below the one of the tenant's server::

    objects/{tenant}/{connection}/{message}.{epoch}
    parts/{tenant}/{connection}/{message}/{instance}-{number}

Tenant and connection are digests of their names: what a remote calls itself never becomes a path.
"""

import hashlib
import re
from dataclasses import dataclass
from typing import Final

COMMON = "common"

_NAME: Final = re.compile(
    r"(@\d{1,9}/)?(objects|parts)/(t-[0-9a-f]{24}|common)/[0-9a-f]{32}/\d{1,20}(\.\d{1,20})?(/\d{1,20}-\d{1,20})?"
)


def is_name(name: str) -> bool:
    """Could this be the name of something that is stored? Whatever comes from outside must be asked this."""
    return _NAME.fullmatch(name) is not None


def tenant_directory(tenant: str) -> str:
    """The directory of a tenant's files; those of nobody are common."""
    return f"t-{_digest(tenant)[:24]}" if tenant else COMMON


def _digest(name: str) -> str:
    return hashlib.sha256(name.encode()).hexdigest()


def at_server(server: int, epoch: int) -> str:
    """The place of what a tenant gets while it is at home at ``server`` under ``epoch``."""
    return f"{server}.{epoch}"


@dataclass(frozen=True, slots=True)
class Shelf:
    """The place of one message. ``place``: of :func:`at_server`, or empty for the storage of all."""

    tenant: str
    connection: str
    message: int
    place: str = ""

    @property
    def _path(self) -> str:
        return f"{tenant_directory(self.tenant)}/{_digest(self.connection)[:32]}/{self.message}"

    @property
    def _mark(self) -> str:
        return f"@{self.place.partition('.')[0]}/" if self.place else ""

    @property
    def object(self) -> str:
        """The name of the whole."""
        epoch = f".{self.place.partition('.')[2]}" if self.place else ""
        return f"{self._mark}objects/{self._path}{epoch}"

    @property
    def parts(self) -> str:
        """The directory of its segments."""
        return f"{self._mark}parts/{self._path}"

    def prefix(self, instance: int) -> str:
        """How the names of an instance's segments begin."""
        return f"{self.parts}/{instance}-"
