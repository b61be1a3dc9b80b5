"""The primitive operations on the Vulkan backend, but for matrix products.

Elementwise operations take arrays with any strides; the others copy what they cannot read as it lies. Sums have an
order that depends only on shapes and the device. Sums of rows by id use no floating-point atomics: a stable radix sort
of the ids puts the rows of each id together, in the order in which they stand, and each row of the result is summed in
that order.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from alpha.backend_helios_array import (
    ELEMENTS,
    FLOATING,
    HeliosArray,
    contiguous_strides,
    element_of,
    expanded,
    merge_axes,
    transposed,
)
from alpha.backend_helios_core import HeliosCore
from alpha.backend_helios_device import MOST_GROUPS
from alpha.backend_helios_layout import (
    AXES,
    ELEMENT_CODES,
    THREADS,
    groups_for,
    number_bits,
    power_of_two,
    strided,
    variant_for,
)
from alpha.backend_helios_planner import Dispatch
from alpha.backend_primitives import RandomKey

HeliosOperand = HeliosArray | float

ELEMENTWISE = (
    *("copy", "add", "subtract", "multiply", "divide", "maximum", "minimum", "greater", "equal", "logical_and"),
    *("isfinite", "exp", "log", "sqrt", "tanh", "erf", "sign", "absolute"),
)
"""In the order of kernels/operations.glsl."""

INVOCATIONS = 1 << 16
"""About how many invocations keep a device busy; a reduction with fewer results divides its terms among more."""

FEWEST_TERMS = 64
"""Terms of each result that are worth an invocation of their own."""

MOST_CHUNKS = 1024

DIGIT_BITS = 8
DIGITS = 1 << DIGIT_BITS
BLOCK = 512
"""Ids that one workgroup sorts."""

FEW_IDS, FEW_ROWS = 4096, 2048
"""With no more than these, looking through all ids for every row takes less time than sorting them."""

MANY_SUMMED, SUMMED_UNITS = 64, 32
"""Where so many rows are added up to one, a workgroup has so many of its units, else all of them: sums are few."""


class HeliosPrimitives(HeliosCore):
    """Arithmetic, reductions, indexing and random bits."""

    # --- memory -------------------------------------------------------------------------------------------------------

    def copy_dispatch(self, target: HeliosArray, source: HeliosArray) -> Dispatch:
        return dataclasses.replace(self._elementwise("copy", target, source), is_copy=True)

    def fill(self, target: HeliosArray, value: float) -> None:
        self.write("copy", target, value)

    def copy_into(self, target: HeliosArray, source: HeliosArray) -> None:
        same = (target.shape, target.element) == (source.shape, source.element)
        if same and target.size and _axes_left(target, [source]) <= AXES:
            self._add(self.copy_dispatch(target, source))
        else:
            self.write("copy", target, source)

    def add_into(self, target: HeliosArray, source: HeliosArray) -> None:
        self.write("add", target, target, source)

    def concatenate(self, parts: Sequence[HeliosArray], axis: int) -> HeliosArray:
        first = parts[0]
        axis %= len(first.shape)
        length = sum(part.shape[axis] for part in parts)
        shape = (*first.shape[:axis], length, *first.shape[axis + 1 :])
        if _are_neighbours(parts, axis):
            return first.view(shape, first.strides)
        whole = self.new(shape, first.element)
        start = 0
        for part in parts:
            self.copy_into(self.narrow(whole, axis, start, part.shape[axis]), part)
            start += part.shape[axis]
        return whole

    # --- elementwise --------------------------------------------------------------------------------------------------

    def add(self, a: HeliosOperand, b: HeliosOperand) -> HeliosArray:
        return self._arithmetic("add", a, b)

    def subtract(self, a: HeliosOperand, b: HeliosOperand) -> HeliosArray:
        return self._arithmetic("subtract", a, b)

    def multiply(self, a: HeliosOperand, b: HeliosOperand) -> HeliosArray:
        return self._arithmetic("multiply", a, b)

    def divide(self, a: HeliosOperand, b: HeliosOperand) -> HeliosArray:
        return self._arithmetic("divide", a, b)

    def maximum(self, a: HeliosOperand, b: HeliosOperand) -> HeliosArray:
        return self._arithmetic("maximum", a, b)

    def minimum(self, a: HeliosOperand, b: HeliosOperand) -> HeliosArray:
        return self._arithmetic("minimum", a, b)

    def greater(self, a: HeliosOperand, b: HeliosOperand) -> HeliosArray:
        return self._new_from("greater", "b32", a, b)

    def equal(self, a: HeliosOperand, b: HeliosOperand) -> HeliosArray:
        return self._new_from("equal", "b32", a, b)

    def isfinite(self, x: HeliosArray) -> HeliosArray:
        return self._new_from("isfinite", "b32", x)

    def logical_and(self, a: HeliosArray, b: HeliosArray) -> HeliosArray:
        return self._new_from("logical_and", "b32", a, b)

    def exp(self, x: HeliosArray) -> HeliosArray:
        return self._arithmetic("exp", x)

    def log(self, x: HeliosArray) -> HeliosArray:
        return self._arithmetic("log", x)

    def sqrt(self, x: HeliosArray) -> HeliosArray:
        return self._arithmetic("sqrt", x)

    def tanh(self, x: HeliosArray) -> HeliosArray:
        return self._arithmetic("tanh", x)

    def erf(self, x: HeliosArray) -> HeliosArray:
        return self._arithmetic("erf", x)

    def sign(self, x: HeliosArray) -> HeliosArray:
        return self._arithmetic("sign", x)

    def absolute(self, x: HeliosArray) -> HeliosArray:
        return self._arithmetic("absolute", x)

    def cast(self, x: HeliosArray, dtype: npt.DTypeLike) -> HeliosArray:
        return self.cast_element(x, element_of(dtype))

    def cast_element(self, x: HeliosArray, element: str) -> HeliosArray:
        """`x` itself when its elements are stored in that way, otherwise a converted copy."""
        return x if x.element == element else self._new_from("copy", element, x)

    def where(self, condition: HeliosArray, a: HeliosOperand, b: HeliosOperand) -> HeliosArray:
        element = _result_element("where", a, b)
        shape = _broadcast_shape(condition, a, b)
        a, b = (self.cast_element(each, element) if isinstance(each, HeliosArray) else each for each in (a, b))
        y = self.new(shape, element)
        arrays = {"condition": condition, "a": _array(a), "b": _array(b)}
        layout = strided(shape, arrays, y)
        codes = {f"{name}_ELEMENT": ELEMENT_CODES[element] for name in "ABY"}
        numbers = {
            f"{name}_number": number_bits(0 if isinstance(each, HeliosArray) else each, element not in FLOATING)
            for name, each in (("a", a), ("b", b))
        }
        self.dispatch(
            "where", variant_for([element]), layout.groups, {**layout.constants, **codes}, **arrays, y=y,
            **layout.fields, **numbers,
        )  # fmt: skip
        return y

    def _arithmetic(self, operation: str, *operands: HeliosOperand) -> HeliosArray:
        return self._new_from(operation, _result_element(operation, *operands), *operands)

    def _new_from(self, operation: str, element: str, *operands: HeliosOperand) -> HeliosArray:
        y = self.new(_broadcast_shape(*operands), element)
        self.write(operation, y, *operands)
        return y

    def write(self, operation: str, target: HeliosArray, *operands: HeliosOperand) -> None:
        """target = operation(operands)."""
        if not target.size:
            return
        if _axes_left(target, operands) <= AXES:
            self._add(self._elementwise(operation, target, *operands))
            return
        operands = tuple(
            self.expand(each, target.shape) if isinstance(each, HeliosArray) else each for each in operands
        )
        for index in range(target.shape[0]):
            parts = [_row(each, index) if isinstance(each, HeliosArray) else each for each in operands]
            self.write(operation, _row(target, index), *parts)

    def _elementwise(self, operation: str, target: HeliosArray, *operands: HeliosOperand) -> Dispatch:
        """The dispatch of target = operation(operands), with one operand or two."""
        a, b = (*operands, 0.0)[:2]
        arrays = {"a": _array(a), "b": _array(b)}
        layout = strided(target.shape, {**arrays, "y": target}, target)
        integer = _is_integer(operands) and (operation != "copy" or target.element not in FLOATING)
        elements = {"A": a, "B": b, "Y": target}
        codes = {
            f"{name}_ELEMENT": ELEMENT_CODES[
                each.element if isinstance(each, HeliosArray) else "i32" if integer else "f32"
            ]
            for name, each in elements.items()
        }
        constants = {**layout.constants, **codes, "OPERATION": ELEMENTWISE.index(operation), "INTEGER": int(integer)}
        del constants["Y_KIND"]
        numbers = {
            f"{name}_number": 0 if isinstance(each, HeliosArray) else number_bits(each, integer)
            for name, each in (("a", a), ("b", b))
        }
        used = [each.element for each in (a, b, target) if isinstance(each, HeliosArray)]
        return self.make_dispatch(
            "elementwise", variant_for(used), layout.groups, constants, **arrays, y=target, **layout.fields, **numbers
        )

    # --- reductions ---------------------------------------------------------------------------------------------------

    def sum(self, x: HeliosArray, axes: Sequence[int], keep: bool = False) -> HeliosArray:
        return self._reduce(x, axes, keep)

    def squares(self, x: HeliosArray, axes: Sequence[int], keep: bool = False) -> HeliosArray:
        """The sum of the squares over `axes`."""
        return self._reduce(x, axes, keep, squared=True)

    def max(self, x: HeliosArray, axes: Sequence[int], keep: bool = False) -> HeliosArray:
        return self._reduce(x, axes, keep, maximum=True)

    def _reduce(
        self, x: HeliosArray, axes: Sequence[int], keep: bool, *, maximum: bool = False, squared: bool = False
    ) -> HeliosArray:
        """The sum, maximum or sum of squares of floating-point elements over `axes`. Raises TypeError for others."""
        if x.element not in FLOATING:
            raise TypeError(f"reductions take no elements of type {x.element}; cast them first")
        rank = len(x.shape)
        reduced = sorted({axis % rank for axis in axes})
        kept = [axis for axis in range(rank) if axis not in reduced]
        shape = tuple(1 if axis in reduced else x.shape[axis] for axis in range(rank) if keep or axis not in reduced)
        y = self.new(shape, x.element)
        terms = math.prod(x.shape[axis] for axis in reduced)
        if maximum and y.size and not terms:
            raise ValueError("there is no maximum of no elements")
        layout = _two_axes_each(x, kept, reduced)
        if layout is None:
            x = self.contiguous(transposed(x, [*kept, *reduced]))
            layout = [(y.size, terms)], [(terms, 1)]
        if y.size:
            self._dispatch_reduction(x, layout, y, maximum, squared)
        return y

    def _dispatch_reduction(
        self, x: HeliosArray, layout: tuple[_Axes, _Axes], y: HeliosArray, maximum: bool, squared: bool = False
    ) -> None:
        """Reduce into `y`, by way of partial results when there are many terms for each."""
        kept_axes, term_axes = layout
        kept, terms = (math.prod(length for length, _ in axes) for axes in layout)
        by_workgroup = kept < FEWEST_TERMS or term_axes[-1][1] <= kept_axes[-1][1]
        threads = min(THREADS, max(32, power_of_two(terms // 4))) if by_workgroup else THREADS
        invocations = kept * threads if by_workgroup else kept
        longest = FEWEST_TERMS * (threads if by_workgroup else 1)
        chunks = max(1, min(INVOCATIONS // max(1, invocations), terms // longest, MOST_CHUNKS))
        chunk = max(1, -(-terms // chunks))
        chunks = max(1, -(-terms // chunk))
        target = y if chunks == 1 else self.new((chunks, kept), "f32")
        constants = {
            "THREADS": threads,
            "MAXIMUM": int(maximum),
            "SQUARED": int(squared),
            "BY_WORKGROUP": int(by_workgroup),
            "KEPT_AXES": len(kept_axes),
            "TERM_AXES": len(term_axes),
            "X_ELEMENT": ELEMENT_CODES[x.element],
            "Y_ELEMENT": ELEMENT_CODES[target.element],
        }
        self.dispatch(
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
            self._dispatch_reduction(partial, ([(kept, strides[1])], [(chunks, strides[0])]), y, maximum)

    # --- indexing -----------------------------------------------------------------------------------------------------

    def gather_rows(self, table: HeliosArray, ids: HeliosArray) -> HeliosArray:
        """table [V, C], ids [...] -> [..., C]; an id out of range takes the nearest row."""
        rows, width = table.shape
        if table.strides[1] != 1 and width > 1:
            table = self.contiguous(table)
        y = self.new((*ids.shape, width), table.element)
        stride = table.strides[0]
        variant, unit = "bits16" if ELEMENTS[table.element].itemsize == 2 else "bits32", 1
        if variant == "bits32" and not (width % 4 or stride % 4 or table.offset % 4):
            variant, unit = "bits32x4", 4
        self.dispatch(
            "gather_rows", variant, groups_for(y.size // unit), {},
            table=table, ids=self.contiguous(ids), addend=None, y=y, relay=None, count=ids.size, width=width // unit,
            stride=stride // unit, rows=rows, addend_units=0,
        )  # fmt: skip
        return y

    def pick(self, x: HeliosArray, ids: HeliosArray) -> HeliosArray:
        """x [..., V], ids [...] -> [...]; an id out of range takes the nearest element."""
        leading = merge_axes(x.shape[:-1], [x.strides[:-1]])
        if len(leading) > 1:
            x = self.contiguous(x)
            leading = merge_axes(x.shape[:-1], [x.strides[:-1]])
        y = self.new(ids.shape, x.element)
        self.dispatch(
            "pick",
            "bits16" if x.itemsize == 2 else "bits32",
            groups_for(y.size),
            {},
            x=x,
            ids=self.contiguous(ids),
            y=y,
            count=y.size,
            width=x.shape[-1],
            row_stride=leading[0][1][0] if leading else 0,
            stride=x.strides[-1],
        )
        return y

    def scatter_add_rows(self, ids: HeliosArray, rows: HeliosArray, count: int) -> HeliosArray:
        """ids [...], float32 rows [..., C] -> [count, C]; an id out of range goes to the nearest row."""
        width = rows.shape[-1]
        y = self.new((count, width), "f32")
        if not ids.size:
            self.fill(y, 0)
            return y
        ids = self.contiguous(ids)
        rows = self.contiguous(self.cast(rows, np.float32))
        unit = 1 if width % 4 or rows.offset % 4 else 4
        units = width // unit
        columns = -(-units // -(-units // THREADS)) if units else 1
        variant = "f32" if unit == 1 else "f32x4"
        constants = {"COLUMNS": columns, "THREADS": THREADS // columns * columns}
        common = {"x": rows, "addend": None, "y": y, "width": units, "rows": count}
        if ids.size <= FEW_IDS and count <= FEW_ROWS:
            groups = count if width else 0
            constants["MOST"] = FEW_IDS
            self.dispatch("scatter_add_few_rows", variant, groups, constants, ids=ids, count=ids.size, **common)
            return y
        order = self._sort(ids, count)
        starts = self.new((count + 1,), "u32")
        self.dispatch(
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
        parts = 1
        if units > SUMMED_UNITS and ids.size >= MANY_SUMMED * count:
            parts, constants = -(-units // SUMMED_UNITS), {"COLUMNS": SUMMED_UNITS, "THREADS": THREADS}
        self.dispatch("scatter_add_rows", variant, (groups, parts, 1), constants, sorted=order, starts=starts, **common)
        return y

    def _sort(self, ids: HeliosArray, limit: int) -> HeliosArray:
        """The indices of contiguous int32 `ids` below `limit`, in the order of the ids; equal ones as they stand."""
        blocks = -(-ids.size // BLOCK)
        order = None
        for shift in range(0, max(1, (limit - 1).bit_length()), DIGIT_BITS):
            counts = self.new((DIGITS, blocks), "u32")
            placed = self.new((ids.size,), "u32")
            constants = {"BLOCK": BLOCK, "FIRST": int(order is None)}
            common = {"ids": ids, "order": order, "count": ids.size, "rows": limit, "shift": shift}
            self.dispatch("sort_count", "i32", blocks, constants, counts=counts, **common)
            self.dispatch("sort_place", "i32", blocks, constants, counts=counts, sorted=placed, **common)
            order = placed
        assert order is not None
        return order

    def random_uint16(self, shape: Sequence[int], key: RandomKey) -> HeliosArray:
        """Random uint16 integers, `rng.random_uint16` in row-major order."""
        count = math.prod(shape)
        y = self.new(shape, "u32")
        self.dispatch(
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


_Axes = list[tuple[int, int]]
"""Length and stride of each, the outermost first."""


def _two_axes_each(x: HeliosArray, kept: Sequence[int], reduced: Sequence[int]) -> tuple[_Axes, _Axes] | None:
    """The axes that are kept and those that are not, merged, if that leaves at most two of each."""
    merged = []
    for axes in (kept, reduced):
        pairs = merge_axes([x.shape[axis] for axis in axes], [[x.strides[axis] for axis in axes]])
        merged.append([(length, strides[0]) for length, strides in pairs] or [(1, 1)])
    return (merged[0], merged[1]) if max(map(len, merged)) <= 2 else None


def _array(operand: HeliosOperand) -> HeliosArray | None:
    return operand if isinstance(operand, HeliosArray) else None


def _row(x: HeliosArray, index: int) -> HeliosArray:
    """x[index]"""
    return x.view(x.shape[1:], x.strides[1:], index * x.strides[0])


def _is_integer(operands: Sequence[HeliosOperand]) -> bool:
    """Whether none of the operands is floating-point or has a fraction."""
    return all(
        each.element not in FLOATING if isinstance(each, HeliosArray) else math.isfinite(each) and each == int(each)
        for each in operands
    )


def _result_element(operation: str, *operands: HeliosOperand) -> str:
    """The element type of an arithmetic result: that of the arrays, f32 for different floating-point ones.

    Raises TypeError for integers where the operation has none as its result.
    """
    elements = {each.element for each in operands if isinstance(each, HeliosArray)}
    floating = elements & set(FLOATING)
    if floating:
        return floating.pop() if len(floating) == 1 else "f32"
    if len(elements) != 1 or not _is_integer(operands) or operation in ("divide", "exp", "log", "sqrt", "tanh", "erf"):
        raise TypeError(f"{operation} takes no operands of types {sorted(elements) or 'number'}; cast them first")
    return elements.pop()


def _broadcast_shape(*operands: HeliosOperand) -> tuple[int, ...]:
    """The shape that the operands are broadcast to. Raises ValueError when there is none."""
    shapes = [each.shape for each in operands if isinstance(each, HeliosArray)]
    result = [1] * max(map(len, shapes), default=0)
    for shape in shapes:
        for axis, length in enumerate(shape, len(result) - len(shape)):
            if length != 1 and result[axis] not in (1, length):
                raise ValueError(f"shapes {shapes} cannot be broadcast together")
            result[axis] = length if result[axis] == 1 else result[axis]
    return tuple(result)


def _axes_left(target: HeliosArray, operands: Sequence[HeliosOperand]) -> int:
    """How many axes there are, at most, when those are merged that can be: those longer than 1."""
    if len(target.shape) <= AXES:
        return len(target.shape)
    arrays = [target, *(each for each in operands if isinstance(each, HeliosArray))]
    return len(merge_axes(target.shape, [expanded(each, target.shape).strides for each in arrays]))


def _are_neighbours(parts: Sequence[HeliosArray], axis: int) -> bool:
    """Whether the parts follow each other in one storage as parts of one array would."""
    first = parts[0]
    end = first.offset
    for part in parts:
        if part.storage is not first.storage or part.strides != first.strides or part.offset != end:
            return False
        end += part.shape[axis] * part.strides[axis]
    return True
