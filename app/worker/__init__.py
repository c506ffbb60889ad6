"""The worker: the composition root, the only module that knows all parts."""

import asyncio
import logging
from collections.abc import Callable
from typing import Protocol

from app import canary, handlers, rights, topics
from app.errors import HoldfastError
from app.settings import Settings
from app.worker.composition import Worker

log = logging.getLogger(__name__)

__all__ = ["Server", "Worker", "run"]


class Server(Protocol):
    """What serves a worker's HTTP."""

    def start(self) -> str: ...

    def stop(self) -> None: ...


def run(
    settings: Settings,
    name: str,
    *,
    serve: Callable[[Worker], Server],
    ready: Callable[[str], None] = lambda url: None,
) -> int:
    """Run one worker in the foreground until SIGTERM or Ctrl-C; return the exit code.

    Args:
        settings: must name a broker.
        name: stable; the worker's transactional id and its local state follow from it.
        serve: makes the HTTP server of a worker.
        ready: called with the worker's URL when it serves everything that it was given for the first time.
    """
    try:
        worker = Worker(settings, name, handlers.load(settings.handlers) | canary.HANDLERS)
        admin = topics.connect(settings)
        topics.ensure(admin, settings)
        rights.require_worker(admin, settings)
        server = serve(worker)
        try:
            asyncio.run(worker.serve(server.start(), ready))
        finally:
            server.stop()
    except HoldfastError as error:
        log.error("worker %s: %s", name, error)  # noqa: TRY400 - one line: the error says what to do.
        return error.exit_code
    return 0
