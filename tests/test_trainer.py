"""The training loop: exact resume, stops and kills at any instant, skipped steps, full disks, what it writes."""

import errno
import itertools
import json
import math
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import pytest
from json_lines import rows_in
from small_training import (
    MODEL,
    TRAINING,
    RecordingDisplay,
    begin,
    bits_of,
    newest,
    resume,
    rows_of,
    steps_saved,
    text_of,
    train,
    write_corpus,
)

from alpha import checkpoint, corpus_files, domain, files, ops, safetensors_file, trainer, training_samples
from alpha.autograd import Tensor
from alpha.backend_cpu_ref import CpuRef
from alpha.backend_primitives import Array
from alpha.cli import main
from alpha.config import OPTIMIZERS, ModelConfig
from alpha.errors import AlphaError
from alpha.evaluation import Validation
from alpha.generation import Generator
from alpha.gpt import GPT
from alpha.interrupt import SIGNALS, StopRequest
from alpha.run import Run
from alpha.sampler import Sampler
from alpha.time_limit import TimeLimit
from alpha.trainer import Trainer
from alpha.training_samples import TrainingSamples
from alpha.training_setup import read_prompts, resumed_run
from alpha.training_step import StepResult, TrainingStep, learning_rate

ROOT = Path(__file__).resolve().parent.parent
DROPPED = ModelConfig(block=16, layers=2, dim=16, heads=2, dropout=0.1)


@pytest.fixture
def corpus(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return write_corpus(tmp_path)


def run_script(script: str, *arguments: object, **options: Any) -> subprocess.Popen[str]:
    """A Python process that finds Alpha and the modules beside this one."""
    environment = os.environ | {"PYTHONPATH": os.pathsep.join([str(ROOT), str(ROOT / "tests")])}
    return subprocess.Popen(
        [sys.executable, "-c", script, *map(str, arguments)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=environment | {"OPENBLAS_NUM_THREADS": "1"},
        **options,
    )


# --- the central promise ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("packed", [False, True], ids=["random", "packed"])
@pytest.mark.parametrize("optim", OPTIMIZERS)
def test_a_stopped_and_resumed_run_equals_the_uninterrupted_one_bit_for_bit(
    corpus: Path, tmp_path: Path, optim: str, packed: bool
) -> None:
    options: dict[str, Any] = {"optim": optim, "packed": packed, "accum_steps": 2, "recompute": True, "iters": 6}
    whole = train(corpus, tmp_path / "whole", model=DROPPED, **options)
    parts = train(corpus, tmp_path / "parts", RecordingDisplay(stop_after=2), model=DROPPED, **options)
    assert steps_saved(parts) == [2]
    resume(parts, RecordingDisplay(stop_after=5))
    assert steps_saved(parts) == [2, 3, 5]
    resume(parts)
    assert bits_of(parts) == bits_of(whole)
    assert rows_of(parts) == rows_of(whole)
    assert [row["step"] for row in rows_of(parts)] == [1, 2, 3, 4, 5, 6]


@pytest.mark.parametrize("options", [{}, {"optim": "muon", "accum_steps": 2, "sample_interval": 2}])
def test_the_steps_that_a_time_is_are_those_of_a_run_of_so_many_steps(
    corpus: Path, tmp_path: Path, options: dict[str, Any]
) -> None:
    display = RecordingDisplay()
    timed = train(corpus, tmp_path / "timed", display, model=DROPPED, minutes=2e-2, **options)
    steps = len(display.rows)
    assert [message for message in display.messages if message.endswith(f" --iters={steps}.")]
    with Run.open(timed) as run:
        config = run.config.training
    assert (config.iters, config.minutes) == (steps, 0.0)
    whole = train(corpus, tmp_path / "whole", model=DROPPED, **options, iters=steps, warmup_iters=config.warmup_iters)
    assert bits_of(timed) == bits_of(whole)
    assert rows_of(timed) == rows_of(whole)


def test_the_time_begins_before_the_data_is_read(corpus: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    read: list[float] = []
    find, fit = corpus_files.find, Trainer.fit

    def note_reading(*arguments: Any) -> Any:
        read.append(time.perf_counter())
        return find(*arguments)

    def check(self: Trainer, minutes: float, begin: float) -> None:
        assert started < begin < read[0]
        fit(self, minutes, begin - 60 * minutes)

    monkeypatch.setattr(corpus_files, "find", note_reading)
    monkeypatch.setattr(Trainer, "fit", check)
    display, started = RecordingDisplay(), time.perf_counter()
    train(corpus, tmp_path / "run", display, minutes=0.1)
    assert len(display.rows) == 1  # no time was left
    assert "0.1 minutes are over before the first step, which is made anyway" in display.warnings[0]


@pytest.mark.parametrize(
    ("left", "numbers"),
    [
        ([30, *[30] * 9], [30, 31, 32, 34, 38, 46]),
        # After 8 steps there is time for one more, but then the rate of the last ones should have decayed already.
        ([64, 60, 1], [64, 16]),
    ],
)
def test_rates_that_do_not_decay_yet_leave_the_number_of_steps_open(
    corpus: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, left: list[int], numbers: list[int]
) -> None:
    """`left` is how many steps there is time for, at the trial and at each later look."""
    schedule: dict[str, Any] = {"schedule": "wsd", "decay_fraction": 0.5, "warmup_iters": 2}
    answers = iter(left)
    monkeypatch.setattr(TimeLimit, "steps", lambda *_: next(answers))
    display = RecordingDisplay()
    timed = train(corpus, tmp_path / "timed", display, model=DROPPED, minutes=2e-2, **schedule)
    assert [total for total, _ in display.started] == numbers
    with Run.open(timed) as run:
        assert run.config.training.iters == len(display.rows) == numbers[-1]
        changes = [each["changes"]["iters"] for each in run.config.history]
    assert changes == [{"from": old, "to": new} for old, new in itertools.pairwise(numbers)]
    whole = train(corpus, tmp_path / "whole", model=DROPPED, **schedule, iters=numbers[-1])
    assert bits_of(timed) == bits_of(whole)
    assert rows_of(timed) == rows_of(whole)


def test_a_slow_first_evaluation_costs_a_run_no_steps(
    corpus: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    evaluate, beside = Validation.losses, []

    def losses(validation: Validation) -> dict[str, float]:
        if not beside:
            time.sleep(1.0)  # in the trial
        return evaluate(validation)

    def steps(limit: TimeLimit, _: float) -> int:
        beside.append(limit.beside)
        return 30

    monkeypatch.setattr(Validation, "losses", losses)
    monkeypatch.setattr(TimeLimit, "steps", steps)
    train(corpus, tmp_path / "run", minutes=1e-2, eval_interval=2, schedule="wsd", decay_fraction=0.1, warmup_iters=2)
    assert len(beside) > 2 and beside[0] >= 0.5 > 4 * beside[-1]


def test_a_sample_that_cannot_be_drawn_ends_no_trial(
    corpus: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object) -> str:
        raise AlphaError("There is no text.")

    monkeypatch.setattr(TrainingSamples, "_continued", refuse)
    display = RecordingDisplay()
    train(corpus, tmp_path / "run", display, minutes=2e-2, sample_interval=100_000)
    assert display.rows
    # Others speak of how many steps the machine makes in this time.
    assert [warning for warning in display.warnings if warning.startswith("No sample after step 0.")]


def test_what_watches_the_training_changes_no_bit_of_it(corpus: Path, tmp_path: Path) -> None:
    plain = train(corpus, tmp_path / "plain", model=DROPPED, eval_interval=0)
    watched = train(
        corpus, tmp_path / "watched", model=DROPPED, eval_interval=1, sample_interval=2, checkpoint_interval=3,
        log_every=5, keep=1, trace=True, recompute=True,
    )  # fmt: skip
    assert bits_of(plain) == bits_of(watched)


def test_each_micro_batch_is_a_batch_of_its_own_across_a_resume(
    corpus: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[Any] = []
    run = TrainingStep.run

    def recorded(step: TrainingStep, ids: Any, targets: Any, learning_rate: float) -> StepResult:
        seen.extend(np.concatenate([ids[..., :1], targets], -1))
        assert np.array_equal(ids[..., 1:], targets[..., :-1])
        return run(step, ids, targets, learning_rate)

    monkeypatch.setattr(TrainingStep, "run", recorded)
    other, training = begin(corpus, tmp_path / "other")
    other.close()
    sampler = Sampler(training.mixture.parts[0].data.train.tokens, MODEL.block, 4, training.training.seed, packed=False)
    folder = train(corpus, tmp_path / "run", RecordingDisplay(stop_after=2), iters=4, accum_steps=3)
    resume(folder)
    assert [tokens.tolist() for tokens in seen] == [sampler.batch_at(index).tolist() for index in range(12)]


def test_the_number_of_threads_changes_no_bit(corpus: Path, tmp_path: Path) -> None:
    # Large enough that operations are divided into several parts.
    model = ModelConfig(block=64, layers=1, dim=64, heads=4, dropout=0.1)
    options: dict[str, Any] = {"model": model, "iters": 3, "batch": 16}
    one, two = (train(corpus, tmp_path / str(count), threads=count, **options) for count in (1, 2))
    chosen = train(corpus, tmp_path / "chosen", RecordingDisplay(stop_after=2), threads=0, **options)
    resume(chosen, threads=2)
    assert bits_of(one) == bits_of(two) == bits_of(chosen)
    assert [{row["threads"] for row in rows_in(run / "metrics.jsonl")} for run in (one, two)] == [{1}, {2}]
    assert rows_of(one) == rows_of(two) == rows_of(chosen)


@pytest.mark.parametrize("intervals", [{"eval_interval": 4, "sample_interval": 3}, {"eval_interval": 0}])
def test_steps_that_are_started_before_earlier_ones_are_read_change_nothing(
    corpus: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, intervals: dict[str, int]
) -> None:
    one = train(corpus, tmp_path / "one", model=DROPPED, iters=9, **intervals)
    monkeypatch.setattr(CpuRef, "steps_in_flight", 3)
    most: list[int] = []
    finish = Trainer._finish_step

    def counted(trainer: Trainer) -> dict[str, Any]:
        most.append(len(trainer._under_way))
        return finish(trainer)

    monkeypatch.setattr(Trainer, "_finish_step", counted)
    three = train(corpus, tmp_path / "three", model=DROPPED, iters=9, **intervals)
    assert max(most) == 3
    assert bits_of(one) == bits_of(three)
    assert rows_of(one) == rows_of(three)
    assert steps_saved(one) == steps_saved(three)


@pytest.mark.parametrize(
    ("together", "counts"), [(1, [3, 3, 3, 3, 3, 2, 1]), (2, [3, 2, 3, 2, 3, 2, 1]), (9, [3, 2, 1, 3, 2, 1, 1])]
)
def test_steps_are_started_together(
    together: int, counts: list[int], corpus: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    one = train(corpus, tmp_path / "one", iters=7, eval_interval=0)
    monkeypatch.setattr(CpuRef, "steps_in_flight", 3)
    monkeypatch.setattr(CpuRef, "steps_together", together)
    seen: list[int] = []
    finish = Trainer._finish_step

    def counted(trainer: Trainer) -> dict[str, Any]:
        seen.append(len(trainer._under_way))
        return finish(trainer)

    monkeypatch.setattr(Trainer, "_finish_step", counted)
    assert bits_of(train(corpus, tmp_path / "several", iters=7, eval_interval=0)) == bits_of(one)
    assert seen == counts


def test_a_stop_finishes_the_steps_under_way(corpus: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(CpuRef, "steps_in_flight", 3)
    whole = train(corpus, tmp_path / "whole", iters=9, eval_interval=0)
    parts = train(corpus, tmp_path / "parts", RecordingDisplay(stop_after=2), iters=9, eval_interval=0)
    assert steps_saved(parts) == [4]  # 3 and 4 were under way
    resume(parts)
    assert bits_of(parts) == bits_of(whole)
    assert [row["step"] for row in rows_of(parts)] == list(range(1, 10))


def test_more_iters_continue_a_finished_run(corpus: Path, tmp_path: Path) -> None:
    # The learning rate of a wsd schedule without decay does not depend on the number of steps.
    options: dict[str, Any] = {"schedule": "wsd", "decay_fraction": 0.0, "warmup_iters": 2, "checkpoint_interval": 4}
    long = train(corpus, tmp_path / "long", eval_interval=0, iters=10, **options)
    short = train(corpus, tmp_path / "short", eval_interval=0, iters=6, **options)
    display = RecordingDisplay()
    resume(short, display, iters=10)
    assert display.started == [(10, 6)]
    assert bits_of(short) == bits_of(long)
    assert rows_of(short) == rows_of(long)
    assert json.loads((short / "config.json").read_text())["training"]["iters"] == 10
    assert newest(short).training.iters == 10


def test_more_iters_make_the_schedule_longer_from_there_on(corpus: Path, tmp_path: Path) -> None:
    folder = resume(train(corpus, tmp_path / "run", iters=6), iters=10)
    training = newest(folder).training
    rates = [row["lr"] for row in rows_of(folder)]
    assert rates[6:] == [learning_rate(step, training) for step in range(6, 10)]
    assert rates[5] == pytest.approx(training.lr_min)
    assert rates[6] > rates[5]


def test_a_finished_run_has_nothing_left_to_do(corpus: Path, tmp_path: Path) -> None:
    folder = train(corpus, tmp_path / "run", iters=3)
    before, written = bits_of(folder), checkpoint.find(folder).stat()
    resume(folder)
    assert bits_of(folder) == before
    assert checkpoint.find(folder).stat().st_ino == written.st_ino, "the checkpoint was written again"
    assert [row["step"] for row in rows_of(folder)] == [1, 2, 3]


def test_an_older_checkpoint_can_be_continued_from(corpus: Path, tmp_path: Path) -> None:
    folder = train(corpus, tmp_path / "run")
    before, rows = bits_of(folder), rows_of(folder)
    resume(folder / "checkpoint-3.safetensors")
    assert bits_of(folder) == before
    assert rows_of(folder) == rows
    assert [path.name for path in sorted(folder.glob("superseded-*"))] == [
        "superseded-checkpoint-6.safetensors",
        "superseded-checkpoint-8.safetensors",
    ]


def test_identical_runs_write_identical_checkpoints_but_for_times_and_names(corpus: Path, tmp_path: Path) -> None:
    """The safetensors package writes the keys of the metadata in random order; all else has one order."""
    contents, metadata = [], []
    for name in ("first", "second"):
        path = checkpoint.find(train(corpus, tmp_path / name))
        raw = path.read_bytes()
        contents.append(raw[8 + int.from_bytes(raw[:8], "little") :])
        with safetensors_file.SafetensorsFile(path) as file:
            metadata.append(dict(file.metadata))
    assert contents[0] == contents[1]
    for values in metadata:
        values["state"] = json.loads(values["state"])
        assert values["state"].pop("elapsedMs") > 0
        assert values["state"].pop("runId")
        values["training"] = json.loads(values["training"])
        assert values["training"].pop("runDir")
        assert values.pop("digest")  # of all the others
    assert metadata[0] == metadata[1]


# --- stops and kills --------------------------------------------------------------------------------------------------

SIGNALLED = """
import signal, sys, time
from pathlib import Path
from small_training import RecordingDisplay, begin

class Waiting(RecordingDisplay):
    def step(self, metrics):
        if metrics["step"] == 4:
            print("ready", flush=True)
            while not signal.getsignal(signal.SIGINT).__self__.requested:
                time.sleep(0.002)
            print("noted", flush=True)
            if sys.argv[3] == "stay":
                time.sleep(60)

run, trainer = begin(Path(sys.argv[1]), Path(sys.argv[2]), Waiting(), sample_interval=2)
with run:
    print(trainer.train(run), trainer.steps_done, flush=True)
"""


@pytest.mark.parametrize("number", SIGNALS)
def test_a_signal_ends_the_run_after_its_step(corpus: Path, tmp_path: Path, number: int) -> None:
    whole, stopped = train(corpus, tmp_path / "whole", sample_interval=2), tmp_path / "stopped"
    process = run_script(SIGNALLED, corpus, stopped, "go on")
    assert process.stdout is not None
    assert process.stdout.readline() == "ready\n"
    process.send_signal(number)
    assert process.communicate(timeout=30) == ("noted\nFalse 4\n", "")
    assert steps_saved(stopped) == [3, 4]
    resume(stopped)
    assert bits_of(stopped) == bits_of(whole)
    assert rows_of(stopped) == rows_of(whole)
    assert (stopped / "samples.jsonl").read_text() == (whole / "samples.jsonl").read_text()


def test_a_second_signal_ends_it_at_once_and_damages_nothing(corpus: Path, tmp_path: Path) -> None:
    whole, stopped = train(corpus, tmp_path / "whole", sample_interval=2), tmp_path / "stopped"
    process = run_script(SIGNALLED, corpus, stopped, "stay")
    assert process.stdout is not None
    assert process.stdout.readline() == "ready\n"
    process.send_signal(signal.SIGINT)
    assert process.stdout.readline() == "noted\n"
    process.send_signal(signal.SIGINT)
    output, errors = process.communicate(timeout=30)
    assert output == ""
    assert "KeyboardInterrupt" in errors
    assert steps_saved(stopped) == [3]
    assert "Ended by KeyboardInterrupt" in (stopped / "log.txt").read_text()
    resume(stopped)
    assert bits_of(stopped) == bits_of(whole)
    assert rows_of(stopped) == rows_of(whole)


def test_a_stop_leaves_a_checkpoint_even_before_the_first_step(
    corpus: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class AtOnce(StopRequest):
        def __init__(self) -> None:
            super().__init__()
            self.requested = True

    monkeypatch.setattr(trainer, "StopRequest", AtOnce)
    display = RecordingDisplay()
    folder = train(corpus, tmp_path / "run", display)
    assert steps_saved(folder) == [1]
    assert display.closed


KILLED = """
import os, pathlib, signal, sys
from pathlib import Path
from alpha import files, safetensors_file
from small_training import MODEL, resume, train

corpus, root = map(Path, sys.argv[1:3])

def arm(calls):
    '''Let this process be killed in the middle of its `calls`-th call that changes files.'''
    left = calls

    def kills(function, half):
        def replacement(*arguments, **options):
            nonlocal left
            left -= 1
            if left == 0:
                half(*arguments)
                os.kill(os.getpid(), signal.SIGKILL)
            return function(*arguments, **options)
        return replacement

    nothing = lambda *arguments: None
    write = os.write
    os.write = kills(write, lambda file, content: write(file, content[: len(content) // 2]))
    def half_file(path):
        _, file = files._create(path.parent)
        file.write(b"half")
        file.flush()
    safetensors_file.replacing = kills(files.replacing, half_file)
    for owner, name in ((os, "fsync"), (pathlib.Path, "replace"), (pathlib.Path, "unlink")):
        setattr(owner, name, kills(getattr(owner, name), nothing))

def killed(calls, work, *arguments, **options):
    child = os.fork()
    if child == 0:
        arm(calls)
        work(*arguments, **options)
        os._exit(0)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])

for calls in map(int, sys.argv[3].split(",")):
    folder = root / str(calls)
    codes = [killed(calls, train, corpus, folder, **eval(sys.argv[4]))]
    if list(folder.glob("checkpoint-*")):
        codes.append(killed(calls, resume, folder))
    print(calls, *codes, flush=True)
"""


def test_a_run_killed_at_any_instant_continues_exactly(corpus: Path, tmp_path: Path) -> None:
    options: dict[str, Any] = {"iters": 6, "eval_interval": 2, "keep": 1, "optim": "adamw", "accum_steps": 2}
    whole = train(corpus, tmp_path / "whole", **options)
    root = tmp_path / "killed"
    instants = [6, *range(12, 25), 30, 34]
    process = run_script(KILLED, corpus, root, ",".join(map(str, instants)), repr(options))
    output, errors = process.communicate(timeout=100)
    assert (process.returncode, errors) == (0, "")
    lines = [line.split() for line in output.splitlines()]
    assert [int(calls) for calls, *_ in lines] == instants
    first, again = [codes[0] for _, *codes in lines], [codes[1] for _, *codes in lines if len(codes) > 1]
    assert set(first) == {"-9"}, output
    assert "-9" in again
    states = set()
    started_over = 0
    for calls in instants:
        folder = root / str(calls)
        states.add((tuple(steps_saved(folder)), tuple(row["step"] for row in rows_of(folder))))
        if not steps_saved(folder):
            started_over += 1
            if not (folder / "config.json").exists():
                train(corpus, folder, **options)
        resume(folder)
        assert bits_of(folder) == bits_of(whole), f"killed in call {calls}"
        assert rows_of(folder) == rows_of(whole), f"killed in call {calls}"
        assert [path.name for path in folder.iterdir() if path.name.endswith(".tmp")] == []
    assert started_over > 0
    assert len(states) > 5, "the test is to see runs in many states"


# --- steps that are skipped -------------------------------------------------------------------------------------------


class PoisonedByExclamationMarks(GPT):
    """The loss of a batch that has the corpus's first character after space, "!", is not finite."""

    def hidden(self, ids: Array, *others: Any, **named: Any) -> Tensor:
        hidden = super().hidden(ids, *others, **named)
        return ops.add(hidden, math.inf if (ids == 2).any() else 0.0)


class AlwaysPoisoned(GPT):
    def loss(self, *arguments: Any) -> Tensor:
        return ops.add(super().loss(*arguments), math.nan)


def strict_rows(folder: Path) -> list[dict[str, Any]]:
    """The rows of metrics by a parser that takes no NaN and no Infinity."""

    def refuse(constant: str) -> None:
        raise AssertionError(f"{constant} is not JSON")

    lines = (folder / "metrics.jsonl").read_text().splitlines()
    return [json.loads(line, parse_constant=refuse) for line in lines]


def test_a_poisoned_batch_is_skipped_and_counted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr(trainer, "GPT", PoisonedByExclamationMarks)
    text = text_of()
    corpus = write_corpus(tmp_path, "!".join(text[start : start + 200] for start in range(0, len(text), 200)))
    display = RecordingDisplay()
    run, training = begin(corpus, tmp_path / "run", display, iters=12, eval_interval=6, eval_iters=0)
    assert training.tokenizer.encode("!") == [2]
    sampler = Sampler(training.mixture.parts[0].data.train.tokens, MODEL.block, 4, training.training.seed, packed=False)
    poisoned = [step + 1 for step in range(12) if (sampler.batch_at(step)[:, :-1] == 2).any()]
    assert 0 < len(poisoned) < 12
    with run, pytest.raises(AlphaError, match=r"outputs are not finite after step 12; try a lower --lr"):
        training.train(run)
    rows = strict_rows(run.folder)
    assert [row["step"] for row in rows if row.get("skipped")] == poisoned
    assert [row["step"] for row in rows if row["loss"] is None] == poisoned
    assert [row["valLoss"] for row in rows if "valLoss" in row] == [None, None]
    assert [warning.split(" was")[0] for warning in display.warnings] == [f"Step {step}" for step in poisoned]
    tensors = newest(run.folder).tensors
    assert tensors["optimizer.skipped_not_finite"].tolist() == [len(poisoned)]
    assert tensors["optimizer.steps"].tolist() == [12]


def test_steps_of_infinite_learning_rate_are_skipped_and_change_no_weight(
    corpus: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(trainer, "learning_rate", lambda step, training: math.inf)
    run, training = begin(corpus, tmp_path / "run", iters=4)
    before = training.model.parameters.to_numpy()
    with (
        run,
        pytest.raises(AlphaError, match=r"last 4 of 4 steps were all skipped, so .* those of step 0; try a lower"),
    ):
        training.train(run)
    saved = newest(run.folder)
    assert all(saved.tensors[name].tobytes() == values.tobytes() for name, values in before.items())
    assert saved.tensors["optimizer.skipped_not_finite"].tolist() == [4]
    assert all(row["skipped"] for row in strict_rows(run.folder))


def test_a_hundred_skipped_steps_in_a_row_end_the_run_resumed_or_not(
    corpus: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(trainer, "GPT", AlwaysPoisoned)
    folder = tmp_path / "run"
    options: dict[str, Any] = {"iters": 300, "batch": 1, "eval_interval": 0, "checkpoint_interval": 60}
    with pytest.raises(AlphaError) as caught:
        train(corpus, folder, **options)
    assert str(caught.value) == (
        f"The last 100 steps were all skipped, so training cannot go on; try a lower --lr. "
        f"The run {folder} is saved up to step 60."
    )
    assert [row["step"] for row in strict_rows(folder)] == list(range(1, 101))
    with pytest.raises(AlphaError, match="The last 100 steps were all skipped"):
        resume(folder)
    assert [row["step"] for row in strict_rows(folder)] == list(range(1, 101))


def test_a_spike_is_skipped_and_the_threshold_is_named(corpus: Path, tmp_path: Path) -> None:
    options: dict[str, Any] = {"iters": 120, "batch": 1, "eval_interval": 0, "spike_threshold": 1e-6}
    with pytest.raises(AlphaError, match=r"higher --spikeThreshold than 1e-06. Nothing of the run .* is saved yet"):
        train(corpus, tmp_path / "run", **options)


def test_accepted_steps_start_the_count_anew(corpus: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(trainer, "SKIPPED_LIMIT", 2)
    run, training = begin(corpus, tmp_path / "run")
    run.close()
    for skipped in (True, False, True, False):
        training._note_acceptance({"skipped": skipped, "loss": 1.0, "gradNorm": 1.0})
    training._note_acceptance({"skipped": True, "loss": 1.0, "gradNorm": 1.0})
    with pytest.raises(AlphaError, match="The last 2 steps"):
        training._note_acceptance({"skipped": True, "loss": 1.0, "gradNorm": 1.0})


def test_weights_that_are_not_finite_replace_no_checkpoint(corpus: Path, tmp_path: Path) -> None:
    class Sabotage(RecordingDisplay):
        def step(self, metrics: dict[str, Any]) -> None:
            if metrics["step"] == 5:
                training.model.parameters["ln_f.weight"].data[3] = np.inf

    display = Sabotage()
    run, training = begin(corpus, tmp_path / "run", display, sample_interval=5)
    with run, pytest.raises(AlphaError, match=r"not finite after step 6; try a lower --lr. The run .* up to step 3"):
        training.train(run)
    assert steps_saved(run.folder) == [3]
    assert [warning.split(".")[0] for warning in display.warnings] == [
        "No sample after step 5",
        "Step 6 was skipped: loss nan, gradient norm nan",
    ]


@pytest.mark.parametrize(
    ("iters", "good", "fails"),
    [(30, 0, True), (30, 20, True), (30, 21, False), (8, 4, True), (8, 5, False), (1, 0, True)],
)
def test_a_run_that_ends_in_skipped_steps_is_not_done(
    corpus: Path, tmp_path: Path, iters: int, good: int, fails: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(trainer, "learning_rate", lambda step, training: 0.01 if step < good else math.inf)
    run, training = begin(corpus, tmp_path / "run", iters=iters, batch=1, eval_interval=0)
    with run:
        if fails:
            with pytest.raises(
                AlphaError, match=rf"last {iters - good} of {iters} steps were all skipped.*step {good};"
            ):
                training.train(run)
        else:
            assert training.train(run)
    assert steps_saved(run.folder) == [iters]


def test_a_run_that_ends_with_outputs_that_are_not_finite_is_not_done(corpus: Path, tmp_path: Path) -> None:
    with pytest.raises(AlphaError, match=r"outputs are not finite after step 1; try a lower --lr.*up to step 1"):
        train(corpus, tmp_path / "run", iters=1, lr=1e38)
    assert steps_saved(tmp_path / "run") == [1]


# --- machines that refuse ---------------------------------------------------------------------------------------------


def test_a_full_disk_while_saving_keeps_the_older_checkpoint(
    corpus: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole, folder = train(corpus, tmp_path / "whole"), tmp_path / "run"

    @contextmanager
    def replacing(path: Path) -> Iterator[BinaryIO]:
        with files.replacing(path) as file:
            yield file
            if "checkpoint-6" in path.name:
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(safetensors_file, "replacing", replacing)
    display = RecordingDisplay()
    with pytest.raises(AlphaError) as caught:
        train(corpus, folder, display)
    assert str(caught.value) == (
        f"Cannot write {folder}/checkpoint-6.safetensors: No space left on device. "
        f"The run {folder} is saved up to step 3."
    )
    assert display.closed
    assert "No space left on device" in (folder / "log.txt").read_text()
    assert sorted(path.name for path in folder.iterdir()) == [
        ".lock", "checkpoint-3.safetensors", "config.json", "log.txt", "metrics.jsonl", "samples.jsonl",
        "status.json",
    ]  # fmt: skip
    status = json.loads((folder / "status.json").read_text())
    assert (status["phase"], "No space left on device" in status["error"]) == ("failed", True)
    monkeypatch.undo()
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    resume(folder)
    assert bits_of(folder) == bits_of(whole)
    assert rows_of(folder) == rows_of(whole)


def test_too_little_memory_for_a_step_is_an_error_to_act_on(
    corpus: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def loss(*_: Any, **__: Any) -> Tensor:
        raise MemoryError

    monkeypatch.setattr(GPT, "loss", loss)
    with pytest.raises(AlphaError, match=r"no memory for a step; use a smaller --batch .* Nothing of the run"):
        train(corpus, tmp_path / "run")


def test_an_error_soon_after_a_resume_says_what_was_saved_before(
    corpus: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = train(corpus, tmp_path / "run", RecordingDisplay(stop_after=4))

    def loss(*_: Any, **__: Any) -> Tensor:
        raise MemoryError

    monkeypatch.setattr(GPT, "loss", loss)
    with pytest.raises(AlphaError, match=r"The run .* is saved up to step 4\."):
        resume(folder)


def test_one_process_at_a_time(corpus: Path, tmp_path: Path) -> None:
    folder = train(corpus, tmp_path / "run", RecordingDisplay(stop_after=4))
    first, _ = resumed_run({"resume": str(folder)}, RecordingDisplay())
    with first:
        with pytest.raises(AlphaError, match=f"in use by process {os.getpid()}"):
            resume(folder)
        with pytest.raises(AlphaError, match=f"has a run; continue it with --resume={folder}"):
            train(corpus, folder)
    resume(folder)


def test_a_folder_that_is_deleted_ends_the_run(corpus: Path, tmp_path: Path) -> None:
    class Deleting(RecordingDisplay):
        def step(self, metrics: dict[str, Any]) -> None:
            if metrics["step"] == 4:
                shutil.rmtree(tmp_path / "run")

    with pytest.raises(AlphaError, match=r"was deleted.* Nothing of the run .* is saved there\.$"):
        train(corpus, tmp_path / "run", Deleting())
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(("flight", "saved"), [(1, 4), (3, 6)])
def test_who_watches_may_leave_and_the_steps_are_saved(
    corpus: Path, tmp_path: Path, flight: int, saved: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Leaving(RecordingDisplay):
        def step(self, metrics: dict[str, Any]) -> None:
            if metrics["step"] == 4:
                self.lost = BrokenPipeError()

    monkeypatch.setattr(CpuRef, "steps_in_flight", flight)
    with pytest.raises(BrokenPipeError):
        train(corpus, tmp_path / "run", Leaving(), eval_interval=0)
    assert steps_saved(tmp_path / "run") == [saved]


@pytest.mark.parametrize("flight", [1, 3])
def test_the_first_checkpoint_does_not_wait_for_a_long_interval(
    corpus: Path, tmp_path: Path, flight: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    plain = train(corpus, tmp_path / "plain", eval_interval=0)
    assert steps_saved(plain) == [8]
    monkeypatch.setattr(CpuRef, "steps_in_flight", flight)
    monkeypatch.setattr(trainer, "FIRST_SAVE_SECONDS", 0.0)
    early = train(corpus, tmp_path / "early", eval_interval=0)
    assert steps_saved(early) == [1, 8]
    assert bits_of(early) == bits_of(plain)


# --- what a run has to say --------------------------------------------------------------------------------------------


def test_rows_of_metrics(corpus: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(time, "perf_counter", time.thread_time)  # which stands still while other programs run
    display = RecordingDisplay()
    folder = train(corpus, tmp_path / "run", display, iters=7, accum_steps=2, trace=True)
    rows = rows_in(folder / "metrics.jsonl")
    assert rows == display.rows
    assert display.started == [(7, 0)]
    for row in rows:
        assert set(row) - {"valLoss", "valBitsPerByte"} == {
            "step", "loss", "lr", "gradNorm", "clipped", "tokens", "time", "elapsed_ms", "tokens_per_sec",
            "ms_per_iter", "threads", "data_ms", "forward_ms", "backward_ms", "optimizer_ms",
        }  # fmt: skip
        tokens = 4 * 2 * MODEL.block
        assert row["tokens_per_sec"] == pytest.approx(1e3 * tokens / row["ms_per_iter"], rel=0.01)
        parts = row["data_ms"] + row["forward_ms"] + row["backward_ms"] + row["optimizer_ms"]
        assert 0.3 * row["ms_per_iter"] < parts <= row["ms_per_iter"]
        assert row["tokens"] == tokens * row["step"]
    times = [row["time"] for row in rows]
    assert times == sorted(times)
    assert abs(times[-1] - time.time()) < 60
    for measured in ("valLoss", "valBitsPerByte"):
        assert [row["step"] for row in rows if measured in row] == [3, 6, 7]
    assert rows[-1]["elapsed_ms"] == pytest.approx(sum(row["ms_per_iter"] for row in rows), abs=0.5)
    assert newest(folder).state["elapsedMs"] == pytest.approx(rows[-1]["elapsed_ms"], abs=0.1)


def test_rows_of_metrics_say_now_and_then_how_much_memory_is_in_use(
    corpus: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("ALPHA_GPU_METRICS_SAMPLE_EVERY", "3")
    monkeypatch.setattr(CpuRef, "memory_in_use", lambda self: (7, 9))
    memory = {"gpuMemory": 7, "gpuMemoryPeak": 7, "gpuMemoryBudget": 9}
    rows = rows_of(train(corpus, tmp_path / "run", iters=9, log_every=2, eval_interval=0))
    assert {row["step"]: {key: row[key] for key in memory} for row in rows if "gpuMemory" in row} == {
        2: memory, 6: memory,
    }  # fmt: skip


def test_elapsed_time_goes_on_after_a_resume(corpus: Path, tmp_path: Path) -> None:
    folder = train(corpus, tmp_path / "run", RecordingDisplay(stop_after=4))
    resume(folder)
    elapsed = [row["elapsed_ms"] for row in rows_in(folder / "metrics.jsonl")]
    assert elapsed == sorted(elapsed)
    assert len(set(elapsed)) == 8


def test_rows_are_logged_now_and_then_and_with_every_evaluation(corpus: Path, tmp_path: Path) -> None:
    folder = train(corpus, tmp_path / "run", iters=9, log_every=4, eval_interval=3)
    assert [row["step"] for row in rows_of(folder)] == [3, 4, 6, 8, 9]


def test_checkpoints_have_an_interval_of_their_own(corpus: Path, tmp_path: Path) -> None:
    options: dict[str, Any] = {"iters": 7, "keep": 9}
    assert steps_saved(train(corpus, tmp_path / "a", eval_interval=3, checkpoint_interval=2, **options)) == [2, 4, 6, 7]
    assert steps_saved(train(corpus, tmp_path / "b", eval_interval=0, checkpoint_interval=0, **options)) == [7]
    measured = checkpoint.read_header(tmp_path / "a" / "checkpoint-6.safetensors").state["valLoss"]
    assert measured == next(row for row in rows_of(tmp_path / "a") if row["step"] == 6)["valLoss"]
    assert checkpoint.read_header(tmp_path / "a" / "checkpoint-4.safetensors").state["valLoss"] is None


def test_a_corpus_too_small_to_hold_a_part_out_is_trained_without_evaluation(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    display = RecordingDisplay()
    folder = train(write_corpus(tmp_path, text_of(150)), tmp_path / "run", display, max_dataset_passes=1000)
    assert not any("valLoss" in row for row in rows_of(folder))
    assert steps_saved(folder) == [3, 6, 8]
    assert any("no validation data" in warning for warning in display.warnings)


def test_the_validation_loss_is_that_of_alpha_eval_whatever_the_batch(
    corpus: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    other = tmp_path / "other.txt"
    other.write_text(text_of(2000, "other"))
    losses = []
    for batch in (1, 4):
        options = {"batch": batch, "accum_steps": 4 // batch, "iters": 4, "eval_interval": 2, "val_data": str(other)}
        folder = train(corpus, tmp_path / f"run{batch}", **options)
        losses.append([row["valLoss"] for row in rows_of(folder) if "valLoss" in row])
        assert main(["eval", f"--checkpoint={folder}", f"--data={other}", "--nBatches=2", "--json"]) == 0
        assert losses[-1][-1] == pytest.approx(json.loads(capsys.readouterr().out)["loss"], rel=1e-5)
    assert len(losses[0]) == 2
    assert losses[0] == pytest.approx(losses[1], rel=1e-4)


def test_a_token_file_that_is_cut_short_meanwhile_ends_training_with_an_error(corpus: Path, tmp_path: Path) -> None:
    run, trainer = begin(corpus, tmp_path / "run", iters=100_000)
    os.truncate(trainer.mixture.parts[0].data.train.path, 200)
    with run, pytest.raises(AlphaError, match=r"train\.npy was cut short by another program"):
        trainer.train(run)


def test_samples_continue_the_prompts_of_the_domain_in_turn(tmp_path: Path) -> None:
    display = RecordingDisplay()
    prompts = domain.get("dumb_finance").prompts
    corpus = write_corpus(tmp_path, text_of() + "\n".join(prompts))
    folder = train(corpus, tmp_path / "run", display, iters=7, sample_interval=2, domain="dumb_finance", seed=1)
    rows = rows_in(folder / "samples.jsonl")
    assert [row["step"] for row in rows] == [2, 4, 6, 7]
    assert [row["prompt"] for row in rows] == [prompts[1], prompts[2], prompts[3], prompts[3]]
    assert display.samples == [(row["prompt"], row["text"]) for row in rows]
    assert all(row["text"] for row in rows)


def test_samples_continue_all_given_prompts(corpus: Path, tmp_path: Path) -> None:
    prompts = tmp_path / "prompts.txt"
    prompts.write_text("The cat\n\nsees a\n")
    folder = train(corpus, tmp_path / "run", iters=4, sample_interval=2, sample_prompts=str(prompts))
    rows = rows_in(folder / "samples.jsonl")
    assert [(row["step"], row["prompt"]) for row in rows] == [
        (step, prompt) for step in (2, 4) for prompt in ("The cat", "sees a")
    ]
    assert all(row["text"] for row in rows)
    resume(folder, iters=6, sample_prompts="")
    assert [row["step"] for row in rows_in(folder / "samples.jsonl")] == [2, 2, 4, 4, 6]


def test_prompts_may_be_conversations(tmp_path: Path) -> None:
    path = tmp_path / "prompts.jsonl"
    path.write_text(
        '{"text": "Once"}\n{"messages": [{"role": "user", "content": "Hello"}]}\n'
        '{"prompt": "Hello", "completion": "Hi"}\n'
    )
    asked = [("<|user|>", "Hello")]
    assert read_prompts(path) == ("Once", asked, asked)
    for content, message in (
        (b'{"text": 3}\n', r"Line 1 of .*prompts\.jsonl is not an object with a string"),
        (b'{"messages": []}\n', r"Line 1 of .*prompts\.jsonl asks for no answer"),
        (b"\n[\n", r"Line 2 of .*prompts\.jsonl is not valid JSON"),
        (b"\n", "has 0 prompts; give 1 to 100"),
        (b'{"text": "a"}\n' * 101, "has 101 prompts; give 1 to 100"),
        (b"\xff", "are not UTF-8 text"),
    ):
        path.write_bytes(content)
        with pytest.raises(AlphaError, match=message):
            read_prompts(path)
    with pytest.raises(AlphaError, match="missing"):
        read_prompts(tmp_path / "missing")


def test_a_prompt_that_the_tokenizer_does_not_know_is_left_out(corpus: Path, tmp_path: Path) -> None:
    display = RecordingDisplay()
    train(corpus, tmp_path / "known", display, iters=2, sample_interval=2)
    lower = tmp_path / "lower"
    lower.mkdir()
    lower_corpus = write_corpus(lower, text_of().lower() + "close: ")
    train(lower_corpus, tmp_path / "unknown", display, iters=2, sample_interval=2)
    train(corpus, tmp_path / "domain", display, iters=2, sample_interval=2, domain="abc")
    train(write_corpus(tmp_path, text_of() + "Close: "), tmp_path / "some", display, iters=2, sample_interval=2,
          domain="dumb_finance")  # fmt: skip
    assert [prompt for prompt, _ in display.samples] == ["The ", "", "", "Close: "]


def test_samples_of_chats_end_with_the_turn_and_spaces_belong_to_the_next_word(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = []

    def generate(self: Generator, prompt: list[int], *_: object, ends: Any, first: Any) -> Iterator[list[int | None]]:
        asked.append((prompt, first))
        for token in encode("well" + domain.END + "not this"):
            yield [token]

    monkeypatch.setattr(training_samples.Generator, "generate", generate)
    corpus = write_corpus(tmp_path, text_of() + domain.dialogue([(domain.USER, text_of(200))], reply=True))
    for name in ("chat", "novels"):
        display = RecordingDisplay()
        run, training = begin(
            corpus, tmp_path / name, display, iters=5, sample_interval=1, domain=name, tokenizer="bpe"
        )
        encode = training.tokenizer.encode
        with run:
            training.train(run)
        (prompt, text), (ids, first) = display.samples[-1], asked[-1]
        if name == "chat":
            assert prompt.endswith(domain.ASSISTANT)
            assert (text, first) == ("well", None)
        else:
            assert prompt == "Nobody in the village "
            assert ids == encode("Nobody in the village")
            assert all(training.tokenizer.token_bytes(token).startswith(b" ") for token in first)


def test_a_domain_that_does_not_exist_is_refused_before_training(corpus: Path, tmp_path: Path) -> None:
    with pytest.raises(AlphaError, match="There is no domain 'novel'"):
        train(corpus, tmp_path / "run", domain="novel")
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("key", ["elapsedMs", "skippedInARow"])
@pytest.mark.parametrize("value", [None, "3", [3]])
def test_a_state_without_its_numbers_is_refused(corpus: Path, tmp_path: Path, key: str, value: object) -> None:
    folder = train(corpus, tmp_path / "run", iters=2)
    saved = newest(folder)
    saved.state[key] = value
    checkpoint.save(folder, saved)
    with pytest.raises(AlphaError, match=f"The state of step 2 has no number '{key}'"):
        resume(folder)


def test_the_options_of_these_tests_are_options() -> None:
    assert set(TRAINING) <= set(ModelConfig.__dataclass_fields__) | {*trainer.TrainingConfig.__dataclass_fields__}


def test_the_drawing_of_weights_is_shown_in_each_second_that_it_takes(monkeypatch: pytest.MonkeyPatch) -> None:
    display, times = RecordingDisplay(), iter([0.0, 0.5, 1.1, 1.1, 1.9, 2.2, 2.2])
    monkeypatch.setattr(trainer.time, "perf_counter", lambda: next(times))
    progress = trainer._each_second(display, "Drawing the initial weights")
    for share in (0.1, 0.3, 0.4, 0.52, 1.0):
        progress(share)
    assert display.messages == ["Drawing the initial weights: 30%.", "Drawing the initial weights: 52%."]
