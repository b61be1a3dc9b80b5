"""A training run that takes a fraction of a second, for tests."""

import signal
from pathlib import Path
from typing import Any

from json_lines import rows_in

from alpha import checkpoint, rng
from alpha.checkpoint import Checkpoint
from alpha.config import ModelConfig, TrainingConfig
from alpha.run import Run
from alpha.trainer import Trainer
from alpha.training_setup import new_run, resumed_run

WORDS = ("The", "the", "a", "cat", "dog", "bird", "fish", "sees", "hears", "likes",
         "big", "small", "red", "old", "and", "then", "but", "not", "here", "there")  # fmt: skip
MODEL = ModelConfig(block=16, layers=2, dim=16, heads=2)
TRAINING = {
    "backend": "cpu_ref", "tokenizer": "char", "iters": 8, "batch": 4, "lr": 0.01, "eval_interval": 3, "eval_iters": 2,
    "sample_interval": 0,
    "min_tokens_per_param": 0, "threads": 1,
}  # fmt: skip
TIMES = (
    "time", "elapsed_ms", "tokens_per_sec", "ms_per_iter", "threads", "data_ms", "forward_ms", "backward_ms",
    "optimizer_ms",
)  # fmt: skip


def text_of(characters: int = 6000, name: str = "text") -> str:
    """Sentences of a few words, drawn at random."""
    draws = rng.random_bits(characters // 3, 1, rng.stream_of(name))
    words = [WORDS[draw % len(WORDS)] + (".\n" if draw % 7 == 0 else "") for draw in draws.tolist()]
    return " ".join(words)[:characters] + "\n"


class RecordingDisplay:
    """Keeps what it is told; asks for a stop, as Ctrl-C does, after the step `stop_after`."""

    def __init__(self, stop_after: int = 0) -> None:
        self.stop_after = stop_after
        self.started: list[tuple[int, int]] = []
        self.rows: list[dict[str, Any]] = []
        self.messages: list[str] = []
        self.warnings: list[str] = []
        self.samples: list[tuple[str, str]] = []
        self.counts: list[tuple[str, int, int]] = []
        self.closed = False
        self.lost: Exception | None = None

    def start(self, total: int, initial: int = 0) -> None:
        self.started.append((total, initial))

    def set_total(self, total: int) -> None:
        self.started.append((total, len(self.rows) + 1))

    def step(self, metrics: dict[str, Any]) -> None:
        self.rows.append(metrics)
        if metrics["step"] == self.stop_after:
            signal.raise_signal(signal.SIGINT)

    def message(self, text: str) -> None:
        self.messages.append(text)

    def warning(self, text: str) -> None:
        self.warnings.append(text)

    def sample(self, prompt: str, text: str) -> None:
        self.samples.append((prompt, text))

    def count(self, stage: str, done: int, total: int) -> None:
        self.counts.append((stage, done, total))

    def close(self) -> None:
        self.closed = True


def write_corpus(folder: Path, text: str = "") -> Path:
    path = folder / "corpus.txt"
    path.write_text(text or text_of(), encoding="utf-8")
    return path


def begin(
    corpus: Path, folder: Path, display: RecordingDisplay | None = None, model: ModelConfig = MODEL, **options: Any
) -> tuple[Run, Trainer]:
    """A new run in `folder` and what trains it."""
    training = TrainingConfig(data=str(corpus), run_dir=str(folder), **TRAINING | options)
    return new_run(model, training, display or RecordingDisplay())


def train(
    corpus: Path, folder: Path, display: RecordingDisplay | None = None, model: ModelConfig = MODEL, **options: Any
) -> Path:
    """Train a new run in `folder`, to its end unless the display stops it; returns the folder."""
    run, trainer = begin(corpus, folder, display, model, **options)
    return _finish(run, trainer)


def resume(folder: Path, display: RecordingDisplay | None = None, **options: Any) -> Path:
    """Train what is left of the run in `folder`; returns the folder."""
    run, trainer = resumed_run({"resume": str(folder), **options}, display or RecordingDisplay())
    return _finish(run, trainer)


def _finish(run: Run, trainer: Trainer) -> Path:
    with run:
        finished = trainer.train(run)
    assert finished == (trainer.steps_done == trainer.training.iters)
    return run.folder


def rows_of(folder: Path) -> list[dict[str, Any]]:
    """The rows of metrics without what a clock says, or makes Alpha choose."""
    return [{key: row[key] for key in row if key not in TIMES} for row in rows_in(folder / "metrics.jsonl")]


def steps_saved(folder: Path) -> list[int]:
    return [step for step, _ in checkpoint.list_checkpoints(folder)]


def newest(folder: Path) -> Checkpoint:
    return checkpoint.load(checkpoint.find(folder))


def bits_of(folder: Path) -> dict[str, bytes]:
    """Every bit of the newest checkpoint's tensors, by name: weights, optimizer state and counters."""
    saved = newest(folder)
    return {"step": str(saved.step).encode(), **{name: array.tobytes() for name, array in saved.tensors.items()}}
