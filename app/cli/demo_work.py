"""What goes on beside the demo's traffic: an upload, and an exchange; each in a thread of its own."""

import hashlib
import json
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import IO, Any, Final, Generic, TypeVar

from app.cli.worker_process import child_environment
from app.client import ServerSession
from app.client.transfers import Transfers
from app.errors import HoldfastError
from app.settings import Settings

UPLOAD_BYTES: Final = 24 << 20
UPLOAD_ID: Final = "demo-upload"
EXCHANGE: Final = "demo-exchange"
REQUESTS: Final = 30
KILL_AFTER: Final = 4
"""The client is killed when it has so many answers."""

_PAUSE_S: Final = 0.2
_JOIN_S: Final = 5.0
_BLOCK: Final = 1 << 20

_T = TypeVar("_T")


class Beside(Generic[_T]):
    """A call in a thread of its own that ends with the program, however that ends."""

    def __init__(self, call: Callable[[], _T], name: str) -> None:
        self._call = call
        self._found: list[_T] = []
        self._error: Exception | None = None
        self._thread = threading.Thread(target=self._run, name=name, daemon=True)
        self._thread.start()

    def _run(self) -> None:
        try:
            self._found.append(self._call())
        except Exception as error:  # noqa: BLE001 - whoever asks for the result gets it.
            self._error = error

    @property
    def done(self) -> bool:
        """Whether :meth:`result` answers at once."""
        return not self._thread.is_alive()

    def result(self) -> _T:
        """Wait for the call; return what it returned or raise what it raised."""
        self._thread.join()
        if self._error is not None:
            raise self._error
        return self._found[0]

    def join(self, timeout: float = _JOIN_S) -> None:
        """Wait for its end, but not for ever."""
        self._thread.join(timeout)


class Upload:
    """A file that is sent slowly, first through the first of the workers, and read back.

    Attributes:
        offset: how much has been sent.
    """

    def __init__(self, settings: Settings, urls: Sequence[str], directory: Path) -> None:
        self.offset = 0
        self._transfers = Transfers(urls=tuple(urls), settings=settings)
        self._file = directory / "upload.bin"
        self._copy = directory / "upload.copy"
        self._halt = threading.Event()
        self._call = Beside(self._run, "upload")

    @property
    def share(self) -> float:
        """How much of it has been sent, 0 to 1."""
        return self.offset / UPLOAD_BYTES

    @property
    def done(self) -> bool:
        """Whether it has ended, well or not."""
        return self._call.done

    def result(self) -> str:
        """Wait for the end, and return the checksum of what came back; raises HoldfastError if it went wrong."""
        return self._call.result()

    def stop(self) -> None:
        """Give it up."""
        self._halt.set()
        self._call.join()

    def _run(self) -> str:
        _make(self._file, UPLOAD_BYTES)
        self._transfers.push(self._file, UPLOAD_ID, advance=self._advance)
        self._transfers.pull(UPLOAD_ID, self._copy)
        sent, came = (_digest(path) for path in (self._file, self._copy))
        if sent != came:
            raise HoldfastError(f"{UPLOAD_ID} came back with the checksum {came}, not {sent}")
        return came

    def _advance(self, offset: int) -> None:
        self.offset = offset
        # As slow as a line that is worth resuming.
        if self._halt.wait(_PAUSE_S):
            raise HoldfastError("the upload was given up")


class Exchange:
    """A client that is killed in the middle and started again, and a server session that answers it.

    Attributes:
        answers: how many the client has.
        resumed_at: with how many the second client began; None before that.
    """

    def __init__(self, settings: Settings) -> None:
        self.answers = 0
        self.resumed_at: int | None = None
        self._settings = settings
        self._program: subprocess.Popen[str] | None = None
        self._halt = threading.Event()
        self._server = ServerSession(server="demo-computer", perform=_perform, settings=settings)
        self._serving = Beside(self._server.run, "exchange-server")
        self._call = Beside(self._run, "exchange-client")

    @property
    def done(self) -> bool:
        """Whether it has ended, well or not."""
        return self._call.done

    def result(self) -> int:
        """Wait for the end and return the sum of the answers; raises HoldfastError if it is not what it must be."""
        return self._call.result()

    def stop(self) -> None:
        """End both sides."""
        self._halt.set()
        if self._program is not None:
            self._program.kill()
        self._call.join()
        self._server.stop()
        self._serving.join()

    def _run(self) -> int:
        if self._client(kill_after=KILL_AFTER) is not None:
            raise HoldfastError("the client of the exchange ended before it was killed")
        told = self._client(kill_after=None)
        right = sum(number * number for number in range(1, REQUESTS + 1))
        if told is None or told != right:
            raise HoldfastError(f"the answers of the exchange sum up to {told}, not {right}")
        return told

    def _client(self, kill_after: int | None) -> int | None:
        """Run the client; return the sum that it ends with, or None if it was killed."""
        if self._halt.is_set():
            raise HoldfastError("the exchange was given up")
        # The thread that starts it is the parent that it ends with.
        self._program = subprocess.Popen(
            [sys.executable, "-P", "-m", "app.cli.demo_client", EXCHANGE, str(REQUESTS)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
            env=child_environment(self._settings),
            start_new_session=True,
        )
        try:
            return self._listen(self._program.stdout, kill_after)
        finally:
            self._program.kill()
            self._program.communicate()

    def _listen(self, lines: IO[str] | None, kill_after: int | None) -> int | None:
        for line in lines or ():
            told: dict[str, Any] = json.loads(line)
            if told.get("done"):
                return int(told["sum"])
            if "began_at" in told:
                self.resumed_at = told["began_at"] if kill_after is None else None
                continue
            self.answers = told["answers"]
            if kill_after is not None and self.answers >= kill_after:
                return None
        raise HoldfastError(f"the client of the exchange ended at answer {self.answers}")


def _perform(body: dict[str, Any], restart: Any) -> tuple[Any, Any]:
    """What the server computer does: it takes its time, and counts in its restart data."""
    time.sleep(_PAUSE_S)
    return {"square": body["number"] ** 2}, {"performed": (restart or {"performed": 0})["performed"] + 1}


def _make(file: Path, size: int) -> None:
    """Bytes that are the same in every run and compress badly."""
    block = b"".join(hashlib.sha256(number.to_bytes(4, "big")).digest() for number in range(_BLOCK // 32))
    with file.open("wb") as out:
        for number in range(size // _BLOCK):
            out.write(number.to_bytes(8, "big") + block[8:])


def _digest(file: Path) -> str:
    with file.open("rb") as source:
        return hashlib.file_digest(source, "sha256").hexdigest()
