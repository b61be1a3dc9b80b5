"""The interface of a backend: the primitives, and the fused operations composed of them.

A fused operation is a concrete method here, a few primitives that anyone can hold against the formula; a backend may
override it with something faster, and tests compare the override with this composition. So no operation is optional
and nothing needs to ask what a backend can do.

The forward half of a fused operation returns `(result, saved)`. `saved` is whatever that backend's backward half wants
to find again; nobody else looks inside, and it is None unless `training`.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from alpha.activation import activation_named
from alpha.backend_primitives import Array, RandomKey
from alpha.backend_updates import Updates

Saved = Any

INDEPENDENT_ROWS = 512
"""Outside training, up to so many rows of a linear layer, a norm or `cached_attention` do not depend on each other:
each has the same bits among any others, in any place, whatever their number."""


@dataclass(frozen=True)
class Heads:
    """What a projection's result [B, T, queries + 2 keys, D] is: heads of queries, and as many of keys as of values.

    Queries and keys are RMS-normalized, each head by itself, with `norms`, the weights [D] of queries and of keys; then
    rotated by `angles`, the cosines and sines of `Backend.rotary`.
    """

    queries: int
    keys: int
    norms: tuple[Array, Array] | None = None
    epsilon: float = 0.0
    angles: tuple[Array, ...] | None = None


class Backend(Updates):
    """Fused operations. Shapes: B batch, T sequence, C width, H heads, D head width, V vocabulary, M = B*T rows."""

    threads: int = 1
    """CPU threads that operations run on; may be changed between operations, without effect on results."""

    steps_in_flight: int = 1
    """Training steps that may be under way before the result of the first is waited for."""

    weight_dtype: npt.DTypeLike = np.float32
    """What matrices that are only used are stored as: the type that products round them to."""

    @property
    def activation_dtype(self) -> npt.DTypeLike | None:
        """What layers write for each other; None where that is what a model computes with."""
        return None

    smoke_test_failed: bool = False
    """Whether results were found wrong at the start, and the user chose to go on."""

    steps_together: int = 1
    """Training steps that are started one right after the other, when there is room for them."""

    def memory_in_use(self) -> tuple[int, int] | None:
        """Bytes of a device's own memory that this process uses, and may use in all; None where that is not known."""
        return None

    def replacement(self) -> "Backend":
        """What to go on with after a failure: this backend, or where its device is lost, one on the same device opened
        anew, which has none of the arrays. Raises AlphaError when that cannot be had."""
        return self

    def plan(self, program: Callable[..., Any], *operands: Array) -> int:
        """Take the memory that a recorded program needs for such operands; returns how many bytes that is.

        0 where memory is taken as it is needed. Raises MemoryError when there is too little.
        """
        return 0

    def thread_choices(self) -> list[int]:
        """The values of `threads` worth trying; a backend that computes elsewhere has no choice to offer."""
        return [self.threads]

    # --- a batch in parts ---------------------------------------------------------------------------------------------

    def batch_parts(self, sequences: int, length: int) -> int:
        """Into how many equal parts of whole sequences a training step is to divide a batch, for `side_by_side`.

        It depends on the shape alone, because the number of parts decides in which order gradients are added up.
        """
        return 1

    def shared_zeros(self, shape: Sequence[int], dtype: npt.DTypeLike = np.float32) -> Array:
        """A new array of zeros which work done `side_by_side` may read and change, even when it is made before that."""
        return self.zeros(shape, dtype)

    def side_by_side(self, work: Callable[[int], None], parts: int) -> Callable[[], None]:
        """A callable that does work(0) to work(parts - 1), none of which needs what another one writes.

        Of the arrays that exist before it is called, work may change none but those of `shared_zeros`, and others must
        stay as they were at the first call: a backend may do parts in another process, forked then.
        """

        def run() -> None:
            for part in range(parts):
                work(part)

        return run

    # --- activations --------------------------------------------------------------------------------------------------

    def activation(self, x: Array, kind: str, training: bool = False) -> tuple[Array, Saved]:
        """x [..., F] -> [..., F], or [..., F/2] for the gated kinds, which activate the first half as the gate.

        The kinds and their formulas: `alpha.activation`. Raises ValueError when there is no such kind.
        """
        chosen = activation_named(kind)
        if not chosen.gated:
            activated, slope = chosen.formula(self, x)
            return activated, ((slope, None, None) if training else None)
        half = x.shape[-1] // 2
        gate, up = self.narrow(x, -1, 0, half), self.narrow(x, -1, half, half)
        activated, slope = chosen.formula(self, gate)
        return self.multiply(activated, up), ((slope, activated, up) if training else None)

    def activation_backward(self, dy: Array, saved: Saved) -> Array:
        """The gradient of `activation`'s operand."""
        slope, activated, up = saved
        if activated is None:
            return self.multiply(dy, slope)
        dgate = self.multiply(self.multiply(dy, up), slope)
        return self.concatenate([dgate, self.multiply(dy, activated)], -1)

    # --- linear -------------------------------------------------------------------------------------------------------

    def linear(
        self,
        x: Array,
        weight: Array,
        bias: Array | None = None,
        activation: str = "",
        residual: Array | None = None,
        training: bool = False,
    ) -> tuple[Array, Saved]:
        """activation(x @ weight + bias) + residual; x [..., K], weight [K, N], bias [N]."""
        y = self.matmul(self._rows(x), weight)
        if bias is not None:
            y = self.add(y, bias)
        saved_activation = None
        if activation:
            y, saved_activation = self.activation(y, activation, training)
        y = self.reshape(y, (*x.shape[:-1], y.shape[-1]))
        if residual is not None:
            y = self.add(y, residual)
        return y, ((x, weight, bias is not None, saved_activation) if training else None)

    def linear_backward(
        self,
        dy: Array,
        saved: Saved,
        weight_gradient: Array | None = None,
        need_input: bool = True,
        need_weight: bool = True,
    ) -> tuple[Array | None, Array | None, Array | None]:
        """(dx, dweight, dbias); the residual's gradient is dy itself.

        With `weight_gradient`, dweight is written there. `need_input=False` leaves out dx, `need_weight=False` the
        others.
        """
        x, weight, has_bias, saved_activation = saved
        dh = self._rows(dy)
        if saved_activation is not None:
            dh = self.activation_backward(dh, saved_activation)
        dweight = dbias = None
        if need_weight:
            dweight = self.matmul(self.transpose(self._rows(x), (1, 0)), dh)
            if weight_gradient is not None:
                self.copy_into(weight_gradient, dweight)
                dweight = weight_gradient
            dbias = self.sum(dh, (0,)) if has_bias else None
        dx = self.reshape(self.matmul(dh, self.transpose(weight, (1, 0))), x.shape) if need_input else None
        return dx, dweight, dbias

    def adapted_linear(
        self,
        x: Array,
        weight: Array,
        down: Array,
        up: Array,
        scale: float,
        bias: Array | None = None,
        activation: str = "",
        residual: Array | None = None,
        training: bool = False,
    ) -> tuple[Array, Saved]:
        """`linear` by the weight [K, N] + scale * down [K, r] @ up [r, N], of which these two are trained (LoRA, Hu et
        al. 2021)."""
        adapted = self._adapted(weight, down, up, scale)
        y, saved = self.linear(x, adapted, bias, activation, residual, training)
        return y, ((x, weight, down, up, scale, saved[-1]) if training else None)

    def adapted_linear_backward(
        self, dy: Array, saved: Saved, need_input: bool = True
    ) -> tuple[Array | None, Array, Array]:
        """(dx, ddown, dup); the residual's gradient is dy itself, and `need_input=False` leaves out dx.

        With h what the activation is of, the weight's gradient would be x^T dh, and these are scale * x^T dh up^T and
        scale * down^T x^T dh, multiplied from the side on which the products are narrow.
        """
        x, weight, down, up, scale, saved_activation = saved
        rows, dh = self._rows(x), self._rows(dy)
        if saved_activation is not None:
            dh = self.activation_backward(dh, saved_activation)
        narrow, dnarrow = self.matmul(rows, down), self.matmul(dh, self.transpose(up, (1, 0)))
        ddown = self.multiply(self.matmul(self.transpose(rows, (1, 0)), dnarrow), scale)
        dup = self.multiply(self.matmul(self.transpose(narrow, (1, 0)), dh), scale)
        dx = None
        if need_input:
            # Added up once more, because keeping the sums would take the memory of all weights.
            adapted = self._adapted(weight, down, up, scale)
            dx = self.reshape(self.matmul(dh, self.transpose(adapted, (1, 0))), x.shape)
        return dx, ddown, dup

    def _adapted(self, weight: Array, down: Array, up: Array, scale: float) -> Array:
        return self.add(weight, self.multiply(self.matmul(down, up), scale))

    def _rows(self, x: Array) -> Array:
        return self.reshape(x, (math.prod(x.shape[:-1]), x.shape[-1]))

    # --- normalization ------------------------------------------------------------------------------------------------

    def layer_norm(
        self, x: Array, weight: Array, bias: Array | None, epsilon: float, training: bool = False
    ) -> tuple[Array, Saved]:
        """(x - mean) / sqrt(variance + epsilon) * weight + bias over the last axis (Ba, Kiros and Hinton 2016)."""
        centered = self.subtract(x, self._mean(x))
        scale = self.divide(1.0, self.sqrt(self.add(self._mean(self.multiply(centered, centered)), epsilon)))
        normalized = self.multiply(centered, scale)
        y = self.multiply(normalized, weight)
        if bias is not None:
            y = self.add(y, bias)
        return y, ((normalized, scale, weight, bias is not None) if training else None)

    def layer_norm_backward(
        self, dy: Array, saved: Saved, need_weight: bool = True
    ) -> tuple[Array, Array | None, Array | None]:
        """(dx, dweight, dbias); `need_weight=False` leaves out all but dx."""
        normalized, scale, weight, has_bias = saved
        rows = tuple(range(len(dy.shape) - 1))
        dnormalized = self.multiply(dy, weight)
        along = self.multiply(normalized, self._mean(self.multiply(dnormalized, normalized)))
        dx = self.multiply(self.subtract(self.subtract(dnormalized, self._mean(dnormalized)), along), scale)
        if not need_weight:
            return dx, None, None
        return dx, self.sum(self.multiply(dy, normalized), rows), (self.sum(dy, rows) if has_bias else None)

    def rms_norm(self, x: Array, weight: Array, epsilon: float, training: bool = False) -> tuple[Array, Saved]:
        """x / sqrt(mean(x^2) + epsilon) * weight over the last axis (Zhang and Sennrich 2019)."""
        scale = self.divide(1.0, self.sqrt(self.add(self._mean(self.multiply(x, x)), epsilon)))
        normalized = self.multiply(x, scale)
        return self.multiply(normalized, weight), ((normalized, scale, weight) if training else None)

    def rms_norm_backward(self, dy: Array, saved: Saved, need_weight: bool = True) -> tuple[Array, Array | None]:
        """(dx, dweight); `need_weight=False` leaves out dweight."""
        normalized, scale, weight = saved
        dnormalized = self.multiply(dy, weight)
        along = self.multiply(normalized, self._mean(self.multiply(dnormalized, normalized)))
        dx = self.multiply(self.subtract(dnormalized, along), scale)
        return dx, (self.sum(self.multiply(dy, normalized), tuple(range(len(dy.shape) - 1))) if need_weight else None)

    def _mean(self, x: Array) -> Array:
        return self.multiply(self.sum(x, (-1,), keep=True), 1.0 / x.shape[-1])

    # --- attention ----------------------------------------------------------------------------------------------------

    def rotary(self, x: Array, cosine: Array, sine: Array) -> Array:
        """Rotate the pairs (x[i], x[i + D/2]) of each head (RoFormer, Su et al. 2021; the half-split layout of Llama).

        x [B, T, N, D]; cosine and sine [T, D/2], or [B, T, D/2] where each sequence has positions of its own. The
        backward pass is the rotation by the opposite angle.
        """
        half = x.shape[-1] // 2
        shape = (*cosine.shape[:-1], 1, half)
        cosine, sine = self.reshape(cosine, shape), self.reshape(sine, shape)
        first, second = self.narrow(x, -1, 0, half), self.narrow(x, -1, half, half)
        return self.concatenate(
            [
                self.subtract(self.multiply(first, cosine), self.multiply(second, sine)),
                self.add(self.multiply(second, cosine), self.multiply(first, sine)),
            ],
            -1,
        )

    def split_heads(self, qkv: Array, heads: Heads) -> tuple[Array, Array, Array]:
        """Queries [B, T, H, D], keys and values [B, T, G, D] as attention takes them, of qkv [B, T, H + 2 G, D]."""
        return self._split_heads(qkv, heads, training=False)[0]

    def _split_heads(self, qkv: Array, heads: Heads, training: bool) -> tuple[tuple[Array, Array, Array], Saved]:
        query, key, value = (
            self.narrow(qkv, 2, start, length)
            for start, length in (
                (0, heads.queries), (heads.queries, heads.keys), (heads.queries + heads.keys, heads.keys)
            )
        )  # fmt: skip
        saved = None
        if heads.norms is not None:
            query, of_query = self.rms_norm(query, heads.norms[0], heads.epsilon, training)
            key, of_key = self.rms_norm(key, heads.norms[1], heads.epsilon, training)
            saved = of_query, of_key
        if heads.angles is not None:
            query, key = self.rotary(query, *heads.angles), self.rotary(key, *heads.angles)
        return (query, key, value), saved

    def _split_heads_backward(
        self, gradients: tuple[Array, Array, Array], heads: Heads, saved: Saved, need_weight: bool
    ) -> tuple[Array, Array | None, Array | None]:
        """dqkv, and the gradients of the weights of `heads.norms`; `gradients` may be overwritten."""
        query, key, value = gradients
        query_weight = key_weight = None
        if heads.angles is not None:
            cosine, sine = heads.angles[0], self.multiply(heads.angles[1], -1.0)
            query, key = self.rotary(query, cosine, sine), self.rotary(key, cosine, sine)
        if heads.norms is not None:
            query, query_weight = self.rms_norm_backward(query, saved[0], need_weight)
            key, key_weight = self.rms_norm_backward(key, saved[1], need_weight)
        return self.concatenate([query, key, value], 2), query_weight, key_weight

    def self_attention(
        self,
        qkv: Array,
        heads: Heads,
        soft_cap: float = 0.0,
        dropout: float = 0.0,
        random: RandomKey | None = None,
        training: bool = False,
        first_keys: Array | None = None,
    ) -> tuple[Array, Saved]:
        """`attention` of what `split_heads` makes of qkv [B, T, H + 2 G, D]: [B, T, H, D]."""
        operands, of_heads = self._split_heads(qkv, heads, training)
        y, saved = self.attention(*operands, soft_cap, dropout, random, training, first_keys)
        return y, ((heads, of_heads, saved) if training else None)

    def self_attention_backward(
        self, dy: Array, saved: Saved, need_weight: bool = True
    ) -> tuple[Array, Array | None, Array | None]:
        """dqkv, and the gradients of the weights of `heads.norms`, if there are any; not with `need_weight=False`."""
        heads, of_heads, of_attention = saved
        return self._split_heads_backward(
            self.attention_backward(dy, of_attention), heads, of_heads, need_weight and heads.norms is not None
        )

    def softmax(self, x: Array) -> Array:
        """exp(x - max) / sum over the last axis."""
        exponential = self.exp(self.subtract(x, self.max(x, (-1,), keep=True)))
        return self.divide(exponential, self.sum(exponential, (-1,), keep=True))

    def softmax_backward(self, dy: Array, y: Array) -> Array:
        """The gradient of softmax's operand, given its result y."""
        return self.multiply(y, self.subtract(dy, self.sum(self.multiply(dy, y), (-1,), keep=True)))

    def attention(
        self,
        query: Array,
        key: Array,
        value: Array,
        soft_cap: float = 0.0,
        dropout: float = 0.0,
        random: RandomKey | None = None,
        training: bool = False,
        first_keys: Array | None = None,
    ) -> tuple[Array, Saved]:
        """Causal attention: softmax(query key^T / sqrt(D)) value (Vaswani et al. 2017), with grouped queries.

        query [B, Tq, H, D]; key and value [B, Tk, G, D] with H a multiple of G: query head h uses key head h // (H/G)
        (Ainslie et al. 2023). Query t stands at position Tk - Tq + t and sees the keys up to there. A soft cap c makes
        the scores c tanh(scores / c) (Gemma 2, 2024). Dropout applies to the probabilities.

        With first_keys, integers [B, Tq] that never decrease along a sequence, query t sees the keys from first_keys[t]
        on, itself at least: where documents share a sequence, it is where the query's own document begins.
        """
        B, Tq, H, D = query.shape
        Tk, G = key.shape[1], key.shape[2]
        q = self.reshape(self.transpose(query, (0, 2, 1, 3)), (B, G, H // G, Tq, D))
        k = self.reshape(self.transpose(key, (0, 2, 1, 3)), (B, G, 1, Tk, D))
        v = self.reshape(self.transpose(value, (0, 2, 1, 3)), (B, G, 1, Tk, D))
        scores = self.multiply(self.matmul(q, self.transpose(k, (0, 1, 2, 4, 3))), 1.0 / math.sqrt(D))
        capped = None
        if soft_cap:
            capped = self.tanh(self.multiply(scores, 1.0 / soft_cap))
            scores = self.multiply(capped, soft_cap)
        hidden = self.from_numpy(np.triu(np.full((Tq, Tk), -np.inf, np.float32), Tk - Tq + 1))
        scores = self.add(scores, self.cast(hidden, scores.dtype))
        if first_keys is not None:
            keys = self.from_numpy(np.arange(Tk, dtype=np.int32))
            scores = self.where(self.greater(self.reshape(first_keys, (B, 1, 1, Tq, 1)), keys), -math.inf, scores)
        probabilities = self.softmax(scores)
        kept = self.dropout(probabilities, dropout, random)
        out = self.matmul(kept, v)
        out = self.transpose(self.reshape(out, (B, H, Tq, D)), (0, 2, 1, 3))
        return out, ((q, k, v, probabilities, kept, capped, dropout, random) if training else None)

    def attention_backward(self, dy: Array, saved: Saved) -> tuple[Array, Array, Array]:
        """(dquery, dkey, dvalue)."""
        q, k, v, probabilities, kept, capped, dropout, random = saved
        B, G, group, Tq, D = q.shape
        Tk, H = k.shape[3], G * group
        dout = self.reshape(self.transpose(dy, (0, 2, 1, 3)), (B, G, group, Tq, D))
        dv = self.sum(self.matmul(self.transpose(kept, (0, 1, 2, 4, 3)), dout), (2,))
        dprobabilities = self.dropout(self.matmul(dout, self.transpose(v, (0, 1, 2, 4, 3))), dropout, random)
        dscores = self.softmax_backward(dprobabilities, probabilities)
        if capped is not None:
            dscores = self.multiply(dscores, self.subtract(1.0, self.multiply(capped, capped)))
        dscores = self.multiply(dscores, 1.0 / math.sqrt(D))
        dq = self.reshape(self.matmul(dscores, k), (B, H, Tq, D))
        dk = self.sum(self.matmul(self.transpose(dscores, (0, 1, 2, 4, 3)), q), (2,))
        heads_last = (0, 2, 1, 3)
        return (
            self.transpose(dq, heads_last),
            self.transpose(self.reshape(dk, (B, G, Tk, D)), heads_last),
            self.transpose(self.reshape(dv, (B, G, Tk, D)), heads_last),
        )

    def put_rows(self, target: Array, ids: Array, rows: Array) -> None:
        """target[ids[i]] = rows[i], in place; target [R, ...], integer ids [N], rows [N, ...].

        Of several rows with one id, any one or a sum of them may come to stand there.
        """
        count, width = target.shape[0], math.prod(target.shape[1:])
        flat = self.reshape(rows, (ids.shape[0], width))
        there = self.scatter_add_rows(ids, self._ones((ids.shape[0], 1), target.dtype), count)
        put = self.scatter_add_rows(ids, flat, count)
        kept = self.reshape(target, (count, width))
        self.copy_into(target, self.reshape(self.where(self.greater(there, 0.5), put, kept), target.shape))

    def newest_ids(self, newest: Array, slots: Array, given: Array) -> Array:
        """newest[slots[i]], or given[i] where that slot is the last one; int32 newest [S], slots and given [N]."""
        of_slots = self.reshape(self.gather_rows(self.reshape(newest, (newest.shape[0], 1)), slots), slots.shape)
        return self.where(self.greater(newest.shape[0] - 1, slots), of_slots, given)

    def _ones(self, shape: tuple[int, ...], dtype: npt.DTypeLike) -> Array:
        ones = self.empty(shape, dtype)
        self.fill(ones, 1)
        return ones

    def cached_attention(
        self,
        query: Array,
        keys: Array,
        values: Array,
        sequences: Array,
        positions: Array,
        tables: Array,
        soft_cap: float = 0.0,
    ) -> Array:
        """`attention` of single queries of any sequences to keys and values that stand in blocks.

        query [N, H, D]; keys and values [blocks, tokens of a block, G, D]; integers sequences, positions [N] and tables
        [S, P]. Query i stands at positions[i] of sequence sequences[i] and sees the keys up to there; those of its
        positions p stand in block tables[sequences[i], p // tokens of a block]. Returns [N, H, D]. The bits of a row
        depend neither on the other rows nor on what stands behind its position.
        """
        (N, H, D), (_, tokens, G, _), P = query.shape, keys.shape, tables.shape[1]
        blocks = self.reshape(self.gather_rows(tables, sequences), (N * P,))
        places = self.from_numpy(np.arange(P * tokens, dtype=np.int32))
        future = self.greater(places, self.reshape(positions, (N, 1)))
        stores = [self.reshape(each, (each.shape[0], tokens * G * D)) for each in (keys, values)]
        k, v = (self.reshape(self.gather_rows(each, blocks), (N, P * tokens, G, 1, D)) for each in stores)
        v = self.where(self.reshape(future, (N, P * tokens, 1, 1, 1)), 0.0, v)
        k, v = (self.transpose(each, (0, 2, 3, 1, 4)) for each in (k, v))
        q = self.reshape(query, (N, G, H // G, 1, D))
        scores = self.multiply(self.matmul(q, self.transpose(k, (0, 1, 2, 4, 3))), 1.0 / math.sqrt(D))
        if soft_cap:
            scores = self.multiply(self.tanh(self.multiply(scores, 1.0 / soft_cap)), soft_cap)
        scores = self.where(self.reshape(future, (N, 1, 1, 1, P * tokens)), -math.inf, scores)
        return self.reshape(self.matmul(self.softmax(scores), v), (N, H, D))

    def dropout(self, x: Array, probability: float, key: RandomKey | None) -> Array:
        """Zero each element with `probability` and divide the others by 1 - probability (Srivastava et al. 2014).

        Element i is dropped when 16-bit random integer i of the key is below probability * 2^16. The backward pass is
        the same operation on the gradient.
        """
        if not probability or key is None:
            return x
        dropped = self.greater(round(probability * 2**16), self.random_uint16(x.shape, key))
        return self.where(dropped, 0.0, self.multiply(x, 1.0 / (1.0 - probability)))

    # --- loss ---------------------------------------------------------------------------------------------------------

    def cross_entropy(
        self,
        x: Array,
        weight: Array,
        targets: Array,
        soft_cap: float = 0.0,
        training: bool = False,
        need_weight: bool = True,
    ) -> tuple[Array, Saved]:
        """The output head and its loss in one: mean over targets of logsumexp(logits) - logits[target], in nats.

        x [M, C], weight [V, C], logits = x @ weight^T, softly capped at `soft_cap` when that is not 0; targets [M]
        integers, negative ones are left out of the mean. The result has shape []. A backend may work through the rows
        in chunks so that the M x V logits never exist as a whole. With `need_weight=False` the backward half makes no
        dweight.
        """
        counted = self.greater(targets, -0.5)
        weights = self.cast(counted, x.dtype)
        weights = self.divide(weights, self.maximum(self.sum(weights, (0,)), 1.0))
        losses, (ids, exponential, total, capped) = self._head_losses(x, weight, targets, soft_cap)
        loss = self.sum(self.multiply(losses, weights), (0,))
        if not training:
            return loss, None
        vocabulary = self.from_numpy(np.arange(weight.shape[0], dtype=np.int32))
        hits = self.equal(self.reshape(ids, (*ids.shape, 1)), vocabulary)
        dlogits = self.subtract(self.divide(exponential, total), self.cast(hits, x.dtype))
        dlogits = self.multiply(dlogits, self.reshape(weights, (*weights.shape, 1)))
        if capped is not None:
            dlogits = self.multiply(dlogits, self.subtract(1.0, self.multiply(capped, capped)))
        return loss, (x, weight, dlogits, need_weight)

    def row_losses(self, x: Array, weight: Array, targets: Array, soft_cap: float = 0.0) -> Array:
        """What `cross_entropy` is the mean of: the loss of each row [M], 0 where the target is negative."""
        losses, _ = self._head_losses(x, weight, targets, soft_cap)
        return self.where(self.greater(targets, -0.5), losses, 0.0)

    def _head_losses(
        self, x: Array, weight: Array, targets: Array, soft_cap: float
    ) -> tuple[Array, tuple[Array, Array, Array, Array | None]]:
        """The loss of each row, if target 0 stands for a negative one, and what the derivative needs: targets [M],
        exponentials of shifted logits [M, V], their sums [M, 1] and, with a cap, capped logits over the cap [M, V]."""
        ids = self.where(self.greater(targets, -0.5), targets, 0)
        logits = self.matmul(x, self.transpose(weight, (1, 0)))
        capped = None
        if soft_cap:
            capped = self.tanh(self.multiply(logits, 1.0 / soft_cap))
            logits = self.multiply(capped, soft_cap)
        shifted = self.subtract(logits, self.max(logits, (-1,), keep=True))
        exponential = self.exp(shifted)
        total = self.sum(exponential, (-1,), keep=True)
        losses = self.subtract(self.reshape(self.log(total), ids.shape), self.pick(shifted, ids))
        return losses, (ids, exponential, total, capped)

    def cross_entropy_backward(
        self, dloss: Array, saved: Saved, weight_gradient: Array | None = None
    ) -> tuple[Array, Array | None]:
        """(dx, dweight); with `weight_gradient`, dweight is written there."""
        x, weight, dlogits, need_weight = saved
        dlogits = self.multiply(dlogits, dloss)
        if not need_weight:
            return self.matmul(dlogits, weight), None
        dweight = self.matmul(self.transpose(dlogits, (1, 0)), x)
        if weight_gradient is not None:
            self.copy_into(weight_gradient, dweight)
            dweight = weight_gradient
        return self.matmul(dlogits, weight), dweight
