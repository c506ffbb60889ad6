"""What comes by `commands`: operators' orders, checked and handed to their tenants, and answers of servers."""

import logging
import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import orjson
from pydantic import ValidationError

from agents.announcing import Announcer
from agents.steward import Steward
from app.errors import PeerProtocolError
from app.protocol.control import (
    Drain,
    Drained,
    Installed,
    Measured,
    Progress,
    Ready,
    Refused,
    decode_control,
    encode,
    is_order,
)
from app.protocol.markers import Closed, Leaving, Look, View, ViewClosed
from app.protocol.migration import AbortOrdered, Event
from app.protocol.moves import Announce, Order
from app.protocol.murmur2 import partition_of
from app.protocol.views import FailOrdered, ForgetOrdered, RestoreOrdered
from app.records import NAME_MAX_CHARS, Command, valid_id

if TYPE_CHECKING:
    from agents.router import RouterContext

log = logging.getLogger(__name__)

SERVER_COMMANDS_AT = 0
"""The router that takes the commands about servers."""


class Orders:
    """The commands of one router.

    Args:
        feed: hands an event to the core of a tenant.
        adopt: takes a word of the steward.
        steward: who decides about servers, if he is hosted here.
    """

    def __init__(
        self,
        context: "RouterContext",
        number: int,
        *,
        announcer: Announcer,
        feed: Callable[[bytes, Event], None],
        adopt: Callable[[View | ViewClosed], None],
        steward: Steward | None,
    ) -> None:
        self._context = context
        self._number = number
        self._announcer = announcer
        self._feed = feed
        self._adopt = adopt
        self._steward = steward

    def take(self, message: Any) -> None:
        """One record of `commands`."""
        key, value = message.key(), message.value()
        now_ms = int(time.time() * 1000)
        if is_order(value):
            self._order(key, value, f"commands/{self._number}/{message.offset()}", now_ms)
            return
        try:
            said = decode_control(key, value)
        except PeerProtocolError as error:
            log.warning("commands/%d offset %d: %s", self._number, message.offset(), error)
            return
        match said:
            case Ready() | Progress() | Installed() | Refused() | Measured():
                self._feed(said.tenant.encode(), said)
            case Drained():
                self._drained(said, now_ms)
            case View() | ViewClosed():
                self._adopt(said)
            case Closed() | Leaving() | Look() if self._steward is not None:
                self._steward.take(said)

    # -- orders ---------------------------------------------------------------------------------------------------

    def _order(self, key: bytes | None, value: bytes | None, place: str, now_ms: int) -> None:
        try:
            command = Command.model_validate_json(value or b"")
        except ValidationError as error:
            self._bad(key, value, place, error, now_ms)
            return
        known = command.id or place
        subject = command.tenant or command.worker or f"server-{command.server}"
        if self._announcer.repeat(subject.encode(), known, now_ms):
            return
        routers = self._context.routers
        right = SERVER_COMMANDS_AT if command.tenant is None else partition_of(command.tenant.encode(), routers)
        if right != self._number:
            again = orjson.dumps({**orjson.loads(value or b""), "id": known})
            about = None if command.tenant is None else subject.encode()
            self._context.engine.unit.send(self._context.names.commands, again, about, partition=right)
        elif command.tenant is None:
            self._about_servers(command, known, now_ms)
        else:
            self._feed(command.tenant.encode(), self._event(command, known))

    def _event(self, command: Command, known: str) -> Order | AbortOrdered:
        if command.command == "abort-migration":
            return AbortOrdered(known)
        return Order(
            id=known,
            to=command.to,
            timeout_ms=self._context.timeout_ms if command.timeout is None else _ms(command.timeout),
            delay_ms=self._context.delay_ms,
            max_pause_ms=None if command.max_pause is None else _ms(command.max_pause),
            offline=command.offline or self._context.offline,
            from_backups=command.from_backups,
            dry_run=command.dry_run,
            undo=command.command == "undo-migration",
        )

    def _bad(self, key: bytes | None, value: bytes | None, place: str, error: ValidationError, now_ms: int) -> None:
        """Say what is wrong with a command, under its own id if it has one."""
        try:
            found = orjson.loads(value or b"")
        except orjson.JSONDecodeError:
            found = {}
        given = found if type(found) is dict else {}
        first = error.errors(include_url=False)[0]
        where = ".".join(str(part) for part in first["loc"])
        fields = {"reason": "bad-command", "message": f"{where}: {first['msg']}" if where else str(first["msg"])}
        tenant = given.get("tenant")
        if type(tenant) is str and len(tenant) <= NAME_MAX_CHARS:
            fields = {"tenant": tenant, **fields}
        known = given.get("id")
        command = known if type(known) is str and valid_id(known) else place
        subject = key or command.encode(errors="replace")
        if not self._announcer.repeat(subject, command, now_ms):
            self._announcer.say(subject, Announce("command-rejected", command, True, fields), now_ms)

    # -- servers --------------------------------------------------------------------------------------------------

    def _about_servers(self, command: Command, known: str, now_ms: int) -> None:
        server, worker = command.server, command.worker
        assert self._steward is not None
        match command.command:
            case "fail-server" if server is not None:
                self._steward.step(FailOrdered(known, server))
            case "restore-server" if server is not None:
                self._steward.step(RestoreOrdered(known, server))
            case "forget-worker" if worker is not None:
                self._steward.step(ForgetOrdered(known, worker))
            case _ if server is not None and 0 <= server < self._context.servers:
                key, value = encode(Drain(known, server, self._number))
                where = self._context.engine.unit.output(self._context.names.work, server)
                where.append((key, value))
            case _:
                self._reject(server or 0, known, "unknown-server", now_ms)

    def _reject(self, server: int, command: str, reason: str, now_ms: int) -> None:
        fields = {"server": server, "reason": reason}
        subject = b"server-%d" % server
        self._announcer.say(subject, Announce("command-rejected", command, True, fields), now_ms)

    def _drained(self, said: Drained, now_ms: int) -> None:
        """A server has got rid of its tenants; it may say so more than once."""
        fields = {"server": said.server, "moved": said.moved, "failed": list(said.failed)}
        done = Announce("server-drained", said.id, True, fields)
        if not self._announcer.knows(said.id, now_ms):
            self._announcer.say(b"server-%d" % said.server, done, now_ms)


def _ms(seconds: float) -> int:
    return max(1, round(seconds * 1000))
