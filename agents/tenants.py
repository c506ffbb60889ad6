"""What one server knows of tenants that have moved or move, and its part in their migrations.

The decisions are :mod:`app.protocol.tenancy`'s. A tenant that was never moved is not here: its rows lie under epoch 0.
Nothing here costs anything for a task: only a session that is loaded asks under which epoch its row lies, and the
sessions of a tenant are forgotten whenever that changes. Copying and cleaning up are :mod:`agents.copying`'s.
"""

import logging
import time
from collections.abc import Callable
from typing import Protocol

from agents.cells import ServerContext
from app.engine.crashpoints import passing
from app.engine.fetch import Batch
from app.engine.places import Place
from app.engine.table import Rows
from app.errors import LocalProtocolError, PeerProtocolError
from app.movers import TABLE_OF
from app.protocol import chunks, control, shipping, staging, tenancy
from app.protocol.chunks import SESSION, Chunk, HandOff, Item
from app.protocol.control import Complete, Control, Measure, Received
from app.protocol.markers import HandedOff
from app.protocol.placement import home_of
from app.protocol.tenancy import UNMOVED, Tenancy
from tables import handoffs, sessions, waiting

log = logging.getLogger(__name__)

HOMES_MAX = 50_000
"""Tenants that were never moved, whose home is remembered."""


class Sessions(Protocol):
    """The sessions in a server's memory, as moves see them."""

    def freeze(self, leaves: Callable[[str, str], bool]) -> None:
        """Write all rows of these sessions that are to be written, then forget them."""

    def forget(self, tenant: str) -> None:
        """Drop its cells, and stop what runs of it."""

    def reopen(self, prefix: bytes) -> None:
        """Take up what waits under these rows."""


class Views(Protocol):
    """The views that a server has read."""

    def view_of(self, tenant: str) -> int:
        """The last view of the tenant's router that was read here."""

    def take(self, said: HandedOff) -> None:
        """Another server has sent all that a view moves here."""

    def take_rows(self, part: HandOff, size: int) -> None:
        """Rows that a view moves here; ``size`` in bytes."""


class Tenants:
    """The tenancies of one server.

    Args:
        sessions: what the server has in memory.
        stirred: called when there may be something to do in the background.
    """

    def __init__(self, context: ServerContext, place: Place, memory: Sessions, stirred: Callable[[], None]) -> None:
        self._context = context
        self._server = place.number
        self._memory = memory
        self.stirred = stirred
        self.views: Views
        self._rows = place.rows[handoffs.NAME]
        self._sessions = place.rows[sessions.NAME]
        self._waiting = place.rows[waiting.NAME]
        self._homes: dict[str, int] = {}
        self._known: dict[str, Tenancy] = {
            key[len(handoffs.TENANT) :].decode(): handoffs.decode(row) for key, row in self._rows.scan(handoffs.TENANT)
        }
        self.marked: dict[str, set[str]] = {}
        """Tenants whose sessions are to be marked when they change, and those that are."""
        for tenant, known in self._known.items():
            if known.shipping is not None:
                prefix = handoffs.marks_of(tenant, known.shipping.shipment.epoch)
                self.marked[tenant] = {key[len(prefix) :].decode() for key, _ in self._rows.scan(prefix)}
        self.asked = self._keys(handoffs.ASKED)
        self.sweeps = self._keys(handoffs.SWEEPS)
        """The rows that say what is to be done in the background, in their order."""
        if self.marked or self.asked or self.sweeps:
            stirred()

    def _keys(self, prefixes: tuple[bytes, ...]) -> dict[bytes, None]:
        return {key: None for prefix in prefixes for key, _ in self._rows.scan(prefix)}

    # -- what is known --------------------------------------------------------------------------------------------

    def known(self, tenant: str) -> Tenancy:
        return self._known.get(tenant, UNMOVED)

    def shipping(self) -> list[tuple[str, shipping.Shipping]]:
        """Tenants that are being copied from here."""
        return [(tenant, state) for tenant in self.marked if (state := self.known(tenant).shipping) is not None]

    def epoch(self, tenant: str) -> int:
        """Under which the tenant's sessions are served here.

        Raises:
            LocalProtocolError: the tenant is frozen; no router may have sent a task of it here.
        """
        known = self._known.get(tenant)
        if known is None:
            return 0
        if known.frozen:
            raise LocalProtocolError(f"server {self._server} was sent a task of {tenant!r}, which is frozen")
        return known.epoch

    def home(self, tenant: str) -> int:
        """Where the tenant is at home, as far as this server's stream has told."""
        known = self._known.get(tenant)
        if known is not None and known.home is not None:
            return known.home
        home = self._homes.get(tenant)
        if home is None:
            if len(self._homes) >= HOMES_MAX:
                self._homes.clear()
            home = self._homes[tenant] = home_of(tenant.encode(), None, self._context.servers)
        return home

    def serves(self, tenant: str) -> bool:
        """Are sessions of the tenant that live here performed? Where they live, views say."""
        known = self._known.get(tenant)
        return known is None or not known.frozen

    def live(self, tenant: str, epoch: int) -> bool:
        """Are rows of the tenant under this epoch those that are served?"""
        return self.serves(tenant) and self.known(tenant).epoch == epoch

    # -- steps ----------------------------------------------------------------------------------------------------

    def feed(self, tenant: str, event: tenancy.Event) -> None:
        """Step the tenancy, keep it, perform what follows."""
        before = self.known(tenant)
        decided = tenancy.step(before, event, tenant=tenant, server=self._server, view=self.views.view_of(tenant))
        after = decided.tenancy
        if any(isinstance(effect, shipping.Freeze) for effect in decided.effects):
            self._memory.freeze(lambda name, _: name == tenant)
            passing("move-cut")
        elif after.epoch != before.epoch:
            self._memory.forget(tenant)
        if after != before:
            self._known[tenant] = after
            self._rows.put(handoffs.tenant_key(tenant), handoffs.encode(after))
        if after.shipping is None:
            if self.marked.pop(tenant, None) is not None and before.shipping is not None and self._context.movers:
                self._rows.delete(handoffs.export_key(tenant, before.shipping.shipment.epoch))
        elif before.shipping is None:
            self.marked[tenant] = set()
        for effect in decided.effects:
            self._perform(tenant, before, after, effect)
        self.stirred()

    def _perform(self, tenant: str, before: Tenancy, known: Tenancy, effect: tenancy.Effect) -> None:
        names = self._context.names
        match effect:
            case shipping.Freeze():
                # Done before the tenancy was kept. The tenant stands still from here on: what else has come can wait.
                self._context.engine.hurry()
            case shipping.Tell(record):
                assert known.shipping is not None
                self.write(names.commands, known.shipping.shipment.router, record)
            case shipping.Finish(record):
                assert known.shipping is not None
                self.write(names.handoffs, known.shipping.shipment.target, record)
                self._context.engine.hurry()
                passing("move-complete")
            case shipping.Sweep(epoch):
                moved = b"true" if epoch <= before.epoch else b"false"
                self._add_chore(handoffs.sweep_key(tenant, epoch), b'{"moved":%b}' % moved)
            case shipping.Unmark(epoch):
                self._add_chore(handoffs.unmark_key(tenant, epoch), b"{}")
            case shipping.Thaw(epoch) | staging.GoLive(epoch):
                self._memory.forget(tenant)
                self._memory.reopen(sessions.key_of(tenant, epoch, ""))
                passing("move-lives")
            case staging.Answer(router, record):
                self.write(names.commands, router, record)
                self._context.engine.hurry()
                passing("move-installed")
            case staging.Acknowledge(source, record):
                self.write(names.handoffs, source, record)

    def write(self, topic: str, partition: int, record: Control) -> None:
        """Say something to a router or another server."""
        key, value = control.encode(record)
        self._context.engine.unit.output(topic, partition).append((key, value))

    # -- chores ---------------------------------------------------------------------------------------------------

    def measure(self, asked: Measure) -> None:
        """Count what a tenant has here; the answer comes when that is done."""
        _, value = control.encode(asked)
        self._add_chore(handoffs.measure_key(asked.tenant, asked.id), value)

    def _add_chore(self, key: bytes, row: bytes) -> None:
        self._rows.put(key, row)
        (self.sweeps if key.startswith(handoffs.SWEEPS) else self.asked)[key] = None
        self.stirred()

    def chore(self, key: bytes) -> bytes:
        """The row of a chore."""
        row = self._rows.get(key)
        assert row is not None
        return row

    def done(self, key: bytes) -> None:
        """Nothing is left of a chore."""
        self._rows.delete(key)
        del (self.sweeps if key.startswith(handoffs.SWEEPS) else self.asked)[key]

    # -- the source: sessions that change ---------------------------------------------------------------------------

    def mark(self, tenant: str, session: str, row_key: bytes) -> None:
        """The row of this session is about to change while its tenant is copied: call it before it does."""
        marked = self.marked[tenant]
        state = self.known(tenant).shipping
        if session not in marked and state is not None:
            found = shipping.mark(state, session, self._sessions.get(row_key))
            if found is not None:
                self._rows.put(handoffs.marks_of(tenant, state.shipment.epoch) + session.encode(), found.encode())
                marked.add(session)

    # -- the target -----------------------------------------------------------------------------------------------

    def take(self, batch: Batch, until: float) -> None:
        """Records of `handoffs`; stops once it is ``until``."""
        records = batch.records
        index = batch.start
        while index < len(records):
            record = records[index]
            index += 1
            try:
                self._take_one(record.key(), record.value())
            except PeerProtocolError as error:
                log.warning("handoffs/%d offset %d: %s", self._server, record.offset(), error)
            if time.monotonic() >= until:
                break
        batch.start = index

    def _take_one(self, key: bytes | None, value: bytes | None) -> None:
        if key == chunks.HAND_OFF_KEY:
            self.views.take_rows(chunks.decode_hand_off(value), len(value or b""))
            return
        if key == chunks.KEY:
            chunk = chunks.decode(value)
            if tenancy.wanted(self.known(chunk.tenant), chunk):
                self.feed(chunk.tenant, self._stage(chunk, len(value or b"")))
            return
        said = control.decode_control(key, value)
        if isinstance(said, Complete) and next(self._rows.scan(handoffs.parts_of(said.tenant, said.epoch)), None):
            # Movers have something to install first, beside the stream.
            self._add_chore(handoffs.install_key(said.tenant, said.epoch, said.source), value or b"")
        elif isinstance(said, Complete | Received):
            self.feed(said.tenant, said)
        elif isinstance(said, HandedOff):
            self.views.take(said)
        else:
            raise PeerProtocolError(f"{key!r:.40} does not belong here")

    def _stage(self, chunk: Chunk, size: int) -> staging.Taken:
        """Put a chunk's rows under the epoch that is to come; nothing looks there before it is live."""
        prefix = sessions.key_of(chunk.tenant, chunk.epoch, "")
        rows = total = 0
        for item in chunk.items:
            name, text, row = item
            if name == SESSION:
                table, key = self._sessions, prefix + text.encode()
            else:
                table, key = self._place_of(chunk, item, prefix)
            more, sum_ = chunks.replaced(name, text, table.get(key), row)
            rows, total = rows + more, total + sum_
            if row is None:
                table.delete(key)
            else:
                table.put(key, row)
        passing("move-stages")
        unit = self._context.engine.unit
        unit.weight += len(chunk.items)
        unit.size += size
        copied = self._context.copied
        copied.rows_in += len(chunk.items)
        copied.bytes_in += size
        return staging.Taken(chunk, rows, total, size)

    def _place_of(self, chunk: Chunk, item: Item, prefix: bytes) -> tuple[Rows, bytes]:
        if item.table.startswith(TABLE_OF):
            mover = item.table.removeprefix(TABLE_OF)
            return self._rows, handoffs.parts_of(chunk.tenant, chunk.epoch) + f"{mover}\0{item.name}".encode()
        return self._waiting, prefix + item.name.encode()
