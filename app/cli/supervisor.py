"""A cluster on this machine: an embedded broker, the topics, and workers as child processes.

For `holdfast up`, the demo and the tests.
"""

import fcntl
import os
import signal
import threading
import time
from pathlib import Path
from types import TracebackType
from typing import IO, Final, Self

from app import topics
from app.cli.worker_process import Change, OnChange, WorkerProcess
from app.engine.embedded_kafka import EmbeddedKafka
from app.errors import ConfigurationError, HoldfastError
from app.settings import ENV_PREFIX, Settings

READY_TIMEOUT_S: Final = 60.0
STOP_TIMEOUT_S: Final = 15.0


class Cluster:
    """A running cluster; stopped at the end of the context, or by :meth:`stop`.

    Args:
        settings: with an empty ``bootstrap`` an embedded broker is started in the state directory.
        workers: how many, named w1, w2, ...
        restart: start workers that die again.
        on_change: called from other threads, one call at a time.

    Raises:
        ConfigurationError: the state directory is unusable or another cluster's.
    """

    def __init__(
        self,
        settings: Settings,
        workers: int = 3,
        *,
        restart: bool = False,
        on_change: OnChange | None = None,
    ) -> None:
        # Children run elsewhere perhaps, but with the same files.
        self.settings = settings.model_copy(update={"state_dir": settings.state_dir.absolute()})
        self.kafka: EmbeddedKafka | None = None
        self._count = workers
        self._restart = restart
        self._on_change = on_change
        self._telling = threading.Lock()
        self._workers: dict[str, WorkerProcess] = {}
        self._lock: IO[str] | None = None

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.stop()

    @property
    def bootstrap(self) -> str:
        """The broker's address; known after the start."""
        return self.settings.bootstrap

    @property
    def workers(self) -> list[WorkerProcess]:
        """All workers of this cluster, dead ones too, in the order in which they were first started."""
        return list(self._workers.values())

    def worker(self, name: str) -> WorkerProcess:
        """Return one worker; HoldfastError if there is none of that name."""
        try:
            return self._workers[name]
        except KeyError:
            raise HoldfastError(f"there is no worker {name}: {', '.join(self._workers)}") from None

    def start(self, timeout: float = READY_TIMEOUT_S) -> None:
        """Start broker and workers, create the topics, and return when every worker is ready.

        Raises:
            ConfigurationError: the state directory, the topics or a setting prevents it.
            BrokerUnreachableError: no broker answers.
            HoldfastError: a worker ended or was not ready in time.
        """
        self._lock = lock_state_directory(self.settings.state_dir)
        try:
            if not self.settings.bootstrap:
                self.kafka = EmbeddedKafka(self.settings.state_dir)
                self.kafka.start()
                self.settings = self.settings.model_copy(update={"bootstrap": self.kafka.bootstrap})
            topics.ensure(topics.connect(self.settings), self.settings)
            for number in range(1, self._count + 1):
                self._add(f"w{number}")
            deadline = time.monotonic() + timeout
            for worker in self.workers:
                worker.wait_until_ready(max(0.0, deadline - time.monotonic()))
        except BaseException:
            self.stop()
            raise

    def stop(self, timeout: float = STOP_TIMEOUT_S) -> None:
        """Stop the workers in order, then the broker; what does not end in time is killed."""
        for worker in self.workers:
            worker.ask_to_stop()
        deadline = time.monotonic() + timeout
        for worker in self.workers:
            worker.wait_until_stopped(max(0.1, deadline - time.monotonic()))
        if self.kafka is not None:
            self.kafka.stop()
        if self._lock is not None:
            self._lock.close()
            self._lock = None

    def start_worker(self, name: str, *, timeout: float | None = READY_TIMEOUT_S) -> WorkerProcess:
        """Start a worker, a new one or one that has ended, and wait until it is ready; None does not wait.

        Raises:
            HoldfastError: it runs already, it ended, or it was not ready in time.
        """
        known = self._workers.get(name)
        if known is not None and known.alive:
            raise HoldfastError(f"worker {name} runs already: stop or kill it first")
        if known is not None:
            known.ask_to_stop()
            known.wait_until_stopped(STOP_TIMEOUT_S)
        worker = self._add(name)
        if timeout is not None:
            worker.wait_until_ready(timeout)
        return worker

    def kill(self, name: str) -> int:
        """End a worker as a power cut would (SIGKILL); return its process number."""
        worker = self.worker(name)
        process = worker.process
        worker.signal(signal.SIGKILL)
        process.wait()
        return process.pid

    def freeze(self, name: str) -> None:
        """Stop a worker's time (SIGSTOP)."""
        self.worker(name).signal(signal.SIGSTOP)

    def resume(self, name: str) -> None:
        """Let a frozen worker go on (SIGCONT)."""
        self.worker(name).signal(signal.SIGCONT)

    def stop_worker(self, name: str, timeout: float = STOP_TIMEOUT_S) -> None:
        """Let a worker leave in order (SIGTERM); it is not started again."""
        worker = self.worker(name)
        worker.ask_to_stop()
        worker.wait_until_stopped(timeout)

    def urls(self) -> list[str]:
        """Where the live workers serve."""
        return [worker.url for worker in self.workers if worker.state == "ready" and worker.alive]

    def _add(self, name: str) -> WorkerProcess:
        worker = WorkerProcess(name, self.settings, restart=self._restart, on_change=self._tell)
        self._workers[name] = worker
        worker.start()
        return worker

    def _tell(self, change: Change) -> None:
        if self._on_change is not None:
            with self._telling:
                self._on_change(change)


def lock_state_directory(directory: Path) -> IO[str]:
    """Make the directory and take it; closing the file, or the end of the process, lets go of it.

    Raises:
        ConfigurationError: it is unusable, or another cluster's.
    """
    path = directory / "up.lock"
    try:
        directory.mkdir(parents=True, exist_ok=True)
        file = path.open("a+")
    except OSError as error:
        raise ConfigurationError(
            f"the state directory {directory} cannot be used ({error.strerror or error}): "
            f"mend that, or set {ENV_PREFIX}STATE_DIR to another"
        ) from error
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        file.seek(0)
        owner = file.read().strip() or "unknown"
        file.close()
        raise ConfigurationError(
            f"{directory} is in use by process {owner}: stop it, or set {ENV_PREFIX}STATE_DIR to another"
        ) from None
    file.truncate(0)
    file.write(f"{os.getpid()}\n")
    file.flush()
    return file
