"""The output head fused with its loss, in chunks of rows, so that the M x V logits never exist as a whole.

The forward pass in training computes the gradients of the summed loss, chunk by chunk; the backward pass scales them by
the gradient of the mean loss. What the loss is divided by comes in only there, so that the gradients of logits are of
order 1 and can be stored in half precision.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass

from alpha.backend import Saved
from alpha.backend_helios_array import HeliosArray, narrowed, transposed
from alpha.backend_helios_core import HeliosCore
from alpha.backend_helios_rows import THREADS, groups_for, lanes_for, vector_of

CHUNK_BYTES = 1 << 28
"""Bytes of the logits of one chunk, at most."""

CHUNK_MULTIPLE = 128
"""Rows of a chunk are a multiple of this, which products like."""

ROW_VECTORS = 8
"""Vectors of a row of logits for each thread, if the row is not wider than a workgroup can take that way."""

GRADIENT_SCALES = {"f32": 1.0, "f16": 4096.0, "bf16": 1.0}
"""What gradients of logits are multiplied by when they are stored: float16 would lose small probabilities."""


@dataclass(frozen=True)
class _SavedHead:
    """Gradients of the summed loss times `scale`, and 1 / the number of targets that count, shape [1]."""

    dx: HeliosArray
    dweight: HeliosArray
    inverse_count: HeliosArray
    scale: float


def cross_entropy(
    backend: HeliosCore,
    x: HeliosArray,
    weight: HeliosArray,
    targets: HeliosArray,
    soft_cap: float = 0.0,
    training: bool = False,
) -> tuple[HeliosArray, Saved]:
    """See `Backend.cross_entropy`."""
    targets = backend.contiguous(targets)
    losses = backend.new(targets.shape, "f32")
    element = backend.precision
    dx = dweight = None
    if training:
        dx, dweight = backend.new(x.shape, "f32"), backend.new(weight.shape, "f32")
        if not x.shape[0]:
            backend.fill(dweight, 0.0)
    for start, length in _chunks(x.shape[0], weight.shape[0]):
        rows = narrowed(x, 0, start, length)
        logits = backend.matmul(rows, transposed(weight, (1, 0)))
        dlogits = logits if element == "f32" or not training else backend.new(logits.shape, element)
        _rows_of_logits(
            backend, logits, narrowed(targets, 0, start, length), narrowed(losses, 0, start, length),
            dlogits if training else None, soft_cap, GRADIENT_SCALES[element],
        )  # fmt: skip
        if dx is not None and dweight is not None:
            backend.copy_into(narrowed(dx, 0, start, length), backend.matmul(dlogits, weight))
            part = backend.matmul(transposed(dlogits, (1, 0)), rows)
            (backend.add_into if start else backend.copy_into)(dweight, part)
    loss, inverse_count = backend.new((), "f32"), backend.new((1,), "f32")
    backend.dispatch(
        "cross_entropy_mean",
        "f32",
        1,
        {"THREADS": THREADS},
        losses=losses,
        targets=targets,
        loss=loss,
        inverse_count=inverse_count,
        rows=targets.size,
    )
    if dx is None or dweight is None:
        return loss, None
    return loss, _SavedHead(dx, dweight, inverse_count, GRADIENT_SCALES[element])


def cross_entropy_backward(
    backend: HeliosCore, dloss: HeliosArray, saved: Saved, weight_gradient: HeliosArray | None = None
) -> tuple[HeliosArray, HeliosArray]:
    """See `Backend.cross_entropy_backward`."""
    head: _SavedHead = saved
    dx = backend.new(head.dx.shape, "f32")
    dweight = backend.new(head.dweight.shape, "f32") if weight_gradient is None else weight_gradient
    for source, target in ((head.dx, dx), (head.dweight, dweight)):
        scaled = target if target.is_contiguous else backend.new(target.shape, "f32")
        vector = vector_of(source, scaled)
        backend.dispatch(
            "scale",
            "f32",
            groups_for(source.size, THREADS * vector),
            {"THREADS": THREADS, "VECTOR": vector},
            x=source,
            y=scaled,
            first=dloss,
            second=head.inverse_count,
            count=source.size,
            factor=1.0 / head.scale,
        )
        if scaled is not target:
            backend.copy_into(target, scaled)
    return dx, dweight


def _chunks(rows: int, vocabulary: int) -> Iterator[tuple[int, int]]:
    """Start and length of chunks of rows, about equally long, whose logits are no more than CHUNK_BYTES."""
    most = max(1, CHUNK_BYTES // (4 * vocabulary))
    if rows > most:
        length = math.ceil(rows / math.ceil(rows / most))
        most = min(most, math.ceil(length / CHUNK_MULTIPLE) * CHUNK_MULTIPLE)
    for start in range(0, rows, most):
        yield start, min(most, rows - start)


def _rows_of_logits(
    backend: HeliosCore,
    logits: HeliosArray,
    targets: HeliosArray,
    losses: HeliosArray,
    dlogits: HeliosArray | None,
    soft_cap: float,
    scale: float,
) -> None:
    """The losses of a chunk, and the gradients of its logits unless `dlogits` is None."""
    rows, width = logits.shape
    vector = vector_of(logits, multiples=(width,))
    lanes = lanes_for(backend, -(-width // vector), ROW_VECTORS)
    backend.dispatch(
        "cross_entropy",
        "f32" if dlogits is None else dlogits.element,
        groups_for(rows, THREADS // lanes),
        {
            "THREADS": THREADS,
            "LANES": lanes,
            "VECTOR": vector,
            "CAPPED": int(soft_cap != 0.0),
            "TRAINING": int(dlogits is not None),
        },
        logits=logits,
        targets=targets,
        losses=losses,
        dlogits=dlogits,
        rows=rows,
        width=width,
        stride=width,
        soft_cap=soft_cap,
        scale=scale,
    )
