"""Where everything lies below the storage's URL.

::

    objects/{tenant}/{connection}/{message}                       the whole
    parts/{tenant}/{connection}/{message}/{instance}-{number}     segments

Tenant and connection are digests of their names: what a remote calls itself never becomes a path.
"""

import hashlib
from dataclasses import dataclass

COMMON = "common"


def tenant_directory(tenant: str) -> str:
    """The directory of a tenant's files; those of nobody are common."""
    return f"t-{_digest(tenant)[:24]}" if tenant else COMMON


def _digest(name: str) -> str:
    return hashlib.sha256(name.encode()).hexdigest()


@dataclass(frozen=True, slots=True)
class Shelf:
    """The place of one message."""

    tenant: str
    connection: str
    message: int

    @property
    def _place(self) -> str:
        return f"{tenant_directory(self.tenant)}/{_digest(self.connection)[:32]}/{self.message}"

    @property
    def object(self) -> str:
        """The name of the whole."""
        return f"objects/{self._place}"

    @property
    def parts(self) -> str:
        """The directory of its segments."""
        return f"parts/{self._place}"

    def prefix(self, instance: int) -> str:
        """How the names of an instance's segments begin."""
        return f"{self.parts}/{instance}-"
