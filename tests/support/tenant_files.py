"""Files of a tenant in tests: pushed, pulled, and looked for in the storages of servers."""

import base64
import os
from pathlib import Path
from typing import Final

from app.settings import Settings
from app.storage.servers import ServerStorages
from app.storage.tenant_files import TenantFiles
from app.worker.transfers import files_of_tenants, storage_of
from tests.support.cluster import Worker, wait_for
from tests.support.transfers import ask, create, patch

SIZE: Final = 300_000


class Files:
    """Files that were pushed for a tenant, by their paths."""

    def __init__(self, settings: Settings, tenant: str) -> None:
        self._storages = storage_of(settings)
        assert isinstance(self._storages, ServerStorages)
        assert isinstance(files_of_tenants(self._storages, {})["files"], TenantFiles)
        self.tenant = tenant
        self.whole: dict[str, bytes] = {}

    def begin(self, worker: Worker) -> tuple[str, bytes]:
        """Announce one, and push its first half."""
        data = os.urandom(SIZE)
        tenant = base64.b64encode(self.tenant.encode()).decode()
        path = create(worker.url, SIZE, Upload_Metadata=f"tenant {tenant}")
        assert patch(worker.url, path, 0, data[: SIZE // 2]).status == 204
        return path, data

    def end(self, worker: Worker, path: str, data: bytes) -> None:
        """Push the other half, where the upload stands."""
        assert ask(worker.url, "HEAD", path).headers["Upload-Offset"] == str(SIZE // 2)
        assert patch(worker.url, path, SIZE // 2, data[SIZE // 2 :]).status == 204
        self.whole[path] = data

    def push(self, worker: Worker, count: int) -> None:
        """Some of them, whole."""
        for _ in range(count):
            self.end(worker, *self.begin(worker))

    def wrong(self, worker: Worker) -> list[str]:
        """Those that cannot be pulled as they were pushed."""
        return [path for path, data in self.whole.items() if _pulled(worker, path) != data]

    def at(self, server: int, directory: str = "objects") -> list[str]:
        """What lies in a server's storage, each name with its epoch."""
        assert isinstance(self._storages, ServerStorages)
        return [file.name.rpartition("/")[2] for file in self._storages.at(server).below(directory)]

    def lie_at(self, server: int, epoch: int, *, servers: int, besides: int = 0) -> None:
        """Wait until all of them lie there and nowhere else, but for some that lie ``besides``."""

        def tidy() -> bool:
            here = [name for name in self.at(server) if name.endswith(f".{epoch}")]
            everywhere = sum(len(self.at(number)) + len(self.at(number, "parts")) for number in range(servers))
            return len(here) == len(self.whole) - besides and everywhere == len(self.whole)

        wait_for(tidy, 60, f"all files are at server {server} under epoch {epoch}, and nothing is left behind")


def _pulled(worker: Worker, path: str) -> bytes:
    try:
        reply = ask(worker.url, "GET", path)
    except OSError as error:
        return repr(error).encode()
    return reply.body if reply.status == 200 else repr(reply).encode()


def break_storage(directory: Path, server: int) -> Path:
    """Let the storage of a server refuse copies; delete what is returned to mend it."""
    place = directory / f"at-{server}" / "parts"
    place.parent.mkdir(parents=True, exist_ok=True)
    place.write_text("no directory")
    return place
