"""The reference job in stock Faust: its own transport, at least once.

Its exactly-once mode writes records to partitions other than those asked for.
"""

import os
import zlib
from typing import Any, Final

import faust
import orjson
from faust.types import StreamT

PLACES: Final = 8


def main() -> None:
    given = os.environ
    # Faust is partly untyped.
    app: Any = faust.App(
        given["PEER_GROUP"],
        broker=f"kafka://{given['PEER_BOOTSTRAP']}",
        store="memory://",
        topic_partitions=4,
        topic_replication_factor=1,
        broker_commit_interval=0.1,
        web_enabled=False,
        datadir=given["PEER_STATE"],
        consumer_auto_offset_reset="earliest",
        stream_wait_empty=False,
    )
    source = app.topic(given["PEER_IN"], key_serializer="raw", value_serializer="raw")
    target = app.topic(given["PEER_OUT"], key_serializer="raw", value_serializer="raw", partitions=PLACES)
    rows = app.Table("rows", partitions=4, key_type=bytes, value_type=bytes)
    rows.key_serializer = rows.value_serializer = "raw"

    async def route(stream: StreamT[bytes]) -> None:
        async for key, value in stream.items():
            row = rows.get(key)
            place, sequence = (zlib.crc32(key) % PLACES, 0) if row is None else map(int, row.split(b"|"))
            sequence += 1
            rows[key] = b"%d|%d" % (place, sequence)
            session = orjson.loads(value)["session"].encode()
            await target.send(key=session, value=b"%d|%b" % (sequence, value), partition=place)

    app.agent(source, name="route")(route)
    app.finalize()
    worker: Any = faust.Worker(app, loglevel="WARNING")
    worker.execute_from_commandline()


if __name__ == "__main__":
    main()
