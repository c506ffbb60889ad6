"""What the janitor knows of topics, while no broker answers."""

import time

import pytest

from app.engine import janitor as janitor_module
from app.engine.janitor import UNTOLD, EmitLimit, Janitor


@pytest.fixture
def janitor(monkeypatch: pytest.MonkeyPatch) -> Janitor:
    """Its broker does not answer: nobody listens at that port."""
    monkeypatch.setattr(janitor_module, "ASK_S", 0.2)
    config = {"bootstrap.servers": "127.0.0.1:1", "log_level": 0}
    return Janitor(config, {}, "ns.workers", streams=[], truncated=frozenset())


def test_without_an_answer_the_record_limit_holds(janitor: Janitor) -> None:
    assert janitor.largest_record("own") == UNTOLD
    started = time.monotonic()
    assert {janitor.largest_record("own") for _ in range(100)} == {UNTOLD}
    assert time.monotonic() - started < 0.1, "nobody asks again in the engine's thread"


def test_the_last_known_limit_holds_while_no_broker_answers(janitor: Janitor) -> None:
    known = EmitLimit(5_000, keyed=True)
    janitor._limits["own"] = (known, time.monotonic() - 1)
    started = time.monotonic()
    assert janitor.largest_record("own") == known
    assert time.monotonic() - started < 0.1
    janitor._refresh_limits()
    assert janitor.largest_record("own") == known
    assert janitor._limits["own"][1] > time.monotonic()


def test_topics_that_were_not_there_are_not_asked_for_again_in_vain(janitor: Janitor) -> None:
    janitor._limits["gone"] = (None, time.monotonic() - 1)
    janitor._refresh_limits()
    assert "gone" not in janitor._limits
