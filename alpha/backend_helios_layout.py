"""How the Vulkan backend's kernels see an array: as rows, as vectors of neighbours, as axes with strides.

Knows the push-constant fields that kernels/rows.glsl and kernels/strided.glsl ask for, not what the kernels compute.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from alpha.backend_helios_array import HeliosArray, broadcast_strides, merge_axes
from alpha.backend_helios_device import MOST_GROUPS

THREADS = 256
"""Invocations of a workgroup that every device allows in practice."""

VECTOR = 4
"""Elements that most kernels read at a time where they are neighbours."""

AXES = 5

ELEMENT_CODES = {"f32": 0, "f16": 1, "bf16": 2, "i32": 3, "u32": 4, "b32": 5}
"""As in kernels/elements.glsl."""

_ARRAY, _NUMBER, _SPREAD = 0, 1, 2


# --- workgroups -------------------------------------------------------------------------------------------------------


def groups_for(items: int, per_group: int = THREADS) -> int:
    """Workgroups for so many items; when there are not enough, each takes several turns."""
    return min(MOST_GROUPS, -(-items // per_group))


def power_of_two(number: int) -> int:
    """The smallest power of two that is not below `number`."""
    return 1 << max(0, number - 1).bit_length()


def vector_of(*arrays: HeliosArray | None, multiples: tuple[int, ...] = ()) -> int:
    """4 when arrays start at multiples of four elements and the numbers (widths, strides) are multiples of 4, else 1.

    A storage starts at a multiple of 256 bytes.
    """
    starts = (array.offset for array in arrays if array is not None)
    return 1 if any(number % VECTOR for number in (*starts, *multiples)) else VECTOR


# --- rows -------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Rows:
    """An array [..., width] whose row r starts r // inner * outer_stride + r % inner * inner_stride elements further.

    The elements of a row are neighbours.
    """

    array: HeliosArray
    count: int
    width: int
    inner: int
    outer_stride: int
    inner_stride: int

    def fields(self, prefix: str = "") -> dict[str, int]:
        """The push-constant fields that tell a kernel where rows start."""
        return {
            f"{prefix}inner": self.inner,
            f"{prefix}outer_stride": self.outer_stride,
            f"{prefix}inner_stride": self.inner_stride,
        }

    @property
    def strides(self) -> tuple[int, int]:
        return self.outer_stride, self.inner_stride


def rows_where_they_lie(x: HeliosArray) -> Rows | None:
    """The rows of `x`, or None when they cannot be addressed where they are."""
    axes = merge_axes(x.shape[:-1], [x.strides[:-1]])
    if len(axes) > 2 or (x.shape[-1] != 1 and x.strides[-1] != 1):
        return None
    (outer, (outer_stride,)), (inner, (inner_stride,)) = [(1, (0,))] * (2 - len(axes)) + axes
    return Rows(x, outer * inner, x.shape[-1], max(1, inner), outer_stride, inner_stride)


# --- strides ----------------------------------------------------------------------------------------------------------


def variant_for(elements: Sequence[str]) -> str:
    """The variant of a kernel that takes its element types as constants."""
    return "any" if {"f16", "bf16"} & set(elements) else "bits32"


@dataclass(frozen=True)
class Strided:
    """What a strided kernel is given for its operands: constants, push-constant fields and workgroups."""

    constants: dict[str, int]
    fields: dict[str, int]
    groups: int


@dataclass(frozen=True)
class _Layout:
    """All that matters of an array here; `place` is where it starts within a group of four elements."""

    shape: tuple[int, ...]
    strides: tuple[int, ...]
    place: int


def strided(shape: tuple[int, ...], arrays: Mapping[str, HeliosArray | None], along: HeliosArray) -> Strided:
    """Constants AXES, WIDTH and NAME_KIND, and the lengths and strides, of arrays broadcast to one shape.

    An array of None is a number, or absent. `along`, of that shape, is where results go; four at a time where its
    elements are neighbours. Raises ValueError when more axes are left than the kernels can do, or an array cannot be
    broadcast.
    """
    layouts = tuple((name, None if x is None else _layout(x)) for name, x in arrays.items())
    return _strided(shape, layouts, _layout(along))


def _layout(x: HeliosArray) -> _Layout:
    return _Layout(x.shape, x.strides, x.offset % 4)


@functools.lru_cache(maxsize=4096)
def _strided(shape: tuple[int, ...], arrays: tuple[tuple[str, _Layout | None], ...], along: _Layout) -> Strided:
    given = [layout for _, layout in arrays if layout is not None]
    strides_of = [along.strides, *(broadcast_strides(each.shape, each.strides, shape) for each in given)]
    axes = merge_axes(shape, strides_of) or [(1, (1,) * len(strides_of))]
    if len(axes) > AXES:
        raise ValueError(f"{len(axes)} axes with strides of their own are more than the kernels' {AXES}")
    axes.reverse()  # the innermost first
    wide = _four_at_a_time(axes, [along.place, *(each.place for each in given)])
    if wide:
        length, strides = axes[0]
        axes[0] = (length // 4, tuple(4 * stride for stride in strides))
    count = math.prod(length for length, _ in axes)
    lengths = [length for length, _ in axes]
    fields = {"count": count, **{f"length{axis}": _at(lengths, axis, 1) for axis in range(AXES - 1)}}
    constants = {"AXES": len(axes), "WIDTH": 4 if wide else 1}
    place = 0
    for name, layout in arrays:
        place += layout is not None
        strides = tuple(each[place] for _, each in axes) if layout is not None else ()
        fields |= {f"{name}_stride{axis}": _at(strides, axis, 0) for axis in range(AXES)}
        constants[f"{name.upper()}_KIND"] = (
            _NUMBER if layout is None else _SPREAD if wide and strides[0] == 0 else _ARRAY
        )
    return Strided(constants, fields, groups_for(count))


def _four_at_a_time(axes: Sequence[tuple[int, tuple[int, ...]]], places: Sequence[int]) -> bool:
    """Whether groups of four elements lie together in the first array, and together or in one place in the others."""
    length, inner = axes[0]
    if length % 4 or inner[0] != 1:
        return False
    for index, (place, stride) in enumerate(zip(places, inner, strict=True)):
        if stride == 0:
            continue
        if stride != 1 or place or any(strides[index] % 4 for _, strides in axes[1:]):
            return False
    return True


def _at(values: Sequence[int], index: int, otherwise: int) -> int:
    return values[index] if index < len(values) else otherwise


def number_bits(value: Any, integer: bool) -> int:
    """The 32 bits of a Python number as an integer or a float32."""
    if integer:
        return int(value) & 0xFFFFFFFF
    with np.errstate(over="ignore"):
        return int(np.float32(value).view(np.uint32))
