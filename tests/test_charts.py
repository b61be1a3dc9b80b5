"""The charts of the browser, in a real one: the distribution's Chromium, without a window, driven by playwright."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from browser import started

from alpha.series import pixel_edges, thin

WEB = Path(__file__).resolve().parent.parent / "alpha" / "web"
ORIGIN = "http://charts.test/"
PAGE = """<!doctype html><html lang="en"><meta charset="utf-8"><title>charts</title>
<style>
:root { --chart-text: #222; --chart-grid: #ccc; --chart-back: #fff; color-scheme: light dark }
@media (prefers-color-scheme: dark) {
  :root { --chart-text: #eee; --chart-grid: #444; --chart-back: #111 }
  body { background: #111; color: #eee }
}
.chart-canvas { width: 600px; height: 200px; display: block }
</style>
<main><div id="one"></div><div id="two"></div></main>
<script type="module">
import * as charts from "/charts.js";
window.charts = charts;
window.views = [];
window.group = new charts.ChartGroup({ onView: (view) => views.push(view) });
window.one = new charts.Chart(document.querySelector("#one"), group, { title: "Loss" });
window.two = new charts.Chart(document.querySelector("#two"), group, { title: "Learning rate" });
window.steps = (count, f = (x) => Math.sin(x / 50) + 2) => {
  const x = Float64Array.from({ length: count }, (_, i) => i + 1);
  return { x, y: x.map(f) };
};
window.ready = true;
</script></html>"""


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    with started() as opened:
        yield opened


@pytest.fixture
def page(browser: Any) -> Iterator[Any]:
    context = browser.new_context(color_scheme="light", viewport={"width": 800, "height": 700})
    opened = context.new_page()
    problems: list[str] = []
    opened.on("pageerror", lambda error: problems.append(str(error)))
    opened.on("console", lambda message: problems.append(message.text) if message.type == "error" else None)

    def answer(route: Any) -> None:
        name = route.request.url.removeprefix(ORIGIN)
        if name == "charts.js":
            route.fulfill(body=(WEB / name).read_text(), content_type="text/javascript")
        elif name == "":
            route.fulfill(body=PAGE, content_type="text/html")
        else:
            route.fulfill(status=204)

    opened.route(f"{ORIGIN}**", answer)
    opened.goto(ORIGIN)
    opened.wait_for_function("window.ready")
    yield opened
    context.close()
    assert problems == []


def frame(page: Any) -> None:
    """Let what is due be drawn."""
    page.evaluate("new Promise(done => requestAnimationFrame(() => requestAnimationFrame(done)))")


def pixels(page: Any, which: str = "one") -> str:
    frame(page)
    return page.evaluate(f"{which}.canvas.toDataURL()")


def show(page: Any, count: int = 1000) -> None:
    page.evaluate(
        "count => { one.setCurves([{ label: 'train', ...steps(count), colour: 0 }]);"
        " two.setCurves([{ label: 'lr', ...steps(count, x => 1 / x), colour: 1 }]); }",
        count,
    )
    frame(page)


def test_thinning_keeps_every_extreme_as_in_python(page: Any) -> None:
    y = np.random.default_rng(1).standard_cauchy(5000).round(2)
    x = np.cumsum(np.random.default_rng(2).exponential(size=5000))
    for low, high, pixels_wide in ((x[0], x[-1], 100), (x[1000] + 0.01, x[3000] + 0.01, 37), (-50.0, x[-1] * 2, 64)):
        chosen = page.evaluate(
            "([x, y, low, high, pixels]) => charts.thin(x, y, low, high, pixels)",
            [x.tolist(), y.tolist(), low, high, pixels_wide],
        )
        assert chosen == sorted(set(chosen))
        assert len(chosen) <= 2 * pixels_wide + 4
        expected = thin(x, y, pixel_edges(low, high, pixels_wide))
        edges = pixel_edges(low, high, pixels_wide)
        for i in range(pixels_wide):
            own, theirs = ([k for k in each if edges[i] < x[k] < edges[i + 1]] for each in (chosen, expected))
            assert bool(own) == bool(theirs)
            if own:
                assert (y[own].min(), y[own].max()) == (y[theirs].min(), y[theirs].max())
        assert {chosen[0], chosen[-1]} == {expected[0], expected[-1]}


def test_round_numbers_on_axes(page: Any) -> None:
    assert page.evaluate("charts.ticks(0, 10, 5)") == [0, 2, 4, 6, 8, 10]
    assert page.evaluate("charts.ticks(1, 1000, 4, true)") == [1, 3, 10, 30, 100, 300, 1000]
    assert page.evaluate("charts.ticks(5, 5, 4)") == [5]
    assert page.evaluate("charts.timeTicks(10, 7300, 5, false)") == [1800, 3600, 5400, 7200]
    assert page.evaluate("charts.timeTicks(0, 0.5, 2, false)") == [0, 0.5]
    dates = "charts.timeTicks(1.8e9, 1.8e9 + 90, 4, true).map((at) => new Date(1e3 * at).getSeconds())"
    assert page.evaluate(dates) == [0, 30, 0, 30]
    assert page.evaluate("charts.ticks(0.5, 3.5, 9, false, 1)") == [1, 2, 3]  # of what is counted
    assert page.evaluate("[0, 1234567, 0.00001, NaN, 2.34567].map(charts.format)") == [
        "0", "1.235 M", "1.00e-5", "\u2013", "2.3457"
    ]  # fmt: skip


def test_a_chart_is_drawn_and_says_what_it_shows(page: Any) -> None:
    assert "no numbers yet" in page.get_attribute("#one canvas", "aria-label")
    empty = pixels(page)
    show(page)
    assert pixels(page) != empty
    assert page.get_attribute("#one canvas", "aria-label").startswith("Loss: train 2.")


def test_a_curve_that_differs_from_itself_by_a_rounding_has_an_axis(page: Any) -> None:
    page.evaluate("one.setCurves([{ label: 'norm', x: [1, 2], y: [2.892, 2.892 + 4e-16], colour: 0 }])")
    frame(page)
    low, high = page.evaluate("one.rangeY([[0, 1]], 1, 2)")
    assert low < 2.8
    assert high > 2.9


def test_the_value_at_the_cursor_has_the_raw_one_beside_it(page: Any) -> None:
    page.evaluate(
        "one.setCurves([{ label: 'loss', x: [1, 2], y: [3, 4], colour: 0, faint: true },"
        " { label: 'loss', x: [1, 2], y: [3, 3.5], colour: 0 }])"
    )
    page.evaluate("group.setCursor(1.9)")
    frame(page)
    assert page.evaluate("one.readout.innerText").splitlines() == ["1.9", "\u25cf loss 3.5, raw 4"]
    assert page.get_attribute("#one .chart-readout", "data-side") == "left"


def test_zooming_and_panning_are_linked(page: Any) -> None:
    show(page)
    box = page.locator("#one canvas").bounding_box()
    before = pixels(page, "two")
    page.mouse.move(box["x"] + 200, box["y"] + 50)
    page.mouse.down()
    page.mouse.move(box["x"] + 300, box["y"] + 60)
    page.mouse.up()
    low, high = page.evaluate("group.view")
    assert 200 < low < 300
    assert 400 < high < 500
    assert page.evaluate("views.length") == 1
    assert pixels(page, "two") != before
    page.keyboard.down("Shift")
    page.mouse.move(box["x"] + 300, box["y"] + 50)
    page.mouse.down()
    page.mouse.move(box["x"] + 400, box["y"] + 50)
    page.mouse.up()
    page.keyboard.up("Shift")
    panned = page.evaluate("group.view")
    assert panned[0] < low
    assert panned[1] - panned[0] == pytest.approx(high - low, rel=1e-6)
    page.mouse.dblclick(box["x"] + 300, box["y"] + 50)
    assert page.evaluate("group.view") is None


def test_what_is_looked_at_does_not_jump_when_curves_grow(page: Any) -> None:
    show(page)
    page.evaluate("group.setView([100, 200])")
    page.mouse.move(5, 690)
    before = pixels(page)
    show(page, 2000)
    assert page.evaluate("group.range()") == [100, 200]
    assert pixels(page) == before
    page.evaluate("group.setView(null)")
    assert page.evaluate("group.range()") == [1, 2000]


def test_hovering_shows_every_value_in_every_chart(page: Any) -> None:
    show(page)
    page.evaluate("one.setCurves([...one.curves, { label: 'val', x: [100, 900], y: [5, 6], colour: 2 }])")
    frame(page)
    box = page.locator("#one canvas").bounding_box()
    page.mouse.move(box["x"] + 64 + 524 * 0.8, box["y"] + 100)
    frame(page)
    assert page.inner_text("#one .chart-readout").split("\n")[1:][0].startswith("● train ")
    assert "● val 6" in page.inner_text("#one .chart-readout")
    assert "● lr 0.0012" in page.inner_text("#two .chart-readout")
    page.mouse.move(5, 690)
    frame(page)
    assert page.inner_text("#one .chart-readout") == ""


def test_the_keyboard_does_what_the_pointer_does(page: Any) -> None:
    show(page)
    page.focus("#one canvas")
    page.keyboard.press("End")
    assert page.evaluate("group.cursor") == 1000
    page.keyboard.press("ArrowLeft")
    assert 900 < page.evaluate("group.cursor") < 1000
    page.keyboard.press("+")
    low, high = page.evaluate("group.view")
    assert high - low < 999 / 1.2
    page.keyboard.press("Shift+ArrowLeft")
    assert page.evaluate("group.view")[0] < low
    page.keyboard.press("0")
    assert page.evaluate("group.view") is None
    page.keyboard.press("Escape")
    assert page.evaluate("group.cursor") is None


def test_the_wheel_scrolls_the_page_and_zooms_with_ctrl(page: Any) -> None:
    show(page)
    box = page.locator("#one canvas").bounding_box()
    page.mouse.move(box["x"] + 300, box["y"] + 100)
    page.mouse.wheel(0, -100)
    assert page.evaluate("group.view") is None
    page.keyboard.down("Control")
    page.mouse.wheel(0, -100)
    page.keyboard.up("Control")
    page.wait_for_function("group.view !== null")


def test_logarithmic_axes_leave_out_what_they_cannot_show(page: Any) -> None:
    page.evaluate("one.setCurves([{ label: 'a', x: [0, 1, 10, 100], y: [-1, 1, 0, 5], colour: 0 }])")
    linear = pixels(page)
    page.evaluate("group.setLogX(true); one.logY = true; group.redraw()")
    assert pixels(page) != linear
    assert page.evaluate("group.range()") == [1, 100]
    page.evaluate("group.setView([-5, 50])")
    assert page.evaluate("group.range()[0]") > 0


@pytest.mark.parametrize(
    "curve",
    ["{ x: [], y: [] }", "{ x: [7], y: [0] }", "{ x: [1, 2], y: [3, 3] }", "{ x: [1, 1, 1], y: [1, 2, 3] }",
     "{ x: [1, 2], y: [-1e308, 1e308] }", "{ x: [1, 2], y: [5e-324, 1e-323] }", "{ x: [-1, 0], y: [-1, 0] }"],
)  # fmt: skip
def test_any_numbers_are_drawn(page: Any, curve: str) -> None:
    for is_log in ("false", "true"):
        page.evaluate(
            f"one.logY = {is_log}; group.setLogX({is_log}); one.setCurves([{{ label: 'a', colour: 0, ...{curve} }}])"
        )
        page.evaluate("group.setCursor(1)")
        assert pixels(page).startswith("data:image/png")


def test_a_png_has_a_background(page: Any) -> None:
    show(page)
    first = page.evaluate(
        "async () => { const image = await createImageBitmap(await one.png());"
        " const canvas = new OffscreenCanvas(9, 9);"
        " const context = canvas.getContext('2d'); context.drawImage(image, 0, 0);"
        " return [image.width, ...context.getImageData(1, 1, 1, 1).data]; }"
    )
    assert first == [600, 255, 255, 255, 255]


def test_the_table_is_made_when_it_is_opened(page: Any) -> None:
    show(page)
    assert page.locator("#one table").count() == 0
    page.click("#one summary")
    page.wait_for_selector("#one table")
    assert page.inner_text("#one caption") == "Loss"
    assert page.locator("#one tbody tr").count() == 50
    assert page.locator("#one tbody th").first.inner_text() == "1"
    assert page.locator("#one tbody th").last.inner_text() == "1000"
    page.evaluate("group.setView([10, 12])")
    show(page)
    assert page.locator("#one tbody th").all_inner_texts() == ["10", "11", "12"]


def test_both_schemes(page: Any) -> None:
    show(page)
    light = pixels(page)
    page.emulate_media(color_scheme="dark")
    assert pixels(page) != light


def test_sixty_frames_a_second_with_ten_runs_of_a_hundred_thousand_steps(page: Any) -> None:
    """What drawing takes, not what a busy machine leaves for it: the fastest of twenty."""
    page.evaluate(
        "one.setCurves(Array.from({ length: 10 }, (_, i) =>"
        " ({ label: `run ${i}`, ...steps(100000, (x) => i + Math.random()), colour: i })))"
    )
    fastest = page.evaluate(
        "() => Math.min(...Array.from({ length: 20 }, () => { const begin = performance.now(); one.draw();"
        " return performance.now() - begin; }))"
    )
    print(json.dumps({"milliseconds": fastest}))
    assert fastest < 50


def test_a_removed_chart_is_gone(page: Any) -> None:
    show(page)
    page.evaluate("two.remove(); group.setView([1, 5])")
    frame(page)
    assert page.locator("#two canvas").count() == 0
    assert page.evaluate("group.charts.length") == 1
