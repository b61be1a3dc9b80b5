"""Linear layers of the Vulkan backend, plain and adapted, forward and backward: what rides along in their products, and
what is kept or computed again.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable
from dataclasses import dataclass

from alpha.activation import OF_RESULT, activation_named
from alpha.backend import INDEPENDENT_ROWS, Saved
from alpha.backend_helios_array import HeliosArray
from alpha.backend_helios_layout import THREADS, groups_for, vector_of
from alpha.backend_helios_matmul import Epilogue
from alpha.backend_helios_pieces import Factor, PieceProducts, Pieces
from alpha.backend_helios_tiles import Problem

ADAPTED_ROWS = 4
"""Rows of a weight that a thread has, ROWS in kernels/adapted_weight.comp."""

KEPT_COLUMNS = 2048
"""Up to so many columns, what a simple activation made is kept for the backward pass, beside what it was of: 2 bytes an
element more. Wider ones, of models in which memory counts more, are made again, which takes a pass over both."""


@dataclass(frozen=True)
class _SavedLinear:
    """What the backward pass of a linear layer needs: its operands [M, K] and [K, N], what its own simple activation
    was of, or what a gated one saved. Of an `x` that such an activation made, `x` is what that was of, and is activated
    again, if it is wider than KEPT_COLUMNS. `x` is None where `normalize` computes it again, as a norm did.

    `slope` is the number of the activation's derivative, from its operand or its result, which is then `preactivation`.
    `magnitudes` are those of both operands, where they were in pieces.
    """

    x: HeliosArray | None
    x_activation: str
    weight: HeliosArray
    shape: tuple[int, ...]
    has_bias: bool
    preactivation: HeliosArray | None
    slope: int
    gated: Saved
    normalize: Callable[[], HeliosArray] | None = None
    magnitudes: tuple[HeliosArray | None, HeliosArray | None] = (None, None)


@dataclass(frozen=True)
class _SavedAdapted:
    """What the backward pass of an adapted linear layer needs: what `linear` saved, with the layer's own weight, the
    adapter, and `narrow`, x @ down [M, r]."""

    linear: _SavedLinear
    down: HeliosArray
    up: HeliosArray
    scale: float
    narrow: HeliosArray


class Linear(PieceProducts):
    """Linear layers; see `Backend` for what each of them means."""

    def linear(
        self,
        x: HeliosArray,
        weight: HeliosArray,
        bias: HeliosArray | None = None,
        activation: str = "",
        residual: HeliosArray | None = None,
        training: bool = False,
    ) -> tuple[HeliosArray, Saved]:
        """activation(x @ weight + bias) + residual; x [..., K], weight [K, N], bias [N].

        Raises ValueError when there is no such activation.
        """
        rows, (depth, columns) = math.prod(x.shape[:-1]), weight.shape
        problem = Problem(1, rows, columns, depth)
        flat = self.rounded_operand(self.reshape(x, (rows, depth)), problem)
        weight = self.rounded_weight(weight, problem, training)
        chosen = activation_named(activation) if activation else None
        gated = chosen is not None and chosen.gated
        shape = (*x.shape[:-1], columns)
        added = None if residual is None or gated else self.contiguous(self.cast_element(residual, "f32"))
        bias = None if bias is None else self.contiguous(bias)
        # A residual in 16 bits is no residual stream, but an adapter's part of this very result.
        y = self.new(shape, self.activation_element if residual is None else residual.element)
        preactivation, slope, by_result = None, 0, False
        if training and chosen is not None and not gated:
            by_result = chosen.by_result and residual is None and y.element == self.precision
            slope = chosen.number + OF_RESULT * by_result
            preactivation = None if by_result else self.new(shape, self.precision)
        epilogue = Epilogue(bias, "" if gated else activation, preactivation, added)
        few_rows = not training and rows <= INDEPENDENT_ROWS
        left, right = (flat, weight) if few_rows else self.in_pieces(problem, flat, weight)
        self.product(left, right, self.reshape(y, (rows, columns)), epilogue, few_rows=few_rows)
        saved_activation = None
        if gated:
            y, saved_activation = self.activation(y, activation, training)
            y = y if residual is None else self.add(self.cast_element(y, "f32"), residual)
        if not training:
            return y, None
        kept, kept_activation = self.derived.get(flat.storage, (flat, ""))
        if not kept_activation or kept.shape != flat.shape or not flat.is_contiguous:
            kept, kept_activation = flat, ""
        is_wide = columns > KEPT_COLUMNS
        if is_wide and preactivation is not None and residual is None and y.element == preactivation.element:
            self.derived[y.storage] = self.reshape(preactivation, (rows, columns)), activation
        slope_of = y if by_result else preactivation
        of_x, of_weight = (each.magnitudes if isinstance(each, Pieces) else None for each in (left, right))
        return y, _SavedLinear(
            kept, kept_activation, weight, x.shape, bias is not None, slope_of, slope, saved_activation,
            magnitudes=(of_x, of_weight),
        )  # fmt: skip

    def linear_backward(
        self,
        dy: HeliosArray,
        saved: _SavedLinear,
        weight_gradient: HeliosArray | None = None,
        need_input: bool = True,
        need_weight: bool = True,
    ) -> tuple[HeliosArray | None, HeliosArray | None, HeliosArray | None]:
        """(dx, dweight, dbias)"""
        dh: Factor = self._gradient_of_sums(dy, saved)
        weight: Factor = saved.weight
        rows, columns = dh.shape
        x: Factor | None = None
        both = Problem(1, rows, weight.shape[0], columns), Problem(1, weight.shape[0], columns, rows)
        if need_input and need_weight and all(map(self.wants_pieces, both)):
            of_x, of_weight = saved.magnitudes
            operands = dh, weight, self._input_of(saved)
            dh, weight, x = self.divided(*operands, magnitudes=(None, of_weight, of_x))  # once for both products
        dx = self._input_gradient(dh, weight, saved.shape) if need_input else None
        if not need_weight:
            return dx, None, None
        out = weight_gradient
        if out is not None and not (out.is_contiguous and out.element == "f32"):
            out = None
        dbias = self.new((columns,), "f32") if saved.has_bias else None
        x = self.swapped(self._input_of(saved) if x is None else x)
        dweight = self.product(x, dh, out, column_sums=dbias, accompanied=need_input and self.is_tracing)
        if weight_gradient is not None and out is None:
            self.copy_into(weight_gradient, dweight)
            dweight = weight_gradient
        return dx, dweight, dbias

    def _gradient_of_sums(self, dy: HeliosArray, saved: _SavedLinear) -> HeliosArray:
        """The gradient [M, N] of x @ weight + bias, as products are to read it."""
        if saved.gated is not None:
            dy = self.activation_backward(dy, saved.gated)
        depth, columns = saved.weight.shape
        rows = math.prod(saved.shape[:-1])
        dh = self.contiguous(self.reshape(dy, (rows, columns)))
        # In a recorded program rounding is left to what makes dy, where that can: then it costs next to nothing.
        rounds = self.has_halves or self.wants_halves(Problem(1, rows, columns, depth))
        if saved.preactivation is not None or (dh.element == "f32" and rounds):
            dh = self.rounded_gradient(dh, saved.preactivation, saved.slope)
        return dh

    def _input_gradient(self, dh: Factor, weight: Factor, shape: tuple[int, ...]) -> HeliosArray:
        """dh [M, N] @ weight^T, in the shape of x."""
        dx = self.new(shape, self.activation_element)
        rows, columns = dh.shape
        dh, weight = self.in_pieces(Problem(1, rows, shape[-1], columns), dh, weight)
        self.product(dh, self.swapped_factor(weight, rows), self.reshape(dx, (rows, shape[-1])))
        return dx

    def _input_of(self, saved: _SavedLinear) -> HeliosArray:
        """x [M, K], computed again where it is not kept."""
        if saved.x is None:
            assert saved.normalize is not None
            return self.reshape(saved.normalize(), (math.prod(saved.shape[:-1]), saved.shape[-1]))
        return self.activation(saved.x, saved.x_activation)[0] if saved.x_activation else saved.x

    # --- adapted linear layers ----------------------------------------------------------------------------------------

    def adapted_linear(
        self,
        x: HeliosArray,
        weight: HeliosArray,
        down: HeliosArray,
        up: HeliosArray,
        scale: float,
        bias: HeliosArray | None = None,
        activation: str = "",
        residual: HeliosArray | None = None,
        training: bool = False,
    ) -> tuple[HeliosArray, Saved]:
        """`linear` by weight + scale * down @ up.

        What the low-rank gradients read of a norm's result is not kept, but computed again.
        """
        rows, (depth, columns) = math.prod(x.shape[:-1]), weight.shape
        flat = self.rounded_operand(self.reshape(x, (rows, depth)), Problem(1, rows, columns, depth))
        adapted = self._adapted_weight(weight, down, up, scale, rows)
        y, saved = self.linear(self.reshape(flat, x.shape), adapted, bias, activation, residual, training)
        if not training:
            return y, None
        whole = flat.is_contiguous and flat.nbytes == flat.storage.nbytes
        normalize = self.norms.get(flat.storage) if whole else None
        kept = saved.x if normalize is None else None
        saved = dataclasses.replace(saved, weight=weight, x=kept, normalize=normalize, magnitudes=(None, None))
        return y, _SavedAdapted(saved, down, up, scale, self.product(flat, down))

    def adapted_linear_backward(
        self, dy: HeliosArray, saved: _SavedAdapted, need_input: bool = True
    ) -> tuple[HeliosArray | None, HeliosArray, HeliosArray]:
        """(dx, ddown, dup)"""
        linear, scale = saved.linear, saved.scale
        dh = self._gradient_of_sums(dy, linear)
        dx = None
        if need_input:
            adapted = self._adapted_weight(linear.weight, saved.down, saved.up, scale, dh.shape[0])
            dx = self._input_gradient(dh, adapted, linear.shape)
        dnarrow = self.product(dh, self.transpose(saved.up, (1, 0)))
        dup = self.product(self.transpose(saved.narrow, (1, 0)), dh, scale=scale)
        ddown = self.product(self.transpose(self._input_of(linear), (1, 0)), dnarrow, scale=scale)
        return dx, ddown, dup

    def _adapted_weight(
        self, weight: HeliosArray, down: HeliosArray, up: HeliosArray, scale: float, rows: int
    ) -> HeliosArray:
        """weight + scale * down @ up, as products of so many rows read it."""
        depth, columns = weight.shape
        halves = self.has_halves or self.wants_halves(Problem(1, rows, columns, depth))
        adapted = self.new(weight.shape, self.precision if halves else "f32")
        if weight.element not in ("f32", adapted.element):
            weight = self.cast_element(weight, "f32")
        weight, down, up = (self.contiguous(each) for each in (weight, down, up))
        vector = vector_of(weight, up, multiples=(columns,))
        self.dispatch(
            "adapted_weight", f"{weight.element}_{adapted.element}",
            groups_for(math.ceil(depth / ADAPTED_ROWS) * (columns // vector)),
            {"THREADS": THREADS, "VECTOR": vector},
            weight=weight, down=down, up=up, y=adapted, height=depth, width=columns, rank=down.shape[1], factor=scale,
        )  # fmt: skip
        return adapted
