"""Exchanges over HTTP, on real sockets and workers that are made up: any worker answers for all."""

from collections.abc import Iterator
from contextlib import ExitStack
from typing import Any

import pytest

from app.settings import Settings
from app.web.server import WebServer
from tests.support.web import FakeGateway, FakeView, ask


class Two:
    """Two workers: w1 manages exchange `a`, and follows manager 1, which w2 hosts with exchange `b`."""

    def __init__(self, stack: ExitStack) -> None:
        self.stack = stack
        self.first, self.second = FakeView(name="w1"), FakeView(name="w2")
        self.first.exchanges = {"a": {"exchange": "a"}}
        self.second.exchanges = {"b": {"exchange": "b", "requests": []}}
        self.first.marks = {"0": self.mark("w1", 1_000, hosts=True), "1": self.mark("w1", 1_500)}
        self.second.marks = {"0": self.mark("w2", 900), "1": self.mark("w2", 2_000, hosts=True)}
        self.urls = [self.serve(view) for view in (self.first, self.second)]
        for view in (self.first, self.second):
            view.hosts = [
                {"manager": 0, "worker": "w1", "url": self.urls[0], "backups": ["w2"]},
                {"manager": 1, "worker": "w2", "url": self.urls[1], "backups": ["w1"]},
            ]

    @staticmethod
    def mark(worker: str, at_ms: int, *, hosts: bool = False) -> dict[str, Any]:
        return {"worker": worker, "hosts": hosts, "at_ms": at_ms}

    def serve(self, view: FakeView) -> str:
        server = WebServer(view, Settings(), gateway=FakeGateway())
        url = server.start()
        self.stack.callback(server.stop)
        return url


@pytest.fixture
def two() -> Iterator[Two]:
    with ExitStack() as stack:
        yield Two(stack)


def test_any_worker_lists_all_and_says_how_far_backups_are_behind(two: Two) -> None:
    answers = [ask(f"{url}/api/exchanges").json() for url in two.urls]
    assert answers[0] == answers[1]
    assert [entry["exchange"] for entry in answers[0]["exchanges"]] == ["a", "b"]
    assert [entry["backup_lag_ms"] for entry in answers[0]["managers"]] == [100, 500]
    assert not answers[0]["truncated"]


def test_a_worker_that_does_not_answer_is_missing_in_the_list(two: Two) -> None:
    two.first.hosts[1]["url"] = "http://127.0.0.1:9"
    answer = ask(f"{two.urls[0]}/api/exchanges").json()
    assert answer["truncated"]
    assert [entry["exchange"] for entry in answer["exchanges"]] == ["a"]
    assert [entry["backup_lag_ms"] for entry in answer["managers"]] == [None, None]


def test_one_exchange_is_asked_for_at_its_manager(two: Two) -> None:
    two.first.manager_of = two.second.manager_of = lambda exchange: 1  # type: ignore[method-assign]
    for url in two.urls:
        shown = ask(f"{url}/api/exchanges/b").json()
        assert (shown["exchange"], shown["worker"], shown["backups"]) == ("b", "w2", ["w1"])
    assert ask(f"{two.urls[0]}/api/exchanges/c").status == 404
    assert ask(f"{two.urls[0]}/api/exchanges/a%0Ab").status == 400
    two.first.hosts[1]["url"] = "http://127.0.0.1:9"
    assert ask(f"{two.urls[0]}/api/exchanges/b").status == 503
    two.first.hosts[1] |= {"worker": None, "url": None}
    assert ask(f"{two.urls[0]}/api/exchanges/b").status == 503


def test_workers_ask_each_other_for_marks_alone(two: Two) -> None:
    assert ask(f"{two.urls[0]}/api/exchanges?local=marks").json() == {"marks": two.first.marks}
    assert [entry["exchange"] for entry in ask(f"{two.urls[1]}/api/exchanges?local=1").json()["exchanges"]] == ["b"]
