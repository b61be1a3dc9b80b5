"""Large float32 products on matrix units, whose operands are two pieces of float16 each (Ootomo and Yokota 2022).

A product of float32 numbers becomes three of float16, added up in float32: kernels/pieces.glsl says of what. An operand
is divided into pieces in two passes over it, so this is for products that are large enough, and whose rows may depend
on how large others are: those of training and of whole batches.
"""

from __future__ import annotations

import dataclasses
import functools
import itertools
import sys
from collections.abc import Sequence
from dataclasses import dataclass

from alpha import environment
from alpha.backend_helios_array import HeliosArray, contiguous_strides
from alpha.backend_helios_device import DeviceInfo
from alpha.backend_helios_layout import THREADS, groups_for, vector_of
from alpha.backend_helios_matmul import NOTHING, Epilogue, Operand, Products, Run
from alpha.backend_helios_tiles import Division, Hardware, Problem, choose, hardware, tiles_for

PIECES = 2
"""Of each number."""

MEASURED = ("H100", "H200")
"""In the names of devices on which matrix units are known to be so much faster that three products are."""

SAVED_SECONDS = 1.0e-14
"""For each operation that matrix units do instead: on an H200 44 TFLOP/s become 70 to 85."""

ELEMENT_SECONDS, PASSES_SECONDS = 4e-12, 1.2e-5
"""What it takes to divide operands into pieces: for each element 12 bytes at 3 TB/s, and the rounds of two passes."""

LEAST_DEPTH = 64
"""Sums of fewer products can be less exact than float32's, as all products have an error of their own."""

MOST_ELEMENTS = 1 << 30
"""Of an operand in pieces, whose numbers have 32 bits in the kernels."""

PASS_GROUPS = 1024
"""Workgroups of a pass, at most; each of the second reads what all of the first found."""

_UNIT = 8
"""Elements of 16 bits that are read at a time; where lines are no multiple of it, nothing is won."""


@dataclass(frozen=True)
class Pieces:
    """A matrix [rows, columns] in pieces: in `stored` piece 0 of each row is before its piece 1, and behind all rows is
    the exponent, which is that of the largest of `magnitudes`. `swapped`: it is the transposed of that."""

    stored: HeliosArray
    magnitudes: HeliosArray
    rows: int
    columns: int
    swapped: bool = False

    @property
    def shape(self) -> tuple[int, ...]:
        return (self.columns, self.rows) if self.swapped else (self.rows, self.columns)

    @property
    def transposed(self) -> Pieces:
        return dataclasses.replace(self, swapped=not self.swapped)

    @property
    def operand(self) -> Operand:
        """As kernels find it, with the places of piece 1 and of the exponent instead of strides of batches."""
        columns = self.columns
        return Operand(self.stored, self.swapped, 2 * columns, columns, 2 * self.rows * columns)


Factor = HeliosArray | Pieces
"""Either operand of a product."""


def units_for(info: DeviceInfo) -> Hardware | None:
    """The matrix units of a device that multiply pieces; None where it has none, or is to do without: ALPHA_SPLIT."""
    how = environment.word("ALPHA_SPLIT")
    if how == "off" or (how == "auto" and not any(each in info.name for each in MEASURED)):
        return None
    found = hardware(info, "f16")
    has_tiles = found.fragment is not None and tiles_for(Problem(1, 1, 1, 1, 16, 16, pieces=PIECES), found)
    if not has_tiles and how == "on":
        print(
            f"helios: ALPHA_SPLIT is on, but {info.name} has no matrix units that multiply float16; float32 products "
            "are computed without.", file=sys.stderr,
        )  # fmt: skip
    return found if has_tiles else None


class PieceProducts(Products):
    """Matrix products, of operands in pieces where that is faster."""

    @functools.cached_property
    def units(self) -> Hardware | None:
        """The matrix units that multiply pieces; None where float32 products are to do without."""
        return units_for(self.device_info) if self.precision == "f32" else None

    def wants_pieces(self, problem: Problem) -> bool:
        """Whether a product is faster with operands in pieces."""
        return self.units is not None and pays(problem)

    def in_pieces(self, problem: Problem, *operands: Factor) -> tuple[Factor, ...]:
        """The operands in pieces where that makes a product such as `problem` faster, else as they are."""
        if not self.wants_pieces(problem):
            return operands
        return self.divided(*operands)

    def divided(self, *operands: Factor, magnitudes: Sequence[HeliosArray | None] = ()) -> tuple[Pieces, ...]:
        """The operands [rows, columns] in pieces, all of them in two rounds, or in one where their `magnitudes` are
        known from when they were divided before."""
        prepared: list[tuple[HeliosArray, HeliosArray] | Pieces] = []
        for operand, known in itertools.zip_longest(operands, magnitudes):
            if isinstance(operand, Pieces):
                prepared.append(operand)
            else:
                x = self.contiguous(self._readable(operand))
                prepared.append((x, self._magnitudes(x) if known is None else known))
        return tuple(each if isinstance(each, Pieces) else self._divided(*each) for each in prepared)

    def _magnitudes(self, x: HeliosArray) -> HeliosArray:
        """The largest magnitudes of parts of a contiguous array."""
        vector = vector_of(x)
        parts = self.new((min(PASS_GROUPS, groups_for(x.size, THREADS * vector)),), "i32")
        constants = {"THREADS": THREADS, "VECTOR": vector}
        self.dispatch("largest_magnitude", "f32", parts.size, constants, x=x, parts=parts, count=x.size)
        return parts

    def _divided(self, x: HeliosArray, magnitudes: HeliosArray) -> Pieces:
        rows, columns = x.shape
        stored = self.new((2 * x.size + 2,), "f16")
        both = stored.view((rows, 2, columns), contiguous_strides((rows, 2, columns)))
        exponent = HeliosArray(stored.storage, (1,), (1,), "i32", x.size)
        vector = vector_of(x, multiples=(columns,))
        groups = min(PASS_GROUPS, groups_for(x.size, THREADS * vector))
        self.dispatch(
            "pieces", "f32", groups, {"THREADS": THREADS, "VECTOR": vector}, x=x, parts=magnitudes, y=both,
            exponent=exponent,
            rows=rows, columns=columns, part_count=magnitudes.size,
        )  # fmt: skip
        return Pieces(stored, magnitudes, rows, columns)

    def swapped(self, x: Factor) -> Factor:
        """The transposed of a matrix."""
        return x.transposed if isinstance(x, Pieces) else self.transpose(x, (1, 0))

    def swapped_factor(self, weight: Factor, rows: int) -> Factor:
        """A weight as `swapped_weight` has it; pieces are read as fast either way."""
        return weight.transposed if isinstance(weight, Pieces) else self.swapped_weight(weight, rows)

    def product(
        self,
        a: Factor,
        b: Factor,
        out: HeliosArray | None = None,
        epilogue: Epilogue = NOTHING,
        scale: float = 1.0,
        forced: Division | None = None,
        column_sums: HeliosArray | None = None,
        few_rows: bool = False,
        accompanied: bool = False,
    ) -> HeliosArray:
        """As `Products.product`; either both operands are in pieces, or none is."""
        if isinstance(a, HeliosArray) and isinstance(b, HeliosArray):
            return super().product(a, b, out, epilogue, scale, forced, column_sums, few_rows, accompanied)
        assert isinstance(a, Pieces) and isinstance(b, Pieces) and self.units is not None
        (rows, depth), columns = a.shape, b.shape[1]
        result = self.new((rows, columns), "f32") if out is None else out
        left, right = a.operand, b.operand
        problem = Problem(
            1, rows, columns, depth, 16, 16, left.can_read(_UNIT, rows if left.swapped else depth),
            right.can_read(_UNIT, depth if right.swapped else columns), PIECES,
        )  # fmt: skip
        division = forced or choose(problem, self.units, accompanied=accompanied)
        self.say_choice(f"matrix product {problem} as {division}")
        run = Run(self, problem, 1, left, right, scale, result.element, self.units)
        run(result.view((rows, columns), (columns, 1)), epilogue, column_sums, division)
        return result


def pays(problem: Problem) -> bool:
    """Whether matrix units save more of a product than it takes to divide its operands into pieces."""
    if problem.batches != 1 or any(each % _UNIT for each in (problem.rows, problem.columns, problem.depth)):
        return False
    if problem.depth < LEAST_DEPTH:
        return False
    lengths = problem.rows * problem.depth, problem.depth * problem.columns
    takes = ELEMENT_SECONDS * sum(lengths) + PASSES_SECONDS
    return max(lengths) <= MOST_ELEMENTS and SAVED_SECONDS * problem.operations > takes
