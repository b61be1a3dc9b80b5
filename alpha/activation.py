"""The activations: one table that the options, every backend and the kernels take them from.

A new one is a formula and a row here, and two functions in kernels/activation.glsl, `NAME` and `NAME_slope`, which
build_scripts/kernels then lists by the row's number; and `NAME_slope_of_result`, if it is `by_result`. Imports nothing
of Alpha at run time, so that the build of the kernels can read the table.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from alpha.backend_primitives import Array, Primitives

    Formula = Callable[[Primitives, Array], tuple[Array, Array]]

GELU_SCALE = math.sqrt(2.0 / math.pi)
GELU_CUBIC = 0.044715

OF_RESULT = 16
"""What the kernels add to an activation's number where they compute its derivative from its result."""


def gelu(b: Primitives, x: Array) -> tuple[Array, Array]:
    """The tanh form of Hendrycks and Gimpel 2016, as in GPT-2."""
    square = b.multiply(x, x)
    inner = b.multiply(b.multiply(x, GELU_SCALE), b.add(1.0, b.multiply(square, GELU_CUBIC)))
    tanh = b.tanh(inner)
    half = b.add(0.5, b.multiply(tanh, 0.5))
    inner_slope = b.add(GELU_SCALE, b.multiply(square, 3.0 * GELU_SCALE * GELU_CUBIC))
    tanh_slope = b.multiply(b.subtract(1.0, b.multiply(tanh, tanh)), inner_slope)
    return b.multiply(x, half), b.add(half, b.multiply(b.multiply(x, 0.5), tanh_slope))


def gelu_exact(b: Primitives, x: Array) -> tuple[Array, Array]:
    """x * Phi(x), with the distribution function of the normal distribution."""
    square = b.multiply(x, x)
    half = b.add(0.5, b.multiply(b.erf(b.multiply(x, math.sqrt(0.5))), 0.5))
    density = b.multiply(b.exp(b.multiply(square, -0.5)), 1.0 / math.sqrt(2.0 * math.pi))
    return b.multiply(x, half), b.add(half, b.multiply(x, density))


def relu(b: Primitives, x: Array) -> tuple[Array, Array]:
    """max(x, 0)."""
    positive = b.cast(b.greater(x, 0.0), x.dtype)
    return b.multiply(x, positive), positive


def relu2(b: Primitives, x: Array) -> tuple[Array, Array]:
    """max(x, 0)^2: Primer (So et al. 2021)."""
    rectified = b.maximum(x, 0.0)
    return b.multiply(rectified, rectified), b.multiply(rectified, 2.0)


def silu(b: Primitives, x: Array) -> tuple[Array, Array]:
    """x * sigmoid(x); sigmoid(x) = (1 + tanh(x / 2)) / 2 cannot overflow."""
    sigmoid = b.multiply(b.add(1.0, b.tanh(b.multiply(x, 0.5))), 0.5)
    y = b.multiply(x, sigmoid)
    return y, b.add(sigmoid, b.multiply(y, b.subtract(1.0, sigmoid)))


@dataclass(frozen=True)
class Activation:
    """`formula` gives the result and its derivative; `number` is that of the formula in the kernels, 0 and up.

    A gated one (Shazeer 2020) applies its formula to the first half of its operand, the gate, times the second half.
    The derivative of one that is `by_result` is a function of its result, so that nothing else need be kept for it.
    """

    number: int
    formula: Formula
    gated: bool = False
    by_result: bool = False


ACTIVATIONS = {
    "gelu": Activation(0, gelu),
    "gelu_exact": Activation(1, gelu_exact),
    "relu": Activation(2, relu, by_result=True),
    "relu2": Activation(3, relu2, by_result=True),
    "silu": Activation(4, silu),
    "swiglu": Activation(4, silu, gated=True),
    "geglu": Activation(0, gelu, gated=True),
}
GATED_ACTIVATIONS = tuple(name for name, each in ACTIVATIONS.items() if each.gated)


def activation_named(name: str) -> Activation:
    """Raises ValueError when there is none."""
    if name not in ACTIVATIONS:
        raise ValueError(f"no activation is called {name!r}")
    return ACTIVATIONS[name]
