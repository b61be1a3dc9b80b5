"""Optimizers: they update parameters from their gradients, in place, by backend operations alone.

An update is part of a recorded step, so nothing here looks at a value: whether the step counts, and by how much the
gradients are scaled, comes in arrays. Knows nothing about models, losses or learning-rate schedules.
"""

import itertools
import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from alpha.backend import Backend
from alpha.backend_primitives import Array
from alpha.backend_updates import AdamControl, UpdateControl
from alpha.config import TrainingConfig
from alpha.errors import AlphaError
from alpha.parameters import Parameters, ParameterSpec

ADAFACTOR_DECAY_EXPONENT = 0.8
ADAFACTOR_SQUARE_EPSILON = 1e-30
ADAFACTOR_CLIPPING_THRESHOLD = 1.0

MUON_UPDATE_SIZE = 0.2
"""Root mean square of the elements of a step."""
EMBEDDINGS = ("wte", "wpe", "lm_head")


OPTIMIZERS: dict[str, "type[Optimizer]"] = {}
"""By the name that `--optim` has for it; `config.OPTIMIZERS` has the names alone."""


class Optimizer(ABC):
    """Holds the state (moments and the like) that belongs to some parameters.

    A subclass gives its name: `class Lion(Optimizer, name="lion")`.
    """

    def __init_subclass__(cls, name: str) -> None:
        OPTIMIZERS[name] = cls

    def __init__(self, parameters: Parameters, training: TrainingConfig) -> None:
        """All state is zero. Of the configuration only the optimizer's options are read."""
        self.backend = parameters.backend
        self.dtype = parameters.values.dtype
        self.beta1, self.beta2, self.epsilon = training.beta1, training.beta2, training.eps
        self.weight_decay = training.weight_decay

    @abstractmethod
    def update(self, control: UpdateControl) -> None:
        """One step on the parameters and the state; neither changes in any bit when the control does not accept it."""

    @abstractmethod
    def state(self) -> dict[str, Array]:
        """The arrays that a resumed run needs, by name; what belongs to a parameter ends in the parameter's name."""

    def load_state(self, values: Mapping[str, npt.NDArray[Any]]) -> None:
        """Take the state from arrays by name. Raises AlphaError, and changes nothing, when they are not of its form."""
        load_arrays(self.backend, self.state(), values)


@dataclass(frozen=True)
class ParameterGroup:
    """Parameters that are neighbours in the flat arrays and alike in weight decay; the arrays are their flat part."""

    specs: tuple[ParameterSpec, ...]
    values: Array
    gradients: Array
    backend: Backend

    def weight_decay(self, weight_decay: float) -> float:
        """The decay that applies to this group: `weight_decay` or none."""
        return weight_decay if self.specs[0].decay else 0.0

    def zeros(self) -> Array:
        """A new flat array with one element per weight, for a moment."""
        return self.backend.zeros(self.values.shape, self.values.dtype)

    def views(self, flat: Array) -> Iterator[tuple[ParameterSpec, Array]]:
        """Each parameter's part, in its shape, of a flat array with one element per weight."""
        start = 0
        for spec in self.specs:
            yield spec, self.backend.reshape(self.backend.narrow(flat, 0, start, spec.size), spec.shape)
            start += spec.size

    def named(self, prefix: str, flat: Array) -> dict[str, Array]:
        """The views by `<prefix>.<parameter>`."""
        return {f"{prefix}.{spec.name}": view for spec, view in self.views(flat)}


def parameter_groups(
    parameters: Parameters, chosen: Callable[[ParameterSpec], bool] = lambda spec: True
) -> list[ParameterGroup]:
    """The chosen ones of the trained parameters in as few groups as their order allows."""
    backend, groups, start = parameters.backend, [], 0
    for (is_chosen, _), members in itertools.groupby(parameters.trained, lambda spec: (chosen(spec), spec.decay)):
        specs = tuple(members)
        size = sum(spec.size for spec in specs)
        if is_chosen:
            values, gradients = (
                backend.narrow(flat, 0, start, size) for flat in (parameters.values, parameters.gradients)
            )
            groups.append(ParameterGroup(specs, values, gradients, backend))
        start += size
    return groups


def load_arrays(backend: Backend, targets: Mapping[str, Array], values: Mapping[str, npt.NDArray[Any]]) -> None:
    """Overwrite each target with the array of its name.

    Raises AlphaError, and changes nothing, when one is missing, unknown, of another shape or of another kind of number.
    """
    another = "the checkpoint belongs to another model or another optimizer"
    unknown = sorted(set(values) - set(targets))
    if unknown:
        raise AlphaError(f"The optimizer's state holds {unknown[0]!r}, which this run does not have: {another}.")
    for name, target in targets.items():
        if name not in values:
            raise AlphaError(f"The optimizer's state lacks {name!r}, which this run needs: {another}.")
        given = values[name]
        if given.shape != target.shape or given.dtype.kind != target.dtype.kind:
            raise AlphaError(
                f"The optimizer's state {name!r} is {given.dtype.name} {list(given.shape)}, but this run needs "
                f"{target.dtype.name} {list(target.shape)}: {another}."
            )
    for name, target in targets.items():
        backend.copy_into(target, backend.from_numpy(values[name].astype(target.dtype)))


class AdamW(Optimizer, name="adamw"):
    """Adam (Kingma and Ba 2015) with decoupled weight decay (Loshchilov and Hutter 2019), on matrices only."""

    def __init__(
        self,
        parameters: Parameters,
        training: TrainingConfig,
        chosen: Callable[[ParameterSpec], bool] = lambda spec: True,
    ) -> None:
        super().__init__(parameters, training)
        self._moments = [(group, group.zeros(), group.zeros()) for group in parameter_groups(parameters, chosen)]
        self._correction1 = self.backend.zeros((1,), self.dtype)
        self._correction2 = self.backend.zeros((1,), self.dtype)

    def update(self, control: UpdateControl) -> None:
        correction1 = self._next_correction(self._correction1, self.beta1)
        correction2 = self._next_correction(self._correction2, self.beta2)
        adam_control = AdamControl(
            control.learning_rate, control.gradient_scale, control.accept, correction1, correction2
        )
        for group, first, second in self._moments:
            self.backend.adamw_update(
                group.values,
                group.gradients,
                first,
                second,
                adam_control,
                self.beta1,
                self.beta2,
                self.epsilon,
                group.weight_decay(self.weight_decay),
            )
        self.backend.copy_into_if(control.accept, self._correction1, correction1)
        self.backend.copy_into_if(control.accept, self._correction2, correction2)

    def state(self) -> dict[str, Array]:
        arrays = {"correction1": self._correction1, "correction2": self._correction2}
        for group, first, second in self._moments:
            arrays |= group.named("first_moment", first) | group.named("second_moment", second)
        return arrays

    def _next_correction(self, correction: Array, beta: float) -> Array:
        """1 - beta^(t+1) from 1 - beta^t; as a recurrence it neither cancels nor needs a power."""
        return self.backend.add(self.backend.multiply(correction, beta), 1.0 - beta)


class Lion(Optimizer, name="lion"):
    """The sign of an interpolated momentum (Chen et al. 2023, algorithm 2), with decoupled weight decay on matrices."""

    def __init__(self, parameters: Parameters, training: TrainingConfig) -> None:
        super().__init__(parameters, training)
        self._momenta = [(group, group.zeros()) for group in parameter_groups(parameters)]

    def update(self, control: UpdateControl) -> None:
        for group, momentum in self._momenta:
            decay = group.weight_decay(self.weight_decay)
            self.backend.lion_update(group.values, group.gradients, momentum, control, self.beta1, self.beta2, decay)

    def state(self) -> dict[str, Array]:
        return {name: view for group, flat in self._momenta for name, view in group.named("momentum", flat).items()}


class SGD(Optimizer, name="sgd"):
    """Gradient descent with momentum beta1, in PyTorch's form: the momentum is a decaying sum of gradients.

    Weight decay, which is decoupled, on matrices only.
    """

    def __init__(self, parameters: Parameters, training: TrainingConfig) -> None:
        super().__init__(parameters, training)
        self._momenta = [(group, group.zeros()) for group in parameter_groups(parameters)]

    def update(self, control: UpdateControl) -> None:
        for group, momentum in self._momenta:
            decay = group.weight_decay(self.weight_decay)
            self.backend.sgd_update(group.values, group.gradients, momentum, control, self.beta1, decay)

    def state(self) -> dict[str, Array]:
        return {name: view for group, flat in self._momenta for name, view in group.named("momentum", flat).items()}


@dataclass(frozen=True)
class _FactoredMoment:
    """A parameter with its second moment: for a matrix the means of rows and columns, else that of each element.

    Means keep the axis they were taken along, with length 1, so that they broadcast against the parameter.
    """

    spec: ParameterSpec
    value: Array
    gradient: Array
    arrays: dict[str, Array]


class Adafactor(Optimizer, name="adafactor"):
    """Adam's second moment of a matrix from its row and column means alone: R + C numbers for a matrix [R, C].

    Source: Shazeer and Stern 2018, algorithms 4 (matrices) and 5 (vectors), without momentum and with the learning rate
    from outside. Weight decay, which is decoupled, on matrices only.
    """

    def __init__(self, parameters: Parameters, training: TrainingConfig) -> None:
        super().__init__(parameters, training)
        self._accepted_steps = self.backend.zeros((1,), np.int32)
        self._moments = []
        for spec, gradient in parameters.views(parameters.gradients):
            shapes: dict[str, tuple[int, ...]] = {"second_moment": spec.shape}
            if len(spec.shape) == 2:
                shapes = {"row_mean": (spec.shape[0], 1), "column_mean": (1, spec.shape[1])}
            arrays = {name: self.backend.zeros(shape, self.dtype) for name, shape in shapes.items()}
            self._moments.append(_FactoredMoment(spec, parameters[spec.name].data, gradient, arrays))

    def update(self, control: UpdateControl) -> None:
        backend = self.backend
        steps = backend.add(self._accepted_steps, 1)
        # 1 - beta2_t = t^-0.8
        new_share = backend.exp(
            backend.multiply(backend.log(backend.cast(steps, self.dtype)), -ADAFACTOR_DECAY_EXPONENT)
        )
        for moment in self._moments:
            step = self._normalized(moment, control, new_share)
            mean_square = backend.multiply(backend.sum_of_squares(step), 1.0 / math.prod(step.shape))
            excess = backend.maximum(backend.divide(backend.sqrt(mean_square), ADAFACTOR_CLIPPING_THRESHOLD), 1.0)
            decay = self.weight_decay if moment.spec.decay else 0.0
            backend.decayed_step(moment.value, backend.divide(step, excess), control, decay)
        backend.copy_into_if(control.accept, self._accepted_steps, steps)

    def state(self) -> dict[str, Array]:
        arrays = {"accepted_steps": self._accepted_steps}
        for moment in self._moments:
            arrays |= {f"{name}.{moment.spec.name}": array for name, array in moment.arrays.items()}
        return arrays

    def _normalized(self, moment: _FactoredMoment, control: UpdateControl, new_share: Array) -> Array:
        """The gradient divided by the root of its second moment, which takes in this gradient first."""
        backend = self.backend

        def averaged(name: str, observed: Array) -> Array:
            old = moment.arrays[name]
            new = backend.add(old, backend.multiply(backend.subtract(observed, old), new_share))
            backend.copy_into_if(control.accept, old, new)
            return new

        gradient = backend.multiply(moment.gradient, control.gradient_scale)
        square = backend.add(backend.multiply(gradient, gradient), ADAFACTOR_SQUARE_EPSILON)
        if "second_moment" in moment.arrays:
            return backend.divide(gradient, backend.sqrt(averaged("second_moment", square)))
        row, column = averaged("row_mean", self._mean(square, 1)), averaged("column_mean", self._mean(square, 0))
        # Rows relative to their mean, and two divisions: in float32 the product of two tiny means would be zero.
        relative_row = backend.divide(row, self._mean(row, 0))
        return backend.divide(backend.divide(gradient, backend.sqrt(relative_row)), backend.sqrt(column))

    def _mean(self, x: Array, axis: int) -> Array:
        return self.backend.multiply(self.backend.sum(x, (axis,), keep=True), 1.0 / x.shape[axis])


class Muon(Optimizer, name="muon"):
    """Momentum whose matrices are made orthogonal by Newton-Schulz iteration (Jordan 2024).

    Matrices that share a parameter (queries, keys and values; gate and value) are made so each by itself. Embeddings,
    the output head and vectors go to AdamW with its betas and epsilon, as the author advises. The update is scaled so
    that its elements are about as large as those of AdamW's, and one learning rate serves both (Liu et al. 2025,
    section 2.2). Weight decay on matrices only.
    """

    def __init__(self, parameters: Parameters, training: TrainingConfig) -> None:
        super().__init__(parameters, training)
        self._momentum = training.muon_momentum
        self._momenta = [(group, group.zeros()) for group in parameter_groups(parameters, orthogonalized)]
        self._adamw = AdamW(parameters, training, chosen=lambda spec: not orthogonalized(spec))

    def update(self, control: UpdateControl) -> None:
        """m = b m + g;  p = p - lr weight_decay p - lr orthogonalized(g + b m), of each matrix; b is the momentum."""
        backend = self.backend
        for group, momentum in self._momenta:
            step = backend.empty(momentum.shape, momentum.dtype)
            backend.momentum_update(momentum, group.gradients, step, control, self._momentum)
            backend.orthogonalize(list(self._matrices(group, step)), MUON_UPDATE_SIZE)
            backend.decayed_step(group.values, step, control, group.weight_decay(self.weight_decay))
        self._adamw.update(control)

    def state(self) -> dict[str, Array]:
        arrays = self._adamw.state()
        for group, momentum in self._momenta:
            arrays |= group.named("momentum", momentum)
        return arrays

    def _matrices(self, group: ParameterGroup, flat: Array) -> Iterator[Array]:
        """The matrices in a flat array: each parameter, or each of its parts."""
        for spec, view in group.views(flat):
            start = 0
            for width in spec.parts or (spec.shape[1],):
                yield self.backend.narrow(view, 1, start, width)
                start += width


def orthogonalized(spec: ParameterSpec) -> bool:
    """Whether Muon itself updates a parameter: a matrix that is neither an embedding nor the output head."""
    return len(spec.shape) == 2 and spec.name.partition(".")[0] not in EMBEDDINGS


def make_optimizer(parameters: Parameters, training: TrainingConfig) -> Optimizer:
    """A new optimizer of the parameters, by the configuration's name for it; all its state is zero."""
    return OPTIMIZERS[training.optim](parameters, training)
