"""The dashboard in a terminal, driven by keys as a person would, through textual's pilot."""

import asyncio
import contextlib
import fcntl
import json
import os
import pty
import re
import shutil
import signal
import struct
import subprocess
import sys
import termios
import threading
import time
from collections.abc import Awaitable, Callable, Iterator
from datetime import datetime
from pathlib import Path

import pytest
from small_checkpoint import MODEL, TRAINING, small_checkpoint

pytest.importorskip("textual", reason="textual is not installed: alpha tui is NOT tested here")

from textual.pilot import Pilot
from textual.widgets import DataTable, Input, Log, Static, TabbedContent

from alpha import tui
from alpha.run import Run
from alpha.run_notes import write_notes
from alpha.training_face import STOP_TRAINING
from alpha.tui import Dashboard, Help
from alpha.tui_monitor import Chart

ROOT = Path(__file__).resolve().parent.parent

Test = Callable[[Dashboard, Pilot[int]], Awaitable[None]]


def make(root: Path, name: str, steps: int = 30) -> Path:
    with Run.create(MODEL, TRAINING, folder=root / name) as run:
        for step in range(1, steps + 1):
            row = {"step": step, "loss": 3.0 + 1 / step, "lr": 1e-3, "gradNorm": 0.5, "tokens_per_sec": 100.0 * step}
            run.add_metrics(row | ({"valLoss": 3.5} if step % 10 == 0 else {}))
        run.add_sample({"step": steps, "prompt": "The ", "text": "[bold]cat[/] \x1b[31msat"})
        if steps:
            run.save(small_checkpoint(steps))
    return root / name


@pytest.fixture
def runs(tmp_path: Path) -> Path:
    root = tmp_path / "runs"
    make(root, "old")
    make(root, "new", steps=20)
    return root


def face(root: Path, test: Test, size: tuple[int, int] = (80, 24), **options: object) -> int | None:
    """Let `test` use the dashboard; returns its exit code."""

    async def use() -> int | None:
        app = Dashboard(root, **options)
        async with app.run_test(size=size) as pilot:
            await until(pilot, lambda: bool(app.summaries) or not root.exists())
            await pilot.pause(0.3)
            await test(app, pilot)
        return app.return_value

    return asyncio.run(use())


async def until(pilot: Pilot[int], condition: Callable[[], bool]) -> None:
    for _ in range(400):
        if condition():
            return
        await pilot.pause(0.05)
    raise AssertionError("it did not happen within 20 seconds")


def text_of(app: Dashboard, selector: str) -> str:
    return str(app.query_one(selector, Static).render())


def chart_of(app: Dashboard) -> str:
    return "\n".join("".join(piece.text for piece in row) for row in app.query_one(Chart).rows())


def cells_of(app: Dashboard, selector: str) -> list[list[str]]:
    table = app.query_one(selector, DataTable)
    return [[str(cell) for cell in table.get_row_at(row)] for row in range(table.row_count)]


def tab_of(app: Dashboard) -> str:
    return app.query_one(TabbedContent).active


def test_the_newest_run_is_shown_first_and_grows(runs: Path) -> None:
    async def use(app: Dashboard, pilot: Pilot[int]) -> None:
        await until(pilot, lambda: "A new  loss 3" in text_of(app, "#legend"))
        assert "v 3.5" in text_of(app, "#legend")
        assert set(chart_of(app)) & set(map(chr, range(0x2801, 0x2900)))
        assert chart_of(app).rstrip().splitlines()[-1].split() == ["1", "10.5", "steps", "20"]
        assert "tokens/s" in text_of(app, "#sparks")
        assert text_of(app, "#text") == "step 20: The [bold]cat[/] \\x1b[31msat"
        with (runs / "new" / "metrics.jsonl").open("a") as file:
            file.write('{"step":41,"loss":9.0}\n{"step":')
        await until(pilot, lambda: chart_of(app).rstrip().endswith("41"))

    assert face(runs, use) is None


def test_tabs_by_number_tab_and_escape(runs: Path) -> None:
    async def use(app: Dashboard, pilot: Pilot[int]) -> None:
        for key, tab in (("2", "logs"), ("3", "runs"), ("4", "models"), ("1", "monitor"), ("tab", "logs"),
                         ("tab", "runs"), ("shift+tab", "logs"), ("escape", "monitor")):  # fmt: skip
            await pilot.press(key)
            await until(pilot, lambda tab=tab: tab_of(app) == tab)
        await pilot.press("question_mark")
        assert isinstance(app.screen, Help)
        await pilot.press("escape")
        assert not isinstance(app.screen, Help)
        await pilot.press("q")

    assert face(runs, use) == 0


def test_choosing_and_overlaying_runs(runs: Path) -> None:
    async def use(app: Dashboard, pilot: Pilot[int]) -> None:
        await pilot.press("3")
        await until(pilot, lambda: [row[:2] for row in cells_of(app, "#list")] == [["A", "new"], ["", "old"]])
        await pilot.press("j", "space")
        assert list(app.shown) == ["new", "old"]
        assert [row[0] for row in cells_of(app, "#list")] == ["A", "B"]
        await pilot.press("1")
        await until(pilot, lambda: "B old  loss" in text_of(app, "#legend"))
        assert {"A", "B"} <= set(chart_of(app))
        await pilot.press("3", "k", "space")
        assert list(app.shown) == ["old"]
        await pilot.press("space", "j", "enter")
        assert list(app.shown) == ["old"]
        assert tab_of(app) == "monitor"

    face(runs, use)


def test_axes_scales_and_smoothing(runs: Path) -> None:
    async def use(app: Dashboard, pilot: Pilot[int]) -> None:
        for key, words in (
            ("x", "x tokens, smooth"),
            ("l", "y log"),
            ("L", "x tokens log, y log"),
            ("s", "smooth 0.98"),
        ):
            await pilot.press(key)
            await until(pilot, lambda words=words: words in text_of(app, "#state"))
        await pilot.press("L", "x", "x")
        await until(pilot, lambda: "minutes since 2026-11-28" in chart_of(app))

    with (runs / "new" / "metrics.jsonl").open("a") as file:
        noon = datetime(2026, 11, 28, 12).timestamp()
        file.writelines(f'{{"step":{step},"loss":1,"time":{noon + step}}}\n' for step in range(30, 40))
    face(runs, use)


def test_filters_of_runs_and_of_the_log(runs: Path) -> None:
    async def use(app: Dashboard, pilot: Pilot[int]) -> None:
        await pilot.press("3", "slash", *"old")
        assert app.query_one("#filter", Input).display
        await until(pilot, lambda: [row[1] for row in cells_of(app, "#list")] == ["old"])
        await pilot.press("enter", "j", "enter")
        assert list(app.shown) == ["old"]
        await pilot.press("3", "slash", "escape")
        await until(pilot, lambda: len(cells_of(app, "#list")) == 2)
        await pilot.press("2")
        log = app.query_one("#log", Log)
        await until(pilot, lambda: any("Saved checkpoint-30" in line for line in log.lines))
        await pilot.press("slash", *"opened")
        await until(pilot, lambda: log.line_count <= 2 and "Opened run" in log.lines[0])

    face(runs, use)


def test_a_checkpoint_and_a_sample_of_it(runs: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fake = "import sys; print('Once \\x1b[31mupon', sys.argv[1:3]); print('400 tokens/s', file=sys.stderr)"
    monkeypatch.setattr(tui, "command", lambda: [sys.executable, "-c", fake])

    async def use(app: Dashboard, pilot: Pilot[int]) -> None:
        await pilot.press("4")
        await until(
            pilot, lambda: [row[:2] for row in cells_of(app, "#checkpoints")] == [["checkpoint-20.safetensors", "20"]]
        )
        await pilot.press("enter")
        answer = app.query_one("#answer", Log)
        await until(pilot, lambda: any("400 tokens/s" in line for line in answer.lines))
        text = "\n".join(answer.lines)
        assert "Once \\x1b[31mupon" in text
        assert f"--checkpoint={runs / 'new' / 'checkpoint-20.safetensors'}" in text

    face(runs, use)


def test_a_sample_that_goes_on_is_stopped(runs: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    alive = tmp_path / "alive"
    touch = f"pathlib.Path({str(alive)!r}).touch(); time.sleep(0.05)"
    endless = f"import pathlib, time\nprint('begun', flush=True)\nwhile True: {touch}"
    monkeypatch.setattr(tui, "command", lambda: [sys.executable, "-c", endless])

    async def use(app: Dashboard, pilot: Pilot[int]) -> None:
        await pilot.press("4")
        await until(pilot, lambda: bool(cells_of(app, "#checkpoints")))
        await pilot.press("enter")
        await until(pilot, lambda: "begun" in app.query_one("#answer", Log).lines)
        await until(pilot, alive.exists)
        await pilot.press("escape")
        await until(pilot, lambda: not any(each.group == "sample" and each.is_running for each in app.workers))
        alive.unlink()
        await pilot.pause(0.5)
        assert not alive.exists()

    face(runs, use)


def test_ctrl_c_is_for_the_training_that_started_it(runs: Path) -> None:
    async def use(_app: Dashboard, pilot: Pilot[int]) -> None:
        await pilot.press("ctrl+c")

    assert face(runs, use) == 0
    assert face(runs, use, owns_training=True) == STOP_TRAINING


def test_a_run_that_vanishes_and_one_that_appears(runs: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tui, "_LIST_SECONDS", 0.1)

    async def use(app: Dashboard, pilot: Pilot[int]) -> None:
        assert list(app.shown) == ["new"]
        shutil.rmtree(runs / "new")
        await until(pilot, lambda: list(app.shown) == ["old"])
        await until(pilot, lambda: "A old" in text_of(app, "#legend"))
        shutil.rmtree(runs / "old")
        await until(pilot, lambda: "There are no runs" in text_of(app, "#state"))
        make(runs, "third", steps=5)
        await until(pilot, lambda: "A third" in text_of(app, "#legend"))

    face(runs, use)


def test_hostile_names_and_files(runs: Path) -> None:
    hostile = make(runs, "[red]\x1b[31mx\u202e")
    write_notes(hostile, name="[@click=app.quit]x[/]")
    (hostile / "metrics.jsonl").write_bytes(b'\xff\xfe\n{"step":1,"loss":[1]}\n{"step":2,"loss":1e999}\n[]\n')
    (hostile / "samples.jsonl").write_text(json.dumps({"step": 1, "prompt": "[", "text": "\x1b]0;x\x07"}) + "\n")
    (hostile / "log.txt").write_bytes(b"\x1b[2J[bold]\xff\n")
    (runs / "new" / "metrics.jsonl").unlink()
    (runs / "new" / "metrics.jsonl").mkdir()

    async def use(app: Dashboard, pilot: Pilot[int]) -> None:
        await until(pilot, lambda: "[@click=app.quit]x[/]" in text_of(app, "#legend"))
        assert text_of(app, "#text") == "step 1: [\\x1b]0;x\\x07"
        await pilot.press("2")
        await until(pilot, lambda: "\\x1b[2J[bold]\N{REPLACEMENT CHARACTER}" in app.query_one("#log", Log).lines)
        await pilot.press("3", "slash", *"new", "enter", "enter")
        await until(pilot, lambda: "it is not a regular file" in text_of(app, "#legend"))

    face(runs, use, run_id=hostile.name)


@pytest.mark.parametrize("size", [(10, 3), (20, 6), (40, 12), (200, 60)])
def test_every_size(runs: Path, size: tuple[int, int]) -> None:
    async def use(app: Dashboard, pilot: Pilot[int]) -> None:
        await pilot.press("2", "3", "4", "1")
        for other in ((80, 24), (1, 1), size):
            await pilot.resize_terminal(*other)
            await pilot.pause(0.3)
        assert app.is_running

    face(runs, use, size=size)


def test_no_runs_at_all(tmp_path: Path) -> None:
    async def use(app: Dashboard, pilot: Pilot[int]) -> None:
        await pilot.press("3", "enter", "space", "j", "4", "enter", "2", "1")
        await until(pilot, lambda: "There are no runs in" in text_of(app, "#state"))

    face(tmp_path / "missing", use)


def test_without_a_terminal_it_says_so(runs: Path) -> None:
    command = [sys.executable, str(ROOT / "alpha.py"), "tui", f"--dir={runs}"]
    result = subprocess.run(command, capture_output=True, text=True, check=False)
    assert result.returncode == 1
    assert result.stderr == "alpha: error: The dashboard needs a terminal; alpha runs prints the same runs.\n"


@contextlib.contextmanager
def on_a_terminal(root: Path, **variables: str) -> Iterator[tuple[subprocess.Popen[bytes], int, bytearray]]:
    """alpha tui on a terminal of its own, our end of that, and what is written there, which is read all the time."""
    ours, theirs = pty.openpty()
    fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", 24, 80, 0, 0))
    command = [sys.executable, str(ROOT / "alpha.py"), "tui", f"--dir={root}"]
    environment = os.environ | {"TERM": "xterm-256color", "COLORTERM": "truecolor"} | variables
    screen = bytearray()

    def read() -> None:
        with contextlib.suppress(OSError):  # the end of a terminal
            while more := os.read(ours, 1 << 16):
                screen.extend(more)

    with subprocess.Popen(command, stdin=theirs, stdout=theirs, stderr=theirs, env=environment) as process:
        threading.Thread(target=read, daemon=True).start()
        try:
            yield process, ours, screen
        finally:
            process.kill()
            os.close(theirs)
            os.close(ours)


def shows(screen: bytearray, wanted: bytes) -> None:
    """Wait until something has been written there."""
    end = time.monotonic() + 60
    while wanted not in screen:
        assert time.monotonic() < end, bytes(screen)
        time.sleep(0.05)


def test_without_colour_there_is_none_not_even_grey(tmp_path: Path) -> None:
    make(tmp_path, "a")
    with on_a_terminal(tmp_path, NO_COLOR="1") as (process, terminal, screen):
        shows(screen, b"v 3.5")
        os.write(terminal, b"q")
        assert process.wait(60) == 0
        shows(screen, b"\x1b[?1049l")
    styles = {int(part) for style in re.findall(rb"\x1b\[([0-9;]*)m", screen) for part in style.split(b";") if part}
    assert styles <= {0, 1, 2, 4, 7, 39, 49}


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_a_signal_while_it_starts_gives_the_terminal_back_in_a_line(runs: Path, number: int) -> None:
    with on_a_terminal(runs) as (process, _, screen):
        shows(screen, b"\x1b[?1049h")
        process.send_signal(number)
        assert process.wait(60) == 130
        shows(screen, b"interrupted\r\n")
    _, after = bytes(screen).split(b"\x1b[?1049l")
    assert re.sub(rb"\x1b\[[?<0-9]*[a-z]", b"", after) == b"alpha: interrupted\r\n"


@pytest.mark.parametrize("end", ["q", "SIGTERM"])
def test_a_terminal_is_left_as_it_was_whatever_stops_it_meanwhile(runs: Path, end: str) -> None:
    with on_a_terminal(runs) as (process, terminal, screen):
        before = termios.tcgetattr(terminal)
        shows(screen, b"v 3.5")
        assert termios.tcgetattr(terminal) != before
        for stop in (signal.SIGSTOP, signal.SIGTSTP, signal.SIGSTOP):
            process.send_signal(stop)
            os.waitid(os.P_PID, process.pid, os.WSTOPPED)
            process.send_signal(signal.SIGCONT)
            os.waitid(os.P_PID, process.pid, os.WCONTINUED)
            time.sleep(0.3)
        if end == "q":
            os.write(terminal, b"q")
        else:
            process.terminate()
        assert process.wait(60) == (0 if end == "q" else 130)
        assert termios.tcgetattr(terminal) == before
