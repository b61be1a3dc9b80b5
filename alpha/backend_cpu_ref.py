"""The reference backend: numpy's primitives, with the fused operations done block by block on a few threads.

How an operation is divided into parts depends on the shapes alone, and every product runs on one BLAS thread, so the
results have the same bits whatever `threads` is. Outside training, no row of a linear layer, a norm or
`cached_attention` depends on the other rows.
"""

import functools
import os
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from alpha import backend_cpu_ref_attention as attention_parts
from alpha import backend_cpu_ref_kernels as kernels
from alpha import backend_cpu_ref_rows as native
from alpha import backend_cpu_ref_sidecar as sidecar
from alpha import backend_cpu_ref_training as native_training
from alpha import rng, workers
from alpha.activation import GATED_ACTIVATIONS
from alpha.backend import Heads, Saved
from alpha.backend_cpu_ref_attention import AttentionCall, CachedCall
from alpha.backend_cpu_ref_libraries import keep_freed_memory, use_one_blas_thread
from alpha.backend_cpu_ref_primitives import NumpyArray, Part
from alpha.backend_cpu_ref_products import product_parts
from alpha.backend_cpu_ref_program import RecordedStep
from alpha.backend_cpu_ref_updates import FLAT_BLOCK, Updates, slices
from alpha.backend_primitives import RandomKey
from alpha.workers import WorkerPool, WorkerProcesses, available_cpus, startable_threads

BLOCK_BYTES = 1 << 19  # fits the cache; with smaller ones threads wait more for the interpreter lock
PART_FLOPS = 1 << 27
SMALLEST_PART = 512
BATCH_PARTS = {2: 512, 4: 8192, 8: 16384}  # parts of a batch, and from how many tokens on they are worth it
HEAD_CHUNK = 1 << 24


class CpuRef(Updates):
    """The reference backend. `threads` may be changed between operations."""

    name = "cpu_ref"

    def __init__(self, threads: int = 1) -> None:
        use_one_blas_thread()
        keep_freed_memory()
        self._pool = WorkerPool(threads)
        self._process = os.getpid()

    @property
    def threads(self) -> int:
        return self._pool.threads

    @threads.setter
    def threads(self, threads: int) -> None:
        self._pool.threads = threads

    def thread_choices(self) -> list[int]:
        """1, 2, 4 and so on up to the number of CPUs that the process may use, or of threads that it may start."""
        cpus = 1 + startable_threads(available_cpus() - 1)
        return sorted({min(cpus, 1 << power) for power in range(cpus.bit_length() + 1)})

    # --- a batch in parts ---------------------------------------------------------------------------------------------

    def batch_parts(self, sequences: int, length: int) -> int:
        possible = [
            parts for parts, tokens in BATCH_PARTS.items() if sequences * length >= tokens and sequences % parts == 0
        ]
        return max(possible, default=1)

    def shared_zeros(self, shape: Sequence[int], dtype: npt.DTypeLike = np.float32) -> NumpyArray:
        return workers.shared_zeros(shape, dtype)

    def side_by_side(self, work: Callable[[int], None], parts: int) -> Callable[[], None]:
        if parts == 1:
            return functools.partial(work, 0)

        def work_on(part: int, threads: int) -> None:
            if self._process != os.getpid():  # a forked one, which has none of the pool's threads
                self._pool, self._process = WorkerPool(threads), os.getpid()
            whole, self.threads = self.threads, threads
            try:
                work(part)
            finally:
                self.threads = whole

        processes = WorkerProcesses(work_on, parts)
        return lambda: processes.run(self.threads)

    def record_inference(self, program: Callable[..., Any]) -> Callable[..., Any]:
        return RecordedStep(self, program)

    def add_into(self, target: NumpyArray, source: NumpyArray) -> None:
        if target.ndim > 1 or target.shape != source.shape:
            super().add_into(target, source)
            return

        def part(block: slice) -> None:
            target[block] += source[block]

        self.run_parts([(part, block) for block in slices(target.size, FLAT_BLOCK)])

    def scatter_add_rows(self, ids: NumpyArray, rows: NumpyArray, count: int) -> NumpyArray:
        if not sidecar.can_do(rows):
            return super().scatter_add_rows(ids, rows, count)
        result = np.zeros((count, rows.shape[-1]), rows.dtype)
        native_training.add_rows(result, ids.reshape(-1), self._rows(rows))
        return result

    # --- products -----------------------------------------------------------------------------------------------------

    def matmul(self, a: NumpyArray, b: NumpyArray) -> NumpyArray:
        if a.ndim != 2 or b.ndim != 2:
            return np.matmul(a, b)
        out = np.empty((a.shape[0], b.shape[1]), np.result_type(a, b))
        self.run_parts(_product_parts(a, b, out))
        return out

    def linear(
        self,
        x: NumpyArray,
        weight: NumpyArray,
        bias: NumpyArray | None = None,
        activation: str = "",
        residual: NumpyArray | None = None,
        training: bool = False,
    ) -> tuple[NumpyArray, Saved]:
        rows, N = self._rows(x), weight.shape[1]
        if not training and sidecar.can_do(x, weight):
            return self._linear_of_rows(x, weight, bias, activation, residual), None
        width = N // 2 if activation in GATED_ACTIVATIONS else N
        y = np.empty((rows.shape[0], width), x.dtype)
        slope = np.empty((rows.shape[0], N), x.dtype) if activation and training else None
        residual_rows = None if residual is None else self._rows(residual)
        product = None
        if not training:  # then the bits of a row do not depend on the others
            product = y if width == N else np.empty((rows.shape[0], N), x.dtype)
            self.run_parts(product_parts(rows, weight, product))

        def part(block: slice) -> None:
            if product is None:
                h = y[block] if width == N else np.empty((block.stop - block.start, N), x.dtype)
                np.matmul(rows[block], weight, out=h)
            else:
                h = product[block]
            for inner in _blocks(h.shape[0], N * h.itemsize):
                outer = slice(block.start + inner.start, block.start + inner.stop)
                if bias is not None:
                    h[inner] += bias
                if activation:
                    kernels.activate(h[inner], activation, y[outer], None if slope is None else slope[outer])
                if residual_rows is not None:
                    y[outer] += residual_rows[outer]

        self.run_parts([(part, block) for block in _product_rows(rows.shape[0], 2 * weight.size)])
        return y.reshape(*x.shape[:-1], width), ((x, weight, bias is not None, slope) if training else None)

    def _linear_of_rows(
        self, x: NumpyArray, weight: NumpyArray, bias: NumpyArray | None, activation: str, residual: NumpyArray | None
    ) -> NumpyArray:
        """`linear` in the native sidecar."""
        rows, N = self._rows(x), weight.shape[1]
        y = np.empty((rows.shape[0], N), x.dtype)
        late = None if activation or residual is None else self._rows(residual)
        self.run_parts([native.linear_part(rows, weight, bias, late, y, self.threads)])
        if activation:
            y, _ = self.activation(y, activation)
            if residual is not None:
                self.run_parts([(functools.partial(np.add, y, out=y), self._rows(residual))])
        return y.reshape(*x.shape[:-1], y.shape[1])

    def linear_backward(
        self,
        dy: NumpyArray,
        saved: Saved,
        weight_gradient: NumpyArray | None = None,
        need_input: bool = True,
        need_weight: bool = True,
    ) -> tuple[NumpyArray | None, NumpyArray | None, NumpyArray | None]:
        x, weight, has_bias, slope = saved
        rows, dh = self._rows(x), self._rows(dy)
        if slope is not None:
            dh = self._scale_by_slope(dh, slope)
        parts: list[Part] = []
        dx = dweight = dbias = None
        if need_weight:
            dweight = np.empty(weight.shape, dh.dtype) if weight_gradient is None else weight_gradient
            parts += _product_parts(rows.T, dh, dweight)
        if need_input:
            dx = np.empty(rows.shape, dh.dtype)
            parts += _product_parts(dh, weight.T, dx)
        if has_bias and need_weight:
            dbias = np.empty(dh.shape[1:], dh.dtype)
            parts.append((functools.partial(kernels.sum_of_rows, dh), dbias))
        self.run_parts(parts)
        return (None if dx is None else dx.reshape(x.shape)), dweight, dbias

    def _scale_by_slope(self, dy: NumpyArray, slope: NumpyArray) -> NumpyArray:
        dh = np.empty(slope.shape, dy.dtype)

        def part(block: slice) -> None:
            kernels.scale_by_slope(dy[block], slope[block], dh[block])

        self._run_blocks(part, slope.shape[0], slope.shape[1] * slope.itemsize)
        return dh

    # --- activations and normalization --------------------------------------------------------------------------------

    def activation(self, x: NumpyArray, kind: str, training: bool = False) -> tuple[NumpyArray, Saved]:
        rows = self._rows(x)
        width = rows.shape[1] // 2 if kind in GATED_ACTIVATIONS else rows.shape[1]
        y = np.empty((rows.shape[0], width), x.dtype)
        slope = np.empty(rows.shape, x.dtype) if training else None

        def part(block: slice) -> None:
            kernels.activate(rows[block], kind, y[block], None if slope is None else slope[block])

        self._run_blocks(part, rows.shape[0], rows.shape[1] * rows.itemsize)
        return y.reshape(*x.shape[:-1], width), slope

    def activation_backward(self, dy: NumpyArray, saved: Saved) -> NumpyArray:
        return self._scale_by_slope(self._rows(dy), saved).reshape(*dy.shape[:-1], saved.shape[-1])

    def layer_norm(
        self, x: NumpyArray, weight: NumpyArray, bias: NumpyArray | None, epsilon: float, training: bool = False
    ) -> tuple[NumpyArray, Saved]:
        rows = self._rows(x)
        y = np.empty(rows.shape, x.dtype)
        if not training and sidecar.can_do(x, weight):
            self.run_parts([native.norm_part(rows, weight, bias, epsilon, True, y)])
            return y.reshape(x.shape), None
        normalized = np.empty(rows.shape, x.dtype) if training else y
        scale = np.empty((rows.shape[0], 1), x.dtype)

        def part(block: slice) -> None:
            kernels.layer_norm(rows[block], weight, bias, epsilon, y[block], normalized[block], scale[block])

        self._run_blocks(part, rows.shape[0], rows.shape[1] * rows.itemsize)
        return y.reshape(x.shape), ((normalized, scale, weight, bias is not None) if training else None)

    def layer_norm_backward(
        self, dy: NumpyArray, saved: Saved, need_weight: bool = True
    ) -> tuple[NumpyArray, NumpyArray | None, NumpyArray | None]:
        normalized, scale, weight, has_bias = saved
        dx, dweight = self._norm_backward(dy, normalized, scale, weight, centered=True)
        if not need_weight:
            return dx, None, None
        dbias = None
        if has_bias:
            dbias = np.empty(dweight.shape, dweight.dtype)
            kernels.sum_of_rows(self._rows(dy), dbias)
        return dx, dweight, dbias

    def rms_norm(
        self, x: NumpyArray, weight: NumpyArray, epsilon: float, training: bool = False
    ) -> tuple[NumpyArray, Saved]:
        rows = self._rows(x)
        y = np.empty(rows.shape, x.dtype)
        if not training and sidecar.can_do(x, weight):
            self.run_parts([native.norm_part(rows, weight, None, epsilon, False, y)])
            return y.reshape(x.shape), None
        normalized = np.empty(rows.shape, x.dtype) if training else y
        scale = np.empty((rows.shape[0], 1), x.dtype)

        def part(block: slice) -> None:
            kernels.rms_norm(rows[block], weight, epsilon, y[block], normalized[block], scale[block])

        self._run_blocks(part, rows.shape[0], rows.shape[1] * rows.itemsize)
        return y.reshape(x.shape), ((normalized, scale, weight) if training else None)

    def rms_norm_backward(
        self, dy: NumpyArray, saved: Saved, need_weight: bool = True
    ) -> tuple[NumpyArray, NumpyArray | None]:
        normalized, scale, weight = saved
        dx, dweight = self._norm_backward(dy, normalized, scale, weight, centered=False)
        return dx, (dweight if need_weight else None)

    def _norm_backward(
        self, dy: NumpyArray, normalized: NumpyArray, scale: NumpyArray, weight: NumpyArray, centered: bool
    ) -> tuple[NumpyArray, NumpyArray]:
        rows, width = self._rows(dy), dy.shape[-1]
        blocks = _blocks(rows.shape[0], width * rows.itemsize)
        dx = np.empty(rows.shape, rows.dtype)
        dweights = np.empty((len(blocks), width), rows.dtype)

        def part(index: int) -> None:
            block = blocks[index]
            kernels.norm_backward(
                rows[block], normalized[block], scale[block], weight, centered, dx[block], dweights[index]
            )

        self.run_parts([(part, index) for index in range(len(blocks))])
        return dx.reshape(dy.shape), np.add.reduce(dweights, axis=0)

    # --- attention ----------------------------------------------------------------------------------------------------

    def attention(
        self,
        query: NumpyArray,
        key: NumpyArray,
        value: NumpyArray,
        soft_cap: float = 0.0,
        dropout: float = 0.0,
        random: RandomKey | None = None,
        training: bool = False,
        first_keys: NumpyArray | None = None,
    ) -> tuple[NumpyArray, Saved]:
        B, Tq, H, _ = query.shape
        kept = None
        if dropout and random is not None:
            kept = self.dropout(np.ones((B, H, Tq, key.shape[1]), query.dtype), dropout, random)
        out = np.empty(query.shape, query.dtype)
        call = AttentionCall(query, key, value, out, soft_cap, kept, {} if training else None, first_keys)
        part = functools.partial(attention_parts.forward, call)
        self.run_parts([(part, which) for which in call.parts()])
        return call.out, (call if training else None)

    def attention_backward(self, dy: NumpyArray, saved: Saved) -> tuple[NumpyArray, NumpyArray, NumpyArray]:
        B, T, H, D = saved.query.shape
        G = saved.key.shape[2]
        if saved.key.shape[1] == T:
            # Side by side in one array, as the projection that made them wants them back (see `concatenate`).
            packed = np.empty((B, T, H + 2 * G, D), dy.dtype)
            dq, dk, dv = packed[:, :, :H], packed[:, :, H : H + G], packed[:, :, H + G :]
        else:
            dq, dk, dv = (np.empty(each.shape, dy.dtype) for each in (saved.query, saved.key, saved.value))

        part = functools.partial(attention_parts.backward, saved, dy, dq, dk, dv)
        self.run_parts([(part, which) for which in saved.parts()])
        return dq, dk, dv

    def _split_heads(
        self, qkv: NumpyArray, heads: Heads, training: bool
    ) -> tuple[tuple[NumpyArray, NumpyArray, NumpyArray], Saved]:
        is_plain = heads.norms is None and heads.angles is None
        if is_plain or not training or not sidecar.can_do(qkv):
            return super()._split_heads(qkv, heads, training)
        qkv, H, G = np.ascontiguousarray(qkv), heads.queries, heads.keys
        query, key, value = qkv[:, :, :H], qkv[:, :, H : H + G], qkv[:, :, H + G :]
        calls = [
            native_training.HeadsCall(x, weight, heads.epsilon, heads.angles)
            for x, weight in zip((query, key), heads.norms or (None, None), strict=True)
        ]
        self.run_parts([part for call in calls for part in call.forward_parts()])
        return (calls[0].y, calls[1].y, value), calls

    def _split_heads_backward(
        self, gradients: tuple[NumpyArray, NumpyArray, NumpyArray], heads: Heads, saved: Saved, need_weight: bool
    ) -> tuple[NumpyArray, NumpyArray | None, NumpyArray | None]:
        if not isinstance(saved, list):  # then `Backend` made it
            return super()._split_heads_backward(gradients, heads, saved, need_weight)
        sums = [call.weight_sums() for call in saved]
        self.run_parts(
            [
                part
                for each in zip(saved, gradients[:2], sums, strict=True)
                for part in each[0].backward_parts(*each[1:])
            ]
        )
        dquery_weight, dkey_weight = (np.add.reduce(each, axis=0) if need_weight else None for each in sums)
        return self.concatenate(gradients, 2), dquery_weight, dkey_weight

    def concatenate(self, parts: Sequence[NumpyArray], axis: int) -> NumpyArray:
        """Without a copy when the parts are neighbours in one array already."""
        first = parts[0]
        address = first.__array_interface__["data"][0]
        length = 0
        for part in parts:
            beside = part.__array_interface__["data"][0] == address + length * first.strides[axis]
            if part.base is None or part.base is not first.base or part.strides != first.strides or not beside:
                return np.concatenate(parts, axis)
            length += part.shape[axis]
        shape = list(first.shape)
        shape[axis] = length
        return np.lib.stride_tricks.as_strided(first, shape, first.strides)

    def rotary(self, x: NumpyArray, cosine: NumpyArray, sine: NumpyArray) -> NumpyArray:
        half = x.shape[-1] // 2
        cosines, sines = (np.broadcast_to(each, (*x.shape[:2], half))[:, :, None] for each in (cosine, sine))
        y = np.empty(x.shape, x.dtype)

        def part(b: int) -> None:
            first, second = x[b, ..., :half], x[b, ..., half:]
            np.multiply(first, cosines[b], out=y[b, ..., :half])
            y[b, ..., :half] -= second * sines[b]
            np.multiply(second, cosines[b], out=y[b, ..., half:])
            y[b, ..., half:] += first * sines[b]

        self.run_parts([(part, b) for b in range(x.shape[0])])
        return y

    def put_rows(self, target: NumpyArray, ids: NumpyArray, rows: NumpyArray) -> None:
        target[ids] = rows

    def cached_attention(
        self,
        query: NumpyArray,
        keys: NumpyArray,
        values: NumpyArray,
        sequences: NumpyArray,
        positions: NumpyArray,
        tables: NumpyArray,
        soft_cap: float = 0.0,
    ) -> NumpyArray:
        call = CachedCall(
            query, keys, values, sequences, positions, tables, np.empty(query.shape, query.dtype), soft_cap
        )
        if not len(query):
            return call.out
        if sidecar.can_do(query, keys, values):
            self.run_parts([native.attention_part(call, self.threads)])
        else:
            part = functools.partial(attention_parts.cached, call)
            self.run_parts([(part, rows) for rows in call.parts()])
        return call.out

    def dropout(self, x: NumpyArray, probability: float, key: RandomKey | None) -> NumpyArray:
        if not probability or key is None:
            return x
        threshold, scale = round(probability * 2**16), 1.0 / (1.0 - probability)
        flat = np.ascontiguousarray(x).reshape(-1)
        y = np.empty(flat.shape, flat.dtype)
        step = int(key.step[0])

        def part(block: slice) -> None:
            bits = rng.random_uint16(block.stop - block.start, key.seed, key.stream, step, block.start)
            np.multiply(flat[block], bits >= threshold, out=y[block])
            y[block] *= scale

        self.run_parts([(part, block) for block in slices(flat.size, FLAT_BLOCK)])
        return y.reshape(x.shape)

    # --- loss ---------------------------------------------------------------------------------------------------------

    def cross_entropy(
        self,
        x: NumpyArray,
        weight: NumpyArray,
        targets: NumpyArray,
        soft_cap: float = 0.0,
        training: bool = False,
        need_weight: bool = True,
    ) -> tuple[NumpyArray, Saved]:
        counted = targets >= 0
        weights = (counted / max(1, int(np.count_nonzero(counted)))).astype(x.dtype)[:, None]
        dx = np.empty(x.shape, x.dtype) if training else None
        dweight = np.zeros(weight.shape, x.dtype) if training and need_weight else None
        losses = self._losses_of_rows(x, weight, np.where(counted, targets, 0), weights, soft_cap, dx, dweight)
        return np.add.reduce(losses * weights).reshape(()), ((dx, dweight) if training else None)

    def row_losses(self, x: NumpyArray, weight: NumpyArray, targets: NumpyArray, soft_cap: float = 0.0) -> NumpyArray:
        counted = targets >= 0
        weights = counted.astype(x.dtype)[:, None]
        losses = self._losses_of_rows(x, weight, np.where(counted, targets, 0), weights, soft_cap, None, None)
        return np.where(counted, losses[:, 0], x.dtype.type(0))

    def _losses_of_rows(
        self, x: NumpyArray, weight: NumpyArray, ids: NumpyArray, weights: NumpyArray, soft_cap: float,
        dx: NumpyArray | None, dweight: NumpyArray | None,
    ) -> NumpyArray:  # fmt: skip
        """The loss of each row [M, 1]; `weights` [M, 1] are the shares in the mean whose gradients go to dx and, added
        up, to dweight."""
        M, V = x.shape[0], weight.shape[0]
        losses = np.empty((M, 1), x.dtype)
        for chunk in slices(M, max(1, HEAD_CHUNK // V)):
            dlogits = np.empty((chunk.stop - chunk.start, V), x.dtype)
            part = functools.partial(
                kernels.cross_entropy, x[chunk], weight, ids[chunk], weights[chunk], soft_cap, losses[chunk], dlogits,
                None if dx is None else dx[chunk],
            )  # fmt: skip
            self.run_parts([(part, block) for block in _product_rows(dlogits.shape[0], 2 * weight.size)])
            if dweight is not None and chunk.start == 0:
                self.run_parts(_product_parts(dlogits.T, x[chunk], dweight))
            elif dweight is not None:
                dweight += self.matmul(dlogits.T, x[chunk])
        return losses

    def cross_entropy_backward(
        self, dloss: NumpyArray, saved: Saved, weight_gradient: NumpyArray | None = None
    ) -> tuple[NumpyArray, NumpyArray | None]:
        dx, dweight = saved
        if dweight is None:
            return dx * dloss, None
        if weight_gradient is None:
            weight_gradient = np.empty(dweight.shape, dweight.dtype)
        np.multiply(dweight, dloss, out=weight_gradient)
        return dx * dloss, weight_gradient

    # --- parts --------------------------------------------------------------------------------------------------------

    def _rows(self, x: NumpyArray) -> NumpyArray:
        return x if x.ndim == 2 else x.reshape(-1, x.shape[-1])

    def run_parts(self, parts: Sequence[Part]) -> None:
        """Do all parts of an operation, side by side where there are threads for it."""
        self._pool.run(_call, parts)

    def _run_blocks(self, function: Callable[[slice], None], rows: int, row_bytes: int) -> None:
        self.run_parts([(function, block) for block in _blocks(rows, row_bytes)])


def _call(part: Part) -> None:
    function, argument = part
    function(argument)


def _blocks(rows: int, row_bytes: int) -> tuple[slice, ...]:
    """Ranges of rows that fit the cache."""
    return slices(rows, max(1, BLOCK_BYTES // row_bytes))


def _product_rows(size: int, flops_each: int) -> tuple[slice, ...]:
    """Equal ranges of `size` rows or columns of a product: few, because each one packs the other operand again.

    Their number is a power of two, so that it can be shared out evenly.
    """
    wanted = max(1, min(size * flops_each // PART_FLOPS, size // SMALLEST_PART))
    return slices(size, -(-size // (1 << (wanted.bit_length() - 1)))) if size else ()


def _product_parts(a: NumpyArray, b: NumpyArray, out: NumpyArray) -> list[Part]:
    """The product a @ b, divided along the longer side of `out`."""
    (M, K), N = a.shape, b.shape[1]

    def part(block: tuple[slice, slice]) -> None:
        np.matmul(a[block[0]], b[:, block[1]], out=out[block])

    whole = slice(None)
    if M >= N:
        return [(part, (rows, whole)) for rows in _product_rows(M, 2 * K * N)]
    return [(part, (whole, columns)) for columns in _product_rows(N, 2 * K * M)]
