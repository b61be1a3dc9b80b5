"""Activations, norms, softmax and dropout on the device.

An activation keeps its operand and computes the derivative again in the backward pass. A norm keeps its operand, and
each row's mean and scale, not the normalized values. In the backward pass each workgroup sums the gradients of weight
and bias over its own rows; a second kernel adds the workgroups up in a fixed order.
"""

from __future__ import annotations

from dataclasses import dataclass

from alpha.activation import activation_named
from alpha.backend import Saved
from alpha.backend_helios_array import HeliosArray
from alpha.backend_helios_layout import THREADS, VECTOR, Rows, groups_for, vector_of
from alpha.backend_helios_primitives import HeliosPrimitives
from alpha.backend_primitives import RandomKey

ACTIVATION_VECTORS = 4
"""Vectors that a thread has on their way at a time, EACH in kernels/activation.comp."""

SOFTMAX_ELEMENTS = 16
"""Elements of a row that one thread takes, if the row is not wider than a workgroup can take that way."""

RANDOM_ELEMENTS = 8
"""16-bit integers in one block of random bits."""

ROW_THREADS = 128
FORWARD_VECTORS = 8
BACKWARD_VECTORS = 4
"""Vectors of a row that a thread holds in registers, if the row is not wider than a workgroup can hold that way."""

BACKWARD_ROWS = 2
"""Rows for each group of lanes, at least: fewer would make more sums than the second kernel likes to add up."""

MOST_PARTS = 512
SUM_LANES = 8


@dataclass(frozen=True)
class _SavedNorm:
    """What the backward pass needs; `mean` is None for RMS norm."""

    rows: Rows
    weight: HeliosArray
    has_bias: bool
    mean: HeliosArray | None
    scale: HeliosArray


class Rowwise(HeliosPrimitives):
    """Activations, normalization, softmax and dropout; see `Backend` for what each of them means."""

    # --- activations --------------------------------------------------------------------------------------------------

    def activation(self, x: HeliosArray, kind: str, training: bool = False) -> tuple[HeliosArray, Saved]:
        """Raises ValueError when there is no such kind."""
        rows = self.rows_of(x)
        width = x.shape[-1] // 2 if activation_named(kind).gated else x.shape[-1]
        y = self.new((*x.shape[:-1], width), x.element)
        flat = rows.array.is_contiguous and width == rows.width
        vector = vector_of(rows.array, multiples=(y.size,) if flat else (width, *rows.strides))
        self.dispatch(
            "activation",
            x.element,
            groups_for(y.size, THREADS * ACTIVATION_VECTORS * vector),
            {**_activation_constants(kind, vector), "FLAT": int(flat)},
            x=rows.array,
            y=y,
            rows=rows.count,
            width=width,
            **rows.fields(),
        )
        return y, ((rows, kind) if training else None)

    def activation_backward(self, dy: HeliosArray, saved: Saved) -> HeliosArray:
        rows: Rows
        rows, kind = saved
        gradient = self.rows_of(self.cast_element(dy, rows.array.element))
        dx = self.new((*dy.shape[:-1], rows.width), rows.array.element)
        vector = vector_of(rows.array, gradient.array, multiples=(gradient.width, *rows.strides, *gradient.strides))
        self.dispatch(
            "activation_backward",
            rows.array.element,
            groups_for(dy.size, THREADS * vector),
            _activation_constants(kind, vector),
            x=rows.array,
            dy=gradient.array,
            dx=dx,
            rows=rows.count,
            width=gradient.width,
            **rows.fields("x_"),
            **gradient.fields("dy_"),
        )
        return dx

    # --- normalization ------------------------------------------------------------------------------------------------

    def layer_norm(
        self,
        x: HeliosArray,
        weight: HeliosArray,
        bias: HeliosArray | None,
        epsilon: float,
        training: bool = False,
    ) -> tuple[HeliosArray, Saved]:
        return self._norm(x, weight, bias, epsilon, training, centered=True)

    def rms_norm(
        self, x: HeliosArray, weight: HeliosArray, epsilon: float, training: bool = False
    ) -> tuple[HeliosArray, Saved]:
        return self._norm(x, weight, None, epsilon, training, centered=False)

    def layer_norm_backward(
        self, dy: HeliosArray, saved: Saved, need_weight: bool = True
    ) -> tuple[HeliosArray, HeliosArray | None, HeliosArray | None]:
        return self._norm_backward(dy, saved, need_weight)

    def rms_norm_backward(
        self, dy: HeliosArray, saved: Saved, need_weight: bool = True
    ) -> tuple[HeliosArray, HeliosArray | None]:
        dx, dweight, _ = self._norm_backward(dy, saved, need_weight)
        return dx, dweight

    def _norm(
        self,
        x: HeliosArray,
        weight: HeliosArray,
        bias: HeliosArray | None,
        epsilon: float,
        training: bool,
        centered: bool,
    ) -> tuple[HeliosArray, Saved]:
        rows = self.rows_of(x)
        weight = self.contiguous(weight)
        bias = None if bias is None else self.contiguous(bias)
        mean = self.new((rows.count,), "f32") if training and centered else None
        scale = self.new((rows.count,), "f32") if training else None
        vector = vector_of(rows.array, weight, bias, multiples=(rows.width, *rows.strides))
        lanes = self.lanes_for(-(-rows.width // vector), FORWARD_VECTORS * VECTOR // vector)
        threads = max(ROW_THREADS, lanes)
        element = self.activation_element if x.element == "f32" else x.element

        def normalize(mean: HeliosArray | None = None, scale: HeliosArray | None = None) -> HeliosArray:
            y = self.new(x.shape, element)
            self.dispatch(
                "norm",
                f"{x.element}_{y.element}",
                groups_for(rows.count, threads // lanes),
                {
                    "THREADS": threads,
                    "WIDTH": rows.width,
                    "LANES": lanes,
                    "VECTOR": vector,
                    "CENTERED": int(centered),
                    "HAS_BIAS": int(bias is not None),
                    "SAVE": int(scale is not None),
                },
                x=rows.array,
                weight=weight,
                bias=bias,
                y=y,
                mean=mean,
                scale=scale,
                relay=None,
                rows=rows.count,
                epsilon=epsilon,
                **rows.fields(),
            )
            return y

        y = normalize(mean, scale)
        if training:
            self.norms[y.storage] = normalize
        return y, (None if scale is None else _SavedNorm(rows, weight, bias is not None, mean, scale))

    def _norm_backward(
        self, dy: HeliosArray, saved: _SavedNorm, need_weight: bool
    ) -> tuple[HeliosArray, HeliosArray | None, HeliosArray | None]:
        x, weight = saved.rows, saved.weight
        if x.array.element != "f32":
            dy = self.cast_element(dy, x.array.element)
        gradient = self.rows_of(dy)
        dx = self.new(dy.shape, x.array.element)
        vector = vector_of(x.array, gradient.array, weight, multiples=(x.width, *x.strides, *gradient.strides))
        lanes = self.lanes_for(-(-x.width // vector), BACKWARD_VECTORS * VECTOR // vector)
        threads = max(ROW_THREADS, lanes)
        groups = min(MOST_PARTS, groups_for(x.count, BACKWARD_ROWS * threads // lanes))
        sums = 1 + saved.has_bias
        parts = self.new((groups, sums * x.width), "f32")
        self.dispatch(
            "norm_backward",
            f"{x.array.element}_{gradient.array.element}",
            groups,
            {
                "THREADS": threads,
                "WIDTH": x.width,
                "LANES": lanes,
                "VECTOR": vector,
                "CENTERED": int(saved.mean is not None),
                "SUMS": sums,
            },
            x=x.array,
            dy=gradient.array,
            weight=weight,
            mean=saved.mean,
            scale=saved.scale,
            addend=None,
            dx=dx,
            rounded=None,
            parts=parts,
            first_scale=None,
            second_scale=None,
            dy_scale=1.0,
            rows=x.count,
            **x.fields("x_"),
            **gradient.fields("dy_"),
        )
        if not need_weight:
            return dx, None, None
        dweight = self.new((x.width,), "f32")
        dbias = self.new((x.width,), "f32") if saved.has_bias else None
        self.add_columns(parts, dweight, dbias)
        return dx, dweight, dbias

    def add_columns(self, parts: HeliosArray, first: HeliosArray, second: HeliosArray | None = None) -> None:
        """The sums over the rows of contiguous `parts`: its first columns to `first`, the others to `second`."""
        rows, width = parts.shape
        vector = vector_of(multiples=(first.size, width))
        self.dispatch(
            "column_sums",
            "f32",
            groups_for(width, SUM_LANES * vector),
            {"THREADS": THREADS, "VECTOR": vector, "LANES": SUM_LANES},
            x=parts,
            first=first,
            second=second,
            rows=rows,
            width=width,
            split=first.size,
        )

    # --- softmax, dropout ----------------------------------------------------------------------------------

    def softmax(self, x: HeliosArray) -> HeliosArray:
        y = self.new(x.shape, "f32")
        self._dispatch_softmax("softmax", y, x=self.contiguous(x), y=y)
        return y

    def softmax_backward(self, dy: HeliosArray, y: HeliosArray) -> HeliosArray:
        dx = self.new(y.shape, "f32")
        self._dispatch_softmax("softmax_backward", dx, dy=self.contiguous(dy), y=self.contiguous(y), dx=dx)
        return dx

    def _dispatch_softmax(self, kernel: str, result: HeliosArray, **arrays: HeliosArray) -> None:
        """Run a kernel in which lanes share the rows of contiguous arrays of one shape."""
        width = result.shape[-1]
        rows = result.size // max(1, width)
        lanes = self.lanes_for(width, SOFTMAX_ELEMENTS)
        self.dispatch(
            kernel,
            "f32",
            groups_for(rows, THREADS // lanes),
            {"THREADS": THREADS, "LANES": lanes},
            rows=rows,
            width=width,
            **arrays,
        )

    def dropout(self, x: HeliosArray, probability: float, key: RandomKey | None) -> HeliosArray:
        if not probability or key is None:
            return x
        flat = self.contiguous(x)
        y = self.new(x.shape, x.element)
        self.dispatch(
            "dropout",
            x.element,
            groups_for(flat.size, THREADS * RANDOM_ELEMENTS),
            {"THREADS": THREADS, "VECTOR": vector_of(flat, multiples=(flat.size,))},
            x=flat,
            y=y,
            step=key.step,
            count=flat.size,
            stream=key.stream,
            seed_low=key.seed & 0xFFFFFFFF,
            seed_high=(key.seed >> 32) & 0xFFFFFFFF,
            threshold=round(probability * 2**16),
            scale=1.0 / (1.0 - probability),
        )
        return y


def _activation_constants(kind: str, vector: int) -> dict[str, int]:
    chosen = activation_named(kind)
    return {"THREADS": THREADS, "VECTOR": vector, "KIND": chosen.number, "GATED": int(chosen.gated)}
