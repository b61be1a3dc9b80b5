"""One step of training, as programs that a backend may record once and replay.

A step has three parts. The *gradients*: forward and backward passes. The *reduction*, where several models train
together: what somebody does with the gradients to make them those of all. The *update*: gradient norm, clipping, the
decision whether to accept the step, and the optimizer. Without a reduction the step is one program; with one, the parts
before and after it are a program each. All happens where the backend computes: a step uploads a batch and a learning
rate, and nothing is read back until somebody asks for the result. Knows nothing about where batches come from, nor
about files.

The loss is the mean over the targets of the whole step that count, however it is divided into micro-batches and parts:
each of these computes the mean over its own targets, and weighs it by its share of all.
"""

import contextlib
import functools
import math
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from alpha import environment
from alpha.autograd import Tape
from alpha.backend import Backend
from alpha.backend_primitives import Array
from alpha.backend_updates import UpdateControl
from alpha.config import TrainingConfig
from alpha.gpt import GPT, DropoutKeys
from alpha.optimizer import Optimizer, load_arrays

CLIP_EPSILON = 1e-6

FIRST_LOSS_SCALE = 2.0**15
LARGEST_LOSS_SCALE = 2.0**24
LOSS_SCALE_PATIENCE = 2000

Tokens = npt.NDArray[np.integer[Any]]

Phase = Callable[[str], contextlib.AbstractContextManager[None]]
"""Called with "forward", "backward", "reduction" or "optimizer"; what is so named runs inside what it returns."""

Reduction = Callable[[Array, Array, int], Array]
"""Makes the results of several steps on the same weights, each on targets of its own, those of one step on all targets.

Called with a step's gradients [trained_size], its loss [1], and the number of targets that count, over which both are
means. It changes the gradients in place and returns the loss: to the sum, over all steps, of number times mean, divided
by the sum of the numbers unless that is 0. With a loss scale the gradients are multiplied by it, in all steps alike.
"""


@dataclass(frozen=True)
class StepResult:
    """What a step will have found, once it has run."""

    backend: Backend
    values: Array

    def read(self) -> dict[str, float]:
        """Wait for the step, then say what it found.

        `loss`: mean over the targets that count, in nats, or 0 if none does; `gradient_norm`: before clipping;
        `clipped` and `accepted`: 0 or 1. A step is not accepted, and changed nothing but counters, when its loss,
        gradient norm or learning rate was not finite or the norm was above the spike threshold.
        """
        loss, norm, clipped, accepted = (float(value) for value in self.backend.to_numpy(self.values))
        return {"loss": loss, "gradient_norm": norm, "clipped": clipped, "accepted": accepted}


class PhaseTimer:
    """A `Phase` that adds up host time; where parts of a batch run side by side, that of the first part.

    On a backend that records a program and replays it, only the recording would be timed.
    """

    def __init__(self) -> None:
        self._milliseconds: dict[str, float] = {}

    @contextlib.contextmanager
    def __call__(self, name: str) -> Iterator[None]:
        start = time.perf_counter()
        yield
        self._milliseconds[name] = self._milliseconds.get(name, 0.0) + 1e3 * (time.perf_counter() - start)

    def take(self) -> dict[str, float]:
        """Milliseconds of each phase since the last call."""
        taken, self._milliseconds = self._milliseconds, {}
        return taken


class MemoryWatch:
    """Looks at the memory after some steps, and reports after some.

    The first step of a process is one of those that report, so that the shortest run says something.
    """

    def __init__(self, backend: Backend) -> None:
        self._backend = backend
        self._look_every = environment.read("ALPHA_ADAPTIVE_MEM_STATS_POLL_EVERY")
        self._report_every = environment.read("ALPHA_GPU_METRICS_SAMPLE_EVERY")
        self._steps_since_report = self._report_every - 1
        self._steps_since_look = 0
        self._peak = 0

    def after_step(self) -> None:
        """Call once after each step."""
        self._steps_since_report += 1
        self._steps_since_look += 1
        if self._steps_since_look >= self._look_every:
            self._look()

    def report(self) -> dict[str, int]:
        """Fields for a row of metrics.jsonl, in bytes: memory in use now, the most that was seen since the last report,
        and what this process may use in all. Empty when no report is due, and where the backend does not know."""
        if self._steps_since_report < self._report_every or (known := self._look()) is None:
            return {}
        used, budget = known
        fields = {"gpuMemory": used, "gpuMemoryPeak": self._peak, "gpuMemoryBudget": budget}
        self._steps_since_report = self._peak = 0
        return fields

    def _look(self) -> tuple[int, int] | None:
        self._steps_since_look = 0
        known = self._backend.memory_in_use()
        if known is not None:
            self._peak = max(self._peak, known[0])
        return known


def untimed(name: str) -> contextlib.AbstractContextManager[None]:
    """The phases of steps that nobody times."""
    return contextlib.nullcontext()


class LossScale:
    """A power of two that keeps gradients in the range of float16 (Micikevicius et al. 2018).

    The loss is multiplied by it before the backward pass. It is halved when gradients overflow, which also skips the
    step, and doubled after 2000 steps without that.
    """

    def __init__(self, backend: Backend, dtype: npt.DTypeLike) -> None:
        self.backend = backend
        self.scale = backend.from_numpy(np.array([FIRST_LOSS_SCALE], dtype))
        self.steps = backend.zeros((1,), dtype)

    def adjust(self, finite: Array) -> None:
        """Take note of a step whose gradients were all finite, or not; boolean [1]."""
        backend = self.backend
        steps = backend.where(finite, backend.add(self.steps, 1.0), 0.0)
        is_due = backend.greater(steps, LOSS_SCALE_PATIENCE - 0.5)
        raised = backend.minimum(backend.multiply(self.scale, 2.0), LARGEST_LOSS_SCALE)
        lowered = backend.maximum(backend.multiply(self.scale, 0.5), 1.0)
        scale = backend.where(finite, backend.where(is_due, raised, self.scale), lowered)
        backend.copy_into(self.scale, scale)
        backend.copy_into(self.steps, backend.where(is_due, 0.0, steps))

    def state(self) -> dict[str, Array]:
        return {"loss_scale": self.scale, "loss_scale_steps": self.steps}


class TrainingStep:
    """Runs training steps on a model with an optimizer of its parameters."""

    def __init__(
        self,
        model: GPT,
        optimizer: Optimizer,
        training: TrainingConfig,
        phase: Phase = untimed,
        reduction: Reduction | None = None,
    ) -> None:
        backend = model.backend
        dtype = model.parameters.values.dtype
        self.backend = backend
        self.model = model
        self.optimizer = optimizer
        self.training = training
        self._phase = phase
        self._counters = {
            name: backend.zeros((1,), np.int32) for name in ("steps", "skipped_not_finite", "skipped_spike")
        }
        self._accumulate_parts: Callable[..., None]
        self._models: list[GPT] = []  # one for each part of a batch, see _divide_batch
        self._one = backend.from_numpy(np.ones(1, dtype))
        self._loss_scale = LossScale(backend, dtype) if training.dtype == "f16" else None
        self._reduction = reduction
        self._whole = backend.record(self._step)
        self._gradients = backend.record(self._accumulate_gradients)
        self._update = backend.record(self._apply_gradients)

    def run(self, ids: Tokens, targets: Tokens, learning_rate: float, begins: Tokens | None = None) -> StepResult:
        """One step on ids and what they are to predict, [accumSteps, B, T] both and of the same shape each time.

        Negative targets do not count: they have no part in the loss, nor in its gradients. `begins`, of that shape,
        too, says where each token's document begins (see `GPT.hidden`); all steps have it, or none. Raises ValueError
        for other shapes.
        """
        tokens = (ids, targets) if begins is None else (ids, targets, begins)
        if ids.ndim != 3 or ids.shape[0] != self.training.accum_steps or {each.shape for each in tokens} != {ids.shape}:
            shapes = " and ".join(str(each.shape) for each in tokens)
            raise ValueError(f"ids and targets have the shapes {shapes}, not all [{self.training.accum_steps}, B, T]")
        if not self._models:
            self._divide_batch(ids.shape, len(tokens))
        # Where the backend is numpy: overflow is what the finite check is for, a warning would add nothing.
        with np.errstate(all="ignore"):
            *batch, rate = self._operands(tokens, learning_rate)
            if self._reduction is None:
                return StepResult(self.backend, self._whole(*batch, rate))
            loss = self._gradients(*batch)
            with self._phase("reduction"):
                loss = self._reduction(self.model.parameters.gradients, loss, int(np.count_nonzero(targets >= 0)))
            return StepResult(self.backend, self._update(loss, rate))

    def plan(self, batch: int, packs: bool = False) -> dict[str, int]:
        """Take the memory that steps on `batch` sequences need, with documents that begin in them if it `packs`;
        returns the bytes that each use takes.

        Empty where the backend takes memory as it is needed. Raises MemoryError when there is too little.
        """
        shape = (self.training.accum_steps, batch, self.model.config.block)
        tokens = [np.zeros(shape, np.int32)] * (3 if packs else 2)
        if not self._models:
            self._divide_batch(shape, len(tokens))
        *batch_operands, rate = self._operands(tokens, 0.0)
        if self._reduction is None:
            work = self.backend.plan(self._whole, *batch_operands, rate)
        else:
            loss = rate  # an array like it
            work = self.backend.plan(self._gradients, *batch_operands) + self.backend.plan(self._update, loss, rate)
        if not work:
            return {}
        parameters, itemsize = self.model.parameters, self._one.dtype.itemsize
        optimizer = sum(math.prod(each.shape) * each.dtype.itemsize for each in self.optimizer.state().values())
        weights, gradients = parameters.bytes_in_all, parameters.trained_size * itemsize
        return {"weights": weights, "gradients": gradients, "optimizer": optimizer, "activations": work}

    def _operands(self, tokens: Sequence[Tokens], learning_rate: float) -> tuple[Array, ...]:
        """What a whole step takes: ids, targets and maybe begins [accumSteps, B, T], shares [accumSteps, parts],
        learning rate [1].

        The shares are those of each part's targets that count in all of the step's.
        """
        targets = tokens[1]
        counted = (targets >= 0).reshape(len(targets), len(self._models), -1)
        counts = np.count_nonzero(counted, axis=2)
        shares = (counts / max(1, int(counts.sum()))).astype(self._one.dtype)
        rate = np.array([learning_rate], self._one.dtype)
        integers = (each.astype(np.int32, copy=False) for each in tokens)
        return tuple(self.backend.from_numpy(each) for each in (*integers, shares, rate))

    def counters(self) -> dict[str, int]:
        """The number of steps run, and of those skipped for each reason; waits for the steps."""
        return {name: int(self.backend.to_numpy(array)[0]) for name, array in self._counters.items()}

    def state(self) -> dict[str, Array]:
        """The arrays, beside the parameters, that a resumed run needs: the optimizer's and the counters."""
        return self.optimizer.state() | self._counters | (self._loss_scale.state() if self._loss_scale else {})

    def load_state(self, values: Mapping[str, npt.NDArray[Any]]) -> None:
        """Take the state from arrays by name. Raises AlphaError, and changes nothing, when they are not of its form."""
        load_arrays(self.backend, self.state(), values)

    def _step(self, *operands: Array) -> Array:
        """Gradients and update, of what `_operands` makes: loss, gradient norm, clipped, accepted as an array [4]."""
        *batch, learning_rate = operands
        return self._apply_gradients(self._accumulate_gradients(*batch), learning_rate)

    def _apply_gradients(self, loss: Array, learning_rate: Array) -> Array:
        """The update; loss, gradient norm, clipped and accepted as an array [4]."""
        backend, gradients = self.backend, self.model.parameters.gradients
        with self._phase("optimizer"):
            norm = backend.sqrt(backend.sum_of_squares(gradients))
            if self._loss_scale:
                norm = backend.divide(norm, self._loss_scale.scale)
            clip = self._clip_factor(norm)
            accept = self._judge(loss, norm, learning_rate)
            scale = backend.divide(clip, self._loss_scale.scale) if self._loss_scale else clip
            self.optimizer.update(UpdateControl(learning_rate, scale, accept))
            if self._loss_scale:
                self._loss_scale.adjust(backend.isfinite(norm))
            flags = [backend.cast(flag, loss.dtype) for flag in (backend.greater(1.0, clip), accept)]
            return backend.concatenate([loss, norm, *flags], 0)

    def _divide_batch(self, shape: tuple[int, ...], count: int) -> None:
        """Make what the parts of a batch of `count` arrays of this shape need: losses, models with own gradients.

        The first part's model is the model itself.
        """
        backend, (accum_steps, sequences, length) = self.backend, shape
        # Dropout draws by an element's place in the batch, so with it the batch stays whole.
        parts = 1 if self.model.has_dropout else backend.batch_parts(sequences, length)
        self._models = [self.model, *(self.model.with_own_gradients() for _ in range(parts - 1))]
        self._losses = [backend.shared_zeros((1,), self._one.dtype) for _ in range(parts)]
        if parts == 1:
            self._accumulate_parts = functools.partial(self._accumulate_part, 0)
            return
        shared = [backend.shared_zeros(shape, np.int32) for _ in range(count)]  # as _operands makes them
        shared.append(backend.shared_zeros((accum_steps, parts), self._one.dtype))
        run = backend.side_by_side(lambda part: self._accumulate_part(part, *shared), parts)

        def accumulate_parts(*batch: Array) -> None:
            for target, source in zip(shared, batch, strict=True):
                backend.copy_into(target, source)
            run()

        self._accumulate_parts = accumulate_parts

    def _accumulate_gradients(self, *batch: Array) -> Array:
        """Forward and backward pass of each part of each micro-batch; returns the mean loss, shape [1]."""
        backend = self.backend
        self._accumulate_parts(*batch)
        for model, loss in zip(self._models[1:], self._losses[1:], strict=True):
            backend.add_into(self._losses[0], loss)
            backend.add_into(self.model.parameters.gradients, model.parameters.gradients)
        return self._losses[0]

    def _accumulate_part(self, part: int, *batch: Array) -> None:
        """The loss and the gradients of one part of each micro-batch; operands as `_operands` makes them."""
        *tokens, shares = batch
        backend, (micro_steps, B, _) = self.backend, tokens[0].shape
        model, total = self._models[part], self._losses[part]
        count = B // len(self._models)
        # Phases are timed in one part only: the others run beside it.
        phase = untimed if part else self._phase
        model.parameters.clear_gradients()
        for micro_step in range(micro_steps):
            ids, targets, *begins = (self._sequences(each, micro_step, part * count, count) for each in tokens)
            share = backend.reshape(backend.narrow(backend.narrow(shares, 0, micro_step, 1), 1, part, 1), ())
            with phase("forward"), Tape() as tape:
                dropout = self._dropout_keys(micro_step)
                loss = model.loss(ids, targets, dropout, self.training.recompute, *begins)
            with phase("backward"):
                tape.backward(loss, self._loss_gradient(share))
            weighted = backend.multiply(loss.data, share)
            (backend.add_into if micro_step else backend.copy_into)(total, backend.reshape(weighted, (1,)))

    def _sequences(self, tokens: Array, micro_step: int, start: int, count: int) -> Array:
        """`count` sequences of a micro-batch: [count, T] of [accumSteps, B, T]."""
        batch = self.backend.narrow(tokens, 0, micro_step, 1)
        return self.backend.reshape(self.backend.narrow(batch, 1, start, count), (count, tokens.shape[2]))

    def _loss_gradient(self, share: Array) -> Array:
        """What the backward pass of a part with this share in the loss starts from, shape [] both."""
        if not self._loss_scale:
            return share
        return self.backend.multiply(share, self.backend.reshape(self._loss_scale.scale, ()))

    def _dropout_keys(self, micro_step: int) -> DropoutKeys | None:
        """Keys that depend on the number of micro-steps run before, so that a resumed run draws the same."""
        if not self.model.has_dropout:
            return None
        backend = self.backend
        first = backend.multiply(self._counters["steps"], self.training.accum_steps)
        return DropoutKeys(self.training.seed, backend.add(first, micro_step))

    def _clip_factor(self, norm: Array) -> Array:
        """min(1, clip / (norm + epsilon)), or 1 without clipping (Pascanu et al. 2013)."""
        if not self.training.grad_clip:
            return self._one
        ratio = self.backend.divide(self.training.grad_clip, self.backend.add(norm, CLIP_EPSILON))
        return self.backend.minimum(ratio, 1.0)

    def _judge(self, loss: Array, norm: Array, learning_rate: Array) -> Array:
        """Whether the step is accepted, boolean [1]; counts it."""
        backend = self.backend
        finite = backend.logical_and(backend.isfinite(loss), backend.isfinite(norm))
        finite = backend.logical_and(finite, backend.isfinite(learning_rate))
        accept = finite
        if self.training.spike_threshold:
            # norm <= threshold, from the comparisons there are
            small = backend.equal(backend.minimum(norm, self.training.spike_threshold), norm)
            accept = backend.logical_and(finite, small)
        ran, was_finite, was_accepted = (backend.cast(flag, np.int32) for flag in (self._one, finite, accept))
        backend.add_into(self._counters["steps"], ran)
        backend.add_into(self._counters["skipped_not_finite"], backend.subtract(ran, was_finite))
        backend.add_into(self._counters["skipped_spike"], backend.subtract(was_finite, was_accepted))
        return accept


# --- the learning rate ------------------------------------------------------------------------------------------------


def learning_rate(step: int, training: TrainingConfig) -> float:
    """The learning rate of step 0, 1, ... of a resolved configuration.

    Warm-up ends in step W - 1 with `lr` and begins in step 0 with lr / W, where W is `warmup_iters`, or 1 for none.
    `cosine` decays from there (Loshchilov and Hutter 2017, without restarts); `wsd` stays at `lr` and decays linearly
    over the last `decay_fraction` of all steps (Hu et al. 2024). Either reaches `lr_min` in the last step and stays
    there, except when no step is left to decay in: the warm-up takes the whole run, or `decay_fraction` is 0.
    """
    warmup = max(training.warmup_iters, 1)
    if step < warmup:
        return training.lr * ((step + 1) / warmup)
    decay_start = stable_until(training)
    if step < decay_start or decay_start >= training.iters:
        return training.lr
    progress = min((step + 1 - decay_start) / (training.iters - decay_start), 1.0)
    share = 1.0 - progress if training.schedule == "wsd" else 0.5 * (1.0 + math.cos(math.pi * progress))
    return training.lr * share + training.lr_min * (1.0 - share)


def stable_until(training: TrainingConfig) -> int:
    """The step with which the learning rate begins to decay: those before it have theirs whatever `iters` is."""
    warmup = max(training.warmup_iters, 1)
    if training.schedule != "wsd":
        return warmup
    return max(warmup, training.iters - round(training.decay_fraction * training.iters))
