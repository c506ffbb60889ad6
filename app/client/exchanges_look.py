"""Looking at exchanges, and ordering their restart or their end, without taking part in them; on Kafka alone."""

import threading
import time
import uuid
from collections.abc import Callable
from typing import Any, Final, Self

import orjson

from app.client.exchanges_link import Link, Record, unanswered
from app.errors import HoldfastError
from app.protocol import exchange_records as records
from app.settings import Settings
from app.topics import Names

_AGAIN_S: Final = 2.0


class Watcher:
    """Reads what managers tell the clients, the server sessions, or everybody: a context manager.

    Args:
        settings: where the cluster is.
        topic: ``replies``, ``assignments`` or ``events``, without the namespace.
        heard: takes the key and the record of whatever comes, in a thread of its own.
    """

    def __init__(
        self, settings: Settings, topic: str, heard: Callable[[str, Record], None] = lambda key, record: None
    ) -> None:
        names = Names(settings.namespace)
        self._settings = settings
        self._heard = heard
        self._changed = threading.Condition()
        self._told: list[tuple[str, Record]] = []
        self._asker = ""
        self._error: HoldfastError | None = None
        out = names.responses if topic == "assignments" else names.requests
        self._link = Link(settings, out, names.topic(topic), heard=self._take, beat=lambda: None, failed=self._fail)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._link.close()

    def _take(self, key: bytes | None, value: bytes) -> None:
        try:
            record = orjson.loads(value)
        except orjson.JSONDecodeError:
            return
        if not isinstance(record, dict):
            return
        name = (key or b"").decode(errors="replace")
        with self._changed:
            if self._asker and self._asker in (record.get("asker"), record.get("id")):
                self._told.append((name, record))
                self._changed.notify_all()
        self._heard(name, record)

    def _fail(self, error: HoldfastError) -> None:
        with self._changed:
            self._error = error
            self._changed.notify_all()

    def _ask(self, send: Callable[[str], None], enough: Callable[[], bool], timeout: float) -> None:
        """Ask, and again while there is no answer: a manager may just be changing its host."""
        until = time.monotonic() + timeout
        with self._changed:
            while True:
                self._asker = uuid.uuid4().hex
                self._told = []
                send(self._asker)
                left = until - time.monotonic()
                if self._changed.wait_for(lambda: enough() or self._error is not None, max(0.0, min(left, _AGAIN_S))):
                    break
                if left <= 0:
                    raise unanswered(self._settings, timeout, "looking")
            if self._error is not None:
                raise self._error

    def _ends(self) -> int:
        return sum(record.get("type") == "look-end" for _, record in self._told)

    def watch(self, exchange: str) -> None:
        """Begin to read what is said about an exchange."""
        self._link.listen(self._link.partition_of(exchange.encode()))

    def watch_all(self) -> None:
        """Begin to read what is said about any."""
        self._link.listen(*range(self._link.managers))

    def exchange(self, name: str, timeout: float) -> dict[str, Any]:
        """An exchange as its manager has it: positions, restart data of both sides, both queues.

        ``outcome`` is None while it goes on, ``unknown`` if there is none.
        """
        key = name.encode()
        partition = self._link.partition_of(key)
        self.watch(name)
        self._ask(
            lambda asker: self._link.send(key, records.say("look", asker=asker), partition),
            lambda: self._ends() == 1,
            timeout,
        )
        return assembled(name, self._told)

    def server(self, name: str, timeout: float) -> list[dict[str, Any]]:
        """The exchanges that a server session has, each as :meth:`exchange` tells it."""
        self.watch_all()
        key = name.encode()

        def send(asker: str) -> None:
            for partition in range(self._link.managers):
                self._link.send(key, records.say("look", asker=asker, server=name), partition)

        self._ask(send, lambda: self._ends() == self._link.managers, timeout)
        held = dict.fromkeys(found for found, record in self._told if record["type"] == "look")
        return [assembled(found, self._told) for found in held]

    def order(self, kind: str, exchange: str, timeout: float, **fields: object) -> dict[str, Any]:
        """Order the ``restart`` or the ``cancel`` of an exchange; return the final event. Watches ``events``."""
        self._link.listen(0)
        key = exchange.encode()
        partition = self._link.partition_of(key)
        self._ask(
            lambda asker: self._link.send(key, records.say(kind, id=asker, **fields), partition),
            lambda: any(record.get("final") for _, record in self._told),
            timeout,
        )
        return next(record for _, record in self._told if record.get("final"))


def assembled(name: str, told: list[tuple[str, Record]]) -> dict[str, Any]:
    """One exchange, from the records in which it was told."""
    mine = [record for key, record in told if key == name]
    looks = [record for record in mine if record["type"] == "look"]
    shown: dict[str, Any] = {"exchange": name, **(looks[-1] if looks else {"outcome": "unknown"})}
    for field in ("v", "type", "asker"):
        shown.pop(field, None)
    for queue in ("requests", "responses"):
        shown[queue] = [
            {field: record[field] for field in ("number", "body", "error") if field in record}
            for record in mine
            if record["type"] == "look-message" and record["queue"] == queue
        ]
    return shown
