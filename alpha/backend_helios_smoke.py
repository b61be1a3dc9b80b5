"""The start-up test of the Vulkan backend: a few operations on small fixed operands, held against numpy.

It takes a moment, and finds drivers and devices that compile a kernel wrongly before a long run does. Knows nothing
about how the operations are computed.
"""

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from alpha import rng
from alpha.backend import Backend
from alpha.backend_cpu_ref_primitives import NumpyPrimitives
from alpha.backend_primitives import Array
from alpha.errors import AlphaError

TOLERANCES = {"f32": 1e-4, "f16": 5e-3, "bf16": 5e-2}
"""The largest difference allowed, relative to the largest magnitude, where products round to a precision."""

Program = Callable[..., Sequence[Array]]


class SmokeTestFailed(AlphaError):  # noqa: N818  (a condition)
    """The device computes wrongly; the process ends with exit code 3."""

    exit_code = 3


def smoke_test(backend: Backend, precision: str) -> str:
    """What of the device's results is wrong, one clause; empty when nothing is."""
    for name, (program, *shapes) in _PROGRAMS.items():
        values = [rng.normal(int(np.prod(shape)), 1, index).reshape(shape) for index, shape in enumerate(shapes)]
        wanted = _results(program, NumpyPrimitives(), values)
        got = _results(program, backend, [each.astype(np.float32) for each in values])
        error = np.max([_difference(*pair) for pair in zip(got, wanted, strict=True)])  # NaN when one of them is
        tolerance = TOLERANCES[precision if name in _WITH_PRODUCTS else "f32"]
        if not error <= tolerance:
            return f"{name} differs from the CPU by {error:.3g} of the largest value, where {tolerance:g} is allowed"
    return ""


def _results(program: Program, backend: Backend, values: Sequence[npt.NDArray[Any]]) -> list[npt.NDArray[Any]]:
    return [backend.to_numpy(each) for each in program(backend, *map(backend.from_numpy, values))]


def _difference(got: npt.NDArray[Any], wanted: npt.NDArray[Any]) -> float:
    """The largest difference over the largest magnitude; NaN where a result is not a number."""
    return float(np.abs(got - wanted).max() / np.abs(wanted).max())


# --- programs ---------------------------------------------------------------------------------------------------------


def _elementwise(backend: Backend, x: Array, dy: Array) -> Sequence[Array]:
    y, saved = backend.activation(x, "gelu", training=True)
    return [y, backend.activation_backward(dy, saved)]


def _product(backend: Backend, x: Array, weight: Array, bias: Array, dy: Array) -> Sequence[Array]:
    y, saved = backend.linear(x, weight, bias, "gelu", training=True)
    return [y, *backend.linear_backward(dy, saved)]


def _attention(backend: Backend, query: Array, key: Array, value: Array, dy: Array) -> Sequence[Array]:
    y, saved = backend.attention(query, key, value, training=True)
    return [y, *backend.attention_backward(dy, saved)]


def _norm(backend: Backend, x: Array, weight: Array, bias: Array, dy: Array) -> Sequence[Array]:
    y, saved = backend.layer_norm(x, weight, bias, 1e-5, training=True)
    return [y, *backend.layer_norm_backward(dy, saved)]


def _sums(backend: Backend, x: Array) -> Sequence[Array]:
    return [backend.sum(x, (0,)), backend.sum(x, (1,)), backend.sum_of_squares(x)]


_HEADS = (2, 35, 2, 16)
_PROGRAMS: dict[str, tuple[Any, ...]] = {
    "an activation": (_elementwise, (1003,), (1003,)),
    "a matrix product": (_product, (70, 48), (48, 40), (40,), (70, 40)),
    "attention": (_attention, _HEADS, _HEADS, _HEADS, _HEADS),
    "layer norm": (_norm, (35, 48), (48,), (48,), (35, 48)),
    "a sum": (_sums, (35, 48)),
}
"""By name, a program and the shapes of its operands; not all are multiples of what kernels divide their work by."""

_WITH_PRODUCTS = ("a matrix product", "attention")
