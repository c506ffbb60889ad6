"""Backup order: golden vectors, in two languages and under any hash seed, and the properties of the order."""

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from app.errors import LocalProtocolError
from app.protocol.backup_order import backup_order, best_of, first_up, score

ROOT = Path(__file__).parents[3]
GOLDEN = ROOT / "tests/golden/backup_order.json"
VECTORS = json.loads(GOLDEN.read_text(encoding="utf-8"))["vectors"]

keys = st.binary(max_size=40)
counts = st.integers(1, 64)


@pytest.mark.parametrize("vector", VECTORS, ids=range(len(VECTORS)))
def test_golden_vectors(vector: dict[str, object]) -> None:
    key = bytes.fromhex(str(vector["key_hex"]))
    assert str(vector["key"]).encode() == key
    order = vector["order"]
    assert isinstance(order, list)
    assert list(backup_order(key, int(str(vector["servers"]))))[: len(order)] == order


def test_the_vectors_cover_the_counts_that_the_document_promises() -> None:
    assert {vector["servers"] for vector in VECTORS} == {1, 2, 8, 64, 1000}
    document = (ROOT / "docs/backup-order.md").read_text(encoding="utf-8")
    for vector in VECTORS:
        if vector["servers"] == 8 and len(vector["key"]) < 20:
            assert f"`{vector['key_hex']}` | {' '.join(map(str, vector['order']))} |" in document


def test_the_example_in_javascript_gives_the_same_orders() -> None:
    node = shutil.which("node")
    if node is None:
        pytest.skip("node is not installed")
    program = ROOT / "deploy/examples/backup-order/backup_order.mjs"
    done = subprocess.run([node, program, GOLDEN], capture_output=True, text=True, timeout=60, check=False)
    assert (done.returncode, done.stdout.strip()) == (0, f"{len(VECTORS)} vectors, 0 differ"), done.stderr


@pytest.mark.parametrize("seed", ["0", "1", "random"])
def test_another_process_with_another_hash_seed_gives_the_same_order(seed: str) -> None:
    code = "from app.protocol.backup_order import backup_order; print(backup_order(b'acme', 64))"
    done = subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        text=True,
        timeout=60,
        check=True,
        cwd=ROOT,
        env={"PYTHONHASHSEED": seed},
    )
    assert done.stdout.strip() == str(backup_order(b"acme", 64))


@given(keys, counts)
def test_the_order_is_a_permutation_of_the_servers(key: bytes, servers: int) -> None:
    assert sorted(backup_order(key, servers)) == list(range(servers))


@given(keys, counts, counts)
def test_the_order_over_fewer_servers_is_the_longer_one_with_the_others_left_out(
    key: bytes, one: int, other: int
) -> None:
    few, many = sorted((one, other))
    assert backup_order(key, few) == tuple(server for server in backup_order(key, many) if server < few)


@given(keys, counts, st.data())
def test_first_up_is_the_first_of_the_order_that_is_up(key: bytes, servers: int, data: st.DataObject) -> None:
    up = data.draw(st.sets(st.integers(0, servers - 1), min_size=1))
    assert first_up(key, servers, up) == next(s for s in backup_order(key, servers) if s in up)
    assert first_up(key, servers, up | {servers + 1}) == first_up(key, servers, up)
    assert best_of(key, up) == first_up(key, servers, up)


@given(keys, st.integers(2, 64), st.data())
def test_a_server_that_fails_moves_only_its_own_keys(key: bytes, servers: int, data: st.DataObject) -> None:
    failed = data.draw(st.integers(0, servers - 1))
    before = backup_order(key, servers)
    after = first_up(key, servers, set(range(servers)) - {failed})
    assert after == (before[1] if before[0] == failed else before[0])


@given(key=keys, servers=counts)
def test_one_score_alone_is_the_one_among_all(key: bytes, servers: int) -> None:
    by_score = sorted(range(servers), key=lambda server: score(key, server), reverse=True)
    assert tuple(by_score) == backup_order(key, servers)


def test_nobody_up_is_our_own_error() -> None:
    with pytest.raises(LocalProtocolError):
        first_up(b"acme", 8, ())


@pytest.mark.parametrize("servers", [2, 8, 16])
def test_first_and_second_places_are_spread_evenly(servers: int) -> None:
    """Chi-square of 16,000 keys stays below mean + 5 standard deviations of its distribution."""
    orders = [backup_order(f"tenant-{n}".encode(), servers) for n in range(16_000)]
    for place in (0, 1):
        found = [order[place] for order in orders]
        expected = len(orders) / servers
        chi_square = sum((found.count(server) - expected) ** 2 / expected for server in range(servers))
        freedom = servers - 1
        assert chi_square < freedom + 5 * (2 * freedom) ** 0.5


def test_the_keys_of_a_failed_server_spread_over_all_that_remain() -> None:
    orders = [backup_order(f"session-{n}".encode(), 8) for n in range(16_000)]
    seconds = [order[1] for order in orders if order[0] == 3]
    expected = len(seconds) / 7
    counted = {server: seconds.count(server) for server in range(8)}
    assert counted.pop(3) == 0
    assert all(abs(count - expected) < 5 * expected**0.5 for count in counted.values())
