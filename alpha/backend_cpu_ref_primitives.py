"""The primitives in numpy: one line each, so that anyone can check them. Arrays are numpy arrays."""

import functools
import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
from numpy.polynomial import chebyshev

from alpha import choice, rng
from alpha.backend import Backend
from alpha.backend_primitives import RandomKey

NumpyArray = npt.NDArray[Any]
NumpyOperand = NumpyArray | float
Part = tuple[Callable[..., None], Any]
"""A function, and the argument with which it does a part of an operation."""

ERF_MIDPOINT = 3.75


class NumpyPrimitives(Backend):
    """Every primitive, by the numpy function that defines it."""

    def from_numpy(self, values: NumpyArray) -> NumpyArray:
        return np.array(values)

    def to_numpy(self, array: NumpyArray) -> NumpyArray:
        return np.array(array)

    def empty(self, shape: Sequence[int], dtype: npt.DTypeLike = np.float32) -> NumpyArray:
        return np.empty(shape, dtype)

    def zeros(self, shape: Sequence[int], dtype: npt.DTypeLike = np.float32) -> NumpyArray:
        return np.zeros(shape, dtype)  # takes no memory before something is written there

    def fill(self, target: NumpyArray, value: float) -> None:
        target.fill(value)

    def copy_into(self, target: NumpyArray, source: NumpyArray) -> None:
        np.copyto(target, source)

    def add_into(self, target: NumpyArray, source: NumpyArray) -> None:
        np.add(target, source, out=target)

    def record(self, program: Callable[..., Any]) -> Callable[..., Any]:
        return program

    def reshape(self, x: NumpyArray, shape: Sequence[int]) -> NumpyArray:
        return x.reshape(shape)

    def transpose(self, x: NumpyArray, axes: Sequence[int]) -> NumpyArray:
        return x.transpose(axes)

    def narrow(self, x: NumpyArray, axis: int, start: int, length: int) -> NumpyArray:
        index = [slice(None)] * x.ndim
        index[axis] = slice(start, start + length)
        return x[tuple(index)]

    def expand(self, x: NumpyArray, shape: Sequence[int]) -> NumpyArray:
        return np.broadcast_to(x, shape)

    def concatenate(self, parts: Sequence[NumpyArray], axis: int) -> NumpyArray:
        return np.concatenate(parts, axis)

    def add(self, a: NumpyOperand, b: NumpyOperand) -> NumpyArray:
        return np.add(a, b)

    def subtract(self, a: NumpyOperand, b: NumpyOperand) -> NumpyArray:
        return np.subtract(a, b)

    def multiply(self, a: NumpyOperand, b: NumpyOperand) -> NumpyArray:
        return np.multiply(a, b)

    def divide(self, a: NumpyOperand, b: NumpyOperand) -> NumpyArray:
        return np.divide(a, b)

    def maximum(self, a: NumpyOperand, b: NumpyOperand) -> NumpyArray:
        return np.maximum(a, b)

    def minimum(self, a: NumpyOperand, b: NumpyOperand) -> NumpyArray:
        return np.minimum(a, b)

    def greater(self, a: NumpyOperand, b: NumpyOperand) -> NumpyArray:
        return np.greater(a, b)

    def equal(self, a: NumpyOperand, b: NumpyOperand) -> NumpyArray:
        return np.equal(a, b)

    def isfinite(self, x: NumpyArray) -> NumpyArray:
        return np.isfinite(x)

    def logical_and(self, a: NumpyArray, b: NumpyArray) -> NumpyArray:
        return np.logical_and(a, b)

    def where(self, condition: NumpyArray, a: NumpyOperand, b: NumpyOperand) -> NumpyArray:
        return np.where(condition, a, b)

    def exp(self, x: NumpyArray) -> NumpyArray:
        return np.exp(x)

    def log(self, x: NumpyArray) -> NumpyArray:
        return np.log(x)

    def sqrt(self, x: NumpyArray) -> NumpyArray:
        return np.sqrt(x)

    def tanh(self, x: NumpyArray) -> NumpyArray:
        return np.tanh(x)

    def erf(self, x: NumpyArray) -> NumpyArray:
        return erf(x)

    def sign(self, x: NumpyArray) -> NumpyArray:
        return np.sign(x)

    def absolute(self, x: NumpyArray) -> NumpyArray:
        return np.absolute(x)

    def cast(self, x: NumpyArray, dtype: npt.DTypeLike) -> NumpyArray:
        return x.astype(dtype, copy=False)

    def sum(self, x: NumpyArray, axes: Sequence[int], keep: bool = False) -> NumpyArray:
        # numpy's types tell what comes out only where `keepdims` is a constant; so below.
        over = tuple(axes)
        return np.asarray(np.sum(x, over, x.dtype, keepdims=True) if keep else np.sum(x, over, x.dtype))

    def max(self, x: NumpyArray, axes: Sequence[int], keep: bool = False) -> NumpyArray:
        over = tuple(axes)
        return np.asarray(np.max(x, over, keepdims=True) if keep else np.max(x, over))

    def matmul(self, a: NumpyArray, b: NumpyArray) -> NumpyArray:
        return np.matmul(a, b)

    def gather_rows(self, table: NumpyArray, ids: NumpyArray) -> NumpyArray:
        return np.take(table, ids, axis=0)

    def scatter_add_rows(self, ids: NumpyArray, rows: NumpyArray, count: int) -> NumpyArray:
        """The rows of one id are added in the order in which they stand."""
        flat_ids, flat_rows = ids.reshape(-1), rows.reshape(-1, rows.shape[-1])
        result = np.zeros((count, rows.shape[-1]), rows.dtype)
        if flat_ids.size:
            order = np.argsort(flat_ids, kind="stable")
            distinct, starts = np.unique(flat_ids[order], return_index=True)
            result[distinct] = np.add.reduceat(flat_rows[order], starts, axis=0)
        return result

    def pick(self, x: NumpyArray, ids: NumpyArray) -> NumpyArray:
        return np.take_along_axis(x, ids[..., None], axis=-1)[..., 0]

    def choose(self, logits: NumpyArray, options: NumpyArray, top_k: NumpyArray) -> NumpyArray:
        # What is not a number is both the least and the largest.
        finite = np.isfinite(logits.min(-1)) & np.isfinite(logits.max(-1))
        chosen = [
            choice.choose(row, temperature, k, top_p, min_p, number) if is_finite else -1
            for row, is_finite, (temperature, top_p, min_p, number), k in zip(
                logits, finite.tolist(), options.tolist(), top_k.tolist(), strict=True
            )
        ]
        return np.array(chosen, np.int32)

    def random_uint16(self, shape: Sequence[int], key: RandomKey) -> NumpyArray:
        return rng.random_uint16(math.prod(shape), key.seed, key.stream, int(key.step[0])).reshape(shape)


def erf(x: NumpyArray) -> NumpyArray:
    """The error function, from a Chebyshev series of (1 + 2 |x|) exp(x^2) erfc(|x|) in (|x| - k) / (|x| + k).

    Source: Shepherd and Laframboise, Mathematics of Computation 36, 1981, with k = 3.75.
    """
    size = np.minimum(np.absolute(x), 6.0)  # erf(6) is 1 in double precision
    series = chebyshev.chebval((size - ERF_MIDPOINT) / (size + ERF_MIDPOINT), erf_coefficients(x.dtype.name))
    return np.copysign(1.0 - series * np.exp(-size * size) / (1.0 + 2.0 * size), x)


@functools.cache
def erf_coefficients(dtype: str) -> NumpyArray:
    """The Chebyshev coefficients that `erf` needs, as many as the dtype can use."""

    def scaled_erfc(points: NumpyArray) -> NumpyArray:
        sizes = ERF_MIDPOINT * (1.0 + points) / (1.0 - points)
        return np.array([(1.0 + 2.0 * size) * math.exp(size * size) * math.erfc(size) for size in sizes])

    # Beyond |x| = 6 the result is 1 whatever the series says, so it is fitted up to a little more than that.
    last = (8.0 - ERF_MIDPOINT) / (8.0 + ERF_MIDPOINT)
    nodes = np.polynomial.chebyshev.chebpts1(64)
    points = (nodes + 1.0) * (last + 1.0) / 2.0 - 1.0
    degree = 11 if dtype == "float32" else 22
    series = chebyshev.Chebyshev.fit(points, scaled_erfc(points), degree, domain=[-1.0, 1.0])
    return series.coef.astype(dtype)
