"""Sums and maxima over axes on the Vulkan device, in an order that depends only on shapes and the device."""

from __future__ import annotations

import math
from collections.abc import Sequence

from alpha.backend_helios_array import HeliosArray, contiguous_strides, merge_axes, transposed
from alpha.backend_helios_core import HeliosCore
from alpha.backend_helios_strides import ELEMENT_CODES, MOST_GROUPS, THREADS, groups_for, variant_for

INVOCATIONS = 1 << 16
"""About how many invocations keep a device busy; a reduction with fewer results divides its terms among more."""

FEWEST_TERMS = 64
"""Terms of each result that are worth an invocation of their own."""

MOST_CHUNKS = 1024

_FLOATING = ("f32", "f16", "bf16")


def reduce(backend: HeliosCore, x: HeliosArray, axes: Sequence[int], keep: bool, *, maximum: bool) -> HeliosArray:
    """The sum or maximum of floating-point elements over `axes`. Raises TypeError for others."""
    if x.element not in _FLOATING:
        raise TypeError(f"reductions take no elements of type {x.element}; cast them first")
    rank = len(x.shape)
    reduced = sorted({axis % rank for axis in axes})
    kept = [axis for axis in range(rank) if axis not in reduced]
    shape = tuple(1 if axis in reduced else x.shape[axis] for axis in range(rank) if keep or axis not in reduced)
    y = backend.new(shape, x.element)
    terms = math.prod(x.shape[axis] for axis in reduced)
    if maximum and y.size and not terms:
        raise ValueError("there is no maximum of no elements")
    layout = _two_axes_each(x, kept, reduced)
    if layout is None:
        x = backend.contiguous(transposed(x, [*kept, *reduced]))
        layout = [(y.size, terms)], [(terms, 1)]
    if y.size:
        _dispatch(backend, x, layout, y, maximum)
    return y


_Axes = list[tuple[int, int]]
"""Length and stride of each, the outermost first."""


def _two_axes_each(x: HeliosArray, kept: Sequence[int], reduced: Sequence[int]) -> tuple[_Axes, _Axes] | None:
    """The axes that are kept and those that are not, merged, if that leaves at most two of each."""
    merged = []
    for axes in (kept, reduced):
        pairs = merge_axes([x.shape[axis] for axis in axes], [[x.strides[axis] for axis in axes]])
        merged.append([(length, strides[0]) for length, strides in pairs] or [(1, 1)])
    return (merged[0], merged[1]) if max(map(len, merged)) <= 2 else None


def _dispatch(backend: HeliosCore, x: HeliosArray, layout: tuple[_Axes, _Axes], y: HeliosArray, maximum: bool) -> None:
    """Reduce into `y`, by way of partial results when there are many terms for each."""
    kept_axes, term_axes = layout
    kept, terms = (math.prod(length for length, _ in axes) for axes in layout)
    by_workgroup = kept < FEWEST_TERMS or term_axes[-1][1] <= kept_axes[-1][1]
    threads = min(THREADS, max(32, 1 << max(0, terms // 4 - 1).bit_length())) if by_workgroup else THREADS
    invocations = kept * threads if by_workgroup else kept
    longest = FEWEST_TERMS * (threads if by_workgroup else 1)
    chunks = max(1, min(INVOCATIONS // max(1, invocations), terms // longest, MOST_CHUNKS))
    chunk = max(1, -(-terms // chunks))
    chunks = max(1, -(-terms // chunk))
    target = y if chunks == 1 else backend.new((chunks, kept), "f32")
    constants = {
        "THREADS": threads,
        "MAXIMUM": int(maximum),
        "BY_WORKGROUP": int(by_workgroup),
        "KEPT_AXES": len(kept_axes),
        "TERM_AXES": len(term_axes),
        "X_ELEMENT": ELEMENT_CODES[x.element],
        "Y_ELEMENT": ELEMENT_CODES[target.element],
    }
    backend.dispatch(
        "reduce",
        variant_for([x.element, target.element]),
        (min(kept, MOST_GROUPS) if by_workgroup else groups_for(kept), chunks, 1),
        constants,
        x=x,
        y=target,
        kept=kept,
        terms=terms,
        chunk=chunk,
        kept_length0=kept_axes[-1][0],
        kept_stride0=kept_axes[-1][1],
        kept_stride1=kept_axes[0][1],
        term_length0=term_axes[-1][0],
        term_stride0=term_axes[-1][1],
        term_stride1=term_axes[0][1],
    )
    if target is not y:
        partial, strides = target, contiguous_strides(target.shape)
        _dispatch(backend, partial, ([(kept, strides[1])], [(chunks, strides[0])]), y, maximum)
