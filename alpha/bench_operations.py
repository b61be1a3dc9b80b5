"""What `alpha bench` measures of the operations of a training step, and how much work each is.

Each function returns what can be measured of an operation, by name: `forward` is the half that keeps what `backward`
needs. Rates count what the operation needs at least: its multiplications and additions, or the bytes of its operands
and results once each, whatever a backend does beyond that. M = B T rows, K inputs, N outputs, F = 4 C; other letters
as in `backend`.
"""

from collections.abc import Callable

import numpy as np

from alpha import rng
from alpha.activation import GATED_ACTIVATIONS
from alpha.backend import Backend, Heads, Saved
from alpha.backend_primitives import Array, RandomKey
from alpha.backend_updates import AdamControl
from alpha.bench import Work
from alpha.config import ModelConfig
from alpha.gpt import rotary_tables

Works = dict[str, Work]
Operands = Callable[[Backend], list[Array]]

_FLOAT_BYTES = 4
_SEED = 42


# --- products ---------------------------------------------------------------------------------------------------------


def linear(M: int, K: int, N: int, activation: str = "", residual: bool = False) -> Works:
    """x @ weight + bias, then an activation or a residual; the gradient of the weight goes into a given array."""

    def operands(backend: Backend) -> list[Array]:
        return normal(backend, (M, K), (K, N), (N,), (M, N), (K, N))

    def forward(backend: Backend, x: Array, weight: Array, bias: Array, added: Array, _: Array) -> tuple[Array, Saved]:
        return backend.linear(x, weight, bias, activation, added if residual else None, training=True)

    def backward(backend: Backend, dy: Array, saved: Saved, *operands: Array) -> object:
        return backend.linear_backward(dy, saved, operands[-1])

    shape = f"{M}x{K} @ {K}x{N}" + (f" {activation}" if activation else "") + (" + residual" if residual else "")
    return _pair(shape, "GFLOP/s", (2 * M * K * N, 4 * M * K * N), operands, forward, backward)


def linear_products(M: int, K: int, N: int) -> Works:
    """The matrix products of `linear` and nothing else."""

    def operands(backend: Backend) -> list[Array]:
        return normal(backend, (M, K), (K, N), (M, N))

    def forward(backend: Backend, x: Array, weight: Array, _: Array) -> object:
        return backend.matmul(x, weight)

    def backward(backend: Backend, x: Array, weight: Array, dy: Array) -> object:
        return backend.matmul(_swapped(backend, x), dy), backend.matmul(dy, _swapped(backend, weight))

    shape = f"{M}x{K} @ {K}x{N}"
    return {
        "forward": _work(shape, "GFLOP/s", 2 * M * K * N, operands, forward),
        "backward": _work(shape, "GFLOP/s", 4 * M * K * N, operands, backward),
    }


def attention(B: int, T: int, H: int, D: int) -> Works:
    """Causal attention; half of all pairs of positions count."""
    shape = (B, T, H, D)
    half_of_a_product = B * H * T * T * D
    return _pair(
        f"{B}x{T}x{H}x{D} causal",
        "GFLOP/s",
        (2 * half_of_a_product, 4 * half_of_a_product),
        lambda backend: normal(backend, shape, shape, shape),
        lambda backend, query, key, value: backend.attention(query, key, value, training=True),
        lambda backend, dy, saved, *_: backend.attention_backward(dy, saved),
    )


def attention_products(B: int, T: int, H: int, D: int) -> Works:
    """The matrix products of attention and nothing else, of all pairs of positions."""
    product = 2 * B * H * T * T * D

    def operands(backend: Backend) -> list[Array]:
        return normal(backend, (B, H, T, D), (B, H, T, T))

    def forward(backend: Backend, rows: Array, scores: Array) -> tuple[Array, ...]:
        return backend.matmul(rows, _swapped(backend, rows)), backend.matmul(scores, rows)

    def backward(backend: Backend, rows: Array, scores: Array) -> object:
        swapped = _swapped(backend, scores)
        return (*forward(backend, rows, scores), backend.matmul(swapped, rows), backend.matmul(swapped, rows))

    shape = f"{B}x{H}x{T}x{D} all pairs"
    return {
        "forward": _work(shape, "GFLOP/s", 2 * product, operands, forward),
        "backward": _work(shape, "GFLOP/s", 4 * product, operands, backward),
    }


def cross_entropy(M: int, C: int, V: int) -> Works:
    """The output head and its loss, forward and backward in one: a backend may do the work in either half."""

    def operands(backend: Backend) -> list[Array]:
        return [*normal(backend, (M, C), (V, C)), _ids(backend, M, V), backend.from_numpy(np.array(1.0, np.float32))]

    def run(backend: Backend, x: Array, weight: Array, targets: Array, one: Array) -> object:
        _, saved = backend.cross_entropy(x, weight, targets, training=True)
        return backend.cross_entropy_backward(one, saved)

    return {"": _work(f"{M}x{C} @ {C}x{V}", "GFLOP/s", 6 * M * C * V, operands, run)}


def cross_entropy_products(M: int, C: int, V: int) -> Works:
    """The matrix products of the output head and nothing else."""

    def operands(backend: Backend) -> list[Array]:
        return normal(backend, (M, C), (V, C), (M, V))

    def run(backend: Backend, x: Array, weight: Array, dlogits: Array) -> object:
        logits = backend.matmul(x, _swapped(backend, weight))
        return logits, backend.matmul(dlogits, weight), backend.matmul(_swapped(backend, dlogits), x)

    return {"": _work(f"{M}x{C} @ {C}x{V}", "GFLOP/s", 6 * M * C * V, operands, run)}


# --- passes over memory -----------------------------------------------------------------------------------------------


def embedding(M: int, C: int, V: int) -> Works:
    """Rows of a table [V, C] by id."""

    def operands(backend: Backend) -> list[Array]:
        return [*normal(backend, (V, C), (M, C)), _ids(backend, M, V)]

    amounts = _FLOAT_BYTES * 2 * M * C, _FLOAT_BYTES * (M + V) * C
    return {
        "forward": _work(
            f"{M} of {V}x{C}", "GB/s", amounts[0], operands,
            lambda backend, table, _, ids: backend.gather_rows(table, ids),
        ),
        "backward": _work(
            f"{M} of {V}x{C}", "GB/s", amounts[1], operands,
            lambda backend, _, dy, ids: backend.scatter_add_rows(ids, dy, V),
        ),
    }  # fmt: skip


def position(B: int, T: int, C: int) -> Works:
    """Adding the position embedding [T, C] to [B, T, C]; its gradient is a sum over sequences."""

    def operands(backend: Backend) -> list[Array]:
        return normal(backend, (B, T, C), (T, C))

    shape, amounts = f"{B}x{T}x{C}", (_FLOAT_BYTES * (2 * B + 1) * T * C, _FLOAT_BYTES * (B + 1) * T * C)
    return {
        "forward": _work(shape, "GB/s", amounts[0], operands, lambda backend, x, table: backend.add(x, table)),
        "backward": _work(shape, "GB/s", amounts[1], operands, lambda backend, dy, _: backend.sum(dy, (0,))),
    }


def layer_norm(M: int, C: int) -> Works:
    return _pair(
        f"{M}x{C}",
        "GB/s",
        (_FLOAT_BYTES * 2 * M * C, _FLOAT_BYTES * 3 * M * C),
        lambda backend: normal(backend, (M, C), (C,), (C,)),
        lambda backend, x, weight, bias: backend.layer_norm(x, weight, bias, ModelConfig.norm_eps, training=True),
        lambda backend, dy, saved, *_: backend.layer_norm_backward(dy, saved),
    )


def rms_norm(M: int, C: int) -> Works:
    return _pair(
        f"{M}x{C}",
        "GB/s",
        (_FLOAT_BYTES * 2 * M * C, _FLOAT_BYTES * 3 * M * C),
        lambda backend: normal(backend, (M, C), (C,)),
        lambda backend, x, weight: backend.rms_norm(x, weight, ModelConfig.norm_eps, training=True),
        lambda backend, dy, saved, *_: backend.rms_norm_backward(dy, saved),
    )


def activation(M: int, N: int, kind: str) -> Works:
    """[M, N] -> [M, N], or [M, N/2] for the gated kinds."""
    outputs = N // 2 if kind in GATED_ACTIVATIONS else N
    return _pair(
        f"{M}x{N}",
        "GB/s",
        (_FLOAT_BYTES * M * (N + outputs), _FLOAT_BYTES * M * (2 * N + outputs)),
        lambda backend: normal(backend, (M, N)),
        lambda backend, x: backend.activation(x, kind, training=True),
        lambda backend, dy, saved, *_: backend.activation_backward(dy, saved),
    )


def split_heads(B: int, T: int, H: int, D: int) -> Works:
    """Norm and rotation of queries and keys. The backward pass is part of that of attention."""

    def operands(backend: Backend) -> list[Array]:
        tables = (backend.from_numpy(table.astype(np.float32)) for table in rotary_tables(T, D, ModelConfig.rope_base))
        return [*normal(backend, (B, T, 3 * H, D), (D,), (D,)), *tables]

    def run(backend: Backend, qkv: Array, *rest: Array) -> object:
        return backend.split_heads(qkv, Heads(H, H, rest[:2], ModelConfig.norm_eps, rest[2:]))

    return {"": _work(f"{B}x{T}x{2 * H}x{D}", "GB/s", _FLOAT_BYTES * 4 * B * T * H * D, operands, run)}


def dropout(M: int, C: int, probability: float) -> Works:
    """The backward pass is the same operation."""

    def operands(backend: Backend) -> list[Array]:
        return [*normal(backend, (M, C)), backend.from_numpy(np.zeros(1, np.int32))]

    def run(backend: Backend, x: Array, step: Array) -> object:
        return backend.dropout(x, probability, RandomKey(_SEED, rng.stream_of("bench"), step))

    return {"": _work(f"{M}x{C} p={probability}", "GB/s", _FLOAT_BYTES * 2 * M * C, operands, run)}


def add(M: int, C: int) -> Works:
    """The sum of two gradients that meet in the residual stream."""
    return {
        "": _work(
            f"{M}x{C}", "GB/s", _FLOAT_BYTES * 3 * M * C,
            lambda backend: normal(backend, (M, C), (M, C)),
            lambda backend, a, b: backend.add(a, b),
        )
    }  # fmt: skip


def sum_of_squares(P: int) -> Works:
    """The gradient norm of P parameters."""
    return {
        "": _work(
            f"{P}", "GB/s", _FLOAT_BYTES * P,
            lambda backend: normal(backend, (P,)),
            lambda backend, gradients: backend.sum_of_squares(gradients),
        )
    }  # fmt: skip


def adamw_update(P: int) -> Works:
    """P parameters with their two moments."""

    def prepare(backend: Backend) -> Callable[[], object]:
        [parameter, gradient] = normal(backend, (P,), (P,))
        first, second = backend.zeros((P,)), backend.zeros((P,))
        rate, one = (backend.from_numpy(np.full(1, value, np.float32)) for value in (1e-3, 1.0))
        control = AdamControl(rate, one, backend.greater(one, 0.0), one, one)
        return lambda: backend.adamw_update(parameter, gradient, first, second, control, 0.9, 0.95, 1e-8, 0.1)

    return {"": Work(f"{P}", _FLOAT_BYTES * 7 * P, "GB/s", prepare)}


# --- helpers ----------------------------------------------------------------------------------------------------------


def normal(backend: Backend, *shapes: tuple[int, ...]) -> list[Array]:
    """An array of standard normal numbers for each shape; they repeat in large arrays, which takes no time to make."""
    numbers = rng.normal(1 << 16, _SEED, rng.stream_of("bench")).astype(np.float32)
    return [backend.from_numpy(np.resize(numbers, shape)) for shape in shapes]


def _ids(backend: Backend, count: int, vocabulary: int) -> Array:
    bits = rng.random_bits(count, _SEED, rng.stream_of("bench"))
    return backend.from_numpy((bits % vocabulary).astype(np.int32))


def _swapped(backend: Backend, x: Array) -> Array:
    last = len(x.shape) - 1
    return backend.transpose(x, (*range(last - 1), last, last - 1))


def _work(shape: str, unit: str, amount: float, operands: Operands, run: Callable[..., object]) -> Work:
    """`run` gets the backend and the operands."""

    def prepare(backend: Backend) -> Callable[[], object]:
        arrays = operands(backend)
        return lambda: run(backend, *arrays)

    return Work(shape, amount, unit, prepare)


def _pair(
    shape: str,
    unit: str,
    amounts: tuple[float, float],
    operands: Operands,
    forward: Callable[..., tuple[Array, Saved]],
    backward: Callable[..., object],
) -> Works:
    """`forward` gets the backend and the operands; `backward` gets dy and what was saved between them."""

    def prepare_backward(backend: Backend) -> Callable[[], object]:
        arrays = operands(backend)
        y, saved = forward(backend, *arrays)
        [dy] = normal(backend, y.shape)
        return lambda: backward(backend, dy, saved, *arrays)

    return {
        "forward": _work(shape, unit, amounts[0], operands, forward),
        "backward": Work(shape, amounts[1], unit, prepare_backward),
    }
