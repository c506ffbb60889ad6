"""An S3 on this machine, and what stands in front of it when it is to fail."""

import http.client
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import boto3
import pytest
from fsspec import get_filesystem_class
from moto.server import ThreadedMotoServer

BUCKET = "holdfast"
_REFUSED = b"<Error><Code>AccessDenied</Code><Message>Access Denied</Message></Error>"


@dataclass
class Faults:
    """What happens to requests. ``refuse``: every one of this method; ``slow_s``: every PUT takes so long."""

    refuse: str = ""
    slow_s: float = 0.0
    delayed: int = 0


@contextmanager
def s3(patch: pytest.MonkeyPatch, faults: Faults | None = None) -> Iterator[dict[str, str]]:
    """A server with an empty bucket; yields the environment variables that lead to it, which are set here as well."""
    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    before = _Before((host, port), faults) if faults is not None else None
    variables = {
        "AWS_ENDPOINT_URL": f"http://{host}:{port if before is None else before.server_address[1]}",
        "AWS_ACCESS_KEY_ID": "key",
        "AWS_SECRET_ACCESS_KEY": "secret",
        "AWS_DEFAULT_REGION": "us-east-1",
    }
    for name, value in variables.items():
        patch.setenv(name, value)
    # One that was made before leads to another server.
    get_filesystem_class("s3").clear_instance_cache()  # type: ignore[no-untyped-call]
    try:
        boto3.client("s3").create_bucket(Bucket=BUCKET)  # type: ignore[no-untyped-call]
        yield variables
    finally:
        if before is not None:
            before.shutdown()
            before.server_close()
        server.stop()


class _Passing(BaseHTTPRequestHandler):
    """Passes requests on, or does not."""

    protocol_version = "HTTP/1.1"
    server: "_Before"

    def log_message(self, *_: Any) -> None:
        """Nothing."""

    def answer(self) -> None:
        faults = self.server.faults
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        if self.command == faults.refuse:
            self._reply(403, {"Content-Type": "application/xml"}, _REFUSED)
            return
        if faults.slow_s and self.command == "PUT":
            faults.delayed += 1
            time.sleep(faults.slow_s)
        line = http.client.HTTPConnection(*self.server.behind, timeout=30)
        try:
            line.request(self.command, self.path, body, dict(self.headers))
            reply = line.getresponse()
            self._reply(reply.status, dict(reply.getheaders()), reply.read())
        finally:
            line.close()

    def _reply(self, status: int, headers: dict[str, str], body: bytes) -> None:
        self.send_response(status)
        for name, value in headers.items():
            if name.lower() not in ("content-length", "transfer-encoding", "connection"):
                self.send_header(name, value)
        bodiless = self.command == "HEAD"
        self.send_header("Content-Length", headers.get("Content-Length", "0") if bodiless else str(len(body)))
        self.end_headers()
        if not bodiless:
            self.wfile.write(body)


for _method in ("GET", "HEAD", "PUT", "POST", "DELETE"):
    setattr(_Passing, f"do_{_method}", _Passing.answer)


class _Before(ThreadingHTTPServer):
    """Stands in front of a server."""

    daemon_threads = True

    def __init__(self, behind: tuple[str, int], faults: Faults) -> None:
        super().__init__(("127.0.0.1", 0), _Passing)
        self.behind = behind
        self.faults = faults
        threading.Thread(target=self.serve_forever, daemon=True).start()
