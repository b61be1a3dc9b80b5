"""Charts in a terminal: curves as dots of Braille characters, two wide and four high in each cell, with axes.

Curves are told apart by colour and by a letter at their end, so that colour is not needed. Knows nothing about what is
drawn, nor how a terminal is written to.
"""

import itertools
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from alpha.series import Curve, pixel_edges, thin

_Integers = npt.NDArray[np.int64]

_DOTS = np.array(((0x01, 0x08), (0x02, 0x10), (0x04, 0x20), (0x40, 0x80)))
"""The bits of a Braille character by row and column of its dots (Unicode chapter 21.1)."""
_BLANK = 0x2800
_LETTERS = "ABCDEFGHIJKLMNOPQRSTUVWXYZ"
_LABEL_WIDTH = 9
_LEAST_WIDTH, _LEAST_HEIGHT = 20, 4
_MARGIN = 0.05
_SAME = 1e-9
_SMALLEST, _LARGEST = 1e-100, 1e100


@dataclass(frozen=True)
class Line:
    """A curve with a colour, a number from 0 that is the caller's business, and whether its end gets a letter."""

    x: Curve
    y: Curve
    colour: int
    letter: str = ""


@dataclass(frozen=True)
class Piece:
    """Characters of one row beside each other, and the colour of the curve that they are of; None for all else."""

    text: str
    colour: int | None = None


def letter(index: int) -> str:
    """The letter of the curve with this number."""
    return _LETTERS[index % len(_LETTERS)]


def draw(
    lines: Sequence[Line], width: int, height: int, log_x: bool = False, log_y: bool = False, x_unit: str = ""
) -> list[list[Piece]]:
    """A chart of `height` rows with `width` characters each; rows are empty where there is no room for a chart.

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
    colours = np.full((rows, columns), -1, dtype=np.int64)
    ends = []
    for line in shown:
        chosen = thin(line.x, line.y, pixel_edges(left, right, 2 * columns, log_x))
        x = np.rint(_place(line.x[chosen], left, right, log_x) * (2 * columns - 1)).astype(np.int64)
        y = np.rint((1 - _place(line.y[chosen], low, high, log_y)) * (4 * rows - 1)).astype(np.int64)
        row, column = _dots_between(x, y)
        np.bitwise_or.at(dots, (row // 4, column // 2), _DOTS[row % 4, column % 2])
        colours[row // 4, column // 2] = line.colour
        ends.append((line, y[-1] // 4, x[-1] // 2))
    characters = np.where(dots, _BLANK + dots, ord(" "))
    for line, last_row, last_column in ends:
        if line.letter:
            characters[last_row, last_column], colours[last_row, last_column] = ord(line.letter), line.colour
    content = [_pieces(*row) for row in zip(characters, colours, strict=True)]
    return [*_with_labels(content, low, high, log_y), *_x_axis(columns, left, right, log_x, x_unit)]


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
    is_point = high - low <= _SAME * abs(high)  # or only rounding differs
    spare = 1e-9 + 1e-3 * abs(high) if is_point else margin * (high - low)
    low, high = low - spare, high + spare
    return (float(np.exp(low)), float(np.exp(high))) if is_logarithmic else (low, high)


def _place(values: Curve, low: float, high: float, is_logarithmic: bool) -> Curve:
    """From 0 at `low` to 1 at `high`, and no further."""
    if is_logarithmic:
        values, low, high = np.log(values), float(np.log(low)), float(np.log(high))
    return np.clip((values - low) / (high - low), 0.0, 1.0)


def _dots_between(x: _Integers, y: _Integers) -> tuple[_Integers, _Integers]:
    """Row and column of each dot on the straight lines from point to point; the same one may come more than once."""
    if len(x) == 1:
        return y, x
    across, down = np.diff(x), np.diff(y)
    counts = np.maximum(np.maximum(abs(across), abs(down)), 1)  # steps of each line; one dot more than that
    line = np.repeat(np.arange(len(counts)), counts + 1)
    ends = np.cumsum(counts + 1)
    share = (np.arange(ends[-1]) - (ends - counts - 1)[line]) / counts[line]
    return (
        np.rint(y[line] + share * down[line]).astype(np.int64),
        np.rint(x[line] + share * across[line]).astype(np.int64),
    )


def _pieces(characters: _Integers, colours: _Integers) -> list[Piece]:
    """A row, in as few pieces as its colours allow."""
    text = "".join(map(chr, characters.tolist()))
    borders = [0, *(np.flatnonzero(np.diff(colours)) + 1).tolist(), len(text)]
    return [
        Piece(text[begin:end], colour if (colour := int(colours[begin])) >= 0 else None)
        for begin, end in itertools.pairwise(borders)
    ]


def _with_labels(content: list[list[Piece]], low: float, high: float, log_y: bool) -> list[list[Piece]]:
    rows = len(content)
    labelled = {0, rows - 1} | ({rows // 2} if rows > _LEAST_HEIGHT else set())
    result = []
    for row, pieces in enumerate(content):
        share = 1 - row / max(1, rows - 1)
        value = low * (high / low) ** share if log_y else low + (high - low) * share
        label = number(value) if row in labelled else ""
        result.append([Piece(f"{label:>{_LABEL_WIDTH}}┤"), *pieces])
    return result


def _x_axis(columns: int, left: float, right: float, log_x: bool, unit: str) -> list[list[Piece]]:
    middle = (left * right) ** 0.5 if log_x else (left + right) / 2
    texts = [number(left), f"{number(middle)} {unit}".strip(), number(right)]
    gap = columns - sum(map(len, texts))
    if gap >= 2:
        labels = texts[0] + " " * (gap // 2) + texts[1] + " " * (gap - gap // 2) + texts[2]
    else:
        labels = f"{texts[0]} {texts[2]}".rjust(columns)[:columns]
    indent = " " * _LABEL_WIDTH
    return [[Piece(f"{indent}└{'─' * columns}")], [Piece(f"{indent} {labels}")]]


def _centred(text: str, width: int, height: int) -> list[list[Piece]]:
    rows: list[list[Piece]] = [[] for _ in range(height)]
    rows[height // 2] = [Piece(text.center(width))]
    return rows
