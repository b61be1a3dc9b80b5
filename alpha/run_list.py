"""Looking at training runs from outside: finding one by name, and listing them all with their state.

Everything here is read from files that a living, finished or killed run leaves, without disturbing it.
"""

import difflib
import math
import sys
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Literal

from alpha.checkpoint import list_checkpoints
from alpha.errors import AlphaError
from alpha.files import read_rows_backwards
from alpha.option import LARGEST_INTEGER, nearest
from alpha.run import CONFIG, METRICS, RUNS_FOLDER, RunConfig, is_locked, read_config

Status = Literal["running", "finished", "interrupted", "empty", "damaged"]

_TAIL_BYTES = 1 << 20
_MOST_SUGGESTIONS = 10
_LAST_TIME = datetime(9999, 12, 30, tzinfo=UTC).timestamp()
"""A file system may hold later times than a calendar in any zone."""


@dataclass(frozen=True)
class RunSummary:
    """One run in a list; numbers are None while they are not known.

    A run is "running" while a process holds it, "finished" when it has the checkpoint of its last step, "empty" when
    it has neither rows nor checkpoints, "damaged" when its config.json cannot be read, and "interrupted" otherwise.
    """

    run_id: str
    folder: Path
    status: Status
    domain: str
    step: int | None
    iters: int | None
    loss: float | None
    val_loss: float | None
    tokens_per_sec: float | None
    updated: datetime


def resolve(text: str, root: Path = RUNS_FOLDER) -> Path:
    """The file or folder that `--checkpoint=` or `--resume=` means: a path, or the id of a run in `root`."""
    try:
        if text and Path(text).exists():
            return Path(text)
        ids = [folder.name for folder in _run_folders(root)]
    except (OSError, ValueError) as error:
        raise AlphaError(f"Cannot use {text!r} as a run or a checkpoint: {error}.") from error
    if text in ids:
        return root / text
    if not ids:
        raise AlphaError(f"There is no file, folder or run {text!r}, and {root}/ has no runs.")
    is_near = difflib.get_close_matches(text, ids, n=1)
    suggestions = ids if is_near else ids[-_MOST_SUGGESTIONS:]
    raise AlphaError(f"There is no file, folder or run {text!r}. {nearest(text, suggestions)}")


def list_runs(root: Path = RUNS_FOLDER) -> list[RunSummary]:
    """The runs in a folder, the most recently updated first; whatever is not a run is passed over."""
    try:
        summaries = [_summarize(folder) for folder in _run_folders(root)]
    except OSError as error:
        raise AlphaError(f"Cannot list the runs in {root}: {error.strerror}.") from error
    return sorted(summaries, key=lambda summary: (summary.updated, summary.run_id), reverse=True)


def _run_folders(root: Path) -> list[Path]:
    if not root.is_dir():
        return []
    return sorted(folder for folder in root.iterdir() if _is_run(folder))


def _is_run(folder: Path) -> bool:
    try:
        return (folder / CONFIG).is_file()
    except OSError:  # not ours to read
        return False


def _summarize(folder: Path) -> RunSummary:
    config: RunConfig | None
    try:
        config = read_config(folder)
    except AlphaError:
        config = None
    last, val_loss = _last_metrics(folder / METRICS)
    try:
        checkpoints = list_checkpoints(folder)
    except AlphaError:  # the run was deleted this instant, or is not ours to read
        checkpoints = []
    saved_step = checkpoints[-1][0] if checkpoints else None
    steps = [step for step in (_whole(last.get("step")), saved_step) if step is not None]
    return RunSummary(
        run_id=folder.name,
        folder=folder,
        status=_status(folder, config, bool(steps), saved_step),
        domain=config.training.domain if config else "",
        step=max(steps, default=None),
        iters=config.training.iters if config else None,
        loss=_number(last.get("loss")),
        val_loss=val_loss,
        tokens_per_sec=_number(last.get("tokens_per_sec")),
        updated=_updated(folder, [path for _, path in checkpoints[-1:]]),
    )


def _status(folder: Path, config: RunConfig | None, has_begun: bool, saved_step: int | None) -> Status:
    if is_locked(folder):
        return "running"
    if config is None:
        return "damaged"
    if saved_step is not None and saved_step >= config.training.iters:
        return "finished"
    return "interrupted" if has_begun else "empty"


def _last_metrics(path: Path) -> tuple[dict[str, Any], float | None]:
    """The last row, and the last validation loss among the last rows."""
    last: dict[str, Any] = {}
    try:
        for row in read_rows_backwards(path, _TAIL_BYTES):
            last = last or row
            val_loss = _number(row.get("valLoss"))
            if val_loss is not None:
                return last, val_loss
    except AlphaError:
        return {}, None
    return last, None


def _updated(folder: Path, checkpoints: list[Path]) -> datetime:
    times = [_modified(file) for file in (folder / CONFIG, folder / METRICS, *checkpoints)]
    return datetime.fromtimestamp(max(time if 0 <= time < _LAST_TIME else 0.0 for time in times), UTC)


def _modified(file: Path) -> float:
    try:
        return file.stat().st_mtime
    except OSError:  # it does not exist, or not any more
        return 0.0


def _number(value: Any) -> float | None:
    if not isinstance(value, int | float) or abs(value) > sys.float_info.max:
        return None
    return None if math.isnan(value) else float(value)


def _whole(value: Any) -> int | None:
    return value if type(value) is int and 0 <= value <= LARGEST_INTEGER else None
