"""A real browser: the Chromium that is installed on the machine, driven by Playwright."""

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Final

from playwright.sync_api import Browser, ConsoleMessage, Page, ViewportSize, expect, sync_playwright

NAMES: Final = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")
DESKTOP: Final[ViewportSize] = {"width": 1440, "height": 900}
PHONE: Final[ViewportSize] = {"width": 375, "height": 812}
WAIT_MS: Final = 20_000

expect.set_options(timeout=WAIT_MS)


@contextmanager
def chromium() -> Iterator[Browser]:
    """Start the browser; fails where none is installed, because what was not tried in one is not known to work."""
    path = next((found for name in NAMES if (found := shutil.which(name))), None)
    assert path is not None, "the console is tested in a real browser: install chromium (apt-get install chromium)"
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=path, args=["--no-sandbox", "--disable-dev-shm-usage"])
        try:
            yield browser
        finally:
            browser.close()


class Tab:
    """A page, and everything that it complained about."""

    def __init__(self, browser: Browser, url: str, *, viewport: ViewportSize = DESKTOP, dark: bool = False) -> None:
        self.url = url
        self.complaints: list[str] = []
        context = browser.new_context(viewport=viewport, color_scheme="dark" if dark else "light")
        context.set_default_timeout(WAIT_MS)
        self.page: Page = context.new_page()
        self.page.on("console", self._heard)
        self.page.on("pageerror", lambda error: self.complaints.append(str(error)))

    def _heard(self, message: ConsoleMessage) -> None:
        # A worker that is away, or a request that is refused, is what some tests are about; the browser notes each.
        if message.type in ("error", "warning") and "Failed to load resource" not in message.text:
            self.complaints.append(message.text)

    def go(self, where: str, sees: str) -> Page:
        """Open a view and wait until it shows what the selector names."""
        self.page.goto(f"{self.url}/{where}")
        self.page.locator(sees).first.wait_for()
        return self.page

    def too_wide(self) -> int:
        """How many pixels the page is wider than its window."""
        found = self.page.evaluate("document.documentElement.scrollWidth - document.documentElement.clientWidth")
        return int(found)

    def close(self) -> None:
        """Close it; fails if it complained."""
        self.page.context.close()
        assert self.complaints == []
