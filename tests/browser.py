"""A real browser for tests of pages: the distribution's Chromium, without a window, driven by playwright."""

import os
import shutil
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")


@contextmanager
def started() -> Iterator[Any]:
    """A browser; the test is skipped where there is none."""
    playwright = pytest.importorskip(
        "playwright.sync_api", reason="playwright is not installed: pages are NOT tested here"
    )
    if CHROMIUM is None:
        pytest.skip("there is no Chromium: pages are NOT tested here")
    with playwright.sync_playwright() as driver:
        opened = driver.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox", "--disable-gpu"])
        yield opened
        opened.close()


@contextmanager
def page_of(browser: Any, origin: str, name: str = "", **context: Any) -> Iterator[Any]:
    """A page in a context of its own, which may ask `origin` only and must not have an error."""
    made = browser.new_context(**{"color_scheme": "light", "viewport": {"width": 1000, "height": 700}} | context)
    page = made.new_page()
    problems: list[str] = []
    page.on("pageerror", lambda error: problems.append(str(error)))
    page.on("console", lambda message: problems.append(message.text) if is_fault(message) else None)
    page.on("request", lambda sent: problems.append(sent.url) if not is_at_home(sent.url, origin) else None)
    yield page
    if folder := os.environ.get("SCREENSHOTS"):
        page.screenshot(path=str(Path(folder) / f"{name}.png"))
    made.close()
    assert problems == []


def wait_until(page: Any, expression: str, seconds: float = 60.0) -> None:
    """Until an expression is true; `wait_for_function` would need eval, which the pages forbid."""
    end = time.monotonic() + seconds
    while not page.evaluate(expression):
        assert time.monotonic() < end, expression
        page.wait_for_timeout(50)


def is_fault(message: Any) -> bool:
    return message.type == "error" and not message.text.startswith("Failed to load resource: the server responded")


def is_at_home(url: str, origin: str) -> bool:
    return url.startswith((f"{origin}/", "blob:", "data:"))
