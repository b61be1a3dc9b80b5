"""The training loop: steps, metrics, evaluations, samples and checkpoints of one run.

Knows nothing about how a run is configured or displayed; see `training_setup` and `progress`.
"""

import time
from typing import Any, Protocol

import numpy as np

from alpha import __version__, domain
from alpha.backend import Backend
from alpha.checkpoint import OPTIMIZER_PREFIX, Checkpoint
from alpha.dataset import Dataset
from alpha.engine import Engine, SamplingOptions
from alpha.errors import AlphaError
from alpha.evaluation import evaluate_part
from alpha.gpt import GPT
from alpha.interrupt import StopRequest
from alpha.optimizer_registry import make_optimizer
from alpha.run import Run
from alpha.sampler import Sampler
from alpha.schedule import learning_rate
from alpha.thread_choice import ThreadChoice
from alpha.tokenizer import Tokenizer
from alpha.training_step import PhaseTimer, TrainingStep

SAMPLE_TOKENS = 100
SKIPPED_LIMIT = 100


class Display(Protocol):
    """What the loop tells somebody who watches; `step` gets rows of metrics.jsonl."""

    def start(self, total: int, initial: int = 0) -> None: ...

    def step(self, metrics: dict[str, Any]) -> None: ...

    def message(self, text: str) -> None: ...

    def warning(self, text: str) -> None: ...

    def sample(self, prompt: str, text: str) -> None: ...

    def close(self) -> None: ...


class Trainer:
    """Trains the model of a run, from the start or from a checkpoint of it."""

    def __init__(
        self,
        run: Run,
        tokenizer: Tokenizer,
        dataset: Dataset,
        backend: Backend,
        display: Display,
        resumed: Checkpoint | None = None,
    ) -> None:
        training = run.config.training
        self.run = run
        self.tokenizer = tokenizer
        self.dataset = dataset
        self.display = display
        self.training = training
        self.model = GPT(backend, run.config.model, tokenizer.vocab_size, training.seed)
        self._timer = PhaseTimer() if training.trace else None
        optimizer = make_optimizer(self.model.parameters, training)
        self._step = (
            TrainingStep(self.model, optimizer, training, self._timer)
            if self._timer
            else TrainingStep(self.model, optimizer, training)
        )
        self._sampler = Sampler(
            dataset.train.tokens, run.config.model.block, training.batch, training.seed, training.packed
        )
        self._threads = ThreadChoice(backend, training.threads)
        self.steps_done = 0
        self._elapsed = 0.0
        self._skipped_in_a_row = 0
        self._validation_loss: float | None = None  # measured at this very step
        if resumed is None:
            self.model.parameters.initialize()
        else:
            self._load(resumed)

    @property
    def tokens_per_step(self) -> int:
        return self.training.batch * self.training.accum_steps * self.model.config.block

    def train(self) -> bool:
        """Run the steps that are left. False when a signal asked to stop; the last step is saved in either case."""
        self.display.start(self.training.iters, self.steps_done)
        saved_step = self.steps_done
        try:
            with StopRequest() as stop:
                while self.steps_done < self.training.iters and not stop.requested:
                    row = self._train_step()
                    row |= self._evaluate_when_due()
                    if self.steps_done % self.training.log_every == 0 or "valLoss" in row:
                        self.run.add_metrics(row)
                    self.display.step(row)
                    self._sample_when_due()
                    if self._is_due(self.training.checkpoint_interval or self.training.eval_interval):
                        self._save()
                        saved_step = self.steps_done
                if saved_step < self.steps_done:
                    self._save()
                return self.steps_done == self.training.iters
        finally:
            self.display.close()

    def _train_step(self) -> dict[str, Any]:
        """One optimizer step; returns its row of metrics."""
        training, step = self.training, self.steps_done
        self._validation_loss = None
        start = time.perf_counter()
        first = step * training.accum_steps
        batches = np.stack([self._sampler.batch_at(first + micro) for micro in range(training.accum_steps)])
        loaded = time.perf_counter()
        rate = learning_rate(step, training)
        with self._threads.measured():
            result = self._step.run(batches, rate).read()
        seconds = time.perf_counter() - start
        self.steps_done += 1
        self._elapsed += seconds
        self._note_acceptance(bool(result["accepted"]), result)
        if choice := self._threads.report():
            self.display.message(choice)
        row = {
            "step": self.steps_done,
            "loss": result["loss"],
            "lr": rate,
            "gradNorm": result["gradient_norm"],
            "clipped": bool(result["clipped"]),
            "elapsed_ms": round(1e3 * self._elapsed, 1),
            "tokens_per_sec": round(self.tokens_per_step / seconds, 1),
            "ms_per_iter": round(1e3 * seconds, 3),
        }
        if not result["accepted"]:
            row["skipped"] = True
        if self._timer:
            row["data_ms"] = round(1e3 * (loaded - start), 3)
            row |= {f"{phase}_ms": round(milliseconds, 3) for phase, milliseconds in self._timer.take().items()}
        return row

    def _note_acceptance(self, accepted: bool, result: dict[str, float]) -> None:
        if accepted:
            self._skipped_in_a_row = 0
            return
        self._skipped_in_a_row += 1
        self.display.warning(
            f"Step {self.steps_done} was skipped: loss {result['loss']:.4g}, "
            f"gradient norm {result['gradient_norm']:.4g}."
        )
        if self._skipped_in_a_row >= SKIPPED_LIMIT:
            raise AlphaError(
                f"The last {SKIPPED_LIMIT} steps were all skipped, so training cannot go on; "
                f"try a lower --lr, or a higher --spikeThreshold than {self.training.spike_threshold:g}."
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

    def _sample_when_due(self) -> None:
        if not self._is_due(self.training.sample_interval):
            return
        prompt = self._sample_prompt()
        ids = self.tokenizer.encode(prompt, allow_special=True) or [self.tokenizer.end_of_text]
        end = self.tokenizer.end_of_text
        drawn = Engine(self.model).generate(ids, SAMPLE_TOKENS, SamplingOptions(seed=self.training.seed), stop=[end])
        text = self.tokenizer.decode([token for [token] in drawn if token is not None and token != end])
        self.run.add_sample({"step": self.steps_done, "prompt": prompt, "text": text})
        self.display.sample(prompt, text)

    def _sample_prompt(self) -> str:
        """The domain's prompts in turn; without a domain, a common beginning that the tokenizer knows, or nothing."""
        if self.training.domain:
            prompts = domain.get(self.training.domain).prompts
            return prompts[self.steps_done // self.training.sample_interval % len(prompts)]
        return "The " if not self.tokenizer.count_unknown(self.tokenizer.encode("The ")) else ""

    def _save(self) -> None:
        parameters = self.model.parameters
        tensors: dict[str, Any] = dict(parameters.to_numpy())
        for name, array in self._step.state().items():
            tensors[OPTIMIZER_PREFIX + name] = parameters.backend.to_numpy(array)
        state = {
            "runId": self.run.config.run_id,
            "alphaVersion": __version__,
            "elapsedMs": 1e3 * self._elapsed,
            "valLoss": self._validation_loss,
            "trainTokens": len(self.dataset.train.tokens),
            "trainDigest": self.dataset.train.digest,
        }
        config = self.run.config
        tokenizer = self.tokenizer.to_mapping()
        path = self.run.save(Checkpoint(self.steps_done, config.model, config.training, tokenizer, tensors, state))
        loss = "" if self._validation_loss is None else f", validation loss {self._validation_loss:.4f}"
        self.display.message(f"step {self.steps_done}: saved {path.name}{loss}")

    def _load(self, resumed: Checkpoint) -> None:
        if resumed.state.get("trainDigest") != self.dataset.train.digest:
            raise AlphaError(
                f"The training data has changed since step {resumed.step} of this run, so it cannot be continued "
                f"exactly; bring the data back, or start a new run."
            )
        weights = {name: each for name, each in resumed.tensors.items() if not name.startswith(OPTIMIZER_PREFIX)}
        self.model.parameters.load(weights)
        self._step.load_state(
            {
                name.removeprefix(OPTIMIZER_PREFIX): each
                for name, each in resumed.tensors.items()
                if name.startswith(OPTIMIZER_PREFIX)
            }
        )
        self.steps_done = resumed.step
        self._elapsed = float(resumed.state["elapsedMs"]) / 1e3
