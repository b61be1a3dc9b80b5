"""The monitor of the dashboard in a terminal: losses of several runs in one chart, what else one run measures in small
curves, and its newest sample.

What is the same as before is not drawn again. Knows nothing about keys, tabs, or which runs there are.
"""

import dataclasses
import time
from collections.abc import Mapping

import numpy as np
from rich.segment import Segment
from rich.style import Style
from rich.text import Text
from textual.app import ComposeResult
from textual.containers import Vertical, VerticalScroll
from textual.strip import Strip
from textual.widget import Widget
from textual.widgets import Static

from alpha.braille import Line, Piece, draw, letter, number
from alpha.run_metrics import AXES
from alpha.run_reader import FollowedRun, read_samples
from alpha.series import Curve, smooth, sparkline
from alpha.terminal import escape_line, escape_text

SMOOTHINGS = (0.9, 0.98, 0.0)

_COLOURS = ("cyan", "yellow", "magenta", "green", "blue", "red", "white")
_FAINT = len(_COLOURS)
_SPARKS = {"lr": "lr", "gradNorm": "norm", "tokens_per_sec": "tokens/s", "gpuMemory": "memory"}
_SECONDS_OF_HOURS = 2 * 3600
_LAST_TIME = 1e11
"""Later ones have no date; what a file says may be any number."""


@dataclasses.dataclass(frozen=True)
class Scales:
    """How losses are drawn: over which of `run_metrics.AXES`, smoothed by how much, on which logarithmic axes."""

    axis: str = AXES[0]
    smoothing: float = SMOOTHINGS[0]
    log_x: bool = False
    log_y: bool = False

    def __str__(self) -> str:
        return (
            f"x {self.axis}{' log' if self.log_x else ''}{', y log' if self.log_y else ''}, smooth {self.smoothing:g}"
        )


class Chart(Widget):
    """Curves as a Braille chart of the widget's size."""

    def __init__(self, id: str) -> None:
        super().__init__(id=id)
        self._lines: tuple[Line, ...] = ()
        self._scales, self._unit = Scales(), ""
        self._rows: list[list[Piece]] = []
        self._drawn_size: object = None

    def show(self, lines: tuple[Line, ...], scales: Scales, unit: str) -> None:
        """Draw these, whose x is in units that the word `unit` is for."""
        self._lines, self._scales, self._unit = lines, scales, unit
        self._drawn_size = None
        self.refresh()

    def rows(self) -> list[list[Piece]]:
        """What is seen."""
        if self._drawn_size != self.size:
            self._drawn_size = self.size
            scales = self._scales
            self._rows = draw(self._lines, *self.size, scales.log_x, scales.log_y, self._unit)
        return self._rows

    def render_line(self, y: int) -> Strip:
        rows = self.rows()
        pieces = rows[y] if y < len(rows) else []
        segments = [Segment(piece.text, Style.parse(style_of(piece.colour))) for piece in pieces]
        return Strip(segments).adjust_cell_length(self.size.width).apply_style(self.rich_style)


class Monitor(Vertical):
    """The whole of it."""

    DEFAULT_CSS = """
    Monitor #legend, Monitor #sparks { height: auto; }
    Monitor Chart { height: 1fr; min-height: 6; }
    Monitor #sample { height: 4; border-top: solid $accent; }
    """

    def compose(self) -> ComposeResult:
        yield Static(id="legend")
        yield Chart(id="chart")
        yield Static(id="sparks")
        with VerticalScroll(id="sample", can_focus=False):
            yield Static(id="text")

    def on_mount(self) -> None:
        self._shown: dict[str, Text] = {}

    def show(self, runs: Mapping[str, FollowedRun], titles: Mapping[str, str], scales: Scales) -> None:
        """Losses of all these runs by id, and what else there is of the first."""
        lines: list[Line] = []
        legend = Text(no_wrap=True, overflow="ellipsis")
        for i, (run_id, run) in enumerate(runs.items()):
            x = run.axis(scales.axis)
            (at, loss), (validated_at, validation_loss) = run.metrics.curve("loss", x), run.metrics.curve("valLoss", x)
            mean = smooth(loss, scales.smoothing)
            is_alone = len(runs) == 1
            if is_alone and scales.smoothing:
                lines.append(Line(at, loss, _FAINT))
            lines.append(Line(at, mean, _colour(i), letter(i)))
            lines.append(Line(validated_at, validation_loss, _colour(i + is_alone), "v" if is_alone else ""))
            legend.append(f"{letter(i)} ", style_of(_colour(i)))
            legend.append(f"{escape_line(titles.get(run_id, run_id))}  loss {_last(mean)}")
            legend.append(f"  v {_last(validation_loss)}", style_of(_colour(i + 1)) if is_alone else "")
            if run.metrics.share < 1:
                legend.append(f"  reading {run.metrics.share:.0%}")
            if run.problem:
                legend.append(f"  {escape_line(run.problem)}", "red")
            legend.append("\n")
        legend.rstrip()
        drawn, unit = tuple(lines), "steps" if scales.axis == "step" else scales.axis
        if unit in ("elapsed", "time"):
            drawn, unit = _over_time(drawn, is_date=unit == "time")
        self.query_one(Chart).show(drawn, scales, unit)
        first = next(iter(runs.values()), None)
        for name, text in (("legend", legend), ("sparks", self._sparks(first)), ("text", _newest_sample(first))):
            if self._shown.get(name) != text:
                self._shown[name] = text
                self.query_one(f"#{name}", Static).update(text)

    def _sparks(self, run: FollowedRun | None) -> Text:
        """Two to a line, each as wide as half the screen."""
        text = Text(no_wrap=True)
        if run is None:
            return text
        width = max(8, self.size.width // 2 - 20)
        for i, name in enumerate(name for name in _SPARKS if name in run.metrics.columns.names):
            _, y = run.metrics.curve(name, run.axis("step"))
            places = np.rint(np.linspace(0, len(y) - 1, width)).astype(int)
            last = f"{y[-1] / 1e6:,.0f} MB" if name == "gpuMemory" and len(y) else _last(y)
            text.append(f"{_SPARKS[name]:<8} ")
            text.append(sparkline(y[places] if len(y) >= width else y).ljust(width), style_of(_colour(i)))
            text.append(f" {last:<9}")
            text.append("\n" if i % 2 else " ")
        text.rstrip()
        return text


def style_of(colour: int | None) -> str:
    """Of a curve with this number of a colour, in rich's words."""
    if colour is None:
        return ""
    return "dim" if colour == _FAINT else _COLOURS[colour]


def _over_time(lines: tuple[Line, ...], is_date: bool) -> tuple[tuple[Line, ...], str]:
    """Lines over seconds, or over dates, as lines over hours or minutes since they begin, and words for that."""
    ends = [line.x[[0, -1]] for line in lines if len(line.x)] or [np.zeros(2)]
    begin = float(np.min(ends)) if is_date else 0.0
    seconds, unit = (3600, "hours") if np.max(ends) - begin >= _SECONDS_OF_HOURS else (60, "minutes")
    if is_date and begin < _LAST_TIME:
        unit += time.strftime(" since %Y-%m-%d %H:%M", time.localtime(begin))
    return tuple(dataclasses.replace(line, x=(line.x - begin) / seconds) for line in lines), unit


def _newest_sample(run: FollowedRun | None) -> Text:
    samples = read_samples(run.samples) if run else []
    if not samples:
        return Text("The newest sample of the run stands here.", style="dim")
    newest = samples[-1]
    text = Text(f"step {newest['step']}: ", style="bold")
    text.append(escape_text(newest["prompt"]), "not bold underline")
    text.append(escape_text(newest["text"]), "not bold")
    return text


def _colour(index: int) -> int:
    return index % len(_COLOURS)


def _last(values: Curve) -> str:
    return number(float(values[-1])) if len(values) else "-"
