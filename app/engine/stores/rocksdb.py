"""Rows in RocksDB, for state larger than memory: one database a worker, a key prefix for each table partition.

Rows and their changelog position go in by one write batch, so a restart replays only what came after the position.
With the position goes the time at which the rows were complete: a table partition that was away for longer than the
changelog keeps deletions begins anew.
RocksDB's write-ahead log survives the death of the process; after the death of the machine the database is an earlier
but consistent state, which its position tells.
"""

import logging
import time
from collections.abc import Iterable, Iterator
from itertools import takewhile
from pathlib import Path
from typing import cast

from rocksdict import AccessType, BlockBasedOptions, Cache, Options, Rdict, WriteBatch, WriteBufferManager

from app.engine.stores.order import InOrder
from app.errors import ConfigurationError, HoldfastError

log = logging.getLogger(__name__)

TOMBSTONE_RETENTION_S = 20 * 3600
"""Less than the changelogs' ``delete.retention.ms`` (24 h): an older copy may have missed deletions and is wiped."""

BLOCK_CACHE_BYTES = 128 * 2**20
WRITE_BUFFER_BYTES = 64 * 2**20
OPEN_ATTEMPTS_S = 10.0

CONFIRM_S = 60.0
"""How often at most a store notes that its rows are complete."""

_POSITION = b"!position/"
_TIME = b"!time/"


def _options() -> Options:
    options = Options(raw_mode=True)
    options.create_if_missing(True)
    cache = Cache(BLOCK_CACHE_BYTES)
    table = BlockBasedOptions()
    table.set_block_cache(cache)
    table.set_cache_index_and_filter_blocks(True)
    table.set_bloom_filter(10, False)
    options.set_block_based_table_factory(table)
    options.set_write_buffer_manager(
        WriteBufferManager.new_write_buffer_manager_with_cache(WRITE_BUFFER_BYTES, False, cache)
    )
    options.set_write_buffer_size(WRITE_BUFFER_BYTES // 4)
    options.set_max_open_files(256)
    options.set_keep_log_file_num(2)
    return options


def _after(prefix: bytes) -> bytes:
    """The least key that is greater than every key with ``prefix`` (prefixes end in a separator, never in 0xff)."""
    return prefix[:-1] + bytes([prefix[-1] + 1])


class RocksStore:
    """See :class:`app.engine.stores.Store`."""

    def __init__(self, stores: "RocksStores", database: Rdict, table: str, partition: int) -> None:
        self._stores = stores
        self._database = database
        self._prefix = b"%b/%05d/" % (table.encode(), partition)
        self._position_key = _POSITION + self._prefix
        self._time_key = _TIME + self._prefix
        self._confirm_next = 0.0
        found = database.get(self._position_key)
        written = database.get(self._time_key)
        self._position = int(found) if found else 0
        self._timed = written is not None
        if found is None or written is None or time.time() - int(written) > TOMBSTONE_RETENTION_S:
            self._begin_anew()

    def _begin_anew(self) -> None:
        """Rows that may have missed deletions, or that no position goes with, would come back from the dead."""
        if self._position or next(self.scan(b""), None) is not None:
            log.info("%s: the rows are older than deletions are kept, they are restored anew", self._prefix.decode())
            self.clear()

    @property
    def position(self) -> int:
        return self._position

    @property
    def size(self) -> None:
        """Not known."""
        return None

    def get(self, key: bytes) -> bytes | None:
        row: bytes | None = self._database.get(self._prefix + key)
        return row

    def apply(self, rows: Iterable[tuple[bytes, bytes | None]], position: int | None) -> None:
        batch = WriteBatch(raw_mode=True)
        prefix = self._prefix
        for key, row in rows:
            if row is None:
                batch.delete(prefix + key)
            else:
                batch.put(prefix + key, row)
        if position is not None:
            batch.put(self._position_key, b"%d" % position)
            if not self._timed:
                # A copy that was begun now has seen every deletion that was there to be seen.
                batch.put(self._time_key, b"%d" % int(time.time()))
        if not batch.is_empty():
            self._stores.write(batch)
        if position is not None:
            self._position = position
            self._timed = True

    @property
    def unconfirmed(self) -> bool:
        return self._timed and time.monotonic() >= self._confirm_next

    def confirm(self) -> None:
        """Note that the rows are complete now; a position alone does not say so, its reader may be far behind."""
        if not self.unconfirmed:
            return
        self._confirm_next = time.monotonic() + CONFIRM_S
        batch = WriteBatch(raw_mode=True)
        batch.put(self._time_key, b"%d" % int(time.time()))
        self._stores.write(batch)

    def scan(self, prefix: bytes) -> Iterator[tuple[bytes, bytes]]:
        start = self._prefix + prefix
        skip = len(self._prefix)
        # In raw mode keys and values are bytes.
        items = cast("Iterator[tuple[bytes, bytes]]", self._database.items(from_key=start))
        for key, row in items:
            if not key.startswith(start):
                return
            yield key[skip:], row

    def keys(self, prefix: bytes, after: bytes) -> InOrder:
        start = self._prefix + prefix
        behind = self._prefix + after
        skip = len(self._prefix)
        # Behind a key stands, before anything else, that key with a zero byte.
        first = max(start, behind + b"\0") if after else start
        found = cast("Iterator[bytes]", self._database.keys(from_key=first))
        return InOrder(key[skip:] for key in takewhile(lambda key: key.startswith(start), found))

    def clear(self) -> None:
        batch = WriteBatch(raw_mode=True)
        batch.delete_range(self._prefix, _after(self._prefix))
        batch.delete(self._position_key)
        batch.delete(self._time_key)
        self._stores.write(batch)
        self._position = 0
        self._timed = False
        self._confirm_next = 0.0

    def close(self) -> None:
        """The database is shared; :meth:`RocksStores.close` lets go of it."""


class RocksStores:
    """The database of one worker.

    Raises ConfigurationError when the directory cannot be used, in particular while another process holds it.
    """

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        self._cause = ""
        self._database = self._open()

    def _open(self) -> Rdict:
        deadline = time.monotonic() + OPEN_ATTEMPTS_S
        while True:
            try:
                self._directory.mkdir(parents=True, exist_ok=True)
                return Rdict(str(self._directory), _options(), access_type=AccessType.read_write())
            except Exception as error:  # rocksdict raises bare Exception
                # A worker of the same name that is about to end may hold the lock for a moment longer.
                if "lock" not in str(error).lower() or time.monotonic() > deadline:
                    raise ConfigurationError(
                        f"cannot open the row store in {self._directory} ({error}): "
                        "free or change HOLDFAST_STATE_DIR, one worker name at a time may use it"
                    ) from error
                time.sleep(0.2)

    def open(self, table: str, partition: int) -> RocksStore:
        return RocksStore(self, self._database, table, partition)

    def write(self, batch: WriteBatch) -> None:
        """Write all of ``batch`` or nothing.

        Raises:
            HoldfastError: it cannot be written; nothing is lost, because the rows are in the changelog already.
        """
        try:
            self._database.write(batch)
        except Exception as error:  # rocksdict raises bare Exception
            # RocksDB tells the cause once, and then only that there was one.
            self._cause = self._cause or str(error)
            raise HoldfastError(
                f"cannot write rows to {self._directory} ({self._cause}): free some space there and start the worker "
                "again; nothing is lost, the rows are in the changelog"
            ) from error

    def close(self) -> None:
        """Let go of the files. What cannot be written any more is in the changelog: no reason to fail."""
        try:
            self._database.close()
        except Exception as error:  # noqa: BLE001 - rocksdict raises bare Exception
            if not self._cause:
                log.warning("closing the rows in %s: %s; nothing is lost", self._directory, error)
