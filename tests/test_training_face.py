"""`alpha train --tui` in a real terminal, and what becomes of training when its dashboard goes."""

import os
import pty
import select
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from small_training import RecordingDisplay, begin, bits_of, steps_saved, train, write_corpus

from alpha import training_face
from alpha.training_face import STOP_TRAINING, TrainingFace

ROOT = Path(__file__).resolve().parent.parent


@pytest.fixture
def corpus(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return write_corpus(tmp_path)


class PlainDisplay(RecordingDisplay):
    pass


def trained_with(face_program: str, corpus: Path, folder: Path, monkeypatch: pytest.MonkeyPatch) -> RecordingDisplay:
    """Train eight steps, with a program in the place of the dashboard; returns what the plain display was told."""
    monkeypatch.setattr(training_face, "_LOOK_SECONDS", 0.0)
    plain = PlainDisplay()
    faces: list[subprocess.Popen[bytes]] = []

    def start(_folder: Path) -> subprocess.Popen[bytes]:
        faces.append(subprocess.Popen([sys.executable, "-c", face_program]))
        if "wait" not in face_program:
            faces[0].wait()
        return faces[0]

    face = TrainingFace(plain, start)
    run, trainer = begin(corpus, folder, face)
    face.follow(folder)
    with run:
        trainer.train(run)
    assert faces[0].poll() is not None
    return plain


@pytest.mark.parametrize("code", [0, 1, STOP_TRAINING])
def test_training_goes_on_without_its_dashboard(
    code: int, corpus: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = train(corpus, tmp_path / "whole")
    folder = tmp_path / "run"
    plain = trained_with(f"raise SystemExit({code})", corpus, folder, monkeypatch)
    assert plain.started == [(8, 0)]
    assert plain.closed
    if code == STOP_TRAINING:
        assert 0 < steps_saved(folder)[-1] < 8
        return
    assert [row["step"] for row in plain.rows] == list(range(1, 9))
    assert any("exit code 1; training goes on" in warning for warning in plain.warnings) == (code == 1)
    assert bits_of(folder) == bits_of(whole)


def test_the_plain_display_begins_with_the_last_step(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(training_face, "_LOOK_SECONDS", 0.0)
    plain = PlainDisplay()
    program = [sys.executable, "-c", "import time; time.sleep(60)"]
    with subprocess.Popen(program) as process:
        face = TrainingFace(plain, lambda _folder: process)
        face.follow(tmp_path)
        face.start(8)
        face.step({"step": 3, "loss": 1.0})
        process.terminate()
        process.wait()
        face.message("stopped")
    assert (plain.started, plain.rows, plain.messages) == ([(8, 3)], [{"step": 3, "loss": 1.0}], ["stopped"])


def test_after_the_last_step_the_dashboard_stays_until_it_is_left(
    corpus: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    left = tmp_path / "left"
    program = f"import time, pathlib; time.sleep(3); pathlib.Path({str(left)!r}).touch()  # wait"
    plain = trained_with(program, corpus, tmp_path / "run", monkeypatch)
    assert left.exists()
    assert (plain.started, plain.rows) == ([], [])  # nothing was written over it


def test_a_dashboard_goes_with_a_training_that_stops(
    corpus: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    left = tmp_path / "left"
    program = f"import time, pathlib; time.sleep(60); pathlib.Path({str(left)!r}).touch()  # wait"
    monkeypatch.setattr("alpha.trainer.Trainer._note_acceptance", lambda self, row: signal.raise_signal(signal.SIGINT))
    begun = time.monotonic()
    trained_with(program, corpus, tmp_path / "run", monkeypatch)
    assert time.monotonic() - begun < 50
    assert not left.exists()


# --- in a terminal ----------------------------------------------------------------------------------------------------


class Terminal:
    """What a program draws on a terminal of 80 columns and 24 lines, as bytes."""

    def __init__(self, *arguments: str, cwd: Path) -> None:
        self.leader, follower = pty.openpty()
        os.set_blocking(self.leader, False)
        environment = {**os.environ, "TERM": "xterm-256color", "COLUMNS": "80", "LINES": "24"}
        self.process = subprocess.Popen(
            [sys.executable, str(ROOT / "alpha.py"), *arguments],
            stdin=follower, stdout=follower, stderr=follower, cwd=cwd, env=environment, start_new_session=True,
        )  # fmt: skip
        os.close(follower)
        self.seen = b""

    def until(self, text: str, seconds: float = 120.0) -> None:
        end = time.monotonic() + seconds
        while text.encode() not in self.seen:
            assert time.monotonic() < end, self.seen[-3000:].decode(errors="replace")
            if select.select([self.leader], [], [], 0.5)[0]:
                try:
                    self.seen += os.read(self.leader, 1 << 16)
                except OSError:  # its other end is closed
                    break

    def type(self, keys: bytes) -> None:
        os.write(self.leader, keys)


@pytest.fixture
def terminal(corpus: Path, tmp_path: Path) -> Iterator[Terminal]:
    pytest.importorskip("textual", reason="textual is not installed: alpha train --tui is NOT tested here")
    shape = ("--tokenizer=char", "--block=16", "--dim=16", "--heads=2", "--layers=1", "--batch=2", "--threads=1")
    often = ("--evalInterval=50", "--evalIters=1", "--sampleInterval=0", "--backend=cpu_ref")
    arguments = (f"--data={corpus}", "--runDir=run", "--iters=100000", "--minTokensPerParam=0", "--tui")
    opened = Terminal("train", *shape, *often, *arguments, cwd=tmp_path)
    yield opened
    opened.process.kill()
    opened.process.wait()
    os.close(opened.leader)


@pytest.mark.slow
def test_ctrl_c_in_the_dashboard_stops_the_training(terminal: Terminal, tmp_path: Path) -> None:
    terminal.until("1 monitor")
    terminal.until("running (")
    terminal.type(b"\x03")
    terminal.until("To continue: alpha train --resume=run")
    assert terminal.process.wait(60) == 130
    assert steps_saved(tmp_path / "run")


@pytest.mark.slow
def test_the_training_outlives_its_dashboard(terminal: Terminal, tmp_path: Path) -> None:
    terminal.until("running (")
    terminal.type(b"q")
    terminal.until("tokens/s  ")  # the plain display
    terminal.process.send_signal(signal.SIGINT)
    terminal.until("To continue:")
    assert terminal.process.wait(60) == 130


@pytest.mark.slow
def test_a_terminal_that_is_gone_ends_it_with_a_checkpoint(terminal: Terminal, tmp_path: Path) -> None:
    terminal.until("running (")
    os.close(terminal.leader)
    terminal.leader = os.open(os.devnull, os.O_RDONLY)
    assert terminal.process.wait(60) in (1, 130)  # as it is noticed by writing, or by SIGHUP
    assert steps_saved(tmp_path / "run")
