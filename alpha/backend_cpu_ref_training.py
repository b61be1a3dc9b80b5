"""What a training step of the reference backend computes in the native sidecar, between its products, in float32.

`native/training.h` says what its functions do: in one pass over a row what takes numpy a dozen. Where the sidecar was
not built, and in float64, `backend_cpu_ref_kernels` does the same in numpy. Arrays that are written are contiguous.
"""

import ctypes
import functools
import math

import numpy as np

from alpha.backend_cpu_ref_primitives import NumpyArray, Part
from alpha.backend_cpu_ref_sidecar import address, function, structure

PART_ELEMENTS = 1 << 17
"""Of heads, in one part, unless a single sequence has more."""


def losses(
    logits: NumpyArray, ids: NumpyArray, weights: NumpyArray, soft_cap: float, gradients: bool, out: NumpyArray
) -> None:
    """Writes each row's loss to `out` [rows, 1]; logits [rows, V] become their gradients, or lose their meaning."""
    ids = _checked(ids, logits.shape[1])
    function("training_losses")(
        address(logits), address(ids), address(weights), soft_cap, gradients, address(out), *logits.shape
    )


def add_rows(target: NumpyArray, ids: NumpyArray, rows: NumpyArray) -> None:
    """target[ids[i]] += rows[i] one after the other; target [R, C], ids [N], rows [N, C]."""
    ids, rows = _checked(ids, len(target)), np.ascontiguousarray(rows)
    function("training_add_rows")(address(target), address(ids), address(rows), *rows.shape)


def _checked(ids: NumpyArray, count: int) -> NumpyArray:
    """Ids as the sidecar takes them, which looks where they say. Raises IndexError when one is not below `count`."""
    if ids.size and not 0 <= ids.min() <= ids.max() < count:
        raise IndexError(f"There are ids from {ids.min()} to {ids.max()}, and {count} rows.")
    return np.ascontiguousarray(ids, np.int32)


def norm(
    x: NumpyArray, weight: NumpyArray, bias: NumpyArray | None, epsilon: float, centered: bool,
    y: NumpyArray, normalized: NumpyArray, scale: NumpyArray,
) -> None:  # fmt: skip
    """Layer norm, or unless `centered` RMS norm, of x [rows, C] to y and normalized like it and scale [rows, 1]."""
    x = np.ascontiguousarray(x)
    function("training_norm")(
        address(x), address(weight), address(bias), epsilon, centered,
        address(y), address(normalized), address(scale), *x.shape,
    )  # fmt: skip


def norm_backward(
    dy: NumpyArray, normalized: NumpyArray, scale: NumpyArray, weight: NumpyArray, centered: bool,
    dx: NumpyArray, dweight: NumpyArray,
) -> None:  # fmt: skip
    """Writes dx, like dy [rows, C], and the sum over the rows to dweight [C]."""
    dy = np.ascontiguousarray(dy)
    function("training_norm_backward")(
        address(dy), address(normalized), address(scale), address(weight), centered,
        address(dx), address(dweight), *dy.shape,
    )  # fmt: skip


def softmax(scores: NumpyArray, queries: int) -> NumpyArray:
    """Scores [..., rows, keys] become exp(scores - max), and 0 for those of the last `queries` keys that a row may not
    see, the last of so many rows all of them. Returns the sums [..., 1]."""
    sums = np.empty((*scores.shape[:-1], 1), scores.dtype)
    function("training_softmax")(address(scores), address(sums), sums.size, queries, scores.shape[-1])
    return sums


def softmax_backward(gradients: NumpyArray, exponentials: NumpyArray, along: NumpyArray) -> None:
    """gradients [..., keys] become (gradients - along) * exponentials; along [..., 1]."""
    function("training_softmax_backward")(
        address(gradients), address(exponentials), address(along), along.size, gradients.shape[-1]
    )


# As in `native/training.h`.
_Heads = structure("_Heads", "weight cosine sine normalized scale", "positions tokens heads width")


class HeadsCall:
    """The norm, if there is a weight, and the rotation, if there are angles as for `Backend.rotary`, of some heads.

    x [B, T, N, D] is a part of the heads of an array in order; y is like it.
    """

    def __init__(
        self, x: NumpyArray, weight: NumpyArray | None, epsilon: float, angles: tuple[NumpyArray, NumpyArray] | None
    ) -> None:
        self.x, self.weight, self.epsilon = x, weight, epsilon
        self._angles = () if angles is None else tuple(np.ascontiguousarray(each) for each in angles)
        self.y = np.empty(x.shape, x.dtype)
        self._normalized = None if weight is None else np.empty(x.shape, x.dtype)
        self._scale = None if weight is None else np.empty(x.shape[:3], x.dtype)
        size = max(1, PART_ELEMENTS // max(1, math.prod(x.shape[1:])))
        self._parts = [slice(start, min(start + size, len(x))) for start in range(0, len(x), size)]

    def forward_parts(self) -> list[Part]:
        """Each writes some sequences of y."""
        return [(self._forward, sequences) for sequences in self._parts]

    def weight_sums(self) -> NumpyArray:
        """What `backward_parts` write the gradient of the weight to, a row each: [parts, D]."""
        return np.empty((len(self._parts), self.x.shape[-1]), self.x.dtype)

    def backward_parts(self, gradients: NumpyArray, sums: NumpyArray) -> list[Part]:
        """Each turns the gradients of y of some sequences, which lie as x does, into those of x."""
        return [
            (functools.partial(self._backward, gradients, row), sequences)
            for row, sequences in zip(sums, self._parts, strict=True)
        ]

    def _forward(self, sequences: slice) -> None:
        of, start, stride = self._operands(self.x, sequences)
        function("training_heads_forward")(
            ctypes.addressof(of), start, stride, self.epsilon, address(self.y[sequences])
        )

    def _backward(self, gradients: NumpyArray, sums: NumpyArray, sequences: slice) -> None:
        of, start, stride = self._operands(gradients, sequences)
        function("training_heads_backward")(ctypes.addressof(of), start, stride, address(sums))

    def _operands(self, x: NumpyArray, sequences: slice) -> tuple[ctypes.Structure, int | None, int]:
        """The structure, where the first of some sequences is in x, and its stride from token to token in elements."""
        (_, T, N, D), count = x.shape, sequences.stop - sequences.start
        assert x.strides == (T * x.strides[1], x.strides[1], D * x.itemsize, x.itemsize)
        angles, positions = self._angles, T
        if angles and angles[0].ndim == 3:  # each sequence has positions of its own
            angles, positions = tuple(each[sequences] for each in angles), count * T
        kept = (None if each is None else each[sequences] for each in (self._normalized, self._scale))
        arrays = map(address, (self.weight, *(angles or (None, None)), *kept))
        return _Heads(*arrays, positions, count * T, N, D), address(x[sequences]), x.strides[1] // x.itemsize
