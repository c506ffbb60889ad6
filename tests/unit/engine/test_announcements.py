"""Announcements without a broker."""

import time

import pytest
from confluent_kafka import Producer

from app.engine import announcements as announcements_module
from app.engine.announcements import Announcements
from app.errors import UnavailableError


def test_what_was_not_written_in_time_is_not_written_later(monkeypatch: pytest.MonkeyPatch) -> None:
    """It would come behind what a successor has announced in the meantime."""
    made: list[Producer] = []

    class Kept(Producer):
        def __init__(self, config: dict[str, object]) -> None:
            super().__init__(config)
            made.append(self)

    monkeypatch.setattr(announcements_module, "Producer", Kept)
    topic = Announcements({"bootstrap.servers": "127.0.0.1:1", "log_level": 0}, "ns.suspects")
    for _ in range(2):
        started = time.monotonic()
        with pytest.raises(UnavailableError):
            topic.write(b"server/0", b"late", timeout=0.3)
        assert time.monotonic() - started < 3
    assert len(made) == 2
    assert [producer.flush(0.5) for producer in made] == [0, 0]
