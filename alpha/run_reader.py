"""Looking at training runs from outside: finding one by name, listing them all with their state, following one.

Everything here is read from files that a living, finished or killed run leaves, without disturbing it. Files that are
missing, damaged, or not ours to read are ones that say nothing.
"""

import difflib
import itertools
import math
import os
import re
import socket
import sys
import time
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Literal

from alpha.checkpoint import list_checkpoints
from alpha.errors import AlphaError
from alpha.files import Row, read_json, read_rows_backwards
from alpha.followed_files import FollowedLines
from alpha.option import LARGEST_INTEGER, nearest
from alpha.run import CONFIG, LOCK, LOG, METRICS, RUNS_FOLDER, SAMPLES, STATUS, RunConfig, is_locked, read_config
from alpha.run_metrics import RunMetrics
from alpha.run_notes import NOTES, Notes, read_notes
from alpha.series import Curve

_ESCAPED_BYTE = re.compile(r"\\x([89a-f][0-9a-f])")

Status = Literal["running", "finished", "failed", "interrupted", "empty", "damaged"]

HEARD_LATELY_SECONDS = 120.0
"""A run on another machine, whose lock cannot be seen, is taken for dead when its heartbeat is older."""

_TAIL_BYTES = 1 << 20
_PACE_ROWS = 20
_STATUS_LIMIT = 1 << 14
_MOST_SUGGESTIONS = 10
_LAST_TIME = datetime(9999, 12, 30, tzinfo=UTC).timestamp()
"""A file system may hold later times than a calendar in any zone."""


@dataclass(frozen=True)
class Heartbeat:
    """What status.json says: what the process that trains does, since when nothing else was heard, and its error."""

    phase: str
    heard: float
    host: str
    error: str


@dataclass(frozen=True)
class RunSummary:
    """One run in a list; numbers are None while they are not known.

    A run is "running" while a process holds it, or another machine's heartbeat is recent; "finished" when it has the
    checkpoint of its last step; "failed" when it ended by an error, which `error` is; "empty" when it has neither rows
    nor checkpoints; "damaged" when its config.json cannot be read; and "interrupted" otherwise. `phase` is what a
    running one does, `heard` when it last said so. `seconds_left` is what the steps that are left take at the pace of
    the last ones.
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
    notes: Notes
    created: str
    phase: str
    heard: float | None
    error: str
    seconds_left: float | None

    @property
    def title(self) -> str:
        """The name that somebody gave the run, else its id."""
        return self.notes.name or self.run_id


def root_of(given: Mapping[str, Any]) -> Path:
    """The folder of runs that a command is told by --dir, which must be there: AlphaError for a misspelled one. The
    default need not, since the first training makes it."""
    if "dir" not in given:
        return RUNS_FOLDER
    root = Path(given["dir"])
    try:
        os.scandir(root).close()
    except (OSError, ValueError) as error:
        raise _cannot_list(root, error) from error
    return root


def resolve(text: str, root: Path = RUNS_FOLDER) -> Path:
    """The file or folder that `--checkpoint=` or `--resume=` means: a path, or the id of a run in `root`."""
    try:
        if text and Path(text).exists():
            return Path(text)
        folder = folder_of(text, root)
        ids = [id_of(each) for each in _run_folders(root)]
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or error
        raise AlphaError(f"Cannot use {text!r} as a run or a checkpoint: {reason}.") from error
    if folder is not None:
        return folder
    if not ids:
        raise AlphaError(f"There is no file, folder or run {text!r}, and {root}/ has no runs.")
    raise AlphaError(f"There is no file, folder or run {text!r}. {_suggest(text, ids)}")


def id_of(folder: Path) -> str:
    """The id of the run in a folder: the folder's name. Bytes in it that are not UTF-8, which neither JSON nor the
    address of a page can hold, are spelled as in `caf\\xe9`."""
    return os.fsencode(folder.name).decode(errors="backslashreplace")


def find_run(text: str, root: Path) -> Path:
    """The folder of the run in `root` that has this id, or as the only one this name. Never a folder elsewhere."""
    if (folder := folder_of(text, root)) is not None:
        return folder
    folders = _listed(root)
    named = [folder for folder in folders if text and read_notes(folder).name == text]
    if len(named) == 1:
        return named[0]
    if named:
        raise AlphaError(f"{len(named)} runs have the name {text!r}; give the id: {', '.join(map(id_of, named))}.")
    if not folders:
        raise AlphaError(f"There is no run {text!r}: {root}/ has no runs.")
    raise AlphaError(f"There is no run {text!r} in {root}/. {_suggest(text, list(map(id_of, folders)))}")


def folder_of(run_id: str, root: Path) -> Path | None:
    """The folder in `root` of the run that has exactly this id; None where there is none. Never a folder elsewhere."""
    if run_id in ("", ".", "..") or "\0" in run_id or Path(run_id).name != run_id:
        return None
    folders = (root / run_id, root / _ESCAPED_BYTE.sub(lambda found: chr(0xDC00 + int(found[1], 16)), run_id))
    return next((folder for folder in folders if _is_run(folder)), None)


def has_runs(root: Path) -> bool:
    """Whether there is one in a folder, which may be missing."""
    return bool(_listed(root))


def list_runs(root: Path = RUNS_FOLDER) -> list[RunSummary]:
    """The runs in a folder, the most recently updated first; whatever is not a run is passed over."""
    return RunIndex(root).list()


class RunIndex:
    """Lists the runs in a folder again and again: what has not changed since the last time is not read again."""

    def __init__(self, root: Path = RUNS_FOLDER) -> None:
        self.root = root
        self._known: dict[str, tuple[_Signature, RunSummary]] = {}

    def list(self) -> list[RunSummary]:
        """The runs, the most recently updated first. Raises AlphaError when the folder cannot be read."""
        folders = _listed(self.root)
        names = {folder.name for folder in folders}
        self._known = {name: known for name, known in self._known.items() if name in names}
        summaries = map(self.summary, folders)
        return sorted(summaries, key=lambda summary: (summary.updated, summary.run_id), reverse=True)

    def summary(self, folder: Path) -> RunSummary:
        """Of one of these runs."""
        signature = _signature(folder)
        old = self._known.get(folder.name)
        is_same = old is not None and old[0] == signature and not _has_fallen_silent(old[1], is_held=signature[0])
        summary = old[1] if old is not None and is_same else summarize(folder)
        self._known[folder.name] = signature, summary
        return summary


class FollowedRun:
    """One run whose files are read as they grow. Call `update` now and then.

    A file that cannot be read is empty, and `problem` says why; `has_metrics` is False when that are the metrics.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.metrics = RunMetrics(folder / METRICS)
        self.samples = FollowedLines(folder / SAMPLES)
        self.log = FollowedLines(folder / LOG)
        self.config: RunConfig | None = None
        self.problem = ""
        self.has_metrics = True
        self._config_problem = ""
        self._config_state: object = ()

    def update(self, seconds: float = 0.05) -> bool:
        """Read on for about so long; returns whether all is read."""
        self._read_config()
        self.problem, is_all = self._config_problem, True
        for lines in (self.samples, self.log):
            try:
                lines.update()
            except AlphaError as error:
                self.problem = str(error)
        try:
            is_all = self.metrics.update(seconds)
            self.has_metrics = True
        except AlphaError as error:
            self.problem, self.has_metrics = str(error), False
        return is_all

    def _read_config(self) -> None:
        state = file_state(self.folder / CONFIG)
        if state == self._config_state:
            return
        self._config_state, self.config, self._config_problem = state, None, ""
        try:
            self.config = read_config(self.folder)
        except AlphaError as error:
            self._config_problem = str(error)

    def axis(self, name: str) -> Curve:
        """As `RunMetrics.axis`, with what rows of earlier versions do not say."""
        tokens = tokens_per_step(self.config) if self.config else 0
        return self.metrics.axis(name, tokens, created_time(self.config) if self.config else 0.0)


def tokens_per_step(config: RunConfig) -> int:
    """By the configuration that a run has now."""
    return config.training.batch * config.training.accum_steps * config.model.block


def created_time(config: RunConfig) -> float:
    """When a run was made, in seconds since 1970; 0 when its configuration does not say."""
    try:
        return datetime.fromisoformat(config.created_at).timestamp()
    except (ValueError, OverflowError):
        return 0.0


def read_samples(lines: FollowedLines) -> list[Row]:
    """The samples of a run by step, with the texts "prompt" and "text"; later ones supersede earlier ones."""
    samples: dict[int, Row] = {}
    for row in lines.rows():
        step, prompt, text = _whole(row.get("step")), row.get("prompt"), row.get("text")
        if step is None or not isinstance(prompt, str) or not isinstance(text, str):
            continue
        while samples and next(reversed(samples)) >= step:
            samples.popitem()
        samples[step] = {"step": step, "prompt": prompt, "text": text}
    return list(samples.values())


def read_heartbeat(folder: Path) -> Heartbeat | None:
    """What a run's status.json says; None where there is none, or no whole one."""
    try:
        values = read_json(folder / STATUS, "status", _STATUS_LIMIT)
    except AlphaError:
        return None
    if not isinstance(values, dict) or (heard := _number(values.get("time"))) is None:
        return None
    phase, host, error = (str(values.get(key, "")) for key in ("phase", "host", "error"))
    return Heartbeat(phase, heard, host, error)


def _suggest(text: str, ids: list[str]) -> str:
    is_near = difflib.get_close_matches(text, ids, n=1)
    return nearest(text, ids if is_near else ids[-_MOST_SUGGESTIONS:])


def _listed(root: Path) -> list[Path]:
    try:
        return _run_folders(root)
    except OSError as error:
        raise _cannot_list(root, error) from error


def _cannot_list(root: Path, error: OSError | ValueError) -> AlphaError:
    return AlphaError(f"Cannot list the runs in {root}: {getattr(error, 'strerror', None) or error}.")


def _run_folders(root: Path) -> list[Path]:
    if not root.exists():
        return []
    with os.scandir(root) as entries:
        names = sorted(entry.name for entry in entries)
    return [folder for name in names if _is_run(folder := root / name)]


def _is_run(folder: Path) -> bool:
    """Folders of models from elsewhere have a config.json, too; a run has had a lock and rows before it had that."""
    try:
        return (folder / CONFIG).is_file() and ((folder / METRICS).exists() or (folder / LOCK).exists())
    except OSError:  # not ours to read
        return False


_Signature = tuple[bool, tuple[tuple[int, int, int] | None, ...]]


def _signature(folder: Path) -> _Signature:
    """Whether a run is held, and what changes whenever one of its files does."""
    paths = (folder, *(folder / name for name in (CONFIG, METRICS, NOTES, STATUS)))
    return is_locked(folder), tuple(map(file_state, paths))


def _has_fallen_silent(summary: RunSummary, is_held: bool) -> bool:
    return summary.status == "running" and not is_held and not _is_recent(summary.heard or 0.0)


def file_state(path: Path) -> tuple[int, int, int] | None:
    """What changes when a file does; None where it cannot be seen."""
    try:
        status = path.stat()
    except OSError:
        return None
    return status.st_ino, status.st_size, status.st_mtime_ns


def summarize(folder: Path) -> RunSummary:
    """The state of one run; of a folder that is gone, "damaged"."""
    config: RunConfig | None
    try:
        config = read_config(folder)
    except AlphaError:
        config = None
    try:
        checkpoints = list_checkpoints(folder)
    except AlphaError:  # the run was deleted this instant, or is not ours to read
        checkpoints = []
    heartbeat = read_heartbeat(folder)
    is_running = is_locked(folder) or (heartbeat is not None and _is_alive_elsewhere(heartbeat))
    rows = _last_rows(folder / METRICS, _PACE_ROWS if is_running else 1)
    last = rows[0] if rows else {}
    val_loss = _number(last.get("valLoss"))
    saved_step = checkpoints[-1][0] if checkpoints else None
    step = max((step for step in (_whole(last.get("step")), saved_step) if step is not None), default=None)
    iters = config.training.iters if config else None
    status = "running" if is_running else _status(config, heartbeat, step is not None, saved_step)
    return RunSummary(
        run_id=id_of(folder),
        folder=folder,
        status=status,
        domain=config.training.domain if config else "",
        step=step,
        iters=iters,
        loss=_number(last.get("loss")),
        val_loss=_last_validation_loss(folder / METRICS) if val_loss is None else val_loss,
        tokens_per_sec=_number(last.get("tokens_per_sec")),
        updated=_updated(folder, [path for _, path in checkpoints[-1:]]),
        notes=read_notes(folder),
        created=config.created_at if config else "",
        phase=heartbeat.phase if heartbeat and is_running else "",
        heard=heartbeat.heard if heartbeat else None,
        error=heartbeat.error if heartbeat and status == "failed" else "",
        seconds_left=_seconds_left(rows, iters) if is_running else None,
    )


def _status(config: RunConfig | None, heartbeat: Heartbeat | None, has_begun: bool, saved_step: int | None) -> Status:
    """Of a run that nobody trains."""
    if config is None:
        return "damaged"
    if saved_step is not None and saved_step >= config.training.iters:
        return "finished"
    if heartbeat is not None and heartbeat.phase == "failed":
        return "failed"
    return "interrupted" if has_begun else "empty"


def _is_alive_elsewhere(heartbeat: Heartbeat) -> bool:
    return (
        heartbeat.host not in ("", socket.gethostname())
        and heartbeat.phase not in ("ended", "failed")
        and _is_recent(heartbeat.heard)
    )


def _is_recent(heard: float) -> bool:
    return abs(time.time() - heard) < HEARD_LATELY_SECONDS


def _last_rows(path: Path, count: int) -> list[Row]:
    """The last rows, the newest first."""
    try:
        return list(itertools.islice(read_rows_backwards(path, _TAIL_BYTES), count))
    except AlphaError:
        return []


def _last_validation_loss(path: Path) -> float | None:
    try:
        for row in read_rows_backwards(path, _TAIL_BYTES, having=b'"valLoss"'):
            if (loss := _number(row.get("valLoss"))) is not None:
                return loss
    except AlphaError:
        return None
    return None


def _seconds_left(rows: list[Row], iters: int | None) -> float | None:
    """By the steps and the time between the first and the last of these rows."""
    known = [
        (row["step"], row["elapsed_ms"]) for row in rows if _whole(row.get("step")) and _number(row.get("elapsed_ms"))
    ]
    if iters is None or len(known) < 2:
        return None
    (last, now), (first, then) = known[0], known[-1]
    return (now - then) / 1e3 / (last - first) * max(0, iters - last) if last > first and now >= then else None


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
