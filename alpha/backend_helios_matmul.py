"""Matrix products of the Vulkan backend, with all that can ride along in one, and operands rounded to 16 bits.

A product takes its operands as they lie, transposed or not, in float32 or in 16 bits; anything else is first made
contiguous on the device. How it is divided is decided in `backend_helios_tiles`.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from alpha.activation import activation_named
from alpha.backend import INDEPENDENT_ROWS
from alpha.backend_helios_array import HeliosArray
from alpha.backend_helios_device import MOST_GROUPS
from alpha.backend_helios_layout import THREADS, groups_for
from alpha.backend_helios_primitives import HeliosPrimitives
from alpha.backend_helios_tiles import (
    PROMPT_ROWS,
    Division,
    Few,
    Hardware,
    Problem,
    Tile,
    choose,
    few_of,
    few_part,
    threads,
    workgroups,
)
from alpha.backend_helios_tuning import Tuning

_HALF_OPERATIONS = 2e10
"""Products of more operations read operands in 16 bits: then rounding them first, once, saves more than it costs."""

_REDUCE_THREADS = 128

SWAPPING_ROWS = 8192
"""Products of so many rows gain more by a weight that lies along the result than its copy costs."""

TRANSPOSED = 64
"""Rows and columns that a workgroup transposes, TILE in kernels/transpose.comp."""

MOST_ASKED = 16
"""Words of the right operand that a thread of a prompt's product asks for at once; where there are more, none is."""


@dataclass(frozen=True)
class Epilogue:
    """What becomes of the sums: activation(scale * sum + bias) + residual; `preactivation` is to hold what the
    activation is of.

    `diagonal` times the identity is another residual, of square results.

    What the kernels multiply results by, their `factor`, is left to `backend_helios_folding.fold_gradients`.
    """

    bias: HeliosArray | None = None
    activation: str = ""
    preactivation: HeliosArray | None = None
    residual: HeliosArray | None = None
    diagonal: float = 0.0

    def constants(self, columns: int, result: HeliosArray) -> dict[str, int | float]:
        """The specialization constants that all kernels with this epilogue have."""
        arrays = [each for each in (self.bias, self.residual, self.preactivation, result) if each is not None]
        halves = [each for each in (result, self.preactivation) if each is not None and each.itemsize == 2]
        vector = 4 if columns % 4 == 0 and all(each.offset % 4 == 0 for each in arrays) else 0
        if vector and result.itemsize == 2 and columns % 8 == 0 and all(each.offset % 8 == 0 for each in halves):
            vector = 8
        constants: dict[str, int | float] = {
            "HAS_BIAS": int(self.bias is not None),
            "ACTIVATION": 1 + activation_named(self.activation).number if self.activation else 0,
            "HAS_PREACTIVATION": int(self.preactivation is not None),
            "HAS_RESIDUAL": int(self.residual is not None),
            "C_VECTOR": vector,
            "C_HALF": int(result.itemsize == 2),
        }
        return constants | {"HAS_RESIDUAL": 2, "DIAGONAL": self.diagonal} if self.diagonal else constants

    def part(self, shape: tuple[int, int], first: int) -> Epilogue:
        """The same for the part of the result that begins at element `first` and has this shape."""
        preactivation, residual = (
            None if each is None else each.view(shape, (shape[1], 1), first)
            for each in (self.preactivation, self.residual)
        )
        return Epilogue(self.bias, self.activation, preactivation, residual, self.diagonal)

    def arguments(self, result: HeliosArray) -> dict[str, HeliosArray | int | None]:
        """The kernels' fields; keys and values are put by `backend_helios_inference.fold_puts`."""
        arrays = {"bias": self.bias, "residual": self.residual, "factor": None, "c": result}
        return {**arrays, "preactivation": self.preactivation, "put_rows": 0}


NOTHING = Epilogue()


@dataclass(frozen=True)
class Operand:
    """An operand whose elements are neighbours along its last axis, or, `swapped`, along its last but one; `stride` is
    the distance along the other. Its batch `inner` i + j begins at i `outer_stride` + j `inner_stride`."""

    array: HeliosArray
    swapped: bool
    stride: int
    outer_stride: int
    inner_stride: int

    def from_batch(self, outer: int, inner: int) -> Operand:
        """The operand without the batches before this one."""
        offset = outer * self.outer_stride + inner * self.inner_stride
        return dataclasses.replace(self, array=self.array.view(self.array.shape, self.array.strides, offset))

    def stand_in(self, backend: HeliosPrimitives, batches: tuple[int, int], rows: int, columns: int) -> Operand:
        """A new operand that lies as this one does, of so many batches of [rows, columns]."""
        lines, length = (columns, rows) if self.swapped else (rows, columns)
        offset = self.array.offset % (16 // self.array.itemsize)
        end = offset + (lines - 1) * self.stride + length
        end += (batches[0] - 1) * self.outer_stride + (batches[1] - 1) * self.inner_stride
        new = backend.new((end,), self.array.element)
        return dataclasses.replace(self, array=new.view(self.array.shape, self.array.strides, offset))

    def can_read(self, elements: int, length: int) -> bool:
        """Whether `elements` neighbours can be read at once, everywhere; `length` is how many there are in a line."""
        places = (self.array.offset, self.stride, self.outer_stride, self.inner_stride, length)
        return all(place % elements == 0 for place in places)


def _is_line(x: HeliosArray, axis: int) -> bool:
    return x.strides[axis] == 1 or x.shape[axis] == 1


def _operand(x: HeliosArray, outer_stride: int, inner_stride: int) -> Operand:
    swapped = not _is_line(x, -1)
    return Operand(x, swapped, x.strides[-1 if swapped else -2], outer_stride, inner_stride)


def _batch_axes(batch: Sequence[int], a: HeliosArray, b: HeliosArray) -> list[tuple[int, int, int]]:
    """(length, stride in a, stride in b) of the batch axes, neighbours made one where both operands allow it."""
    axes: list[tuple[int, int, int]] = []
    for axis in range(-len(batch), 0):
        length = batch[axis]
        if length == 1:
            continue
        a_stride, b_stride = (
            each.strides[axis - 2] if len(each.shape) >= 2 - axis and each.shape[axis - 2] != 1 else 0
            for each in (a, b)
        )
        if axes and axes[-1][1] == length * a_stride and axes[-1][2] == length * b_stride:
            length *= axes.pop()[0]
        axes.append((length, a_stride, b_stride))
    return axes


def _chunks(outer: int, inner: int) -> Iterator[tuple[int, int, int, int]]:
    """Start and count along both batch axes, of parts that a grid can number."""
    inner_count = min(inner, MOST_GROUPS)
    outer_count = min(outer, MOST_GROUPS // inner_count) if inner_count == inner else 1
    for i in range(0, outer, outer_count):
        for j in range(0, inner, inner_count):
            yield i, min(outer_count, outer - i), j, min(inner_count, inner - j)


class Products(HeliosPrimitives):
    """Matrix products; see `Backend` for what each of them means."""

    tuning: Tuning | None = None
    """Tiles measured on this device, where they are."""

    # --- products -----------------------------------------------------------------------------------------------------

    def matmul(self, a: HeliosArray, b: HeliosArray) -> HeliosArray:
        """a [..., M, K] @ b [..., K, N] -> [..., M, N], batches broadcast."""
        return self.product(a, b)

    def product(
        self,
        a: HeliosArray,
        b: HeliosArray,
        out: HeliosArray | None = None,
        epilogue: Epilogue = NOTHING,
        scale: float = 1.0,
        forced: Division | None = None,
        column_sums: HeliosArray | None = None,
        few_rows: bool = False,
        accompanied: bool = False,
    ) -> HeliosArray:
        """activation(scale * (a @ b) + bias) + residual, written to `out` when given, else to a new float32 array.

        `out`, the residual and the preactivation are contiguous and have the shape of the result; the residual may be
        `out` itself. `out` is float32 or of the precision's 16 bits. `forced` is a division to take instead of the
        chosen one; with `few_rows` a row's bits do not depend on how many there are. `column_sums` [N], for one product
        whose right operand is contiguous, becomes the sum of that operand's rows. `accompanied`: in a recorded program
        another product needs as little as this one does, and no result of it.
        """
        a, b = self._readable(a), self._readable(b)
        batch = np.broadcast_shapes(a.shape[:-2], b.shape[:-2])
        rows, depth, columns = a.shape[-2], a.shape[-1], b.shape[-1]
        result = self.new((*batch, rows, columns), "f32") if out is None else out
        if not result.size:
            return result
        axes = _batch_axes(batch, a, b)
        if len(axes) > 2:
            a, b = (self.contiguous(self.expand(each, (*batch, *each.shape[-2:]))) for each in (a, b))
            axes = _batch_axes(batch, a, b)
        if len(axes) == 1 and axes[0][2] == 0 and axes[0][1] == rows * a.strides[-2]:
            # All batches have one right operand, and the rows of one follow those of the other: one product does.
            axes, rows = [], rows * axes[0][0]
        (outer, a_outer, b_outer), (inner, a_inner, b_inner) = [(1, 0, 0)] * (2 - len(axes)) + axes
        left, right = _operand(a, a_outer, a_inner), _operand(b, b_outer, b_inner)
        device = self.hardware
        assert column_sums is None or (not axes and not right.swapped)
        for i, outer_count, j, inner_count in _chunks(outer, inner):
            problem = Problem(
                outer_count * inner_count, rows, columns, depth, 8 * a.itemsize, 8 * b.itemsize,
                left.can_read(16 // a.itemsize, rows if left.swapped else depth),
                right.can_read(16 // b.itemsize, depth if right.swapped else columns),
            )  # fmt: skip
            shape, first = (problem.batches * rows, columns), (i * inner + j) * rows * columns
            operands = left.from_batch(i, j), right.from_batch(i, j)
            run = Run(self, problem, inner_count, *operands, scale, result.element, device)
            part = few_part(depth, device) if few_rows else 0
            few = few_of(problem, device, part) if part and scale == 1.0 and not left.swapped else None
            if few is not None:
                run.few(few, result.view(shape, (columns, 1), first), epilogue.part(shape, first))
                continue
            division = forced or choose(problem, device, part, accompanied)
            # Sums of columns and of few rows have the bits of their tile, so those keep the estimate's.
            if self.tuning is not None and forced is None and not part and column_sums is None:
                division = self.tuning.division(run, device, division, self.is_tracing)
            self.say_choice(f"matrix product {problem} as {division}")
            run(result.view(shape, (columns, 1), first), epilogue.part(shape, first), column_sums, division)
        return result

    def tune(self) -> bool:
        return self.tuning is not None and self.tuning.measure(self)

    def _readable(self, x: HeliosArray) -> HeliosArray:
        """`x` as a kernel can read it: float32 or of the precision's 16 bits, neighbours along one matrix axis."""
        if x.element not in ("f32", self.precision):
            x = self.cast(x, np.float32)
        return x if _is_line(x, -1) or _is_line(x, -2) else self.contiguous(x)

    def product_variant(self, *arrays: HeliosArray) -> str:
        """The kernels' name for these storages of operands."""
        if self.precision == "f32":
            return "f32" if all(each.element == "f32" for each in arrays) else "f32_pieces"
        return "_".join([self.precision, *(str(8 * each.itemsize) for each in arrays)])

    def reduce_splits(
        self,
        sums: HeliosArray,
        result: HeliosArray,
        epilogue: Epilogue,
        parts: HeliosArray | None,
        column_sums: HeliosArray | None,
    ) -> None:
        """result = activation(sum over the first axis of `sums`, in order, + bias) + residual; and that of `parts`."""
        columns = result.shape[-1]
        constants = epilogue.constants(columns, result) | {"THREADS": _REDUCE_THREADS}
        constants["HAS_SUMS"] = int(column_sums is not None)
        if column_sums is not None and column_sums.offset % 4:
            constants["C_VECTOR"] = 0
        count = result.size + (0 if column_sums is None else columns)
        workgroups = groups_for(count, _REDUCE_THREADS * (4 if constants["C_VECTOR"] else 1))
        self.dispatch(
            "matmul_reduce", self.precision, workgroups, constants, sums=sums, **epilogue.arguments(result),
            column_sums=parts, b_sums=column_sums, relay=None, elements=result.size, columns=columns,
            splits=sums.shape[0],
        )  # fmt: skip

    # --- operands in 16 bits ------------------------------------------------------------------------------------------

    def rounded_operand(self, x: HeliosArray, problem: Problem) -> HeliosArray:
        """`x` in the precision's 16 bits, when that makes a product of this size faster, else `x` itself."""
        if not self.wants_halves(problem) or x.element != "f32" or not x.is_contiguous:
            return x
        return self.rounded_gradient(x)

    def rounded_weight(self, weight: HeliosArray, problem: Problem, training: bool) -> HeliosArray:
        """The same for a weight. In a recorded program whose products have many rows, all that lies in memory with it
        is rounded at once, and not again until something writes there."""
        many = training or problem.rows > INDEPENDENT_ROWS
        if not (many and self.is_tracing and self.has_halves and weight.element == "f32"):
            return self.rounded_operand(weight, problem)
        storage = weight.storage
        if storage.address is None:  # made by the program itself
            return self.rounded_operand(weight, problem)
        if storage not in self.derived:
            whole = HeliosArray(storage, (storage.nbytes // 4,), (1,), "f32")
            self.derived[storage] = self.rounded_gradient(whole), ""
        halves, _ = self.derived[storage]
        return HeliosArray(halves.storage, weight.shape, weight.strides, halves.element, weight.offset)

    def swapped_weight(self, weight: HeliosArray, rows: int) -> HeliosArray:
        """A weight [K, N] as the right operand [N, K] of a product of so many rows.

        Products read it faster where its elements are neighbours along the result than along the sum, so of 16-bit ones
        with many rows it is a copy.
        """
        swapped = self.transpose(weight, (1, 0))
        height, width = weight.shape
        if rows < SWAPPING_ROWS or weight.itemsize != 2 or weight.strides[1] != 1:
            return swapped
        copy = self.new(swapped.shape, weight.element)
        stride = weight.strides[0]
        vector = all(each % 8 == 0 for each in (height, width, stride, weight.offset))
        self.dispatch(
            "transpose", "bits16", (math.ceil(width / TRANSPOSED), math.ceil(height / TRANSPOSED), 1),
            {"THREADS": THREADS, "VECTOR": int(vector)},
            x=weight, y=copy, rows=height, columns=width, stride=stride,
        )  # fmt: skip
        return copy

    def wants_halves(self, problem: Problem) -> bool:
        """Whether rounding the operands makes a product of this size faster."""
        return self.precision != "f32" and problem.operations >= _HALF_OPERATIONS

    @property
    def has_halves(self) -> bool:
        """Whether layers write 16 bits for each other."""
        return self.activation_element != "f32"

    def rounded_gradient(
        self, dy: HeliosArray, preactivation: HeliosArray | None = None, slope: int = 0
    ) -> HeliosArray:
        """dy, times the activation's slope where there is one, rounded to the precision's element.

        `slope` is the activation's number, and with OF_RESULT added `preactivation` is its result.
        """
        dh = self.new(dy.shape, self.precision)
        vector = dy.size % 4 == 0 and all(each.offset % 4 == 0 for each in (dy, preactivation) if each is not None)
        number = 0 if preactivation is None else 1 + slope
        workgroups = groups_for(dy.size, THREADS * (4 if vector else 1))
        self.dispatch(
            "matmul_gradient", self.product_variant(dy), workgroups,
            {"THREADS": THREADS, "VECTOR": int(vector), "ACTIVATION": number},
            dy=dy, preactivation=preactivation, dh=dh, elements=dy.size,
        )  # fmt: skip
        return dh


@dataclass(frozen=True)
class Run:
    """A batch of products that fits a grid; `inner` is the length of its second batch axis, `element` the result's."""

    backend: Products
    problem: Problem
    inner: int
    left: Operand
    right: Operand
    scale: float
    element: str
    device: Hardware

    @property
    def key(self) -> str:
        """What decides which tile is the fastest, in words."""
        problem = self.problem
        operands = (self.left, problem.a_vectors), (self.right, problem.b_vectors)
        lie = ("".join(("nt"[each.swapped], "" if whole else " by one")) for each, whole in operands)
        return f"{self.backend.precision}: {problem}, {', '.join(lie)}, to {self.element}"

    def alone(self, division: Division) -> HeliosArray:
        """The product without epilogue, on new operands that lie as these do; their values are undefined."""
        problem, batches = self.problem, (self.problem.batches // self.inner, self.inner)
        left = self.left.stand_in(self.backend, batches, problem.rows, problem.depth)
        right = self.right.stand_in(self.backend, batches, problem.depth, problem.columns)
        result = self.backend.new((problem.batches * problem.rows, problem.columns), self.element)
        dataclasses.replace(self, left=left, right=right)(result, NOTHING, None, division)
        return result

    def __call__(
        self, result: HeliosArray, epilogue: Epilogue, column_sums: HeliosArray | None, division: Division
    ) -> None:
        if division.splits == 1:
            self._dispatch(division, result, epilogue, column_sums)
        else:
            sums = self.backend.new((division.splits, *result.shape), "f32")
            parts = None
            if column_sums is not None:
                parts = self.backend.new((division.splits, *column_sums.shape), "f32")
            self._dispatch(division, sums, NOTHING, parts)
            self.backend.reduce_splits(sums, result, epilogue, parts, column_sums)

    def few(self, few: Few, result: HeliosArray, epilogue: Epilogue) -> None:
        """The product of few rows in one dispatch."""
        problem, left, right, device = self.problem, self.left, self.right, self.device
        constants = epilogue.constants(problem.columns, result)
        is_matrix = device.fragment is not None
        unit = 16 // right.array.itemsize if is_matrix else 4
        a_unit = next((each for each in (8, 4) if left.can_read(each, problem.depth)), 0)
        edges = (problem.columns % few.workgroup_columns != 0) + 2 * (problem.depth % few.part != 0)
        constants |= {
            "THREADS": few.threads, "TEAM": few.team, "TILE_ROWS": few.rows, "TILE_N": few.columns,
            "TILE_K": few.k, "SLICE": few.slice, "LOADED": few.loaded, "PART": few.part, "PARTS": few.parts,
            "ALONE": int(few.alone), "BLOCKS": int(few.in_blocks),
            "B_ALONG_K": int(right.swapped), "B_EDGES": edges,
            "A_VECTOR": a_unit if is_matrix and left.array.itemsize == 2 else min(4, a_unit),
            "B_VECTOR": int(right.can_read(unit, problem.depth if right.swapped else problem.columns)),
            "C_VECTOR": min(4, constants["C_VECTOR"]),
        }  # fmt: skip
        variant = self.backend.product_variant(left.array, right.array)
        if is_matrix:
            constants |= dict(zip(("FRAGMENT_M", "FRAGMENT_N", "FRAGMENT_K"), device.fragment or (), strict=True))
            variant = f"matrix_{variant}"
        self.backend.say_choice(f"matrix product {problem} in {few.parts} parts of one workgroup")
        self.backend.dispatch(
            "matmul_few", variant, few.workgroups(problem, device), constants, problem.operations,
            a=left.array, b=right.array, **epilogue.arguments(result), norm_weight=None, norm_bias=None,
            statistics=None, b_sums=None, relay=None,
            rows=problem.rows, columns=problem.columns, depth=problem.depth, a_stride=left.stride,
            b_stride=right.stride, parts=0,
        )  # fmt: skip

    def _dispatch(
        self,
        division: Division,
        result: HeliosArray,
        epilogue: Epilogue,
        column_sums: HeliosArray | None,
    ) -> None:
        problem, tile, left, right, device = self.problem, division.tile, self.left, self.right, self.device
        a_length = problem.rows if left.swapped else problem.depth
        b_length, b_lines = problem.columns, problem.depth
        if right.swapped:
            b_length, b_lines = b_lines, b_length
        a_unit, b_unit = (4 if tile.kernel == "matmul_tiled" else 16 // each.array.itemsize for each in (left, right))
        edges = (problem.rows % tile.m != 0) + 2 * (problem.columns % tile.n != 0) + 4 * (problem.depth % tile.k != 0)
        constants = epilogue.constants(problem.columns, result) | {
            "EDGES": edges, "THREADS": threads(tile, device), "TILE_M": tile.m, "TILE_N": tile.n, "TILE_K": tile.k,
            "A_ALONG_M": int(left.swapped), "B_ALONG_K": int(right.swapped), "HAS_SUMS": int(column_sums is not None),
            "A_VECTOR": int(left.can_read(a_unit, a_length)), "B_VECTOR": int(right.can_read(b_unit, b_length)),
            "PART_STEPS": division.part // tile.k,
        }  # fmt: skip
        if tile.kernel == "matmul_tiled":
            constants |= {"GROUPS_M": tile.down, "GROUPS_N": tile.across}
        else:
            constants |= _matrix_constants(tile, device)
        variant = self.backend.product_variant(left.array, right.array)
        grid = workgroups(division, problem, device)
        if division.part and problem.rows >= PROMPT_ROWS and tile.kernel != "matmul_tiled":
            sectors = ((b_lines - 1) * right.stride + b_length) * right.array.itemsize // 32
            asked = math.ceil(sectors / (grid[0] * constants["THREADS"]))
            is_aligned = right.array.offset * right.array.itemsize % 4 == 0
            constants["ASK"] = asked if is_aligned and asked <= MOST_ASKED else 0
        self.backend.dispatch(
            tile.kernel, variant, grid, constants, problem.operations, a=left.array, b=right.array,
            **epilogue.arguments(result), b_sums=column_sums, relay=None, rows=problem.rows, columns=problem.columns,
            depth=problem.depth, a_stride=left.stride, b_stride=right.stride, a_outer=left.outer_stride,
            a_inner=left.inner_stride, b_outer=right.outer_stride, b_inner=right.inner_stride, inner=self.inner,
            split_depth=division.split_depth, splits=division.splits, scale=self.scale,
        )  # fmt: skip


def _matrix_constants(tile: Tile, device: Hardware) -> dict[str, int]:
    """The constants of matmul_matrix that matmul_tiled has not."""
    assert device.fragment is not None
    m, n, k = device.fragment
    return {
        "SUBGROUP_SIZE": device.subgroup, "SUBGROUPS_M": tile.down, "SUBGROUPS_N": tile.across, "FRAGMENT_M": m,
        "FRAGMENT_N": n, "FRAGMENT_K": k,
    }  # fmt: skip
