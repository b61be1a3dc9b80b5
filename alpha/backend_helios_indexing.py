"""Rows by their ids, sums of rows by their ids, and random bits, on the Vulkan device.

Sums of rows use no floating-point atomics: a stable radix sort of the ids puts the rows of each id together, in the
order in which they stand, and each row of the result is then summed in that order.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from alpha.backend_helios_array import ELEMENTS, HeliosArray, merge_axes
from alpha.backend_helios_core import HeliosCore
from alpha.backend_helios_strides import MOST_GROUPS, THREADS, groups_for
from alpha.backend_primitives import RandomKey

DIGIT_BITS = 8
DIGITS = 1 << DIGIT_BITS
BLOCK = 512
"""Ids that one workgroup sorts."""

FEW_IDS, FEW_ROWS = 4096, 2048
"""With no more than these, looking through all ids for every row takes less time than sorting them."""


def gather_rows(backend: HeliosCore, table: HeliosArray, ids: HeliosArray) -> HeliosArray:
    """table [V, C], ids [...] -> [..., C]; an id out of range takes the nearest row."""
    rows, width = table.shape
    if table.strides[1] != 1 and width > 1:
        table = backend.contiguous(table)
    y = backend.new((*ids.shape, width), table.element)
    stride = table.strides[0]
    variant, unit = "bits16" if ELEMENTS[table.element].itemsize == 2 else "bits32", 1
    if variant == "bits32" and not (width % 4 or stride % 4 or table.offset % 4):
        variant, unit = "bits32x4", 4
    backend.dispatch(
        "gather_rows",
        variant,
        groups_for(y.size // unit),
        {},
        table=table,
        ids=backend.contiguous(ids),
        addend=None,
        y=y,
        count=ids.size,
        width=width // unit,
        stride=stride // unit,
        rows=rows,
        addend_units=0,
    )
    return y


def pick(backend: HeliosCore, x: HeliosArray, ids: HeliosArray) -> HeliosArray:
    """x [..., V], ids [...] -> [...]; an id out of range takes the nearest element."""
    leading = merge_axes(x.shape[:-1], [x.strides[:-1]])
    if len(leading) > 1:
        x = backend.contiguous(x)
        leading = merge_axes(x.shape[:-1], [x.strides[:-1]])
    y = backend.new(ids.shape, x.element)
    backend.dispatch(
        "pick",
        "bits16" if x.itemsize == 2 else "bits32",
        groups_for(y.size),
        {},
        x=x,
        ids=backend.contiguous(ids),
        y=y,
        count=y.size,
        width=x.shape[-1],
        row_stride=leading[0][1][0] if leading else 0,
        stride=x.strides[-1],
    )
    return y


def scatter_add_rows(backend: HeliosCore, ids: HeliosArray, rows: HeliosArray, count: int) -> HeliosArray:
    """ids [...], float32 rows [..., C] -> [count, C]; an id out of range goes to the nearest row."""
    width = rows.shape[-1]
    y = backend.new((count, width), "f32")
    if not ids.size:
        backend.fill(y, 0)
        return y
    ids = backend.contiguous(ids)
    rows = backend.contiguous(backend.cast(rows, np.float32))
    unit = 1 if width % 4 or rows.offset % 4 else 4
    units = width // unit
    columns = -(-units // -(-units // THREADS)) if units else 1
    variant, constants = "f32" if unit == 1 else "f32x4", {"COLUMNS": columns, "THREADS": THREADS // columns * columns}
    common = {"x": rows, "addend": None, "y": y, "width": units, "rows": count}
    if ids.size <= FEW_IDS and count <= FEW_ROWS:
        groups = count if width else 0
        constants["MOST"] = FEW_IDS
        backend.dispatch("scatter_add_few_rows", variant, groups, constants, ids=ids, count=ids.size, **common)
        return y
    order = sort(backend, ids, count)
    starts = backend.new((count + 1,), "u32")
    backend.dispatch(
        "sort_bounds",
        "i32",
        groups_for(count + 1),
        {},
        ids=ids,
        sorted=order,
        starts=starts,
        count=ids.size,
        rows=count,
    )
    groups = min(count, MOST_GROUPS) if width else 0
    backend.dispatch("scatter_add_rows", variant, groups, constants, sorted=order, starts=starts, **common)
    return y


def sort(backend: HeliosCore, ids: HeliosArray, limit: int) -> HeliosArray:
    """The indices of contiguous int32 `ids`, all below `limit`, in the order of the ids; equal ones as they stand."""
    blocks = -(-ids.size // BLOCK)
    order = None
    for shift in range(0, max(1, (limit - 1).bit_length()), DIGIT_BITS):
        counts = backend.new((DIGITS, blocks), "u32")
        placed = backend.new((ids.size,), "u32")
        constants = {"BLOCK": BLOCK, "FIRST": int(order is None)}
        common = {"ids": ids, "order": order, "count": ids.size, "rows": limit, "shift": shift}
        backend.dispatch("sort_count", "i32", blocks, constants, counts=counts, **common)
        backend.dispatch("sort_place", "i32", blocks, constants, counts=counts, sorted=placed, **common)
        order = placed
    assert order is not None
    return order


def random_uint16(backend: HeliosCore, shape: Sequence[int], key: RandomKey) -> HeliosArray:
    """Random uint16 integers, `rng.random_uint16` in row-major order."""
    count = math.prod(shape)
    y = backend.new(shape, "u32")
    backend.dispatch(
        "random_uint16",
        "u32",
        groups_for(-(-count // 8)),
        {},
        step=key.step,
        y=y,
        count=count,
        seed_low=key.seed & 0xFFFFFFFF,
        seed_high=key.seed >> 32 & 0xFFFFFFFF,
        stream=key.stream,
    )
    return y
