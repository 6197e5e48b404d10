"""A real browser for the pages that vila_mc writes: Debian's Chromium, driven by Playwright.

Playwright's package is pip's, its own browsers are not used: they would have to be downloaded. It
speaks the DevTools protocol, which the system's Chromium speaks, too; Selenium needs a chromedriver
of the very same release beside it, and tells nothing of requests without a further protocol.

Where one of the two is missing the tests are skipped, and say which. ``tools/setup/chromium.sh``
installs Chromium where apt and root are, ``tools/setup_venv.sh`` the package.
"""

import shutil
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

PHONE = 360
"""Pixels of a narrow phone's width."""
_NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")
_OPTIONS = (
    "--disable-background-networking",
    "--disable-gpu",
    "--disable-dev-shm-usage",  # containers have little
)


def missing() -> str | None:
    """Why no page can be opened here; None if one can."""
    found = chromium()
    if found is None:
        return f"no Chromium on the PATH (one of {', '.join(_NAMES)}): tools/setup/chromium.sh"
    try:  # Ubuntu's package is a stub that asks for a snap
        subprocess.run([found, "--version"], capture_output=True, timeout=60, check=True)
    except (OSError, subprocess.SubprocessError) as error:
        return f"{found} does not start: {error}"
    try:
        import playwright.sync_api  # noqa: F401
    except ImportError:
        return "Python's playwright is missing: bash tools/setup_venv.sh"
    return None


def chromium() -> str | None:
    """The browser of this machine."""
    return next((found for name in _NAMES if (found := shutil.which(name))), None)


@contextmanager
def started_browser() -> Iterator[Any]:
    """One browser process, which ends with the block."""
    from playwright.sync_api import sync_playwright

    with sync_playwright() as driver:
        browser = driver.chromium.launch(
            executable_path=chromium(), args=list(_OPTIONS), chromium_sandbox=False
        )
        yield browser
        browser.close()


@dataclass
class OpenPage:
    """A page in the browser, and what it did beside being shown."""

    page: Any
    """Playwright's."""
    said: list[str] = field(default_factory=list)
    """Every line of the console, errors of scripts and refusals of the page's policy among them."""
    asked: list[str] = field(default_factory=list)
    """Addresses it asked for, beside its own."""

    def count(self, selector: str) -> int:
        """How many elements there are."""
        return int(self.page.locator(selector).count())

    def texts(self, selector: str) -> list[str]:
        """What stands in each of them, on one line."""
        return [" ".join(text.split()) for text in self.page.locator(selector).all_inner_texts()]

    def overflow(self) -> int:
        """Pixels by which the page is wider than the window."""
        return int(
            self.page.evaluate(
                "document.documentElement.scrollWidth - document.documentElement.clientWidth"
            )
        )

    def smallest_text(self) -> float:
        """Height in pixels of the smallest letters that are shown, pictures scaled as they are."""
        return float(self.page.evaluate(_SMALLEST_TEXT))

    def focused(self) -> str:
        """What has the keyboard: its ARIA label, name or tag."""
        return str(
            self.page.evaluate(
                "(e => e.ariaLabel || e.id || e.tagName.toLowerCase())(document.activeElement)"
            )
        )

    def tab_to(self, name: str, most: int = 60) -> None:
        """Press Tab until ``name`` (as ``focused`` says it) has the keyboard."""
        for _ in range(most):
            self.page.keyboard.press("Tab")
            if self.focused() == name:
                return
        raise AssertionError(f"{most} times Tab do not lead to {name}")

    def narrowest_cell(self) -> float:
        """Width in pixels of the narrowest cell of a table with more than three letters."""
        return float(self.page.evaluate(_NARROWEST_CELL))

    def require_quiet(self) -> None:
        """Nothing in the console, no request, script or dialogue, nothing wider than the page."""
        assert self.said == []
        assert self.asked == []
        assert self.count("script, iframe, object, embed, link, base") == 0
        assert self.page.evaluate(_HANDLERS) == []
        assert self.overflow() <= 0


_SMALLEST_TEXT = """() => {
  const sizes = [];
  const walker = document.createTreeWalker(document.body, NodeFilter.SHOW_TEXT);
  while (walker.nextNode()) {
    const element = walker.currentNode.parentElement;
    if (!walker.currentNode.data.trim() || !element.checkVisibility()) continue;
    if (["TITLE", "STYLE"].includes(element.tagName.toUpperCase())) continue;
    const scale = element.ownerSVGElement ? element.getScreenCTM() : {a: 1, b: 0};
    sizes.push(parseFloat(getComputedStyle(element).fontSize) * Math.hypot(scale.a, scale.b));
  }
  return Math.min(...sizes);
}"""
_NARROWEST_CELL = """() => Math.min(...[...document.querySelectorAll("td, th")]
  .filter(cell => cell.checkVisibility() && cell.innerText.trim().length > 3)
  .map(cell => cell.getBoundingClientRect().width))"""
_HANDLERS = """() => [...document.querySelectorAll("*")].flatMap(
  element => element.getAttributeNames().filter(name => name.startsWith("on")))"""


@contextmanager
def opened(
    browser: Any, file: Path, width: int = 1280, colours: str = "light"
) -> Iterator[OpenPage]:
    """Show a file in a window of its own, with nothing of what others left behind.

    Args:
        browser: of ``started_browser``.
        file: an HTML page.
        width: of the window, in pixels.
        colours: light or dark.
    """
    with opened_at(browser, file.resolve().as_uri(), width, colours) as shown:
        yield shown


@contextmanager
def opened_at(
    browser: Any, address: str, width: int = 1280, colours: str = "light"
) -> Iterator[OpenPage]:
    """``opened``, of an address."""
    context = browser.new_context(
        viewport={"width": width, "height": 800}, color_scheme=colours, has_touch=width <= PHONE
    )
    try:
        page = context.new_page()
        shown = OpenPage(page)
        page.on("console", lambda line: shown.said.append(line.text))
        page.on("pageerror", lambda error: shown.said.append(str(error)))
        page.on("dialog", lambda dialog: _dismissed(dialog, shown))
        page.on("request", lambda request: _noted(request.url, address, shown))
        page.goto(address)
        yield shown
    finally:
        context.close()


def _dismissed(dialogue: Any, shown: OpenPage) -> None:
    shown.said.append(dialogue.message)
    dialogue.dismiss()


def _noted(address: str, own: str, shown: OpenPage) -> None:
    if address.rstrip("/") != own and not address.startswith("data:"):
        shown.asked.append(address)
