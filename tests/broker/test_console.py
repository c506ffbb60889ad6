"""The console in a real browser, on a cluster that works: every view, every order, on a desk and on a phone."""

import json
import re
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from confluent_kafka import Producer
from playwright.sync_api import Browser, Page, Route, ViewportSize, expect

from app.client import Client, ClientSession
from tests.support.broker import clear, new_namespace
from tests.support.browser import DESKTOP, PHONE, Tab, chromium
from tests.support.cluster import Workers, wait_for
from tests.support.web import ask

pytestmark = pytest.mark.broker

NASTY = '<img src=x onerror="document.title=1">&"\''
TENANTS = ("acme", "globex", NASTY)
VIEWS = {
    "": ".workers",
    "#/tenants": "tbody tr",
    "#/tenant/acme": ".facts",
    "#/session/acme/cart-1": ".json",
    "#/server/3": ".facts",
    "#/transfers": "tbody tr",
    "#/exchanges": "tbody tr",
    "#/events": ".event",
}


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    with chromium() as made:
        yield made


@pytest.fixture(scope="module")
def cluster(broker: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Workers]:
    """Two workers with tenants, an upload that is not whole, an exchange that is open, and a move that is over."""
    name = new_namespace()
    with Workers(broker, name, tmp_path_factory.mktemp("console"), migration_timeout=30) as made:
        made.topics()
        first, _ = made.start_ready("w1", "w2")
        with Client(broker, name) as client:
            sent = [
                client.send(tenant, f"cart-{n}", "counter.add", {"amount": n}) for tenant in TENANTS for n in range(4)
            ]
            for task in sent:
                client.result(task, timeout=30)
            assert client.migrate("acme", to=_elsewhere(first.url, "acme"), timeout=30).event == "migration-succeeded"
        _upload(first.url)
        with ClientSession(broker, exchange="sim-42", client="laptop-7", namespace=name) as session:
            session.submit({"seed": 1}, restart={"step": 1})
        yield made
    clear(broker, name)


@pytest.fixture
def desk(browser: Browser, cluster: Workers) -> Iterator[Tab]:
    tab = Tab(browser, cluster.running[0].url)
    yield tab
    tab.close()


def _elsewhere(url: str, tenant: str) -> int:
    home: int = ask(f"{url}/api/tenants/{tenant}").json()["home"]
    return (home + 1) % 8


def _upload(url: str) -> None:
    tus = {"Tus-Resumable": "1.0.0"}
    made = ask(
        f"{url}/files/", data=b"", headers={**tus, "Upload-Length": "1000", "Upload-Metadata": "filename c2Nhbi50aWY="}
    )
    assert made.status == 201, made.body
    where = made.headers["Location"]
    more = {**tus, "Upload-Offset": "0", "Content-Type": "application/offset+octet-stream"}
    sent = ask(where if where.startswith("http") else url + where, data=b"x" * 400, method="PATCH", headers=more)
    assert sent.status == 204, sent.body


def tell(cluster: Workers, *events: dict[str, Any]) -> None:
    """Write events as workers do."""
    producer = Producer({**cluster.config})
    for event in events:
        record = {"at": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()), "id": None, "final": False, **event}
        producer.produce(f"{cluster.namespace}.events", json.dumps(record).encode(), b"view")
    assert producer.flush(10) == 0


# -- every view ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("viewport", "dark"), [(DESKTOP, False), (PHONE, True)], ids=["desk-light", "phone-dark"])
def test_every_view_fits_and_complains_about_nothing(
    browser: Browser, cluster: Workers, viewport: ViewportSize, dark: bool
) -> None:
    tab = Tab(browser, cluster.running[0].url, viewport=viewport, dark=dark)
    for where, sees in VIEWS.items():
        page = tab.go(where, sees)
        assert tab.too_wide() <= 0, where
        faint = page.evaluate(CONTRAST)
        assert faint == [], where
    tab.close()


# The ratio of WCAG 2 between each text and what is painted behind it.
CONTRAST = """() => {
  const channels = (text) => {
    const context = document.createElement("canvas").getContext("2d");
    context.fillStyle = text;
    context.fillRect(0, 0, 1, 1);
    return [...context.getImageData(0, 0, 1, 1).data];
  };
  const linear = (v) => v <= 0.03928 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4;
  const light = (c) => c.slice(0, 3).map((v) => linear(v / 255))
    .reduce((sum, v, at) => sum + v * [0.2126, 0.7152, 0.0722][at], 0);
  const behind = (element) => {
    for (let at = element; at; at = at.parentElement) {
      const found = channels(getComputedStyle(at).backgroundColor);
      if (found[3] > 250) return found;
    }
    return [255, 255, 255, 255];
  };
  const faint = [];
  for (const element of document.querySelectorAll("main *, .top *")) {
    const own = [...element.childNodes].some((node) => node.nodeType === 3 && node.nodeValue.trim());
    if (!own || !element.checkVisibility() || element.closest(".unseen, datalist")) continue;
    const style = getComputedStyle(element);
    const [a, b] = [light(channels(style.color)), light(behind(element))].sort((x, y) => y - x);
    const ratio = (a + 0.05) / (b + 0.05);
    if (ratio < 4.5) faint.push(`${element.tagName}.${element.className}: ${ratio.toFixed(2)}`);
  }
  return faint;
}"""


def test_the_overview_shows_workers_servers_and_their_rates(desk: Tab, cluster: Workers) -> None:
    page = desk.go("", ".workers")
    expect(page.locator("article.worker h3")).to_have_text(["w1", "w2"])
    expect(page.locator(".tile.up")).to_have_count(cluster.settings.servers)
    expect(page.get_by_role("status")).to_contain_text(f"live{cluster.namespace}")
    with Client(str(cluster.config["bootstrap.servers"]), cluster.namespace) as client:
        results = page.locator(".stat.wide strong")
        for _ in range(50):
            client.send("globex", "rate", "echo", {})
        expect(results).not_to_have_text("0")


def test_a_tenant_shows_its_home_and_its_history(desk: Tab) -> None:
    page = desk.go("#/tenants", "tbody tr")
    page.get_by_label("Filter by name").fill("acm")
    expect(page.locator("tbody tr")).to_have_count(1)
    page.get_by_role("link", name="acme").click()
    expect(page.locator("h1")).to_have_text("acme")
    expect(page.locator("tbody .badge.good")).to_have_text("moved")
    expect(page.locator(".event").first).to_contain_text("acme")
    page.get_by_label("Session", exact=True).fill("cart-2")
    page.get_by_role("button", name="Find").click()
    expect(page.locator(".json")).to_contain_text('"total": 2')


def test_search_finds_a_session_by_keyboard_alone(desk: Tab) -> None:
    page = desk.go("", ".workers")
    page.keyboard.press("/")
    page.keyboard.type("globex cart-3")
    page.keyboard.press("Enter")
    expect(page.locator("h1")).to_have_text("cart-3")
    expect(page.locator(".order li")).to_have_count(8)
    expect(page.locator(".order li.here")).to_have_count(1)
    expect(page.locator("main")).to_be_focused()
    page.keyboard.press("/")
    page.keyboard.type("globex nothing")
    page.keyboard.press("Enter")
    expect(page.get_by_role("alert")).to_contain_text("has no session 'nothing'")


def test_names_are_text_and_never_markup(desk: Tab) -> None:
    page = desk.go("#/tenants", "tbody tr")
    page.get_by_role("link", name=NASTY).click()
    expect(page.locator("h1")).to_have_text(NASTY)
    assert page.locator("img[src=x]").count() == 0
    assert page.title().startswith(NASTY)


def test_a_transfer_shows_its_progress_and_an_exchange_who_waits(desk: Tab) -> None:
    page = desk.go("#/transfers", "tbody tr")
    expect(page.locator("tbody tr")).to_contain_text("scan.tif")
    expect(page.get_by_role("progressbar")).to_have_attribute("aria-valuenow", "40")
    page = desk.go("#/exchanges", "tbody tr")
    expect(page.locator("tbody tr").first).to_contain_text("laptop-7 for a server session: request 1 of 1")
    expect(page.get_by_text("manager 3")).to_be_visible()


def test_a_change_of_view_is_drawn_with_its_markers(desk: Tab, cluster: Workers) -> None:
    page = desk.go("", ".workers")
    tell(
        cluster,
        {"event": "server-failed", "view": 7, "server": 2, "manager": "w1"},
        {"event": "marker-published", "view": 7, "router": 0},
        {"event": "marker-reached", "view": 7, "server": 3},
        {"event": "stream-held", "view": 7, "server": 4, "source": 2},
    )
    expect(page.locator(".view h3")).to_contain_text("View 7: server 2 fails")
    expect(page.locator(".markers .reached")).to_contain_text("3")
    expect(page.locator(".markers .holds")).to_have_attribute("title", "server 4: holds for 2")
    ends = [{"event": "server-closed" if n == 2 else "server-normal", "view": 7, "server": n} for n in range(8)]
    tell(cluster, *ends)
    expect(page.locator(".view .badge")).to_have_text("closed")
    expect(page.locator(".markers .closed")).to_have_count(8)


def test_events_can_be_filtered_and_held_still(desk: Tab, cluster: Workers) -> None:
    page = desk.go("#/events", ".event")
    tell(cluster, {"event": "worker-lost", "worker": "w9", "servers": [1]})
    page.get_by_label("Filter by any word").fill("w9")
    expect(page.locator(".event")).to_have_count(1)
    page.get_by_role("button", name="Hold still").click()
    tell(cluster, {"event": "worker-lost", "worker": "w9", "servers": [2]})
    expect(page.get_by_role("button", name="Go on")).to_be_visible()
    expect(page.locator(".event")).to_have_count(1)
    page.get_by_role("button", name="Go on").click()
    expect(page.locator(".event")).to_have_count(2)


def test_colours_follow_the_button_and_are_remembered(desk: Tab) -> None:
    page = desk.go("", ".workers")
    theme = page.get_by_role("button", name="Colours")
    ground = "getComputedStyle(document.body).backgroundColor"
    before = page.evaluate(ground)
    theme.click()
    theme.click()
    assert page.evaluate(ground) != before
    page.reload()
    page.locator(".workers").wait_for()
    assert page.evaluate(ground) != before
    expect(theme).to_have_attribute("aria-label", "Colours: dark")


# -- every order ---------------------------------------------------------------------------------------------------


def toast(page: Page, text: str) -> None:
    expect(page.locator(".toast").filter(has_text=text)).to_be_visible()


def test_a_move_is_ordered_confirmed_and_taken_back(desk: Tab) -> None:
    page = desk.go("#/tenant/globex", ".facts")
    home = page.locator(".facts dd").first.inner_text()
    page.get_by_role("button", name="Move …").click()
    expect(page.get_by_label("To", exact=True)).to_be_focused()
    page.keyboard.press("Escape")
    expect(page.get_by_role("dialog")).to_be_hidden()
    page.get_by_role("button", name="Move …").click()
    page.evaluate("location.hash = '#/tenants'")
    expect(page.get_by_role("dialog")).to_be_hidden()
    page.go_back()
    page.get_by_role("button", name="Move …").click()
    goal = page.get_by_label("To", exact=True).input_value()
    page.get_by_role("button", name="Move", exact=True).click()
    toast(page, f"Move globex to server {goal}: migration succeeded")
    expect(page.locator(".facts dd").first).to_have_text(f"server {goal}")
    page.get_by_role("button", name="Take back").click()
    page.get_by_role("button", name="Move back").click()
    toast(page, "Move globex back: migration succeeded")
    expect(page.locator(".facts dd").first).to_have_text(home)


def test_a_refused_order_says_why(desk: Tab) -> None:
    page = desk.go("#/server/3", ".facts")
    page.evaluate(ABORT)
    page.get_by_role("button", name="Abort the move").click()
    toast(page, "Abort the move of globex: command rejected")


# No view offers to abort what does not move; the order itself is given as its button would.
ABORT = """async () => {
  const { abort } = await import("/console/actions.js");
  abort("globex");
}"""


@pytest.mark.parametrize(
    ("button", "verb", "command"),
    [
        ("Declare it down …", "Declare it down", "fail-server"),
        ("Empty it …", "Empty it", "drain-server"),
    ],
)
def test_orders_about_servers_are_given_as_their_buttons_say(desk: Tab, button: str, verb: str, command: str) -> None:
    page = desk.go("#/server/3", ".facts")
    given: list[dict[str, Any]] = []

    def take(route: Route) -> None:
        given.append(json.loads(str(route.request.post_data)))
        route.fulfill(status=202, json={"id": "made-up"})

    page.route("**/api/commands", take)
    page.get_by_role("button", name=button).click()
    page.get_by_role("dialog").get_by_role("button", name=verb, exact=True).click()
    toast(page, "server 3: ordered")
    [order] = given
    assert (order["command"], order["server"]) == (command, 3)


def test_a_server_that_is_down_can_be_restored(desk: Tab) -> None:
    page = desk.page
    page.add_init_script(DOWN)
    desk.go("#/server/3", ".facts")
    expect(page.locator(".badge.bad")).to_have_text("down")
    given: list[str] = []

    def take(route: Route) -> None:
        given.append(str(route.request.post_data))
        route.fulfill(status=202, json={"id": "made-up"})

    page.route("**/api/commands", take)
    page.get_by_role("button", name="Restore …").click()
    page.get_by_role("dialog").get_by_role("button", name="Restore", exact=True).click()
    toast(page, "Restore server 3: ordered")
    [order] = [json.loads(one) for one in given]
    assert (order["command"], order["server"]) == ("restore-server", 3)


# What the stream tells about server 3 is turned round on its way.
DOWN = """
const parse = JSON.parse;
JSON.parse = (text) => {
  const found = parse(text);
  if (found && found.status && found.status.servers) found.status.servers[3].up = false;
  return found;
};
"""


# -- what may go wrong ---------------------------------------------------------------------------------------------


def test_it_survives_a_restart_of_its_worker(browser: Browser, cluster: Workers, tmp_path: Path) -> None:
    worker = cluster.start("w3")
    worker.wait_ready()
    port = worker.url.rpartition(":")[2]
    tab = Tab(browser, worker.url)
    page = tab.go("", ".workers")
    expect(page.locator("article.worker h3")).to_have_text(["w1", "w2", "w3"])
    worker.kill9()
    expect(page.get_by_role("status")).to_contain_text("reconnecting")
    again = cluster.start("w3", "--port", port)
    again.wait_ready()
    expect(page.get_by_role("status")).to_contain_text("live")
    expect(page.locator(".badge.good").filter(has_text="serving")).to_have_count(3)
    assert again.sigterm() == 0
    tab.complaints = [one for one in tab.complaints if "net::ERR" not in one]
    tab.close()


def test_a_token_is_asked_for_and_kept_for_the_tab(browser: Browser, workers: Workers) -> None:
    worker = workers.start("w1", HOLDFAST_TOKEN="open-sesame")
    worker.wait_ready()
    tab = Tab(browser, worker.url)
    page = tab.go("", "#ask-token")
    page.get_by_label("Token", exact=True).fill("wrong")
    page.keyboard.press("Enter")
    expect(page.get_by_role("alert")).to_contain_text("not the right one")
    page.get_by_label("Token", exact=True).fill("open-sesame")
    page.keyboard.press("Enter")
    expect(page.locator(".workers")).to_be_visible()
    page.reload()
    expect(page.locator(".workers")).to_be_visible()
    assert ask(f"{worker.url}/api/live").status == 401
    tab.close()


def test_the_page_forbids_itself_whatever_it_does_not_need(cluster: Workers) -> None:
    reply = ask(f"{cluster.running[0].url}/")
    policy = reply.headers["Content-Security-Policy"]
    assert "default-src 'none'" in policy
    assert "unsafe" not in policy
    text = reply.body.decode()
    assert re.findall(r"https?://", text) == []
    assert "<script>" not in text
    assert " style=" not in text


def test_events_are_streamed_and_go_on_where_a_reader_was(cluster: Workers) -> None:
    url = cluster.running[0].url
    tell(cluster, {"event": "worker-lost", "worker": "streamed", "servers": []})

    def ids(path: str, **headers: str) -> list[int]:
        return [int(line[4:]) for line in _lines(f"{url}{path}", headers) if line.startswith("id: ")]

    seen = wait_for(lambda: ids("/api/events?last=5"), 10, "the last events")
    assert len(seen) == 5
    # Something may have happened meanwhile.
    assert ids("/api/events", **{"Last-Event-ID": str(seen[1])})[:3] == seen[2:]
    assert ask(f"{url}/api/events?last=many").status == 400


def _lines(url: str, headers: dict[str, str]) -> list[str]:
    """What a stream says at once; then it is left."""
    import urllib.request

    with urllib.request.urlopen(urllib.request.Request(url, headers=headers), timeout=10) as reply:  # noqa: S310 - http only.
        assert reply.headers["Content-Type"].startswith("text/event-stream")
        return str(reply.read1(1 << 20).decode()).splitlines()
