"""Adafactor: Adam's second moment of a matrix from its row and column means alone.

Source: Shazeer and Stern 2018, algorithms 4 (matrices) and 5 (vectors), without momentum and with the learning rate
from outside. The state of a matrix [R, C] is R + C numbers.
"""

import math
from dataclasses import dataclass

import numpy as np

from alpha.backend import UpdateControl
from alpha.backend_primitives import Array
from alpha.optimizer import Optimizer
from alpha.parameters import Parameters, ParameterSpec

DECAY_EXPONENT = 0.8
SQUARE_EPSILON = 1e-30
CLIPPING_THRESHOLD = 1.0


@dataclass(frozen=True)
class _Moment:
    """A parameter with its second moment: for a matrix the means of rows and columns, else that of each element.

    Means keep the axis they were taken along, with length 1, so that they broadcast against the parameter.
    """

    spec: ParameterSpec
    value: Array
    gradient: Array
    arrays: dict[str, Array]


class Adafactor(Optimizer):
    """Adafactor on all trained parameters; weight decay, which is decoupled, on matrices only."""

    def __init__(self, parameters: Parameters, weight_decay: float) -> None:
        super().__init__(parameters)
        self.weight_decay = weight_decay
        self._accepted_steps = self.backend.zeros((1,), np.int32)
        self._moments = []
        for spec, gradient in parameters.views(parameters.gradients):
            shapes: dict[str, tuple[int, ...]] = {"second_moment": spec.shape}
            if len(spec.shape) == 2:
                shapes = {"row_mean": (spec.shape[0], 1), "column_mean": (1, spec.shape[1])}
            arrays = {name: self.backend.zeros(shape, self.dtype) for name, shape in shapes.items()}
            self._moments.append(_Moment(spec, parameters[spec.name].data, gradient, arrays))

    def update(self, control: UpdateControl) -> None:
        backend = self.backend
        steps = backend.add(self._accepted_steps, 1)
        # 1 - beta2_t = t^-0.8
        new_share = backend.exp(backend.multiply(backend.log(backend.cast(steps, self.dtype)), -DECAY_EXPONENT))
        for moment in self._moments:
            step = self._normalized(moment, control, new_share)
            mean_square = backend.multiply(backend.sum_of_squares(step), 1.0 / math.prod(step.shape))
            excess = backend.maximum(backend.divide(backend.sqrt(mean_square), CLIPPING_THRESHOLD), 1.0)
            decay = self.weight_decay if moment.spec.decay else 0.0
            backend.decayed_step(moment.value, backend.divide(step, excess), control, decay)
        backend.copy_into_if(control.accept, self._accepted_steps, steps)

    def state(self) -> dict[str, Array]:
        arrays = {"accepted_steps": self._accepted_steps}
        for moment in self._moments:
            arrays |= {f"{name}.{moment.spec.name}": array for name, array in moment.arrays.items()}
        return arrays

    def _normalized(self, moment: _Moment, control: UpdateControl, new_share: Array) -> Array:
        """The gradient divided by the root of its second moment, which takes in this gradient first."""
        backend = self.backend

        def averaged(name: str, observed: Array) -> Array:
            old = moment.arrays[name]
            new = backend.add(old, backend.multiply(backend.subtract(observed, old), new_share))
            backend.copy_into_if(control.accept, old, new)
            return new

        gradient = backend.multiply(moment.gradient, control.gradient_scale)
        square = backend.add(backend.multiply(gradient, gradient), SQUARE_EPSILON)
        if "second_moment" in moment.arrays:
            return backend.divide(gradient, backend.sqrt(averaged("second_moment", square)))
        row, column = averaged("row_mean", self._mean(square, 1)), averaged("column_mean", self._mean(square, 0))
        # Rows relative to their mean, and two divisions: in float32 the product of two tiny means would be zero.
        relative_row = backend.divide(row, self._mean(row, 0))
        return backend.divide(backend.divide(gradient, backend.sqrt(relative_row)), backend.sqrt(column))

    def _mean(self, x: Array, axis: int) -> Array:
        return self.backend.multiply(self.backend.sum(x, (axis,), keep=True), 1.0 / x.shape[axis])
