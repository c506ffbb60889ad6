"""What a canary tells Prometheus: at its own address, and as the operations guide says."""

import re
from pathlib import Path

import pytest

from app.cli.canary_metrics import COUNTERS, GAUGES, Metrics
from app.errors import ConfigurationError
from app.observe.canary import Tally
from tests.support.web import ask

GUIDE = Path(__file__).parents[2] / "docs" / "operations.md"


def metrics(tally: Tally) -> Metrics:
    return Metrics(tally, lambda: dict.fromkeys(GAUGES, 1.5))


def test_the_numbers_are_those_of_now() -> None:
    tally = Tally()
    with metrics(tally) as told:
        url = told.serve("127.0.0.1", 0)
        tally.sent, tally.lost = 7, 2
        told.observe(0.03)
        text = ask(url).body.decode()
    assert "holdfast_canary_sent_total 7.0" in text
    assert "holdfast_canary_lost_total 2.0" in text
    assert "holdfast_canary_pause_seconds 1.5" in text
    assert 'holdfast_canary_latency_seconds_bucket{le="0.05"} 1.0' in text


def test_a_taken_port_is_one_clear_line() -> None:
    with metrics(Tally()) as first, metrics(Tally()) as second:
        port = int(re.findall(r":(\d+)/", first.serve("127.0.0.1", 0))[0])
        with pytest.raises(ConfigurationError, match=rf"cannot listen on 127\.0\.0\.1:{port} .*--port"):
            second.serve("127.0.0.1", port)


def test_every_metric_is_explained() -> None:
    text = GUIDE.read_text(encoding="utf-8")
    assert [name for name in (*(f"_{name}_total" for name in COUNTERS), *GAUGES) if name not in text] == []
