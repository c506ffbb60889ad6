"""An HTTP server in a thread of its own, so that it answers while handlers keep the worker's thread busy."""

import asyncio
import logging
import socket
import threading
from typing import Final

from aiohttp import web

from app.errors import ConfigurationError, HoldfastError
from app.settings import Settings
from app.web.api import Api, Metrics
from app.web.files import Files
from app.web.gateway import Gateway, KafkaGateway
from app.web.orders import Desk
from app.web.view import ClusterView

_LOGGER: Final = logging.getLogger(__name__)

_ANY_ADDRESS: Final = frozenset({"0.0.0.0", "::"})  # noqa: S104 - compared with, not bound to.
_SHUTDOWN_S: Final = 3.0
# Bytes that wait in memory for a handler, for each connection; twice as many at most.
LOOPBACK: Final = frozenset({"127.0.0.1", "::1", "localhost"})
"""Addresses that only this machine reaches."""

_READ_BYTES: Final = 1 << 16


class ServerThread:
    """Serves an aiohttp application until it is stopped.

    Args:
        application: made in the caller's thread, run in this one's.
        host: the address to listen on.
        port: 0 takes a free one.
        name: of the thread.
    """

    def __init__(self, application: web.Application, host: str, port: int, *, name: str = "web") -> None:
        self._application = application
        self._host = host
        self._port = port
        self._name = name
        self._loop: asyncio.AbstractEventLoop | None = None
        self._stop: asyncio.Event | None = None
        self._started = threading.Event()
        self._failure: HoldfastError | None = None
        self._thread: threading.Thread | None = None

    @property
    def port(self) -> int:
        """The port that is listened on; known once it runs."""
        return self._port

    @property
    def url(self) -> str:
        """How other programs reach it: the name of this machine, if it listens on all addresses."""
        host = socket.gethostname() if self._host in _ANY_ADDRESS else self._host
        return f"http://[{host}]:{self._port}" if ":" in host else f"http://{host}:{self._port}"

    def start(self) -> str:
        """Listen, and return the URL.

        Raises:
            ConfigurationError: the address cannot be listened on.
        """
        self._thread = threading.Thread(target=self._run, name=self._name, daemon=True)
        self._thread.start()
        self._started.wait()
        if self._failure is not None:
            self._thread.join()
            self._thread = None
            raise self._failure
        return self.url

    def stop(self) -> None:
        """Give running requests a moment, then end; do nothing if it does not run."""
        thread, self._thread = self._thread, None
        if thread is None or self._loop is None or self._stop is None:
            return
        self._loop.call_soon_threadsafe(self._stop.set)
        thread.join()

    def _run(self) -> None:
        try:
            asyncio.run(self._serve())
        except HoldfastError as error:
            self._failure = error
        finally:
            self._started.set()

    async def _serve(self) -> None:
        self._loop, self._stop = asyncio.get_running_loop(), asyncio.Event()
        runner = web.AppRunner(
            self._application,
            access_log=None,
            shutdown_timeout=_SHUTDOWN_S,
            handler_cancellation=True,
            read_bufsize=_READ_BYTES,
        )
        await runner.setup()
        try:
            await self._listen(runner)
            self._started.set()
            await self._stop.wait()
        finally:
            await runner.cleanup()

    async def _listen(self, runner: web.AppRunner) -> None:
        try:
            await web.TCPSite(runner, self._host, self._port).start()
        except OSError as error:
            raise ConfigurationError(
                f"cannot listen on {self._host}:{self._port} ({error.strerror or error}): "
                "choose another HOLDFAST_HOST or HOLDFAST_PORT (--port)"
            ) from error
        self._port = int(runner.addresses[0][1])


class WebServer:
    """The HTTP interface of one worker.

    Args:
        view: the worker; its calls come from the server's thread.
        settings: ``host``, ``port``, ``advertised_url``, ``token``, ``max_record_bytes``, and the cluster.
        gateway: where posted tasks go; default: to Kafka.
        metrics: what ``/metrics`` answers.
        files: transfers; None: there are none.
        desk: where commands go; default: to Kafka.
    """

    def __init__(
        self,
        view: ClusterView,
        settings: Settings,
        *,
        gateway: Gateway | None = None,
        metrics: Metrics | None = None,
        files: Files | None = None,
        desk: Desk | None = None,
    ) -> None:
        application = Api(view, settings, gateway or KafkaGateway(settings), metrics, desk).application()
        if files is not None:
            files.attach(application)
        self._advertised = settings.advertised_url
        self._open = not settings.token.get_secret_value() and settings.host not in LOOPBACK
        self._server = ServerThread(application, settings.host, settings.port)

    @property
    def port(self) -> int:
        """The port that is listened on."""
        return self._server.port

    def start(self) -> str:
        """Listen, and return the URL by which workers and clients reach this one.

        Raises:
            ConfigurationError: the address cannot be listened on.
        """
        own = self._server.start()
        _LOGGER.info("serving %s", own)
        if self._open:
            _LOGGER.warning("anybody who reaches %s may do everything: set HOLDFAST_TOKEN", own)
        return self._advertised or own

    def stop(self) -> None:
        """Give running requests a moment, then end."""
        self._server.stop()
