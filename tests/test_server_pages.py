"""The page of alpha serve in a real browser: the distribution's Chromium, without a window, driven by playwright."""

import importlib.util
import json
import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from serving import Serving, SlowBackend, serving
from waiting import eventually

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
    page.keyboard.press("ArrowDown")
    assert page.evaluate("document.activeElement.closest('#alternatives') !== null")
    page.keyboard.press("Escape")
    assert page.is_hidden("#alternatives")
    assert page.evaluate("document.activeElement.id") == "output"


def message(page: Any, number: int) -> Any:
    return page.locator(f"textarea[aria-label='Message {number}']")


def answered(page: Any, number: int) -> str:
    """What the model said, when it has ended."""
    page.wait_for_selector("#stop[disabled]")
    return str(message(page, number).input_value())


@needs_chromium
def test_a_chat_is_answered_and_both_roles_can_be_edited(page: Any) -> None:
    page.click("#to-chat")
    page.fill("#max_tokens", "5")
    message(page, 1).fill("Hello!")
    page.click("#run")
    message(page, 3).wait_for()
    page.click("button[aria-label='Edit message 2']")
    message(page, 2).fill("Good day.")
    message(page, 3).fill("Why?")
    with page.expect_request("**/v1/chat/completions") as asked:
        page.click("#run")
    assert [each["content"] for each in asked.value.post_data_json["messages"]] == ["Hello!", "Good day.", "Why?"]
    message(page, 5).wait_for()


@needs_chromium
def test_another_token_of_an_answer_continues_it_from_there(page: Any) -> None:
    page.click("#to-chat")
    page.fill("#max_tokens", "6")
    page.fill("#seed", "4")
    message(page, 1).fill("Hello!")
    page.click("#run")
    message(page, 3).wait_for()
    tokens = page.evaluate("[...document.querySelectorAll('#messages .token')].map((each) => each.textContent)")
    assert message(page, 2).input_value().startswith("".join(tokens))
    page.hover("#messages .token:nth-child(3)")
    other = next(each for each in page.query_selector_all("#alternatives button") if each.is_enabled())
    name = json.loads(f'"{other.query_selector("span").inner_text()}"').replace("\u2423", " ")
    with page.expect_request("**/v1/chat/completions") as asked:
        other.click()
    body = asked.value.post_data_json
    assert body["continue_final_message"] is True
    assert [each["role"] for each in body["messages"]] == ["user", "assistant"]
    assert body["messages"][1]["content"] == "".join(tokens[:2]) + name
    assert answered(page, 2).startswith("".join(tokens[:2]) + name)


@needs_chromium
def test_models_write_side_by_side_and_one_of_them_goes_on(page: Any) -> None:
    page.fill("#prompt", PROMPT)
    page.fill("#max_tokens", "4")
    page.fill("#seed", "2")
    page.select_option("#beside", "toy@10")
    assert page.locator("#columns .output").count() == 2
    page.click("#run")
    first = written(page)
    assert first
    assert page.locator("#columns .output").nth(1).text_content() == first  # the same checkpoint, seed and prompt
    page.locator(".head button", has_text="Take over").nth(1).click()
    written(page)
    assert page.input_value("#prompt") == PROMPT + first
    page.click("button[aria-label='Remove 2, of toy@10']")
    assert page.locator("#columns .output").count() == 1


@needs_chromium
def test_what_was_exported_can_be_imported(page: Any, tmp_path: Path) -> None:
    page.fill("#prompt", PROMPT)
    page.fill("#temperature", "0.3")
    page.fill("#max_tokens", "4")
    page.fill("#stop-text", "zzz")
    page.click("#run")
    output = written(page)
    page.click("#to-chat")
    message(page, 1).fill("Hello <b>you</b>!")
    with page.expect_download() as download:
        page.click("#export")
    path = tmp_path / "alpha.json"
    download.value.save_as(path)
    page.reload()
    page.wait_for_selector("#model option", state="attached")
    page.set_input_files("#import", path)
    message(page, 1).wait_for()
    assert message(page, 1).input_value() == "Hello <b>you</b>!"
    page.click("#to-text")
    assert page.input_value("#prompt") == PROMPT
    assert page.text_content("#output") == output
    assert (page.input_value("#temperature"), page.input_value("#stop-text")) == ("0.3", "zzz")
    path.write_text("[broken")
    page.set_input_files("#import", path)
    page.wait_for_selector("#status:has-text('JSON')")


@needs_chromium
def test_stop_ends_the_text_and_what_was_written_stays(browser: Any, tmp_path: Path) -> None:
    with serving(tmp_path / "toy", backend=SlowBackend(), block=400) as server:
        page = browser.new_page()
        page.goto(f"http://127.0.0.1:{server.port}/")
        page.wait_for_selector("#model option", state="attached")
        page.fill("#prompt", PROMPT)
        page.fill("#max_tokens", "390")
        page.fill("#seed", "5")  # of a text that does not end by itself
        page.click("#run")
        page.wait_for_selector(".token", state="attached")
        page.keyboard.press("Escape")
        page.wait_for_selector("#status:has-text('Stopped.')")
        eventually(lambda: server.models.loaded[0].engine.running == 0)
        assert page.locator(".token").count() < 300
        page.close()


@needs_chromium
def test_nothing_is_wrong_for_assistive_technology(page: Any) -> None:
    axe = Path(importlib.util.find_spec("axe_playwright_python").origin).parent / "axe.min.js"  # type: ignore[union-attr,arg-type]
    page.fill("#prompt", PROMPT)
    page.fill("#max_tokens", "6")
    page.fill("#seed", "5")
    page.select_option("#beside", "toy@10")
    page.click("#run")
    written(page)
    page.hover("#output .token:nth-child(2)")
    page.evaluate(axe.read_text())
    for press in ("#to-text", "#to-chat"):
        found = page.evaluate("axe.run().then(({ violations }) => violations)")
        assert [(each["id"], [node["html"] for node in each["nodes"]]) for each in found] == []
        page.click(press if press == "#to-chat" else "#to-chat")


@needs_chromium
@pytest.mark.parametrize("width", [360, 3840])
def test_it_fits_a_phone_and_a_large_screen(page: Any, width: int) -> None:
    page.set_viewport_size({"width": width, "height": 740})
    page.fill("#prompt", "word" * 300)
    page.select_option("#beside", "toy@10")
    for press in ("#to-chat", "#to-text"):
        page.click(press)
        assert page.evaluate("document.documentElement.scrollWidth <= window.innerWidth")


ADD = """async () => {
  const frame = () => new Promise((done) => requestAnimationFrame(() => setTimeout(done)));
  await frame();
  const start = performance.now();
  for (let count = 0; count < 5; count++) {
    document.getElementById("add").click();
    await frame();
  }
  return (performance.now() - start) / 5;
}"""


@needs_chromium
def test_a_long_chat_stays_fast(page: Any, tmp_path: Path) -> None:
    page.click("#to-chat")
    short = page.evaluate(ADD)
    messages = [{"role": ("user", "assistant")[index % 2], "content": f"{index} words " * 40} for index in range(1000)]
    path = tmp_path / "long.json"
    path.write_text(json.dumps({"messages": messages, "chat": True}))
    page.set_input_files("#import", path)
    message(page, 1000).wait_for(state="attached")
    page.evaluate(ADD)
    long = page.evaluate(ADD)
    assert long < 5 * short + 50  # milliseconds to add a message


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
