"""The console, and servers that are declared down and restored: with real views."""

from collections.abc import Iterator

import pytest
from playwright.sync_api import expect

from app.client import Client
from tests.support.browser import Tab, chromium
from tests.support.cluster import Workers

pytestmark = pytest.mark.broker


@pytest.fixture
def desk(workers: Workers) -> Iterator[Tab]:
    """A tab on a cluster of two workers with some sessions."""
    workers.start_ready("w1", "w2")
    with Client(str(workers.config["bootstrap.servers"]), workers.namespace) as client:
        for task in [client.send(f"tenant-{n}", f"s{n}", "counter.add", {"amount": 1}) for n in range(40)]:
            client.result(task, timeout=30)
    with chromium() as browser:
        tab = Tab(browser, workers.running[0].url)
        yield tab
        tab.close()


def test_a_server_is_declared_down_and_restored(desk: Tab) -> None:
    page = desk.go("#/server/2", ".facts")
    page.get_by_role("button", name="Declare it down …").click()
    page.get_by_role("dialog").get_by_role("button", name="Declare it down", exact=True).click()
    expect(page.locator(".toast").filter(has_text="Fail server 2: server closed")).to_be_visible(timeout=20_000)
    expect(page.locator(".badge.bad")).to_have_text("down")
    page.get_by_role("link", name="Overview").click()
    expect(page.locator(".tile.down")).to_have_count(1)
    expect(page.locator(".view h3")).to_contain_text("View 1: server 2 fails")
    expect(page.locator(".view .badge")).to_have_text("closed")
    expect(page.locator(".markers .closed")).to_have_count(8)
    page.locator(".tile.down").click()
    page.get_by_role("button", name="Restore …").click()
    page.get_by_role("dialog").get_by_role("button", name="Restore", exact=True).click()
    expect(page.locator(".toast").filter(has_text="Restore server 2: server restored")).to_be_visible(timeout=20_000)
    expect(page.locator(".badge.good").first).to_have_text("up")
    page.get_by_role("link", name="Overview").click()
    expect(page.locator(".view h3")).to_contain_text("View 2: server 2 returns")
    expect(page.locator(".tile.down")).to_have_count(0)
