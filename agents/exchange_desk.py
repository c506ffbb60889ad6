"""What follows from a manager's decisions: rows of messages, news for both sides, restarts.

A restart is the row and then both queues, record by record. It may be larger than a unit of work, so it is sent a slice
at a time; what happens to the exchange meanwhile is told behind it, or is a part of it.
"""

import logging
import time
from collections.abc import Callable, Iterator
from typing import Any

from agents.exchange_ledger import Ledger
from agents.exchange_mail import Mail
from app.engine.engine import Engine
from app.protocol import exchange_model as model
from app.protocol import exchange_records as records
from app.protocol.exchange_model import Effect, Ended, Open
from tables import exchanges as table

log = logging.getLogger(__name__)

SLICE_RECORDS = 2_000
SLICE_BYTES = 8 * 2**20
"""So much of restarts is sent in a row before the loop looks at something else."""


class Desk:
    """Performs the effects of one manager.

    Args:
        find: chooses a server session for an exchange that has none, a preferred one if it is there.
        forget: told that an exchange is no more.
    """

    def __init__(
        self,
        engine: Engine,
        ledger: Ledger,
        mail: Mail,
        *,
        find: Callable[[bytes, str], None],
        forget: Callable[[bytes], None],
    ) -> None:
        self._engine = engine
        self._ledger = ledger
        self._mail = mail
        self._told: set[bytes] = set()
        self._due: dict[tuple[bytes, str], str] = {}
        self._sending: Iterator[int] | None = None
        self._effects: dict[type, Callable[[bytes, Any, bytes], object]] = {
            model.RestartClient: lambda key, effect, content: self._due.setdefault((key, "client"), effect.cause),
            model.RestartServer: lambda key, effect, content: self._due.setdefault((key, "server"), effect.cause),
            model.TellPositions: lambda key, effect, content: self._told.add(key),
            model.StoreRequest: self._store_request,
            model.StoreResponse: self._store_response,
            model.FailRequest: self._fail_request,
            model.DropResponses: lambda key, effect, content: ledger.drop(key, effect.first, effect.last),
            model.DropQueues: self._drop_queues,
            model.FindServer: lambda key, effect, content: find(key, effect.prefer),
            model.RefuseClient: self._refuse,
            model.FenceClient: self._fence,
            model.CloseClient: self._close_client,
            model.Release: self._release,
            model.StartPrograms: self._start_programs,
            model.Note: self._note,
            model.Forget: lambda key, effect, content: forget(key),
        }

    def perform(self, key: bytes, effect: Effect, content: bytes) -> None:
        """``content`` is the body that came with the event, if there was one."""
        self._effects[type(effect)](key, effect, content)

    def _open(self, key: bytes) -> Open:
        exchange = self._ledger.get(key)
        assert isinstance(exchange, Open)
        return exchange

    # -- messages ---------------------------------------------------------------------------------------------------

    def _store_request(self, key: bytes, effect: model.StoreRequest, content: bytes) -> None:
        row = table.encode_message(content)
        self._ledger.keep(key, effect.number, row)
        if effect.send and (key, "server") not in self._due:
            self._send_to_server(key, self._open(key), effect.number, row)

    def _store_response(self, key: bytes, effect: model.StoreResponse, content: bytes) -> None:
        row = table.encode_message(content)
        self._ledger.keep(key, effect.number, row)
        if (key, "client") not in self._due:
            self._send_to_client(key, self._open(key), effect.number, row)

    def _fail_request(self, key: bytes, effect: model.FailRequest, content: bytes) -> None:
        log.warning("exchange %s: request %d is answered as failed: %s", key.decode(), effect.number, effect.message)
        failed = records.failure(effect.error, effect.message)
        self._store_response(key, model.StoreResponse(effect.number), failed)

    def _send_to_server(self, key: bytes, exchange: Open, number: int, row: bytes) -> None:
        kind = "response" if number <= exchange.answered else "request"
        self._mail.assign(key, records.to_server(kind, exchange.server, exchange.assignment, number, row))

    def _send_to_client(self, key: bytes, exchange: Open, number: int, row: bytes) -> None:
        kind = "response" if number <= exchange.answered else "request"
        self._mail.reply(key, records.to_client(kind, exchange.incarnation, number, row))

    def _drop_queues(self, key: bytes, effect: model.DropQueues, content: bytes) -> None:
        self._ledger.drop(key, *effect.requests)
        self._ledger.drop(key, *effect.responses)

    def _refuse(self, key: bytes, effect: model.RefuseClient, content: bytes) -> None:
        fields = {"op": effect.op, "reason": effect.reason, "expected": effect.expected}
        self._mail.reply(key, records.say("refused", incarnation=effect.incarnation, **fields))

    def _fence(self, key: bytes, effect: model.FenceClient, content: bytes) -> None:
        exchange = self._open(key)
        fields = {"current": exchange.incarnation, "client": exchange.client}
        self._mail.reply(key, records.say("fenced", incarnation=effect.incarnation, **fields))

    def _close_client(self, key: bytes, effect: model.CloseClient, content: bytes) -> None:
        exchange = self._ledger.get(key)
        assert isinstance(exchange, Ended)
        self._mail.reply(key, records.closed(effect.incarnation, exchange))

    def _release(self, key: bytes, effect: model.Release, content: bytes) -> None:
        head = records.server_head("release", effect.server)
        self._mail.assign(key, head + b'"assignment":%d,"reason":"%b"}' % (effect.assignment, effect.reason.encode()))

    def _start_programs(self, key: bytes, effect: model.StartPrograms, content: bytes) -> None:
        exchange = self._open(key)
        self._mail.reply(key, records.say("start", incarnation=exchange.incarnation, ordered=True))
        if exchange.server:
            told = b'"incarnation":%d,"ordered":true}' % exchange.server_incarnation
            self._mail.assign(exchange.server.encode(), records.server_head("start", exchange.server) + told)

    def _note(self, key: bytes, effect: model.Note, content: bytes) -> None:
        now_ms = round(time.time() * 1000)
        self._mail.event(effect.event, now_ms, key, {"exchange": key.decode(), **dict(effect.fields)})

    # -- restarts ---------------------------------------------------------------------------------------------------

    def drain(self) -> None:
        """Send what is due of restarts, a slice at a time."""
        unit = self._engine.unit
        size, left = unit.size + SLICE_BYTES, SLICE_RECORDS
        while left > 0 and unit.size < size and not unit.full:
            if self._sending is None:
                if not self._due:
                    return
                (key, side), cause = next(iter(self._due.items()))
                del self._due[key, side]
                self._sending = self._transmit(key, side, cause)
            sent = next(self._sending, 0)
            left -= sent
            if not sent:
                self._sending = None

    def _transmit(self, key: bytes, side: str, cause: str) -> Iterator[int]:
        """Send one side its restart: the row, then both queues. Yields after each record."""
        exchange = self._ledger.get(key)
        if not isinstance(exchange, Open) or (side == "server" and not exchange.server):
            return
        begun = (exchange.incarnation, exchange.assignment)
        if side == "client":
            self._mail.reply(key, records.client_restart(exchange, cause))
        else:
            self._mail.assign(key, records.server_restart(exchange, cause))
        yield 1
        send = self._send_to_client if side == "client" else self._send_to_server
        for number in range(exchange.acknowledged + 1, exchange.submitted + 1):
            now = self._ledger.get(key)
            if not isinstance(now, Open) or (now.incarnation, now.assignment) != begun:
                return
            row = self._ledger.message(key, number)
            if row is not None:
                send(key, now, number, row)
                yield 1

    @property
    def pending(self) -> bool:
        """Is there more of restarts to be sent?"""
        return self._sending is not None or bool(self._due)

    @property
    def telling(self) -> bool:
        """Does a client wait to be told?"""
        return bool(self._told)

    def tell(self) -> None:
        """Tell the clients how far everything is, once a unit each."""
        for key in self._told:
            exchange = self._ledger.get(key)
            if isinstance(exchange, Open) and (key, "client") not in self._due:
                self._mail.reply(key, records.positions(exchange))
        self._told.clear()

    def show(self, key: bytes, asker: str, *, server: bool = False) -> None:
        """Show an exchange to somebody who takes no part in it: an operator or a host supervisor.

        ``server``: of a server session, which reads assignments.
        """
        put = self._mail.assign if server else self._mail.reply
        exchange = self._ledger.get(key)
        last = exchange.last if isinstance(exchange, Ended) else exchange
        shown: dict[str, Any] = {"asker": asker, "outcome": "unknown"}
        restarts = b""
        if isinstance(last, Open):
            names = ("client", "incarnation", "server", "assignment", "submitted", "answered", "acknowledged")
            shown |= {name: getattr(last, name) for name in names}
            shown["outcome"] = exchange.outcome if isinstance(exchange, Ended) else None
            restarts = b',"client_restart":%b,"server_restart":%b' % (last.client_restart, last.server_restart)
        put(key, b"%b%b}" % (records.say("look", **shown)[:-1], restarts))
        if not isinstance(exchange, Open):
            return
        for number in range(exchange.acknowledged + 1, exchange.submitted + 1):
            row = self._ledger.message(key, number)
            queue = "responses" if number <= exchange.answered else "requests"
            told = records.say("look-message", asker=asker, queue=queue, number=number)
            if row is not None:
                put(key, b"%b,%b" % (told[:-1], row[len(records.HEAD) :]))

    def close(self) -> None:
        self._due.clear()
        self._sending = None
