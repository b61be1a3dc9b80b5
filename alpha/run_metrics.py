"""The numbers of a run as columns, kept up to date while its metrics.jsonl grows.

A row whose step is not above that of an earlier row supersedes it and all after it, as when a run goes on from a
checkpoint. Knows nothing about what the numbers mean, but for those that can be an axis.
"""

import itertools
import os
import sys
import time
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from alpha.errors import AlphaError
from alpha.files import Row, open_regular
from alpha.followed_files import LineFollower, parse_lines
from alpha.series import Curve

AXES = ("step", "tokens", "elapsed", "time")
"""Optimizer steps; tokens trained on; seconds of training; seconds since 1970, by the clock of the machine."""

_MOST_COLUMNS = 100
_LARGEST_STEP = 1 << 53
_BLOCK_BYTES = 1 << 18
_LARGE_BYTES = 1 << 24
_PREVIEW_ROWS = 1000
_LONGEST_ROW = 4096
_NUMBERS = {int, float, bool, type(None)}


class Columns:
    """Rows by step, in arrays of float64; what a row does not have, or is not a finite number, is NaN."""

    def __init__(self) -> None:
        self._count = 0
        self._columns: dict[str, Curve] = {"step": np.empty(0)}

    def __len__(self) -> int:
        return self._count

    @property
    def names(self) -> tuple[str, ...]:
        """The columns that have a number, "step" first; at most 100."""
        return tuple(self._columns)

    def column(self, name: str) -> Curve:
        """A column, which must not be changed; all NaN when no row has it."""
        known = self._columns.get(name)
        return np.full(self._count, np.nan) if known is None else known[: self._count]

    def append(self, rows: Iterable[Row]) -> bool:
        """Add rows; those without a step are passed over. Returns whether rows that were there are superseded."""
        valid = [row for row in rows if type(step := row.get("step")) is int and 0 <= step < _LARGEST_STEP]
        if not valid:
            return False
        steps = np.array([row["step"] for row in valid], dtype=np.float64)
        lowest_after = np.minimum.accumulate(steps[::-1])[::-1]
        stays = np.append(steps[:-1] < lowest_after[1:], True)
        kept = int(np.searchsorted(self.column("step"), steps.min()))
        is_superseding = kept < self._count
        self._count = kept
        self._make_room(int(stays.sum()))
        for name in dict.fromkeys(itertools.chain.from_iterable(valid)):
            values = _as_numbers([row.get(name) for row in valid])[stays]
            if name not in self._columns:
                if len(self._columns) >= _MOST_COLUMNS or np.isnan(values).all():
                    continue
                self._columns[name] = np.full(len(self._columns["step"]), np.nan)
            self._columns[name][kept : kept + len(values)] = values
        self._count += int(stays.sum())
        return is_superseding

    def _make_room(self, count: int) -> None:
        needed = self._count + count
        for name, old in self._columns.items():
            if len(old) < needed:
                self._columns[name] = np.full(max(needed, 2 * len(old)), np.nan)
                self._columns[name][: self._count] = old[: self._count]
            else:
                self._columns[name][self._count :] = np.nan


class RunMetrics:
    """The metrics of one run, followed. Call `update` now and then; `columns` has what is known.

    A long file takes a while: until it is read, `columns` are a thousand rows from all over it, and `share` says how
    much is read. `generation` changes whenever rows that were there are void.
    """

    def __init__(self, path: Path) -> None:
        self.generation = 0
        self.others = 0
        """Lines that are not JSON objects."""
        self._follower = LineFollower(path)
        self._read = Columns()
        self._preview: Columns | None = None

    @property
    def columns(self) -> Columns:
        return self._read if self._preview is None else self._preview

    @property
    def share(self) -> float:
        """From 0 to 1."""
        return 1.0 if self._preview is None else self._follower.offset / max(1, self._follower.size)

    @property
    def version(self) -> tuple[int, int]:
        """Another one whenever `columns` are."""
        return self.generation, len(self.columns)

    def update(self, seconds: float = 0.05) -> bool:
        """Read on for about so long; returns whether all is read. Raises AlphaError when the file cannot be read."""
        end = time.monotonic() + seconds
        while True:
            piece = self._follower.read(_BLOCK_BYTES)
            if piece.restarted:
                self._read, self._preview, self.others = Columns(), None, 0
                self.generation += 1
            if self._preview is None and self._follower.size - self._follower.offset > _LARGE_BYTES:
                self._preview = preview(self._follower.path, _PREVIEW_ROWS)
                self.generation += 1
            rows, others = parse_lines(piece.content)
            self.others += others
            self.generation += self._read.append(rows)
            if piece.is_end:
                if self._preview is not None:
                    self._preview = None
                    self.generation += 1
                return True
            if time.monotonic() >= end:
                return False

    def axis(self, name: str, tokens_per_step: int = 0, created: float = 0.0) -> Curve:
        """One of AXES for each row, never decreasing; NaN where it is not known.

        `tokens_per_step` and `created`, in seconds since 1970, serve rows that do not say it themselves.
        """
        columns = self.columns
        steps = columns.column("step")
        if name == "step":
            return steps
        elapsed = columns.column("elapsed_ms") / 1e3
        if name == "elapsed":
            values = elapsed
        elif name == "tokens":
            values = _or_else(columns.column("tokens"), steps * tokens_per_step if tokens_per_step else steps * np.nan)
        else:
            values = _or_else(columns.column("time"), created + elapsed if created else elapsed * np.nan)
        # A clock that was set back, or a file that others wrote: what comes later does not stand before.
        return np.where(np.isnan(values), np.nan, np.fmax.accumulate(values)) if len(values) else values

    def curve(self, name: str, x: Curve) -> tuple[Curve, Curve]:
        """The points of a column over an axis, those without a number left out."""
        y = self.columns.column(name)
        known = ~(np.isnan(x) | np.isnan(y))
        return x[known], y[known]


def preview(path: Path, count: int) -> Columns:
    """About so many rows from all over a file, with the first and the last, reading only these.

    A missing file has none. Raises AlphaError when it cannot be read.
    """
    columns = Columns()
    try:
        with open_regular(path) as file:
            size = os.fstat(file.fileno()).st_size
            rows: list[Row] = []
            for place in np.linspace(0, max(0, size - _LONGEST_ROW), count).astype(np.int64).tolist():
                content = os.pread(file.fileno(), _LONGEST_ROW, place)
                lines = content.split(b"\n")[1 if place else 0 : -1]
                is_last = place + len(content) >= size
                rows += parse_lines(b"".join(line + b"\n" for line in (lines if is_last else lines[:1])))[0]
    except FileNotFoundError:
        return columns
    except OSError as error:
        raise AlphaError(f"Cannot read {path}: {error.strerror or error}.") from error
    columns.append(rows)
    return columns


def _or_else(values: Curve, others: Curve) -> Curve:
    return np.where(np.isnan(values), others, values)


def _as_numbers(values: Sequence[Any]) -> Curve:
    try:
        numbers = np.array(values if set(map(type, values)) <= _NUMBERS else _numbers_of(values), dtype=np.float64)
    except OverflowError:  # a whole number that no float reaches
        numbers = np.array(_numbers_of(values), dtype=np.float64)
    numbers[~np.isfinite(numbers)] = np.nan
    return numbers


def _numbers_of(values: Sequence[Any]) -> list[Any]:
    most = sys.float_info.max
    return [value if isinstance(value, int | float) and abs(value) <= most else None for value in values]
