"""The mover of a tenant's files (see :mod:`app.movers`): from the storage of one server to that of another.

Only names and sizes go through Kafka. The target copies each file from the source's storage to a name of the epoch to
come, and compares the bytes. Who reads needs no switch: see :mod:`app.storage.servers`.

All that is written or deleted here belongs to one epoch of one tenant, which ends once and for good. So it does no
harm if a host that was thought dead does it again, however late.
"""

import re
from collections.abc import Iterator
from typing import Final

import orjson

from app.errors import StorageError
from app.movers import Page, Share
from app.storage.base import StoredFile
from app.storage.copying import copy
from app.storage.layout import tenant_directory
from app.storage.servers import ServerStorages

NAME: Final = "files"
AT_ONCE: Final = 500

_FILE: Final = re.compile(r"[0-9a-f]{32}/\d{1,20}")
_STAGED: Final = re.compile(r"parts/[^/]+/[^/]+/\d+\.(\d+)/[^/]+")


class TenantFiles:
    """See :class:`app.movers.Mover`. A part is a file: its connection and message, and where it is."""

    name = NAME

    def __init__(self, storages: ServerStorages) -> None:
        self._storages = storages

    def export(self, share: Share, cursor: str) -> Page:
        """List files."""
        found = sorted((name, file.size) for name, epoch, file in self._files(share) if epoch == share.epoch)
        page = [pair for pair in found if pair[0] > cursor][:AT_ONCE]
        where = {"server": share.server, "epoch": share.epoch}
        parts = [(name, orjson.dumps({**where, "size": size})) for name, size in page]
        return Page(parts, page[-1][0] if page and page[-1] != found[-1] else "")

    def install(self, share: Share, name: str, data: bytes) -> None:
        """Copy a file, under the epoch to come.

        Raises:
            StorageError: one of the storages refuses.
            ValueError: the part is no file.
        """
        told = orjson.loads(data)
        if _FILE.fullmatch(name) is None:
            raise ValueError(f"{name!r} is no file")
        source, here = self._storages.at(int(told["server"])), self._storages.at(share.server)
        original = f"{_directory(share)}/{name}.{int(told['epoch'])}"
        size = int(told["size"])
        try:
            copy(source, original, here, f"{_directory(share)}/{name}.{share.epoch}", size)
        except StorageError:
            # It was deleted meanwhile; or this comes late, and the file has moved long since.
            if source.size(original) is not None:
                raise

    def discard(self, share: Share) -> None:
        """Delete copies of a migration that has failed, and what was to become copies."""
        here = self._storages.at(share.server)
        here.delete([file.name for _, epoch, file in self._files(share) if epoch == share.epoch])
        staged = here.below(f"parts/{tenant_directory(share.tenant)}")
        mine = [f.name for f in staged if (found := _STAGED.fullmatch(f.name)) and int(found[1]) == share.epoch]
        here.delete(mine)

    def delete(self, share: Share) -> None:
        """Delete the files that have a copy of a later epoch; one that became whole since they were listed has none."""
        later = {
            name
            for server in self._storages.servers
            for name, epoch, _ in self._files(Share(share.tenant, server, share.epoch))
            if epoch > share.epoch
        }
        mine = [file.name for name, epoch, file in self._files(share) if epoch == share.epoch and name in later]
        self._storages.at(share.server).delete(mine)

    def _files(self, share: Share) -> Iterator[tuple[str, int, StoredFile]]:
        """The tenant's files at a server, as connection and message, with their epochs."""
        directory = _directory(share)
        for file in self._storages.at(share.server).below(directory):
            name, _, epoch = file.name.removeprefix(f"{directory}/").partition(".")
            if epoch.isdecimal():
                yield name, int(epoch), file


def _directory(share: Share) -> str:
    return f"objects/{tenant_directory(share.tenant)}"
