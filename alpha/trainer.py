"""The training loop: steps, metrics, evaluations, samples and checkpoints of one run.

Knows nothing about how a run is configured or displayed; see `training_setup` and `progress`.
"""

import dataclasses
import logging
import math
import statistics
import time
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np

from alpha import __version__
from alpha.backend import Backend
from alpha.checkpoint import BASE, IMPORTED, OPTIMIZER_PREFIX, Checkpoint
from alpha.config import ModelConfig, TrainingConfig, resolve_training
from alpha.errors import AlphaError
from alpha.evaluation import Validation, losses_in_words
from alpha.gpt import GPT
from alpha.interrupt import StopRequest
from alpha.lora import lora_of
from alpha.loss_mask import loss_masks
from alpha.mixture import Mixture, sampler_of
from alpha.optimizer import make_optimizer
from alpha.option import LARGEST_INTEGER, spelled
from alpha.run import Run
from alpha.safetensors_file import Array
from alpha.text_stream import Continuation
from alpha.thread_choice import ThreadChoice
from alpha.time_limit import TimeLimit
from alpha.tokenizer import Tokenizer
from alpha.training_samples import TrainingSamples
from alpha.training_step import MemoryWatch, PhaseTimer, StepResult, TrainingStep, learning_rate, untimed

SKIPPED_LIMIT = 100
SKIPPED_AT_THE_END = 10
"""So many skipped steps at the end of a run, or half of all its steps, mean that it went wrong."""

TRIAL_STEPS = 10
TRIAL_SHARE = 0.02
"""A trial that shows how many steps a time is makes at least so many, and takes at least this part of that time."""

FIRST_SAVE_SECONDS = 60.0
"""A run that has no checkpoint after this time gets one, however long its intervals are."""

_logger = logging.getLogger(__name__)


class Display(Protocol):
    """What the loop tells somebody who watches; `step` gets rows of metrics.jsonl, `count` what is
    done of a stage before the first.

    `lost` is None, or why nobody can watch any more.
    """

    @property
    def lost(self) -> Exception | None: ...

    def start(self, total: int, initial: int = 0) -> None: ...

    def set_total(self, total: int) -> None: ...

    def step(self, metrics: dict[str, Any]) -> None: ...

    def message(self, text: str) -> None: ...

    def warning(self, text: str) -> None: ...

    def sample(self, prompt: str, text: str) -> None: ...

    def count(self, stage: str, done: int, total: int) -> None: ...

    def close(self) -> None: ...


@dataclass(frozen=True)
class Beginning:
    """Weights to begin with, by name, and what every checkpoint is to keep of where they came from.

    Without weights, they are drawn.
    """

    tensors: Mapping[str, Array]
    state: dict[str, Any]


@dataclass(frozen=True)
class _StepUnderWay:
    """A step that has been started and whose result has not been read."""

    started: float
    loaded: float
    learning_rate: float
    tokens: int
    threads: int
    result: StepResult


class Trainer:
    """Trains a model, from the start or from a checkpoint. Both configurations are resolved."""

    def __init__(
        self,
        model: ModelConfig,
        training: TrainingConfig,
        tokenizer: Tokenizer,
        mixture: Mixture,
        backend: Backend,
        display: Display,
        start: Checkpoint | Beginning | None = None,
        base: Mapping[str, Array] | None = None,
        prompts: Sequence[tuple[str, Continuation]] = (),
    ) -> None:
        """With --lora, `base` are the weights that the adapter stands on, which alone is trained and saved.
        `prompts` are those of samples, see `TrainingSamples`.
        """
        self.tokenizer = tokenizer
        self.mixture = mixture
        self.display = display
        self.training = training
        lora = lora_of(training)
        self.model = GPT(
            backend, model, tokenizer.vocab_size, training.seed,
            trained=lambda spec: lora is None, matrix_dtype=backend.weight_dtype,
        )  # fmt: skip
        if lora is not None and base is not None:
            self.model.parameters.load(base)
            self.model = self.model.adapted(lora, training.seed)
        self._timer = PhaseTimer() if training.trace else None
        optimizer = make_optimizer(self.model.parameters, training)
        self._step = TrainingStep(self.model, optimizer, training, self._timer or untimed)
        masks = [loss_masks(part.data, training.loss_on, display.message) for part in mixture.parts]
        self._validation = Validation(self.model, mixture, [mask for _, mask in masks], tokenizer, training)
        self._sampler = sampler_of(
            mixture, [mask for mask, _ in masks], tokenizer, model.block, training, display.message
        )
        self._threads = ThreadChoice(backend, training.threads)
        self._memory = MemoryWatch(backend)
        self._samples = TrainingSamples(self.model, tokenizer, training, prompts, display.warning)
        self.steps_done = 0
        self._under_way: deque[_StepUnderWay] = deque()
        self._elapsed = 0.0
        self._finished_at = 0.0
        self._skipped_in_a_row = 0
        self._saved_step = 0
        self._first_step = 0  # of this process, and how many windows had been drawn before it
        self._first_window = 0
        self._began = 0.0
        self._limit: TimeLimit | None = None
        self._validated: dict[str, float] = {}  # what was measured at this very step
        self._kept: dict[str, Any] = {}
        self._has_source = isinstance(start, Beginning)
        if isinstance(start, Checkpoint):
            self._load(start)
            return
        if start is not None:
            self._kept = start.state
        if start is not None and start.tensors:
            self.model.parameters.load(start.tensors)
        else:
            self.model.parameters.initialize(_each_second(display, "Drawing the initial weights"))

    def fit(self, minutes: float, begin: float) -> None:
        """Set the number of steps to what is made in so many minutes, evaluations, samples and this trial included.

        The time began at `begin`, by time.perf_counter(), so that it has what the data took until now, too.

        The trial makes real steps on the run's own batches, and afterwards everything is as it was, so that the run has
        the bits of one that is given the same options. It has them, too, where `_fit_again` changes the number.
        """
        limit = 60 * minutes
        training = self.training
        weights = {name: values.copy() for name, values in self.model.parameters.to_numpy().items()}
        state = {name: self.model.backend.to_numpy(array).copy() for name, array in self._step.state().items()}
        self.training = dataclasses.replace(training, iters=LARGEST_INTEGER)
        seconds: list[float] = []
        while len(seconds) < TRIAL_STEPS or self._threads.is_open or sum(seconds) < TRIAL_SHARE * limit:
            self._start_steps(self.model.backend.steps_in_flight)
            seconds.append(self._finish_step()["ms_per_iter"] / 1e3)
        while self._under_way:
            self._finish_step()
        step = statistics.fmean(seconds[len(seconds) // 2 :])  # the first ones also pay for what is made once
        evaluates = self.mixture.evaluated and training.eval_interval
        evaluating = _seconds_of(self._validation.losses) if evaluates else 0.0
        sampling = _seconds_of(lambda: list(self._samples.texts(0))) if training.sample_interval else 0.0
        share = evaluating / max(1, training.eval_interval) + sampling / max(1, training.sample_interval)
        self.model.parameters.load(weights)
        self._step.load_state(state)
        self.steps_done, self._elapsed = 0, 0.0
        after = evaluating + sampling  # both are made after the last step, too
        self._limit = TimeLimit(begin + limit, share, after)
        left = self._limit.steps(step)
        iters = max(1, left)
        self.training = resolve_training(dataclasses.replace(training, iters=iters, minutes=0.0))
        if left:
            asked = f"what is left of {minutes:g} minutes is {spelled('iters', iters)}"
            self.display.message(f"A step takes {1e3 * step:.3g} ms here, so {asked}.")
        else:
            self.display.warning(
                f"{minutes:g} minutes are over before the first step, which is made anyway; give more --minutes."
            )

    def _fit_again(self, run: Run) -> None:
        """Change the number of steps to what the time allows by now."""
        if self._limit is None:
            return
        step = self._elapsed / self.steps_done
        iters = self._limit.iters(self.training, self.steps_done, self.steps_done + len(self._under_way), step)
        if iters == self.training.iters:
            return
        self.training = dataclasses.replace(self.training, iters=iters)
        run.configure(run.config.model, self.training, self.steps_done)
        self.display.set_total(iters)
        self.display.message(f"A step takes {1e3 * step:.3g} ms by now, so the time is {spelled('iters', iters)}.")

    def train(self, run: Run) -> bool:
        """Run the steps that are left and keep the results in `run`; False when a signal asked to stop before the end.

        The last step is saved in either case, and when the display is lost, whose exception is then raised. Errors say
        what of the run is saved.
        """
        self.display.start(self.training.iters, self.steps_done)
        self._began = time.monotonic()
        try:
            if plan := self._step.plan(self.training.batch, self.training.pack_documents):
                self.display.message(_plan_in_words(plan))
            if self._has_source:
                self._save(run)  # from here on the run needs its source no more
            with StopRequest() as stop:
                self._run_steps(run, stop)
                if self.display.lost is not None and not stop.requested:
                    raise self.display.lost
            self._require_a_good_end()
        except MemoryError as error:
            numbers = f" {error}" if isinstance(error, AlphaError) else ""
            lack = f"There is no memory for a step; {self._smaller_step()}.{numbers}"
            raise AlphaError(f"{lack} {self._what_is_saved(run)}") from error
        except AlphaError as error:
            again = f" Continue with {spelled('resume', run.folder)}." if error.may_pass and self._saved_step else ""
            raise AlphaError(f"{error} {self._what_is_saved(run)}{again}") from error
        finally:
            self.display.close()
        return self.steps_done == self.training.iters

    def _run_steps(self, run: Run, stop: StopRequest) -> None:
        while self.steps_done < self.training.iters:
            pauses = self._is_first_save_due() or self._leaves(stop)
            run.beat("training")
            self._start_steps(1 if pauses else self.model.backend.steps_in_flight)
            row = self._finish_step()
            self._fit_again(run)
            row |= self._evaluate_when_due(run)
            self._memory.after_step()
            if self.steps_done % self.training.log_every == 0 or "valLoss" in row:
                row |= self._memory.report()
                run.add_metrics(row)
            self.display.step(row)
            self._note_acceptance(row)
            self._sample_when_due(run)
            if self._is_due(self._save_interval) or (self._is_first_save_due() and not self._under_way):
                self._save(run)
            self._look_at_the_time()
            if self._leaves(stop) and not self._under_way:
                break
        if self._saved_step < self.steps_done:
            self._save(run)

    def _look_at_the_time(self) -> None:
        """Find what a step takes besides itself by now; what the trial timed also paid for what is made once."""
        interval = max(self.training.eval_interval, self.training.sample_interval, self._save_interval)
        if self._limit is not None and interval and self.steps_done % interval == 0:
            self._limit.beside = max(0.0, time.monotonic() - self._began - self._elapsed) / self.steps_done

    def _leaves(self, stop: StopRequest) -> bool:
        return stop.requested or self.display.lost is not None

    def _is_first_save_due(self) -> bool:
        return self._saved_step == 0 and time.monotonic() - self._began > FIRST_SAVE_SECONDS

    def _require_a_good_end(self) -> None:
        """Raises AlphaError when the run is over and its last steps changed nothing, or it cannot be used."""
        count, steps = self._skipped_in_a_row, self.training.iters
        if self.steps_done < steps:
            return
        if count >= min(SKIPPED_AT_THE_END, (steps + 1) // 2):
            raise AlphaError(
                f"The last {count} of {steps} steps were all skipped, so the weights are those of step "
                f"{steps - count}; {self._remedy()}, when it is resumed with more --iters."
            )
        if not math.isfinite(self._validated.get("valLoss", 0.0)):
            raise AlphaError(f"The model's outputs are not finite after step {steps}; {self._remedy()}.")

    def _remedy(self) -> str:
        threshold = self.training.spike_threshold
        return "try a lower --lr" + (f", or a higher --spikeThreshold than {threshold:g}" if threshold else "")

    def _smaller_step(self) -> str:
        """What makes a step need less memory."""
        training, ways = self.training, []
        if training.batch > 1:
            ways.append("a smaller --batch with more --accumSteps")
        if not training.recompute:
            ways.append("--recompute")
        if training.dtype == "f32" and training.backend == "helios":
            ways.append("--dtype=f16")
        return "use " + ", or ".join(ways or ["a smaller model"])

    def _what_is_saved(self, run: Run) -> str:
        if self._saved_step == 0 or not run.is_there():
            return f"Nothing of the run {run.folder} is saved{' yet' if run.is_there() else ' there'}."
        return f"The run {run.folder} is saved up to step {self._saved_step}."

    @property
    def _windows_drawn(self) -> int:
        """Over the whole run, by the steps that are done."""
        return (
            self._first_window + (self.steps_done - self._first_step) * self.training.accum_steps * self.training.batch
        )

    @property
    def _save_interval(self) -> int:
        return self.training.checkpoint_interval or self.training.eval_interval

    def _start_steps(self, most: int) -> None:
        """Start steps until `most` are under way, but none after one at whose end the weights themselves are needed,
        and none before the backend's `steps_together` have room."""
        if self._under_way and len(self._under_way) > most - self.model.backend.steps_together:
            return
        intervals = (self.training.eval_interval, self.training.sample_interval, self._save_interval)
        while len(self._under_way) < most:
            started = self.steps_done + len(self._under_way)
            if self._under_way and (
                started == self.training.iters or any(each and started % each == 0 for each in intervals)
            ):
                return
            self._under_way.append(self._start_step(started))

    def _start_step(self, step: int) -> _StepUnderWay:
        training = self.training
        start = time.perf_counter()
        self.mixture.require_whole()
        first = self._first_window + (step - self._first_step) * training.accum_steps * training.batch
        micro_batches = [
            self._sampler.batch_from(first + micro * training.batch) for micro in range(training.accum_steps)
        ]
        ids, targets, *begins = map(np.stack, zip(*micro_batches, strict=True))
        loaded = time.perf_counter()
        rate = learning_rate(step, training)
        with self._threads.measured():
            threads = self.model.backend.threads
            result = self._step.run(ids, targets, rate, *begins)
        return _StepUnderWay(start, loaded, rate, ids.size, threads, result)

    def _finish_step(self) -> dict[str, Any]:
        """Wait for the oldest step under way; returns its row of metrics."""
        step = self._under_way.popleft()
        self._validated = {}
        result = step.result.read()
        now = time.perf_counter()
        seconds = now - max(step.started, self._finished_at)
        self._finished_at = now
        self.steps_done += 1
        self._elapsed += seconds
        if choice := self._threads.report():
            _logger.info("%s", choice)
            self.display.message(choice)
        row: dict[str, Any] = {
            "step": self.steps_done,
            "loss": result["loss"],
            "lr": step.learning_rate,
            "gradNorm": result["gradient_norm"],
            "clipped": bool(result["clipped"]),
            "tokens": self._windows_drawn * self.model.config.block,
            "time": round(time.time(), 3),
            "elapsed_ms": round(1e3 * self._elapsed, 1),
            "tokens_per_sec": round(step.tokens / seconds, 1),
            "ms_per_iter": round(1e3 * seconds, 3),
            "threads": step.threads,
        }
        if not result["accepted"]:
            row["skipped"] = True
        if self.model.backend.smoke_test_failed:
            row["smokeTest"] = "failed"
        if self._timer:
            row["data_ms"] = round(1e3 * (step.loaded - step.started), 3)
            row |= {f"{phase}_ms": round(milliseconds, 3) for phase, milliseconds in self._timer.take().items()}
        return row

    def _note_acceptance(self, row: dict[str, Any]) -> None:
        if not row.get("skipped"):
            self._skipped_in_a_row = 0
            return
        self._skipped_in_a_row += 1
        skipped = f"Step {self.steps_done} was skipped: loss {row['loss']:.4g}, gradient norm {row['gradNorm']:.4g}."
        _logger.warning("%s", skipped)
        self.display.warning(skipped)
        if self._skipped_in_a_row >= SKIPPED_LIMIT:
            raise AlphaError(
                f"The last {SKIPPED_LIMIT} steps were all skipped, so training cannot go on; {self._remedy()}."
            )

    def _is_due(self, interval: int) -> bool:
        """Whether something that happens every `interval` steps (0 = never), and after the last one, is due."""
        return bool(interval) and (self.steps_done % interval == 0 or self.steps_done == self.training.iters)

    def _evaluate_when_due(self, run: Run) -> dict[str, float]:
        if not self.mixture.evaluated or not self._is_due(self.training.eval_interval):
            return {}
        run.beat("evaluating")
        self._validated = self._validation.losses()
        return self._validated

    def _sample_when_due(self, run: Run) -> None:
        if not self._is_due(self.training.sample_interval):
            return
        run.beat("sampling")
        for prompt, text in self._samples.texts(self.steps_done):
            run.add_sample({"step": self.steps_done, "prompt": prompt, "text": text})
            self.display.sample(prompt, text)

    def _save(self, run: Run) -> None:
        run.beat("saving")
        parameters = self.model.parameters
        tensors: dict[str, Any] = dict(parameters.to_numpy())
        if not all(np.isfinite(weights).all() for weights in tensors.values()):
            raise AlphaError(f"The weights are not finite after step {self.steps_done}; try a lower --lr.")
        for name, array in self._step.state().items():
            tensors[OPTIMIZER_PREFIX + name] = parameters.backend.to_numpy(array)
        state = {
            **self._kept,
            "runId": run.config.run_id,
            "alphaVersion": __version__,
            "elapsedMs": 1e3 * self._elapsed,
            "skippedInARow": self._skipped_in_a_row,
            "windows": self._windows_drawn,
            "valLoss": self._validated.get("valLoss"),
            "trainTokens": self.mixture.tokens,
            "trainDigest": self.mixture.digest,
        }
        tokenizer = self.tokenizer.to_mapping()
        path = run.save(Checkpoint(self.steps_done, self.model.config, self.training, tokenizer, tensors, state))
        self._saved_step = self.steps_done
        self.display.message(f"step {self.steps_done}: saved {path.name}{losses_in_words(self._validated)}")

    def _load(self, resumed: Checkpoint) -> None:
        """Raises AlphaError when the checkpoint is of another model, optimizer or training data."""
        if resumed.state.get("trainDigest") != self.mixture.digest:
            raise AlphaError(
                f"The training data has changed since step {resumed.step} of this run, so it cannot be continued "
                f"exactly; bring the data back, or start a new run."
            )
        is_state = {name: name.startswith(OPTIMIZER_PREFIX) for name in resumed.tensors}
        self.model.parameters.load({name: each for name, each in resumed.tensors.items() if not is_state[name]})
        self._step.load_state(
            {name.removeprefix(OPTIMIZER_PREFIX): each for name, each in resumed.tensors.items() if is_state[name]}
        )
        self.steps_done = self._saved_step = self._first_step = resumed.step
        # Checkpoints did not always say it; the batch could not change then.
        drawn = resumed.step * resumed.training.accum_steps * resumed.training.batch
        self._first_window = int(_number(resumed, "windows")) if "windows" in resumed.state else drawn
        self._elapsed = _number(resumed, "elapsedMs") / 1e3
        self._skipped_in_a_row = int(_number(resumed, "skippedInARow"))
        self._kept = {key: resumed.state[key] for key in (BASE, IMPORTED) if key in resumed.state}


def _plan_in_words(plan: dict[str, int]) -> str:
    """The memory that a run needs, given the bytes of each use."""
    parts = ", ".join(f"{nbytes / 2**20:,.1f} MiB {use}" for use, nbytes in plan.items())
    return f"Device memory: {sum(plan.values()) / 2**20:,.1f} MiB, of which {parts}."


def _each_second(display: Display, work: str) -> Callable[[float], None]:
    """What takes the share of some work that is done, and shows it in each second that the work goes on."""
    shown = time.perf_counter()

    def progress(share: float) -> None:
        nonlocal shown
        if share < 1 and time.perf_counter() - shown >= 1:
            shown = time.perf_counter()
            display.message(f"{work}: {share:.0%}.")

    return progress


def _seconds_of(work: Callable[[], Any]) -> float:
    start = time.perf_counter()
    work()
    return time.perf_counter() - start


def _number(resumed: Checkpoint, name: str) -> float:
    value = resumed.state.get(name)
    if not isinstance(value, int | float):
        raise AlphaError(f"The state of step {resumed.step} has no number {name!r}.")
    return value
