"""Layer norm and RMS norm on the device.

The forward pass keeps its operand, and each row's mean and scale, not the normalized values. In the backward pass each
workgroup sums the gradients of weight and bias over its own rows; a second kernel adds the workgroups up in a fixed
order.
"""

from __future__ import annotations

from dataclasses import dataclass

from alpha.backend import Saved
from alpha.backend_helios_array import HeliosArray
from alpha.backend_helios_core import HeliosCore
from alpha.backend_helios_rows import THREADS, VECTOR, Rows, groups_for, lanes_for, rows_of, vector_of

ROW_THREADS = 128
FORWARD_VECTORS = 8
BACKWARD_VECTORS = 4
"""Vectors of a row that a thread holds in registers, if the row is not wider than a workgroup can hold that way."""

BACKWARD_ROWS = 2
"""Rows for each group of lanes, at least: fewer would make more sums than the second kernel likes to add up."""

MOST_PARTS = 512
SUM_LANES = 8


@dataclass(frozen=True)
class _SavedNorm:
    """What the backward pass needs; `mean` is None for RMS norm."""

    rows: Rows
    weight: HeliosArray
    has_bias: bool
    mean: HeliosArray | None
    scale: HeliosArray


def layer_norm(
    backend: HeliosCore,
    x: HeliosArray,
    weight: HeliosArray,
    bias: HeliosArray | None,
    epsilon: float,
    training: bool = False,
) -> tuple[HeliosArray, Saved]:
    """See `Backend.layer_norm`."""
    return _norm(backend, x, weight, bias, epsilon, training, centered=True)


def rms_norm(
    backend: HeliosCore, x: HeliosArray, weight: HeliosArray, epsilon: float, training: bool = False
) -> tuple[HeliosArray, Saved]:
    """See `Backend.rms_norm`."""
    return _norm(backend, x, weight, None, epsilon, training, centered=False)


def layer_norm_backward(
    backend: HeliosCore, dy: HeliosArray, saved: Saved
) -> tuple[HeliosArray, HeliosArray, HeliosArray | None]:
    """See `Backend.layer_norm_backward`."""
    return _norm_backward(backend, dy, saved)


def rms_norm_backward(backend: HeliosCore, dy: HeliosArray, saved: Saved) -> tuple[HeliosArray, HeliosArray]:
    """See `Backend.rms_norm_backward`."""
    dx, dweight, _ = _norm_backward(backend, dy, saved)
    return dx, dweight


def _norm(
    backend: HeliosCore,
    x: HeliosArray,
    weight: HeliosArray,
    bias: HeliosArray | None,
    epsilon: float,
    training: bool,
    centered: bool,
) -> tuple[HeliosArray, Saved]:
    rows = rows_of(backend, x)
    weight = backend.contiguous(weight)
    bias = None if bias is None else backend.contiguous(bias)
    y = backend.new(x.shape, x.element)
    mean = backend.new((rows.count,), "f32") if training and centered else None
    scale = backend.new((rows.count,), "f32") if training else None
    vector = vector_of(rows.array, weight, bias, multiples=(rows.width, *rows.strides))
    lanes = lanes_for(backend, -(-rows.width // vector), FORWARD_VECTORS * VECTOR // vector)
    threads = max(ROW_THREADS, lanes)
    backend.dispatch(
        "norm",
        x.element,
        groups_for(rows.count, threads // lanes),
        {
            "THREADS": threads,
            "WIDTH": rows.width,
            "LANES": lanes,
            "VECTOR": vector,
            "CENTERED": int(centered),
            "HAS_BIAS": int(bias is not None),
            "SAVE": int(training),
        },
        x=rows.array,
        weight=weight,
        bias=bias,
        y=y,
        mean=mean,
        scale=scale,
        rows=rows.count,
        epsilon=epsilon,
        **rows.fields(),
    )
    return y, (None if scale is None else _SavedNorm(rows, weight, bias is not None, mean, scale))


def _norm_backward(
    backend: HeliosCore, dy: HeliosArray, saved: _SavedNorm
) -> tuple[HeliosArray, HeliosArray, HeliosArray | None]:
    x, weight = saved.rows, saved.weight
    gradient = rows_of(backend, dy)
    dx = backend.new(dy.shape, x.array.element)
    vector = vector_of(x.array, gradient.array, weight, multiples=(x.width, *x.strides, *gradient.strides))
    lanes = lanes_for(backend, -(-x.width // vector), BACKWARD_VECTORS * VECTOR // vector)
    threads = max(ROW_THREADS, lanes)
    groups = min(MOST_PARTS, groups_for(x.count, BACKWARD_ROWS * threads // lanes))
    sums = 1 + saved.has_bias
    parts = backend.new((groups, sums * x.width), "f32")
    backend.dispatch(
        "norm_backward",
        x.array.element,
        groups,
        {
            "THREADS": threads,
            "WIDTH": x.width,
            "LANES": lanes,
            "VECTOR": vector,
            "CENTERED": int(saved.mean is not None),
            "SUMS": sums,
        },
        x=x.array,
        dy=gradient.array,
        weight=weight,
        mean=saved.mean,
        scale=saved.scale,
        addend=None,
        dx=dx,
        parts=parts,
        rows=x.count,
        **x.fields("x_"),
        **gradient.fields("dy_"),
    )
    dweight = backend.new((x.width,), "f32")
    dbias = backend.new((x.width,), "f32") if saved.has_bias else None
    vector = vector_of(multiples=(x.width,))
    backend.dispatch(
        "column_sums",
        "f32",
        groups_for(sums * x.width, SUM_LANES * vector),
        {"THREADS": THREADS, "VECTOR": vector, "LANES": SUM_LANES},
        x=parts,
        first=dweight,
        second=dbias,
        rows=groups,
        width=sums * x.width,
        split=x.width,
    )
    return dx, dweight, dbias
