"""The display of a training run: what is shown, how often, and that nothing in it reaches the terminal raw."""

import errno
import io
import math
import re
import sys
import time
from collections.abc import Iterator
from typing import Any

import pytest
from rich.console import Console

from alpha.progress import StageProgress, TrainingProgress, _Average, _terminal_console

ESCAPE_SEQUENCE = re.compile(r"\x1b\[[0-9;?]*[A-Za-z]")


class Clock:
    """A clock that goes on only when told."""

    now = 0.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def terminal() -> Iterator[Console]:
    yield Console(file=io.StringIO(), force_terminal=True, width=90, height=30, _environ={"TERM": "xterm"})


def row(step: int, **more: Any) -> dict[str, Any]:
    return {"step": step, "loss": 2.5, "lr": 3e-4, "tokens_per_sec": 12_345.6, "ms_per_iter": 4.3, **more}


def drawn(terminal: Console) -> str:
    assert isinstance(terminal.file, io.StringIO)
    return terminal.file.getvalue()


def test_a_pipe_gets_plain_lines_at_first_now_and_then_and_at_last(
    clock: Clock, capsys: pytest.CaptureFixture[str]
) -> None:
    progress = TrainingProgress(clock=clock)
    progress.start(100)
    for step in range(1, 101):
        clock.now += 0.5
        progress.step(row(step, **({"valLoss": 2.75} if step == 30 else {})))
    progress.close()
    progress.close()
    assert capsys.readouterr().out.splitlines() == [
        "step 1/100  loss 2.5000  12,346 tokens/s  4.3 ms/step  lr 3.00e-04  ETA -:--",
        "step 21/100  loss 2.5000  12,346 tokens/s  4.3 ms/step  lr 3.00e-04  ETA 0:40",
        "step 41/100  loss 2.5000  val 2.7500  12,346 tokens/s  4.3 ms/step  lr 3.00e-04  ETA 0:30",
        "step 61/100  loss 2.5000  val 2.7500  12,346 tokens/s  4.3 ms/step  lr 3.00e-04  ETA 0:20",
        "step 81/100  loss 2.5000  val 2.7500  12,346 tokens/s  4.3 ms/step  lr 3.00e-04  ETA 0:10",
        "step 100/100  loss 2.5000  val 2.7500  12,346 tokens/s  4.3 ms/step  lr 3.00e-04  done in 0:50",
    ]


def test_lines_of_a_long_run_become_rarer(clock: Clock, capsys: pytest.CaptureFixture[str]) -> None:
    progress = TrainingProgress(clock=clock)
    progress.start(36_000)
    for step in range(1, 36_001):
        clock.now += 1
        progress.step(row(step))
    progress.close()
    assert capsys.readouterr().out.count("\n") < 300


def test_a_resumed_run_counts_only_its_own_steps_for_the_time_left(
    clock: Clock, capsys: pytest.CaptureFixture[str]
) -> None:
    progress = TrainingProgress(clock=clock)
    progress.start(100, initial=90)
    clock.now += 2
    progress.step(row(91))
    clock.now += 10
    progress.step(row(92))
    assert capsys.readouterr().out.endswith("ETA 1:20\n")


def test_the_first_step_which_compiles_says_nothing_of_the_others(
    clock: Clock, capsys: pytest.CaptureFixture[str]
) -> None:
    progress = TrainingProgress(clock=clock)
    progress.start(1000)
    clock.now += 5.2
    progress.step(row(1, ms_per_iter=5200.0, tokens_per_sec=10.0))
    for step in range(2, 505):
        clock.now += 0.02
        progress.step(row(step, ms_per_iter=20.0, tokens_per_sec=2600.0))
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].endswith("5,200.0 ms/step  lr 3.00e-04  ETA -:--")
    assert lines[1].endswith("2,600 tokens/s  20.0 ms/step  lr 3.00e-04  ETA 0:10")


@pytest.mark.parametrize("error", [BrokenPipeError(), OSError(errno.EIO, "Input/output error")])
def test_a_display_that_is_lost_raises_nothing_and_says_why(
    error: OSError, clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: Any, **__: Any) -> None:
        raise error

    monkeypatch.setattr("builtins.print", refuse)
    monkeypatch.setattr("alpha.terminal.os.dup2", lambda *_: None)
    progress = TrainingProgress(clock=clock)
    progress.start(10)
    progress.message("a")
    progress.step(row(1))
    progress.sample("a", "b")
    progress.close()
    if isinstance(error, BrokenPipeError):
        assert progress.lost is error
    else:
        assert str(progress.lost) == "Cannot write to standard output: Input/output error."


def test_a_terminal_that_is_gone_raises_nothing(clock: Clock, monkeypatch: pytest.MonkeyPatch) -> None:
    class Gone(io.StringIO):
        gone = False

        def write(self, text: str) -> int:
            if self.gone:
                raise OSError(errno.EIO, "Input/output error")
            return super().write(text)

    file, before = Gone(), sys.stderr
    monkeypatch.setattr("alpha.progress.output_lost", lambda error: setattr(file, "gone", False) or error)
    progress = TrainingProgress(Console(file=file, force_terminal=True, _environ={"TERM": "xterm"}), clock)
    progress.start(10)
    file.gone = True
    progress.step(row(1))
    progress.message("a")
    assert isinstance(progress.lost, OSError)
    assert sys.stderr is before
    progress.close()


def test_events_are_printed_at_once_and_escaped(clock: Clock, capsys: pytest.CaptureFixture[str]) -> None:
    progress = TrainingProgress(clock=clock)
    progress.start(10)
    progress.message("saved \x1b[31mx\ny")
    progress.warning("\x9bcareful")
    progress.sample("The ", "end\x1b]0;t\x07\n\tof [red]it\r")
    progress.sample("", "")
    assert capsys.readouterr().out.splitlines() == [
        "saved \\x1b[31mx\\ny",
        "warning: \\x9bcareful",
        "sample:",
        "  The end\\x1b]0;t\\x07",
        "  \tof [red]it\\r",
        "sample:",
        "  ",
    ]


def test_a_terminal_shows_the_bar_below_the_events_and_gets_its_cursor_back(terminal: Console, clock: Clock) -> None:
    progress = TrainingProgress(terminal, clock)
    progress.start(200, initial=50)
    clock.now += 1
    progress.step(row(100, valLoss=2.75))
    progress.message("saved [bold]x")
    progress.sample("The ", "end\x1b]0;t\x07 \x1b[31mof it")
    progress.close()
    shown = drawn(terminal)
    plain = ESCAPE_SEQUENCE.sub("", shown)
    assert "\x1b]" not in shown
    assert "\x07" not in shown
    assert "saved [bold]x" in plain
    assert "  The end\\x1b]0;t\\x07 \\x1b[31mof it" in plain
    last = [line.rstrip() for line in plain.rstrip().splitlines()[-2:]]
    assert re.fullmatch(r"step 100/200 ━+╸?━* ETA 0:02", last[0].replace("╺", "━"))
    assert last[1] == "loss 2.5000  val 2.7500  12,346 tokens/s  4.3 ms/step  lr 3.00e-04"
    assert shown.rindex("\x1b[?25h") > shown.rindex("\x1b[?25l")


def test_long_events_are_left_to_the_terminal_to_wrap(terminal: Console, clock: Clock) -> None:
    progress = TrainingProgress(terminal, clock)
    progress.start(10)
    progress.message("continue with: " + "word " * 40)
    progress.close()
    assert "word " * 40 in ESCAPE_SEQUENCE.sub("", drawn(terminal))


def test_a_narrow_terminal_is_not_wrapped(clock: Clock) -> None:
    terminal = Console(file=io.StringIO(), force_terminal=True, width=30, height=30, _environ={"TERM": "xterm"})
    progress = TrainingProgress(terminal, clock)
    progress.start(200)
    progress.step(row(100))
    progress.close()
    assert max(map(len, ESCAPE_SEQUENCE.sub("", drawn(terminal)).splitlines())) <= 30


@pytest.mark.parametrize(
    ("seconds_per_step", "yield_every", "most", "least"),
    [
        (0.001, 25, 34, 32),  # 25 steps take less than 0.03 s, so that is what bounds it
        (0.002, 25, 41, 39),  # every 25 steps
        (0.01, 25, 51, 49),  # every 0.2 s, which is 20 steps
        (0.05, 2, 501, 499),  # every 2 steps
        (1.0, 25, 1001, 999),
    ],
)
def test_how_often_a_terminal_is_redrawn(
    seconds_per_step: float,
    yield_every: int,
    most: int,
    least: int,
    terminal: Console,
    clock: Clock,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("ALPHA_CALLBACK_YIELD_EVERY", str(yield_every))
    progress = TrainingProgress(terminal, clock)
    progress.start(1000)
    assert progress._live is not None
    redrawn = 0

    def count() -> None:
        nonlocal redrawn
        redrawn += 1

    monkeypatch.setattr(progress._live, "refresh", count)
    for step in range(1, 1001):
        clock.now += seconds_per_step
        progress.step(row(step))
    assert least <= redrawn <= most
    progress.close()


def test_the_display_costs_less_than_50_microseconds_a_step(terminal: Console, clock: Clock) -> None:
    costs = []
    for _ in range(5):
        progress = TrainingProgress(terminal, clock)
        progress.start(1000)
        start = time.process_time()
        for step in range(1, 1001):
            clock.now += 0.005
            progress.step(row(step))
        costs.append((time.process_time() - start) / 1000)
        progress.close()
    assert min(costs) < 50e-6


def test_a_loss_that_is_not_finite_shows(clock: Clock, capsys: pytest.CaptureFixture[str]) -> None:
    progress = TrainingProgress(clock=clock)
    progress.start(10)
    progress.step(row(1))
    clock.now += 100
    progress.step(row(2, loss=math.nan))
    clock.now += 100
    progress.step(row(3, loss=3.5))
    lines = capsys.readouterr().out.splitlines()
    assert [re.search(r"loss (\S+)", line).group(1) for line in lines] == ["2.5000", "nan", "3.0128"]  # type: ignore[union-attr]


def test_the_average_has_no_initial_bias_and_forgets() -> None:
    average = _Average(0.9)
    assert math.isnan(average.value)
    average.add(None)
    assert math.isnan(average.value)
    average.add(5.0)
    assert average.value == pytest.approx(5.0)
    average.add(3.0)
    assert average.value == pytest.approx((0.9 * 5 + 3) / 1.9)
    for _ in range(500):
        average.add(1.0)
    assert average.value == pytest.approx(1.0)


def test_a_dumb_terminal_gets_plain_lines(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("alpha.progress.terminal_width", lambda: 80)
    monkeypatch.setattr("sys.stdout.isatty", lambda: True, raising=False)
    monkeypatch.setenv("TERM", "dumb")
    assert _terminal_console() is None
    monkeypatch.setenv("TERM", "xterm")
    assert _terminal_console() is not None


def test_stages_show_rate_and_time_left_as_lines_on_standard_error(
    clock: Clock, capsys: pytest.CaptureFixture[str]
) -> None:
    progress = StageProgress(clock=clock)
    for second in range(31):
        clock.now = second
        progress("encoding", second * 2_000_000, 100_000_000)
    progress("learning tokens", 16, 4096)
    clock.now += 11
    progress("learning tokens", 1116, 4096)
    progress("learning tokens", 4096, 4096)
    printed = capsys.readouterr()
    assert printed.out == ""
    assert printed.err.splitlines() == [
        "alpha: encoding: 20.0 of 100.0 MB  2.0 MB/s  0:40 left",
        "alpha: encoding: 40.0 of 100.0 MB  2.0 MB/s  0:30 left",
        "alpha: encoding: 60.0 of 100.0 MB  2.0 MB/s  0:20 left",
        "alpha: learning tokens: 1,116 of 4,096  101/s  0:29 left",
    ]


def test_stages_on_a_terminal_go_when_they_are_done(clock: Clock, terminal: Console) -> None:
    progress = TrainingProgress(terminal, clock)
    for second in range(3):
        clock.now = second
        progress.count("encoding", second * 10_000_000, 100_000_000)
    progress.message("done")
    output = terminal.file
    assert isinstance(output, io.StringIO)
    assert "encoding: 20.0 of 100.0 MB  10.0 MB/s  0:08 left" in output.getvalue()
    assert output.getvalue().rstrip().endswith("done")
    progress.close()
