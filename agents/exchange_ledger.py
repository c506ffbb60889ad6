"""What a manager of exchanges keeps: their rows, decoded while they are in use, and the rows of queued messages."""

from collections.abc import Iterator

from app.engine.table import Rows
from app.protocol.exchange_model import Absent, Ended, Exchange, Open
from tables import exchanges as table
from tables.exchanges import ExchangeRow, Mark

KEPT_MAX = 20_000
"""Exchanges that stay decoded between units; beyond it they are read from their rows again."""

ABSENT = Absent()


class Ledger:
    """The rows of one manager's exchanges.

    Args:
        exchanges, messages: the two tables.
    """

    def __init__(self, exchanges: Rows, messages: Rows) -> None:
        self._exchanges = exchanges
        self._messages = messages
        self._kept: dict[bytes, Exchange] = {}
        self._opened: dict[bytes, int] = {}
        self._dirty: set[bytes] = set()
        row = exchanges.get(table.MARK)
        self._host = "" if row is None else table.decode_mark(row).host
        self._renamed = False

    @property
    def dirty(self) -> bool:
        return bool(self._dirty) or self._renamed

    @property
    def host(self) -> str:
        """The last host that has restarted both sides of everything, after it had taken these rows over."""
        return self._host

    def restarted_by(self, host: str) -> None:
        """This one has."""
        self._renamed = self._renamed or host != self._host
        self._host = host

    def all(self) -> Iterator[tuple[bytes, ExchangeRow]]:
        """Every committed row, when nothing is changed yet."""
        for key, row in self._exchanges.store.scan(b""):
            if key != table.MARK:
                yield key, table.decode(row)

    def get(self, key: bytes) -> Exchange:
        found = self._kept.get(key)
        if found is not None:
            return found
        row = self._exchanges.get(key)
        if row is None:
            return ABSENT
        decoded = table.decode(row)
        self._kept[key] = decoded.exchange
        self._opened[key] = decoded.opened_ms
        return decoded.exchange

    def put(self, key: bytes, exchange: Exchange) -> None:
        self._kept[key] = exchange
        self._dirty.add(key)

    def flush(self, now_ms: int) -> None:
        """Write what has changed into the rows. ``now_ms`` is Unix time."""
        for key in self._dirty:
            exchange = self._kept[key]
            if isinstance(exchange, Open | Ended):
                opened_ms = self._opened.setdefault(key, now_ms)
                self._exchanges.put(key, table.encode(ExchangeRow(exchange, opened_ms, now_ms)))
            else:
                self._exchanges.delete(key)
                self._forget(key)
        if self.dirty:
            self._exchanges.put(table.MARK, table.encode_mark(Mark(now_ms, self._host)))
        self._dirty.clear()
        self._renamed = False
        if len(self._kept) > KEPT_MAX:
            for key in list(self._kept)[: KEPT_MAX // 2]:
                self._forget(key)

    def _forget(self, key: bytes) -> None:
        self._kept.pop(key, None)
        self._opened.pop(key, None)

    # -- messages ---------------------------------------------------------------------------------------------------

    def message(self, key: bytes, number: int) -> bytes | None:
        """The row of a queued message: a request's, or its response's once it is answered."""
        return self._messages.get(table.message_key(key, number))

    def keep(self, key: bytes, number: int, row: bytes) -> None:
        """Keep a request, or a response in its place."""
        self._messages.put(table.message_key(key, number), row)

    def drop(self, key: bytes, first: int, last: int) -> None:
        for number in range(first, last + 1):
            self._messages.delete(table.message_key(key, number))
