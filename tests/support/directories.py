"""A mover of files: a tenant's files at a server lie in a directory of its epoch."""

import shutil
from pathlib import Path

from app.movers import Page, Share

AT_ONCE = 2


class Directories:
    """See :class:`app.movers.Mover`. ``fails`` names the method that raises, if any does."""

    name = "files"

    def __init__(self, root: Path, fails: str = "") -> None:
        self._root = root
        self.fails = fails

    def of(self, share: Share) -> Path:
        return self._root / str(share.server) / share.tenant / str(share.epoch)

    def files(self, share: Share) -> dict[str, bytes]:
        """What there is."""
        directory = self.of(share)
        return {path.name: path.read_bytes() for path in sorted(directory.iterdir())} if directory.exists() else {}

    def export(self, share: Share, cursor: str) -> Page:
        self._may_fail("export")
        found = [(name, data) for name, data in self.files(share).items() if name > cursor]
        page = found[:AT_ONCE]
        return Page(page, page[-1][0] if len(found) > AT_ONCE else "")

    async def install(self, share: Share, name: str, data: bytes) -> None:
        self._may_fail("install")
        self.of(share).mkdir(parents=True, exist_ok=True)
        (self.of(share) / name).write_bytes(data)

    def discard(self, share: Share) -> None:
        shutil.rmtree(self.of(share), ignore_errors=True)

    def delete(self, share: Share) -> None:
        shutil.rmtree(self.of(share), ignore_errors=True)

    def _may_fail(self, method: str) -> None:
        if self.fails == method:
            raise OSError("the disk is full")
