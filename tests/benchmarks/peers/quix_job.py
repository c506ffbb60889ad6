"""The reference job in Quix Streams, exactly once; runs in an environment of its own, so it imports nothing of ours.

``to_topic()`` cannot choose a partition, so records go out by the producer beneath it.
"""

import os
import zlib
from typing import Any

import orjson
from quixstreams import Application

PLACES = 8


def main() -> None:
    given = os.environ
    app = Application(
        broker_address=given["PEER_BOOTSTRAP"],
        consumer_group=given["PEER_GROUP"],
        auto_offset_reset="earliest",
        state_dir=given["PEER_STATE"],
        loglevel="WARNING",
        commit_interval=0.1,
        processing_guarantee="exactly-once",
        producer_extra_config={"queue.buffering.max.messages": 1_000_000},
    )
    source = app.topic(given["PEER_IN"], value_deserializer="bytes", key_deserializer="bytes")
    target = app.topic(given["PEER_OUT"], value_serializer="bytes", key_serializer="bytes").name

    def route(value: bytes, key: bytes, _timestamp: Any, _headers: Any, state: Any) -> tuple[bytes, bytes, int]:
        place = state.get("place")
        if place is None:
            place = zlib.crc32(key) % PLACES
            state.set("place", place)
        sequence = state.get("sequence", 0) + 1
        state.set("sequence", sequence)
        return b"%d|%b" % (sequence, value), orjson.loads(value)["session"].encode(), place

    def send(routed: tuple[bytes, bytes, int]) -> None:
        app._producer.produce(topic=target, value=routed[0], key=routed[1], partition=routed[2])

    app.dataframe(source).apply(route, stateful=True, metadata=True).update(send)
    app.run()


if __name__ == "__main__":
    main()
