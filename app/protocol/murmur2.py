"""Java's default partitioner of Kafka: murmur2 of the key, made positive, modulo the number of partitions.

Every producer of ``tasks`` that keeps to it puts a tenant's tasks on the tenant's router; a router uses it to
recognise a record that another partitioner put elsewhere. librdkafka calls it ``murmur2_random``.

Source: ``org.apache.kafka.common.utils.Utils.murmur2`` and ``toPositive`` of Apache Kafka.
"""

_SEED = 0x9747B28C
_M = 0x5BD1E995
_R = 24
_MASK = 0xFFFFFFFF


def murmur2(key: bytes) -> int:
    """Return the 32-bit hash of ``key`` as an unsigned number."""
    length = len(key)
    h = _SEED ^ length
    whole = length & ~3
    for at in range(0, whole, 4):
        k = int.from_bytes(key[at : at + 4], "little") * _M & _MASK
        k = (k ^ (k >> _R)) * _M & _MASK
        h = (h * _M & _MASK) ^ k
    if whole < length:
        h = (h ^ int.from_bytes(key[whole:], "little")) * _M & _MASK
    h = (h ^ (h >> 13)) * _M & _MASK
    return h ^ (h >> 15)


def partition_of(key: bytes, partitions: int) -> int:
    """Return the partition, 0 to ``partitions - 1``, on which Java's producer puts a record with this key."""
    return (murmur2(key) & 0x7FFFFFFF) % partitions
