"""Charts in a terminal: curves as dots of Braille characters, two wide and four high in each cell, with axes.

Curves are told apart by colour and by a letter at their end, so that colour is not needed. Knows nothing about what is
drawn, nor how a terminal is written to.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from alpha.series import Curve, pixel_edges, thin

_DOTS = ((0x01, 0x08), (0x02, 0x10), (0x04, 0x20), (0x40, 0x80))
"""The bits of a Braille character by row and column of its dots (Unicode chapter 21.1)."""
_BLANK = 0x2800
_LETTERS = "ABCDEFGHIJKLMNOPQRSTUVWXYZ"
_LABEL_WIDTH = 9
_LEAST_WIDTH, _LEAST_HEIGHT = 20, 4
_MARGIN = 0.05
_SMALLEST, _LARGEST = 1e-100, 1e100


@dataclass(frozen=True)
class Line:
    """A curve with a colour, which is the caller's business, and whether its end gets a letter."""

    x: Curve
    y: Curve
    colour: int
    letter: str = ""


@dataclass(frozen=True)
class Cell:
    """A character and the colour of the curve that it is of; None for axes and labels."""

    character: str
    colour: int | None = None


def letter(index: int) -> str:
    """The letter of the curve with this number."""
    return _LETTERS[index % len(_LETTERS)]


def draw(
    lines: Sequence[Line], width: int, height: int, log_x: bool = False, log_y: bool = False, x_unit: str = ""
) -> list[list[Cell]]:
    """A chart of `height` rows with `width` cells each; rows are empty where there is no room for a chart.

    On a logarithmic axis, what is not above 0 is left out. Of curves that meet in a cell, the last is seen.
    """
    if width < _LEAST_WIDTH or height < _LEAST_HEIGHT:
        return [[] for _ in range(height)]
    shown = [line for line in (_visible(line, log_x, log_y) for line in lines) if len(line.x)]
    columns, rows = width - _LABEL_WIDTH - 1, height - 2
    if not shown:
        return _centred("no numbers yet", width, height)
    left, right = _span(np.concatenate([line.x[[0, -1]] for line in shown]), log_x, margin=0.0)
    low, high = _span(np.concatenate([[line.y.min(), line.y.max()] for line in shown]), log_y, margin=_MARGIN)
    dots = np.zeros((rows, columns), dtype=np.int64)
    colours = np.zeros((rows, columns), dtype=np.int64)
    cells = [[Cell(" ") for _ in range(columns)] for _ in range(rows)]
    ends = []
    for line in shown:
        chosen = thin(line.x, line.y, pixel_edges(left, right, 2 * columns, log_x))
        x = _place(line.x[chosen], left, right, log_x) * (2 * columns - 1)
        y = (1 - _place(line.y[chosen], low, high, log_y)) * (4 * rows - 1)
        for row, column in _dots_between(np.rint(x).astype(int), np.rint(y).astype(int)):
            dots[row // 4, column // 2] |= _DOTS[row % 4][column % 2]
            colours[row // 4, column // 2] = line.colour
        ends.append((line, int(np.rint(y[-1])) // 4, int(np.rint(x[-1])) // 2))
    for row, column in np.argwhere(dots).tolist():
        cells[row][column] = Cell(chr(_BLANK + int(dots[row, column])), int(colours[row, column]))
    for line, row, column in ends:
        if line.letter:
            cells[row][column] = Cell(line.letter, line.colour)
    return [*_with_labels(cells, low, high, log_y), *_x_axis(columns, left, right, log_x, x_unit)]


def number(value: float) -> str:
    """A number in at most eight characters."""
    if value and not 1e-3 <= abs(value) < 1e6:
        return f"{value:.2g}" if abs(value) < 1e-3 else f"{value:.3g}".replace("e+0", "e").replace("e+", "e")
    text = f"{value:.4g}"
    return text if "e" not in text else f"{value:.0f}"


def _visible(line: Line, log_x: bool, log_y: bool) -> Line:
    seen = np.ones(len(line.x), dtype=bool)
    if log_x:
        seen &= line.x > 0
    if log_y:
        seen &= line.y > 0
    y = np.clip(line.y[seen], _SMALLEST if log_y else -_LARGEST, _LARGEST)
    return Line(line.x[seen], y, line.colour, line.letter)


def _span(values: Curve, is_logarithmic: bool, margin: float) -> tuple[float, float]:
    """The ends of an axis, which differ, with a margin beyond what is drawn."""
    low, high = float(values.min()), float(values.max())
    if is_logarithmic:
        low, high = np.log(low), np.log(high)
    spare = margin * (high - low) or (1e-9 + 1e-3 * abs(high) if low == high else 0.0)
    low, high = low - spare, high + spare
    return (float(np.exp(low)), float(np.exp(high))) if is_logarithmic else (low, high)


def _place(values: Curve, low: float, high: float, is_logarithmic: bool) -> Curve:
    """From 0 at `low` to 1 at `high`, and no further."""
    if is_logarithmic:
        values, low, high = np.log(values), float(np.log(low)), float(np.log(high))
    return np.clip((values - low) / (high - low), 0.0, 1.0)


def _dots_between(x: np.ndarray, y: np.ndarray) -> set[tuple[int, int]]:
    """Row and column of each dot on the straight lines from point to point."""
    dots = {(int(y[0]), int(x[0]))} if len(x) else set()
    for x0, y0, x1, y1 in zip(x[:-1].tolist(), y[:-1].tolist(), x[1:].tolist(), y[1:].tolist(), strict=True):
        count = max(abs(x1 - x0), abs(y1 - y0), 1)
        dots |= {(y0 + round(i * (y1 - y0) / count), x0 + round(i * (x1 - x0) / count)) for i in range(count + 1)}
    return dots


def _with_labels(cells: list[list[Cell]], low: float, high: float, log_y: bool) -> list[list[Cell]]:
    rows = len(cells)
    labelled = {0, rows - 1} | ({rows // 2} if rows > _LEAST_HEIGHT else set())
    result = []
    for row, content in enumerate(cells):
        share = 1 - row / max(1, rows - 1)
        value = low * (high / low) ** share if log_y else low + (high - low) * share
        label = number(value) if row in labelled else ""
        result.append([Cell(character) for character in f"{label:>{_LABEL_WIDTH}}┤"] + content)
    return result


def _x_axis(columns: int, left: float, right: float, log_x: bool, unit: str) -> list[list[Cell]]:
    middle = (left * right) ** 0.5 if log_x else (left + right) / 2
    texts = [number(left), f"{number(middle)} {unit}".strip(), number(right)]
    gap = columns - sum(map(len, texts))
    if gap >= 2:
        labels = texts[0] + " " * (gap // 2) + texts[1] + " " * (gap - gap // 2) + texts[2]
    else:
        labels = f"{texts[0]} {texts[2]}".rjust(columns)[:columns]
    indent = " " * _LABEL_WIDTH
    return [[Cell(each) for each in line] for line in (f"{indent}└{'─' * columns}", f"{indent} {labels}")]


def _centred(text: str, width: int, height: int) -> list[list[Cell]]:
    rows: list[list[Cell]] = [[] for _ in range(height)]
    rows[height // 2] = [Cell(character) for character in text.center(width)]
    return rows
