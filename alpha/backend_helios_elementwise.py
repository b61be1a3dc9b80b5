"""Activations, dropout, rotary position and softmax on the device.

An activation keeps its operand and computes the derivative again in the backward pass.
"""

from __future__ import annotations

from alpha.activation import activation_named
from alpha.backend import Saved
from alpha.backend_helios_array import HeliosArray
from alpha.backend_helios_core import HeliosCore
from alpha.backend_helios_rows import THREADS, Rows, groups_for, lanes_for, rows_of, vector_of
from alpha.backend_primitives import RandomKey

SOFTMAX_ELEMENTS = 16
"""Elements of a row that one thread takes, if the row is not wider than a workgroup can take that way."""

RANDOM_ELEMENTS = 8
"""16-bit integers in one block of random bits."""


def activation(backend: HeliosCore, x: HeliosArray, kind: str, training: bool = False) -> tuple[HeliosArray, Saved]:
    """See `Backend.activation`. Raises ValueError when there is no such kind."""
    rows = rows_of(backend, x)
    width = x.shape[-1] // 2 if activation_named(kind).gated else x.shape[-1]
    y = backend.new((*x.shape[:-1], width), x.element)
    vector = vector_of(rows.array, multiples=(width, *rows.strides))
    backend.dispatch(
        "activation",
        x.element,
        groups_for(y.size, THREADS * vector),
        _activation_constants(kind, vector),
        x=rows.array,
        y=y,
        rows=rows.count,
        width=width,
        **rows.fields(),
    )
    return y, ((rows, kind) if training else None)


def activation_backward(backend: HeliosCore, dy: HeliosArray, saved: Saved) -> HeliosArray:
    """See `Backend.activation_backward`."""
    rows: Rows
    rows, kind = saved
    gradient = rows_of(backend, dy)
    dx = backend.new((*dy.shape[:-1], rows.width), rows.array.element)
    vector = vector_of(rows.array, gradient.array, multiples=(gradient.width, *rows.strides, *gradient.strides))
    backend.dispatch(
        "activation_backward",
        rows.array.element,
        groups_for(dy.size, THREADS * vector),
        _activation_constants(kind, vector),
        x=rows.array,
        dy=gradient.array,
        dx=dx,
        rows=rows.count,
        width=gradient.width,
        **rows.fields("x_"),
        **gradient.fields("dy_"),
    )
    return dx


def _activation_constants(kind: str, vector: int) -> dict[str, int]:
    chosen = activation_named(kind)
    return {"THREADS": THREADS, "VECTOR": vector, "KIND": chosen.number, "GATED": int(chosen.gated)}


def dropout(backend: HeliosCore, x: HeliosArray, probability: float, key: RandomKey | None) -> HeliosArray:
    """See `Backend.dropout`."""
    if not probability or key is None:
        return x
    flat = backend.contiguous(x)
    y = backend.new(x.shape, x.element)
    backend.dispatch(
        "dropout",
        x.element,
        groups_for(flat.size, THREADS * RANDOM_ELEMENTS),
        {"THREADS": THREADS, "VECTOR": vector_of(flat, multiples=(flat.size,))},
        x=flat,
        y=y,
        step=key.step,
        count=flat.size,
        stream=key.stream,
        seed_low=key.seed & 0xFFFFFFFF,
        seed_high=(key.seed >> 32) & 0xFFFFFFFF,
        threshold=round(probability * 2**16),
        scale=1.0 / (1.0 - probability),
    )
    return y


def rotary(backend: HeliosCore, x: HeliosArray, cosine: HeliosArray, sine: HeliosArray) -> HeliosArray:
    """See `Backend.rotary`."""
    if x.strides[-1] != 1:
        x = backend.contiguous(x)
    if cosine.strides != sine.strides or cosine.strides[-1] != 1:
        cosine, sine = backend.contiguous(cosine), backend.contiguous(sine)
    B, T, heads, D = x.shape
    y = backend.new(x.shape, x.element)
    vector = vector_of(x, cosine, sine, multiples=(D // 2, *x.strides[:-1], cosine.strides[0]))
    backend.dispatch(
        "rotary",
        x.element,
        groups_for(B * T * heads * (D // 2), THREADS * vector),
        {"THREADS": THREADS, "VECTOR": vector, "HALF": D // 2},
        x=x,
        cosine=cosine,
        sine=sine,
        y=y,
        count=B * T * heads * (D // 2),
        positions=T,
        heads=heads,
        batch_stride=x.strides[0],
        position_stride=x.strides[1],
        head_stride=x.strides[2],
        table_stride=cosine.strides[0],
    )
    return y


def softmax(backend: HeliosCore, x: HeliosArray) -> HeliosArray:
    """See `Backend.softmax`."""
    y = backend.new(x.shape, "f32")
    _dispatch_rows(backend, "softmax", y, x=backend.contiguous(x), y=y)
    return y


def softmax_backward(backend: HeliosCore, dy: HeliosArray, y: HeliosArray) -> HeliosArray:
    """See `Backend.softmax_backward`."""
    dx = backend.new(y.shape, "f32")
    _dispatch_rows(backend, "softmax_backward", dx, dy=backend.contiguous(dy), y=backend.contiguous(y), dx=dx)
    return dx


def _dispatch_rows(backend: HeliosCore, kernel: str, result: HeliosArray, **arrays: HeliosArray) -> None:
    """Run a kernel in which lanes share the rows of contiguous arrays of one shape."""
    width = result.shape[-1]
    rows = result.size // max(1, width)
    lanes = lanes_for(backend, width, SOFTMAX_ELEMENTS)
    backend.dispatch(
        kernel,
        "f32",
        groups_for(rows, THREADS // lanes),
        {"THREADS": THREADS, "LANES": lanes},
        rows=rows,
        width=width,
        **arrays,
    )
