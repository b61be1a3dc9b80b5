"""The page of alpha serve in a real browser: the distribution's Chromium, without a window, driven by playwright."""

import json
import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from serving import Serving, serving

from alpha.server import Access

CHROMIUM = shutil.which("chromium") or shutil.which("google-chrome")
playwright = pytest.importorskip(
    "playwright.sync_api", reason="playwright is not installed: the page is NOT tested here"
)
needs_chromium = pytest.mark.skipif(CHROMIUM is None, reason="there is no Chromium: the page is NOT tested here")
PROMPT = "The cat sees"


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Serving]:
    with serving(tmp_path_factory.mktemp("run") / "toy", block=128) as running:
        yield running


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    with playwright.sync_playwright() as started:
        opened = started.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox", "--disable-gpu"])
        yield opened
        opened.close()


@pytest.fixture(params=["light", "dark"])
def page(browser: Any, server: Serving, request: pytest.FixtureRequest) -> Iterator[Any]:
    context = browser.new_context(color_scheme=request.param, viewport={"width": 1000, "height": 700})
    opened = context.new_page()
    problems: list[str] = []
    opened.on("pageerror", lambda error: problems.append(str(error)))
    opened.on("console", lambda message: problems.append(message.text) if is_fault(message) else None)
    opened.on("request", lambda sent: problems.append(sent.url) if not at_home(sent.url, server) else None)
    opened.goto(f"http://127.0.0.1:{server.port}/")
    opened.wait_for_selector("#model option", state="attached")
    yield opened
    if folder := os.environ.get("SCREENSHOTS"):
        opened.screenshot(path=str(Path(folder) / f"{request.node.name}.png"))
    context.close()
    assert problems == []


def is_fault(message: Any) -> bool:
    return message.type == "error" and not message.text.startswith("Failed to load resource: the server responded")


def at_home(url: str, server: Serving) -> bool:
    return url.startswith((f"http://127.0.0.1:{server.port}/", "blob:", "data:"))


def written(page: Any) -> str:
    """What the model wrote, when it has ended."""
    page.wait_for_selector("#stop[disabled]")
    return str(page.text_content("#output"))


@needs_chromium
def test_a_text_is_continued_and_the_output_becomes_the_prompt(page: Any) -> None:
    page.fill("#prompt", PROMPT)
    page.fill("#max_tokens", "5")
    page.fill("#seed", "3")
    page.keyboard.press("Control+Enter")
    first = written(page)
    assert first
    page.click("#again")
    assert written(page) == first
    page.click("#run")
    written(page)
    assert page.input_value("#prompt") == PROMPT + first


@needs_chromium
def test_a_token_shows_the_others_and_one_of_them_continues(page: Any) -> None:
    page.fill("#prompt", PROMPT)
    page.fill("#max_tokens", "6")
    page.fill("#seed", "5")
    page.click("#run")
    written(page)
    tokens = page.evaluate("[...document.querySelectorAll('.token')].map((each) => each.textContent)")
    place = next(index for index in range(2, len(tokens)) if tokens[index].strip())
    page.hover(f".token:nth-child({place + 1})")
    others = page.query_selector_all("#alternatives button")
    assert len(others) >= 8
    assert page.evaluate("getComputedStyle(document.getElementById('alternatives')).position") == "absolute"
    other = next(each for each in others if each.is_enabled())
    name = json.loads(f'"{other.query_selector("span").inner_text()}"').replace("\u2423", " ")
    other.click()
    written(page)
    assert page.input_value("#prompt") == PROMPT + "".join(tokens[:place]) + name


@needs_chromium
def test_keys_walk_the_tokens(page: Any) -> None:
    page.fill("#prompt", PROMPT)
    page.fill("#max_tokens", "4")
    page.click("#run")
    written(page)
    page.focus("#output")
    page.keyboard.press("ArrowRight")
    page.keyboard.press("ArrowRight")
    assert page.evaluate("[...document.querySelectorAll('.token')].findIndex((e) => e.matches('.chosen'))") == 1
    page.keyboard.press("Escape")
    assert page.is_hidden("#alternatives")


@needs_chromium
def test_a_chat_is_answered_and_both_roles_can_be_edited(page: Any) -> None:
    page.click("#to-chat")
    page.fill("#max_tokens", "5")
    page.fill("textarea[aria-label='Message 1']", "Hello!")
    page.click("#run")
    page.wait_for_selector("textarea[aria-label='Message 3']")
    assert page.input_value("textarea[aria-label='Message 2']")
    page.fill("textarea[aria-label='Message 2']", "Good day.")
    page.fill("textarea[aria-label='Message 3']", "Why?")
    page.click("#run")
    page.wait_for_selector("textarea[aria-label='Message 5']")
    assert page.input_value("textarea[aria-label='Message 2']") == "Good day."


@needs_chromium
def test_what_is_wrong_is_said(page: Any) -> None:
    page.fill("#top_p", "7")
    with page.expect_response("**/v1/completions") as answer:
        page.click("#run")
    assert answer.value.status == 400
    page.wait_for_selector("#status:has-text('top_p')")


def test_the_page_needs_no_other_host_and_no_key(tmp_path: Path) -> None:
    with serving(tmp_path / "toy", Access("key")) as server:
        for path in ("/", "/web/play.js", "/web/play.css"):
            status, headers, content = server.ask(path)
            assert (status, headers["x-content-type-options"]) == (200, "nosniff")
            assert headers["content-security-policy"].startswith("default-src 'none'; script-src 'self'")
            assert b"http://" not in content.replace(b"http://www.w3.org", b"")
            assert b"https://" not in content
        for path in ("/web/", "/web/../server.py", "/web/%2e%2e/server.py", "/web/none.js"):
            assert server.ask(path)[0] == 404
