"""murmur2: the vectors of Kafka's own tests, and the partition."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from app.protocol.murmur2 import murmur2, partition_of

# org.apache.kafka.common.utils.UtilsTest.testMurmur2
VECTORS = {
    b"21": -973932308,
    b"foobar": -790332482,
    b"a-little-bit-long-string": -985981536,
    b"a-little-bit-longer-string": -1486304829,
    b"lkjh234lh9fiuh90y23oiuhsafujhadof229phr9h19h89h8": -58897971,
    b"abc": 479470107,
}


@pytest.mark.parametrize(("key", "signed"), VECTORS.items())
def test_hash_is_javas(key: bytes, signed: int) -> None:
    assert murmur2(key) == signed % 2**32


@pytest.mark.parametrize(("key", "signed"), VECTORS.items())
def test_partition_is_the_positive_hash_modulo_the_partitions(key: bytes, signed: int) -> None:
    assert partition_of(key, 7) == (signed & 0x7FFFFFFF) % 7


@given(st.binary(), st.integers(1, 1000))
def test_any_key_has_a_partition(key: bytes, partitions: int) -> None:
    assert 0 <= partition_of(key, partitions) < partitions
