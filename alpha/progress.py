"""Showing a training run while it goes: a live bar on a terminal, a plain line now and then elsewhere.

Fed with the rows of metrics.jsonl as they are made.
"""

import contextlib
import math
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from typing import TYPE_CHECKING, Any

from alpha import environment
from alpha.errors import AlphaError
from alpha.terminal import duration, escape_line, escape_text, output_lost, print_text, terminal_width

if TYPE_CHECKING:
    from rich.console import Console, Group
    from rich.live import Live

_LOSS_MEMORY = 0.95
_SPEED_MEMORY = 0.9
_SHORTEST_REFRESH = 0.03
_LONGEST_REFRESH = 0.2
_LINE_INTERVAL = 10.0
_LINES_PER_RUN = 50
_COUNTED_IN_TOKENS = "learning tokens"


class TrainingProgress:
    """Call `start` once, `step` after every optimizer step, `message`, `warning` and `sample` when there is something
    to say, `close` at the end whatever happened.

    None of these raises when nothing can be shown any more, because the terminal or the reader of a pipe is gone:
    `lost` is then what another would have raised, and the rest is not shown. `console` is a rich console to draw on, by
    default standard output when that is a terminal.
    """

    def __init__(self, console: "Console | None" = None, clock: Callable[[], float] = time.monotonic) -> None:
        self.lost: Exception | None = None
        self._console = console or _terminal_console()
        self._clock = clock
        self._most_steps = environment.read("ALPHA_CALLBACK_YIELD_EVERY")
        self._live: Live | None = None
        self._total = self._initial = self._step = 0
        self._steps_since_refresh = 0
        self._started = self._refreshed = self._first_done = 0.0
        self._loss = _Average(_LOSS_MEMORY)
        self._tokens_per_second = _Average(_SPEED_MEMORY)
        self._milliseconds = _Average(_SPEED_MEMORY)
        self._learning_rate = math.nan
        self._validation_loss = math.nan
        self._stages = StageProgress(self._console, clock)

    def start(self, total: int, initial: int = 0) -> None:
        """Begin the display of a run of `total` steps, of which `initial` are already done."""
        self._stages.close()
        self._total, self._initial, self._step = total, initial, initial
        self._started = self._clock()
        self._refreshed = -math.inf
        if self._console is not None:
            from rich.live import Live

            self._live = Live(get_renderable=self._render, console=self._console, auto_refresh=False)
            self._show(self._live.start)

    def set_total(self, total: int) -> None:
        """The run has another number of steps from now on."""
        self._total = total

    def step(self, metrics: Mapping[str, Any]) -> None:
        """Take in a row of metrics.jsonl; keys that are absent keep their last value on the display."""
        self._step = metrics["step"]
        if self._step == self._initial + 1:
            self._first_done = self._clock()
        elif self._step == self._initial + 2:
            # The first step of a process also compiles, allocates and fills caches.
            self._tokens_per_second, self._milliseconds = _Average(_SPEED_MEMORY), _Average(_SPEED_MEMORY)
        self._loss.add(metrics.get("loss"))
        self._tokens_per_second.add(metrics.get("tokens_per_sec"))
        self._milliseconds.add(metrics.get("ms_per_iter"))
        self._learning_rate = metrics.get("lr", self._learning_rate)
        self._validation_loss = metrics.get("valLoss", self._validation_loss)
        self._steps_since_refresh += 1
        if self._is_due(self._clock()):
            self._refresh()

    def message(self, text: str) -> None:
        """Show one line above the bar, such as an evaluation or a checkpoint."""
        self._print(escape_line(text), "")

    def warning(self, text: str) -> None:
        """Show one line that asks for attention above the bar."""
        self._print(f"warning: {escape_line(text)}", "yellow")

    def sample(self, prompt: str, text: str) -> None:
        """Show a text that the model continued: `text` is what follows `prompt`."""
        lines = escape_text(prompt + text).splitlines() or [""]
        self._print("\n".join(["sample:", *(f"  {line}" for line in lines)]), "cyan")

    def count(self, stage: str, done: int, total: int) -> None:
        """Show how much is done of something that comes before the first step; see StageProgress."""
        self._stages(stage, done, total)

    def close(self) -> None:
        """Show the last state and give the terminal back; may be called more than once."""
        self._stages.close()
        if self._live is not None:
            self._show(self._live.stop)
            self._live = None
        elif self._console is None and self._steps_since_refresh:
            self._refresh()

    def _is_due(self, now: float) -> bool:
        waited = now - self._refreshed
        if self._live is None:
            return waited >= max(_LINE_INTERVAL, (now - self._started) / _LINES_PER_RUN)
        many_steps = self._steps_since_refresh >= self._most_steps
        return waited >= (_SHORTEST_REFRESH if many_steps else _LONGEST_REFRESH)

    def _refresh(self) -> None:
        self._steps_since_refresh = 0
        self._refreshed = self._clock()
        if self._live is not None:
            self._show(self._live.refresh)
        else:
            line = f"step {self._step}/{self._total}  {self._figures()}  {self._time()}"
            self._show(lambda: print_text(line))

    def _print(self, text: str, style: str) -> None:
        self._stages.close()
        console = self._console
        if console is None:
            self._show(lambda: print_text(text))
            return
        from rich.text import Text

        # Long lines are left to the terminal to wrap, so that a command in them can be copied.
        self._show(lambda: console.print(Text(text, style=style), soft_wrap=True))

    def _show(self, show: Callable[[], None]) -> None:
        if self.lost is not None:
            return
        try:
            show()
        except BrokenPipeError as error:
            self.lost = error
        except OSError as error:  # of rich
            self.lost = output_lost(error)
        except AlphaError as error:
            self.lost = error
        if self.lost is not None and self._live is not None:
            self._live.stop()  # nobody sees it any more, but it gives standard error back
            self._live = None

    def _figures(self) -> str:
        figures = [f"loss {self._loss.value:.4f}"]
        if not math.isnan(self._validation_loss):
            figures.append(f"val {self._validation_loss:.4f}")
        figures.append(f"{self._tokens_per_second.value:,.0f} tokens/s")
        figures.append(f"{self._milliseconds.value:,.1f} ms/step")
        figures.append(f"lr {self._learning_rate:.2e}")
        return "  ".join(figures)

    def _time(self) -> str:
        """The time that is left, at the mean speed since the first step was done, or in all when nothing is left."""
        now = self._clock()
        done = self._step - self._initial - 1
        if self._step >= self._total:
            return f"done in {duration(now - self._started)}"
        if done < 1:
            return "ETA -:--"
        return f"ETA {duration((now - self._first_done) / done * (self._total - self._step))}"

    def _render(self) -> "Group":
        from rich.console import Group
        from rich.progress_bar import ProgressBar
        from rich.table import Table
        from rich.text import Text

        digits = len(str(self._total))
        bar = Table.grid(expand=True, padding=(0, 1))
        bar.add_column(no_wrap=True)
        bar.add_column(ratio=1)
        bar.add_column(no_wrap=True)
        counter = Text(f"step {self._step:>{digits}}/{self._total}", style="bold")
        bar.add_row(counter, ProgressBar(total=max(1, self._total), completed=self._step), Text(self._time()))
        return Group(bar, Text(self._figures(), no_wrap=True, overflow="ellipsis"))


class StageProgress:
    """How far work has come that takes long and is not training: call it with a stage, what is done and what is wanted.

    On a terminal, a line with rate and time left, which goes when its stage is done; elsewhere a line on standard error
    now and then. Stages count bytes, but "learning tokens". Call `close` at the end; it may be used again afterwards.
    """

    def __init__(self, console: "Console | None" = None, clock: Callable[[], float] = time.monotonic) -> None:
        self._console = console or _terminal_console()
        self._clock = clock
        self._stage = ""
        self._started = self._shown = 0.0
        self._live: Live | None = None
        self._line = ""

    def __call__(self, stage: str, done: int, total: int) -> None:
        now = self._clock()
        if stage != self._stage:
            self.close()
            self._stage, self._started, self._shown = stage, now, now
        if done >= total:
            self.close()
        elif now - self._shown >= (_LINE_INTERVAL if self._console is None else _LONGEST_REFRESH):
            self._shown = now
            self._show(self._describe(done, total, now - self._started))

    def close(self) -> None:
        """Take the line away."""
        if self._live is not None:
            self._live.stop()
            self._live = None
        self._stage = ""

    def _describe(self, done: int, total: int, elapsed: float) -> str:
        rate = done / elapsed
        left = f"{duration((total - done) / rate)} left" if done else ""
        if self._stage == _COUNTED_IN_TOKENS:
            return f"{self._stage}: {done:,} of {total:,}  {rate:,.0f}/s  {left}"
        return f"{self._stage}: {done / 1e6:,.1f} of {total / 1e6:,.1f} MB  {rate / 1e6:,.1f} MB/s  {left}"

    def _show(self, line: str) -> None:
        if self._console is None:
            print(f"alpha: {line}", file=sys.stderr)
            return
        from rich.live import Live
        from rich.text import Text

        self._line = line
        if self._live is None:
            self._live = Live(
                get_renderable=lambda: Text(self._line, no_wrap=True, overflow="ellipsis"),
                console=self._console,
                auto_refresh=False,
                transient=True,
            )
            self._live.start()
        self._live.refresh()


class _Average:
    """An exponential moving average, unbiased from the first value on; NaN while the last value is not finite.

    Source: Kingma and Ba, "Adam", 2014, section 3 (correction of the initial bias).
    """

    def __init__(self, memory: float) -> None:
        self._memory = memory
        self._sum = self._weight = 0.0
        self.value = math.nan

    def add(self, value: float | None) -> None:
        if value is None:
            return
        if not math.isfinite(value):
            self.value = value
            return
        self._sum = self._memory * self._sum + (1 - self._memory) * value
        self._weight = self._memory * self._weight + (1 - self._memory)
        self.value = self._sum / self._weight


def _terminal_console() -> "Console | None":
    if terminal_width() is None:
        return None
    from rich.console import Console

    console = Console(highlight=False)
    return None if console.is_dumb_terminal else console


@contextlib.contextmanager
def counting(what: str) -> Iterator[Callable[[int, int], None]]:
    """On a terminal, a bar for work that counts bytes; the function given takes bytes done and wanted (0 = unknown).

    Off a terminal nothing is shown: such work takes seconds.
    """
    console = _terminal_console()
    if console is None:
        yield lambda done, wanted: None
        return
    from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TimeRemainingColumn, TransferSpeedColumn

    columns = (TextColumn(what), BarColumn(), DownloadColumn(), TransferSpeedColumn(), TimeRemainingColumn())
    with Progress(*columns, console=console, transient=True) as bar:
        task = bar.add_task(what, total=None)
        yield lambda done, wanted: bar.update(task, completed=done, total=wanted or None)
