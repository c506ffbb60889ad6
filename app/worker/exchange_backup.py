"""How far the backups of this worker's managers are behind, asked from them again and again while it matters."""

import json
import logging
import threading
import urllib.error
import urllib.request
from collections.abc import Callable
from typing import Any, Final

from app.engine.engine import Engine
from app.worker import exchange_view
from tables import exchanges as table

log = logging.getLogger(__name__)

ASK_S: Final = 0.05
_TIMEOUT_S: Final = 1.0
# The workers are this cluster's own: a proxy of the environment knows nothing of them.
_OPENER: Final = urllib.request.build_opener(urllib.request.ProxyHandler({}))


class BackupLag(threading.Thread):
    """Asks the workers that follow managers hosted here what the newest change is that they have.

    Args:
        engine: of this worker.
        token: of HTTP; may be empty.
    """

    def __init__(self, engine: Callable[[], Engine], token: str) -> None:
        super().__init__(name="backup-lag", daemon=True)
        self._engine = engine
        self._token = token
        self._marks: dict[int, int] = {}
        self._stopping = threading.Event()

    def lag(self, manager: int) -> float | None:
        """Seconds between the newest committed change of a manager and the newest that a backup is known to have.

        Both are times of this worker's clock. None where no backup has answered.
        """
        place = self._engine().places.all[f"{exchange_view.KIND}-{manager}"]
        rows, backup = place.rows.get(table.NAME), self._marks.get(manager)
        ours = exchange_view.mark(rows) if rows is not None else None
        if backup is None:
            return None
        return 0.0 if ours is None else max(0, ours - backup) / 1000

    def stop(self) -> None:
        self._stopping.set()

    def run(self) -> None:
        while not self._stopping.wait(ASK_S):
            try:
                self._marks = self._ask()
            except (OSError, ValueError, KeyError) as error:
                # A plan that is just changing, or a worker that has just gone: known again in a moment.
                log.debug("asking for the marks of backups: %r", error)
                self._marks = {}

    def _ask(self) -> dict[int, int]:
        engine = self._engine()
        found: dict[int, int] = {}
        workers = engine.plan.workers
        mine = [entry for entry in exchange_view.managers(engine) if entry["worker"] == engine.options.name]
        urls = {workers[name][0] for entry in mine for name in entry["backups"] if name in workers}
        for told in map(self._get, urls):
            for number, entry in told["marks"].items():
                if not entry["hosts"]:
                    manager = int(number)
                    found[manager] = max(found.get(manager, 0), entry["at_ms"] or 0)
        return found

    def _get(self, url: str) -> dict[str, Any]:
        headers = {"Authorization": f"Bearer {self._token}"} if self._token else {}
        request = urllib.request.Request(f"{url}/api/exchanges?local=marks", headers=headers)  # noqa: S310
        with _OPENER.open(request, timeout=_TIMEOUT_S) as reply:
            told: dict[str, Any] = json.load(reply)
            return told
