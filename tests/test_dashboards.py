"""The pages about runs in a real browser, while a real training runs."""

import csv
import io
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from browser import page_of, started, wait_until
from serving import Serving, serving
from small_checkpoint import MODEL, TRAINING, small_checkpoint
from small_training import text_of

from alpha.run import Run
from alpha.run_notes import write_notes
from alpha.series import smooth

ALPHA = [sys.executable, str(Path(__file__).resolve().parent.parent / "alpha.py")]
LOSS = "canvas[aria-label^='Loss: training']"
DRAWN = "(canvas) => canvas.toDataURL()"


def make(root: Path, name: str, steps: int, loss: float = 1.0) -> Path:
    """A finished run with curves as of a training."""
    noise = np.random.default_rng(steps)
    with Run.create(MODEL, TRAINING, folder=root / name) as run:
        for step in range(1, steps + 1):
            row = {"step": step, "loss": loss + 2 / step + 0.1 * noise.random(), "lr": 1e-3, "gradNorm": noise.random(),
                   "clipped": step % 9 == 0, "skipped": step == 50, "tokens": 64 * step, "time": 1.8e9 + step,
                   "elapsed_ms": 10.0 * step, "tokens_per_sec": 6400.0}  # fmt: skip
            run.add_metrics(row | ({"valLoss": loss + 1 / step} if step % 20 == 0 else {}))
        for step in (50, 100):
            run.add_sample({"step": step, "prompt": "Once <i>", "text": f"there was {step}"})
        run.save(small_checkpoint(steps, val_loss=loss))
    return root / name


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    with started() as opened:
        yield opened


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("dashboards") / "runs"
    make(folder, "first", 200)
    make(folder, "second", 300, loss=2.0)
    make(folder, "third", 100, loss=3.0)
    write_notes(folder / "second", name="<b>bold</b>", group="sweep")
    write_notes(folder / "third", group="sweep")
    return folder


@pytest.fixture(scope="module")
def server(root: Path) -> Iterator[Serving]:
    with serving(root.parent, root=root, allow_edit=True) as running:
        yield running


@pytest.fixture(params=["light", "dark"])
def page(browser: Any, server: Serving, request: pytest.FixtureRequest) -> Iterator[Any]:
    with page_of(browser, origin(server), request.node.name, color_scheme=request.param) as opened:
        yield opened


def origin(server: Serving) -> str:
    return f"http://127.0.0.1:{server.port}"


def drawn(page: Any, chart: str = LOSS) -> str:
    """A chart as it is, when what was asked for has come, and nothing changes any more."""
    page.wait_for_selector(chart)
    before, now = "", page.eval_on_selector(chart, DRAWN)
    while now != before:
        page.wait_for_timeout(400)
        before, now = now, page.eval_on_selector(chart, DRAWN)
    return now


def test_runs_are_listed_sorted_and_found(page: Any, server: Serving) -> None:
    page.goto(f"{origin(server)}/runs")
    page.wait_for_selector("tbody tr:nth-child(3)")
    names = "[...document.querySelectorAll('tbody th')].map((each) => each.innerText.split('\\n')[0])"
    assert set(page.evaluate(names)) == {"first", "<b>bold</b>", "third"}
    page.click("thead button:text('Val loss')")
    assert page.evaluate(names) == ["third", "<b>bold</b>", "first"]
    assert page.get_attribute("th:has-text('Val loss')", "aria-sort") == "descending"
    page.wait_for_selector(".sparkline")
    page.fill("input[type=search]", "sweep thi")
    assert page.evaluate(names) == ["third"]
    assert "q=sweep+thi" in page.url
    page.reload()
    page.wait_for_selector("tbody tr")
    assert page.evaluate(names) == ["third"]
    page.fill("input[type=search]", "")
    page.select_option("select >> nth=1", "sweep")
    assert len(page.evaluate(names)) == 2
    page.click("a:text('third')")
    page.wait_for_selector(LOSS)


def test_a_run_is_shown_with_all_that_belongs_to_it(page: Any, server: Serving) -> None:
    page.goto(f"{origin(server)}/run?id=first")
    page.wait_for_selector(LOSS)
    page.wait_for_selector(".sample b")
    titles = page.eval_on_selector_all("figcaption h3", "(all) => all.map((each) => each.innerText)")
    assert titles == ["Loss", "Learning rate", "Gradient norm", "Tokens per second"]
    assert page.inner_text(".sample") == "Once <i>there was 100"
    page.focus("input[aria-label='Which sample']")
    page.keyboard.press("ArrowLeft")
    assert page.inner_text(".sample") == "Once <i>there was 50"
    assert "iters" in page.inner_text("section:has(> h2:text('Options'))")
    assert "Saved checkpoint-200" in page.inner_text("pre")
    assert page.get_attribute("tbody a", "href") == "/?model=first%40200"
    with page.expect_download() as download:
        page.click("button:text('Download')")
    assert Path(download.value.path()).read_bytes()[8:9] == b"{"
    with page.expect_download() as download:
        page.click("button[aria-label='Loss as CSV']")
    rows = list(csv.DictReader(io.StringIO(Path(download.value.path()).read_text())))
    assert list(rows[0]) == ["step", "loss", "valLoss"]
    assert (len(rows), len([row for row in rows if row["valLoss"]])) == (200, 10)
    with page.expect_download() as download:
        page.click("button[aria-label='Loss as PNG']")
    assert Path(download.value.path()).read_bytes().startswith(b"\x89PNG")


def test_what_is_looked_at_is_in_the_address(page: Any, server: Serving) -> None:
    page.goto(f"{origin(server)}/run?id=first")
    whole = drawn(page)
    box = page.locator(LOSS).bounding_box()
    page.mouse.move(box["x"] + 200, box["y"] + 50)
    page.mouse.down()
    page.mouse.move(box["x"] + 300, box["y"] + 60)
    page.mouse.up()
    wait_until(page, "location.search.includes('from=')")
    page.select_option("select", "tokens")
    wait_until(page, "location.search.includes('x=tokens') && !location.search.includes('from=')")
    page.focus(LOSS)
    page.keyboard.press("+")
    page.check("text=Log y")
    wait_until(page, "location.search.includes('logy=1') && location.search.includes('from=')")
    page.mouse.move(1, 1)
    zoomed = drawn(page)
    assert zoomed != whole
    page.reload()
    page.mouse.move(1, 1)
    assert drawn(page) == zoomed
    page.click("button:text('Show all')")
    wait_until(page, "!location.search.includes('from=')")


def test_a_curve_that_grows_for_days_stays_small_and_right(page: Any, server: Serving) -> None:
    page.goto(f"{origin(server)}/models")
    noise = np.random.default_rng(3).normal(size=30_000).round(3)
    noise[12_345] = 99.0
    grown = page.evaluate(
        """async (y) => {
          const { Curves } = await import("/web/curves.js");
          const curves = new Curves("x", ["loss"], ["loss"]);
          curves.view = { axis: "step", smoothing: 0.95 };
          const empty = () => ({ loss: { x: [], y: [], count: 0 } });
          curves.whole = { plain: empty(), mean: empty(), marks: {}, version: [0, 0], meanVersion: [0, 0] };
          for (let begin = 0; begin < y.length; begin += 100) {
            const loss = y.slice(begin, begin + 100);
            curves.append({ begin, metrics: { step: loss.map((_, i) => begin + i), loss } });
          }
          return { plain: curves.curve("loss"), mean: curves.curve("loss", true) };
        }""",
        noise.tolist(),
    )
    assert len(grown["plain"]["x"]) < 10_000
    assert max(grown["plain"]["y"]) == 99.0
    assert grown["mean"]["x"][-1] == 29_999
    np.testing.assert_allclose(grown["mean"]["y"][-1], smooth(noise, 0.95)[-1])


def test_runs_are_compared_in_one_picture(page: Any, server: Serving) -> None:
    page.goto(f"{origin(server)}/runs")
    page.check("input[aria-label='Choose first']")
    page.check("input[aria-label='Choose third']")
    page.click("button:text('Compare 2')")
    training = "canvas[aria-label^='Training loss: first']"
    both = drawn(page, training)
    assert page.url.endswith("/compare?run=first&run=third")
    assert "None: all options" in page.inner_text("section:has(> h2:text('Options'))")
    titles = page.eval_on_selector_all("figcaption h3", "(all) => all.map((each) => each.innerText)")
    losses = ["Training loss", "Validation loss", "Validation, bits per byte"]
    assert titles == [*losses, "Learning rate", "Gradient norm", "Tokens per second"]
    with page.expect_download() as download:
        page.click("button[aria-label='Learning rate as CSV']")
    rows = list(csv.DictReader(io.StringIO(Path(download.value.path()).read_text())))
    assert [(row["run"], row["lr"]) for row in rows] == [("first", "0.001")] * 200 + [("third", "0.001")] * 100
    page.uncheck("input[aria-label='Show third']")
    assert drawn(page, training) != both
    assert page.url.endswith("/compare?run=first&run=third&hide=third")
    page.select_option("label:has-text('Group') select", "sweep")
    page.wait_for_url("**/compare?group=sweep")
    page.wait_for_selector("canvas[aria-label^='Training loss: ']")
    assert set(page.eval_on_selector_all("ul.runs a", "(all) => all.map((e) => e.innerText)")) == {
        "<b>bold</b>",
        "third",
    }
    page.select_option("label:has-text('newest') select", "2")
    page.wait_for_url("**/compare?newest=2")
    page.wait_for_selector("ul.runs li:nth-child(2)")


def test_models_and_domains(page: Any, server: Serving) -> None:
    page.goto(f"{origin(server)}/models")
    page.click("thead button:text('Val loss')")
    page.click("thead button:text('Val loss')")
    assert page.inner_text("tbody tr >> nth=0").split("\t")[:4] == ["first", "200", "1.0000", "96"]
    assert page.get_attribute("tbody td a", "href") == "/?model=first%40200"
    page.goto(f"{origin(server)}/domains")
    page.wait_for_selector("article:nth-child(10)")
    assert "6 layers of 128" in page.inner_text("article#novels")
    page.click("article#novels summary:text('prompts')")
    assert "Chapter One" in page.inner_text("article#novels details")


def test_the_playground_takes_the_model_that_was_clicked(browser: Any, server: Serving) -> None:
    with page_of(browser, origin(server)) as page:
        page.goto(f"{origin(server)}/?model=first%40200")
        page.wait_for_selector("#model option", state="attached")
        wait_until(page, "document.getElementById('model').value === 'first@200'")
        page.click("nav a:text('Runs')")
        page.wait_for_selector("tbody tr")


@pytest.mark.parametrize("width", [1300, 390])
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_nothing_bars_people_from_a_page(browser: Any, server: Serving, scheme: str, width: int) -> None:
    axe = pytest.importorskip("axe_playwright_python.sync_playwright", reason="axe is not installed: NOT tested here")
    size = {"width": width, "height": 800}
    with page_of(browser, origin(server), color_scheme=scheme, viewport=size, bypass_csp=True) as page:
        for path, ready in (
            ("/runs", "tbody tr"), ("/run?id=first", ".sample b"), ("/compare", "section:has(> h2) .hint"),
            ("/models", "tbody tr"), ("/domains", "article"),
        ):  # fmt: skip
            page.goto(f"{origin(server)}{path}")
            page.wait_for_selector(ready)
            for details in page.query_selector_all("summary"):
                details.click()
            found = axe.Axe().run(page).response["violations"]
            assert [(path, each["id"], each["nodes"][0]["html"]) for each in found] == []
            assert page.evaluate("document.documentElement.scrollWidth <= innerWidth"), path


def test_what_people_write_is_kept(browser: Any, server: Serving, root: Path) -> None:
    make(root, "edited", 20)
    with page_of(browser, origin(server)) as page:
        page.on("dialog", lambda dialog: dialog.accept())
        page.goto(f"{origin(server)}/run?id=edited")
        page.click("summary:text('Name, group, notes')")
        page.fill("input[name=name]", "renamed")
        page.fill("textarea[name=notes]", "two\nlines")
        page.click("button:text('Save')")
        page.wait_for_selector("h2:text('renamed')")
        assert '"two\\nlines"' in (root / "edited" / "notes.json").read_text()
        page.fill("input[name=name]", "x" * 100)
        page.click("button:text('Delete the run')")
        page.wait_for_url("**/runs")
        assert not (root / "edited").exists()


def test_whatever_lies_among_runs_breaks_no_page(browser: Any, tmp_path: Path) -> None:
    """Names and texts that are markup or commands of a terminal, lines that are no JSON, numbers out of range, pipes,
    links to elsewhere, folders without rights, and two thousand others."""
    folder = tmp_path / "runs"
    evil = "<img src=x onerror=alert(1)> \u202e\x1b[31m'\"&"
    strange = make(folder, evil.replace("/", ""), 20)
    with (strange / "metrics.jsonl").open("ab") as file:
        file.write(b'no JSON\n\xff\xfe\n[1]\n{"step": 31, "loss": 1e999}\n{"step": 32, "loss": "x", "lr": -1e308}\n')
        file.write(
            b'{"step": 1e3}\n{"step": 9007199254740993}\n{"step": 33, "' + b"x" * 5000 + b'": 1}\n{"step": 34, "lo'
        )
    (strange / "samples.jsonl").write_text(
        '{"step": 1, "prompt": "<script>alert(2)</script>", "text": "\\u001b[2J"}\n{}\n'
    )
    (strange / "notes.json").write_text('{"name": "<b>x</b>", "group": "\\u001b]0;t\\u0007", "notes": 7}')
    (strange / "status.json").write_text('{"phase": "failed", "time": 1e300, "error": "<i>e</i>", "host": 3}')
    for name, content in (("damaged", "{"), ("list", "[]")):
        (folder / name).mkdir()
        (folder / name / "config.json").write_text(content)
        (folder / name / "metrics.jsonl").touch()
    os.mkfifo(make(folder, "pipe", 3) / "log.fifo")
    (folder / "pipe" / "metrics.jsonl").unlink()
    os.mkfifo(folder / "pipe" / "metrics.jsonl")
    (folder / "loop").symlink_to(folder / "loop")
    (make(folder, "future", 3) / "metrics.jsonl").touch()
    os.utime(folder / "future" / "metrics.jsonl", (1e11, 1e11))
    locked = make(folder, "locked", 3)
    config = (folder / "future" / "config.json").read_text()
    for i in range(2000):
        (folder / f"many-{i:04}").mkdir()
        (folder / f"many-{i:04}" / "config.json").write_text(config)
        (folder / f"many-{i:04}" / "metrics.jsonl").touch()
    locked.chmod(0)
    try:
        with serving(tmp_path, root=folder) as server, page_of(browser, origin(server)) as page:
            page.on("dialog", lambda dialog: pytest.fail(dialog.message))
            page.goto(f"{origin(server)}/runs")
            page.wait_for_selector("text=/20\\d\\d runs/")
            assert page.locator("tbody tr").count() == 100
            page.fill("input[type=search]", "onerror")
            page.click("tbody a")
            page.wait_for_selector(LOSS)
            page.wait_for_selector(".sample b")
            assert page.inner_text("h2 >> nth=0") == "<b>x</b>"
            assert page.inner_text(".sample b") == "<script>alert(2)</script>"
            assert page.inner_text(".error >> nth=0") == "<i>e</i>"
            for name in ("damaged", "list", "pipe", "future"):
                page.goto(f"{origin(server)}/run?id={name}")
                page.wait_for_selector("pre")
            page.goto(f"{origin(server)}/compare?run=damaged&run=future&run=none")
            page.wait_for_selector("section .error")
            page.goto(f"{origin(server)}/compare?newest=50")
            page.wait_for_selector("ul.runs li:nth-child(50)")
            page.goto(f"{origin(server)}/models")
            page.wait_for_selector("tbody tr")
    finally:
        locked.chmod(0o755)


def test_a_run_whose_name_is_not_utf8_is_shown(browser: Any, tmp_path: Path) -> None:
    make(tmp_path / "runs", os.fsdecode(b"caf\xe9 \xc3\xa9"), 20)
    make(tmp_path / "runs", "other", 20)
    with serving(tmp_path, root=tmp_path / "runs") as server, page_of(browser, origin(server)) as page:
        page.goto(f"{origin(server)}/runs")
        page.fill("input[type=search]", "caf")
        page.click("tbody a")
        page.wait_for_selector(LOSS)
        assert page.inner_text("h2 >> nth=0") == "caf\\xe9 é"
        page.goto(page.url.replace("/run?id=", "/compare?run=other&run="))
        page.wait_for_selector("canvas[aria-label^='Training loss: other'][aria-label*='caf']")


def test_a_run_that_is_not_there_is_said(browser: Any, server: Serving) -> None:
    with page_of(browser, origin(server)) as page:
        page.goto(f"{origin(server)}/run?id=../../etc")
        page.wait_for_selector("#problem:has-text('There is no run')")


def test_a_run_that_vanishes_while_somebody_looks_is_said_and_shown_when_it_is_back(
    browser: Any, server: Serving, root: Path, tmp_path: Path
) -> None:
    make(root, "vanishing", 20)
    with page_of(browser, origin(server)) as page, page_of(browser, origin(server)) as other:
        page.goto(f"{origin(server)}/run?id=vanishing")
        other.goto(f"{origin(server)}/compare?run=first&run=vanishing")
        page.wait_for_selector(LOSS)
        other.wait_for_selector("ul.runs li:has-text('vanishing'):has-text('loss')")
        (root / "vanishing").rename(tmp_path / "vanishing")
        page.wait_for_selector("#problem:has-text('not there any more')")
        other.wait_for_selector("li:has-text('vanishing'):has-text('not there any more')")
        (tmp_path / "vanishing").rename(root / "vanishing")
        wait_until(page, "!document.getElementById('problem').textContent")


def test_a_training_is_watched_while_it_runs(browser: Any, tmp_path: Path) -> None:
    (tmp_path / "text.txt").write_text(text_of())
    command = [*ALPHA, "train", "--data=text.txt", "--backend=cpu_ref", "--tokenizer=char", "--iters=100000",
               "--block=16", "--dim=16", "--layers=1", "--heads=2", "--batch=2", "--threads=1", "--evalInterval=50",
               "--minTokensPerParam=0", "--evalIters=1", "--sampleInterval=100", "--runDir=runs/live"]  # fmt: skip
    (tmp_path / "runs").mkdir()
    with serving(tmp_path, root=tmp_path / "runs") as server, page_of(browser, origin(server)) as page:
        page.goto(f"{origin(server)}/runs")
        page.wait_for_selector("text=There is no run yet")
        with subprocess.Popen(command, cwd=tmp_path, stderr=subprocess.DEVNULL, stdout=subprocess.DEVNULL) as training:
            try:
                page.wait_for_selector("tr:has-text('live') .status:text('running')", timeout=60_000)
                page.click("a:text('live')")
                page.wait_for_selector(LOSS, timeout=60_000)
                step = (
                    "Number(document.querySelector('dl').innerText.match(/Step\\s+([\\d,]+)/)[1].replaceAll(',', ''))"
                )
                first = page.evaluate(step)
                wait_until(page, f"{step} > {first + 50}")
                wait_until(page, "document.querySelector('pre').innerText.includes('Saved')")
                page.wait_for_selector("tbody a[href^='/?model=']")
                # Somebody looks at a part of it, which stays as it is while the run goes on.
                page.focus(LOSS)
                page.keyboard.press("Home")
                page.keyboard.press("+")
                page.keyboard.press("Escape")
                before = drawn(page)
                now = page.evaluate(step)
                wait_until(page, f"{step} > {now + 50}")
                assert drawn(page) == before
            finally:
                training.send_signal(signal.SIGINT)
        page.wait_for_selector(".status:text('interrupted')", timeout=60_000)
