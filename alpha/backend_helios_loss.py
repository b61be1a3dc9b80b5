"""The output head fused with its loss, in chunks of rows, so that the M x V logits never exist as a whole.

The forward pass in training computes the gradients of the summed loss, chunk by chunk; the backward pass scales them by
the gradient of the mean loss. What the loss is divided by comes in only there, so that the gradients of logits are of
order 1 and can be stored in half precision.
"""

from __future__ import annotations

from dataclasses import dataclass

from alpha.backend import Saved
from alpha.backend_helios_array import ELEMENTS, HeliosArray, narrowed
from alpha.backend_helios_layout import THREADS, groups_for, power_of_two, vector_of
from alpha.backend_helios_matmul import Epilogue
from alpha.backend_helios_pieces import Factor, PieceProducts
from alpha.backend_helios_tiles import Problem

CHUNK_BYTES = 1 << 28
"""Bytes of the logits of one chunk, at most. In training on matrix units they are stored in 16 bits, and their
gradients take their place."""

SMALL_CHUNK_BYTES = 1 << 27
"""The same where the weight has no gradient, to which each chunk would add: then small chunks cost nothing."""

CHUNK_MULTIPLE, TILED_CHUNK_MULTIPLE = 128, 384
"""Rows of a chunk are a multiple of this, so that products have whole tiles: on matrix units, and without them, where
the tiles of large products have 96 rows."""

ROW_VECTORS = 8
"""Vectors of a row of logits for each thread, if the row is not wider than a workgroup can take that way."""

HELD_BYTES = 112
"""Bytes of a row that a thread keeps in registers, at most; of a longer part it reads the row twice."""

MEAN_THREADS = 1024
"""Invocations of the one workgroup that adds up all losses, if the device allows so many."""

GRADIENT_SCALES = {"f32": 1.0, "f16": 4096.0, "bf16": 1.0}
"""What gradients of logits are multiplied by when they are stored: float16 would lose small probabilities."""

INPUT_SCALES = {"f32": 1.0, "f16": 64.0, "bf16": 1.0}
"""The same for the gradient of the head's input, by the element that it is stored as: sums of the former, which a large
weight must not take out of range."""


@dataclass(frozen=True)
class _SavedHead:
    """Gradients of the summed loss, times INPUT_SCALES and GRADIENT_SCALES, and 1 / the number of targets that count,
    shape [1]."""

    dx: HeliosArray
    dweight: HeliosArray | None
    inverse_count: HeliosArray


class Loss(PieceProducts):
    """Cross-entropy with the output head; see `Backend` for what it means."""

    def cross_entropy(
        self,
        x: HeliosArray,
        weight: HeliosArray,
        targets: HeliosArray,
        soft_cap: float = 0.0,
        training: bool = False,
        need_weight: bool = True,
    ) -> tuple[HeliosArray, Saved]:
        targets = self.contiguous(targets)
        dx = self.new(x.shape if training else (0,), self.activation_element)
        dweight = self.new(weight.shape, "f32") if training and need_weight else None
        # The number of targets waits for nothing, so what needs only that need not wait for the losses.
        inverse_count = self._mean_loss(None, targets) if training else None
        losses = self._losses_of_rows(x, weight, targets, soft_cap, dx if training else None, dweight)
        loss = self._mean_loss(losses, targets)
        return loss, (None if inverse_count is None else _SavedHead(dx, dweight, inverse_count))

    def _mean_loss(self, losses: HeliosArray | None, targets: HeliosArray) -> HeliosArray:
        """The mean of the losses of all targets that count, shape []; without losses, 1 / their number, shape [1]."""
        result = self.new((1,) if losses is None else (), "f32")
        self.dispatch(
            "cross_entropy_mean",
            "f32",
            1,
            {
                "THREADS": min(MEAN_THREADS, self.device_info.max_workgroup_invocations),
                "VECTOR": vector_of(losses, targets),
            },
            losses=losses,
            targets=targets,
            loss=None if losses is None else result,
            inverse_count=result if losses is None else None,
            rows=targets.size,
        )
        return result

    def cross_entropy_backward(
        self, dloss: HeliosArray, saved: Saved, weight_gradient: HeliosArray | None = None
    ) -> tuple[HeliosArray, HeliosArray | None]:
        head: _SavedHead = saved
        dx, dweight = self.new(head.dx.shape, head.dx.element), None
        scaled_parts = [(head.dx, dx, INPUT_SCALES[dx.element])]
        if head.dweight is not None:
            dweight = self.new(head.dweight.shape, "f32") if weight_gradient is None else weight_gradient
            scaled_parts.append((head.dweight, dweight, GRADIENT_SCALES[self.precision]))
        for source, target, scale in scaled_parts:
            scaled = target if target.is_contiguous else self.new(target.shape, target.element)
            vector = vector_of(source, scaled)
            self.dispatch(
                "scale",
                scaled.element,
                groups_for(source.size, THREADS * vector),
                {"THREADS": THREADS, "VECTOR": vector},
                x=source,
                y=scaled,
                first=dloss,
                second=head.inverse_count,
                count=source.size,
                factor=1.0 / scale,
            )
            if scaled is not target:
                self.copy_into(target, scaled)
        return dx, dweight

    def row_losses(
        self, x: HeliosArray, weight: HeliosArray, targets: HeliosArray, soft_cap: float = 0.0
    ) -> HeliosArray:
        return self._losses_of_rows(x, weight, self.contiguous(targets), soft_cap, None, None)

    def _losses_of_rows(
        self,
        x: HeliosArray,
        weight: HeliosArray,
        targets: HeliosArray,
        soft_cap: float,
        dx: HeliosArray | None,
        dweight: HeliosArray | None,
    ) -> HeliosArray:
        """The loss of each row [M], 0 where the target is negative; writes the gradients of their sum, times their
        scales, to dx and dweight, the second only with the first."""
        (M, C), V, element, training = x.shape, weight.shape[0], self.precision, dx is not None
        losses = self.new((M,), "f32")
        if not M and dweight is not None:
            self.fill(dweight, 0.0)
        problem = Problem(1, M, V, C)
        x, weight = self.rounded_operand(x, problem), self.rounded_weight(weight, problem, training)
        logits_element = self.activation_element if training else "f32"
        in_pieces = self.wants_pieces(problem)
        # The gradients of a chunk's logits in pieces take as much memory again.
        chunk_bytes = SMALL_CHUNK_BYTES if dweight is None or in_pieces else CHUNK_BYTES
        multiple = CHUNK_MULTIPLE if self.hardware.fragment or in_pieces else TILED_CHUNK_MULTIPLE
        most = _chunk_rows(M, V * ELEMENTS[logits_element].itemsize, chunk_bytes, multiple)
        logits_buffer = self.new((most, V), logits_element)
        dlogits_buffer = self.new((most, V), element) if training and element != logits_element else logits_buffer
        (factor,) = self.divided(weight) if in_pieces else (weight,)
        swapped = self.swapped_factor(factor, M)
        largest = None
        if in_pieces and training:
            largest = self.new((1,), "f32")
            self.fill(largest, GRADIENT_SCALES[self.precision])  # a gradient of logits is no larger
        for start in range(0, M, most):
            length = min(most, M - start)
            rows: Factor = narrowed(x, 0, start, length)
            if in_pieces:
                (rows,) = self.divided(rows)
            logits, dlogits = (narrowed(each, 0, 0, length) for each in (logits_buffer, dlogits_buffer))
            self.product(rows, swapped, logits)
            its_targets, its_losses = (narrowed(each, 0, start, length) for each in (targets, losses))
            self._rows_of_logits(logits, its_targets, its_losses, dlogits if training else None, soft_cap)
            gradient: Factor = dlogits
            if dx is not None:
                if in_pieces:
                    (gradient,) = self.divided(dlogits, magnitudes=[largest])
                scale = INPUT_SCALES[dx.element] / GRADIENT_SCALES[self.precision]
                self.product(gradient, factor, narrowed(dx, 0, start, length), scale=scale)
            if dweight is not None:
                so_far = Epilogue(residual=dweight if start else None)
                self.product(self.swapped(gradient), rows, dweight, so_far)
        return losses

    def _rows_of_logits(
        self,
        logits: HeliosArray,
        targets: HeliosArray,
        losses: HeliosArray,
        dlogits: HeliosArray | None,
        soft_cap: float,
    ) -> None:
        """The losses of a chunk, and the gradients of its logits unless `dlogits` is None."""
        rows, width = logits.shape
        vector = vector_of(logits, multiples=(width,))
        vectors = -(-width // vector)
        lanes, bytes_each = self.lanes_for(vectors, ROW_VECTORS), 4 * logits.itemsize
        # A whole workgroup, and as large a one as it takes to hold the row, since those of few threads wait for less.
        most = power_of_two(self.device_info.max_workgroup_invocations // 2 + 1)
        while THREADS <= lanes < most and -(-vectors // lanes) * bytes_each > HELD_BYTES:
            lanes *= 2
        threads, held = max(THREADS, lanes), -(-vectors // lanes)
        groups = groups_for(rows, threads // lanes)
        self.dispatch(
            "cross_entropy",
            f"{logits.element}_{'f32' if dlogits is None else dlogits.element}",
            groups,
            {
                "THREADS": threads,
                "LANES": lanes,
                "VECTOR": vector,
                "CAPPED": int(soft_cap != 0.0),
                "TRAINING": int(dlogits is not None),
                "HELD": held if held * bytes_each <= HELD_BYTES else 0,
            },
            logits=logits,
            targets=targets,
            losses=losses,
            dlogits=dlogits,
            rows=rows,
            width=width,
            stride=width,
            soft_cap=soft_cap,
            scale=GRADIENT_SCALES[self.precision],
        )


def _chunk_rows(rows: int, row_bytes: int, chunk_bytes: int, multiple: int) -> int:
    """Rows of a chunk: all if their logits are no more than `chunk_bytes`, else as many times `multiple` as are."""
    most = max(1, chunk_bytes // row_bytes)
    if rows <= most:
        return max(1, rows)
    return most // multiple * multiple or most
