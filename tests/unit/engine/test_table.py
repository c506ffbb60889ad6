"""The overlay of a table partition, against a model that keeps whole copies of the rows."""

from collections.abc import Iterator
from typing import Any

import pytest
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from app.engine.stores.memory import MemoryStore
from app.engine.table import Rows

keys = st.sampled_from([b"", b"a", b"a\x00", b"a\x00b", b"ab", b"b", b"\xff"])
prefixes = st.sampled_from([b"", b"a", b"a\x00", b"ab", b"\xff", b"z"])
values = st.binary(max_size=3)

Model = dict[bytes, bytes]


def fresh(rows: Model | None = None) -> Rows:
    store = MemoryStore()
    store.apply((rows or {}).items(), 0)
    return Rows(store, "ns.sessions-changelog", 3)


class RowsMachine(RuleBasedStateMachine):
    """``committed``: in the store; ``sealed``: with the unit on its way; ``open``: with the running one."""

    def __init__(self) -> None:
        super().__init__()
        self.rows = fresh()
        self.committed: Model = {}
        self.sealed: Model | None = None
        self.open: Model = {}
        self.changes: dict[bytes, bytes | None] = {}
        self.on_its_way: list[tuple[dict[bytes, bytes | None], Model]] = []

    @rule(key=keys, row=values)
    def put(self, key: bytes, row: bytes) -> None:
        self.rows.put(key, row)
        self.open[key] = self.changes[key] = row

    @rule(key=keys)
    def delete(self, key: bytes) -> None:
        self.rows.delete(key)
        self.open.pop(key, None)
        self.changes[key] = None

    @precondition(lambda self: self.sealed is None)
    @rule()
    def seal(self) -> None:
        changes = dict(self.rows.seal())
        assert changes == self.changes
        self.sealed = dict(self.open)
        self.on_its_way = [(changes, self.sealed)]
        self.changes = {}

    @precondition(lambda self: self.on_its_way)
    @rule()
    def commit(self) -> None:
        """The commit thread applies the rows; the loop hears of it later, if it still wants to."""
        changes, rows = self.on_its_way.pop()
        self.rows.store.apply(changes.items(), None)
        self.committed = rows
        if self.sealed is None:
            self.open = dict(rows)
            for key, row in self.changes.items():
                self._change(key, row)

    def _change(self, key: bytes, row: bytes | None) -> None:
        if row is None:
            self.open.pop(key, None)
        else:
            self.open[key] = row

    @precondition(lambda self: self.sealed is not None and not self.on_its_way)
    @rule()
    def settled(self) -> None:
        self.rows.settled()
        self.sealed = None

    @rule()
    def discard(self) -> None:
        self.rows.discard()
        self.open, self.sealed, self.changes = dict(self.committed), None, {}

    @rule(key=keys)
    def read(self, key: bytes) -> None:
        assert self.rows.get(key) == self.open.get(key)
        assert self.rows.peek(key) == self.committed.get(key)

    @rule(prefix=prefixes)
    def scan(self, prefix: bytes) -> None:
        expected = [(key, self.open[key]) for key in sorted(self.open) if key.startswith(prefix)]
        assert list(self.rows.scan(prefix)) == expected

    @rule(prefix=prefixes, key=keys)
    def scan_while_rows_change(self, prefix: bytes, key: bytes) -> None:
        expected = sorted(found for found in self.open if found.startswith(prefix))
        scan: Iterator[tuple[bytes, bytes]] = self.rows.scan(prefix)
        seen = [found for found, _ in [next(scan, (b"?", b""))] if found != b"?"]
        self.put(key, b"new")
        seen += [found for found, _ in scan]
        assert seen == expected

    @invariant()
    def is_dirty_when_something_changed(self) -> None:
        assert self.rows.dirty == bool(self.changes)

    @invariant()
    def the_store_has_what_is_committed(self) -> None:
        assert dict(self.rows.store.scan(b"")) == self.committed


TestRows = RowsMachine.TestCase


def test_a_row_is_what_was_written_last() -> None:
    rows = fresh({b"a": b"old", b"b": b"old"})
    rows.put(b"a", b"new")
    rows.delete(b"b")
    assert (rows.get(b"a"), rows.get(b"b")) == (b"new", None)
    assert (rows.peek(b"a"), rows.peek(b"b")) == (b"old", b"old")
    assert list(rows.scan()) == [(b"a", b"new")]


def test_a_row_that_changed_often_is_sealed_once() -> None:
    rows = fresh()
    for number in range(1_000):
        rows.put(b"a", b"%d" % number)
    assert dict(rows.seal()) == {b"a": b"999"}


def test_a_row_that_came_and_went_is_sealed_as_deleted() -> None:
    rows = fresh()
    rows.put(b"a", b"1")
    rows.delete(b"a")
    assert dict(rows.seal()) == {b"a": None}


def test_what_is_sealed_stays_readable_and_below_what_comes_after() -> None:
    rows = fresh({b"a": b"0", b"b": b"0", b"c": b"0"})
    rows.put(b"a", b"1")
    rows.delete(b"b")
    rows.seal()
    assert (rows.get(b"a"), rows.get(b"b"), rows.get(b"c")) == (b"1", None, b"0")
    rows.delete(b"a")
    rows.put(b"b", b"2")
    assert list(rows.scan()) == [(b"b", b"2"), (b"c", b"0")]


def test_a_sealed_overlay_does_not_change_any_more() -> None:
    rows = fresh()
    rows.put(b"a", b"1")
    changes = rows.seal()
    rows.put(b"a", b"2")
    rows.put(b"b", b"2")
    rows.discard()
    assert dict(changes) == {b"a": b"1"}


def test_only_one_overlay_is_sealed_at_a_time() -> None:
    rows = fresh()
    rows.put(b"a", b"1")
    rows.seal()
    rows.put(b"a", b"2")
    with pytest.raises(AssertionError):
        rows.seal()


def test_a_unit_that_committed_after_it_was_discarded_is_seen() -> None:
    """The worker parted from the place, and then heard that its last unit had committed."""
    rows = fresh({b"a": b"0"})
    rows.put(b"a", b"1")
    changes = rows.seal()
    rows.put(b"a", b"2")
    rows.discard()
    assert rows.get(b"a") == b"0"
    rows.store.apply(changes.items(), None)
    assert rows.get(b"a") == b"1"
    assert not rows.dirty


def test_the_partition_is_named() -> None:
    rows: Any = fresh()
    assert (rows.topic, rows.partition) == ("ns.sessions-changelog", 3)
