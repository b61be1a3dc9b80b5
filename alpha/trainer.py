"""The training loop: steps, metrics, evaluations, samples and checkpoints of one run.

Knows nothing about how a run is configured or displayed; see `training_setup` and `progress`.
"""

import time
from collections import deque
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np

from alpha import __version__, domain
from alpha.backend import Backend
from alpha.checkpoint import OPTIMIZER_PREFIX, Checkpoint
from alpha.config import ModelConfig, TrainingConfig
from alpha.dataset import Dataset
from alpha.engine import Engine, SamplingOptions
from alpha.errors import AlphaError
from alpha.evaluation import evaluate_part
from alpha.gpt import GPT
from alpha.interrupt import StopRequest
from alpha.memory_watch import MemoryWatch
from alpha.optimizer_registry import make_optimizer
from alpha.run import Run
from alpha.sampler import Sampler
from alpha.schedule import learning_rate
from alpha.thread_choice import ThreadChoice
from alpha.tokenizer import Tokenizer
from alpha.training_step import PhaseTimer, StepResult, TrainingStep

BEGINNING = "The "
SAMPLE_TOKENS = 100
SKIPPED_LIMIT = 100


class Display(Protocol):
    """What the loop tells somebody who watches; `step` gets rows of metrics.jsonl, `count` what is done of a stage."""

    def start(self, total: int, initial: int = 0) -> None: ...

    def step(self, metrics: dict[str, Any]) -> None: ...

    def message(self, text: str) -> None: ...

    def warning(self, text: str) -> None: ...

    def sample(self, prompt: str, text: str) -> None: ...

    def count(self, stage: str, done: int, total: int) -> None: ...

    def close(self) -> None: ...


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
        dataset: Dataset,
        backend: Backend,
        display: Display,
        resumed: Checkpoint | None = None,
    ) -> None:
        self.tokenizer = tokenizer
        self.dataset = dataset
        self.display = display
        self.training = training
        self.model = GPT(backend, model, tokenizer.vocab_size, training.seed)
        self._timer = PhaseTimer() if training.trace else None
        optimizer = make_optimizer(self.model.parameters, training)
        self._step = (
            TrainingStep(self.model, optimizer, training, self._timer)
            if self._timer
            else TrainingStep(self.model, optimizer, training)
        )
        self._sampler = Sampler(dataset.train.tokens, model.block, training.batch, training.seed, training.packed)
        self._threads = ThreadChoice(backend, training.threads)
        self._memory = MemoryWatch(backend)
        self._prompts = _sample_prompts(training.domain, tokenizer)
        self.steps_done = 0
        self._under_way: deque[_StepUnderWay] = deque()
        self._elapsed = 0.0
        self._finished_at = 0.0
        self._skipped_in_a_row = 0
        self._saved_step = 0
        self._validation_loss: float | None = None  # measured at this very step
        if resumed is None:
            self.model.parameters.initialize()
        else:
            self._load(resumed)

    def train(self, run: Run) -> bool:
        """Run the steps that are left and keep the results in `run`; False when a signal asked to stop before the end.

        The last step is saved in either case. Errors say what of the run is saved.
        """
        self.display.start(self.training.iters, self.steps_done)
        try:
            if plan := self._step.plan(self.training.batch):
                self.display.message(_plan_in_words(plan))
            with StopRequest() as stop:
                self._run_steps(run, stop)
        except MemoryError as error:
            numbers = f" {error}" if isinstance(error, AlphaError) else ""
            lack = f"There is no memory for a step; {self._smaller_step()}.{numbers}"
            raise AlphaError(f"{lack} {self._what_is_saved(run)}") from error
        except AlphaError as error:
            again = f" Continue with --resume={run.folder}." if error.may_pass and self._saved_step else ""
            raise AlphaError(f"{error} {self._what_is_saved(run)}{again}") from error
        finally:
            self.display.close()
        return self.steps_done == self.training.iters

    def _run_steps(self, run: Run, stop: StopRequest) -> None:
        training = self.training
        while self.steps_done < training.iters:
            self._start_steps(1 if stop.requested else self.model.backend.steps_in_flight)
            row = self._finish_step()
            row |= self._evaluate_when_due()
            self._memory.after_step()
            if self.steps_done % training.log_every == 0 or "valLoss" in row:
                row |= self._memory.report()
                run.add_metrics(row)
            self.display.step(row)
            self._note_acceptance(row)
            self._sample_when_due(run)
            if self._is_due(self._save_interval):
                self._save(run)
            if stop.requested and not self._under_way:
                break
        if self._saved_step < self.steps_done:
            self._save(run)

    def _smaller_step(self) -> str:
        """What makes a step need less memory."""
        training, ways = self.training, []
        if training.batch > 1:
            ways.append("a smaller --batch with more --accumSteps")
        if not training.checkpoint:
            ways.append("--checkpoint")
        if training.dtype == "f32" and training.backend == "helios":
            ways.append("--dtype=f16")
        return "use " + ", or ".join(ways or ["a smaller model"])

    def _what_is_saved(self, run: Run) -> str:
        if self._saved_step == 0:
            return f"Nothing of the run {run.folder} is saved yet."
        return f"The run {run.folder} is saved up to step {self._saved_step}."

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
        first = step * training.accum_steps
        self.dataset.train.require_whole()
        batches = np.stack([self._sampler.batch_at(first + micro) for micro in range(training.accum_steps)])
        loaded = time.perf_counter()
        rate = learning_rate(step, training)
        with self._threads.measured():
            threads = self.model.backend.threads
            result = self._step.run(batches, rate)
        return _StepUnderWay(start, loaded, rate, batches[:, :, 1:].size, threads, result)

    def _finish_step(self) -> dict[str, Any]:
        """Wait for the oldest step under way; returns its row of metrics."""
        step = self._under_way.popleft()
        self._validation_loss = None
        result = step.result.read()
        now = time.perf_counter()
        seconds = now - max(step.started, self._finished_at)
        self._finished_at = now
        self.steps_done += 1
        self._elapsed += seconds
        if choice := self._threads.report():
            self.display.message(choice)
        row: dict[str, Any] = {
            "step": self.steps_done,
            "loss": result["loss"],
            "lr": step.learning_rate,
            "gradNorm": result["gradient_norm"],
            "clipped": bool(result["clipped"]),
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
        self.display.warning(
            f"Step {self.steps_done} was skipped: loss {row['loss']:.4g}, gradient norm {row['gradNorm']:.4g}."
        )
        if self._skipped_in_a_row >= SKIPPED_LIMIT:
            threshold = self.training.spike_threshold
            remedy = f"a lower --lr, or a higher --spikeThreshold than {threshold:g}" if threshold else "a lower --lr"
            raise AlphaError(
                f"The last {SKIPPED_LIMIT} steps were all skipped, so training cannot go on; try {remedy}."
            )

    def _is_due(self, interval: int) -> bool:
        """Whether something that happens every `interval` steps (0 = never), and after the last one, is due."""
        return bool(interval) and (self.steps_done % interval == 0 or self.steps_done == self.training.iters)

    def _evaluate_when_due(self) -> dict[str, float]:
        validation = self.dataset.validation
        if validation is None or not self._is_due(self.training.eval_interval):
            return {}
        training = self.training
        loss = evaluate_part(self.model, validation, training.batch, training.eval_iters, training.seed).loss
        self._validation_loss = loss
        return {"valLoss": loss}

    def _sample_when_due(self, run: Run) -> None:
        interval = self.training.sample_interval
        if not self._is_due(interval):
            return
        prompt = self._prompts[self.steps_done // interval % len(self._prompts)]
        end = self.tokenizer.end_of_text
        ids = self.tokenizer.encode(prompt, allow_special=True) or [end]
        drawn = Engine(self.model).generate(ids, SAMPLE_TOKENS, SamplingOptions(seed=self.training.seed), stop=[end])
        try:
            text = self.tokenizer.decode([token for [token] in drawn if token is not None and token != end])
        except AlphaError as error:
            self.display.warning(f"No sample after step {self.steps_done}. {error}")
            return
        run.add_sample({"step": self.steps_done, "prompt": prompt, "text": text})
        self.display.sample(prompt, text)

    def _save(self, run: Run) -> None:
        parameters = self.model.parameters
        tensors: dict[str, Any] = dict(parameters.to_numpy())
        if not all(np.isfinite(weights).all() for weights in tensors.values()):
            raise AlphaError(f"The weights are not finite after step {self.steps_done}; try a lower --lr.")
        for name, array in self._step.state().items():
            tensors[OPTIMIZER_PREFIX + name] = parameters.backend.to_numpy(array)
        state = {
            "runId": run.config.run_id,
            "alphaVersion": __version__,
            "elapsedMs": 1e3 * self._elapsed,
            "skippedInARow": self._skipped_in_a_row,
            "valLoss": self._validation_loss,
            "trainTokens": len(self.dataset.train.tokens),
            "trainDigest": self.dataset.train.digest,
        }
        tokenizer = self.tokenizer.to_mapping()
        path = run.save(Checkpoint(self.steps_done, self.model.config, self.training, tokenizer, tensors, state))
        self._saved_step = self.steps_done
        loss = "" if self._validation_loss is None else f", validation loss {self._validation_loss:.4f}"
        self.display.message(f"step {self.steps_done}: saved {path.name}{loss}")

    def _load(self, resumed: Checkpoint) -> None:
        """Raises AlphaError when the checkpoint is of another model, optimizer or training data."""
        if resumed.state.get("trainDigest") != self.dataset.train.digest:
            raise AlphaError(
                f"The training data has changed since step {resumed.step} of this run, so it cannot be continued "
                f"exactly; bring the data back, or start a new run."
            )
        is_state = {name: name.startswith(OPTIMIZER_PREFIX) for name in resumed.tensors}
        self.model.parameters.load({name: each for name, each in resumed.tensors.items() if not is_state[name]})
        self._step.load_state(
            {name.removeprefix(OPTIMIZER_PREFIX): each for name, each in resumed.tensors.items() if is_state[name]}
        )
        self.steps_done = self._saved_step = resumed.step
        self._elapsed = _number(resumed, "elapsedMs") / 1e3
        self._skipped_in_a_row = int(_number(resumed, "skippedInARow"))


def _plan_in_words(plan: dict[str, int]) -> str:
    """The memory that a run needs, given the bytes of each use."""
    parts = ", ".join(f"{nbytes / 2**20:,.1f} MiB {use}" for use, nbytes in plan.items())
    return f"Device memory: {sum(plan.values()) / 2**20:,.1f} MiB, of which {parts}."


def _number(resumed: Checkpoint, name: str) -> float:
    value = resumed.state.get(name)
    if not isinstance(value, int | float):
        raise AlphaError(f"The state of step {resumed.step} has no number {name!r}.")
    return value


def _sample_prompts(domain_id: str, tokenizer: Tokenizer) -> tuple[str, ...]:
    """The domain's prompts; without a domain, a common beginning if the tokenizer knows it, otherwise nothing."""
    if domain_id:
        return domain.get(domain_id).prompts
    return ("",) if tokenizer.count_unknown(tokenizer.encode(BEGINNING)) else (BEGINNING,)
