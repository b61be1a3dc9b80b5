"""The dashboard as the display of the training that it shows: `alpha train --tui`.

It is a process of its own that reads the run's files. When somebody leaves it, or it dies with whatever went wrong in
it, the plain progress display takes its place, and training notices nothing.
"""

import contextlib
import signal
import subprocess
import sys
import termios
import time
from collections import deque
from collections.abc import Callable
from pathlib import Path
from typing import Any

from alpha import installation
from alpha.progress import TrainingProgress
from alpha.terminal import is_terminal_gone

STOP_TRAINING = 130
"""The exit code of a dashboard at which somebody pressed Ctrl-C."""

_LOOK_SECONDS = 0.2
_KEPT_WARNINGS = 20
_GRACE_SECONDS = 5.0
_LEAVE_FULL_SCREEN = "\x1b[?1000l\x1b[?1002l\x1b[?1003l\x1b[?1006l\x1b[?2004l\x1b[?1004l\x1b[?1049l\x1b[?25h\x1b[0m"


class TrainingFace:
    """A `trainer.Display`. `follow` says which run it is; before that, and after the dashboard, all goes to `plain`.

    What the trainer says while the dashboard is there stands in the run's log, which it shows; the last warnings are
    said once more when it is left.
    """

    def __init__(self, plain: TrainingProgress, start_face: Callable[[Path], subprocess.Popen[bytes]] | None = None):
        self._plain = plain
        self._start_face = start_face or _start
        self._folder: Path | None = None
        self._face: subprocess.Popen[bytes] | None = None
        self._terminal: list[Any] | None = None
        self._total = self._step = 0
        self._looked_at = 0.0
        self._metrics: dict[str, Any] | None = None
        self._warnings: deque[str] = deque(maxlen=_KEPT_WARNINGS)

    @property
    def lost(self) -> Exception | None:
        return self._plain.lost

    def follow(self, folder: Path) -> None:
        """The run to show from its start on."""
        self._folder = folder

    def start(self, total: int, initial: int = 0) -> None:
        self._total, self._step = total, initial
        if self._folder is None:
            self._plain.start(total, initial)
            return
        sys.stdout.flush()
        self._terminal = _terminal_state()
        self._face = self._start_face(self._folder)

    def set_total(self, total: int) -> None:
        self._total = total
        self._plain.set_total(total)

    def step(self, metrics: dict[str, Any]) -> None:
        if not self._is_there():
            self._plain.step(metrics)
        self._step, self._metrics = metrics["step"], metrics

    def message(self, text: str) -> None:
        if not self._is_there():
            self._plain.message(text)

    def warning(self, text: str) -> None:
        if self._is_there():
            self._warnings.append(text)
        else:
            self._plain.warning(text)

    def sample(self, prompt: str, text: str) -> None:
        if not self._is_there():
            self._plain.sample(prompt, text)

    def count(self, stage: str, done: int, total: int) -> None:
        if not self._is_there():
            self._plain.count(stage, done, total)

    def close(self) -> None:
        """After the last step the dashboard stays until it is left; of a run that stops before, it goes at once."""
        if self._face is not None:
            try:
                if self._step >= self._total:
                    self._face.wait()
            finally:
                self._end()
        self._plain.close()

    def _is_there(self) -> bool:
        now = time.monotonic()
        if self._face is None or now - self._looked_at < _LOOK_SECONDS:
            return self._face is not None
        self._looked_at = now
        if self._face.poll() is None and not is_terminal_gone():
            return True
        code = self._end()
        self._plain.start(self._total, self._step)
        if self._metrics is not None:
            self._plain.step(self._metrics)  # there may be no further one
        for warning in self._warnings:
            self._plain.warning(warning)
        if code == STOP_TRAINING:
            signal.raise_signal(signal.SIGINT)
        elif code:
            self._plain.warning(f"The dashboard ended with exit code {code}; training goes on.")
        return False

    def _end(self) -> int:
        """Have the dashboard's process gone, and the terminal as it was before it; returns its exit code."""
        assert self._face is not None
        if self._face.poll() is None:
            self._face.terminate()
            try:
                self._face.wait(_GRACE_SECONDS)
            except subprocess.TimeoutExpired:
                self._face.kill()
                self._face.wait()
        code = self._face.returncode
        self._face = None
        if code not in (0, STOP_TRAINING):
            # A terminal that is gone has no state to restore.
            with contextlib.suppress(OSError, termios.error):
                print(_LEAVE_FULL_SCREEN, end="", flush=True)
                if self._terminal is not None:
                    termios.tcsetattr(sys.stdin.fileno(), termios.TCSADRAIN, self._terminal)
        return code


def _start(folder: Path) -> subprocess.Popen[bytes]:
    arguments = ["tui", f"--dir={folder.parent}", f"--run={folder.name}", "--ofTraining"]
    return subprocess.Popen([*installation.command(), *arguments])


def _terminal_state() -> list[Any] | None:
    try:
        return termios.tcgetattr(sys.stdin.fileno())
    except (termios.error, OSError, ValueError):  # standard input is not the terminal
        return None
