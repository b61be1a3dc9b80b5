"""The primitive operations on the Vulkan device, but for matrix products.

Elementwise operations take arrays with any strides; the others copy what they cannot read as it lies.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence

import numpy.typing as npt

from alpha import backend_helios_indexing as indexing
from alpha import backend_helios_reductions as reductions
from alpha.backend_helios_array import HeliosArray, element_of, expanded, merge_axes
from alpha.backend_helios_core import HeliosCore
from alpha.backend_helios_plan import Dispatch
from alpha.backend_helios_strides import AXES, ELEMENT_CODES, number_bits, strided, variant_for
from alpha.backend_primitives import RandomKey

HeliosOperand = HeliosArray | float

ELEMENTWISE = (
    *("copy", "add", "subtract", "multiply", "divide", "maximum", "minimum", "greater", "equal", "logical_and"),
    *("isfinite", "exp", "log", "sqrt", "tanh", "erf", "sign", "absolute"),
)
"""In the order of kernels/elementwise.comp."""

_FLOATING = ("f32", "f16", "bf16")


class HeliosPrimitives(HeliosCore):
    """Arithmetic, reductions, indexing and random bits."""

    # --- memory -------------------------------------------------------------------------------------------------------

    def copy_dispatch(self, target: HeliosArray, source: HeliosArray) -> Dispatch:
        return dataclasses.replace(self._elementwise("copy", target, source), is_copy=True)

    def fill(self, target: HeliosArray, value: float) -> None:
        self._write("copy", target, value)

    def contiguous(self, x: HeliosArray) -> HeliosArray:
        if x.is_contiguous:
            return x
        copy = self.new(x.shape, x.element)
        self.copy_into(copy, x)
        return copy

    def copy_into(self, target: HeliosArray, source: HeliosArray) -> None:
        same = (target.shape, target.element) == (source.shape, source.element)
        if same and target.size and _axes_left(target, [source]) <= AXES:
            self._add(self.copy_dispatch(target, source))
        else:
            self._write("copy", target, source)

    def add_into(self, target: HeliosArray, source: HeliosArray) -> None:
        self._write("add", target, target, source)

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
            f"{name}_number": number_bits(0 if isinstance(each, HeliosArray) else each, element not in _FLOATING)
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
        self._write(operation, y, *operands)
        return y

    def _write(self, operation: str, target: HeliosArray, *operands: HeliosOperand) -> None:
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
            self._write(operation, _row(target, index), *parts)

    def _elementwise(self, operation: str, target: HeliosArray, *operands: HeliosOperand) -> Dispatch:
        """The dispatch of target = operation(operands), with one operand or two."""
        a, b = (*operands, 0.0)[:2]
        arrays = {"a": _array(a), "b": _array(b)}
        layout = strided(target.shape, {**arrays, "y": target}, target)
        integer = _is_integer(operands) and (operation != "copy" or target.element not in _FLOATING)
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
        return reductions.reduce(self, x, axes, keep, maximum=False)

    def max(self, x: HeliosArray, axes: Sequence[int], keep: bool = False) -> HeliosArray:
        return reductions.reduce(self, x, axes, keep, maximum=True)

    # --- indexing -----------------------------------------------------------------------------------------------------

    def gather_rows(self, table: HeliosArray, ids: HeliosArray) -> HeliosArray:
        return indexing.gather_rows(self, table, ids)

    def scatter_add_rows(self, ids: HeliosArray, rows: HeliosArray, count: int) -> HeliosArray:
        return indexing.scatter_add_rows(self, ids, rows, count)

    def pick(self, x: HeliosArray, ids: HeliosArray) -> HeliosArray:
        return indexing.pick(self, x, ids)

    # --- random -------------------------------------------------------------------------------------------------------

    def random_uint16(self, shape: Sequence[int], key: RandomKey) -> HeliosArray:
        return indexing.random_uint16(self, shape, key)


def _array(operand: HeliosOperand) -> HeliosArray | None:
    return operand if isinstance(operand, HeliosArray) else None


def _row(x: HeliosArray, index: int) -> HeliosArray:
    """x[index]"""
    return x.view(x.shape[1:], x.strides[1:], index * x.strides[0])


def _is_integer(operands: Sequence[HeliosOperand]) -> bool:
    """Whether none of the operands is floating-point or has a fraction."""
    return all(
        each.element not in _FLOATING if isinstance(each, HeliosArray) else math.isfinite(each) and each == int(each)
        for each in operands
    )


def _result_element(operation: str, *operands: HeliosOperand) -> str:
    """The element type of an arithmetic result: that of the arrays, f32 for different floating-point ones.

    Raises TypeError for integers where the operation has none as its result.
    """
    elements = {each.element for each in operands if isinstance(each, HeliosArray)}
    floating = elements & set(_FLOATING)
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
