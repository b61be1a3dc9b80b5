"""The inner loops of the reference backend: fused operations on a block of rows that fits the processor's cache.

Each function does what the composition of the same name in `backend` does, in fewer passes over memory: results go
into arrays given by the caller and intermediate values are overwritten in place. Knows nothing about threads.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable
from typing import TYPE_CHECKING

import numpy as np

from alpha import activation
from alpha import backend_cpu_ref_sidecar as sidecar
from alpha import backend_cpu_ref_training as training
from alpha.activation import GELU_CUBIC, GELU_SCALE, activation_named
from alpha.backend_cpu_ref_primitives import NumpyArray, NumpyPrimitives, erf
from alpha.orthogonal import COEFFICIENTS, EPSILON, STEPS

if TYPE_CHECKING:
    from alpha.activation import Formula


def activate(h: NumpyArray, kind: str, y: NumpyArray, slope: NumpyArray | None) -> None:
    """y = activation(h) and, unless it is None, slope = dy/dh; h may be overwritten, and y may be h.

    For the gated kinds h and slope are twice as wide as y: the gradient of h is [dy, dy] * slope.
    """
    chosen = activation_named(kind)
    if not chosen.gated:
        _apply(chosen.formula, h, y, slope)
        return
    width = y.shape[-1]
    gate, up = h[:, :width], h[:, width:]
    gate_slope = None if slope is None else slope[:, :width]
    activated = np.empty_like(y) if slope is None else slope[:, width:]
    _apply(chosen.formula, gate, activated, gate_slope)
    np.multiply(activated, up, out=y)
    if gate_slope is not None:
        gate_slope *= up


def _apply(formula: Formula, h: NumpyArray, y: NumpyArray, slope: NumpyArray | None) -> None:
    """In place where this module has the formula so, else as the table composes it."""
    if formula in _IN_PLACE:
        _IN_PLACE[formula](h, y, slope)
        return
    result, derivative = formula(_PRIMITIVES, h)
    y[...] = result
    if slope is not None:
        slope[...] = derivative


def _relu(h: NumpyArray, y: NumpyArray, slope: NumpyArray | None) -> None:
    if slope is not None:
        np.greater(h, 0.0, out=slope, casting="unsafe")
    np.maximum(h, 0.0, out=y)


def _relu2(h: NumpyArray, y: NumpyArray, slope: NumpyArray | None) -> None:
    np.maximum(h, 0.0, out=y)
    if slope is not None:
        np.add(y, y, out=slope)
    np.multiply(y, y, out=y)


def _silu(h: NumpyArray, y: NumpyArray, slope: NumpyArray | None) -> None:
    # sigmoid(h) = (1 + tanh(h / 2)) / 2 cannot overflow.
    sigmoid = np.multiply(h, 0.5)
    np.tanh(sigmoid, out=sigmoid)
    sigmoid += 1.0
    sigmoid *= 0.5
    np.multiply(h, sigmoid, out=y)
    if slope is not None:
        np.subtract(1.0, sigmoid, out=slope)
        slope *= y
        slope += sigmoid


def _gelu(h: NumpyArray, y: NumpyArray, slope: NumpyArray | None) -> None:
    square = np.multiply(h, h)
    tanh = np.multiply(square, GELU_SCALE * GELU_CUBIC)
    tanh += GELU_SCALE
    tanh *= h
    np.tanh(tanh, out=tanh)
    if slope is not None:
        # slope = (1 + tanh) / 2 + (h / 2) (1 - tanh^2) scale (1 + 3 cubic h^2)
        square *= 1.5 * GELU_SCALE * GELU_CUBIC
        square += 0.5 * GELU_SCALE
        square *= h
        np.multiply(tanh, tanh, out=slope)
        np.subtract(1.0, slope, out=slope)
        slope *= square
    tanh += 1.0
    tanh *= 0.5
    np.multiply(h, tanh, out=y)
    if slope is not None:
        slope += tanh


def _gelu_exact(h: NumpyArray, y: NumpyArray, slope: NumpyArray | None) -> None:
    half = erf(h * math.sqrt(0.5))
    half += 1.0
    half *= 0.5
    if slope is not None:
        np.multiply(h, h, out=slope)
        slope *= -0.5
        np.exp(slope, out=slope)
        slope *= 1.0 / math.sqrt(2.0 * math.pi)
        slope *= h
        slope += half
    np.multiply(h, half, out=y)


_PRIMITIVES = NumpyPrimitives()
_IN_PLACE: dict[Formula, Callable[[NumpyArray, NumpyArray, NumpyArray | None], None]] = {
    activation.relu: _relu,
    activation.relu2: _relu2,
    activation.silu: _silu,
    activation.gelu: _gelu,
    activation.gelu_exact: _gelu_exact,
}


def scale_by_slope(dy: NumpyArray, slope: NumpyArray, dh: NumpyArray) -> None:
    """dh = dy * slope, for the gated kinds with dy repeated."""
    width = dy.shape[-1]
    for start in range(0, slope.shape[-1], width):
        np.multiply(dy, slope[:, start : start + width], out=dh[:, start : start + width])


def layer_norm(
    x: NumpyArray,
    weight: NumpyArray,
    bias: NumpyArray | None,
    epsilon: float,
    y: NumpyArray,
    normalized: NumpyArray,
    scale: NumpyArray,
) -> None:
    """Writes y, (x - mean) * scale and scale = 1 / deviation [rows, 1]; `normalized` may be y."""
    if sidecar.can_do(x, weight):
        training.norm(x, weight, bias, epsilon, True, y, normalized, scale)
        return
    width = x.shape[-1]
    # Row by row: in a product with ones, the order of summation would depend on how many rows there are.
    mean = np.vecdot(x, constant_column(width, 1.0, x.dtype)[:, 0])[:, None]
    mean *= 1.0 / width
    np.subtract(x, mean, out=normalized)
    rms_scale(normalized, epsilon, scale)
    normalized *= scale
    np.multiply(normalized, weight, out=y)
    if bias is not None:
        y += bias


def rms_norm(
    x: NumpyArray, weight: NumpyArray, epsilon: float, y: NumpyArray, normalized: NumpyArray, scale: NumpyArray
) -> None:
    """Writes y, x * scale and scale = 1 / root mean square [rows, 1]; `normalized` may be y."""
    if sidecar.can_do(x, weight):
        training.norm(x, weight, None, epsilon, False, y, normalized, scale)
        return
    rms_scale(x, epsilon, scale)
    np.multiply(x, scale, out=normalized)
    np.multiply(normalized, weight, out=y)


def rms_scale(x: NumpyArray, epsilon: float, scale: NumpyArray) -> None:
    """scale [..., 1] = 1 / sqrt(mean(x^2) + epsilon) over the last axis."""
    np.vecdot(x, x, out=scale[..., 0])
    scale *= 1.0 / x.shape[-1]
    scale += epsilon
    np.sqrt(scale, out=scale)
    np.divide(1.0, scale, out=scale)


def norm_backward(
    dy: NumpyArray,
    normalized: NumpyArray,
    scale: NumpyArray,
    weight: NumpyArray,
    centered: bool,
    dx: NumpyArray,
    dweight: NumpyArray,
) -> None:
    """dx and this block's part of dweight; `centered` for layer norm, otherwise RMS norm."""
    if sidecar.can_do(dy, weight):
        training.norm_backward(dy, normalized, scale, weight, centered, dx, dweight)
        return
    width = dy.shape[-1]
    product = np.multiply(dy, normalized)
    sum_of_rows(product, dweight)
    np.multiply(dy, weight, out=dx)
    along = np.matmul(product, weight[:, None])
    along *= -1.0 / width
    np.multiply(normalized, along, out=product)
    if centered:
        mean = column_of_sums(dx)
        mean *= 1.0 / width
        dx -= mean
    dx += product
    dx *= scale


@functools.lru_cache(64)
def constant_column(rows: int, value: float, dtype: np.dtype[np.floating]) -> NumpyArray:
    """[rows, 1] of one value: a product with it sums (or averages) rows faster than a reduction does."""
    return np.full((rows, 1), value, dtype)


def softmax_unnormalized(scores: NumpyArray) -> NumpyArray:
    """Overwrites `scores` with exp(scores - max) over the last axis; returns the sums [..., 1].

    Each row has its own maximum: a common one would be found faster, but let later queries change the bits of earlier
    ones.
    """
    scores -= np.max(scores, axis=-1, keepdims=True)
    np.exp(scores, out=scores)
    return column_of_sums(scores)


def column_of_sums(x: NumpyArray) -> NumpyArray:
    """The sums over the last axis, which stays with length 1."""
    return np.matmul(x, constant_column(x.shape[-1], 1.0, x.dtype))


def sum_of_rows(x: NumpyArray, out: NumpyArray) -> None:
    """Writes the sum over the first axis of x [rows, width] to out [width]."""
    np.matmul(constant_column(x.shape[0], 1.0, x.dtype).T, x, out=out[None])


def adamw(
    parameter: NumpyArray,
    gradient: NumpyArray,
    first: NumpyArray,
    second: NumpyArray,
    gradient_scale: float,
    decay: float,
    step_size: float,
    correction2: float,
    beta1: float,
    beta2: float,
    epsilon: float,
) -> None:
    """See `Backend.adamw_update`; decay is 1 - lr weight_decay and step_size is lr / correction1."""
    g = gradient * gradient_scale
    first *= beta1
    work = g * (1.0 - beta1)
    first += work
    np.multiply(g, g, out=work)
    work *= 1.0 - beta2
    second *= beta2
    second += work
    # step / (sqrt(second / c) + epsilon) = step sqrt(c) / (sqrt(second) + epsilon sqrt(c))
    root = math.sqrt(correction2)
    np.sqrt(second, out=work)
    work += epsilon * root
    np.divide(first, work, out=work)
    work *= step_size * root
    if decay != 1.0:
        parameter *= decay
    parameter -= work


def orthogonalize(matrix: NumpyArray, size: float) -> None:
    """One matrix of `Backend.orthogonalize`, in place; see `orthogonal.newton_schulz`."""
    a, b, c = COEFFICIENTS
    is_tall = matrix.shape[0] > matrix.shape[1]
    x = np.ascontiguousarray(matrix.T if is_tall else matrix)
    x = x / (math.sqrt(np.vdot(x, x)) + EPSILON)
    for _ in range(STEPS):
        gram = np.matmul(x, x.T)
        polynomial = np.matmul(gram, gram)
        polynomial *= c
        gram *= b
        polynomial += gram
        np.einsum("ii->i", polynomial)[...] += a
        x = np.matmul(polynomial, x)
    x *= size * math.sqrt(x.shape[1])
    matrix[...] = x.T if is_tall else x


def cross_entropy(
    x: NumpyArray,
    weight: NumpyArray,
    ids: NumpyArray,
    weights: NumpyArray,
    soft_cap: float,
    losses: NumpyArray,
    dlogits: NumpyArray,
    dx: NumpyArray | None,
    block: slice,
) -> None:
    """One block of rows of `Backend.cross_entropy`: writes losses [rows, 1] and, with dx, dlogits and dx.

    `dlogits` holds the logits first; `weights` [rows, 1] are each row's share in the mean.
    """
    logits = dlogits[block]
    np.matmul(x[block], weight.T, out=logits)
    if sidecar.can_do(logits):
        training.losses(logits, ids[block], weights[block], soft_cap, dx is not None, losses[block])
    else:
        _losses(logits, ids[block], weights[block], soft_cap, dx is not None, losses[block])
    if dx is not None:
        np.matmul(logits, weight, out=dx[block])


def _losses(
    logits: NumpyArray, ids: NumpyArray, weights: NumpyArray, soft_cap: float, gradients: bool, losses: NumpyArray
) -> None:
    """See `backend_cpu_ref_training.losses`."""
    rows, capped = np.arange(len(logits)), None
    if soft_cap:
        logits *= 1.0 / soft_cap
        np.tanh(logits, out=logits)
        capped = logits.copy() if gradients else None
        logits *= soft_cap
    logits -= np.max(logits, axis=-1, keepdims=True)
    targets = logits[rows, ids, None]
    np.exp(logits, out=logits)
    sums = np.add.reduce(logits, axis=-1, keepdims=True)
    np.log(sums, out=losses)
    losses -= targets
    if not gradients:
        return
    logits *= weights / sums
    logits[rows, ids] -= weights[:, 0]
    if capped is not None:
        np.multiply(capped, capped, out=capped)
        np.subtract(1.0, capped, out=capped)
        logits *= capped
