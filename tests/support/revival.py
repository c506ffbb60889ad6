"""Workers that are started again whenever they die."""

import threading
from collections.abc import Iterable, Iterator
from contextlib import contextmanager

from tests.support.cluster import Workers


@contextmanager
def revived(workers: Workers, names: Iterable[str], point: str = "") -> Iterator[list[str]]:
    """Whoever dies is started again; with a point, every worker dies when it first passes it. Yields who has died."""
    died: list[str] = []
    stop = threading.Event()
    current = {name: workers.start(name, HOLDFAST_CRASH_AT=point) for name in names}
    for worker in current.values():
        worker.wait_ready()

    def watch() -> None:
        while not stop.wait(0.05):
            for name, worker in current.items():
                if not worker.running:
                    died.append(name)
                    current[name] = workers.start(name)

    thread = threading.Thread(target=watch, name="revive")
    thread.start()
    try:
        yield died
    finally:
        stop.set()
        thread.join()
