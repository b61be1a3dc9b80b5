"""Differentiable operations on tensors: each calls one backend operation and knows its vector-Jacobian product."""

from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from alpha.autograd import Backward, Gradients, Tensor, record, recording
from alpha.backend import Backend, Heads
from alpha.backend_primitives import Array, RandomKey

# --- elementwise ------------------------------------------------------------------------------------------------------


def add(a: Tensor, b: Tensor | float) -> Tensor:
    """a + b, with broadcasting."""
    if not isinstance(b, Tensor):
        return _one(a.backend.add(a.data, b), [a], lambda dy: [dy])
    backend, a_shape, b_shape = a.backend, a.shape, b.shape
    return _one(
        backend.add(a.data, b.data),
        [a, b],
        lambda dy: [_sum_to(backend, dy, a_shape), _sum_to(backend, dy, b_shape)],
    )


def multiply(a: Tensor, b: Tensor | float) -> Tensor:
    """a * b elementwise, with broadcasting."""
    backend, x = a.backend, a.data
    if not isinstance(b, Tensor):
        return _one(backend.multiply(x, b), [a], lambda dy: [backend.multiply(dy, b)])
    y = b.data
    return _one(
        backend.multiply(x, y),
        [a, b],
        lambda dy: [
            _sum_to(backend, backend.multiply(dy, y), x.shape),
            _sum_to(backend, backend.multiply(dy, x), y.shape),
        ],
    )


def tanh(x: Tensor) -> Tensor:
    backend = x.backend
    y = backend.tanh(x.data)
    return _one(y, [x], lambda dy: [backend.multiply(dy, backend.subtract(1.0, backend.multiply(y, y)))])


def soft_cap(x: Tensor, cap: float) -> Tensor:
    """cap * tanh(x / cap), or x itself when cap is 0."""
    return multiply(tanh(multiply(x, 1.0 / cap)), cap) if cap else x


# --- shape ------------------------------------------------------------------------------------------------------------


def reshape(x: Tensor, shape: Sequence[int]) -> Tensor:
    backend, before = x.backend, x.shape
    return _one(backend.reshape(x.data, shape), [x], lambda dy: [backend.reshape(dy, before)])


def transpose(x: Tensor, axes: Sequence[int]) -> Tensor:
    """Permute the axes: result.shape[i] = x.shape[axes[i]]."""
    inverse = [int(each) for each in np.argsort(axes)]
    return _one(x.backend.transpose(x.data, axes), [x], lambda dy: [x.backend.transpose(dy, inverse)])


def narrow(x: Tensor, axis: int, start: int, length: int) -> Tensor:
    """The part of x from `start`, `length` long, along one axis; x itself when that is all of it."""
    backend, before = x.backend, x.shape
    if length == before[axis]:
        return x

    def backward(dy: Array) -> Gradients:
        dx = backend.zeros(before, dy.dtype)
        backend.copy_into(backend.narrow(dx, axis, start, length), dy)
        return [dx]

    return _one(backend.narrow(x.data, axis, start, length), [x], backward)


# --- products, indexing -----------------------------------------------------------------------------------------------


def matmul(a: Tensor, b: Tensor) -> Tensor:
    """Matrix product of the last two axes; the axes before them are broadcast."""
    backend, x, y = a.backend, a.data, b.data

    def backward(dy: Array) -> Gradients:
        da = backend.matmul(dy, _swap(backend, y))
        db = backend.matmul(_swap(backend, x), dy)
        return [_sum_to(backend, da, x.shape), _sum_to(backend, db, y.shape)]

    return _one(backend.matmul(x, y), [a, b], backward)


def embedding(table: Tensor, ids: Array) -> Tensor:
    """Rows of a table [V, C] by integer ids [...]: [..., C]."""
    backend, count = table.backend, table.shape[0]
    return _one(backend.gather_rows(table.data, ids), [table], lambda dy: [backend.scatter_add_rows(ids, dy, count)])


# --- neural network ---------------------------------------------------------------------------------------------------


def linear(
    x: Tensor, weight: Tensor, bias: Tensor | None = None, activation: str = "", residual: Tensor | None = None
) -> Tensor:
    """activation(x @ weight + bias) + residual; see `Backend.linear`."""
    backend = x.backend
    operands = [weight, x, bias, residual]  # see `Tensor.unused_gradient_buffer`
    y, saved = backend.linear(
        x.data,
        weight.data,
        None if bias is None else bias.data,
        activation,
        None if residual is None else residual.data,
        recording(*operands),
    )
    need_input = x.requires_gradient
    need_weight = weight.requires_gradient or (bias is not None and bias.requires_gradient)

    def backward(dy: Array) -> Gradients:
        buffer = weight.unused_gradient_buffer()
        dx, dweight, dbias = backend.linear_backward(dy, saved, buffer, need_input, need_weight)
        return [dweight, dx, dbias, dy]

    return _one(y, operands, backward)


def adapted_linear(
    x: Tensor,
    weight: Tensor,
    down: Tensor,
    up: Tensor,
    scale: float,
    bias: Tensor | None = None,
    activation: str = "",
    residual: Tensor | None = None,
) -> Tensor:
    """activation(x @ (weight + scale * down @ up) + bias) + residual, of which weight and bias are not trained; see
    `Backend.adapted_linear`."""
    backend, need_input = x.backend, x.requires_gradient
    y, saved = backend.adapted_linear(
        x.data,
        weight.data,
        down.data,
        up.data,
        scale,
        None if bias is None else bias.data,
        activation,
        None if residual is None else residual.data,
        recording(x, down, up, residual),
    )

    def backward(dy: Array) -> Gradients:
        return [*backend.adapted_linear_backward(dy, saved, need_input), dy]

    return _one(y, [x, down, up, residual], backward)


def activation(x: Tensor, kind: str) -> Tensor:
    """See `Backend.activation`."""
    y, saved = x.backend.activation(x.data, kind, recording(x))
    return _one(y, [x], lambda dy: [x.backend.activation_backward(dy, saved)])


def layer_norm(x: Tensor, weight: Tensor, bias: Tensor | None, epsilon: float) -> Tensor:
    """See `Backend.layer_norm`."""
    operands = [x, weight, bias]
    y, saved = x.backend.layer_norm(
        x.data, weight.data, None if bias is None else bias.data, epsilon, recording(*operands)
    )
    need_weight = weight.requires_gradient or (bias is not None and bias.requires_gradient)
    return _one(y, operands, lambda dy: x.backend.layer_norm_backward(dy, saved, need_weight))


def rms_norm(x: Tensor, weight: Tensor, epsilon: float) -> Tensor:
    """See `Backend.rms_norm`."""
    y, saved = x.backend.rms_norm(x.data, weight.data, epsilon, recording(x, weight))
    need_weight = weight.requires_gradient
    return _one(y, [x, weight], lambda dy: x.backend.rms_norm_backward(dy, saved, need_weight))


def self_attention(
    qkv: Tensor,
    heads: Heads,
    norms: tuple[Tensor, Tensor] | None = None,
    soft_cap: float = 0.0,
    dropout: float = 0.0,
    random: RandomKey | None = None,
    first_keys: Array | None = None,
) -> Tensor:
    """Causal attention; see `Backend.self_attention`. The weights of `heads.norms` are those of `norms`."""
    backend, operands = qkv.backend, [qkv, *(norms or ())]
    if norms is not None:
        heads = replace(heads, norms=(norms[0].data, norms[1].data))
    y, saved = backend.self_attention(qkv.data, heads, soft_cap, dropout, random, recording(*operands), first_keys)
    need_weight = any(each.requires_gradient for each in operands[1:])
    return _one(y, operands, lambda dy: backend.self_attention_backward(dy, saved, need_weight)[: len(operands)])


def dropout(x: Tensor, probability: float, key: RandomKey | None) -> Tensor:
    """See `Backend.dropout`; without a key, or with probability 0, x itself."""
    if not probability or key is None:
        return x
    backend = x.backend
    return _one(backend.dropout(x.data, probability, key), [x], lambda dy: [backend.dropout(dy, probability, key)])


def cross_entropy(x: Tensor, weight: Tensor, targets: Array, soft_cap: float = 0.0) -> Tensor:
    """The output head and its mean loss in nats; see `Backend.cross_entropy`."""
    backend = x.backend
    loss, saved = backend.cross_entropy(
        x.data, weight.data, targets, soft_cap, recording(x, weight), weight.requires_gradient
    )

    def backward(dloss: Array) -> Gradients:
        dx, dweight = backend.cross_entropy_backward(dloss, saved, weight.unused_gradient_buffer())
        return [dweight, dx]

    return _one(loss, [weight, x], backward)  # see `Tensor.unused_gradient_buffer`


# --- helpers ----------------------------------------------------------------------------------------------------------


def _one(result: Array, operands: Sequence[Tensor | None], backward: Backward) -> Tensor:
    backend = next(each.backend for each in operands if each is not None)
    return record(result, operands, backward, backend)


def _sum_to(backend: Backend, gradient: Array, shape: tuple[int, ...]) -> Array:
    """Sum a gradient over the axes along which an operand of `shape` was broadcast."""
    if gradient.shape == shape:
        return gradient
    added = len(gradient.shape) - len(shape)
    axes = [*range(added)]
    axes += [added + axis for axis, size in enumerate(shape) if size == 1 and gradient.shape[added + axis] != 1]
    return backend.reshape(backend.sum(gradient, axes), shape)


def _swap(backend: Backend, x: Array) -> Array:
    last = len(x.shape) - 1
    return backend.transpose(x, [*range(last - 1), last, last - 1])
