"""The demo's report: what its pictures are drawn from, and a page that says the truth."""

from html.parser import HTMLParser
from io import StringIO

import pytest
from rich.console import Console, Group

from app.cli import demo_show
from app.cli.demo_report import page
from app.cli.demo_steps import steps
from app.cli.demo_story import Part, Step, Story, Stretch, Task, Tasks, latency, whereabouts
from app.cli.tenants import spread
from app.observe.account import Account
from app.protocol.placement import home_of

VOID = {"meta", "br", "hr", "link", "img", "input"}
HOMES = {0: 0, 1: 0, 2: 1}


def traffic(until: float = 10.0) -> Tasks:
    """Three sessions of two homes; worker w2 dies at 4 s, session 1 is away from 6 s to 8 s."""
    tasks = Tasks()
    for tick in range(int(until * 10)):
        sent_s = tick / 10
        for session, home in HOMES.items():
            away = session == 1 and 6 <= sent_s < 8
            server = 1 if away else home
            worker = "w1" if server == 0 else "w2" if sent_s < 4 else "w3"
            took_ms = max(20.0, (5.0 - sent_s) * 1000) if server == 1 and 4 <= sent_s < 5 else 20.0
            tasks.add(Task(sent_s, took_ms, session, server, worker))
    return tasks


def story(account: Account | None = None, **more: object) -> Story:
    told = steps()
    for number, step in enumerate(told):
        step.state, step.begin_s, step.end_s, step.outcome = "done", float(number), number + 0.5, f"done <{number}>"
    given: dict[str, object] = {
        "account": account or Account(sent=300, performed=300),
        "steps": told,
        "tasks": traffic(),
        "homes": HOMES,
        "servers": 2,
        "seconds": 10.0,
        "takeover_ms": 1_240,
        "pause_ms": 85,
        "facts": {"Kafka": "of its own"},
    }
    return Story(**{**given, **more})  # type: ignore[arg-type]


class Balance(HTMLParser):
    """Fails unless every element is closed where it should be; keeps the addresses that are named."""

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.seen: dict[str, int] = {}
        self.addresses: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.seen[tag] = self.seen.get(tag, 0) + 1
        self.addresses += [value or "" for name, value in attrs if name in ("src", "href")]
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.seen[tag] = self.seen.get(tag, 0) + 1

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag


def read(text: str) -> Balance:
    found = Balance()
    found.feed(text)
    assert found.open == []
    return found


def test_latency_is_told_by_the_time_of_sending() -> None:
    spreads = latency(traffic(), 10.0, 0.5)
    assert len(spreads) == 20
    calm, blow = spreads[0], spreads[8]
    assert (calm.median_ms, calm.longest_ms) == (20.0, 20.0)
    assert blow.from_s == 4.0
    assert blow.longest_ms == pytest.approx(1_000)
    assert blow.median_ms == 20.0


def test_sessions_are_where_their_results_come_from() -> None:
    found = whereabouts(traffic(), HOMES, 10.0, 0.25)
    first, second = found[0], found[1]
    assert first[0] == Stretch(0.0, first[0].to_s, (Part("w1", False, 2),))
    away = [stretch for stretch in first if Part("w3", True, 1) in stretch.parts]
    assert [(stretch.from_s, stretch.to_s) for stretch in away] == [(6.0, 8.0)]
    assert first[-1].parts == (Part("w1", False, 2),)
    assert [stretch.parts for stretch in second] == [
        (Part("w2", False, 1),),
        (Part("", False, 1),),
        (Part("w3", False, 1),),
    ]
    assert second[1].from_s == pytest.approx(4.0)
    assert second[1].to_s == pytest.approx(5.0)


def test_the_page_is_whole_and_needs_nothing_else() -> None:
    text = page(story())
    found = read(text)
    assert found.addresses == []
    assert "url(http" not in text
    assert "@import" not in text
    assert found.seen["svg"] >= 2
    assert "prefers-color-scheme: dark" in text
    assert "None lost, none doubled, none out of order" in text
    assert "1.2 s" in text
    assert "85 ms" in text
    assert "all is right" in text
    assert "<title>6.0 to 8.0 s: 1 of 2 sessions at worker w3, away from their server</title>" in text


def test_the_page_escapes_what_it_is_told() -> None:
    text = page(story(problems=("<script>alert(1)</script>",), facts={"Kafka": "<b>"}))
    assert "<script" not in text
    assert "Done &lt;2&gt;" in text


def test_the_page_of_a_run_with_faults_says_so() -> None:
    account = Account(sent=300, performed=298, lost=2, doubled=1, examples=("lost: tasks 0/7 has no result",))
    told = story(account)
    text = page(told)
    read(text)
    assert not told.ok
    assert "None lost" not in text
    assert "2 lost, 1 doubled" in text
    assert "tasks 0/7 has no result" in text
    assert "something is wrong" in text


def test_a_run_that_ended_early_has_a_page_too() -> None:
    told = story(tasks=Tasks(), homes={}, steps=steps(), takeover_ms=None, pause_ms=None, seconds=1.0)
    assert not told.ok
    read(page(told))


@pytest.mark.parametrize(
    "wrong",
    [
        {"problems": ("the exchange",)},
        {"takeover_ms": None},
        {"pause_ms": None},
        {"account": Account(sent=1, lost=1)},
        {"steps": (Step("x", "X", "", state="failed"),)},
    ],
    ids=lambda wrong: next(iter(wrong)),
)
def test_all_is_right_only_if_everything_is(wrong: dict[str, object]) -> None:
    assert story().ok
    assert not story(**wrong).ok  # type: ignore[arg-type]
    assert story(**wrong).as_json()["ok"] is False  # type: ignore[arg-type]


def test_the_last_line_has_the_fields_of_the_contract() -> None:
    assert list(story().as_json()) == [
        *("ok", "sent", "performed", "failed", "lost", "doubled", "out_of_order", "gaps", "pause_ms", "takeover_ms"),
    ]


def test_the_screen_shows_steps_and_workers() -> None:
    told = steps()
    told[0].state, told[0].outcome = "done", "ready after 3.0 s"
    told[1].state = "now"
    lines = (demo_show.WorkerLine("w1", 17, "ready", (0, 3), 40), demo_show.WorkerLine("w2", 18, "died", (), 7))
    now = demo_show.Snapshot("traffic", 0.2, 100, 90, 0, lines, told, 35.0)
    console = Console(file=StringIO(), width=100)
    console.print(Group(*demo_show.steps_of(now), *demo_show.panel(now, "▁▂")))
    text = console.file.getvalue()  # type: ignore[attr-defined]
    assert "✓ Start" in text
    assert "▶ Traffic" in text
    assert "server 0 3" in text
    assert "10 under way" in text


@pytest.mark.parametrize("servers", [1, 2, 8, 64])
def test_tenants_are_spread_evenly(servers: int) -> None:
    names = spread("t-", servers, 2)
    homes = [home_of(name.encode(), None, servers) for name in names]
    assert homes == [*range(servers), *range(servers)]
    assert len(set(names)) == len(names)
    assert names == spread("t-", servers, 2)
