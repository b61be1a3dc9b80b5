"""How the Vulkan backend's kernels see an array: as rows in a strided array, and as vectors of neighbours.

Knows nothing about any one kernel.
"""

from __future__ import annotations

from dataclasses import dataclass

from alpha.backend_helios_array import HeliosArray, merge_axes
from alpha.backend_helios_core import HeliosCore

MOST_GROUPS = 65535
"""Workgroups along one axis of a dispatch that every device allows."""

THREADS = 256
"""Invocations of a workgroup that every device allows in practice."""

VECTOR = 4


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


def rows_of(backend: HeliosCore, x: HeliosArray) -> Rows:
    """The rows of `x`, or of a copy when they cannot be addressed where they are."""
    axes = merge_axes(x.shape[:-1], [x.strides[:-1]])
    if len(axes) > 2 or (x.shape[-1] != 1 and x.strides[-1] != 1):
        return rows_of(backend, backend.contiguous(x))
    (outer, (outer_stride,)), (inner, (inner_stride,)) = [(1, (0,))] * (2 - len(axes)) + axes
    return Rows(x, outer * inner, x.shape[-1], max(1, inner), outer_stride, inner_stride)


def vector_of(*arrays: HeliosArray | None, multiples: tuple[int, ...] = ()) -> int:
    """4 when arrays start at multiples of four elements and the numbers (widths, strides) are multiples of 4, else 1.

    A storage starts at a multiple of 256 bytes.
    """
    starts = (array.offset for array in arrays if array is not None)
    return 1 if any(number % VECTOR for number in (*starts, *multiples)) else VECTOR


def groups_for(items: int, per_group: int) -> int:
    """Workgroups for so many items; when there are not enough, each takes several turns."""
    return min(MOST_GROUPS, -(-items // per_group))


def lanes_for(backend: HeliosCore, items: int, most: int) -> int:
    """Threads that share a row of `items` vectors: no more than a subgroup unless each would then have over `most`."""
    lanes = min(power_of_two(items), backend.device_info.subgroup_size)
    while lanes * most < items and lanes < THREADS:
        lanes *= 2
    return lanes


def power_of_two(number: int) -> int:
    """The smallest power of two that is not below `number`."""
    return 1 << max(0, number - 1).bit_length()
