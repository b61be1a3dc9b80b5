"""Queries, keys and values of a projection on the Vulkan backend: RMS norm of heads and rotary positions in one pass.

Queries and keys are written side by side; values stay where they are. The backward pass computes the norm's scale
again, changes the gradients of queries and keys in place, and sums those of the weights as `backend_helios_rowwise`
does.
"""

from __future__ import annotations

import math

from alpha.backend import Heads, Saved
from alpha.backend_helios_array import HeliosArray
from alpha.backend_helios_layout import groups_for, vector_of
from alpha.backend_helios_rowwise import MOST_PARTS, ROW_THREADS, Rowwise

FORWARD_EACH, BACKWARD_EACH = 2, 4
"""Heads that a thread has on their way at a time."""

BACKWARD_HEADS = 2
"""Times that a workgroup goes round, at least: fewer would make more sums than the second kernel likes to add up."""

HELD_VECTORS = 4
"""Vectors of half a head that a thread holds in registers, if the head is not wider than a workgroup can hold that
way."""


class HeadSplitting(Rowwise):
    """See `Backend.split_heads`."""

    def _split_heads(
        self, qkv: HeliosArray, heads: Heads, training: bool
    ) -> tuple[tuple[HeliosArray, HeliosArray, HeliosArray], Saved]:
        if (heads.norms is None and heads.angles is None) or qkv.shape[3] % 2:
            return super()._split_heads(qkv, heads, training)
        qkv = self.contiguous(qkv)
        B, T, _, D = qkv.shape
        H, G = heads.queries, heads.keys
        y = self.new((B, T, H + G, D), qkv.element)
        constants, arguments = self._of_heads(qkv, heads, FORWARD_EACH)
        per_group = constants["THREADS"] // constants["LANES"] * constants["EACH"]
        self.dispatch(
            "query_key", qkv.element, groups_for(B * T * (H + G), per_group), constants, qkv=qkv, y=y, **arguments
        )
        operands = self.narrow(y, 2, 0, H), self.narrow(y, 2, H, G), self.narrow(qkv, 2, H + G, G)
        return operands, (qkv if training else None)

    def _split_heads_backward(
        self,
        gradients: tuple[HeliosArray, HeliosArray, HeliosArray],
        heads: Heads,
        saved: Saved,
        need_weight: bool,
    ) -> tuple[HeliosArray, HeliosArray | None, HeliosArray | None]:
        if not isinstance(saved, HeliosArray):
            return super()._split_heads_backward(gradients, heads, saved, need_weight)
        qkv = saved
        dqkv = self.contiguous(self.concatenate([self.cast_element(each, qkv.element) for each in gradients], 2))
        B, T, N, D = qkv.shape
        total = B * T * (N - heads.keys)
        constants, arguments = self._of_heads(qkv, heads, BACKWARD_EACH)
        constants |= {"SUMS": int(need_weight)}
        per_group = constants["THREADS"] // constants["LANES"] * constants["EACH"] * BACKWARD_HEADS
        groups = min(MOST_PARTS, groups_for(total, per_group))
        parts = self.new((groups, 2 * D), "f32") if need_weight else None
        self.dispatch(
            "query_key_backward", qkv.element, groups, constants, qkv=qkv, dqkv=dqkv, parts=parts, **arguments
        )
        if parts is None:
            return dqkv, None, None
        weights = self.new((D,), "f32"), self.new((D,), "f32")
        self.add_columns(parts, *weights)
        return dqkv, *weights

    def _of_heads(
        self, qkv: HeliosArray, heads: Heads, each: int
    ) -> tuple[dict[str, int], dict[str, HeliosArray | int | float | None]]:
        """The constants and arguments that both kernels have; `each` heads a thread, or fewer if they are wide."""
        B, T, _, D = qkv.shape
        norms = None if heads.norms is None else tuple(map(self.contiguous, heads.norms))
        angles = None if heads.angles is None else tuple(heads.angles)
        if angles is not None and (angles[0].strides != angles[1].strides or angles[0].strides[-1] != 1):
            angles = tuple(map(self.contiguous, angles))
        strides = angles[0].strides[:-1] if angles is not None else (0,)
        vector = vector_of(qkv, *(norms or ()), *(angles or ()), multiples=(D // 2, *strides))
        lanes = self.lanes_for(math.ceil(D // 2 / vector), HELD_VECTORS)
        count = math.ceil(D // 2 / vector / lanes)
        constants = {
            "THREADS": max(ROW_THREADS, lanes), "VECTOR": vector, "HALF": D // 2, "LANES": lanes,
            "EACH": max(1, each // count),
            "QUERIES": heads.queries, "KEYS": heads.keys, "NORM": int(norms is not None),
            "ROTARY": int(angles is not None),
        }  # fmt: skip
        arguments: dict[str, HeliosArray | int | float | None] = {
            "rows": B * T, "positions": T, "table_batch_stride": strides[0] if len(strides) == 2 else 0,
            "table_stride": strides[-1], "epsilon": heads.epsilon,
        }  # fmt: skip
        arguments |= dict(zip(("query_weight", "key_weight"), norms or (None, None), strict=True))
        arguments |= dict(zip(("cosine", "sine"), angles or (None, None), strict=True))
        return constants, arguments
