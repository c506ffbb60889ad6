"""Push and pull files through any worker of a cluster, over lines and workers that break; tus 1.0 on http.client.

::

    with Transfers("localhost:9092") as transfers:
        transfers.push(Path("report.pdf"), "report-7")
        transfers.pull("report-7", Path("copy.pdf"))
"""

import base64
import hashlib
import http.client
import json
import ssl
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from types import TracebackType
from typing import Any, BinaryIO, Final, NamedTuple, Self
from urllib.parse import quote, urlsplit

from app.client.cluster import find_workers
from app.errors import ConfigurationError, HoldfastError, UnavailableError
from app.settings import Settings, load

GIVE_UP_S: Final = 60.0
"""How long nothing may have moved before a transfer is given up; what has come stays."""

_CHUNK: Final = 1 << 20
_TIMEOUT_S: Final = 20.0
_AGAIN: Final = frozenset({0, 409, 423, 429, 460, 500, 502, 503, 504, 507})
_SPELLED: Final = {404: "there is no such upload", 410: "the upload was cancelled, has failed, or has expired"}
_OCTETS: Final = "application/offset+octet-stream"


class _Reply(NamedTuple):
    """``status`` 0: the line broke."""

    status: int
    headers: Mapping[str, str]
    body: bytes


class Transfers:
    """Transfers through whatever workers there are. Not thread-safe: one for each thread.

    Args:
        bootstrap: Kafka's bootstrap servers, where the workers are asked for; empty: those of the settings.
        namespace: as the workers have it; None: that of the settings.
        urls: workers' addresses, instead of asking for them.
        settings: a whole settings object.
        more: any setting of Holdfast by its name.
    """

    def __init__(
        self,
        bootstrap: str = "",
        namespace: str | None = None,
        *,
        urls: tuple[str, ...] = (),
        settings: Settings | None = None,
        **more: object,
    ) -> None:
        self._settings = settings or load(None, {"bootstrap": bootstrap or None, "namespace": namespace, **more})[0]
        self._fixed = urls
        self._urls: list[str] = list(urls)
        self.sent = 0
        """Bytes of messages that were sent, those sent again included."""

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        """Connections end with each request."""

    # -- push -----------------------------------------------------------------------------------------------------

    def push(
        self,
        file: Path,
        connection: str,
        *,
        metadata: Mapping[str, str] | None = None,
        begun: bool = False,
        advance: Callable[[int], None] = lambda offset: None,
    ) -> dict[str, Any]:
        """Push a file, or go on with it; return what :meth:`show` says once it is whole and its SHA-256 is right.

        Raises:
            HoldfastError: it was refused; the line says why.
            UnavailableError: nothing has moved for :data:`GIVE_UP_S`.
        """
        checksum = f"sha256:{_digest(file)}"
        size = file.stat().st_size
        patience = _Patience()
        if not begun:
            self._begin(connection, size, {"checksum": checksum, "message": checksum, **(metadata or {})}, patience)
        while True:
            offset = self._offset(connection, patience)
            advance(offset)
            patience.moved(offset)
            if offset >= size and (found := self._whole(connection, checksum, patience)) is not None:
                return found
            if offset < size:
                self._send(file, connection, offset, size, advance)

    def _begin(self, connection: str, size: int, metadata: Mapping[str, str], patience: "_Patience") -> None:
        pairs = [f"{key} {base64.b64encode(value.encode()).decode()}" for key, value in metadata.items() if value]
        headers = {
            "Upload-Length": str(size),
            "Upload-Metadata": ",".join(pairs),
            "Holdfast-Connection": quote(connection, safe=""),
        }
        while True:
            reply = self._ask("POST", "/files/", headers)
            if reply.status == 201:
                return
            if reply.status == 409:
                raise HoldfastError(f"{_message(reply)}: finish it with its own file, or `holdfast transfer cancel` it")
            patience.wait(reply)

    def _offset(self, connection: str, patience: "_Patience") -> int:
        while True:
            reply = self._ask("HEAD", _path(connection))
            if reply.status == 200 and "Upload-Offset" in reply.headers:
                return int(reply.headers["Upload-Offset"])
            patience.wait(reply)

    def _send(self, file: Path, connection: str, offset: int, size: int, advance: Callable[[int], None]) -> None:
        """Send the rest in one request; whatever happens, the offset tells what came of it."""
        headers = {"Upload-Offset": str(offset), "Content-Type": _OCTETS, "Content-Length": str(size - offset)}
        with file.open("rb") as source:
            source.seek(offset)
            self._ask("PATCH", _path(connection), headers, _Telling(source, offset, advance, self._count))

    def _count(self, length: int) -> None:
        self.sent += length

    def _whole(self, connection: str, checksum: str, patience: "_Patience") -> dict[str, Any] | None:
        found = self.show(connection)
        if found is not None and found["state"] == "done":
            if found["checksum"] not in ("", checksum):
                raise HoldfastError(f"connection {connection!r} has another message already: choose another ID")
            return found
        patience.wait(_Reply(503, {}, b'{"message": "the message is being made whole"}'))
        return None

    # -- pull -----------------------------------------------------------------------------------------------------

    def pull(
        self, connection: str, file: Path, advance: Callable[[int, int], None] = lambda offset, total: None
    ) -> dict[str, Any]:
        """Pull a whole message into a file, going on where an earlier attempt broke, and acknowledge it.

        Raises:
            HoldfastError: there is no such message, or what came has another checksum than it.
            UnavailableError: nothing has moved for :data:`GIVE_UP_S`.
        """
        part = file.with_name(f"{file.name}.part")
        patience = _Patience()
        while True:
            offset = part.stat().st_size if part.exists() else 0
            patience.moved(offset)
            reply = self._fetch(connection, part, offset, advance)
            size = int(reply.headers.get("X-Size", "-1"))
            if reply.status in (200, 206, 416) and part.exists() and part.stat().st_size == size:
                break
            if reply.status not in (200, 206):
                patience.wait(reply)
        checksum = f"sha256:{_digest(part)}"
        body = json.dumps({"offset": size, "checksum": checksum}).encode()
        while (reply := self._ask("POST", f"{_path(connection)}/ack", {}, body)).status != 200:
            if reply.status == 460:
                part.unlink()
                raise HoldfastError(f"what came of {connection!r} is not what was stored: pull it again")
            patience.wait(reply)
        part.replace(file)
        return {"connection": connection, "size": size, "checksum": checksum}

    def _fetch(self, connection: str, part: Path, offset: int, advance: Callable[[int, int], None]) -> _Reply:
        """Append what a worker gives; the reply's header X-Size is the size of the whole."""
        try:
            line = self._connect()
            try:
                line.request("GET", _path(connection), headers=self._headers({"Range": f"bytes={offset}-"}))
                reply = line.getresponse()
                if reply.status not in (200, 206):
                    body = reply.read()
                    size = json.loads(body).get("size", -1) if reply.status == 416 else -1
                    return _Reply(reply.status, {"X-Size": str(size)}, body)
                total = int(
                    (reply.getheader("Content-Range") or f"/{reply.getheader('Content-Length')}").rpartition("/")[2]
                )
                with part.open("ab" if reply.status == 206 else "wb") as out:
                    while data := reply.read(_CHUNK):
                        out.write(data)
                        offset += len(data)
                        advance(offset, total)
                return _Reply(reply.status, {"X-Size": str(total)}, b"")
            finally:
                line.close()
        except (OSError, http.client.HTTPException, ValueError) as error:
            self._next()
            return _Reply(0, {}, str(error).encode())

    # -- the rest -------------------------------------------------------------------------------------------------

    def show(self, connection: str) -> dict[str, Any] | None:
        """A connection as ``/api/transfers`` tells it, or None where there is none."""
        patience = _Patience()
        while (reply := self._ask("GET", f"/api/transfers/{quote(connection, safe='')}")).status not in (200, 404):
            patience.wait(reply)
        found: dict[str, Any] | None = json.loads(reply.body) if reply.status == 200 else None
        return found

    def cancel(self, connection: str) -> None:
        """Cancel a push, or delete what came of it."""
        patience = _Patience()
        while (reply := self._ask("DELETE", _path(connection))).status not in (204, 410):
            patience.wait(reply)

    def rebalance(self, worker: str) -> dict[str, Any]:
        """Let all live connections of a worker go."""
        urls = {found.name: found.url for found in find_workers(self._settings)}
        if worker not in urls:
            raise HoldfastError(f"there is no worker {worker!r}: `holdfast workers list` names them")
        self._urls = [urls[worker]]
        reply = self._ask("POST", "/api/transfers/rebalance")
        if reply.status != 200:
            raise HoldfastError(f"worker {worker}: {_message(reply)}")
        moved: dict[str, Any] = json.loads(reply.body)
        return moved

    # -- lines ----------------------------------------------------------------------------------------------------

    def _connect(self) -> http.client.HTTPConnection:
        if not self._urls:
            self._urls = list(self._fixed) or [worker.url for worker in find_workers(self._settings)]
        if not self._urls:
            raise ConnectionRefusedError("no worker is in the group")
        parts = urlsplit(self._urls[0])
        assert parts.hostname is not None
        if parts.scheme == "https":
            context = ssl.create_default_context()
            return http.client.HTTPSConnection(parts.hostname, parts.port, timeout=_TIMEOUT_S, context=context)
        return http.client.HTTPConnection(parts.hostname, parts.port, timeout=_TIMEOUT_S)

    def _next(self) -> None:
        """Another worker, or whoever is there now."""
        self._urls = self._urls[1:]

    def _headers(self, more: Mapping[str, str]) -> dict[str, str]:
        token = self._settings.token.get_secret_value()
        return {"Tus-Resumable": "1.0.0", **({"Authorization": f"Bearer {token}"} if token else {}), **more}

    def _ask(
        self, method: str, path: str, headers: Mapping[str, str] | None = None, body: "bytes | _Telling | None" = None
    ) -> _Reply:
        try:
            line = self._connect()
            try:
                line.request(method, path, body, self._headers(headers or {}))
                reply = line.getresponse()
                answered = _Reply(reply.status, dict(reply.getheaders()), reply.read())
            finally:
                line.close()
        except (OSError, http.client.HTTPException) as error:
            self._next()
            return _Reply(0, {}, str(error).encode())
        if answered.status == 401:
            raise ConfigurationError("the workers want a token: set HOLDFAST_TOKEN")
        return answered


class _Telling:
    """A file that is being sent, and who is told how far it is."""

    def __init__(
        self, source: BinaryIO, offset: int, advance: Callable[[int], None], count: Callable[[int], None]
    ) -> None:
        self._source = source
        self._offset = offset
        self._advance = advance
        self._count = count

    def read(self, _size: int = -1) -> bytes:
        """What http.client sends next."""
        data = self._source.read(_CHUNK)
        self._count(len(data))
        self._offset += len(data)
        self._advance(self._offset)
        return data


class _Patience:
    """Waits between attempts, and gives up when nothing has moved for long."""

    def __init__(self) -> None:
        self._offset = -1
        self._since = time.monotonic()
        self._pause = 0.05

    def moved(self, offset: int) -> None:
        if offset != self._offset:
            self._offset, self._since, self._pause = offset, time.monotonic(), 0.05

    def wait(self, reply: _Reply) -> None:
        if reply.status not in _AGAIN:
            raise HoldfastError(_message(reply))
        if time.monotonic() - self._since > GIVE_UP_S:
            raise UnavailableError(f"nothing moves ({_message(reply)})", retry_after_s=10)
        time.sleep(self._pause)
        self._pause = min(1.0, 2 * self._pause)


def _message(reply: _Reply) -> str:
    try:
        return str(json.loads(reply.body)["message"])
    except (ValueError, KeyError, TypeError):
        # An answer to HEAD has no body.
        if reply.status in _SPELLED:
            return _SPELLED[reply.status]
        return f"HTTP status {reply.status}" if reply.status else f"no answer: {reply.body.decode(errors='replace')}"


def _path(connection: str) -> str:
    return f"/files/{quote(connection, safe='')}"


def _digest(file: Path) -> str:
    with file.open("rb") as source:
        return hashlib.file_digest(source, "sha256").hexdigest()
