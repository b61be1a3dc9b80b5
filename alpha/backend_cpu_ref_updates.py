"""The optimizers' updates of the reference backend, in parts that can be done side by side."""

import functools
from abc import abstractmethod
from collections.abc import Sequence

import numpy as np

from alpha import backend_cpu_ref_kernels as kernels
from alpha.backend_cpu_ref_primitives import NumpyArray, NumpyPrimitives, Part
from alpha.backend_updates import AdamControl, UpdateControl

FLAT_BLOCK = 1 << 18


class Updates(NumpyPrimitives):
    """See `backend_updates`."""

    @abstractmethod
    def run_parts(self, parts: Sequence[Part]) -> None:
        """Do all parts of an operation, side by side where there are threads for it."""

    def sum_of_squares(self, x: NumpyArray) -> NumpyArray:
        flat = x.reshape(-1)
        blocks = slices(flat.size, FLAT_BLOCK)
        sums = np.empty(len(blocks), np.float64)

        def part(index: int) -> None:
            sums[index] = np.vdot(flat[blocks[index]], flat[blocks[index]])

        self.run_parts([(part, index) for index in range(len(blocks))])
        return np.add.reduce(sums, keepdims=True).astype(x.dtype)

    def adamw_update(
        self,
        parameter: NumpyArray,
        gradient: NumpyArray,
        first: NumpyArray,
        second: NumpyArray,
        control: AdamControl,
        beta1: float,
        beta2: float,
        epsilon: float,
        weight_decay: float,
    ) -> None:
        if not control.accept[0]:
            return
        learning_rate = float(control.learning_rate[0])
        scalars = (
            float(control.gradient_scale[0]),
            1.0 - learning_rate * weight_decay,
            learning_rate / float(control.correction1[0]),
            float(control.correction2[0]),
            beta1, beta2, epsilon,
        )  # fmt: skip
        p, g, m, v = (np.reshape(each, -1, copy=False) for each in (parameter, gradient, first, second))

        def part(block: slice) -> None:
            kernels.adamw(p[block], g[block], m[block], v[block], *scalars)

        self.run_parts([(part, block) for block in slices(parameter.size, FLAT_BLOCK)])

    def momentum_update(
        self, momentum: NumpyArray, gradient: NumpyArray, step: NumpyArray, control: UpdateControl, beta: float
    ) -> None:
        if not control.accept[0]:
            return
        scale = float(control.gradient_scale[0])
        m, g, s = (np.reshape(each, -1, copy=False) for each in (momentum, gradient, step))

        def part(block: slice) -> None:
            scaled = g[block] * scale
            m[block] *= beta
            m[block] += scaled
            np.multiply(m[block], beta, out=s[block])
            s[block] += scaled

        self.run_parts([(part, block) for block in slices(momentum.size, FLAT_BLOCK)])

    def orthogonalize(self, matrices: Sequence[NumpyArray], size: float) -> None:
        """Each matrix by itself, so that it stays in the cache and threads meet once."""
        self.run_parts([(functools.partial(kernels.orthogonalize, size=size), each) for each in matrices])

    def decayed_step(
        self, parameter: NumpyArray, step: NumpyArray, control: UpdateControl, weight_decay: float
    ) -> None:
        if not control.accept[0]:
            return
        learning_rate = float(control.learning_rate[0])
        p, s = (np.reshape(each, -1, copy=False) for each in (parameter, step))

        def part(block: slice) -> None:
            p[block] *= 1.0 - learning_rate * weight_decay
            p[block] -= s[block] * learning_rate

        self.run_parts([(part, block) for block in slices(parameter.size, FLAT_BLOCK)])


@functools.lru_cache(1024)
def slices(size: int, step: int) -> tuple[slice, ...]:
    """Neighbouring ranges of `step` that are `size` together; the last may be shorter."""
    return tuple(slice(start, min(start + step, size)) for start in range(0, size, step))
