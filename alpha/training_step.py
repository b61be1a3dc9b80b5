"""One step of training, as one program that a backend may record once and replay.

Forward and backward passes, gradient norm, clipping, the decision whether to accept the step, and the optimizer's
update all happen where the backend computes. A step uploads a batch and a learning rate; nothing is read back until
somebody asks for the result. Knows nothing about where batches come from, nor about files.
"""

import contextlib
import functools
import math
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from alpha.autograd import Tape
from alpha.backend import Backend, UpdateControl
from alpha.backend_primitives import Array
from alpha.config import TrainingConfig
from alpha.gpt import GPT, DropoutKeys
from alpha.optimizer import Optimizer, load_arrays

CLIP_EPSILON = 1e-6

FIRST_LOSS_SCALE = 2.0**15
LARGEST_LOSS_SCALE = 2.0**24
LOSS_SCALE_PATIENCE = 2000

Phase = Callable[[str], contextlib.AbstractContextManager[None]]
"""Called with "forward", "backward" or "optimizer"; the part of the step so named runs inside what it returns."""


@dataclass(frozen=True)
class StepResult:
    """What a step will have found, once it has run."""

    backend: Backend
    values: Array

    def read(self) -> dict[str, float]:
        """Wait for the step, then say what it found.

        `loss`: mean over the micro-batches, in nats; `gradient_norm`: before clipping; `clipped` and `accepted`: 0 or
        1. A step is not accepted, and changed nothing but counters, when its loss, gradient norm or learning rate was
        not finite or the norm was above the spike threshold.
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


def _untimed(name: str) -> contextlib.AbstractContextManager[None]:
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

    def __init__(self, model: GPT, optimizer: Optimizer, training: TrainingConfig, phase: Phase = _untimed) -> None:
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
        self._accumulate_parts: Callable[[Array, Array], None]
        self._models: list[GPT] = []  # one for each part of a batch, see _divide_batch
        self._one = backend.from_numpy(np.ones(1, dtype))
        self._loss_scale = LossScale(backend, dtype) if training.dtype == "f16" else None
        self._program = backend.record(self._step)

    def run(self, tokens: npt.NDArray[np.integer[Any]], learning_rate: float) -> StepResult:
        """One step on tokens [accumSteps, B, T + 1], of the same shape each time; position t is to predict t + 1."""
        if tokens.ndim != 3 or tokens.shape[0] != self.training.accum_steps:
            raise ValueError(f"tokens has shape {tokens.shape}, not [{self.training.accum_steps}, B, T + 1]")
        if not self._models:
            self._divide_batch(tokens.shape)
        # Where the backend is numpy: overflow is what the finite check is for, a warning would add nothing.
        with np.errstate(all="ignore"):
            return StepResult(self.backend, self._program(*self._operands(tokens, learning_rate)))

    def plan(self, batch: int) -> dict[str, int]:
        """Take the memory that steps on `batch` sequences need; returns the bytes that each use takes.

        Empty where the backend takes memory as it is needed. Raises MemoryError when there is too little.
        """
        shape = (self.training.accum_steps, batch, self.model.config.block + 1)
        if not self._models:
            self._divide_batch(shape)
        work = self.backend.plan(self._program, *self._operands(np.zeros(shape, np.int32), 0.0))
        if not work:
            return {}
        parameters, itemsize = self.model.parameters, self._one.dtype.itemsize
        optimizer = sum(math.prod(each.shape) * each.dtype.itemsize for each in self.optimizer.state().values())
        weights, gradients = parameters.size * itemsize, parameters.trained_size * itemsize
        return {"weights": weights, "gradients": gradients, "optimizer": optimizer, "activations": work}

    def _operands(self, tokens: npt.NDArray[np.integer[Any]], learning_rate: float) -> tuple[Array, Array, Array]:
        """What the program takes: ids and targets [accumSteps, B, T], and the learning rate [1]."""
        from_numpy, tokens = self.backend.from_numpy, tokens.astype(np.int32, copy=False)
        rate = np.array([learning_rate], self._one.dtype)
        return from_numpy(tokens[:, :, :-1]), from_numpy(tokens[:, :, 1:]), from_numpy(rate)

    def counters(self) -> dict[str, int]:
        """The number of steps run, and of those skipped for each reason; waits for the steps."""
        return {name: int(self.backend.to_numpy(array)[0]) for name, array in self._counters.items()}

    def state(self) -> dict[str, Array]:
        """The arrays, beside the parameters, that a resumed run needs: the optimizer's and the counters."""
        return self.optimizer.state() | self._counters | (self._loss_scale.state() if self._loss_scale else {})

    def load_state(self, values: Mapping[str, npt.NDArray[Any]]) -> None:
        """Take the state from arrays by name. Raises AlphaError, and changes nothing, when they are not of its form."""
        load_arrays(self.backend, self.state(), values)

    def _step(self, ids: Array, targets: Array, learning_rate: Array) -> Array:
        """The program: loss, gradient norm, clipped and accepted as an array [4]."""
        backend, gradients = self.backend, self.model.parameters.gradients
        loss = self._accumulate_gradients(ids, targets)
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

    def _divide_batch(self, shape: tuple[int, ...]) -> None:
        """Make what the parts of a batch of this shape need: losses, and models with gradients of their own.

        The first part's model is the model itself.
        """
        backend, (accum_steps, sequences, length) = self.backend, shape
        # Dropout draws by an element's place in the batch, so with it the batch stays whole.
        parts = 1 if self.model.config.dropout else backend.batch_parts(sequences, length - 1)
        self._models = [self.model, *(self.model.with_own_gradients() for _ in range(parts - 1))]
        self._losses = [backend.shared_zeros((1,), self._one.dtype) for _ in range(parts)]
        self._loss_weight = backend.from_numpy(np.array(1.0 / (accum_steps * parts), self._one.dtype))
        if parts == 1:
            self._accumulate_parts = functools.partial(self._accumulate_part, 0)
            return
        shared_ids, shared_targets = (
            backend.shared_zeros((accum_steps, sequences, length - 1), np.int32) for _ in range(2)
        )
        run = backend.side_by_side(lambda part: self._accumulate_part(part, shared_ids, shared_targets), parts)

        def accumulate_parts(ids: Array, targets: Array) -> None:
            backend.copy_into(shared_ids, ids)
            backend.copy_into(shared_targets, targets)
            run()

        self._accumulate_parts = accumulate_parts

    def _accumulate_gradients(self, ids: Array, targets: Array) -> Array:
        """Forward and backward pass of each part of each micro-batch; returns the mean loss, shape [1]."""
        backend = self.backend
        self._accumulate_parts(ids, targets)
        for model, loss in zip(self._models[1:], self._losses[1:], strict=True):
            backend.add_into(self._losses[0], loss)
            backend.add_into(self.model.parameters.gradients, model.parameters.gradients)
        return self._losses[0]

    def _accumulate_part(self, part: int, ids: Array, targets: Array) -> None:
        """The loss and the gradients of one part of each micro-batch; ids and targets [accumSteps, B, T]."""
        backend, (micro_steps, B, _) = self.backend, ids.shape
        model, total = self._models[part], self._losses[part]
        count = B // len(self._models)
        # Phases are timed in one part only: the others run beside it.
        phase = _untimed if part else self._phase
        model.parameters.clear_gradients()
        for micro_step in range(micro_steps):
            inputs, wanted = (self._sequences(each, micro_step, part * count, count) for each in (ids, targets))
            with phase("forward"), Tape() as tape:
                dropout = self._dropout_keys(micro_step)
                loss = model.loss(inputs, wanted, dropout, checkpoint=self.training.recompute)
            with phase("backward"):
                tape.backward(loss, self._loss_gradient())
            weighted = backend.multiply(loss.data, self._loss_weight)
            (backend.add_into if micro_step else backend.copy_into)(total, backend.reshape(weighted, (1,)))

    def _sequences(self, tokens: Array, micro_step: int, start: int, count: int) -> Array:
        """`count` sequences of a micro-batch: [count, T] of [accumSteps, B, T]."""
        batch = self.backend.narrow(tokens, 0, micro_step, 1)
        return self.backend.reshape(self.backend.narrow(batch, 1, start, count), (count, tokens.shape[2]))

    def _loss_gradient(self) -> Array:
        """What the backward pass of a micro-batch starts from, shape []."""
        if not self._loss_scale:
            return self._loss_weight
        return self.backend.multiply(self._loss_weight, self.backend.reshape(self._loss_scale.scale, ()))

    def _dropout_keys(self, micro_step: int) -> DropoutKeys | None:
        """Keys that depend on the number of micro-steps run before, so that a resumed run draws the same."""
        if not self.model.config.dropout:
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
    decay_start = warmup
    if training.schedule == "wsd":
        decay_start = max(warmup, training.iters - round(training.decay_fraction * training.iters))
    if step < decay_start or decay_start >= training.iters:
        return training.lr
    progress = min((step + 1 - decay_start) / (training.iters - decay_start), 1.0)
    share = 1.0 - progress if training.schedule == "wsd" else 0.5 * (1.0 + math.cos(math.pi * progress))
    return training.lr * share + training.lr_min * (1.0 - share)
