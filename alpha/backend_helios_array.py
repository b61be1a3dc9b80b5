"""Arrays of the Vulkan backend: where in device memory their elements lie, and the arithmetic of views.

Knows nothing about kernels; a view never touches the elements.
"""

from __future__ import annotations

import math
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

BFLOAT16 = np.dtype([("bfloat16", "<u2")])
"""The dtype of arrays of bfloat16, which numpy has none for; their values are float32 on the host."""


@dataclass(frozen=True)
class Element:
    """How an element is stored on the device, and the numpy dtype that an array of it reports."""

    name: str
    itemsize: int
    dtype: np.dtype[Any]
    stored: np.dtype[Any]


ELEMENTS = {
    each.name: each
    for each in (
        Element("f32", 4, np.dtype(np.float32), np.dtype("<f4")),
        Element("f16", 2, np.dtype(np.float16), np.dtype("<f2")),
        Element("bf16", 2, BFLOAT16, np.dtype("<u2")),
        Element("i32", 4, np.dtype(np.int32), np.dtype("<i4")),
        Element("u32", 4, np.dtype(np.uint16), np.dtype("<u4")),  # uint16 values, widened
        Element("b32", 4, np.dtype(np.bool_), np.dtype("<u4")),  # booleans as 0 and 1
    )
}
FLOATING = ("f32", "f16", "bf16")

_BY_DTYPE = {each.dtype: each for each in ELEMENTS.values()}


def element_of(dtype: npt.DTypeLike) -> str:
    """The element that stores a numpy dtype. Raises ValueError when the device has none, as for float64."""
    wanted = np.dtype(dtype)
    if wanted not in _BY_DTYPE:
        raise ValueError(f"the helios backend stores no {wanted.name}")
    return _BY_DTYPE[wanted].name


class Storage:
    """A range of bytes that arrays are views of.

    `address` is the device address, None until a recorded program has been planned. `pending` holds values that have
    not been uploaded yet; `mapped` is the host's view of memory that it can read, valid once `ready`, a value of the
    device's timeline, has been reached, unless `check` then raises an error. `release` is called when nothing refers to
    the storage any more.
    """

    __slots__ = ("__weakref__", "address", "check", "mapped", "nbytes", "pending", "ready", "release")

    def __init__(
        self,
        nbytes: int,
        address: int | None = None,
        release: Callable[[], None] | None = None,
        pending: npt.NDArray[Any] | None = None,
        mapped: memoryview | None = None,
        ready: int = 0,
        check: Callable[[], None] | None = None,
    ) -> None:
        self.nbytes = nbytes
        self.address = address
        self.release = release
        self.pending = pending
        self.mapped = mapped
        self.ready = ready
        self.check = check

    def __del__(self, is_finalizing: Callable[[], bool] = sys.is_finalizing) -> None:
        if self.release is not None and not is_finalizing():  # then the device is closed, and modules are gone
            self.release()


class Span(NamedTuple):
    """Bytes from `start` to before `end`; with a period only the first `width` bytes of each period from `start` on."""

    start: int
    end: int
    period: int = 0
    width: int = 0

    def meets(self, other: Span) -> bool:
        """Whether the two may have a byte in common."""
        if self.start >= other.end or other.start >= self.end:
            return False
        if not self.period or self.period != other.period:
            return True
        ahead = (other.start - self.start) % self.period
        return ahead < self.width or self.period - ahead < other.width


@dataclass(frozen=True, eq=False)
class HeliosArray:
    """A strided view of a storage; `offset` and `strides` count elements."""

    storage: Storage
    shape: tuple[int, ...]
    strides: tuple[int, ...]
    element: str
    offset: int = 0

    @property
    def dtype(self) -> np.dtype[Any]:
        return ELEMENTS[self.element].dtype

    @property
    def itemsize(self) -> int:
        return ELEMENTS[self.element].itemsize

    @property
    def size(self) -> int:
        return math.prod(self.shape)

    @property
    def nbytes(self) -> int:
        """Bytes of the elements, whatever lies between them."""
        return self.size * self.itemsize

    @property
    def address(self) -> int:
        """The device address of the first element."""
        assert self.storage.address is not None, "the program that this array belongs to has not been planned"
        return self.storage.address + self.offset * self.itemsize

    @property
    def is_contiguous(self) -> bool:
        """Whether the elements lie in row-major order without gaps."""
        expected = 1
        for length, stride in zip(reversed(self.shape), reversed(self.strides), strict=True):
            if length != 1 and stride != expected:
                return self.size == 0
            expected *= length
        return True

    @property
    def byte_range(self) -> Span:
        """The device addresses that the elements may occupy."""
        assert self.storage.address is not None, "the program that this array belongs to has not been planned"
        start, end, period, width = self.span
        return Span(self.storage.address + start, self.storage.address + end, period, width)

    @property
    def span(self) -> Span:
        """The same, counted from the beginning of the storage."""
        start = self.offset * self.itemsize
        if not self.size:
            return Span(start, start)
        reach = sum((length - 1) * stride for length, stride in zip(self.shape, self.strides, strict=True))
        period, width = self._lines()
        return Span(start, start + (reach + 1) * self.itemsize, period * self.itemsize, width * self.itemsize)

    def _lines(self) -> tuple[int, int]:
        """When the elements are lines at equal distances, that distance and the length of a line, otherwise zeros."""
        axes = [axis for axis in zip(self.shape, self.strides, strict=True) if axis[0] != 1]
        width = 1
        while axes and axes[-1][1] == width:
            width *= axes.pop()[0]
        period = axes[-1][1] if axes else 0
        if period < width or any(stride % period for _, stride in axes):
            return 0, 0
        return period, width

    def view(self, shape: Sequence[int], strides: Sequence[int], offset: int = 0) -> HeliosArray:
        """Another view of the same storage, `offset` elements further."""
        return HeliosArray(self.storage, tuple(shape), tuple(strides), self.element, self.offset + offset)


def contiguous_strides(shape: Sequence[int]) -> tuple[int, ...]:
    """Strides of a row-major array without gaps."""
    strides, step = [], 1
    for length in reversed(shape):
        strides.append(step)
        step *= max(1, length)
    return tuple(reversed(strides))


def transposed(x: HeliosArray, axes: Sequence[int]) -> HeliosArray:
    """The view with shape[i] = x.shape[axes[i]]."""
    return x.view([x.shape[axis] for axis in axes], [x.strides[axis] for axis in axes])


def narrowed(x: HeliosArray, axis: int, start: int, length: int) -> HeliosArray:
    """The view of the part from `start`, `length` long, along one axis."""
    axis %= len(x.shape)
    if start < 0 or length < 0 or start + length > x.shape[axis]:
        raise ValueError(f"no part [{start}, {start + length}) in an axis of length {x.shape[axis]}")
    shape = [*x.shape[:axis], length, *x.shape[axis + 1 :]]
    return x.view(shape, x.strides, start * x.strides[axis] if length else 0)


def broadcast_strides(shape: tuple[int, ...], strides: tuple[int, ...], to: Sequence[int]) -> tuple[int, ...]:
    """The strides of an array broadcast to the shape `to`. Raises ValueError when it cannot be."""
    added = len(to) - len(shape)
    if added < 0 or any(length not in (1, wanted) for length, wanted in zip(shape, to[added:], strict=True)):
        raise ValueError(f"shape {shape} cannot be broadcast to {tuple(to)}")
    kept = (
        stride if length == wanted else 0 for length, stride, wanted in zip(shape, strides, to[added:], strict=True)
    )
    return (*(0,) * added, *kept)


def expanded(x: HeliosArray, shape: Sequence[int]) -> HeliosArray:
    """The view broadcast to `shape`. Raises ValueError when it cannot be."""
    return x.view(shape, broadcast_strides(x.shape, x.strides, shape))


def reshaped(x: HeliosArray, shape: Sequence[int]) -> HeliosArray | None:
    """The view in another shape of the same size, or None when the elements would have to move."""
    shape = tuple(shape)
    if math.prod(shape) != x.size:
        raise ValueError(f"{x.size} elements cannot be reshaped to {shape}")
    if not x.size or x.is_contiguous:
        return x.view(shape, contiguous_strides(shape))
    merged = merge_axes(x.shape, [x.strides])
    strides: list[int] = []
    axes = iter([(length, stride) for length, (stride,) in merged])
    left, stride = 1, 0  # of the merged axis that is being divided
    for length in shape:
        if length == 1:
            strides.append(0)
            continue
        if left == 1:
            left, stride = next(axes)
        if left % length:
            return None
        left //= length
        strides.append(stride * left)
    return x.view(shape, strides)


def merge_axes(shape: Sequence[int], layouts: Sequence[Sequence[int]]) -> list[tuple[int, tuple[int, ...]]]:
    """Axes of several layouts of one shape, with neighbours merged that all of them lay out as one.

    Returns (length, stride in each layout) for each axis that is left; axes of length 1 are dropped.
    """
    merged: list[tuple[int, tuple[int, ...]]] = []
    for axis, length in enumerate(shape):
        strides = tuple(layout[axis] for layout in layouts)
        if length == 1:
            continue
        if merged and all(outer == inner * length for outer, inner in zip(merged[-1][1], strides, strict=True)):
            merged[-1] = (merged[-1][0] * length, strides)
        else:
            merged.append((length, strides))
    return merged
