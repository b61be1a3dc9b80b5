"""The primitive operations that every backend must have; everything else can be composed of them.

An array belongs to the backend that made it. All that the rest of Alpha may ask of it is `shape` and `dtype` (a numpy
dtype): it may live on another device, and the operation that makes it may only have been recorded. Floating-point
operations keep the dtype of their array operands; Python numbers are constants that take that dtype.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt

Array: TypeAlias = Any
"""A backend's array. Any, because each backend narrows it to its own class."""

Operand: TypeAlias = Any
"""An array or a Python number."""


@dataclass(frozen=True)
class RandomKey:
    """Names a sequence of random integers: `rng.random_uint16(count, seed, stream, step)`.

    `step` is an integer array of shape [1], because it changes from step to step of a recorded program.
    """

    seed: int
    stream: int
    step: Array


class Primitives(ABC):
    """Memory, views, arithmetic, reductions, products, indexing and random bits."""

    name: str

    # --- memory -------------------------------------------------------------------------------------------------------

    @abstractmethod
    def from_numpy(self, values: npt.NDArray[Any]) -> Array:
        """A new array with a copy of `values`."""

    @abstractmethod
    def to_numpy(self, array: Array) -> npt.NDArray[Any]:
        """A copy of the array's values; waits for them."""

    @abstractmethod
    def empty(self, shape: Sequence[int], dtype: npt.DTypeLike = np.float32) -> Array:
        """A new array whose values are undefined."""

    @abstractmethod
    def fill(self, target: Array, value: float) -> None:
        """Set every element of `target`, in place."""

    @abstractmethod
    def copy_into(self, target: Array, source: Array) -> None:
        """Overwrite `target`, in place, with `source` broadcast to its shape."""

    @abstractmethod
    def add_into(self, target: Array, source: Array) -> None:
        """Add `source`, broadcast to its shape, to `target`, in place."""

    def zeros(self, shape: Sequence[int], dtype: npt.DTypeLike = np.float32) -> Array:
        """A new array of zeros."""
        array = self.empty(shape, dtype)
        self.fill(array, 0)
        return array

    @abstractmethod
    def record(self, program: Callable[..., Any]) -> Callable[..., Any]:
        """A callable that does what `program` does, given arrays of the same shapes each time.

        `program` takes and returns arrays, calls only this backend's operations, and never looks at a value, so that a
        backend may run it once, record what it did, and replay that.
        """

    def record_inference(self, program: Callable[..., Any]) -> Callable[..., Any]:
        """The same for a program that differentiates nothing, whose caller computes again what raises ResultsLost."""
        return self.record(program)

    # --- views: the result may share memory with the operand ----------------------------------------------------------

    @abstractmethod
    def reshape(self, x: Array, shape: Sequence[int]) -> Array: ...

    @abstractmethod
    def transpose(self, x: Array, axes: Sequence[int]) -> Array:
        """Permute the axes: result.shape[i] = x.shape[axes[i]]."""

    @abstractmethod
    def narrow(self, x: Array, axis: int, start: int, length: int) -> Array:
        """The part of `x` from `start`, `length` long, along one axis."""

    @abstractmethod
    def expand(self, x: Array, shape: Sequence[int]) -> Array:
        """`x` broadcast to `shape`."""

    @abstractmethod
    def concatenate(self, parts: Sequence[Array], axis: int) -> Array: ...

    # --- elementwise, with broadcasting -------------------------------------------------------------------------------

    @abstractmethod
    def add(self, a: Operand, b: Operand) -> Array: ...

    @abstractmethod
    def subtract(self, a: Operand, b: Operand) -> Array: ...

    @abstractmethod
    def multiply(self, a: Operand, b: Operand) -> Array: ...

    @abstractmethod
    def divide(self, a: Operand, b: Operand) -> Array: ...

    @abstractmethod
    def maximum(self, a: Operand, b: Operand) -> Array: ...

    @abstractmethod
    def minimum(self, a: Operand, b: Operand) -> Array: ...

    @abstractmethod
    def greater(self, a: Operand, b: Operand) -> Array:
        """A boolean array: a > b."""

    @abstractmethod
    def equal(self, a: Operand, b: Operand) -> Array:
        """A boolean array: a == b."""

    @abstractmethod
    def isfinite(self, x: Array) -> Array:
        """A boolean array: neither infinite nor NaN."""

    @abstractmethod
    def logical_and(self, a: Array, b: Array) -> Array: ...

    @abstractmethod
    def where(self, condition: Array, a: Operand, b: Operand) -> Array: ...

    @abstractmethod
    def exp(self, x: Array) -> Array: ...

    @abstractmethod
    def log(self, x: Array) -> Array: ...

    @abstractmethod
    def sqrt(self, x: Array) -> Array: ...

    @abstractmethod
    def tanh(self, x: Array) -> Array: ...

    @abstractmethod
    def erf(self, x: Array) -> Array: ...

    @abstractmethod
    def sign(self, x: Array) -> Array: ...

    @abstractmethod
    def absolute(self, x: Array) -> Array: ...

    @abstractmethod
    def cast(self, x: Array, dtype: npt.DTypeLike) -> Array: ...

    # --- reductions ---------------------------------------------------------------------------------------------------

    @abstractmethod
    def sum(self, x: Array, axes: Sequence[int], keep: bool = False) -> Array:
        """Sum over `axes`; with `keep` they stay, with length 1."""

    @abstractmethod
    def max(self, x: Array, axes: Sequence[int], keep: bool = False) -> Array: ...

    # --- products and indexing ----------------------------------------------------------------------------------------

    @abstractmethod
    def matmul(self, a: Array, b: Array) -> Array:
        """Matrix product of the last two axes; the axes before them are broadcast."""

    @abstractmethod
    def gather_rows(self, table: Array, ids: Array) -> Array:
        """table [V, C], integer ids [...] -> [..., C]."""

    @abstractmethod
    def scatter_add_rows(self, ids: Array, rows: Array, count: int) -> Array:
        """The transpose of `gather_rows`: ids [...], rows [..., C] -> [count, C], in a fixed order of summation."""

    @abstractmethod
    def pick(self, x: Array, ids: Array) -> Array:
        """One element of each row: x [..., V], ids [...] -> [...]."""

    # --- random -------------------------------------------------------------------------------------------------------

    @abstractmethod
    def random_uint16(self, shape: Sequence[int], key: RandomKey) -> Array:
        """Random uint16 integers, `rng.random_uint16` in row-major order."""

    @abstractmethod
    def choose(self, logits: Array, options: Array, top_k: Array) -> Array:
        """A column of each row of logits [N, V], as int32 [N]; -1 where a logit is not finite.

        options [N, 4] are temperature, top_p, min_p and a number in [0, 1), which draws the first column at which the
        sum of weights exp(logit / temperature) passes that share of all. Only the top_k [N] likeliest columns count, if
        that is not 0; of those, the fewest likeliest that have top_p of the weight, one at least; and of those, the
        ones with at least min_p of the likeliest one's weight. Temperature 0 takes the likeliest column. Of equal
        logits the first is the likelier.
        """
