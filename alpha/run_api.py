"""What there is to know about runs, as values that JSON can hold: for `alpha runs --json` and for dashboards.

Every answer is a function of a folder of runs and of what was asked; how it is asked for, and sent, is for others.
"""

import dataclasses
import math
from collections.abc import Iterator, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np

from alpha.checkpoint import list_checkpoints, read_header
from alpha.errors import AlphaError, UsageError
from alpha.files import finite
from alpha.option import nearest, to_mapping
from alpha.run import METRICS
from alpha.run_compare import changed_options, differing_options
from alpha.run_csv import csv_parts
from alpha.run_metrics import AXES, preview
from alpha.run_notes import Notes, delete_run, write_notes
from alpha.run_reader import FollowedRun, RunIndex, RunSummary, file_state, folder_of, id_of, read_samples
from alpha.series import Curve, pixel_edges, smooth, thin

MOST_PIXELS = 4096
MOST_NAMES = 32
MOST_COMPARED = 50
MOST_SPARKLINES = 100

_MOST_FOLLOWED = 64
_SPARKLINE_POINTS = 40
_MOST_ROWS_IN_EVENT = 2000
_MOST_LOG_LINES = 1000
_MARKS = ("clipped", "skipped")
_READING_SECONDS = 0.2
"""That a stream reads on at each look, of a file that is not read yet. Others read a little, so that a page that asks
for many things at once has them at once."""

_LEAST_SMOOTHING, _MOST_SMOOTHING = 0.0, 0.9999


class RunNotFoundError(AlphaError):
    """There is no run with this id (any more)."""


class EditingNotAllowedError(AlphaError):
    """Something was to be changed, and this dashboard only shows."""


@dataclasses.dataclass(frozen=True)
class View:
    """What of a curve is to be seen: `low` to `high` of an axis (None = all) on so many pixels.

    Raises UsageError for values that no picture has.
    """

    axis: str = "step"
    low: float | None = None
    high: float | None = None
    pixels: int = 800
    smoothing: float = 0.0
    is_logarithmic: bool = False

    def __post_init__(self) -> None:
        if self.axis not in AXES:
            raise UsageError(f"There is no axis {self.axis!r}. {nearest(self.axis, AXES)}")
        if not 1 <= self.pixels <= MOST_PIXELS:
            raise UsageError(f"A curve has 1 to {MOST_PIXELS} pixels, not {self.pixels}.")
        if not _LEAST_SMOOTHING <= self.smoothing <= _MOST_SMOOTHING:
            raise UsageError(f"Smoothing is from {_LEAST_SMOOTHING:g} to {_MOST_SMOOTHING:g}, not {self.smoothing:g}.")
        limits = [limit for limit in (self.low, self.high) if limit is not None]
        if not all(map(math.isfinite, limits)) or (len(limits) == 2 and limits[0] >= limits[1]):
            raise UsageError("A view begins below its end.")


class RunsApi:
    """Answers questions about the runs in a folder, and follows the runs that were asked about.

    Not for several threads at once. Raises RunNotFoundError, EditingNotAllowedError, UsageError for what cannot be
    asked, and AlphaError for what cannot be read.
    """

    def __init__(self, root: Path, allow_edit: bool = False) -> None:
        self.root = root
        self.allow_edit = allow_edit
        self._index = RunIndex(root)
        self._followed: dict[str, FollowedRun] = {}
        self._models: dict[Path, tuple[object, dict[str, Any]]] = {}

    # --- reading ------------------------------------------------------------------------------------------------------

    def runs(self) -> dict[str, Any]:
        """Every run, the newest first."""
        return {"runs": [describe(each) for each in self._index.list()], "allowEdit": self.allow_edit}

    def sparklines(self, run_ids: Sequence[str]) -> dict[str, Any]:
        """A few losses from all over each run, by its id; of those that can be read."""
        if len(run_ids) > MOST_SPARKLINES:
            raise UsageError(f"At most {MOST_SPARKLINES} curves at once.")
        return {"losses": {run_id: losses for run_id in run_ids if (losses := self._few_losses(run_id))}}

    def run(self, run_id: str) -> dict[str, Any]:
        """One run: as in the list, with its options, those that somebody chose, and what changed on resuming."""
        run = self._follow(run_id)
        described = describe(self._index.summary(run.folder)) | {
            "problem": run.problem,
            "columns": list(run.metrics.columns.names),
            "rows": len(run.metrics.columns),
            "share": run.metrics.share,
        }
        if run.config is None:
            return described | {"model": {}, "training": {}, "changed": {}, "history": []}
        return described | {
            "model": to_mapping(run.config.model),
            "training": to_mapping(run.config.training),
            "changed": changed_options(run.config),
            "history": finite(list(run.config.history)),
        }

    def metrics(self, run_id: str, names: Sequence[str], view: View) -> dict[str, Any]:
        """Columns over an axis, each thinned to the lowest and highest of each pixel, and where steps were clipped or
        skipped. Smoothed from all points and then thinned, so zooming in does not change a curve's shape.

        `count` is how many points a column has in all; with it, smoothing can go on from the last point. `share` below
        1 says that the file is still being read, and that this is a sketch.
        """
        if len(names) > MOST_NAMES:
            raise UsageError(f"At most {MOST_NAMES} columns at once.")
        run = self._follow(run_id)
        x = run.axis(view.axis)
        known = x[~np.isnan(x)]
        curves = {name: run.metrics.curve(name, x) for name in names}
        marks = {name: _where_true(*run.metrics.curve(name, x)) for name in _MARKS}
        return {
            "axis": view.axis,
            "version": list(run.metrics.version),
            "share": run.metrics.share,
            "extent": [float(known[0]), float(known[-1])] if len(known) else None,
            "columns": {
                name: _picture(at, smooth(y, view.smoothing), view) | {"count": len(y)}
                for name, (at, y) in curves.items()
            },
            "marks": {name: _picture(at, at, view)["x"] for name, at in marks.items()},
        }

    def csv(self, run_ids: Sequence[str], names: Sequence[str], view: View) -> Iterator[str]:
        """Every row of columns that has one of them, between `low` and `high` of the view, as parts of a CSV text: the
        step, the axis, the columns; before them the run, where there are several. A part may be empty.
        """
        if len(names) > MOST_NAMES or not 1 <= len(run_ids) <= MOST_COMPARED:
            raise UsageError(f"At most {MOST_NAMES} columns of 1 to {MOST_COMPARED} runs at once.")
        runs = [self._follow(run_id) for run_id in run_ids]
        return self._csv(runs, list(dict.fromkeys(("step", view.axis, *names))), view)

    def _csv(self, runs: Sequence[FollowedRun], names: Sequence[str], view: View) -> Iterator[str]:
        tables = {}
        for run in runs:
            while not run.update(_READING_SECONDS):
                yield ""  # others are answered meanwhile
            if not run.has_metrics:
                raise AlphaError(run.problem)
            x = run.axis(view.axis)
            columns = [x if name == view.axis else run.metrics.columns.column(name) for name in names]
            own = [column for name, column in zip(names, columns, strict=True) if name not in ("step", view.axis)]
            low, high = (-np.inf if view.low is None else view.low), (np.inf if view.high is None else view.high)
            chosen = (x >= low) & (x <= high) & ~np.isnan(own or [x]).all(axis=0)
            tables[id_of(run.folder)] = [column[chosen] for column in columns]
        yield from csv_parts(names, tables)

    def samples(self, run_id: str, after: int = -1) -> dict[str, Any]:
        """The samples of steps above `after`."""
        run = self._follow(run_id)
        return {"samples": [each for each in read_samples(run.samples) if each["step"] > after]}

    def log(self, run_id: str) -> dict[str, Any]:
        """The last lines of the log."""
        run = self._follow(run_id)
        lines = list(run.log.lines)[-_MOST_LOG_LINES:]
        return {"count": run.log.count, "lines": [line.decode(errors="replace").rstrip("\n") for line in lines]}

    def checkpoints(self, run_id: str) -> dict[str, Any]:
        """The checkpoints, the newest first; one that cannot be read says why."""
        return {"checkpoints": [_describe_checkpoint(*each) for each in reversed(self._checkpoints(run_id))]}

    def checkpoint_path(self, run_id: str, name: str) -> Path:
        """The file of one of a run's checkpoints, for downloading it."""
        for _, path in self._checkpoints(run_id):
            if path.name == name:
                return path
        raise RunNotFoundError(f"The run {run_id!r} has no checkpoint {name!r}.")

    def models(self) -> dict[str, Any]:
        """The checkpoints of all runs, those of the newest run first."""
        known, self._models = self._models, {}
        models = []
        for summary in self._index.list():
            try:
                checkpoints = list_checkpoints(summary.folder)
            except AlphaError:  # it was deleted this instant, or is not ours to read
                continue
            for step, path in reversed(checkpoints):
                state = file_state(path)
                old = known.get(path)
                described = old[1] if old is not None and old[0] == state else _describe_checkpoint(step, path)
                self._models[path] = state, described
                of_run = {"runId": summary.run_id, "runName": summary.notes.name, "domain": summary.domain}
                models.append(of_run | described)
        return {"models": models}

    def compare(self, run_ids: Sequence[str]) -> dict[str, Any]:
        """The options in which runs differ, by flag, a value for each run."""
        if len(run_ids) > MOST_COMPARED:
            raise UsageError(f"At most {MOST_COMPARED} runs are compared at once.")
        runs = [self._follow(run_id) for run_id in run_ids]
        configs = [run.config for run in runs if run.config is not None]
        if len(configs) < len(runs):
            unreadable = next(run for run in runs if run.config is None)
            raise AlphaError(unreadable.problem)
        return {"runs": list(run_ids), "options": differing_options(configs)}

    def event(self, run_id: str, event_id: str = "") -> tuple[str, dict[str, Any]]:
        """What is new about a run since the event with this id, and the id of this one.

        Without a known id, or when rows that were told are void, the answer is `{"reset": true}` with the state: ask
        for everything again. Otherwise `metrics` has new rows as columns, of which the first is row `begin`, `samples`
        and `log` what was added; without news the id is the same. A page that missed some goes on with the id that it
        had last.
        """
        known = _parse_event_id(event_id)
        run = self._follow(run_id, _READING_SECONDS if known else 0.0)
        state = _state_of(run)
        answer = {"run": describe(self._index.summary(run.folder)), "share": run.metrics.share}
        if known is None or known[::2] != state[::2] or any(old > new for old, new in zip(known, state, strict=True)):
            return _event_id(state), {"reset": True} | answer
        columns, begin = run.metrics.columns, known[1]
        if len(columns) - begin > _MOST_ROWS_IN_EVENT:
            return _event_id(state), {"reset": True} | answer
        news = (
            {name: finite(columns.column(name)[begin:].tolist()) for name in columns.names} if begin < state[1] else {}
        )
        new_samples = run.samples.count - known[3]
        lines = list(run.log.lines)[len(run.log.lines) - min(len(run.log.lines), run.log.count - known[5]) :]
        return _event_id(state), answer | {
            "begin": begin,
            "metrics": news,
            "samples": read_samples(run.samples)[-new_samples:] if new_samples else [],
            "log": [line.decode(errors="replace").rstrip("\n") for line in lines[-_MOST_LOG_LINES:]],
        }

    # --- changing -----------------------------------------------------------------------------------------------------

    def write(self, run_id: str, changes: dict[str, Any]) -> dict[str, Any]:
        """Change "name", "group" or "notes" of a run; returns it as in the list."""
        self._require_editing()
        folder = self._folder(run_id)
        fields = {field.name for field in dataclasses.fields(Notes)}
        if not changes or not all(key in fields and isinstance(value, str) for key, value in changes.items()):
            raise UsageError(f"What can be changed are the texts {', '.join(sorted(fields))}.")
        write_notes(folder, **changes)
        return describe(self._index.summary(folder))

    def delete(self, run_id: str) -> dict[str, Any]:
        """Delete a run that nobody trains; returns the names of files that are not Alpha's and were left."""
        self._require_editing()
        left = delete_run(self._folder(run_id))
        self._followed.pop(run_id, None)
        return {"left": [path.name for path in left]}

    # ------------------------------------------------------------------------------------------------------------------

    def _require_editing(self) -> None:
        if not self.allow_edit:
            raise EditingNotAllowedError("Runs cannot be changed from here; start alpha serve with --allowEdit.")

    def _folder(self, run_id: str) -> Path:
        folder = folder_of(run_id, self.root)
        if folder is None:
            raise RunNotFoundError(f"There is no run {run_id[:100]!r}.")
        return folder

    def _few_losses(self, run_id: str) -> list[float]:
        try:
            loss = preview(self._folder(run_id) / METRICS, _SPARKLINE_POINTS).column("loss")
        except AlphaError:  # it is gone, or not ours to read
            return []
        return loss[np.isfinite(loss)].tolist()

    def _follow(self, run_id: str, seconds: float = 0.0) -> FollowedRun:
        folder = self._folder(run_id)
        run = self._followed.pop(run_id, None) or FollowedRun(folder)
        self._followed[run_id] = run  # the last one asked for is the last to go
        while len(self._followed) > _MOST_FOLLOWED:
            del self._followed[next(iter(self._followed))]
        run.update(seconds)
        return run

    def _checkpoints(self, run_id: str) -> list[tuple[int, Path]]:
        return list_checkpoints(self._folder(run_id))


def describe(summary: RunSummary) -> dict[str, Any]:
    """One run of a list."""
    return {
        "runId": summary.run_id,
        "name": summary.notes.name,
        "group": summary.notes.group,
        "notes": summary.notes.notes,
        "folder": str(summary.folder),
        "status": summary.status,
        "phase": summary.phase,
        "heard": summary.heard,
        "error": summary.error,
        "domain": summary.domain,
        "step": summary.step,
        "iters": summary.iters,
        "loss": summary.loss,
        "valLoss": summary.val_loss,
        "tokensPerSec": summary.tokens_per_sec,
        "secondsLeft": summary.seconds_left,
        "created": summary.created,
        "updated": summary.updated.isoformat(),
    }


def _describe_checkpoint(step: int, path: Path) -> dict[str, Any]:
    described: dict[str, Any] = {"name": path.name, "step": step}
    try:
        status = path.stat()
        header = read_header(path)
    except OSError as error:
        return described | {"problem": f"Cannot read {path.name}: {error.strerror}."}
    except AlphaError as error:
        return described | {"problem": str(error)}
    weights = [entry.shape for name, entry in header.entries.items() if not name.startswith("optimizer.")]
    return described | {
        "bytes": status.st_size,
        "written": datetime.fromtimestamp(status.st_mtime, UTC).isoformat(timespec="seconds"),
        "parameters": sum(math.prod(shape) for shape in weights),
        "model": to_mapping(header.model),
        "tokenizer": str(header.tokenizer.get("kind", "")),
        "valLoss": finite(header.state.get("valLoss")),
    }


def _picture(x: Curve, y: Curve, view: View) -> dict[str, list[float]]:
    """The points of a curve that its picture needs."""
    if view.is_logarithmic:
        x, y = x[x > 0], y[x > 0]
    if not len(x):
        return {"x": [], "y": []}
    low = float(x[0]) if view.low is None else view.low
    high = float(x[-1]) if view.high is None else view.high
    if view.is_logarithmic:
        low = max(low, float(x[0]))
    if low >= high:
        high = np.nextafter(low, np.inf)
    chosen = thin(x, y, pixel_edges(low, high, view.pixels, view.is_logarithmic))
    return {"x": x[chosen].tolist(), "y": y[chosen].tolist()}


def _where_true(x: Curve, y: Curve) -> Curve:
    return x[y != 0]


_EventState = tuple[int, int, int, int, int, int]


def _state_of(run: FollowedRun) -> _EventState:
    """Pairs of a generation and a count."""
    generation, rows = run.metrics.version
    return (generation, rows, run.samples.generation, run.samples.count, run.log.generation, run.log.count)


def _event_id(state: _EventState) -> str:
    return "-".join(map(str, state))


def _parse_event_id(text: str) -> _EventState | None:
    numbers = [int(part) for part in text.split("-") if part.isascii() and part.isdigit() and len(part) < 20]
    if len(numbers) != 6 or text.count("-") != 5:
        return None
    return (numbers[0], numbers[1], numbers[2], numbers[3], numbers[4], numbers[5])
