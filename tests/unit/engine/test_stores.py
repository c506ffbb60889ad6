"""One contract for all stores, and what RocksDB promises beyond it."""

import subprocess
import sys
import textwrap
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from app.engine.stores import Store, StoreFactory
from app.engine.stores import rocksdb as rocksdb_module
from app.engine.stores.memory import MemoryStores
from app.engine.stores.rocksdb import TOMBSTONE_RETENTION_S, RocksStores
from app.errors import ConfigurationError

NOW = 1_764_000_000.0


@pytest.fixture(params=["memory", "rocksdb"])
def stores(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[StoreFactory]:
    made: StoreFactory = MemoryStores() if request.param == "memory" else RocksStores(tmp_path / "rows")
    yield made
    made.close()


@pytest.fixture
def directory(tmp_path: Path) -> Path:
    return tmp_path / "w1" / "rows"


def rows_of(store: Store, prefix: bytes = b"") -> dict[bytes, bytes]:
    return dict(store.scan(prefix))


# -- the contract of every store ----------------------------------------------------------------------------------


def test_a_new_store_is_empty(stores: StoreFactory) -> None:
    store = stores.open("sessions", 0)
    assert (store.position, store.get(b"a"), rows_of(store)) == (0, None, {})


def test_apply_puts_and_deletes(stores: StoreFactory) -> None:
    store = stores.open("sessions", 0)
    store.apply([(b"a", b"1"), (b"b", b"1"), (b"c", b"1")], None)
    store.apply([(b"a", b"2"), (b"b", None), (b"never", None)], None)
    assert rows_of(store) == {b"a": b"2", b"c": b"1"}
    assert (store.get(b"a"), store.get(b"b")) == (b"2", None)


def test_the_last_change_of_a_key_counts(stores: StoreFactory) -> None:
    store = stores.open("sessions", 0)
    store.apply([(b"a", b"1"), (b"a", None), (b"a", b"2"), (b"b", b"1"), (b"b", None)], 5)
    assert rows_of(store) == {b"a": b"2"}


def test_an_empty_row_is_a_row(stores: StoreFactory) -> None:
    store = stores.open("sessions", 0)
    store.apply([(b"", b""), (b"a", b"")], None)
    assert (store.get(b""), store.get(b"a")) == (b"", b"")
    assert rows_of(store) == {b"": b"", b"a": b""}


def test_the_position_moves_only_when_given(stores: StoreFactory) -> None:
    store = stores.open("sessions", 0)
    store.apply([(b"a", b"1")], 7)
    store.apply([(b"a", b"2")], None)
    store.apply([], None)
    assert store.position == 7
    store.apply([], 9)
    assert store.position == 9


def test_a_scan_is_in_the_order_of_keys(stores: StoreFactory) -> None:
    store = stores.open("sessions", 0)
    keys = [b"b", b"a\xff", b"a", b"\xff\xff", b"", b"a\x00b", b"a\x00", b"ab", b"\x00"]
    store.apply([(key, b"1") for key in keys], None)
    assert [key for key, _ in store.scan(b"")] == sorted(keys)
    assert [key for key, _ in store.scan(b"a")] == [b"a", b"a\x00", b"a\x00b", b"ab", b"a\xff"]
    assert [key for key, _ in store.scan(b"a\x00")] == [b"a\x00", b"a\x00b"]
    assert [key for key, _ in store.scan(b"\xff")] == [b"\xff\xff"]
    assert list(store.scan(b"c")) == []


def test_a_scan_bears_changes_meanwhile(stores: StoreFactory) -> None:
    store = stores.open("sessions", 0)
    store.apply([(b"%03d" % number, b"old") for number in range(100)], None)
    scan = store.scan(b"")
    first = next(scan)
    store.apply([(b"%03d" % number, None) for number in range(50, 150)] + [(b"200", b"new")], None)
    seen = [first, *scan]
    assert [key for key, _ in seen] == sorted({key for key, _ in seen})
    assert {b"%03d" % number for number in range(50)} <= {key for key, _ in seen}


def test_partitions_and_tables_do_not_see_each_other(stores: StoreFactory) -> None:
    places = [("sessions", 0), ("sessions", 1), ("sessions", 10), ("waiting", 0), ("session", 0), ("sessions-2", 0)]
    opened = {place: stores.open(*place) for place in places}
    for number, store in enumerate(opened.values()):
        store.apply([(b"a", b"%d" % number), (b"own-%d" % number, b"1")], number + 1)
    for number, store in enumerate(opened.values()):
        assert rows_of(store) == {b"a": b"%d" % number, b"own-%d" % number: b"1"}
        assert store.position == number + 1


@pytest.mark.parametrize("cleared", [("sessions", 1), ("waiting", 0)])
def test_clear_leaves_the_others(stores: StoreFactory, cleared: tuple[str, int]) -> None:
    places = [("sessions", 0), ("sessions", 1), ("sessions", 2), ("sessions", 10), ("waiting", 0)]
    opened = {place: stores.open(*place) for place in places}
    for store in opened.values():
        store.apply([(b"", b"1"), (b"a", b"1"), (b"\xff\xff", b"1")], 3)
    opened[cleared].clear()
    for place, store in opened.items():
        count, position = (0, 0) if place == cleared else (3, 3)
        assert (len(rows_of(store)), store.position) == (count, position)
    opened[cleared].apply([(b"b", b"2")], 1)
    assert (rows_of(opened[cleared]), opened[cleared].position) == ({b"b": b"2"}, 1)


def test_one_thread_reads_while_another_applies(stores: StoreFactory) -> None:
    store = stores.open("sessions", 0)
    store.apply([(b"key-%d" % number, b"0") for number in range(200)], None)
    done = threading.Event()

    def apply() -> None:
        for turn in range(100):
            # Deleted and put back in one step: a reader never misses the row.
            store.apply([(b"key-%d" % number, b"%d" % turn) for number in range(200)], turn)
        done.set()

    writer = threading.Thread(target=apply)
    writer.start()
    while not done.is_set():
        assert len(rows_of(store, b"key-")) == 200
        assert store.get(b"key-7") is not None
    writer.join()
    assert store.position == 99


Batches = list[tuple[dict[bytes, bytes | None], int | None]]
keys = st.binary(max_size=3)
batches = st.lists(
    st.tuples(st.dictionaries(keys, st.none() | st.binary(max_size=3)), st.none() | st.integers(0, 10**12)), max_size=6
)


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=40)
@given(batches, st.lists(keys, max_size=3))
def test_a_store_is_a_dict(stores: StoreFactory, changes: Batches, prefixes: list[bytes]) -> None:
    store = stores.open("sessions", 0)
    store.clear()
    expected: dict[bytes, bytes] = {}
    at = 0
    for batch, position in changes:
        store.apply(batch.items(), position)
        at = at if position is None else position
        expected = {key: row for key, row in {**expected, **batch}.items() if row is not None}
    assert store.position == at
    for prefix in (b"", *prefixes):
        assert list(store.scan(prefix)) == sorted((key, row) for key, row in expected.items() if key.startswith(prefix))


# -- RocksDB ------------------------------------------------------------------------------------------------------


def test_rows_and_positions_survive(directory: Path) -> None:
    stores = RocksStores(directory)
    stores.open("sessions", 3).apply([(b"a", b"1"), (b"b", b"1")], 17)
    stores.open("waiting", 3).apply([(b"w", b"1")], 4)
    stores.open("sessions", 3).apply([(b"b", None)], None)
    stores.open("sessions", 4).apply([(b"gone", b"1")], 5)
    stores.open("sessions", 4).clear()
    stores.close()
    stores = RocksStores(directory)
    assert (rows_of(stores.open("sessions", 3)), stores.open("sessions", 3).position) == ({b"a": b"1"}, 17)
    assert (rows_of(stores.open("waiting", 3)), stores.open("waiting", 3).position) == ({b"w": b"1"}, 4)
    assert (rows_of(stores.open("sessions", 4)), stores.open("sessions", 4).position) == ({}, 0)
    stores.close()


KILLED = """
import os, sys
from pathlib import Path
from app.engine.stores.rocksdb import RocksStores
store = RocksStores(Path(sys.argv[1])).open("sessions", 0)
for number in range(1, 201):
    store.apply([(b"row-%d" % number, b"x" * 100)], number)
print(store.position, flush=True)
os._exit(9)
"""


def test_what_was_applied_survives_the_death_of_the_process(directory: Path) -> None:
    died = run(KILLED, str(directory))
    assert (died.returncode, died.stdout.strip()) == (9, "200")
    stores = RocksStores(directory)
    store = stores.open("sessions", 0)
    assert (store.position, len(rows_of(store))) == (200, 200)
    stores.close()


def at(monkeypatch: pytest.MonkeyPatch, seconds: float) -> None:
    """Set the clocks of the stores."""
    clock = SimpleNamespace(time=lambda: seconds, monotonic=lambda: seconds, sleep=time.sleep)
    monkeypatch.setattr(rocksdb_module, "time", clock)


AGES = [(0, True), (TOMBSTONE_RETENTION_S, True), (TOMBSTONE_RETENTION_S + 1, False), (10**7, False)]


@pytest.mark.parametrize("reopened", [False, True], ids=["same process", "new process"])
@pytest.mark.parametrize(("age", "kept"), AGES)
def test_rows_that_may_have_missed_deletions_are_wiped(
    directory: Path, monkeypatch: pytest.MonkeyPatch, age: int, kept: bool, reopened: bool
) -> None:
    """A table partition that was away for too long begins anew; one that was here all the time does not."""
    at(monkeypatch, NOW)
    stores = RocksStores(directory)
    stores.open("sessions", 0).apply([(b"a", b"1")], 17)
    at(monkeypatch, NOW + age)
    stores.open("sessions", 1).apply([(b"a", b"1")], 17)
    if reopened:
        stores.close()
        stores = RocksStores(directory)
    store = stores.open("sessions", 0)
    assert (rows_of(store), store.position) == (({b"a": b"1"}, 17) if kept else ({}, 0))
    other = stores.open("sessions", 1)
    assert (rows_of(other), other.position) == ({b"a": b"1"}, 17)
    store.apply([(b"b", b"2")], 20)
    assert stores.open("sessions", 0).get(b"b") == b"2"
    stores.close()


def test_a_position_is_no_proof_of_completeness(directory: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A reader that is far behind moves on all the time, past deletions that are long gone."""
    at(monkeypatch, NOW)
    stores = RocksStores(directory)
    store = stores.open("sessions", 0)
    store.apply([(b"a", b"1")], 17)
    at(monkeypatch, NOW + TOMBSTONE_RETENTION_S)
    store.apply([(b"b", b"1")], 18)
    at(monkeypatch, NOW + TOMBSTONE_RETENTION_S + 1)
    assert stores.open("sessions", 0).position == 0
    stores.close()


def test_confirmed_rows_live_on(directory: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    at(monkeypatch, NOW)
    stores = RocksStores(directory)
    store = stores.open("sessions", 0)
    assert not store.unconfirmed, "there is nothing to confirm"
    store.apply([(b"a", b"1")], 17)
    for day in range(5):
        at(monkeypatch, NOW + day * 86_400 / 2)
        before = store.unconfirmed
        store.confirm()
        assert (before, store.unconfirmed) == (True, False)
    at(monkeypatch, NOW + 2 * 86_400 + TOMBSTONE_RETENTION_S)
    assert stores.open("sessions", 0).position == 17
    at(monkeypatch, NOW + 2 * 86_400 + TOMBSTONE_RETENTION_S + 1)
    assert stores.open("sessions", 0).position == 0
    stores.close()


def test_rows_without_a_position_are_wiped(directory: Path) -> None:
    """Units that were committed before the first position was noted: nothing tells how old they are."""
    stores = RocksStores(directory)
    stores.open("sessions", 0).apply([(b"a", b"1")], None)
    assert rows_of(stores.open("sessions", 0)) == {}
    stores.close()


def test_retention_is_shorter_than_that_of_the_changelogs_tombstones() -> None:
    """Kafka's default of delete.retention.ms, which the changelogs keep."""
    assert TOMBSTONE_RETENTION_S < 24 * 3600


def test_a_locked_directory_says_so(directory: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rocksdb_module, "OPEN_ATTEMPTS_S", 0.3)
    holder = subprocess.Popen(
        [sys.executable, "-c", HOLDER, str(directory)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    try:
        assert holder.stdout is not None
        assert holder.stdout.readline() == "held\n"
        with pytest.raises(ConfigurationError, match="HOLDFAST_STATE_DIR") as caught:
            RocksStores(directory)
        assert str(directory) in str(caught.value)
    finally:
        holder.communicate()
    RocksStores(directory).close()


HOLDER = """
import sys
from pathlib import Path
from app.engine.stores.rocksdb import RocksStores
stores = RocksStores(Path(sys.argv[1]))
print("held", flush=True)
sys.stdin.read()
stores.close()
"""


def test_a_predecessor_that_is_about_to_end_is_waited_for(directory: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    predecessor = RocksStores(directory)
    predecessor.open("sessions", 0).apply([(b"a", b"1")], 1)
    tries = []

    def sleep(seconds: float) -> None:
        tries.append(seconds)
        predecessor.close()

    clock = SimpleNamespace(time=time.time, monotonic=time.monotonic, sleep=sleep)
    monkeypatch.setattr(rocksdb_module, "time", clock)
    successor = RocksStores(directory)
    assert (len(tries), successor.open("sessions", 0).get(b"a")) == (1, b"1")
    successor.close()


def test_a_directory_that_cannot_be_made_says_so(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(ConfigurationError, match="HOLDFAST_STATE_DIR"):
        RocksStores(tmp_path / "file" / "rows")


# -- a full disk --------------------------------------------------------------------------------------------------

FULL = """
import os, resource, signal, sys
from pathlib import Path
from app.engine.stores.rocksdb import RocksStores
from app.errors import HoldfastError

stores = RocksStores(Path(sys.argv[1]))
store = stores.open("sessions", 0)
store.apply([(b"first", b"1")], 1)
# From here on no file grows beyond 256 KiB: what a full disk does, for this process alone.
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (2**18, 2**18))
errors = []
for number in range(2, 40):
    try:
        store.apply([(b"row-%d" % number, b"x" * 20_000), (b"last", b"%d" % number)], number)
    except HoldfastError as error:
        errors.append(str(error))
        if len(errors) == 3:
            break
print(store.position, int(store.get(b"last")), flush=True)
for act in (store.clear, store.confirm):
    try:
        act()
    except HoldfastError as error:
        errors.append(str(error))
stores.close()
print(*errors, sep="\\n", flush=True)
os._exit(0)
"""


def run(script: str, *arguments: str) -> "subprocess.CompletedProcess[str]":
    command = [sys.executable, "-c", textwrap.dedent(script), *arguments]
    return subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)


def test_a_full_disk_moves_neither_rows_nor_position(directory: Path) -> None:
    told = run(FULL, str(directory))
    assert told.returncode == 0, told.stderr
    first, *errors = told.stdout.splitlines()
    position, last = map(int, first.split())
    assert 1 < position < 39
    assert last == position
    assert len(errors) == 5
    # All tell the cause, though RocksDB told it once; closing fails too, and tells nothing.
    assert all("File too large" in error for error in errors), errors
    assert all("free some space" in error and str(directory) in error for error in errors)
    # With room again, everything up to the position is there, and nothing beyond.
    stores = RocksStores(directory)
    store = stores.open("sessions", 0)
    assert store.position == position
    assert set(rows_of(store)) == {b"first", b"last", *(b"row-%d" % number for number in range(2, position + 1))}
    store.apply([(b"more", b"x" * 20_000)], position + 1)
    assert store.position == position + 1
    stores.close()
