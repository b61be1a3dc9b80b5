"""What a case of the table of backend operations is (see `backend_cases`), and short recipes for operands.

A case is a program (it takes a backend and its arrays, and calls nothing but that backend), recipes for its operands,
and what its results must be: a definition in float64 numpy, the composition of the base class, or both.
"""

import dataclasses
import functools
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import definitions
import numpy as np
import numpy.typing as npt

from alpha import rng
from alpha.backend import Backend
from alpha.backend_cpu_ref_primitives import NumpyPrimitives
from alpha.backend_primitives import Array

Values = npt.NDArray[Any]
Program = Callable[..., Sequence[Array]]

SEED = 7


class Composition(NumpyPrimitives):
    """Nothing overridden: every fused operation is the base class's composition of numpy primitives."""

    name = "composition"


@dataclass(frozen=True)
class Operand:
    """A recipe for one operand. Floating-point kinds take the dtype of the test.

    Layouts other than "" make a view that is not contiguous: "swapped" the last two axes, "expanded" along the first,
    or "narrowed" from something longer along `axis`.
    """

    shape: tuple[int, ...]
    kind: str = "normal"
    limit: int = 0
    layout: str = ""
    axis: int = -1

    def swapped(self) -> "Operand":
        return dataclasses.replace(self, layout="swapped")

    def narrowed(self, axis: int = -1) -> "Operand":
        return dataclasses.replace(self, layout="narrowed", axis=axis)

    def expanded(self) -> "Operand":
        return dataclasses.replace(self, layout="expanded")

    def values(self, dtype: npt.DTypeLike, stream: int) -> Values:
        values = _flat_values(self.kind, math.prod(self.shape), self.limit, stream).reshape(self.shape)
        if values.dtype == np.float64:
            values = values.astype(dtype)
        return np.repeat(values[:1], self.shape[0], axis=0) if self.layout == "expanded" else values

    def place(self, backend: Backend, values: Values) -> Array:
        match self.layout:
            case "swapped":
                axes = [*range(values.ndim - 2), values.ndim - 1, values.ndim - 2]
                return backend.transpose(backend.from_numpy(np.ascontiguousarray(values.transpose(axes))), axes)
            case "expanded":
                return backend.expand(backend.from_numpy(values[:1]), values.shape)
            case "narrowed":
                padding = [(0, 0)] * values.ndim
                padding[self.axis] = (2, 3)
                padded = backend.from_numpy(np.pad(values, padding, constant_values=1))
                return backend.narrow(padded, self.axis, 2, values.shape[self.axis])
        return backend.from_numpy(values)


@functools.cache
def _flat_values(kind: str, size: int, limit: int, stream: int) -> Values:
    if kind == "normal":
        return rng.normal(size, SEED, stream)
    if kind == "far":  # from 0
        return 100 + rng.normal(size, SEED, stream)
    uniform = definitions.uniform(size, SEED, stream)
    return {
        "positive": 0.1 + uniform,
        "negative": -0.1 - uniform,
        "large": 10 * (uniform - 0.5),
        "wide": 400 * (uniform - 0.5),
        "tied": np.floor(5 * uniform) - 2,
        "zero": 0 * uniform,
        "special": np.resize([1.0, np.inf, -np.inf, np.nan, 0.0], size),
        "ids": np.floor(limit * uniform).astype(np.int32),
        "targets": np.where(uniform < 0.3, -1, np.floor(limit * uniform)).astype(np.int32),  # some do not count
        "ignored": np.full(size, -100, np.int32),
        "boolean": uniform < 0.5,
        "true": np.full(size, True),
        "false": np.full(size, False),
    }[kind]


@dataclass(frozen=True)
class Case:
    """`tolerance` is for float32: the largest difference over the largest magnitude of a result; 0 means equal bits.

    The definition gives the first results of the program; the composition gives them all.
    """

    name: str
    program: Program
    operands: tuple[Operand, ...]
    definition: Callable[..., Any] | None = None
    tolerance: float = 0.0
    fused: bool = False

    @property
    def size(self) -> int:
        return sum(math.prod(operand.shape) for operand in self.operands)

    def values(self, dtype: npt.DTypeLike, variation: int = 0) -> list[Values]:
        streams = (rng.stream_of(self.name, index, variation) for index in range(len(self.operands)))
        return [operand.values(dtype, stream) for operand, stream in zip(self.operands, streams, strict=True)]

    def arrays(self, backend: Backend, dtype: npt.DTypeLike, variation: int = 0) -> list[Array]:
        pairs = zip(self.operands, self.values(dtype, variation), strict=True)
        return [operand.place(backend, values) for operand, values in pairs]

    def run(self, backend: Backend, dtype: npt.DTypeLike) -> list[Values]:
        return [backend.to_numpy(each) for each in self.program(backend, *self.arrays(backend, dtype))]


def normal(*shape: int) -> Operand:
    return Operand(shape)


def positive(*shape: int) -> Operand:
    return Operand(shape, "positive")


def wide(*shape: int) -> Operand:
    return Operand(shape, "wide")


def tied(*shape: int) -> Operand:
    return Operand(shape, "tied")


def boolean(*shape: int) -> Operand:
    return Operand(shape, "boolean")


def ids(limit: int, *shape: int) -> Operand:
    return Operand(shape, "ids", limit)


def call(operation: str, *arguments: Any, **options: Any) -> Program:
    """The program that is one operation."""
    return lambda backend, *operands: [getattr(backend, operation)(*operands, *arguments, **options)]
