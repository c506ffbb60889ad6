"""Announcements on a real broker: written and read back, refused for good."""

import pytest
from confluent_kafka import Producer

from app.engine import announcements
from app.engine.announcements import Announcements
from app.errors import HoldfastError, UnavailableError
from app.topics import Names
from tests.support.cluster import Workers, wait_for

pytestmark = pytest.mark.broker


def test_the_last_word_of_a_key_holds(workers: Workers) -> None:
    topic = Announcements(workers.config, Names(workers.namespace).suspects)
    topic.write(b"server/0", b"first")
    topic.write(b"server/0", b"second", timeout=10.0)
    topic.write(b"server/1", b"gone")
    topic.write(b"server/1", None)
    assert topic.read() == {b"server/0": b"second"}


def test_who_is_prepared_is_connected(workers: Workers, monkeypatch: pytest.MonkeyPatch) -> None:
    made: list[Producer] = []

    class Kept(Producer):
        def __init__(self, config: dict[str, object]) -> None:
            super().__init__(config)
            made.append(self)

    monkeypatch.setattr(announcements, "Producer", Kept)
    topic = Announcements(workers.config, Names(workers.namespace).suspects)
    topic.prepare()
    wait_for(lambda: made, 60, "it connects")
    topic.prepare()
    topic.write(b"server/0", b"first")
    assert topic.read() == {b"server/0": b"first"}
    assert len(made) == 1


def test_what_the_broker_will_never_take_is_not_tried_for_ever(workers: Workers) -> None:
    config = {**workers.config, "message.max.bytes": 20_000_000}
    topic = Announcements(config, Names(workers.namespace).suspects)
    with pytest.raises(HoldfastError, match="takes no announcements") as caught:
        topic.write(b"server/0", b"x" * 5_000_000)
    assert not isinstance(caught.value, UnavailableError)
    topic.write(b"server/0", b"small")
    assert topic.read() == {b"server/0": b"small"}
