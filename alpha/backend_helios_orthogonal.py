"""Newton-Schulz iteration on the Vulkan backend: in 16 bits, with nothing between its products.

With a + b G + c G^2 = c H^2 + d, where H = G + b / 2c and d = a - b^2 / 4c, the polynomial of a Gram matrix G is two
products, each with a multiple of the identity added to it. Matrices of all shapes go through the steps together, so
that small products share rounds, and are read and written where they lie, as few strided arrays.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from alpha import orthogonal
from alpha.backend_helios_array import HeliosArray
from alpha.backend_helios_matmul import Epilogue, Products
from alpha.orthogonal import COEFFICIENTS, EPSILON, STEPS

STACK = 1 << 24
"""Elements of the matrices of one product, at most, unless a single one has more."""


@dataclass(frozen=True)
class _Stack:
    """Matrices of one shape: where they lie, in arrays [N, M, R, C], and together in 16 bits [sum of N M, R, C]."""

    places: list[HeliosArray]
    matrices: HeliosArray

    @property
    def is_tall(self) -> bool:
        return self.matrices.shape[1] > self.matrices.shape[2]


class Orthogonal(Products):
    """See `Backend.orthogonalize`."""

    def orthogonalize(self, matrices: Sequence[HeliosArray], size: float) -> None:
        if not self.has_halves or any(each.element != "f32" for each in matrices):
            super().orthogonalize(matrices, size)
            return
        a, b, c = COEFFICIENTS
        stacks = [self._stacked(places) for places in orthogonal.stacks(_places(matrices), STACK)]
        found = [stack.matrices for stack in stacks]
        for _ in range(STEPS):
            grams = [self._gram(x, stack.is_tall, b / (2 * c)) for x, stack in zip(found, stacks, strict=True)]
            squares = [self._halves(gram, gram, c, a - b * b / (4 * c)) for gram in grams]
            found = [
                self._halves(x, square) if stack.is_tall else self._halves(square, x)
                for x, square, stack in zip(found, squares, stacks, strict=True)
            ]
        for x, stack in zip(found, stacks, strict=True):
            start, factor = 0, size * math.sqrt(max(x.shape[1:]))
            for place in stack.places:
                count = math.prod(place.shape[:2])
                self.write("multiply", place, self.reshape(self.narrow(x, 0, start, count), place.shape), factor)
                start += count

    def _stacked(self, places: list[HeliosArray]) -> _Stack:
        """Matrices of one shape, each divided by its norm."""
        rows, columns = places[0].shape[2:]
        counts = [math.prod(place.shape[:2]) for place in places]
        together = self.new((sum(counts), rows, columns), self.precision)
        for place, count, end in zip(places, counts, itertools.accumulate(counts), strict=True):
            norm = self.add(self.sqrt(self.squares(place, (2, 3), keep=True)), EPSILON)
            target = self.reshape(self.narrow(together, 0, end - count, count), place.shape)
            self.write("divide", target, place, norm)
        return _Stack(places, together)

    def _gram(self, x: HeliosArray, is_tall: bool, diagonal: float) -> HeliosArray:
        other = self.transpose(x, (0, 2, 1))
        return self._halves(other, x, 1.0, diagonal) if is_tall else self._halves(x, other, 1.0, diagonal)

    def _halves(self, a: HeliosArray, b: HeliosArray, scale: float = 1.0, diagonal: float = 0.0) -> HeliosArray:
        """scale a b + diagonal, in 16 bits."""
        c = self.new((a.shape[0], a.shape[1], b.shape[2]), self.precision)
        return self.product(a, b, c, Epilogue(diagonal=diagonal), scale)


def _places(matrices: Sequence[HeliosArray]) -> Iterator[HeliosArray]:
    """Arrays [N, M, R, C] of all the matrices, of at most STACK elements unless a single matrix has more."""
    alike: dict[tuple[object, ...], list[HeliosArray]] = {}
    for each in matrices:
        alike.setdefault((each.storage, each.shape, each.strides), []).append(each)
    for group in alike.values():
        yield from _evenly_apart(group, max(1, STACK // math.prod(group[0].shape)))


def _evenly_apart(group: Sequence[HeliosArray], most: int) -> list[HeliosArray]:
    """Matrices of one storage, shape and strides as arrays [N, M, R, C] of at most so many matrices."""
    starts = [each.offset for each in group]
    inner = _progression(starts[:most])
    outer = 1
    heads = starts[::inner]
    while (
        (outer + 1) * inner <= min(most, len(starts))
        and heads[outer] - heads[0] == outer * (heads[1] - heads[0])
        and all(starts[outer * inner + i] - heads[outer] == starts[i] - heads[0] for i in range(inner))
    ):
        outer += 1
    first, count = group[0], outer * inner
    strides = (heads[1] - heads[0] if outer > 1 else 0), (starts[1] - starts[0] if inner > 1 else 0)
    array = HeliosArray(
        first.storage, (outer, inner, *first.shape), (*strides, *first.strides), first.element, first.offset
    )
    return [array, *(_evenly_apart(group[count:], most) if count < len(group) else [])]


def _progression(numbers: Sequence[int]) -> int:
    """How many of the first numbers are evenly apart."""
    count = min(2, len(numbers))
    while count < len(numbers) and numbers[count] - numbers[count - 1] == numbers[1] - numbers[0]:
        count += 1
    return count
