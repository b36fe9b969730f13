"""The page of `otter serve` in headless Chromium: what it shows, by keyboard, at two widths."""

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from otter_cli.serving.embedded.app import PAGE
from tests.support.live_server import Live, live_server

CHROMIUM = Path("/usr/bin/chromium")
pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    playwright = pytest.importorskip("playwright.sync_api")
    if not CHROMIUM.exists():
        pytest.skip(f"no Chromium at {CHROMIUM}")
    with playwright.sync_playwright() as started:
        browser = started.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield browser
        browser.close()


class Opened:
    """A page that has loaded the model; what its console said, and which addresses it asked for."""

    def __init__(self, browser: Any, address: str, width: int) -> None:
        self.page = browser.new_page(viewport={"width": width, "height": 800})
        self.messages: list[str] = []
        self.addresses: list[str] = []
        self.page.on("console", lambda message: self.messages.append(message.text))
        self.page.on("pageerror", lambda error: self.messages.append(str(error)))
        self.page.on("request", lambda request: self.addresses.append(request.url))
        self.page.goto(address)

    def write(self) -> None:
        self.page.locator("#signal option").first.wait_for(state="attached")
        self.page.fill("#max-tokens", "12")
        self.page.click("#write")
        self.page.locator("#status", has_text="Both answers").wait_for()


@pytest.mark.parametrize("width", [400, 1200])
def test_two_answers_are_written_with_colours_and_a_curve(
    browser: Any, live: Live, endless: None, width: int
) -> None:
    opened = Opened(browser, live.address, width)
    page = opened.page
    page.locator("#guide option").first.wait_for(state="attached")
    page.select_option("#guide", "reward")
    page.fill("#prompt", "hello")
    opened.write()
    messages = [{"role": "user", "content": "hello"}]
    for part, guide in (("#plain", {}), ("#guided", {"reward": 2.0})):
        wanted = live.otter.generate(messages, max_new_tokens=12, guide=guide)
        assert page.inner_text(f"{part} .text").strip() == wanted.text.strip()
        points = page.get_attribute(f"{part} .line", "points").split()
        assert len(points) == len(wanted.token_ids)
        values = wanted.signals["reward"]
        described = f"{len(points)} tokens, reward from {values.min():.3f} to {values.max():.3f}"
        assert described in page.get_attribute(f"{part} .curve", "aria-label")
        lines = page.eval_on_selector_all(
            f"{part} .token", "spans => spans.map(span => span.style.borderBottomWidth)"
        )
        assert len(set(lines)) > 1, "values show by more than colour"
    # Nothing is wider than the window.
    assert page.evaluate("document.documentElement.scrollWidth") == width
    assert not opened.messages
    assert all(address.startswith(live.address) for address in opened.addresses)
    page.close()


def test_everything_works_by_keyboard(browser: Any, live: Live, endless: None) -> None:
    opened = Opened(browser, live.address, 1200)
    page = opened.page
    page.locator("#signal option").first.wait_for(state="attached")
    reached = []
    for _ in range(16):
        page.keyboard.press("Tab")
        reached.append(
            page.evaluate("document.activeElement.id || document.activeElement.className")
        )
    wanted = ["prompt", "signal", "guide", "strength", "stop-when", "max-tokens", "temperature"]
    # After the last element the first one comes again.
    assert [name for name in dict.fromkeys(reached) if name in wanted] == wanted
    page.focus("#strength")
    page.keyboard.press("ArrowRight")
    assert page.inner_text("#strength-value") == "2.5"
    page.focus("#max-tokens")
    page.keyboard.press("Enter")
    page.locator("#status", has_text="Both answers").wait_for()
    page.focus("#plain .text")
    page.keyboard.press("ArrowRight")
    page.keyboard.press("ArrowRight")
    assert re.match(r"Token 2, “.+”: reward -?\d", page.inner_text("#plain .reading"))
    assert page.locator("#plain .marker").count() == 1
    page.close()


def test_names_labels_and_contrast_are_there_for_a_screen_reader(
    browser: Any, live: Live, endless: None
) -> None:
    opened = Opened(browser, live.address, 1200)
    opened.write()
    page = opened.page
    unnamed = page.eval_on_selector_all(
        "textarea, select, input, button, [tabindex='0'], svg",
        "all => all.filter(e => !(e.labels && e.labels.length) && !e.ariaLabel"
        " && !e.getAttribute('aria-label') && !e.textContent.trim()).map(e => e.outerHTML)",
    )
    assert not unnamed
    assert page.get_attribute("#status", "aria-live") == "polite"
    assert page.get_attribute("html", "lang") == "en"
    # WCAG AA asks for 4.5 between text and its background; tokens have the darkest ones.
    assert page.evaluate(CONTRAST) >= 4.5
    page.close()


# The toy is faster than two clicks from here.
STOP_AT_FIRST_TOKEN = """async () => {
  document.getElementById("write").click();
  while (!document.querySelector("#plain .token")) await new Promise((go) => setTimeout(go, 1));
  document.getElementById("stop").click();
}"""

CONTRAST = """() => {
  const light = (text) => {
    const [r, g, b] = text.match(/[\\d.]+/g).map((part) => {
      const share = part / 255;
      return share <= 0.04045 ? share / 12.92 : ((share + 0.055) / 1.055) ** 2.4;
    });
    return 0.2126 * r + 0.7152 * g + 0.0722 * b;
  };
  const ratios = [...document.querySelectorAll("label, small, p, button, h1, h2, .token, summary")]
    .filter((element) => element.offsetParent && element.textContent.trim() && !element.disabled)
    .map((element) => {
      let behind = element;
      const of = (node) => getComputedStyle(node).backgroundColor;
      while (behind.parentElement && of(behind) === "rgba(0, 0, 0, 0)")
        behind = behind.parentElement;
      const pair = [light(getComputedStyle(element).color), light(of(behind))];
      return (Math.max(...pair) + 0.05) / (Math.min(...pair) + 0.05);
    });
  return Math.min(...ratios);
}"""


def test_markup_of_a_model_stays_text(browser: Any, live: Live) -> None:
    """The text of answers and messages is never markup."""
    opened = Opened(browser, live.address, 1200)
    page = opened.page
    evil = "<img src=x onerror=document.title='taken'>"
    signals = {"reward": {"tokens": [1.0], "last": 1.0}}
    choice = {"index": 0, "delta": {"content": evil}, "finish_reason": "stop", "signals": signals}
    chunk = json.dumps({"choices": [choice]})
    page.route(
        "**/v1/chat/completions",
        lambda route: route.fulfill(body=f"data: {chunk}\n\ndata: [DONE]\n\n"),
    )
    opened.write()
    assert page.inner_text("#plain .text") == evil
    page.click("#plain summary")
    assert page.inner_text("#plain td >> nth=0") == evil
    assert page.locator("img").count() == 0 and page.title() != "taken"
    page.close()


def test_errors_are_said_and_writing_can_be_stopped(
    browser: Any, live: Live, endless: None
) -> None:
    opened = Opened(browser, live.address, 1200)
    page = opened.page
    page.locator("#signal option").first.wait_for(state="attached")
    page.fill("#stop-when", "anger>1")
    page.click("#write")
    page.locator("#error", has_text="there is no signal 'anger'").wait_for()
    page.fill("#stop-when", "")
    page.fill("#max-tokens", "400")
    page.evaluate(STOP_AT_FIRST_TOKEN)
    page.locator("#status", has_text="Stopped").wait_for()
    live.wait_until_idle()
    assert page.locator("#plain .token").count() < 400
    page.close()


def test_a_server_with_a_key_asks_for_it(browser: Any, chat_graft: Path) -> None:
    with live_server(chat_graft, api_key="secret") as server:
        opened = Opened(browser, server.address, 1200)
        page = opened.page
        page.locator("#error", has_text="no valid key").wait_for()
        page.fill("#key", "secret")
        page.fill("#max-tokens", "4")
        page.click("#write")
        page.locator("#status", has_text="Both answers").wait_for()
        page.close()


def test_the_page_is_served_with_a_strict_policy_and_names_no_other_host(live: Live) -> None:
    for path, kind in (("/", "text/html"), ("/page.js", "javascript"), ("/page.css", "text/css"),
                       ("/icon.svg", "image/svg")):  # fmt: skip
        reply = httpx.get(live.address + path)
        assert reply.status_code == 200 and kind in reply.headers["content-type"]
        policy = reply.headers["content-security-policy"]
        assert "script-src 'self'" in policy and "unsafe" not in policy
    for file in PAGE.iterdir():
        text = file.read_text().replace("http://www.w3.org/2000/svg", "")
        assert not re.search(r"https?://|//\w+\.\w+|innerHTML|insertAdjacent|eval\(", text), file
        assert "style=" not in text and "onclick" not in text
