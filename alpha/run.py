"""The folder of one training run: its configuration, metrics, samples, log and checkpoints.

    config.json    the configuration, the run's id and when it was made
    metrics.jsonl  a row of numbers per logged step; samples.jsonl  the sample texts
    log.txt        what happened, with times in UTC
    status.json    what the process that trains is doing, written in place every few seconds: its heartbeat
    notes.json     what people wrote about the run; see `run_notes`
    checkpoint-<step>.safetensors
    .lock          locked by the process that trains; the lock goes when the process does, however it ends

ARCHITECTURE.md describes them for other readers. Looking at runs without opening them is `run_reader`.
"""

import contextlib
import errno
import fcntl
import itertools
import logging
import math
import os
import socket
import time
from collections.abc import Iterator
from contextlib import ExitStack, closing
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from alpha import __version__, checkpoint
from alpha.checkpoint import Checkpoint, list_checkpoints
from alpha.config import ModelConfig, TrainingConfig, config_hash
from alpha.errors import AlphaError
from alpha.files import (
    TEMPORARY_NAME,
    LineFile,
    Row,
    json_text,
    making_folder,
    open_in_place,
    read_json,
    sync_folder,
    write_json,
)
from alpha.option import from_mapping, spelled, to_mapping
from alpha.terminal import escape_line

RUNS_FOLDER = Path("runs")
CONFIG = "config.json"
METRICS = "metrics.jsonl"
SAMPLES = "samples.jsonl"
LOG = "log.txt"
STATUS = "status.json"
LOCK = ".lock"

CONFIG_LIMIT = 1 << 20
HEARTBEAT_SECONDS = 10.0
_STATUS_BYTES = 2048
_LONGEST_ERROR = 200  # characters, of at most six bytes each in JSON
_LOCK_TRIES = 25
_LOCK_PAUSE_SECONDS = 0.01
_logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class RunConfig:
    """What config.json says; `history` has an object for each time that the configuration was changed on resuming."""

    run_id: str
    created_at: str
    model: ModelConfig
    training: TrainingConfig
    history: tuple[dict[str, Any], ...] = ()


class Run:
    """A run's folder, held by this process until `close`; use it in a `with` statement.

    Every method raises AlphaError, naming the file, when the operating system refuses.
    """

    def __init__(self, folder: Path, config: RunConfig, resources: ExitStack) -> None:
        """Use `create` or `open`. `resources` release the lock; the run takes them over if this succeeds."""
        self.folder = folder
        self.config = config
        self._identity, self._lock_identity = _identity(folder), _identity(folder / LOCK)
        self._validation_losses: dict[int, float] = {}
        self._metrics = resources.enter_context(closing(LineFile(folder / METRICS)))
        self._samples = resources.enter_context(closing(LineFile(folder / SAMPLES)))
        self._log = resources.enter_context(closing(_LogHandler(folder / LOG, config.training.log)))
        self._heartbeat = resources.enter_context(closing(_Heartbeat(folder / STATUS)))
        _logger.info("Opened run %s with Alpha %s.", config.run_id, __version__)
        self._read_validation_losses()
        self._resources = resources.pop_all()

    @classmethod
    def create(
        cls, model: ModelConfig, training: TrainingConfig, folder: Path | None = None, root: Path = RUNS_FOLDER
    ) -> Self:
        """A new run in `folder`, which must be empty or missing, or in a new folder of `root` named by its id."""
        if folder is not None:
            check_new(folder)
        now = datetime.now(UTC)
        run_id = f"{now:%Y%m%d-%H%M%S}-{config_hash(model, training)[:6]}"
        with ExitStack() as resources, _new_folder(folder, root, run_id) as made:
            resources.callback(os.close, _lock(made))
            _require_empty(made)
            with _unlocked_unless_done(made):
                run_id = run_id if folder else made.name
                config = RunConfig(run_id, now.isoformat(timespec="seconds"), model, training)
                _write_config(made, config)
            return cls(made, config, resources)

    @classmethod
    def open(cls, path: Path) -> Self:
        """The run in a folder, or of a checkpoint in its folder, to continue it. Call `rewind` before adding to it."""
        folder = path if path.is_dir() else path.parent
        if not (folder / CONFIG).is_file():
            raise AlphaError(f"{path} is not in the folder of a run: there is no {folder / CONFIG}.")
        read_config(folder)  # before anything is touched: a folder of somebody else's may have such a file, too
        with ExitStack() as resources:
            resources.callback(os.close, _lock(folder))
            return cls(folder, read_config(folder), resources)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        """Close; an exception that leaves the `with` statement is logged before."""
        if error is not None:
            try:
                _logger.error("Ended by %s: %s", type(error).__name__, error)
                self._heartbeat.fail(f"{type(error).__name__}: {error}")
            except AlphaError as log_error:
                error.add_note(str(log_error))
        self.close()

    def close(self) -> None:
        """Release the folder."""
        self._resources.close()

    def beat(self, phase: str) -> None:
        """Say in status.json what is being done ("training", "evaluating"): when that changes, else every few seconds.

        Call it as often as once a step.
        """
        self._heartbeat.beat(phase)

    def rewind(self, step: int) -> None:
        """Make `step`, of the checkpoint that training continues from, the run's last.

        Later checkpoints are renamed to superseded-<name>, so that none is taken for the newest, and none is lost. Then
        later rows of metrics and samples are removed.
        """
        later = [path for number, path in list_checkpoints(self.folder) if number > step]
        try:
            for path in later:
                path.replace(path.with_name(f"superseded-{path.name}"))
            sync_folder(self.folder)
        except OSError as error:
            raise AlphaError(f"Cannot rename the checkpoints of {self.folder}: {error.strerror}.") from error
        rows = self._metrics.keep_through(step) + self._samples.keep_through(step)
        _logger.info("Continuing after step %d; %d checkpoints put aside, %d rows removed.", step, len(later), rows)

    def configure(self, model: ModelConfig, training: TrainingConfig, step: int) -> None:
        """Change the configuration after `step`, as when a run is resumed with more steps, and note what changed."""
        old, new = to_mapping(self.config.training), to_mapping(training)
        changes = {flag: {"from": old[flag], "to": new[flag]} for flag in new if old[flag] != new[flag]}
        history = self.config.history
        if changes:
            when = datetime.now(UTC).isoformat(timespec="seconds")
            history += ({"step": step, "at": when, "alphaVersion": __version__, "changes": changes},)
            words = ", ".join(f"{flag} {change['from']!r} to {change['to']!r}" for flag, change in changes.items())
            _logger.info("Changed after step %d: %s.", step, words)
        self.config = replace(self.config, model=model, training=training, history=history)
        _write_config(self.folder, self.config)
        self._log.set_detail(training.log)

    def add_metrics(self, row: Row) -> None:
        """Add a row, which must have a "step", to metrics.jsonl; NaN and infinity become null."""
        self._metrics.append_row({"step": row["step"]} | row)

    def add_sample(self, row: Row) -> None:
        """Add a row, which must have a "step", to samples.jsonl."""
        self._samples.append_row({"step": row["step"]} | row)

    def save(self, saved: Checkpoint) -> Path:
        """Write a checkpoint, then delete those that are neither among the newest nor the best by validation loss."""
        self._require_folder()
        self._make_whole()
        self._metrics.sync()
        self._samples.sync()
        path = checkpoint.save(self.folder, saved)
        self._note_validation_loss(saved.step, saved.state)
        self._prune()
        _logger.info("Saved %s.", path.name)
        return path

    def is_there(self) -> bool:
        """Whether the folder is still the one that was opened, under its name."""
        try:
            return _identity(self.folder) == self._identity
        except OSError:
            return False

    def _require_folder(self) -> None:
        if not self.is_there():
            raise AlphaError(
                f"The run's folder {self.folder} was deleted, moved or replaced while the run went on, so that nothing "
                f"more can be saved in it."
            )

    def _make_whole(self) -> None:
        """Make files again that somebody removed, so that the run can be resumed, by nobody else meanwhile."""
        try:
            is_held = _identity(self.folder / LOCK) == self._lock_identity
        except FileNotFoundError:
            is_held = False
        if not is_held:
            self._resources.callback(os.close, _lock(self.folder))
            self._lock_identity = _identity(self.folder / LOCK)
        for each in (self._log.file, self._metrics, self._samples):
            each.make_again()
        if not os.path.lexists(self.folder / CONFIG):
            _write_config(self.folder, self.config)
            _logger.warning("%s was removed while the run went on, and is written again.", CONFIG)

    def _prune(self) -> None:
        checkpoints = list_checkpoints(self.folder)
        kept = {step for step, _ in checkpoints[-self.config.training.keep :]}
        measured = [step for step, _ in checkpoints if step in self._validation_losses]
        if measured:
            kept.add(min(measured, key=lambda step: (self._validation_losses[step], step)))
        for step, path in checkpoints:
            if step not in kept:
                try:
                    path.unlink()
                except OSError as error:
                    raise AlphaError(f"Cannot delete the old checkpoint {path}: {error.strerror}.") from error

    def _read_validation_losses(self) -> None:
        for step, path in list_checkpoints(self.folder):
            try:
                self._note_validation_loss(step, checkpoint.read_header(path).state)
            except AlphaError as error:
                _logger.warning("%s", error)

    def _note_validation_loss(self, step: int, state: dict[str, Any]) -> None:
        self._validation_losses.pop(step, None)
        loss = state.get("valLoss")
        if isinstance(loss, int | float) and math.isfinite(loss):
            self._validation_losses[step] = float(loss)


class _LogHandler(logging.Handler):
    """Writes what any module of Alpha logs to a file; unlike logging's own, it raises when it cannot."""

    def __init__(self, path: Path, detail: str) -> None:
        super().__init__()
        formatter = logging.Formatter("%(asctime)s.%(msecs)03dZ %(levelname)s %(message)s", datefmt="%Y-%m-%dT%H:%M:%S")
        formatter.converter = time.gmtime
        self.setFormatter(formatter)
        self.file = LineFile(path)
        self._parent = logging.getLogger("alpha")
        self._level_before = self._parent.level
        self._parent.addHandler(self)
        self.set_detail(detail)

    def set_detail(self, detail: str) -> None:
        """Write messages of this level ("debug", "info", "warning", "error") and above."""
        self.setLevel(detail.upper())
        self._parent.setLevel(detail.upper())

    def emit(self, record: logging.LogRecord) -> None:
        self.file.append(escape_line(self.format(record)))

    def close(self) -> None:
        self._parent.removeHandler(self)
        self._parent.setLevel(self._level_before)
        self.file.close()
        super().close()


class _Heartbeat:
    """Tells whoever looks at a run's folder, also at a copy of it on another machine, that its process lives.

    The file is overwritten in place by one write of always the same length: making a new one and syncing it every few
    seconds would cost more than a training step.
    """

    def __init__(self, path: Path) -> None:
        self._phase = ""  # until the first step nothing is said: a run that cannot be resumed stays as it was
        self._path = path
        self._host = socket.gethostname()
        self._due = 0.0
        try:
            self._descriptor = open_in_place(path)
            # With O_APPEND, Linux writes at the end wherever it is told to.
            fcntl.fcntl(self._descriptor, fcntl.F_SETFL, 0)
        except OSError as error:
            raise AlphaError(f"Cannot write {path}: {error.strerror or error}.") from error

    def beat(self, phase: str, error: str = "") -> None:
        now = time.monotonic()
        if phase == self._phase and now < self._due:
            return
        self._phase, self._due = phase, now + HEARTBEAT_SECONDS
        status = {"phase": phase, "time": round(time.time(), 3), "pid": os.getpid(), "host": self._host}
        if error:
            status["error"] = error[:_LONGEST_ERROR]
        content = json_text(status).encode().ljust(_STATUS_BYTES - 1) + b"\n"
        try:
            os.pwrite(self._descriptor, content, 0)
        except OSError as failure:
            raise AlphaError(f"Cannot write {self._path}: {failure.strerror or failure}.") from failure

    def fail(self, error: str) -> None:
        if self._phase:
            self.beat("failed", error)

    def close(self) -> None:
        try:
            if self._phase not in ("", "failed"):
                self.beat("ended")
        finally:
            os.close(self._descriptor)


def read_config(folder: Path) -> RunConfig:
    """What a run's config.json says; AlphaError when it is missing or damaged."""
    path = folder / CONFIG
    values = read_json(path, "run's configuration", CONFIG_LIMIT)
    if not isinstance(values, dict) or not all(isinstance(values.get(key), dict) for key in ("model", "training")):
        raise AlphaError(f"{path} does not have the objects 'model' and 'training'.")
    if not all(isinstance(values.get(key), str) for key in ("runId", "createdAt")):
        raise AlphaError(f"{path} does not have the texts 'runId' and 'createdAt'.")
    history = values.get("history", [])
    if not isinstance(history, list) or not all(isinstance(each, dict) for each in history):
        raise AlphaError(f"The 'history' in {path} is not a list of objects.")
    model = from_mapping(ModelConfig, values["model"], str(path))
    training = from_mapping(TrainingConfig, values["training"], str(path))
    return RunConfig(values["runId"], values["createdAt"], model, training, tuple(history))


def _write_config(folder: Path, config: RunConfig) -> None:
    write_json(
        folder / CONFIG,
        {
            "runId": config.run_id,
            "createdAt": config.created_at,
            "alphaVersion": __version__,
            "domain": config.training.domain,
            "configHash": config_hash(config.model, config.training),
            "model": to_mapping(config.model),
            "training": to_mapping(config.training),
            **({"history": config.history} if config.history else {}),
        },
    )


def check_new(folder: Path | None, root: Path = RUNS_FOLDER) -> None:
    """Raises AlphaError unless `create` can make a run in `folder`, or in a new folder of `root`; leaves no trace."""
    probe = folder or root / f"{datetime.now(UTC):%Y%m%d-%H%M%S}-new"
    try:
        if folder is not None and folder.is_dir():
            _require_empty(folder)
            if not os.access(folder, os.W_OK | os.X_OK):
                raise OSError(errno.EACCES, os.strerror(errno.EACCES))
            return
        made: list[Path] = []
        try:
            for each in reversed([probe, *probe.parents]):
                if not each.is_dir():
                    each.mkdir()
                    made.append(each)
        finally:
            for each in reversed(made):
                with contextlib.suppress(OSError):  # somebody else has put something in it
                    each.rmdir()
    except OSError as error:
        place = error.filename if isinstance(error, FileExistsError) else probe if folder else root
        raise AlphaError(f"Cannot make the folder {place}: {error.strerror}.") from error


def _require_empty(folder: Path) -> None:
    """Raises AlphaError when there is more in a folder than a lock and what a writer left that was killed."""
    if all(entry.name == LOCK or TEMPORARY_NAME.fullmatch(entry.name) for entry in folder.iterdir()):
        return
    try:
        read_config(folder)
    except AlphaError:
        raise AlphaError(f"The folder {folder} is not empty; choose another with --runDir, or empty it.") from None
    raise AlphaError(
        f"The folder {folder} has a run; continue it with {spelled('resume', folder)} or choose another --runDir."
    )


def _identity(path: Path) -> tuple[int, int]:
    status = path.stat()
    return status.st_dev, status.st_ino


@contextlib.contextmanager
def _new_folder(folder: Path | None, root: Path, run_id: str) -> Iterator[Path]:
    """Make `folder`, or a new one in `root` named by the run; it goes again when the `with` block raises and leaves it
    empty."""
    try:
        with making_folder(folder or root):
            made = folder or _made_by_name(root, run_id)
            try:
                sync_folder(made.parent)
                yield made
            except BaseException:
                if made != folder:
                    with contextlib.suppress(OSError):
                        made.rmdir()
                raise
    except OSError as error:
        raise AlphaError(f"Cannot make the folder {folder or root / run_id}: {error.strerror}.") from error


def _made_by_name(root: Path, run_id: str) -> Path:
    for count in itertools.count(1):
        folder = root / (run_id if count == 1 else f"{run_id}-{count}")
        with contextlib.suppress(FileExistsError):
            folder.mkdir()
            break
    return folder


@contextlib.contextmanager
def _unlocked_unless_done(folder: Path) -> Iterator[None]:
    """When the `with` block raises, the lock that this process holds goes, and its folder is as empty as it was."""
    try:
        yield
    except BaseException:
        (folder / LOCK).unlink(missing_ok=True)
        raise


def _lock(folder: Path) -> int:
    """Lock a run's folder for this process and return the lock's file descriptor, which holds it while it is open."""
    path = folder / LOCK
    try:
        descriptor = open_in_place(path)
    except OSError as error:
        raise AlphaError(f"Cannot lock the run with {path}: {error.strerror}.") from error
    try:
        # Whoever lists the runs holds a shared lock for an instant: that is no reason to give up.
        for attempt in range(_LOCK_TRIES):
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                if attempt == _LOCK_TRIES - 1:
                    raise
                time.sleep(_LOCK_PAUSE_SECONDS)
        os.ftruncate(descriptor, 0)
        os.pwrite(descriptor, str(os.getpid()).encode(), 0)
    except BlockingIOError:
        owner = os.pread(descriptor, 20, 0).decode(errors="replace")
        os.close(descriptor)
        user = f"process {owner}" if owner else "another process"
        raise AlphaError(f"The run {folder} is in use by {user}; wait for it or stop it.") from None
    except OSError as error:
        os.close(descriptor)
        raise AlphaError(f"Cannot lock the run {folder}: {error.strerror}.") from error
    return descriptor


@contextlib.contextmanager
def holding(folder: Path) -> Iterator[None]:
    """Keep others from training a run meanwhile. Raises AlphaError when somebody holds it."""
    descriptor = _lock(folder)
    try:
        yield
    finally:
        os.close(descriptor)


def is_locked(folder: Path) -> bool:
    """Whether a living process holds the run."""
    try:
        descriptor = os.open(folder / LOCK, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
    except OSError:
        return False
    try:
        fcntl.flock(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    finally:
        os.close(descriptor)
    return False
